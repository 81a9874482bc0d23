"""A field that memory does not hold: predicted in bands, flooded in blocks, measured object by object."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpc_isl.learning.data.rescale import Scale, read_sources, to_full_box
from hpc_isl.learning.data.view import View
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.objects.features import features
from hpc_isl.objects.watershed_tiled import tiled_watershed
from hpc_isl.plates.atomic_directory import translate_write_errors
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, write_large_labels
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.files import FieldTask, Row
from hpc_isl.stages.segment.inputs import is_empty, refuse_large, scale_of
from hpc_isl.stages.segment.measurements import intensities
from hpc_isl.stages.segment.segmenter import Segmenter, not_imaged, stain_scale
from hpc_isl.tiles import tiles

Block = tuple[slice, slice]
Labels = NDArray[np.uint32]
BAND = 256  # rows that are hashed at once


@dataclass(frozen=True)
class _Large:
    """One time of a field; labels and predicted stains lie in files, which memory need not hold."""

    labels: Labels
    stain: NDArray[np.float32] | None
    dropped: int = 0


@contextmanager
def predict_large(
    segmenter: Segmenter, index: Index, work: FieldTask
) -> Iterator[tuple[list[Labels], pa.Table, list[int]]]:
    """The labels of each time, in files that are there until the block ends, and the table of their objects.

    How many objects of each time were too small comes last.

    Raises:
        UserError: what is asked for is not made of large images.
    """
    refuse_large(segmenter.recipe, segmenter.models.contract)
    with _scratch(work.scratch) as folder:
        seen = [_look(segmenter, index, work.key, t, folder) for t in range(index.field(work.key).shape[0])]
        parts = [(t, _features(segmenter, index, work.key, t, one)) for t, one in enumerate(seen)]
        yield [one.labels for one in seen], files.table_of(work, parts), [one.dropped for one in seen]


def segment_large(segmenter: Segmenter, index: Index, work: FieldTask) -> Row:
    """Computes a field and writes its labels and table; the facts of its record."""
    with predict_large(segmenter, index, work) as (labels, table, dropped):
        kept: Row = {}
        if "labels" in segmenter.recipe.outputs:
            name = files.labels_name(index.image(work.key), segmenter.models.labels)
            kept["labels"] = write_large_labels(
                index.image(work.key), name, labels, origin="segmented", fingerprint=work.labels_fingerprint,
                overwrite=True,
            )  # fmt: skip
        files.write_table(work.table, files.fitted(table, segmenter.schema))
        return {
            "shape": list(labels[0].shape), "times": len(labels), "pixel_um": index.plate.pixel_um,
            "objects": table.num_rows, "dropped": dropped,
            **kept, "hash": files.content_hash(bands(labels), table),
        }  # fmt: skip


def bands(labels: list[Labels]) -> Iterator[Labels]:
    """Rows of each time, a few at once."""
    for one in labels:
        for first in range(0, one.shape[0], BAND):
            yield np.asarray(one[first : first + BAND])


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for what lies between; what a killed attempt left there is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on_disk(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array in a file that has its place on the disk: without, a full disk kills whoever writes to it."""
    size = dtype.itemsize * prod(shape)
    with translate_write_errors(file, size), file.open("wb") as stream:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(stream, header)
        stream.flush()
        if sys.platform == "linux":
            os.posix_fallocate(stream.fileno(), stream.tell(), size)
        else:
            stream.truncate(stream.tell() + size)
    return np.lib.format.open_memmap(file, "r+")


# ---------------------------------------------------------------- labels


def _look(segmenter: Segmenter, index: Index, key: FieldKey, time: int, folder: Path) -> _Large:
    y, x = index.field(key).shape[-2:]
    scale = scale_of(segmenter.recipe, segmenter.view, index, key)
    labels = _on_disk(folder / f"labels-{time}.npy", np.dtype(np.uint32), (y, x))
    if time in not_imaged(segmenter, index, key):
        return _Large(labels, _no_stain(segmenter, index, key, time, folder))
    prediction = _predicted(
        segmenter.predictor, segmenter.view, index, key, time, scale, folder / f"{time}.npy"
    )

    def read(box: Block) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        full = to_full_box(lambda part: np.asarray(prediction[:, *part]), scale, box)
        return full[0], full[-1] > 0

    def write(box: Block, found: Labels) -> None:
        labels[box] = found

    if is_empty(segmenter.recipe, segmenter.view, index, key):
        return _Large(labels, _stain(segmenter, index, key, time, folder))
    rule, edge = segmenter.rule.finer(scale.to_level_0, index.plate.pixel_um), segmenter.recipe.block_size
    h = rule.h_maxima if rule.kind == "cells" else None
    scratch = folder / f"blocks-{time}"
    scratch.mkdir()
    with translate_write_errors(scratch, 16 * y * x):
        _, dropped = tiled_watershed(
            read, write, (y, x), h, block=(edge, edge), scratch=scratch, min_area=rule.min_area
        )
    shutil.rmtree(scratch)
    return _Large(labels, _stain(segmenter, index, key, time, folder), dropped)


def _stain(
    segmenter: Segmenter, index: Index, key: FieldKey, time: int, folder: Path
) -> NDArray[np.float32] | None:
    if segmenter.stain is None or segmenter.stain_view is None:
        return None
    scale = stain_scale(segmenter, index, key)
    return _predicted(
        segmenter.stain, segmenter.stain_view, index, key, time, scale, folder / f"stain-{time}.npy"
    )


def _no_stain(
    segmenter: Segmenter, index: Index, key: FieldKey, time: int, folder: Path
) -> NDArray[np.float32] | None:
    if segmenter.stain_view is None:
        return None
    shape = (len(segmenter.stain_view.targets), *stain_scale(segmenter, index, key).shape)
    return _on_disk(folder / f"stain-{time}.npy", np.dtype(np.float32), shape)


def _predicted(
    predictor: Predictor, view: View, index: Index, key: FieldKey, time: int, scale: Scale, file: Path
) -> NDArray[np.float32]:
    """(output, y, x) on the grid that the model sees, in a file."""
    made: list[NDArray[np.float32]] = []

    def write(rows: slice, band: NDArray[np.float32]) -> None:
        if not made:
            made.append(_on_disk(file, np.dtype(np.float32), (len(band), *scale.shape)))
        made[0][:, rows] = band

    predictor.into(lambda box: read_sources(view, index, key, time, scale, box), write, scale.shape)
    return made[0]


# ---------------------------------------------------------------- features


def _features(
    segmenter: Segmenter, index: Index, key: FieldKey, time: int, seen: _Large
) -> dict[str, NDArray[Any]]:
    """Of all objects, by label: each measured in the block that holds its first row and column."""
    shape = (seen.labels.shape[0], seen.labels.shape[1])
    boxes = _boxes(seen.labels, segmenter.recipe.block_size)
    edge = segmenter.recipe.block_size
    owner = boxes[:, 0] // edge * (shape[1] // edge + 1) + boxes[:, 1] // edge
    found = []
    for block in np.unique(owner[1:]):
        own = np.flatnonzero(owner == block)
        own = own[own > 0]
        low, high = boxes[own, :2].min(0), boxes[own, 2:].max(0)
        box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        labels = np.asarray(seen.labels[box])
        labels = np.where((owner == block)[labels] & (labels > 0), labels, 0).astype(np.uint32)
        channels = intensities(segmenter, index, key, time, seen.stain, box)
        origin = (box[0].start, box[1].start)
        found.append(features(labels, channels, index.plate.pixel_um, origin, shape))
    if not found:
        empty = np.zeros((1, 1), np.uint32)
        channels = intensities(segmenter, index, key, time, seen.stain, (slice(0, 1), slice(0, 1)))
        return features(empty, channels, index.plate.pixel_um)
    order = np.argsort(np.concatenate([part["label"] for part in found]), kind="stable")
    return {name: np.concatenate([part[name] for part in found])[order] for name in found[0]}


def _boxes(labels: Labels, edge: int) -> NDArray[np.int64]:
    """(label, (y0, x0, y1, x1)) of each object, background's among them; a block at a time."""
    from skimage.measure import regionprops

    grid = list(tiles(labels.shape, edge))
    most = max(int(labels[tile.own].max()) for tile in grid)
    boxes = np.tile(np.array([*labels.shape, 0, 0], np.int64), (most + 1, 1))
    for tile in grid:
        y, x = tile.own[0].start, tile.own[1].start
        for each in regionprops(np.asarray(labels[tile.own]).astype(np.int64)):
            y0, x0, y1, x1 = each.bbox
            box = boxes[each.label]
            box[:2] = np.minimum(box[:2], (y0 + y, x0 + x))
            box[2:] = np.maximum(box[2:], (y1 + y, x1 + x))
    return boxes
