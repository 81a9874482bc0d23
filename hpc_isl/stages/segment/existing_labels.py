"""Labels that plates hold already: what a run may write, what it may replace, and what was edited since."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.change_metadata import former
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import (
    edited,
    edits_stay,
    label_bands,
    label_provenance,
    labels_checksum,
)
from hpc_isl.run import Run
from hpc_isl.stages.segment.files import COPY, FieldTask, content_hash, labels_name
from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs, kept_recipe, segment_inputs

THREADS = 4
SHOWN = 20
# Added to the name of all labels of a run where people, or a draft, have the name already.
OURS = "_predicted"


def choose_labels_name(inputs: SegmentInputs) -> tuple[SegmentInputs, tuple[str, ...]]:
    """Returns the inputs with the one name of all labels of a run, and what the user should know of it.

    It is another than asked for where people, or a draft, have that one on any field of a plate.

    Raises:
        UserError: people have that name too, because they corrected what was computed.
    """
    name = inputs.models.labels
    taken = [plate for plate in inputs.plates if _has_drawn(plate, name)] if inputs.keeps_labels else []
    if not taken:
        return inputs, ()
    own = name + OURS
    for plate in inputs.plates:
        if _has_drawn(plate, own):
            raise UserError(
                f"{plate.index.path}: people have labels {name!r}, and {own!r} where they corrected "
                "computed ones: neither is replaced; choose another labels="
            )
    message = (
        f"labels {name!r} that people drew, or drafted, on {taken[0].name} stay: all that this run computes "
        f"are called {own!r}"
    )
    return inputs.with_labels(own), (message,)


def _has_drawn(plate: PlateInput, name: str) -> bool:
    """Returns whether any field of the plate has labels of this name that no run of segment computed."""
    made = (label_provenance(plate.image(field.key), name) for field in plate.index.plate.fields)
    return any(provenance is not None and not provenance[1] for provenance in made)


# ---------------------------------------------------------------- a plate, before and when a run starts


@dataclass(frozen=True)
class ExistingLabels:
    """The labels that a plate holds under the name of a run: fields of each kind, in plate order.

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


def existing_labels(plate: PlateInput, todo: Collection[FieldKey] = ()) -> ExistingLabels:
    """Returns what exists in each field of a plate; where no labels are kept, none is in the way.

    `todo`: fields that are about to be computed: their labels are compared with their checksums, as are
    those of another run that are to be replaced.
    """
    name, keeps_labels = plate.models.labels, "labels" in plate.recipe.outputs
    existing = ExistingLabels([], [], [], [], [], known=False)
    for key in plate.keys if keeps_labels else ():
        made = label_provenance(plate.image(key), name)
        if made and not made[1]:
            existing.kept.append(key)
            made = label_provenance(plate.image(key), name + COPY)
        own = made is not None and made[1] == plate.labels_fingerprint(key)
        if not own:
            existing.left.append(key)
        if made and not made[1]:
            existing.corrected.append(key)
        elif made and not own:
            existing.others.append(key)

    def is_edited(key: FieldKey) -> bool | None:
        """Returns whether computed labels were edited, where there are any; None: they have no checksum."""
        image = plate.image(key)
        own_name = labels_name(image, name)
        try:
            return label_provenance(image, own_name) is not None and edited(image, own_name)
        except UserError as error:
            raise UserError(f"{error}; what cannot be read is not replaced: move it away first") from None

    replaced = {*(existing.others if plate.recipe.overwrite else ()), *todo}
    keys = [key for key in plate.keys if key in replaced]
    with ThreadPoolExecutor(THREADS) as pool:  # reading a checksum waits for the disk
        edits = dict(zip(keys, pool.map(is_edited, keys), strict=True))
    unknown = [key for key in existing.others if key in edits and edits[key] is None]
    known = [key for key, was_edited in edits.items() if was_edited]
    return replace(existing, edited=known or unknown, known=bool(known))


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
    if existing.others and not plate.recipe.overwrite:
        first = existing.others[0]
        own = name + COPY * (first in existing.kept)
        whose = _computed_before(plate, first, own) or "of another run of segment, or of another recipe"
        raise UserError(
            f"{path}: {some_fields(existing.others)} have labels {own!r} {whose}; choose another "
            "labels= (and --name), or overwrite=true replaces them"
        )
    if existing.edited:
        own = name + COPY * (existing.edited[0] in existing.kept)
        raise UserError(
            f"{path}: {some_fields(existing.edited)} have labels {own!r} that {edits_stay(existing.known)}"
        )


def _computed_before(plate: PlateInput, key: FieldKey, name: str) -> str:
    """Returns when labels of this very recipe were computed, if before the metadata changed; else empty."""
    made = label_provenance(plate.image(key), name)
    for change in plate.index.changes:
        # Labels of this very recipe have another fingerprint if the metadata changed since.
        index = replace(plate.index, plate=former(plate.index.plate, change))
        if made and plate.labels_fingerprint(key, index) == made[1]:
            return f"that were computed before its metadata changed ({'; '.join(change.lines)})"
    return ""


def check_writable(plate: PlateInput, existing: ExistingLabels) -> None:
    """Checks that at least one of the fields that are left can be written.

    Raises:
        UserError: none can.
    """
    images = [plate.image(key) for key in existing.left]
    folders = (image / "labels" if (image / "labels").exists() else image for image in images)
    if images and not any(os.access(folder, os.W_OK) for folder in folders):
        raise UserError(
            f"{images[0]} cannot be written, and labels go there: copy the plate to where it can, or keep no "
            "labels, as in outputs=[mask]"
        )


def some_fields(keys: Sequence[FieldKey]) -> str:
    """Returns `5 fields (B03/1, B03/2, B04/1, …)`."""
    return f"{len(keys)} fields ({', '.join(map(str, keys[:3]))}{', …' if len(keys) > 3 else ''})"


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
    names: dict[str, list[str]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        texts = pool.map(lambda place: _change(run.folder, *place), inputs.fields)
        for (plate, key), text in zip(inputs.fields, texts, strict=True):
            names.setdefault(text, []).append(f"{plate.name} {key}")
    names.pop("", None)
    return [
        f"labels {inputs.models.labels!r} {text}: {', '.join(fields[:SHOWN])}"
        + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")
        for text, fields in names.items()
    ]


def _change(run: Path, plate: PlateInput, key: FieldKey) -> str:
    task = FieldTask(run, plate.index.path, plate.name, plate.slug, key)
    record = read_json(task.record)
    if record is None or "problem" in record:
        return ""
    image = plate.image(key)
    name = labels_name(image, plate.models.labels)
    made = label_provenance(image, name)
    if made is None:
        return "are gone"
    if made[1] != plate.labels_fingerprint(key):
        return "are of another run by now"
    try:
        if "labels" in record:
            same = labels_checksum(image, name) == record["labels"]
        else:  # of an earlier version
            same = content_hash(label_bands(image, name), pq.read_table(task.table)) == record["hash"]
    except (UserError, OSError) as error:
        return f"cannot be compared: {error}"
    return "" if same else "were edited (or damaged) since they were computed; they are not replaced"
