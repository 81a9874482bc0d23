"""Checks of a run of segment: its inputs before pixels are read, and the labels that plates hold already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.learning.data.rescale import unlike_channels
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.limits import check_grid
from hpc_isl.plates.atomic_directory import unwritable
from hpc_isl.plates.change_metadata import former
from hpc_isl.plates.label_groups import labels_home
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import (
    edited,
    edits_stay,
    label_bands,
    label_names,
    label_provenance,
    labels_checksum,
)
from hpc_isl.recipes.program import ProgramRecipe
from hpc_isl.recipes.segment import ReferenceRecipe, SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment.files import COPY, MAPS, FieldTask, Row, content_hash, labels_name, maps_of
from hpc_isl.stages.segment.gather import objects_of
from hpc_isl.stages.segment.illumination import check_illumination
from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs, kept_recipe, segment_inputs
from hpc_isl.stages.shared.field_records import read_records
from hpc_isl.stages.shared.program import command_fingerprint, missing

THREADS = 4
SHOWN = 20
# Added to the name of all labels of a run where people, or a draft, have the name already.
OURS = "_predicted"


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
    if models.contract.program is not None:
        yield from _check_program(recipe, models.contract.program, models.contract.program_files)
    if recipe.h_maxima is not None and (models.kind != "cells" or models.contract.program):
        ways = {"nuclei": "nuclei by the mask alone", "stain": "objects in the stain that it predicts"}
        way = "objects by another program" if models.contract.program else ways[models.kind]
        raise UserError(
            f"h_maxima={recipe.h_maxima:g}: parts cells by their distance map, and this model finds {way}"
        )
    for plate in inputs.plates:
        yield from _check_plate(plate)
    yield from check_illumination(inputs.plates)
    _check_other_labels(inputs)
    _check_features(recipe)
    if recipe.reference_labels is not None:
        yield _check_reference(inputs, recipe.reference_labels)
    if recipe.overlap is not None and not inputs.keeps_labels:
        yield "objects that two overlapping fields show count twice, because labels are not kept (outputs)"


def _check_program(recipe: SegmentRecipe, program: ProgramRecipe, scored_with: str) -> Iterator[str]:
    """Refuses keys that are for networks alone; yields what has changed since the program was scored."""
    for name in ("predict", "precision"):
        if getattr(recipe, name) is not None:
            raise UserError(f"{name}: is for networks, and this model is another program, {program.name}")
    if missing(program, program.predict):
        yield f"warning: there is no {program.predict[0]} here; the job fails unless its node has it"
    elif command_fingerprint(program) != scored_with:
        yield f"warning: a file that the commands of {program.name} name is another than when it was scored"


def _check_plate(plate: PlateInput) -> Iterator[str]:
    recipe, models = plate.recipe, plate.models
    for channel in recipe.measure.channels or []:
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
    advice = "or raise max_pixels_in_memory if memory holds the image"
    subject = f"an image of more than {recipe.max_pixels_in_memory:,} pixels (max_pixels_in_memory)"
    if contract.program is not None:
        raise UserError(f"{subject} is not cut for another program, {contract.program.name}: {advice[3:]}")
    if (recipe.predict or contract.predict).tile is None:
        raise UserError(
            f"{subject} is not predicted as a whole: say in which tiles, as in "
            f"predict='{{tile: 1024, halo: 128}}', {advice}"
        )
    task = contract.task
    whole_image = recipe.cells is not None or recipe.reference_labels is not None
    whole_image = whole_image or recipe.measure.background_px is not None or recipe.nuclei is not None
    whole_image = whole_image or "granularity" in recipe.measure.features
    if whole_image or set(recipe.outputs) != {"labels"} or task is None or task.method == "reference":
        raise UserError(
            f"{subject} becomes labels and features alone, by a model that segments: "
            f"leave out cells, nuclei, reference_labels, background_px, granularity and maps, {advice}"
        )


def _check_sources(plate: PlateInput) -> Iterator[str]:
    """Yields which fields no model can predict; raises a `UserError` where it is all of them."""
    models = plate.models
    reasons = list(plate.reasons_unseen(models.view, plate.keys))
    if len(reasons) == len(plate.keys):
        raise UserError(reasons[0])
    if plate.keys_without_source:
        names = ", ".join(repr(role.channel) for role in models.view.sources)
        left_out = some_fields(plate.keys_without_source, "is", "are")
        yield f"{plate.name}: {left_out} left out: no plane of a source ({names})"
    if reasons:
        yield f"{plate.name}: {len(reasons)} of {len(plate.keys)} fields cannot be seen, as {reasons[0]}"
    for reason in plate.reasons_unseen(models.stain_view, plate.keys[:1]) if models.stain_view else ():
        raise UserError(f"stain: {reason}")


def _check_other_labels(inputs: SegmentInputs) -> None:
    """Checks that all fields have the labels of cells, or of nuclei, that objects are related to."""
    for key, name in (("cells", inputs.recipe.cells), ("nuclei", inputs.recipe.nuclei)):
        unlabelled = [place for place in inputs.fields if name and not _has_labels(*place, name)]
        if name and unlabelled:
            plate, field = unlabelled[0]
            suggestion = nearest(name, label_names(plate.image(field)))
            raise UserError(
                f"{key}: {len(unlabelled)} of {len(inputs.fields)} fields have no labels {name!r}, "
                f"{plate.name} {field} among them; {suggestion}"
            )


def _check_features(recipe: SegmentRecipe) -> None:
    """Raises a `UserError` where a group of features needs a library that is not there."""
    groups = [name for name in ("texture", "granularity") if name in recipe.measure.features]
    if groups and find_spec("cp_measure") is None:
        raise UserError(
            f"measure.features: {' and '.join(groups)} need cp_measure: pip install 'hpc-isl[features]'"
        )


def _check_reference(inputs: SegmentInputs, reference: ReferenceRecipe) -> str:
    """Checks that some fields have the reference labels, or their stain; returns how many."""
    if reference.channel is not None:
        for plate in inputs.plates:
            plate.index.channel(reference.channel)
        count = sum(_is_stained(reference, *place) for place in inputs.fields)
        reference_data = f"an image of {reference.channel!r}"
    else:
        count = sum(_has_labels(*place, str(reference.labels)) for place in inputs.fields)
        reference_data = f"labels {reference.labels!r}"
    total = len(inputs.fields)
    if not count:
        raise UserError(f"reference_labels: none of the {total} fields has {reference_data}")
    scope = f"up to {count:,} of {total:,} fields, which have {reference_data}"
    return f"counts are compared with the reference labels on {scope}"


def _has_labels(plate: PlateInput, key: FieldKey, labels: str) -> bool:
    return label_provenance(plate.image(key), labels) is not None


def _is_stained(reference: ReferenceRecipe, plate: PlateInput, key: FieldKey) -> bool:
    if reference.acquisition is not None:
        key = replace(key, acquisition=reference.acquisition)
    index = plate.index
    return key in index.statistics and bool(index.planes(key, index.channel(str(reference.channel)), 0))


# ---------------------------------------------------------------- the labels that plates hold already


def choose_labels_name(inputs: SegmentInputs) -> tuple[SegmentInputs, tuple[str, ...]]:
    """Returns the inputs with the one name of all labels of a run, and what the user should know of it.

    It differs from the recipe's where people, or a draft, have labels of that name on any field.

    Raises:
        UserError: people have that name too, because they corrected what was computed.
    """
    name = inputs.models.labels
    drawn_plates = [plate for plate in inputs.plates if _has_drawn(plate)] if inputs.keeps_labels else []
    if not drawn_plates:
        return inputs, ()
    predicted_name = name + OURS
    renamed_inputs = inputs.with_labels(predicted_name)
    for plate in renamed_inputs.plates:
        if _has_drawn(plate):
            raise UserError(
                f"{plate.index.path}: people have labels {name!r}, and {predicted_name!r} where they "
                "corrected computed ones: neither is replaced; choose another labels="
            )
    message = (
        f"labels {name!r} that people drew, or drafted, on {drawn_plates[0].name} stay: all that this run "
        f"computes are called {predicted_name!r}"
    )
    return renamed_inputs, (message,)


def _has_drawn(plate: PlateInput) -> bool:
    """Returns whether any field of the plate has labels of the run's name that no run of segment computed."""
    return any(not provenance.fingerprint for provenance in plate.provenance.values())


# ---------------------------------------------------------------- a plate, before and when a run starts


@dataclass(frozen=True)
class ExistingLabels:
    """The labels that a plate holds under the name of a run: fields of each kind, in plate order.

    Attributes:
        missing: without labels of this run yet.
        drawn: with labels of the name that people drew or drafted, which stay.
        corrected: where people have corrected computed ones besides.
        by_others: with labels of another run of segment, or of another recipe.
        maybe_edited: with computed labels that were to be replaced, and that a person may have edited.
        edits_are_known: that they were edited; else they have no checksum.
    """

    missing: list[FieldKey]
    drawn: list[FieldKey]
    corrected: list[FieldKey]
    by_others: list[FieldKey]
    maybe_edited: list[FieldKey]
    edits_are_known: bool


def existing_labels(plate: PlateInput, todo: Collection[FieldKey] = ()) -> ExistingLabels:
    """Returns what exists in each field of a plate; nothing where the run keeps no labels.

    `todo`: fields that are about to be computed: their labels are compared with their checksums, as are
    those of another run that are to be replaced.
    """
    name, keeps_labels = plate.models.labels, "labels" in plate.recipe.outputs
    existing = ExistingLabels([], [], [], [], [], edits_are_known=False)
    for key in plate.keys if keeps_labels else ():
        provenance = plate.provenance.get(key)
        if provenance and not provenance.fingerprint:
            existing.drawn.append(key)
            provenance = label_provenance(plate.image(key), name + COPY)
        is_current = provenance is not None and provenance.fingerprint == plate.labels_fingerprint(key)
        if not is_current:
            existing.missing.append(key)
        if provenance and not provenance.fingerprint:
            existing.corrected.append(key)
        elif provenance and not is_current:
            existing.by_others.append(key)

    def is_edited(key: FieldKey) -> bool | None:
        """Returns whether computed labels were edited, where there are any; None: they have no checksum."""
        image = plate.image(key)
        computed_name = labels_name(image, name)
        try:
            return label_provenance(image, computed_name) is not None and edited(image, computed_name)
        except UserError as error:
            raise UserError(f"{error}; what cannot be read is not replaced: move it away first") from None

    replaced = {*(existing.by_others if plate.recipe.overwrite else ()), *todo}
    keys = [key for key in plate.keys if key in replaced]
    with ThreadPoolExecutor(THREADS) as pool:  # reading a checksum waits for the disk
        edits = dict(zip(keys, pool.map(is_edited, keys), strict=True))
    unknown = [key for key in existing.by_others if key in edits and edits[key] is None]
    known = [key for key, was_edited in edits.items() if was_edited]
    return replace(existing, maybe_edited=known or unknown, edits_are_known=bool(known))


def check_label_conflicts(plate: PlateInput, existing: ExistingLabels) -> None:
    """Checks that no labels are replaced that people corrected, or another run made, unless asked for.

    Raises:
        UserError: with the fields, and what to change.
    """
    path, name = plate.index.path, plate.models.labels
    if existing.corrected:
        raise UserError(
            f"{path}: on {some_fields(existing.corrected)} people have labels {name!r}, and "
            f"have corrected the computed ones, {name + COPY!r}: neither is replaced; name others"
        )
    if existing.by_others and not plate.recipe.overwrite:
        first = existing.by_others[0]
        computed = name + COPY * (first in existing.drawn)
        origin = _computed_before(plate, first, computed) or "of another run of segment, or of another recipe"
        raise UserError(
            f"{path}: {some_fields(existing.by_others, 'has', 'have')} labels {computed!r} {origin}; choose "
            "another labels= (and --name), or overwrite=true replaces them"
        )
    if existing.maybe_edited:
        computed = name + COPY * (existing.maybe_edited[0] in existing.drawn)
        fields = some_fields(existing.maybe_edited, "has", "have")
        raise UserError(f"{path}: {fields} labels {computed!r} that {edits_stay(existing.edits_are_known)}")


def _computed_before(plate: PlateInput, key: FieldKey, name: str) -> str:
    """Returns when labels of this very recipe were computed, if before the metadata changed; else empty."""
    provenance = label_provenance(plate.image(key), name)
    for change in plate.index.changes:
        # Labels of this very recipe have another fingerprint if the metadata changed since.
        index = replace(plate.index, plate=former(plate.index.plate, change))
        if provenance and plate.labels_fingerprint(key, index) == provenance.fingerprint:
            return f"that were computed before its metadata changed ({'; '.join(change.lines)})"
    return ""


def check_writable(plate: PlateInput, existing: ExistingLabels) -> None:
    """Checks that at least one of the fields that are left can be written.

    Raises:
        UserError: none can.
    """
    if existing.missing and all(unwritable(labels_home(plate.image(key))) for key in existing.missing):
        raise UserError(
            f"{plate.image(existing.missing[0])} cannot be written, and labels go there: copy the plate to "
            "where it can, or keep no labels, as in outputs=[mask]"
        )


def some_fields(keys: Sequence[FieldKey], *verb: str) -> str:
    """Returns `5 fields (B03/1, B03/2, B04/1, …)`, and of two verbs the one that agrees with their number."""
    listed = f"({', '.join(map(str, keys[:3]))}{', …' if len(keys) > 3 else ''})"
    return many(len(keys), "field", *(f"{listed} {word}" for word in verb or ("", ""))).rstrip()


# ---------------------------------------------------------------- a run that has ended


def changed_labels(run: Run) -> list[str]:
    """Returns `labels 'found' were edited …: S1 B03/1, S1 B03/2`: fields whose labels differ from records."""
    try:
        recipe = kept_recipe(run)
        if "labels" not in recipe.outputs:
            return []
        inputs = segment_inputs(recipe)
    except UserError as error:
        return [f"labels cannot be compared with the records: {error}"]
    fields_by_change: dict[str, list[str]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        records = {plate.slug: read_records(run.folder, plate.slug) for plate in inputs.plates}
        changes = pool.map(lambda place: _change(run.folder, records[place[0].slug], *place), inputs.fields)
        for (plate, key), change in zip(inputs.fields, changes, strict=True):
            fields_by_change.setdefault(change, []).append(f"{plate.name} {key}")
    fields_by_change.pop("", None)
    return [
        f"labels {inputs.models.labels!r} {change}: {', '.join(fields[:SHOWN])}"
        + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")
        for change, fields in fields_by_change.items()
    ]


def _change(run: Path, records: Mapping[str, Row], plate: PlateInput, key: FieldKey) -> str:
    task = FieldTask(run, plate.index.path, plate.name, plate.slug, key)
    record = records.get(task.file)
    if record is None or "problem" in record:
        return ""
    image = plate.image(key)
    name = labels_name(image, plate.models.labels)
    provenance = label_provenance(image, name)
    if provenance is None:
        return "are gone"
    if provenance.fingerprint != plate.labels_fingerprint(key):
        return "are of another run by now"
    try:
        if "labels" in record:
            same = labels_checksum(image, name) == record["labels"]
        else:  # of an earlier version
            same = content_hash(label_bands(image, name), objects_of(task)) == record["hash"]
    except (UserError, OSError) as error:
        return f"cannot be compared: {error}"
    return "" if same else "were edited (or damaged) since they were computed; they are not replaced"
