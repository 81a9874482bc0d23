"""The flood of images larger than memory: block by block, and the same labels to the bit.

Nothing leaves a component of the mask. So components that end within a block are flooded there; of those
that reach into other blocks the pixels are put aside, pieces that touch are joined, and each whole component
is flooded by its own pixels, however far they reach. Objects are then numbered by their first pixel in the
image.

What is in memory at one time: some blocks (about 40 bytes for each of their pixels, times the threads of
`run`), the largest component that crosses blocks (about 100 bytes for each of its pixels), and about 50 bytes
for each object. A mask that is one component thus needs more than `flood` does; where objects are cells, it
is a small part.
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
from hpc_isl.objects.watershed import Labels, levels
from hpc_isl.objects.watershed_kernels import components_of, flood_basins, names_for, steps_around
from hpc_isl.objects.watershed_tiled_kernels import first_and_area, part, steps_between

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
    """Writes the labels of an image that is never in memory; how many objects there are, and were too small.

    Args:
        read: distance map and mask (y, x) of a box of the image, as `flood` takes them; from any thread.
        write: takes the labels of a block; called in raster order, once for each block of the image.
        shape: (y, x) of the image.
        h: as for `flood`; None: components of the mask are the objects, and the distance may be None.
        block: (y, x) of the blocks, in pixels; those at the end of the image may be smaller.
        scratch: an empty folder for files of up to 4 bytes for each pixel, and 12 for each one of a component
            that crosses blocks; they are left there.
        min_area: smaller objects are dropped, in pixels.
        run: `map`, or that of a pool of threads. The labels do not depend on it, nor on the order in which it
            works or answers.
    """
    _check(shape, block)
    image = _Image(read, shape, h, _grid(shape, block), scratch)
    surveys = _by_number(run(image.survey, range(len(image.blocks))))
    pieces = _pieces(surveys, image)
    image.joined.touch()
    groups = _by_number(run(lambda group: image.join(pieces, group), range(pieces.groups)))
    found = [*surveys, *groups]
    numbers, count, small = _numbers(found, min_area)
    starts = np.cumsum([0, *(one.first.size for one in found)])
    for k, box in enumerate(image.blocks):
        write(box, image.labels(k, pieces, numbers, starts))
    return count, small


@dataclass(frozen=True)
class _Objects:
    """First pixel in the image and area of some objects, by number; and what else a block is known by.

    ends: where each component that leaves the block ends in the list of their pixels.
    edges: numbers from 1 of these components along the block's first and last row, first and last column.
    """

    first: NDArray[np.int64]
    area: NDArray[np.int64]
    ends: NDArray[np.int64]
    edges: tuple[NDArray[np.int32], ...] = ()


@dataclass(frozen=True)
class _Pieces:
    """All pieces of components that cross blocks, in the order of blocks: block, pixels, where they start
    among all pixels put aside, and the group of components that is flooded together."""

    block: NDArray[np.int64]
    size: NDArray[np.int64]
    start: NDArray[np.int64]
    group: NDArray[np.int64]
    starts: NDArray[np.int64]  # of each block's pixels, and their end
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

    def file(self, k: int, what: str) -> Path:
        return self.scratch / f"{k}.{what}.npy"

    def survey(self, k: int) -> tuple[int, _Objects]:
        """Floods what ends within a block, and puts the pixels of other components aside."""
        (rows, columns), (distance, mask) = self.blocks[k], self.read(self.blocks[k])
        if self.h is None:
            distance = np.broadcast_to(np.float32(0), mask.shape)
        level = levels(distance, mask, self.h or 0)
        names, parent = names_for(level.shape)
        inner, ends, outer, outer_ends = part(
            *components_of(level, names, parent), level.shape[1], *self._sides(rows, columns)
        )
        np.save(self.file(k, "pixels"), outer)
        np.save(self.file(k, "levels"), level.ravel()[outer])
        edges = _edges(names, level.shape, outer, outer_ends)
        flat = flood_basins(inner, ends, level.ravel(), names, parent, steps_around(level.shape), self.h or 0)
        labels = np.ascontiguousarray(flat.reshape(level.shape)[1:-1, 1:-1])
        np.save(self.file(k, "labels"), labels)
        first, area = first_and_area(labels.ravel(), int(labels.max(initial=0)))
        y, x = np.divmod(first, labels.shape[1])
        return k, _Objects((y + rows.start) * self.shape[1] + x + columns.start, area, outer_ends, edges)

    def _sides(self, rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the framed block beside which another block lies; beyond it if none does."""
        low = (int(rows.start > 0), int(columns.start > 0))
        height, width = rows.stop - rows.start, columns.stop - columns.start
        high = (height + (rows.stop == self.shape[0]), width + (columns.stop == self.shape[1]))
        return low, high

    def join(self, pieces: _Pieces, group: int) -> tuple[int, _Objects]:
        """Floods a group of whole components that cross blocks, by their pixels."""
        mine = np.flatnonzero(pieces.group == group)
        index, level = self._gather(pieces, mine)
        order = np.argsort(index)
        index, level = index[order], np.append(level.dtype.type(-np.inf), level[order])
        around = steps_between(index, self.shape[1])
        pixels = np.arange(1, level.size, dtype=np.int32)
        names, parent = np.zeros((2, level.size), np.int32)
        labels = flood_basins(pixels, np.array([index.size]), level, names, parent, around, self.h or 0)[1:]
        first, area = first_and_area(labels, int(labels.max(initial=0)))
        unsorted = np.empty_like(labels)
        unsorted[order] = labels
        self._scatter(pieces, mine, unsorted)
        return group, _Objects(index[first], area, np.zeros(0, np.int64))

    def _gather(self, pieces: _Pieces, mine: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Raster indices and levels of the pixels of some pieces, piece by piece."""
        index, level = [], []
        for k in np.unique(pieces.block[mine]):
            some = mine[pieces.block[mine] == k]
            at = _ranges(pieces.start[some] - pieces.starts[k], pieces.size[some])
            index.append(self._index(k, np.load(self.file(k, "pixels"))[at]))
            level.append(np.load(self.file(k, "levels"))[at])
        return np.concatenate(index), np.concatenate(level)

    def _index(self, k: int, pixels: NDArray[np.int32]) -> NDArray[np.int64]:
        """Raster indices in the image of pixels of a framed block."""
        rows, columns = self.blocks[k]
        y, x = np.divmod(pixels, columns.stop - columns.start + 2)
        raster: NDArray[np.int64] = (
            (y.astype(np.int64) + rows.start - 1) * self.shape[1] + x + columns.start - 1
        )
        return raster

    def _scatter(self, pieces: _Pieces, mine: NDArray[np.int64], labels: Labels) -> None:
        """The labels of some pieces into the file of all; no two groups write the same bytes."""
        with open(self.joined, "r+b", buffering=0) as file:
            start = 0
            for piece in mine:
                end = start + pieces.size[piece]
                os.pwrite(file.fileno(), labels[start:end].data, 4 * int(pieces.start[piece]))
                start = end

    def labels(self, k: int, pieces: _Pieces, numbers: Labels, starts: NDArray[np.int64]) -> Labels:
        """The labels of a block, from those within it and those of its pieces."""
        labels = np.load(self.file(k, "labels"))
        height, width = labels.shape
        framed = np.zeros((height + 2, width + 2), np.uint32)
        framed[1:-1, 1:-1] = np.append(np.uint32(0), numbers[starts[k] : starts[k + 1]])[labels]
        mine = slice(*np.searchsorted(pieces.block, [k, k + 1]))
        size = int(pieces.starts[k + 1] - pieces.starts[k])
        joined = np.fromfile(self.joined, np.uint32, size, offset=4 * int(pieces.starts[k]))
        before = np.repeat(starts[len(self.blocks) + pieces.group[mine]], pieces.size[mine])
        framed.ravel()[np.load(self.file(k, "pixels"))] = numbers[before + joined - 1]
        return np.ascontiguousarray(framed[1:-1, 1:-1])


def _by_number(found: Iterable[tuple[int, _Objects]]) -> list[_Objects]:
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """start … start + size − 1 of each, one after the other."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def _check(shape: tuple[int, int], block: tuple[int, int]) -> None:
    if min(block) < 1:
        raise UserError(f"blocks of {block}: one pixel (y, x) at least")
    if min(shape) < 0:
        raise UserError(f"an image of {shape}: (y, x), in pixels")


def _grid(shape: tuple[int, int], block: tuple[int, int]) -> list[Block]:
    """The blocks of an image in raster order."""
    sides = [
        [slice(at, min(at + edge, length)) for at in range(0, length, edge)]
        for length, edge in zip(shape, block, strict=True)
    ]
    return list(product(*sides))


# ---------------------------------------------------------------- pieces that touch


def _edges(names: Any, shape: tuple[int, ...], outer: Any, ends: Any) -> tuple[NDArray[np.int32], ...]:
    """Which of the outer components, from 1, lies at each pixel of the four edges of a framed block."""
    names[outer] = np.repeat(np.arange(1, ends.size + 1), np.diff(ends, prepend=0))
    inside = names.reshape(shape)[1:-1, 1:-1]
    edges = tuple(edge.copy() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    names[outer] = 0
    return edges


def _pieces(surveys: list[_Objects], image: _Image) -> _Pieces:
    """Pieces of all blocks; components in groups of about one block's pixels, or one larger one."""
    counts = [one.ends.size for one in surveys]
    size = np.concatenate([np.zeros(0, np.int64), *(np.diff(one.ends, prepend=0) for one in surveys)])
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


def _components(surveys: list[_Objects], before: NDArray[np.int64], image: _Image) -> NDArray[np.int64]:
    """Of each piece the number of its component."""
    lines = [*_lines(surveys, before, image, 0), *_lines(surveys, before, image, 1)]
    pairs = np.concatenate([np.zeros((2, 0), np.int64), *(_touching(a, b) for a, b in lines)], axis=1)
    graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), (before[-1],) * 2)
    return connected_components(graph, directed=False)[1] if before[-1] else np.zeros(0, np.int64)


def _lines(
    surveys: list[_Objects], before: NDArray[np.int64], image: _Image, axis: int
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pieces on both sides of each line between blocks, over the whole image; −1: none."""
    ends: dict[Any, Any] = {}
    begins: dict[Any, Any] = {}
    for k, box in enumerate(image.blocks):
        begin, end = (
            np.where(e > 0, e + before[k] - 1, -1) for e in surveys[k].edges[2 * axis : 2 * axis + 2]
        )
        begins.setdefault(box[axis].start, []).append(begin)
        ends.setdefault(box[axis].stop, []).append(end)
    return [(np.concatenate(ends[at]), np.concatenate(begins[at])) for at in begins if at > 0]


def _touching(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of pieces (2, pairs) that touch straight or askew across a line."""
    pairs = np.concatenate([(a, b), (a[1:], b[:-1]), (a[:-1], b[1:])], axis=1)
    return np.unique(pairs[:, (pairs >= 0).all(0)], axis=1)


# ---------------------------------------------------------------- numbers


def _numbers(found: list[_Objects], min_area: int) -> tuple[Labels, int, int]:
    """Of each object its number in the image, by first pixel, or 0; how many remain, and are too small."""
    first = np.concatenate([np.zeros(0, np.int64), *(one.first for one in found)])
    area = np.concatenate([np.zeros(0, np.int64), *(one.area for one in found)])
    kept = np.flatnonzero(area >= min_area)
    if kept.size > MOST:
        raise UserError(f"{kept.size} objects: labels are uint32, for {MOST} at most; raise min_area or h")
    numbers = np.zeros(first.size, np.uint32)
    numbers[kept[first[kept].argsort()]] = np.arange(1, kept.size + 1)
    return numbers, int(kept.size), int(np.count_nonzero((area > 0) & (area < min_area)))
