"""One field segmented, in a process of the pool: pixels to labels, features, table, and the record last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa

from hpc_isl.errors import UserError
from hpc_isl.files import now
from hpc_isl.objects.draft_labels import draft_labels
from hpc_isl.objects.features import assigned
from hpc_isl.objects.types import Labels
from hpc_isl.plates.plate import Field
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import (
    checksum,
    fully_annotated,
    label_provenance,
    labels_checksum,
    read_labels,
    write_field,
    write_labels,
)
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.recipes.segment import ReferenceRecipe
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.files import FieldTask, Row
from hpc_isl.stages.segment.gather import objects_of
from hpc_isl.stages.segment.inputs import PlateInput
from hpc_isl.stages.segment.measurements import columns_of, measured_columns
from hpc_isl.stages.segment.segmenter import (
    FieldPrediction,
    FieldReader,
    Segmenter,
    load_segmenter,
    stored_channels,
)
from hpc_isl.stages.shared import field_records

EDITED = "its labels were edited or damaged since they were computed; they stay as they are"


def segment_field(task: FieldTask) -> Row:
    """Computes a field and writes what the recipe keeps of it; the record, which is returned, comes last.

    Raises:
        UserError: the field cannot be read.
        AbortRun: the disk is full, or may not be written.
    """
    start, segmenter = monotonic(), load_segmenter(task.run)
    reader = segmenter.reader(task.plate, task.key)
    if "labels" in segmenter.recipe.outputs:
        files.remove_partial_image(reader.image, segmenter.models.labels)
        files.check_can_write_labels(
            reader.image, segmenter.models.labels, task.labels_fingerprint, segmenter.recipe.overwrite
        )
    if reader.is_large:
        from hpc_isl.stages.segment.large_field import segment_large  # few runs need it

        facts = segment_large(segmenter, reader, task)
    else:
        predictions = segmenter.field(reader)
        table = measured(segmenter, reader, task, predictions)
        facts = _facts(segmenter, reader, task, predictions, table)
        facts |= _keep(segmenter, reader, task, predictions, table)
    facts |= {"device": segmenter.device, "seconds": round(monotonic() - start, 3), "ended": now()}
    if segmenter.predictor and (doubt := segmenter.predictor.tiling_warning(reader.scale.shape)):
        facts["doubt"] = doubt
    if reader.is_empty:
        facts["empty"] = True
    elif not reader.is_large:  # whose pixels memory does not hold
        focus = (None if t in reader.not_imaged else reader.focus(t) for t in range(reader.times))
        facts["focus"] = [scores and {name: [round(v, 6) for v in values] for name, values in scores.items()}
                          for scores in focus]  # fmt: skip
    facts["saturated"] = saturated_channels(reader)
    if reader.not_imaged:
        facts["not_imaged"] = reader.not_imaged
    return files.write_record(task, facts)


@dataclass(frozen=True)
class Verified:
    """The result of verifying a field that is done; all empty: nothing is wrong with it.

    Attributes:
        fault: why it has to be computed again.
        not_comparable: why it could not be verified.
        edited: its labels are no longer those that were computed: they stay.
    """

    fault: str = ""
    not_comparable: str = ""
    edited: str = ""


def saturated_channels(reader: FieldReader) -> list[str]:
    """Returns the channels, of those that the model sees or that are measured, with saturated raw pixels."""
    names = dict.fromkeys(
        [*(role.channel for role in reader.plate.models.view.sources), *stored_channels(reader.plate)]
    )
    flags = reader.index.statistics[reader.key].flags
    return [name for name in names if f"saturated:{reader.index.channel(name)}" in flags]


def verify_field(task: FieldTask) -> Verified:
    """Computes a field that is done again, and compares objects, labels and table."""
    segmenter = load_segmenter(task.run)
    reader = segmenter.reader(task.plate, task.key)
    record = field_records.read_record(task.run, task.slug, task.key) or {}
    if record.get("device", segmenter.device) != segmenter.device:
        return Verified(not_comparable=f"computed on {record['device']}, and this is {segmenter.device}")
    expected = record.get("hash")
    with _compute(segmenter, reader, task) as (labels, table):
        if files.content_hash(labels, table) != expected:
            return Verified("computed again, its objects are others than its record says")
        if "labels" not in segmenter.recipe.outputs:
            return Verified()
        # The file has the columns of all plates of the run; the hash is of those of its own.
        stored_objects = objects_of(task).select(table.column_names)
        if files.content_hash(labels, stored_objects) != expected:
            return Verified("its table on disk is another than was computed")
        # What a person edited since is reported, and stays.
        name = files.labels_name(reader.image, segmenter.models.labels)
        try:
            same = labels_checksum(reader.image, name) == checksum((len(labels), *reader.shape), labels)
        except UserError as error:
            return Verified(edited=f"{EDITED}: {error}")
        return Verified() if same else Verified(edited=EDITED)


@contextmanager
def _compute(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask
) -> Iterator[tuple[list[Labels], pa.Table]]:
    """Yields the labels of each time, and the table, as they are computed now."""
    if reader.is_large:
        from hpc_isl.stages.segment.large_field import predict_large

        with predict_large(segmenter, reader, task) as (labels, table, _):
            yield labels, table
        return
    predictions = segmenter.field(reader)
    yield [image.labels for image in predictions], measured(segmenter, reader, task, predictions)


def _keep(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask, predictions: Sequence[FieldPrediction],
    table: pa.Table,
) -> Row:  # fmt: skip
    """Writes maps, labels and table; returns the checksum of the labels, for the record."""
    checksums: Row = {}
    if segmenter.maps.channels:
        maps = np.stack([segmenter.maps.stack(image.prediction, image.stain) for image in predictions])
        stack = maps[:, :, None]  # (t, c, z, y, x), on the grid that the model sees
        plate = segmenter.maps.plate(reader.index, reader.scale.pixel_um)
        field = Field(key=task.key, shape=stack.shape, dtype="float32")
        write_field(task.maps, plate, field, stack, measure(stack), CodecRecipe(), overwrite=True)
    if "labels" in segmenter.recipe.outputs:
        labels = [image.labels for image in predictions]
        checksums["labels"] = write_labels(
            reader.image, files.labels_name(reader.image, segmenter.models.labels),
            np.stack(labels) if len(labels) > 1 else labels[0], origin="segmented",
            boxes=[(0, 0, *reader.shape)], fingerprint=task.labels_fingerprint, overwrite=True,
        )  # fmt: skip
    files.write_table(task.table, files.fitted(table, segmenter.schema))
    return checksums


def _facts(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask, predictions: Sequence[FieldPrediction],
    table: pa.Table,
) -> Row:  # fmt: skip
    truth = reference_counts(segmenter.recipe.reference_labels, reader, task.labels_fingerprint)
    return {
        "shape": list(reader.shape), "times": reader.times, "pixel_um": reader.index.plate.pixel_um,
        "objects": table.num_rows, "dropped": [image.dropped for image in predictions],
        **({} if truth is None else {"truth": truth}),
        "hash": files.content_hash([image.labels for image in predictions], table),
    }  # fmt: skip


# ---------------------------------------------------------------- measurements


def measured(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask, predictions: Sequence[FieldPrediction]
) -> pa.Table:
    """Returns one row for each object of a field."""
    rows = []
    for time, image in enumerate(predictions):
        columns = measured_columns(reader, time, image.stain, image.labels)
        columns |= segmenter.confidence(task.confidence, image.measures)
        if segmenter.recipe.cells:
            columns["cell"] = assigned(image.labels, reader.labels(segmenter.recipe.cells, time))
        rows.append(columns)
    return files.table_of(task, rows)


def schema_of(plates: Sequence[PlateInput]) -> pa.Schema:
    """Returns the columns of all plates of a run: those of the first, then what others have besides.

    Plates differ in their channels, and in whether their size of a pixel is known.
    """
    schemas = []
    for plate in plates:
        columns = columns_of(plate)
        if plate.confidence:
            columns[plate.confidence] = np.zeros(0)
        if plate.recipe.cells:
            columns["cell"] = np.zeros(0, np.uint32)
        task = FieldTask(Path(), plate.index.path, plate.name, plate.slug, plate.keys[0])
        schemas.append(files.table_of(task, [columns]).schema)
    return pa.unify_schemas(schemas)


def reference_counts(reference: ReferenceRecipe | None, reader: FieldReader, own: str) -> list[int] | None:
    """Returns the number of true objects at each time, by labels or by a stain; None: there is neither.

    Labels count where they are drawn in all of the field. What this very run wrote, with the fingerprint
    `own`, is no ground truth.
    """
    if reference is None:
        return None
    if reference.labels is not None:
        provenance = label_provenance(reader.image, reference.labels)
        if (
            provenance is None
            or provenance.fingerprint == own
            or not fully_annotated(reader.image, reference.labels)
        ):
            return None
        labels = read_labels(reader.image, reference.labels).reshape(-1, *reader.shape)
        return [int(np.count_nonzero(np.unique(image))) for image in labels]
    counts = [_drafted_count(reference, reader, time) for time in range(reader.times)]
    known_counts = [count for count in counts if count is not None]
    return known_counts if len(known_counts) == reader.times else None


def _drafted_count(reference: ReferenceRecipe, reader: FieldReader, time: int) -> int | None:
    """Returns how many objects are drafted from a stain; None: it was not imaged."""
    name, index, key = reference.channel, reader.index, reader.key
    if reference.acquisition is not None:
        key = replace(key, acquisition=reference.acquisition)
    if key not in index.statistics or name not in [channel.name for channel in index.plate.channels]:
        return None
    y, x = index.field(key).shape[-2:]
    stain = reader.projected(key, time, str(name), (slice(0, y), slice(0, x)), True)
    if stain is None:
        return None
    if f"empty:{index.channel(str(name))}" in index.statistics[key].flags:
        return 0
    threshold, sigma, min_area = reference.threshold, reference.sigma, reference.min_area
    labels = draft_labels(stain, threshold=threshold, sigma=sigma, min_area=min_area, split=True)
    return int(labels.max(initial=0))
