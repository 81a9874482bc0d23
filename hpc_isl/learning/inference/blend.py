"""Blends the predictions of tiles by fixed weights, and yields rows as soon as they are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.tiles import Tile

Rows = tuple[slice, Pixels]
"""Rows of an image, and their pixels (k, rows, x)."""


class Blend:
    """Adds tiles in raster order; holds only the rows that later tiles may change.

    A tile weighs 1 in its own box and falls to 0 within `ramp` pixels around it; where tiles meet,
    weights are divided by their sum. The result depends on the grid alone.
    """

    def __init__(self, tiles: Sequence[Tile], shape: tuple[int, int], ramp: int) -> None:
        owns = [{(tile.own[axis].start, tile.own[axis].stop) for tile in tiles} for axis in (0, 1)]
        self._sides = [_weights(sorted(own), n, ramp) for own, n in zip(owns, shape, strict=True)]
        self._shape, self._top = shape, 0
        self._sum: Pixels | None = None

    def add(self, tile: Tile, prediction: Pixels) -> Iterator[Rows]:
        """Adds `prediction` (k, y, x) of `tile.read`; yields the rows that became complete, if any."""
        (y, down), (x, across) = (side[own.start] for side, own in zip(self._sides, tile.own, strict=True))
        yield from self._until(y.start)
        total = self._rows(y.stop, len(prediction))
        inner = [slice(s.start - r.start, s.stop - r.start) for s, r in zip((y, x), tile.read, strict=True)]
        part = prediction[:, *inner] * np.multiply.outer(down, across)
        total[:, y.start - self._top : y.stop - self._top, x] += part

    def rest(self) -> Iterator[Rows]:
        """Yields the last rows, after all tiles."""
        yield from self._until(self._shape[0])

    def _until(self, row: int) -> Iterator[Rows]:
        if self._sum is None or row <= self._top:
            return
        count = row - self._top
        done, self._sum = self._sum[:, :count], self._sum[:, count:]
        yield slice(self._top, row), done
        self._top = row

    def _rows(self, stop: int, outputs: int) -> Pixels:
        """Returns the sums, extended by zeros down to row `stop`."""
        total = np.zeros((outputs, 0, self._shape[1]), np.float32) if self._sum is None else self._sum
        missing = stop - self._top - total.shape[1]
        if missing > 0:
            room = np.zeros((outputs, missing, self._shape[1]), np.float32)
            total = np.concatenate([total, room], axis=1)
        self._sum = total
        return total


def _weights(owns: Sequence[tuple[int, int]], length: int, ramp: int) -> dict[int, tuple[slice, Pixels]]:
    """Returns a tile's first own pixel along an axis -> the range that it contributes to, and its weights."""
    # Weights along each axis alone: those of a tile are their outer product.
    places = np.arange(length)
    outside = [np.maximum(np.maximum(start - places, places - stop + 1), 0) for start, stop in owns]
    total = np.sum([np.maximum(1 - far / (ramp + 1), 0) for far in outside], axis=0)
    reach = [slice(max(start - ramp, 0), min(stop + ramp, length)) for start, stop in owns]
    return {
        start: (at, ((1 - far[at] / (ramp + 1)) / total[at]).astype(np.float32))
        for (start, _), at, far in zip(owns, reach, outside, strict=True)
    }
