"""Checks before pixels are read: what can never work is refused, what the user should know is reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.rescale import unlike_channels
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.limits import check_grid
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import label_names, label_provenance
from hpc_isl.recipes.segment import ReferenceRecipe, SegmentRecipe
from hpc_isl.stages.segment.existing_labels import (
    check_label_conflicts,
    check_writable,
    existing_labels,
    some_fields,
)
from hpc_isl.stages.segment.files import MAPS, maps_of
from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs


def check_inputs(inputs: SegmentInputs) -> Iterator[str]:
    """Refuses what can never work; yields what the user should know."""
    recipe, models = inputs.recipe, inputs.models
    tiling = recipe.predict or models.contract.predict
    check_grid(tiling.tile, tiling.halo)
    for name in recipe.outputs:
        if name in MAPS and not maps_of([name], models.contract, models.stain_contract).channels:
            raise UserError(
                f"outputs: {name} cannot be kept, because {models.folder.parent} has none: {MAPS[name]}"
            )
    if recipe.h_maxima is not None and models.kind != "cells":
        way = (
            "nuclei by the mask alone" if models.kind == "nuclei" else "objects in the stain that it predicts"
        )
        raise UserError(
            f"h_maxima={recipe.h_maxima:g}: parts cells by their distance map, and this model finds {way}"
        )
    for plate in inputs.plates:
        yield from _check_plate(plate)
    _check_cells(inputs)
    if recipe.reference_labels is not None:
        yield _check_reference(inputs, recipe.reference_labels)
    if recipe.overlap is not None and not inputs.keeps_labels:
        yield "objects that two overlapping fields show count twice, because labels are not kept (outputs)"


def _check_plate(plate: PlateInput) -> Iterator[str]:
    recipe, models = plate.recipe, plate.models
    for channel in recipe.measure or []:
        plate.index.channel(channel)
    if any(map(plate.is_large, plate.keys)):
        check_large(recipe, models.contract)
    yield from _check_sources(plate)
    for contract in models.contracts:
        lines = unlike_channels(contract.view, contract.stains, recipe.channels, plate.index)
        yield from (f"warning: {line}" for line in lines)
    scale = plate.scale(plate.keys[0])
    if scale.factor != 1:
        yield (
            f"{plate.name}: pixels of {plate.index.plate.pixel_um:g} µm are resampled to the "
            f"{scale.pixel_um:g} µm of the model; labels are of full resolution"
        )
    existing = existing_labels(plate)
    check_label_conflicts(plate, existing)
    try:
        check_writable(plate, existing)
    except UserError as error:  # the node that computes may see another disk
        yield f"warning: from this machine {error}"


def check_large(recipe: SegmentRecipe, contract: Contract) -> None:
    """Refuses what cannot be made of images that memory does not hold.

    Raises:
        UserError: with what to change.
    """
    way = "or raise max_pixels_in_memory if memory holds the image"
    begin = f"an image of more than {recipe.max_pixels_in_memory:,} pixels (max_pixels_in_memory)"
    if (recipe.predict or contract.predict).tile is None:
        raise UserError(
            f"{begin} is not predicted as a whole: say in which tiles, as in "
            f"predict='{{tile: 1024, halo: 128}}', {way}"
        )
    task = contract.task
    asked = recipe.cells is not None or recipe.reference_labels is not None
    if asked or set(recipe.outputs) != {"labels"} or task is None or task.method == "reference":
        raise UserError(
            f"{begin} becomes labels and features alone, by a model that segments: "
            f"leave out cells, reference_labels and maps, {way}"
        )


def _check_sources(plate: PlateInput) -> Iterator[str]:
    """Yields which fields no model can predict; raises a `UserError` where it is all of them."""
    models = plate.models
    reasons = list(plate.reasons_unseen(models.view, plate.keys))
    if len(reasons) == len(plate.keys):
        raise UserError(reasons[0])
    if plate.without:
        names = ", ".join(repr(role.channel) for role in models.view.sources)
        left_out = some_fields(plate.without)
        yield f"{plate.name}: {left_out} are left out, because they have no plane of a source ({names})"
    if reasons:
        yield f"{plate.name}: {len(reasons)} of {len(plate.keys)} fields cannot be seen, as {reasons[0]}"
    for reason in plate.reasons_unseen(models.stain_view, plate.keys[:1]) if models.stain_view else ():
        raise UserError(f"stain: {reason}")


def _check_cells(inputs: SegmentInputs) -> None:
    """Checks that all fields have the labels of the cells that objects are assigned to."""
    cells = inputs.recipe.cells
    lacking = [place for place in inputs.fields if cells and not _has_labels(*place, cells)]
    if cells and lacking:
        plate, key = lacking[0]
        near = nearest(cells, label_names(plate.image(key)))
        raise UserError(
            f"cells: {len(lacking)} of {len(inputs.fields)} fields have no labels {cells!r}, "
            f"{plate.name} {key} among them; {near}"
        )


def _check_reference(inputs: SegmentInputs, reference: ReferenceRecipe) -> str:
    """Checks that some fields have the reference labels, or their stain; returns how many."""
    if reference.channel is not None:
        for plate in inputs.plates:
            plate.index.channel(reference.channel)
        known = sum(_is_stained(reference, *place) for place in inputs.fields)
        what = f"an image of {reference.channel!r}"
    else:
        known = sum(_has_labels(*place, str(reference.labels)) for place in inputs.fields)
        what = f"labels {reference.labels!r}"
    total = len(inputs.fields)
    if not known:
        raise UserError(f"reference_labels: none of the {total} fields has {what}")
    which = f"up to {known:,} of {total:,} fields, which have {what}"
    return f"counts are compared with the reference labels on {which}"


def _has_labels(plate: PlateInput, key: FieldKey, labels: str) -> bool:
    return label_provenance(plate.image(key), labels) is not None


def _is_stained(reference: ReferenceRecipe, plate: PlateInput, key: FieldKey) -> bool:
    if reference.acquisition is not None:
        key = replace(key, acquisition=reference.acquisition)
    index = plate.index
    return key in index.statistics and bool(index.planes(key, index.channel(str(reference.channel)), 0))
