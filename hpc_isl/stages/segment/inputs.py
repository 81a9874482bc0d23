"""What segmentation stands on: the models, the plates with their fields, and their names in the tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.fields import field_view, image_key, imaged_times
from hpc_isl.learning.data.rescale import Scale, at_scale, renamed, scale_on
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.contract import Contract, read_contract
from hpc_isl.plates.label_groups import slug
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_provenance, open_plate, stamp
from hpc_isl.recipes.load import RECIPES, digest, load_kept
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.shared.plate_views import resized_since
from hpc_isl.stages.shared.sweeps import FINAL

# Keys that say what else is computed, or how, and leave figures as they are; with those that follow, labels.
AROUND = {
    "plates": [], "labels": None, "fields": None, "outputs": ["labels"], "overlap": None,
    "max_pixels_in_memory": 1, "block_size": 1, "overwrite": False,
}  # fmt: skip
MEASURED = {"stain": None, "measure": None, "cells": None, "reference_labels": None}
MODELS = ("finetune", "pretrain")  # the stages that make one


@dataclass(frozen=True)
class Models:
    """The models of a recipe: contracts, no weights.

    Attributes:
        folder: of the model that segments; `stain` the one whose stain is measured too, or None.
        labels: name of the labels to write.
        essence: hash of what decides the objects of the model, and of `stain` what it predicts.
    """

    folder: Path
    contract: Contract
    labels: str
    model_hashes: tuple[str, ...]
    stain: Path | None = None
    stain_contract: Contract | None = None

    @property
    def kind(self) -> str:
        """Of the objects that are found: nuclei, cells, or stain: drafted from a predicted one."""
        return self.contract.task.kind if self.contract.task else "stain"

    @property
    def contracts(self) -> tuple[Contract, ...]:
        """Of all models that look at a field."""
        return (self.contract, *([self.stain_contract] if self.stain_contract else []))


@dataclass(frozen=True)
class PlateInput:
    """A plate to segment.

    Attributes:
        name: in tables, unique among the plates of the run; `slug` is the same for files.
        keys: fields to segment, in plate order.
        without: fields that are left out, for a source of the model was not imaged in them.
    """

    index: Index
    name: str
    keys: tuple[FieldKey, ...]
    without: tuple[FieldKey, ...] = ()

    @property
    def slug(self) -> str:
        return slug(self.name)


def recipe_of(run: Run) -> SegmentRecipe:
    """The recipe that a run of segment keeps."""
    recipe = load_kept("segment", run.recipe)
    assert isinstance(recipe, SegmentRecipe)
    return recipe


def models_of(recipe: SegmentRecipe) -> Models:
    """The contracts of the recipe's models.

    Raises:
        UserError: a run without a model; no name for the labels.
    """
    folder = model_run(recipe.model).model
    contract = _contract("model", recipe.model, folder)
    labels = recipe.labels or (contract.task.labels if contract.task else None)
    if labels is None:
        raise UserError("labels: must name what is written, as in labels=nuclei; this model predicts a stain")
    if recipe.stain is None:
        return Models(folder, contract, labels, _model_hashes(contract))
    stain = Run(recipe.stain).model
    stained = _contract("stain", recipe.stain, stain)
    if stained.task is not None:
        raise UserError(f"stain={recipe.stain}: this model segments; a run of pretrain predicts a stain")
    return Models(folder, contract, labels, _model_hashes(contract, stained), stain, stained)


def refuse_resized(recipe: SegmentRecipe, models: Models) -> None:
    """A model whose contract states the wrong size of pixels does not run, unless the recipe states it.

    Raises:
        UserError: with the sizes that changed.
    """
    for key, contract in zip(("model", "stain"), models.contracts, strict=False):
        if key == "model" and recipe.pixel_um is not None:
            continue
        for line, seen in resized_since(contract):
            way = (
                f", or say what pixels it was trained at: pixel_um={seen:g}"
                if key == "model" and seen
                else ""
            )
            raise UserError(
                f"{key}={getattr(recipe, key).name}: {line}, after this model was trained there; train it "
                f"again, under another --name{way}"
            )


def _model_hashes(*contracts: Contract) -> tuple[str, ...]:
    contents = (json.dumps(contract.model_hash(), sort_keys=True) for contract in contracts)
    return tuple(hashlib.sha256(content.encode()).hexdigest() for content in contents)


def model_run(folder: Path) -> Run:
    """The run whose model is meant: of a sweep its last element."""
    run = Run(folder)
    members = {member.name: member for member in run.elements()}
    if members and FINAL not in members:
        raise UserError(
            f"model={folder.name}: this sweep has no element {FINAL!r}; name one of its elements, as in "
            f"model={folder.name}/{next(iter(members))}"
        )
    return members.get(FINAL, run)


def _contract(key: str, given: Path, folder: Path) -> Contract:
    stage = Run(given).stage
    if not folder.exists() and stage in RECIPES and stage not in MODELS:
        raise UserError(f"{key}={given}: a run of {stage} has no model; name one of {' or '.join(MODELS)}")
    try:
        return read_contract(folder)
    except UserError as mistake:
        raise UserError(f"{key}={given}: {mistake}") from None


def view_of(recipe: SegmentRecipe, contract: Contract) -> View:
    """What the model sees, in the plates' names of channels: those of the recipe that it knows."""
    return renamed(contract.view, {a: b for a, b in recipe.channels.items() if a in _channels(contract)})


def check_channels(recipe: SegmentRecipe, models: Models) -> None:
    """Each name that the recipe translates is one of a model's.

    Raises:
        UserError: naming the nearest.
    """
    known = [name for contract in models.contracts for name in _channels(contract)]
    for name in recipe.channels:
        if name not in known:
            raise UserError(f"channels: {name!r} is no channel of the model; {nearest(name, known)}")


def _channels(contract: Contract) -> list[str]:
    return list(dict.fromkeys(role.channel for role in contract.view.sources + contract.view.targets))


# ---------------------------------------------------------------- plates


def plate_inputs(recipe: SegmentRecipe, view: View) -> tuple[PlateInput, ...]:
    """The plates, in the order of the recipe, with the fields that the model looks at."""
    indices = [open_plate(path) for path in recipe.plates]
    names = _unique([(index.plate.name, index.path.stem) for index in indices])
    return tuple(_target(recipe, view, index, name) for index, name in zip(indices, names, strict=True))


def _target(recipe: SegmentRecipe, view: View, index: Index, name: str) -> PlateInput:
    for role in view.sources:
        index.channel(role.channel)
    keys = _keys(recipe, view, index)
    seen = tuple(key for key in keys if imaged_times(view, index, key))
    if not seen:
        names = ", ".join(f"{role.channel!r} {role.plane}" for role in view.sources)
        raise UserError(f"{index.path}: none of {len(keys)} fields has all sources of the model ({names})")
    return PlateInput(index, name, seen, tuple(key for key in keys if key not in seen))


def _unique(plates: Sequence[tuple[str, str]]) -> list[str]:
    """Names of plates, by name and folder: where several have one name, the folder's; then numbered."""
    given = [name for name, _ in plates]
    names = [name if given.count(name) == 1 else folder for name, folder in plates]
    found: list[str] = []
    for name in names:
        tries = (f"{name} ({number})" for number in count(1))
        taken = {*names, *found}
        found.append(name if names.count(name) == 1 else next(each for each in tries if each not in taken))
    return found


def _keys(recipe: SegmentRecipe, view: View, index: Index) -> tuple[FieldKey, ...]:
    """The fields of the acquisition of the first source; where one is named, its well's alone."""
    own = view.sources[0].acquisition
    chosen = index.plate.choose(recipe.fields) if recipe.fields is not None else None
    keys = [field.key for field in index.plate.fields if own in (None, field.key.acquisition)]
    found = tuple(key for key in keys if chosen is None or key in chosen)
    if not keys:
        raise UserError(f"{index.path}: none of its fields is of acquisition {own}, which the model looks at")
    if not found:
        which = f"; the model looks at those of acquisition {own}" if own is not None else ""
        raise UserError(f"{index.path}: fields={recipe.fields} leaves none of its {len(keys)} fields{which}")
    return found


def taught(recipe: SegmentRecipe, models: Models, target: PlateInput, key: FieldKey) -> bool:
    """Whether the model learnt from a field's objects, or from the stain that they are counted by here."""
    seen = ["train", *(["stain"] if recipe.reference_labels and recipe.reference_labels.channel else [])]
    return any(models.contract.has_seen(part, target.index.plate.name, key) for part in seen)


def scale_of(recipe: SegmentRecipe, view: View, index: Index, key: FieldKey) -> Scale:
    """How the pixels of a field and those of the model lie to each other."""
    return scale_on(view, index, key, recipe.pixel_um)


def stain_scale_of(recipe: SegmentRecipe, view: View, index: Index, key: FieldKey) -> Scale:
    """The same for the model of the stain, of which `pixel_um` speaks where it does not know its own."""
    return scale_on(view, index, key, view.pixel_um or recipe.pixel_um)


def unseen(recipe: SegmentRecipe, view: View, index: Index, keys: Sequence[FieldKey]) -> Iterator[str]:
    """Why fields cannot be looked at, as far as it is known without their pixels."""
    for key in keys:
        try:
            field_view(at_scale(view, scale_of(recipe, view, index, key)), index, key)
        except UserError as mistake:
            yield str(mistake)


def is_empty(recipe: SegmentRecipe, view: View, index: Index, key: FieldKey) -> bool:
    """Whether a field has no objects because nothing that the model sees of it has any structure."""
    shown = (
        f"empty:{index.channel(role.channel)}" not in index.statistics[image_key(key, role)].flags
        for role in view.sources
    )
    return recipe.empty_fields == "zero" and not any(shown)


def is_large(recipe: SegmentRecipe, index: Index, key: FieldKey) -> bool:
    """Whether a field has more pixels than the recipe holds in memory."""
    y, x = index.field(key).shape[-2:]
    return y * x > recipe.max_pixels_in_memory


def refuse_large(recipe: SegmentRecipe, contract: Contract) -> None:
    """What cannot be made of images that memory does not hold.

    Raises:
        UserError: with what to change.
    """
    way = "or raise max_pixels_in_memory if memory holds the image"
    if (recipe.predict or contract.predict).tile is None:
        raise UserError(
            f"an image of more than {recipe.max_pixels_in_memory:,} pixels (max_pixels_in_memory) is not "
            f"predicted as a whole: say in which tiles, as in predict='{{tile: 1024, halo: 128}}', {way}"
        )
    task = contract.task
    asked = [key for key in ("cells", "reference_labels") if getattr(recipe, key) is not None]
    if asked or set(recipe.outputs) != {"labels"} or task is None or task.method == "reference":
        raise UserError(
            f"an image of more than {recipe.max_pixels_in_memory:,} pixels (max_pixels_in_memory) becomes "
            "labels and features alone, by a model that segments: "
            f"leave out cells, reference_labels and maps, {way}"
        )


# ---------------------------------------------------------------- fingerprints


def labels_fingerprint(recipe: SegmentRecipe, models: Models, index: Index, key: FieldKey) -> str:
    """Of all that decides the labels of a field: recipe, model, pixels; wherever they lie."""
    own = recipe.model_copy(update=AROUND | MEASURED)
    facts = {"model": models.model_hashes[0], "plate": _plate(index), "field": str(key)}
    return digest(
        own, facts | _pixels(index, [image_key(key, role) for role in models.contract.view.sources])
    )


def fingerprint(
    recipe: SegmentRecipe,
    models: Models,
    index: Index,
    key: FieldKey,
    of_labels: Callable[[Path, str], str] = stamp,
) -> str:
    """Of the same and all that decides what is measured: channels, another model, other labels.

    `of_labels`: tells labels of cells, or of the truth, from others; `former_stamp` as earlier versions did.
    """
    own = recipe.model_copy(update=AROUND)
    facts = {
        "labels": labels_fingerprint(recipe, models, index, key),
        "models": " ".join(models.model_hashes),
    }
    facts["channels"] = str([channel.name for channel in index.plate.channels])
    facts |= {"revision": index.revision} if index.revision else {}
    for what, name in (
        ("cells", recipe.cells),
        ("truth", recipe.reference_labels and recipe.reference_labels.labels),
    ):
        made = label_provenance(index.image(key), name) if name else None
        if name and made and made[1] != facts["labels"]:  # what this run itself has written is neither
            facts[what] = of_labels(index.image(key), name)
    return digest(own, facts | _pixels(index, [key, *_passes(recipe, models, key)]))


def _passes(recipe: SegmentRecipe, models: Models, key: FieldKey) -> Iterator[FieldKey]:
    """The field in the passes of imaging that the stain's model and the truth are read from."""
    if models.stain_contract:
        yield from (image_key(key, role) for role in models.stain_contract.view.sources)
    if recipe.reference_labels and recipe.reference_labels.acquisition is not None:
        yield replace(key, acquisition=recipe.reference_labels.acquisition)


def _plate(index: Index) -> str:
    """Sizes of pixels, and the vendor's illumination."""
    plate = index.plate
    return json.dumps([plate.pixel_um, plate.plane_um, [channel.flat_field for channel in plate.channels]])


def _pixels(index: Index, keys: Sequence[FieldKey]) -> dict[str, str]:
    """Hashes of the images, as they were measured when the plate was made, and which planes are where."""
    found = {}
    for number, key in enumerate(key for key in dict.fromkeys(keys) if key in index.statistics):
        field = index.field(key)
        heights = [field.z_um, field.details.get("z_um"), field.details.get("planes")]
        found[f"pixels {number}"] = f"{index.statistics[key].digest} {json.dumps(heights)}"
    return found
