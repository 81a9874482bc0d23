"""What a stage looks at: plates as one model sees them, and who of them trains, validates and tests."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.files import identity
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.fields import fields_of, imaged_times
from hpc_isl.learning.data.samples import Crops, crops_of
from hpc_isl.learning.data.split import Split, draw
from hpc_isl.learning.data.view import Role, View
from hpc_isl.learning.network.weight_files import SUFFIXES
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import NetRecipe, SplitRecipe

PlateField = tuple[Index, FieldKey]


@dataclass(frozen=True)
class PlateViews:
    """Plates as one model sees them: the view, and who trains, validates and tests."""

    indices: tuple[Index, ...]
    split: Split
    view: View

    def places(self, part: str) -> list[PlateField]:
        """The fields of a part whose sources were imaged, over all plates."""
        return [
            (index, key)
            for index in self.indices
            for key in fields_of(self.view, index, self.split, part)
            if imaged_times(self.view, index, key)
        ]


def load_plate_views(recipe: PretrainRecipe) -> tuple[PlateViews, Crops]:
    """What pretraining would look at, and its crops; reads no pixels.

    Raises:
        UserError: plates, channels, planes, split or crops that do not fit.
    """
    indices = open_plates(recipe.plates)
    split = draw(indices, recipe.split)
    study = PlateViews(indices, split, view_of(indices, split, recipe))
    return study, crops_of(study.view, indices, split, recipe.train, recipe.augment, recipe.control)


def open_plates(paths: Sequence[Path]) -> tuple[Index, ...]:
    """The plates in the order of their names: sample numbers do not depend on where they lie."""
    return tuple(sorted((open_plate(path) for path in paths), key=lambda index: index.plate.name))


def name_of(role: Role) -> str:
    """`Hoechst max`: how a source or target is called in tables and pictures."""
    return f"{role.channel} {role.plane}"


def expanded(plates: Sequence[Path]) -> list[Path]:
    """Absolute paths, each once, with globs expanded; of several that lead to one plate the first."""
    found: dict[object, Path] = {}
    for path in (path for given in plates for path in _matches(given)):
        found.setdefault(identity(path), path)
    return list(found.values())


def _matches(given: Path) -> list[Path]:
    path = given.expanduser().absolute()
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(Path(path) for path in glob.glob(str(path)))
    if not found:
        raise UserError(f"plates: nothing is called {given}")
    return found


def located_net(net: NetRecipe) -> NetRecipe:
    """The same with the absolute path of a weights file."""
    if not net.weights or not net.weights.endswith(SUFFIXES):
        return net
    return net.model_copy(update={"weights": str(Path(net.weights).expanduser().absolute())})


def located_split(split: SplitRecipe) -> SplitRecipe:
    """The same with the absolute path of its file."""
    return split.model_copy(update={"file": split.file and split.file.expanduser().absolute()})
