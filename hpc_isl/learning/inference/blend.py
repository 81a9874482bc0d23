"""Predictions of tiles to one: neighbours blend by fixed weights, rows leave as soon as they are whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.tiles import Tile

Rows = tuple[slice, Pixels]
"""Rows of an image, and their pixels (k, rows, x)."""


class Blend:
    """Adds tiles in raster order and holds the rows that tiles to come may change, no others.

    A tile weighs 1 in its own box and falls to 0 within `ramp` pixels around it; where tiles meet,
    weights are divided by their sum. What comes out depends on the grid alone.
    """

    def __init__(self, tiles: Sequence[Tile], shape: tuple[int, int], ramp: int) -> None:
        owns = [{(tile.own[axis].start, tile.own[axis].stop) for tile in tiles} for axis in (0, 1)]
        self._sides = [_weights(sorted(own), n, ramp) for own, n in zip(owns, shape, strict=True)]
        self._shape, self._top = shape, 0
        self._sum: Pixels | None = None

    def add(self, tile: Tile, prediction: Pixels) -> Iterator[Rows]:
        """The rows that became whole, where there are some; `prediction` (k, y, x) is of `tile.read`."""
        (y, down), (x, across) = (side[own.start] for side, own in zip(self._sides, tile.own, strict=True))
        yield from self._until(y.start)
        total = self._rows(y.stop, len(prediction))
        inner = [slice(s.start - r.start, s.stop - r.start) for s, r in zip((y, x), tile.read, strict=True)]
        part = prediction[:, *inner] * np.multiply.outer(down, across)
        total[:, y.start - self._top : y.stop - self._top, x] += part

    def rest(self) -> Iterator[Rows]:
        """The last rows, after all tiles."""
        yield from self._until(self._shape[0])

    def _until(self, row: int) -> Iterator[Rows]:
        if self._sum is None or row <= self._top:
            return
        count = row - self._top
        done, self._sum = self._sum[:, :count], self._sum[:, count:]
        yield slice(self._top, row), done
        self._top = row

    def _rows(self, stop: int, outputs: int) -> Pixels:
        """The sums, with room down to row `stop`."""
        there = 0 if self._sum is None else self._sum.shape[1]
        missing = stop - self._top - there
        if self._sum is None or missing > 0:
            room = np.zeros((outputs, missing, self._shape[1]), np.float32)
            self._sum = room if self._sum is None else np.concatenate([self._sum, room], axis=1)
        return self._sum


def _weights(owns: Sequence[tuple[int, int]], length: int, ramp: int) -> dict[int, tuple[slice, Pixels]]:
    """First own pixel -> where along an axis a tile counts, and how much."""
    places = np.arange(length)
    outside = [np.maximum(np.maximum(start - places, places - stop + 1), 0) for start, stop in owns]
    total = np.sum([np.maximum(1 - far / (ramp + 1), 0) for far in outside], axis=0)
    reach = [slice(max(start - ramp, 0), min(stop + ramp, length)) for start, stop in owns]
    return {
        start: (at, ((1 - far[at] / (ramp + 1)) / total[at]).astype(np.float32))
        for (start, _), at, far in zip(owns, reach, outside, strict=True)
    }
