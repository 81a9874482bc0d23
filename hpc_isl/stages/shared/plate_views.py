"""Plates as one model sees them, and the fields of each that train, validate and test."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import identity
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.fields import fields_of, image_key, imaged_times, level_on
from hpc_isl.learning.data.rescale import Scale, scale_on
from hpc_isl.learning.data.samples import Crops, crops_of, read
from hpc_isl.learning.data.split import Split, draw
from hpc_isl.learning.data.view import Role, View
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.limits import SUFFIXES
from hpc_isl.metadata_changes import changed_since, changes_of
from hpc_isl.plate_home import home_of
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import NetRecipe, SplitRecipe


@dataclass(frozen=True)
class PlateView:
    """One plate as one model sees it; making one opens and reads nothing.

    Attributes:
        recipe: of the stage that looks.
        view: what the model sees, in the plate's names of channels.
        index: of the open plate.
    """

    recipe: Any
    view: View
    index: Index

    @property
    def name(self) -> str:
        return self.index.plate.name

    def times(self, field: FieldKey) -> list[int]:
        """Returns the times at which all sources of the field were imaged."""
        return imaged_times(self.view, self.index, field)

    def level(self, field: FieldKey) -> int:
        """Returns the pyramid level whose pixels have the size that the model sees."""
        return level_on(self.view, self.index, field)

    def shift(self, field: FieldKey, other: FieldKey) -> tuple[int, int]:
        """Returns (y, x): what the field shows at p, the other acquisition of it shows at p + shift.

        In pixels of the level that the model sees; 0 where the two show different places.
        """
        y, x = self.index.shift(field, other) or (0, 0)
        scale = 2 ** self.level(field)
        return round(y / scale), round(x / scale)

    def read(self, field: FieldKey, time: int = 0) -> tuple[Any, Any]:
        """Returns the whole field, normalised: sources (C, y, x), and targets (K, y, x) or None; float32."""
        return read(self.view, self.index, field, time)

    def scale(self, field: FieldKey, pixel_um: float | None = None) -> Scale:
        """Returns how the field's pixels relate to the model's; `pixel_um` replaces the size in the view."""
        return scale_on(self.view, self.index, field, pixel_um)

    def is_empty(self, field: FieldKey) -> bool:
        """Returns whether every source of the field was flagged empty, without any structure, by convert."""
        return all(
            f"empty:{self.index.channel(role.channel)}" in self.index.statistics[image_key(field, role)].flags
            for role in self.view.sources
        )

    def megapixels(self, field: FieldKey) -> float:
        """Returns millions of pixels of the field at the level that the model sees, over all its times."""
        times, _, _, y, x = self.index.field(field).shape
        # Each level of the pyramid halves both edges.
        return float(times * y * x / 4 ** self.level(field) / 1e6)

    def plate_map(self, field: FieldKey) -> dict[str, str]:
        """Returns the plate map's columns for the field's well; empty where the well has no row."""
        return dict(self.index.plate_map.get(field.well, {}))


PlateField = tuple[PlateView, FieldKey]


@dataclass(frozen=True)
class PlateViews:
    """The plates of a training: how the model sees them, and which fields train, validate and test."""

    recipe: Any
    view: View
    split: Split
    indices: tuple[Index, ...]

    @property
    def plates(self) -> list[PlateView]:
        return [PlateView(self.recipe, self.view, index) for index in self.indices]

    def keys(self, index: Index, part: str) -> tuple[FieldKey, ...]:
        """Returns a plate's fields of a part, in the acquisition of the view's first source."""
        return fields_of(self.view, index, self.split, part)

    def fields(self, part: str) -> list[PlateField]:
        """Returns the fields of a part whose sources were imaged, over all plates."""
        return [
            (plate, key) for plate in self.plates for key in self.keys(plate.index, part) if plate.times(key)
        ]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name of each plate -> fingerprint of its pixels."""
        return {index.plate.name: index.fingerprint for index in self.indices}


def load_plate_views(recipe: PretrainRecipe) -> tuple[PlateViews, Crops]:
    """Returns the plates as pretraining sees them, and its training crops; reads no pixels.

    Raises:
        UserError: plates, channels, planes, split or crops that do not fit.
    """
    indices = open_plates(recipe.plates)
    split = draw(indices, recipe.split)
    study = PlateViews(recipe, view_of(indices, split, recipe), split, indices)
    return study, crops_of(study.view, indices, split, recipe.train, recipe.augment, recipe.control)


def open_plates(paths: Sequence[Path]) -> tuple[Index, ...]:
    """Returns the plates in the order of their names, so that sample numbers do not depend on paths."""
    return tuple(sorted((open_plate(path) for path in paths), key=lambda index: index.plate.name))


def name_of(role: Role) -> str:
    """Returns the name of a source or target in tables and pictures, as in `Hoechst max`."""
    return f"{role.channel} {role.plane}"


# ---------------------------------------------------------------- paths of a recipe


def expanded(plates: Sequence[Path]) -> list[Path]:
    """Returns absolute paths with globs expanded; of several paths to one plate, the first."""
    # By device and inode: links and relative paths may lead to one plate.
    paths: dict[object, Path] = {}
    for pattern in plates:
        path = pattern.expanduser().absolute()
        matches = [path]
        if not path.exists() and glob.has_magic(str(path)):
            matches = sorted(Path(match) for match in glob.glob(str(path)))
            if not matches:
                raise UserError(f"plates: nothing is called {pattern}")
        for match in matches:
            # An adopted plate and the folder beside it, which holds its index, are one plate.
            paths.setdefault(identity(home_of(match)), match)
    return list(paths.values())


def located_net(net: NetRecipe) -> NetRecipe:
    """Returns the network's recipe with an absolute path of its weights file."""
    if not net.weights or not net.weights.endswith(SUFFIXES):
        return net
    return net.model_copy(update={"weights": str(Path(net.weights).expanduser().absolute())})


def located_split(split: SplitRecipe) -> SplitRecipe:
    """Returns the split's recipe with an absolute path of its file."""
    return split.model_copy(update={"file": split.file and split.file.expanduser().absolute()})


# ---------------------------------------------------------------- metadata corrected after training


def resized_since(contract: Contract) -> Iterator[tuple[str, float | None]]:
    """Yields each training plate of a model whose pixel size was corrected after the training.

    The pixel size in such a model's contract is wrong. Yields a line such as `metadata of P01 changed:
    pixel_um: 325 -> 0.325`, and the pixel size that the model really saw, in µm (None: unknown).
    """
    for plate in map(Path, contract.recipe.get("plates", [])):
        lines = changed_since(changes_of(plate), contract.plates.values())
        # Renamed channels change the metadata too, but are translated elsewhere.
        if any(line.startswith("pixel_um:") for line in lines):
            size = open_plate(plate).plate.pixel_um
            seen_um = None if size is None else size * 2**contract.view.level
            yield f"metadata of {plate.stem} changed: {'; '.join(lines)}", seen_um
