"""The watershed of images larger than memory: block by block, with bit-identical labels.

Components of the mask that end within a block are flooded there; of those that reach into other blocks the
pixels are put aside, pieces that touch are joined, and each whole component is flooded by its own pixels,
however far they reach. Objects are then numbered by their first pixel in the image.

Memory holds some blocks (about 40 bytes for each of their pixels, times the threads of `run`), the largest
component that crosses blocks (about 100 bytes for each of its pixels), and about 50 bytes for each object. A
mask that is one component thus needs more than `watershed`; where objects are cells, it is a small part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hpc_isl.errors import UserError
from hpc_isl.objects.types import Integers, Labels
from hpc_isl.objects.watershed import levels
from hpc_isl.objects.watershed_kernels import (
    components_of,
    first_and_area,
    flood_basins,
    names_for,
    part,
    steps_around,
    steps_between,
)

Block = tuple[slice, slice]
Read = Callable[[Block], tuple[Any, NDArray[Any]]]
Write = Callable[[Block, Labels], None]
MOST = 2**32 - 1  # objects that uint32 can tell apart


def tiled_watershed(
    read: Read,
    write: Write,
    shape: tuple[int, int],
    h: float | None,
    *,
    block: tuple[int, int],
    scratch: Path,
    min_area: int = 0,
    run: Callable[..., Iterable[Any]] = map,
) -> tuple[int, int]:
    """Writes the labels of an image that is never in memory; returns the numbers of objects kept and dropped.

    Args:
        read: distance map and mask (y, x) of a box of the image, as for `watershed`; from any thread.
        write: takes the labels of a block; called in raster order, once for each block of the image.
        shape: (y, x) of the image.
        h: as for `watershed`; None: components of the mask are the objects, and the distance may be None.
        block: (y, x) of the blocks, in pixels; those at the end of the image may be smaller.
        scratch: an empty folder for files of up to 4 bytes for each pixel, and 12 for each one of a component
            that crosses blocks; they are left there.
        min_area: smaller objects are dropped, in pixels.
        run: `map`, or that of a pool of threads. The labels do not depend on it, nor on the order in which it
            works or answers.
    """
    if min(block) < 1:
        raise UserError(f"blocks of {block}: one pixel (y, x) at least")
    if min(shape) < 0:
        raise UserError(f"an image of {shape}: (y, x), in pixels")
    sides = [
        [slice(start, min(start + edge, length)) for start in range(0, length, edge)]
        for length, edge in zip(shape, block, strict=True)
    ]
    image = _Image(read, shape, h, list(product(*sides)), scratch)
    surveys = _by_number(run(image.survey, range(len(image.blocks))))
    pieces = _pieces(surveys, image)
    image.joined.touch()
    groups = _by_number(run(lambda group: image.join(pieces, group), range(pieces.groups)))
    parts = [*surveys, *groups]
    numbers, count, small = _numbers(parts, min_area)
    starts = np.cumsum([0, *(objects.first.size for objects in parts)])
    for k, box in enumerate(image.blocks):
        write(box, image.labels(k, pieces, numbers, starts))
    return count, small


@dataclass(frozen=True)
class _Objects:
    """First pixel in the image and area of some objects, by number.

    ends: where each component that leaves the block ends in the list of their pixels.
    edges: numbers from 1 of these components along the block's first and last row, first and last column.
    """

    first: Integers
    area: Integers
    ends: Integers
    edges: tuple[NDArray[np.int32], ...] = ()


@dataclass(frozen=True)
class _Pieces:
    """All pieces of components that cross blocks, in the order of blocks: block, pixels, where they start
    among all pixels put aside, and the group of components that is flooded together."""

    block: Integers
    size: Integers
    start: Integers
    group: Integers
    starts: Integers  # of each block's pixels, and their end
    groups: int


@dataclass(frozen=True)
class _Image:
    read: Read
    shape: tuple[int, int]
    h: float | None
    blocks: list[Block]
    scratch: Path

    @property
    def joined(self) -> Path:
        return self.scratch / "joined"

    def file(self, k: int, name: str) -> Path:
        return self.scratch / f"{k}.{name}.npy"

    def survey(self, k: int) -> tuple[int, _Objects]:
        """Floods components that end within a block, and puts the pixels of others aside."""
        (rows, columns), (distance, mask) = self.blocks[k], self.read(self.blocks[k])
        if self.h is None:  # components are the objects: a flat map floods each as one
            distance = np.broadcast_to(np.float32(0), mask.shape)
        level = levels(distance, mask, self.h or 0)
        names, parent = names_for(level.shape)
        inner, ends, outer, outer_ends = part(
            *components_of(level, names, parent), level.shape[1], *self._sides(rows, columns)
        )
        np.save(self.file(k, "pixels"), outer)
        np.save(self.file(k, "levels"), level.ravel()[outer])
        # Which of the outer components, from 1, lies at each pixel of the four edges of the block.
        names[outer] = np.repeat(np.arange(1, outer_ends.size + 1), np.diff(outer_ends, prepend=0))
        inside = names.reshape(level.shape)[1:-1, 1:-1]
        edges = tuple(edge.copy() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        names[outer] = 0
        flat = flood_basins(inner, ends, level.ravel(), names, parent, steps_around(level.shape), self.h or 0)
        labels = np.ascontiguousarray(flat.reshape(level.shape)[1:-1, 1:-1])
        np.save(self.file(k, "labels"), labels)
        first, area = first_and_area(labels.ravel(), int(labels.max(initial=0)))
        y, x = np.divmod(first, labels.shape[1])
        return k, _Objects((y + rows.start) * self.shape[1] + x + columns.start, area, outer_ends, edges)

    def _sides(self, rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns low and high (y, x) of the framed block beside which another block lies, else beyond it."""
        low = (int(rows.start > 0), int(columns.start > 0))
        height, width = rows.stop - rows.start, columns.stop - columns.start
        high = (height + (rows.stop == self.shape[0]), width + (columns.stop == self.shape[1]))
        return low, high

    def join(self, pieces: _Pieces, group: int) -> tuple[int, _Objects]:
        """Floods a group of whole components that cross blocks, by their pixels."""
        members = np.flatnonzero(pieces.group == group)
        index, level = self._gather(pieces, members)
        order = np.argsort(index)
        index, level = index[order], np.append(level.dtype.type(-np.inf), level[order])
        around = steps_between(index, self.shape[1])
        pixels = np.arange(1, level.size, dtype=np.int32)
        names, parent = np.zeros((2, level.size), np.int32)
        labels = flood_basins(pixels, np.array([index.size]), level, names, parent, around, self.h or 0)[1:]
        first, area = first_and_area(labels, int(labels.max(initial=0)))
        by_piece = np.empty_like(labels)
        by_piece[order] = labels
        # Into the file of the labels of all pieces; no two groups write the same bytes.
        with open(self.joined, "r+b", buffering=0) as file:
            start = 0
            for piece in members:
                end = start + pieces.size[piece]
                os.pwrite(file.fileno(), by_piece[start:end].data, 4 * int(pieces.start[piece]))
                start = end
        return group, _Objects(index[first], area, np.zeros(0, np.int64))

    def _gather(self, pieces: _Pieces, members: Integers) -> tuple[Integers, NDArray[Any]]:
        """Returns raster indices and levels of the pixels of some pieces, piece by piece."""
        index, level = [], []
        for k in np.unique(pieces.block[members]):
            block_members = members[pieces.block[members] == k]
            # start … start + size − 1 of each piece, one after the other
            starts, sizes = pieces.start[block_members] - pieces.starts[k], pieces.size[block_members]
            positions = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
            index.append(self._index(k, np.load(self.file(k, "pixels"))[positions]))
            level.append(np.load(self.file(k, "levels"))[positions])
        return np.concatenate(index), np.concatenate(level)

    def _index(self, k: int, pixels: NDArray[np.int32]) -> Integers:
        """Returns raster indices in the image of pixels of a framed block."""
        rows, columns = self.blocks[k]
        y, x = np.divmod(pixels, columns.stop - columns.start + 2)
        raster: Integers = (y.astype(np.int64) + rows.start - 1) * self.shape[1] + x + columns.start - 1
        return raster

    def labels(self, k: int, pieces: _Pieces, numbers: Labels, starts: Integers) -> Labels:
        """Returns the labels of a block, from those within it and those of its pieces."""
        labels = np.load(self.file(k, "labels"))
        height, width = labels.shape
        framed = np.zeros((height + 2, width + 2), np.uint32)
        framed[1:-1, 1:-1] = np.append(np.uint32(0), numbers[starts[k] : starts[k + 1]])[labels]
        block_pieces = slice(*np.searchsorted(pieces.block, [k, k + 1]))
        size = int(pieces.starts[k + 1] - pieces.starts[k])
        joined = np.fromfile(self.joined, np.uint32, size, offset=4 * int(pieces.starts[k]))
        object_offsets = np.repeat(
            starts[len(self.blocks) + pieces.group[block_pieces]], pieces.size[block_pieces]
        )
        framed.ravel()[np.load(self.file(k, "pixels"))] = numbers[object_offsets + joined - 1]
        return np.ascontiguousarray(framed[1:-1, 1:-1])


def _by_number(results: Iterable[tuple[int, _Objects]]) -> list[_Objects]:
    return [objects for _, objects in sorted(results, key=lambda pair: pair[0])]


# ---------------------------------------------------------------- pieces that touch


def _pieces(surveys: list[_Objects], image: _Image) -> _Pieces:
    """Returns pieces of all blocks; components in groups of about one block's pixels, or one larger one."""
    counts = [survey.ends.size for survey in surveys]
    size = np.concatenate([np.zeros(0, np.int64), *(np.diff(s.ends, prepend=0) for s in surveys)])
    start = np.cumsum(size) - size
    starts = np.append(start, size.sum())[np.cumsum([0, *counts])]
    component = _components(surveys, np.cumsum([0, *counts]), image)
    pixels = np.bincount(component, size).astype(np.int64)
    budget = max((np.prod([side.stop - side.start for side in box]) for box in image.blocks), default=1)
    if pixels.max(initial=0) + budget >= 2**31:
        raise UserError(
            f"a component of the mask has {pixels.max():,} pixels; fewer than 2^31 can be flooded together"
        )
    _, group = np.unique((np.cumsum(pixels) - pixels) // budget, return_inverse=True)
    return _Pieces(
        np.repeat(np.arange(len(counts)), counts), size, start, group[component], starts,
        int(group.max(initial=-1)) + 1,
    )  # fmt: skip


def _components(surveys: list[_Objects], offsets: Integers, image: _Image) -> Integers:
    """Returns the number of each piece's component."""
    touching = [np.zeros((2, 0), np.int64)]
    for a, b in [*_lines(surveys, offsets, image, 0), *_lines(surveys, offsets, image, 1)]:
        # Pieces touch straight or diagonally across a line.
        pairs = np.concatenate([(a, b), (a[1:], b[:-1]), (a[:-1], b[1:])], axis=1)
        touching.append(np.unique(pairs[:, (pairs >= 0).all(0)], axis=1))
    pairs = np.concatenate(touching, axis=1)
    graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), (offsets[-1],) * 2)
    return connected_components(graph, directed=False)[1] if offsets[-1] else np.zeros(0, np.int64)


def _lines(
    surveys: list[_Objects], offsets: Integers, image: _Image, axis: int
) -> Iterable[tuple[Integers, Integers]]:
    """Returns the pieces on both sides of each line between blocks, over the whole image; −1: none."""
    ends: dict[Any, Any] = {}
    begins: dict[Any, Any] = {}
    for k, box in enumerate(image.blocks):
        begin, end = (
            np.where(edge > 0, edge + offsets[k] - 1, -1)
            for edge in surveys[k].edges[2 * axis : 2 * axis + 2]
        )
        begins.setdefault(box[axis].start, []).append(begin)
        ends.setdefault(box[axis].stop, []).append(end)
    return [(np.concatenate(ends[line]), np.concatenate(begins[line])) for line in begins if line > 0]


# ---------------------------------------------------------------- numbers


def _numbers(parts: list[_Objects], min_area: int) -> tuple[Labels, int, int]:
    """Returns each object's number by first pixel, or 0; how many remain, and how many are too small."""
    first = np.concatenate([np.zeros(0, np.int64), *(objects.first for objects in parts)])
    area = np.concatenate([np.zeros(0, np.int64), *(objects.area for objects in parts)])
    kept_objects = np.flatnonzero(area >= min_area)
    if kept_objects.size > MOST:
        raise UserError(
            f"{kept_objects.size} objects: labels are uint32, for {MOST} at most; raise min_area or h"
        )
    numbers = np.zeros(first.size, np.uint32)
    numbers[kept_objects[first[kept_objects].argsort()]] = np.arange(1, kept_objects.size + 1)
    return numbers, int(kept_objects.size), int(np.count_nonzero((area > 0) & (area < min_area)))
