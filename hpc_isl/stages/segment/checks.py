"""What is known before pixels are read: what can never work is refused, what the user should know is said."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.rescale import unlike_channels
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.limits import check_grid
from hpc_isl.plates.change_metadata import former
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import edited, edits_stay, label_names, label_provenance
from hpc_isl.recipes.segment import ReferenceRecipe, SegmentRecipe
from hpc_isl.stages.segment.files import COPY, OURS, labels_name
from hpc_isl.stages.segment.inputs import (
    Models,
    PlateInput,
    is_large,
    labels_fingerprint,
    refuse_large,
    scale_of,
    unseen,
    view_of,
)
from hpc_isl.stages.segment.maps import MAPS, maps_of

THREADS = 4


def checked(recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput]) -> Iterator[str]:
    """Refuses what can never work; says what the user should know."""
    of = recipe.predict or models.contract.predict
    check_grid(of.tile, of.halo)
    _check_maps(recipe, models)
    _check_rule(recipe, models)
    view = view_of(recipe, models.contract)
    for target in targets:
        for name in recipe.measure or []:
            target.index.channel(name)
        if any(is_large(recipe, target.index, key) for key in target.keys):
            refuse_large(recipe, models.contract)
        yield from _seen(recipe, models, view, target)
        for contract in models.contracts:
            lines = unlike_channels(contract.view, contract.stains, recipe.channels, target.index)
            yield from (f"warning: {line}" for line in lines)
        scale = scale_of(recipe, view, target.index, target.keys[0])
        if scale.factor != 1:
            yield (
                f"{target.name}: pixels of {target.index.plate.pixel_um:g} µm are resampled to the "
                f"{scale.pixel_um:g} µm of the model; labels are of full resolution"
            )
        yield from _labels_there(recipe, models, target)
    yield from _other_labels(recipe, targets)
    if recipe.overlap is not None and "labels" not in recipe.outputs:
        yield "objects that two overlapping fields show are counted twice, for labels are not kept (write)"


def one_name(
    recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput]
) -> tuple[SegmentRecipe, Models, tuple[str, ...]]:
    """The recipe and models with the one name of all labels of a run, and what the user should know of it.

    It is another than asked for where people, or a draft, have that one on any field of a plate.

    Raises:
        UserError: people have that name too, because they corrected what was computed.
    """
    name = models.labels
    if "labels" not in recipe.outputs:
        return recipe, models, ()
    taken = [target for target in targets if _has_drawn(target, name)]
    if not taken:
        return recipe, models, ()
    own = name + OURS
    for target in targets:
        if _has_drawn(target, own):
            raise UserError(
                f"{target.index.path}: people have labels {name!r}, and {own!r} where they corrected "
                "computed ones: neither is replaced; choose another labels="
            )
    said = (
        f"labels {name!r} that people drew, or drafted, on {taken[0].name} stay: all that this run computes "
        f"are called {own!r}"
    )
    return recipe.model_copy(update={"labels": own}), replace(models, labels=own), (said,)


def _has_drawn(target: PlateInput, name: str) -> bool:
    """Whether any field of the plate has labels of this name that no run of segment has computed."""
    made = (label_provenance(target.index.image(field.key), name) for field in target.index.plate.fields)
    return any(one is not None and not one[1] for one in made)


def _check_maps(recipe: SegmentRecipe, models: Models) -> None:
    """Each map that is to be kept is an output of a model."""
    for name in recipe.outputs:
        if name in MAPS and not maps_of([name], models.contract, models.stain_contract).channels:
            raise UserError(
                f"outputs: {name} cannot be kept, for {models.folder.parent} has none: {MAPS[name]}"
            )


def _check_rule(recipe: SegmentRecipe, models: Models) -> None:
    kind = models.contract.task.kind if models.contract.task else "stain"
    if recipe.h_maxima is not None and kind != "cells":
        of = "nuclei by the mask alone" if kind == "nuclei" else "objects in the stain that it predicts"
        raise UserError(
            f"h_maxima={recipe.h_maxima:g}: parts cells by their distance map, and this model finds {of}"
        )


def _seen(recipe: SegmentRecipe, models: Models, view: View, target: PlateInput) -> Iterator[str]:
    """Fields that no model can look at; a `UserError` where it is all of them."""
    blind = list(unseen(recipe, view, target.index, target.keys))
    if len(blind) == len(target.keys):
        raise UserError(blind[0])
    if target.without:
        names = ", ".join(repr(role.channel) for role in view.sources)
        left_out = _some(target.without)
        yield f"{target.name}: {left_out} are left out, for they have no plane of a source ({names})"
    if blind:
        yield f"{target.name}: {len(blind)} of {len(target.keys)} fields cannot be seen, as {blind[0]}"
    if models.stain_contract:
        stained = view_of(recipe, models.stain_contract)
        if blind := list(unseen(recipe, stained, target.index, target.keys[:1])):
            raise UserError(f"stain: {blind[0]}")


def _labels_there(recipe: SegmentRecipe, models: Models, target: PlateInput) -> Iterator[str]:
    found = existing_labels(recipe, models, target)
    check_label_conflicts(recipe, models, target, found)
    try:
        refuse_unwritable(target, found)
    except UserError as mistake:  # the node that computes may see another disk
        yield f"warning: from this machine {mistake}"


def _other_labels(recipe: SegmentRecipe, targets: Sequence[PlateInput]) -> Iterator[str]:
    """Labels of cells must be there in all fields, the truth in some."""
    fields = [(target, key) for target in targets for key in target.keys]
    if recipe.cells:
        lacking = [(target, key) for target, key in fields if not _has(target, key, recipe.cells)]
        if lacking:
            target, key = lacking[0]
            near = nearest(recipe.cells, label_names(target.index.image(key)))
            raise UserError(
                f"cells: {len(lacking)} of {len(fields)} fields have no labels {recipe.cells!r}, "
                f"{target.name} {key} among them; {near}"
            )
    if (truth := recipe.reference_labels) is None:
        return
    if truth.channel is not None:
        for target in targets:
            target.index.channel(truth.channel)
        known = sum(bool(_stained(truth, target, key)) for target, key in fields)
        what = f"an image of {truth.channel!r}"
    else:
        known = sum(_has(target, key, str(truth.labels)) for target, key in fields)
        what = f"labels {truth.labels!r}"
    if not known:
        raise UserError(f"reference_labels: none of the {len(fields)} fields has {what}")
    yield f"counts are held against the truth on up to {known:,} of {len(fields):,} fields, which have {what}"


def _has(target: PlateInput, key: FieldKey, labels: str) -> bool:
    return label_provenance(target.index.image(key), labels) is not None


def _stained(truth: ReferenceRecipe, target: PlateInput, key: FieldKey) -> bool:
    at = key if truth.acquisition is None else replace(key, acquisition=truth.acquisition)
    return at in target.index.statistics and bool(
        target.index.planes(at, target.index.channel(str(truth.channel)), 0)
    )


@dataclass(frozen=True)
class ExistingLabels:
    """What lies where the labels of a plate go: fields of each kind, in plate order.

    Attributes:
        left: without labels of this run yet.
        kept: with labels of the name that people drew or drafted, which stay.
        corrected: where people have corrected computed ones besides.
        others: with labels of another run of segment, or of another recipe.
        edited: with computed labels that were to be replaced, and that a person may have edited in place.
        known: that they were edited; else they have no checksum.
    """

    left: list[FieldKey]
    kept: list[FieldKey]
    corrected: list[FieldKey]
    others: list[FieldKey]
    edited: list[FieldKey]
    known: bool


def existing_labels(
    recipe: SegmentRecipe, models: Models, target: PlateInput, todo: Collection[FieldKey] = ()
) -> ExistingLabels:
    """One look at each field of a plate; where no labels are kept, none is in the way.

    `todo`: fields that are about to be computed: their labels are compared with their checksums, as are
    those of another run that are to be replaced.
    """
    found = ExistingLabels([], [], [], [], [], known=False)
    for key in target.keys if "labels" in recipe.outputs else ():
        made = label_provenance(target.index.image(key), models.labels)
        if made and not made[1]:
            found.kept.append(key)
            made = label_provenance(target.index.image(key), models.labels + COPY)
        own = made is not None and made[1] == labels_fingerprint(recipe, models, target.index, key)
        if not own:
            found.left.append(key)
        if made and not made[1]:
            found.corrected.append(key)
        elif made and not own:
            found.others.append(key)
    replaced = {*(found.others if recipe.overwrite else ()), *todo}
    edits = _edits(models, target, [key for key in target.keys if key in replaced])
    unknown = [key for key in found.others if key in edits and edits[key] is None]
    known = [key for key, edited in edits.items() if edited]
    return replace(found, edited=known or unknown, known=bool(known))


def _edits(models: Models, target: PlateInput, keys: Sequence[FieldKey]) -> dict[FieldKey, bool | None]:
    """Whether computed labels were edited, where there are any; None: they have no checksum."""

    def edited_at(key: FieldKey) -> bool | None:
        image = target.index.image(key)
        name = labels_name(image, models.labels)
        try:
            return label_provenance(image, name) is not None and edited(image, name)
        except UserError as mistake:
            raise UserError(f"{mistake}; what cannot be read is not replaced: move it away first") from None

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(keys, pool.map(edited_at, keys), strict=True))


def refuse_unwritable(target: PlateInput, found: ExistingLabels) -> None:
    """Of the fields that are left, one at least can be written."""
    images = [target.index.image(key) for key in found.left]
    if images and not any(_is_writable(image) for image in images):
        raise UserError(
            f"{images[0]} cannot be written, and labels go there: copy the plate to where it can, or keep no "
            "labels, as in outputs=[mask]"
        )


def _is_writable(image: Path) -> bool:
    labels = image / "labels"
    return os.access(labels if labels.exists() else image, os.W_OK)


def check_label_conflicts(
    recipe: SegmentRecipe, models: Models, target: PlateInput, found: ExistingLabels
) -> None:
    """Labels that people corrected are never replaced, another run's when that is asked for."""
    if found.corrected:
        raise UserError(
            f"{target.index.path}: on {_some(found.corrected)} people have labels {models.labels!r}, and "
            f"have corrected the computed ones, {models.labels + COPY!r}: neither is replaced; name others"
        )
    if found.others and not recipe.overwrite:
        name = models.labels + COPY * (found.others[0] in found.kept)
        whose = _computed_before(recipe, models, target, found.others[0], name)
        whose = whose or "of another run of segment, or of another recipe"
        raise UserError(
            f"{target.index.path}: {_some(found.others)} have labels {name!r} {whose}; choose another "
            "labels= (and --name), or overwrite=true replaces them"
        )
    if found.edited:
        raise UserError(
            f"{target.index.path}: {_some(found.edited)} have labels "
            f"{models.labels + COPY * (found.edited[0] in found.kept)!r} that {edits_stay(found.known)}"
        )


def _computed_before(
    recipe: SegmentRecipe, models: Models, target: PlateInput, key: FieldKey, name: str
) -> str:
    """Says so where labels are this very recipe's, from before the plate's metadata changed; else empty."""
    made = label_provenance(target.index.image(key), name)
    for change in target.index.changes:
        index = replace(target.index, plate=former(target.index.plate, change))
        if made and labels_fingerprint(recipe, models, index, key) == made[1]:
            return f"that were computed before its metadata changed ({'; '.join(change.lines)})"
    return ""


def _some(keys: Sequence[FieldKey]) -> str:
    """`5 fields (B03/1, B03/2, B04/1, …)`."""
    return f"{len(keys)} fields ({', '.join(map(str, keys[:3]))}{', …' if len(keys) > 3 else ''})"
