"""A field that memory does not hold: predicted in bands, watershed in blocks, measured object by object."""

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

from hpc_isl.learning.data.pixels import Box, Pixels
from hpc_isl.learning.data.rescale import to_full_box
from hpc_isl.objects.types import Labels
from hpc_isl.objects.watershed_tiled import tiled_watershed
from hpc_isl.plates.atomic_directory import translate_write_errors
from hpc_isl.plates.store import write_large_labels
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.checks import check_large
from hpc_isl.stages.segment.files import FieldTask, Row
from hpc_isl.stages.segment.measurements import measured_columns
from hpc_isl.stages.segment.segmenter import FieldReader, Segmenter
from hpc_isl.tiles import tiles


@dataclass(frozen=True)
class _LargePrediction:
    """One time of a field; labels and predicted stains lie in files, which memory need not hold."""

    labels: Labels
    prediction: Pixels | None
    stain: Pixels | None
    dropped: int = 0


@contextmanager
def predict_large(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask
) -> Iterator[tuple[list[Labels], pa.Table, list[int]]]:
    """Yields the labels of each time, in files that are removed at the end, and the table of their objects.

    The numbers of objects of each time that were too small come last.

    Raises:
        UserError: what is asked for is not made of large images.
    """
    check_large(segmenter.recipe, segmenter.models.contract)
    shutil.rmtree(task.scratch, ignore_errors=True)  # what a killed attempt left there
    task.scratch.mkdir(parents=True)
    try:
        images = [_predict(segmenter, reader, time, task.scratch) for time in range(reader.times)]
        rows = [_features(segmenter, reader, task, t, image) for t, image in enumerate(images)]
        table = files.table_of(task, rows)
        yield [image.labels for image in images], table, [image.dropped for image in images]
    finally:
        shutil.rmtree(task.scratch, ignore_errors=True)


def segment_large(segmenter: Segmenter, reader: FieldReader, task: FieldTask) -> Row:
    """Computes a field and writes its labels and table; returns the facts of its record."""
    with predict_large(segmenter, reader, task) as (labels, table, dropped):
        checksums: Row = {}
        if "labels" in segmenter.recipe.outputs:
            checksums["labels"] = write_large_labels(
                reader.image, files.labels_name(reader.image, segmenter.models.labels), labels,
                origin="segmented", fingerprint=task.labels_fingerprint, overwrite=True,
            )  # fmt: skip
        files.write_table(task.table, files.fitted(table, segmenter.schema))
        return {
            "shape": list(reader.shape), "times": len(labels), "pixel_um": reader.index.plate.pixel_um,
            "objects": table.num_rows, "dropped": dropped,
            **checksums, "hash": files.content_hash(labels, table),
        }  # fmt: skip


def _on_disk(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns an array in a file whose space on the disk is reserved: else a full disk kills its writer."""
    size = np.dtype(dtype).itemsize * prod(shape)
    with translate_write_errors(file, size), file.open("wb") as stream:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(stream, header)
        stream.flush()
        if sys.platform == "linux":
            os.posix_fallocate(stream.fileno(), stream.tell(), size)
        else:
            stream.truncate(stream.tell() + size)
    return np.lib.format.open_memmap(file, "r+")


# ---------------------------------------------------------------- labels


def _predict(segmenter: Segmenter, reader: FieldReader, time: int, folder: Path) -> _LargePrediction:
    labels = _on_disk(folder / f"labels-{time}.npy", np.uint32, reader.shape)
    stain_file, stain_view = folder / f"stain-{time}.npy", segmenter.models.stain_view
    if time in reader.not_imaged or reader.is_empty:  # no objects, so nothing is asked of a network
        stain = None
        if stain_view and reader.stain_scale:
            shape = (len(stain_view.targets), *reader.stain_scale.shape)
            stain = _on_disk(stain_file, np.float32, shape)
        return _LargePrediction(labels, None, stain)
    prediction = _predict_into(folder / f"{time}.npy", segmenter, reader, time)
    stain = _predict_into(stain_file, segmenter, reader, time, True) if segmenter.stain else None

    def read(box: Box) -> tuple[Pixels, NDArray[np.bool_]]:
        full = to_full_box(lambda part: np.asarray(prediction[:, *part]), reader.scale, box)
        return full[0], full[-1] > rule.threshold

    def write(box: Box, block: Labels) -> None:
        labels[box] = block

    rule, edge = segmenter.rule_on(reader), segmenter.recipe.block_size
    h_maxima = rule.h_maxima if rule.kind == "cells" else None
    scratch = folder / f"blocks-{time}"
    scratch.mkdir()
    with translate_write_errors(scratch, 16 * prod(reader.shape)):
        _, dropped = tiled_watershed(
            read, write, reader.shape, h_maxima, block=(edge, edge), scratch=scratch, min_area=rule.min_area
        )
    shutil.rmtree(scratch)
    return _LargePrediction(labels, prediction, stain, dropped)


def _predict_into(
    file: Path, segmenter: Segmenter, reader: FieldReader, time: int, is_stain: bool = False
) -> Pixels:
    """Returns (output, y, x) on the grid that the model sees, in a file; of the stain's model on request."""
    predictor, scale, sources = segmenter.predictor, reader.scale, reader.sources
    if is_stain and segmenter.stain and reader.stain_scale:
        predictor, scale, sources = segmenter.stain, reader.stain_scale, reader.stain_sources
    arrays: list[Pixels] = []

    def write(rows: slice, band: Pixels) -> None:
        if not arrays:  # how many outputs there are is known with the first band
            arrays.append(_on_disk(file, np.float32, (len(band), *scale.shape)))
        arrays[0][:, rows] = band

    assert predictor is not None  # `check_large` gives no image this large to another program
    predictor.into(lambda box: sources(time, box), write, scale.shape)
    return arrays[0]


# ---------------------------------------------------------------- features


def _features(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask, time: int, image: _LargePrediction
) -> dict[str, NDArray[Any]]:
    """Returns the features of all objects, by label, measured in the block of their first row and column."""
    edge = segmenter.recipe.block_size
    boxes = _boxes(image.labels, edge)
    owner = (boxes[:, 0] // edge * (reader.shape[1] // edge + 1) + boxes[:, 1] // edge).astype(np.int32)
    owner[0] = -1  # the background belongs to no block
    by_block = np.argsort(owner, kind="stable")[1:]
    blocks, starts = np.unique(owner[by_block], return_index=True)
    parts = []
    for block, object_numbers in zip(blocks, np.split(by_block, starts)[1:], strict=True):
        low, high = boxes[object_numbers, :2].min(0), boxes[object_numbers, 2:].max(0)
        box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        labels = np.asarray(image.labels[box])
        labels = np.where(owner[labels] == block, labels, 0).astype(np.uint32)
        columns = measured_columns(reader, time, image.stain, labels, box)
        parts.append(columns | _confidence(segmenter, reader, task, image, box, object_numbers))
    if not parts:
        pixel_box = (slice(0, 1), slice(0, 1))
        columns = measured_columns(reader, time, image.stain, np.zeros((1, 1), np.uint32), pixel_box)
        return columns | segmenter.confidence(task.confidence, None)
    order = np.argsort(np.concatenate([part["label"] for part in parts]), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def _confidence(
    segmenter: Segmenter, reader: FieldReader, task: FieldTask, image: _LargePrediction, box: Box,
    object_numbers: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Returns the confidence of the objects `object_numbers`, which lie whole in the box."""
    if task.confidence is None or image.prediction is None:
        return {}
    prediction = image.prediction
    # One pixel more on each side: what touches an object from outside of the box cuts it too.
    wide = tuple(
        slice(max(side.start - 1, 0), min(side.stop + 1, length))
        for side, length in zip(box, reader.shape, strict=True)
    )
    labels = np.asarray(image.labels[wide[0], wide[1]])
    full = to_full_box(lambda part: np.asarray(prediction[:, *part]), reader.scale, (wide[0], wide[1]))
    values = segmenter.measures(reader, labels, full)
    names = np.unique(labels[labels > 0])
    return segmenter.confidence(
        task.confidence, values if values is None else values[np.isin(names, object_numbers)]
    )


def _boxes(labels: Labels, edge: int) -> NDArray[np.int64]:
    """Returns (label, (y0, x0, y1, x1)) of each object, background's among them; reads a block at a time."""
    import pandas as pd  # here, because a plan does not wait for it
    from scipy.ndimage import find_objects

    grid = list(tiles(labels.shape, edge))
    last_label = max(int(labels[tile.own].max()) for tile in grid)
    boxes = np.tile(np.array([*labels.shape, 0, 0], np.int64), (last_label + 1, 1))
    for tile in grid:
        y, x = tile.own[0].start, tile.own[1].start
        # Numbered anew: find_objects has a place for every number up to the greatest, of the whole field.
        own = np.asarray(labels[tile.own])
        places, object_numbers = pd.factorize(own.ravel())
        sides = find_objects(places.reshape(own.shape) + 1)
        low = np.array([(rows.start + y, columns.start + x) for rows, columns in sides])
        high = np.array([(rows.stop + y, columns.stop + x) for rows, columns in sides])
        boxes[object_numbers, :2] = np.minimum(boxes[object_numbers, :2], low)
        boxes[object_numbers, 2:] = np.maximum(boxes[object_numbers, 2:], high)
    return boxes
