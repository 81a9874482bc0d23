"""What segmentation stands on: the models, the plates with their fields, and their names in the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.learning.contract import Contract, read_contract
from hpc_isl.learning.fields import field_view
from hpc_isl.learning.foreign import Scale, at_scale, renamed, scale_on
from hpc_isl.learning.view import View
from hpc_isl.mistake import Mistake
from hpc_isl.plates.labels import slug
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipe import digest
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.shared.sweeps import FINAL

# Keys that say what else is computed, or how, and leave the objects of a field as they are.
AROUND = {
    "plates": [], "fields": None, "write": ["labels"], "overlap": None, "largest": 1, "block": 1,
    "overwrite": False,
}  # fmt: skip


@dataclass(frozen=True)
class Models:
    """The models of a recipe: contracts, no weights.

    Attributes:
        folder: of the model that segments; `stain` the one whose stain is measured too, or None.
        labels: name of the labels to write.
    """

    folder: Path
    contract: Contract
    labels: str
    stain: Path | None = None
    stain_contract: Contract | None = None


@dataclass(frozen=True)
class Target:
    """A plate to segment.

    Attributes:
        name: in tables, unique among the plates of the run; `slug` is the same for files.
        keys: fields to segment, in plate order.
    """

    index: Index
    name: str
    keys: tuple[FieldKey, ...]

    @property
    def slug(self) -> str:
        return slug(self.name)


def models_of(recipe: SegmentRecipe) -> Models:
    """The contracts of the recipe's models.

    Raises:
        Mistake: a run without a model; no name for the labels.
    """
    folder = model_run(recipe.model).model
    contract = _contract("model", recipe.model, folder)
    labels = recipe.labels or (contract.task.labels if contract.task else None)
    if labels is None:
        raise Mistake("labels: must name what is written, as in labels=nuclei; this model predicts a stain")
    if recipe.stain is None:
        return Models(folder, contract, labels)
    stain = Run(recipe.stain).model
    stained = _contract("stain", recipe.stain, stain)
    if stained.task is not None:
        raise Mistake(f"stain={recipe.stain}: this model segments; a run of pretrain predicts a stain")
    return Models(folder, contract, labels, stain, stained)


def model_run(folder: Path) -> Run:
    """The run whose model is meant: of a sweep its last element."""
    run = Run(folder)
    members = {member.name: member for member in run.elements()}
    if members and FINAL not in members:
        raise Mistake(
            f"model={folder.name}: this sweep has no element {FINAL!r}; name one of its elements, as in "
            f"model={folder.name}/{next(iter(members))}"
        )
    return members.get(FINAL, run)


def _contract(key: str, given: Path, folder: Path) -> Contract:
    try:
        return read_contract(folder)
    except Mistake as mistake:
        raise Mistake(f"{key}={given}: {mistake}") from None


def view_of(recipe: SegmentRecipe, contract: Contract) -> View:
    """What the model sees, in the plates' names of channels."""
    return renamed(contract.view, recipe.channels)


# ---------------------------------------------------------------- plates


def targets_of(recipe: SegmentRecipe, view: View) -> tuple[Target, ...]:
    """The plates, in the order of the recipe, with the fields that the model looks at."""
    indices = [open_plate(path) for path in recipe.plates]
    names = _unique([index.plate.name for index in indices])
    return tuple(
        Target(index, name, _keys(recipe, view, index)) for index, name in zip(indices, names, strict=True)
    )


def _unique(names: Sequence[str]) -> list[str]:
    """The same names, numbered where several plates have one."""
    return [
        name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)
    ]


def _keys(recipe: SegmentRecipe, view: View, index: Index) -> tuple[FieldKey, ...]:
    """The fields of the acquisition of the first source; where one is named, its well's alone."""
    own = view.sources[0].acquisition
    chosen = index.plate.choose(recipe.fields) if recipe.fields is not None else None
    keys = [field.key for field in index.plate.fields if own in (None, field.key.acquisition)]
    found = tuple(key for key in keys if chosen is None or key in chosen)
    if not found:
        raise Mistake(f"{index.path}: none of its fields is of acquisition {own}, which the model looks at")
    return found


def scale_of(recipe: SegmentRecipe, view: View, index: Index, key: FieldKey) -> Scale:
    """How the pixels of a field and those of the model lie to each other."""
    return scale_on(view, index, key, recipe.pixel_um)


def unseen(recipe: SegmentRecipe, view: View, index: Index, keys: Sequence[FieldKey]) -> Iterator[str]:
    """Why fields cannot be looked at, as far as it is known without their pixels."""
    for key in keys:
        try:
            field_view(at_scale(view, scale_of(recipe, view, index, key)), index, key)
        except Mistake as mistake:
            yield str(mistake)


# ---------------------------------------------------------------- fingerprints


def fingerprint(recipe: SegmentRecipe, models: Models, index: Index, key: FieldKey) -> str:
    """Of all that decides the objects of a field: recipe, weights, pixels; wherever they lie."""
    own = recipe.model_copy(update=AROUND)
    facts = {"model": models.contract.weights, "pixels": index.statistics[key].digest, "field": str(key)}
    if models.stain_contract:
        facts["stain"] = models.stain_contract.weights
    return digest(own, facts)
