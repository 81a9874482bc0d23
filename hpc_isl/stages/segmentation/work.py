"""One field segmented, in a process of the pool: pixels to labels, features, table, and the record last."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpc_isl.files import read_json
from hpc_isl.plates.store import Index, label_bands, write_labels
from hpc_isl.stages.segmentation import files
from hpc_isl.stages.segmentation.bench import Bench, Labels, Seen, bench_of, index_of, look
from hpc_isl.stages.segmentation.files import Row, Work
from hpc_isl.stages.segmentation.large import bands, looked_at, segment_large
from hpc_isl.stages.segmentation.maps import plate_of, write_map
from hpc_isl.stages.segmentation.measured import measured, true_counts
from hpc_isl.stages.segmentation.setting import is_empty, is_large, scale_of


def segment_field(work: Work) -> Row:
    """Computes a field and writes what the recipe keeps of it; the record, which is returned, comes last.

    Raises:
        Mistake: the field cannot be read.
        Blocked: the disk is full, or may not be written.
    """
    start = monotonic()
    bench, index = bench_of(work.run), index_of(work.plate)
    if "labels" in bench.recipe.write:
        files.sweep_image(index.image(work.key), bench.models.labels)
        files.check_place(index.image(work.key), bench.models.labels, work.mark, bench.recipe.overwrite)
    if is_large(bench.recipe, index, work.key):
        facts = segment_large(bench, index, work)
    else:
        seen = look(bench, index, work.key)
        table = measured(bench, index, work, seen)
        _keep(bench, index, work, seen, table)
        facts = _facts(bench, index, work, seen, table)
    doubt = bench.predictor.doubt(scale_of(bench.recipe, bench.view, index, work.key).shape)
    how = {"device": bench.device, "seconds": round(monotonic() - start, 3)}
    how |= {"doubt": doubt} if doubt else {}
    how |= {"empty": True} if is_empty(bench.recipe, bench.view, index, work.key) else {}
    return files.write_record(work, {**facts, **how})


@dataclass(frozen=True)
class Verified:
    """What is wrong with a field that is done, or why it cannot be told; both empty: nothing."""

    wrong: str = ""
    untold: str = ""


def verify_field(work: Work) -> Verified:
    """Computes a field that is done again, and compares objects, labels and table."""
    bench, index = bench_of(work.run), index_of(work.plate)
    record = read_json(work.record) or {}
    if record.get("device", bench.device) != bench.device:
        return Verified(untold=f"computed on {record['device']}, and this is {bench.device}")
    expected = record.get("hash")
    found, columns = _computed_hash(bench, index, work)
    if found != expected:
        return Verified("computed again, its objects are others than its record says")
    if "labels" not in bench.recipe.write:
        return Verified()
    image = index.image(work.key)
    kept = label_bands(image, files.labels_name(image, bench.models.labels))
    if files.content_hash(kept, pq.read_table(work.table).select(columns)) != expected:
        return Verified("its labels or its table on disk are others than were computed")
    return Verified()


def _computed_hash(bench: Bench, index: Index, work: Work) -> tuple[str, list[str]]:
    """Of a field's objects, and the columns that its plate has of them."""
    if is_large(bench.recipe, index, work.key):
        with looked_at(bench, index, work) as (labels, table):
            return files.content_hash(bands(labels), table), table.column_names
    seen = look(bench, index, work.key)
    table = measured(bench, index, work, seen)
    return files.content_hash([each.labels for each in seen], table), table.column_names


# ---------------------------------------------------------------- what is kept


def _keep(bench: Bench, index: Index, work: Work, seen: list[Seen], table: pa.Table) -> None:
    image, write = index.image(work.key), bench.recipe.write
    if bench.maps.channels:
        _keep_maps(bench, index, work, seen)
    if "labels" in write:
        labels = _stacked(seen)
        write_labels(
            image, files.labels_name(image, bench.models.labels), labels, origin="segmented",
            boxes=[(0, 0, *labels.shape[-2:])], fingerprint=work.mark, overwrite=True,
        )  # fmt: skip
    files.write_table(work.table, files.fitted(table, bench.schema))


def _keep_maps(bench: Bench, index: Index, work: Work, seen: list[Seen]) -> None:
    scale = scale_of(bench.recipe, bench.view, index, work.key)
    plate = plate_of(index, bench.maps, scale.pixel_um)
    pixels = np.stack([bench.maps.of(each.prediction, each.stain) for each in seen])
    write_map(work.maps, plate, work.key, pixels)


def _stacked(seen: list[Seen]) -> Labels:
    """(y, x), or (t, y, x) of a field with times."""
    return np.stack([each.labels for each in seen]) if len(seen) > 1 else seen[0].labels


def _facts(bench: Bench, index: Index, work: Work, seen: list[Seen], table: pa.Table) -> Row:
    truth = true_counts(bench.recipe.truth, index, work, len(seen))
    return {
        "shape": list(seen[0].labels.shape),
        "times": len(seen),
        "pixel_um": index.plate.pixel_um,
        "objects": table.num_rows,
        **({} if truth is None else {"truth": truth}),
        "hash": files.content_hash([each.labels for each in seen], table),
    }
