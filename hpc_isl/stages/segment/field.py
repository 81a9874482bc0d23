"""One field segmented, in a process of the pool: pixels to labels, features, table, and the record last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.store import Index, checksum, labels_checksum, write_labels
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.files import FieldTask, Row
from hpc_isl.stages.segment.inputs import is_empty, is_large, scale_of
from hpc_isl.stages.segment.large_field import bands, predict_large, segment_large
from hpc_isl.stages.segment.maps import plate_of, write_map
from hpc_isl.stages.segment.measurements import measured, true_counts
from hpc_isl.stages.segment.segmenter import (
    FieldPrediction,
    Labels,
    Segmenter,
    index_of,
    load_segmenter,
    not_imaged,
    predict_field,
)

EDITED = "its labels were edited or damaged since they were computed; they stay as they are"


def segment_field(work: FieldTask) -> Row:
    """Computes a field and writes what the recipe keeps of it; the record, which is returned, comes last.

    Raises:
        UserError: the field cannot be read.
        AbortRun: the disk is full, or may not be written.
    """
    start = monotonic()
    segmenter, index = load_segmenter(work.run), index_of(work.plate)
    if "labels" in segmenter.recipe.outputs:
        files.remove_partial_image(index.image(work.key), segmenter.models.labels)
        files.check_can_write_labels(
            index.image(work.key),
            segmenter.models.labels,
            work.labels_fingerprint,
            segmenter.recipe.overwrite,
        )
    if is_large(segmenter.recipe, index, work.key):
        facts = segment_large(segmenter, index, work)
    else:
        seen = predict_field(segmenter, index, work.key)
        table = measured(segmenter, index, work, seen)
        facts = _facts(segmenter, index, work, seen, table) | _keep(segmenter, index, work, seen, table)
    doubt = segmenter.predictor.tiling_warning(
        scale_of(segmenter.recipe, segmenter.view, index, work.key).shape
    )
    how = {"device": segmenter.device, "seconds": round(monotonic() - start, 3)}
    how |= {"doubt": doubt} if doubt else {}
    how |= {"empty": True} if is_empty(segmenter.recipe, segmenter.view, index, work.key) else {}
    missing = not_imaged(segmenter, index, work.key)
    how |= {"not_imaged": missing} if missing else {}
    return files.write_record(work, {**facts, **how})


@dataclass(frozen=True)
class Verified:
    """What is wrong with a field that is done, or why it cannot be told; all empty: nothing.

    Attributes:
        wrong: to be computed again.
        edited: its labels are no longer those that were computed: they stay.
    """

    wrong: str = ""
    not_comparable: str = ""
    edited: str = ""


def verify_field(work: FieldTask) -> Verified:
    """Computes a field that is done again, and compares objects, labels and table."""
    segmenter, index = load_segmenter(work.run), index_of(work.plate)
    record = read_json(work.record) or {}
    if record.get("device", segmenter.device) != segmenter.device:
        return Verified(not_comparable=f"computed on {record['device']}, and this is {segmenter.device}")
    expected = record.get("hash")
    with _computed(segmenter, index, work) as (labels, table):
        if files.content_hash(bands(labels), table) != expected:
            return Verified("computed again, its objects are others than its record says")
        if "labels" not in segmenter.recipe.outputs:
            return Verified()
        # The file has the columns of all plates of the run; the hash is of those of its own.
        kept = pq.read_table(work.table).select(table.column_names)
        if files.content_hash(bands(labels), kept) != expected:
            return Verified("its table on disk is another than was computed")
        shape = (len(labels), *labels[0].shape)
        return _compared(segmenter, index, work, checksum(shape, labels))


def _compared(segmenter: Segmenter, index: Index, work: FieldTask, expected: str) -> Verified:
    """Whether the labels in the plate are those of this checksum."""
    image = index.image(work.key)
    try:
        same = labels_checksum(image, files.labels_name(image, segmenter.models.labels)) == expected
    except UserError as mistake:
        return Verified(edited=f"{EDITED}: {mistake}")
    return Verified() if same else Verified(edited=EDITED)


@contextmanager
def _computed(segmenter: Segmenter, index: Index, work: FieldTask) -> Iterator[tuple[list[Labels], pa.Table]]:
    """The labels of each time, and the table, as they are computed now."""
    if is_large(segmenter.recipe, index, work.key):
        with predict_large(segmenter, index, work) as (labels, table, _):
            yield labels, table
        return
    seen = predict_field(segmenter, index, work.key)
    yield [each.labels for each in seen], measured(segmenter, index, work, seen)


# ---------------------------------------------------------------- what is kept


def _keep(
    segmenter: Segmenter, index: Index, work: FieldTask, seen: list[FieldPrediction], table: pa.Table
) -> Row:
    """Writes maps, labels and table; for the record, the checksum of the labels."""
    kept: Row = {}
    image, write = index.image(work.key), segmenter.recipe.outputs
    if segmenter.maps.channels:
        _keep_maps(segmenter, index, work, seen)
    if "labels" in write:
        labels = _stacked(seen)
        kept["labels"] = write_labels(
            image, files.labels_name(image, segmenter.models.labels), labels, origin="segmented",
            boxes=[(0, 0, *labels.shape[-2:])], fingerprint=work.labels_fingerprint, overwrite=True,
        )  # fmt: skip
    files.write_table(work.table, files.fitted(table, segmenter.schema))
    return kept


def _keep_maps(segmenter: Segmenter, index: Index, work: FieldTask, seen: list[FieldPrediction]) -> None:
    scale = scale_of(segmenter.recipe, segmenter.view, index, work.key)
    plate = plate_of(index, segmenter.maps, scale.pixel_um)
    pixels = np.stack([segmenter.maps.of(each.prediction, each.stain) for each in seen])
    write_map(work.maps, plate, work.key, pixels)


def _stacked(seen: list[FieldPrediction]) -> Labels:
    """(y, x), or (t, y, x) of a field with times."""
    return np.stack([each.labels for each in seen]) if len(seen) > 1 else seen[0].labels


def _facts(
    segmenter: Segmenter, index: Index, work: FieldTask, seen: list[FieldPrediction], table: pa.Table
) -> Row:
    truth = true_counts(segmenter.recipe.reference_labels, index, work, len(seen))
    return {
        "shape": list(seen[0].labels.shape),
        "times": len(seen),
        "pixel_um": index.plate.pixel_um,
        "objects": table.num_rows,
        "dropped": [each.dropped for each in seen],
        **({} if truth is None else {"truth": truth}),
        "hash": files.content_hash([each.labels for each in seen], table),
    }
