"""Pixels of one size to pixels of another, so that a box of the result is the same bits as the whole's.

A pixel is the square that it covers, on both grids from the same corner. Weights fall off as a triangle
of at least one pixel on each side, and of one output pixel where there are fewer of them: bilinear
interpolation, and its antialiased form. `torch.nn.functional.interpolate` gives the same up to rounding,
but what it gives depends on where its input was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.pixels import Box, Pixels

BAND = 32  # rows of the result at a time: they stay in a processor's cache, which makes it six times as fast


@dataclass(frozen=True)
class Taps:
    """Which pixels of an axis make up those of another: (output, tap) indices and weights."""

    indices: NDArray[np.int64]
    weights: Pixels

    @property
    def read(self) -> slice:
        """What is needed of the input."""
        return slice(int(self.indices.min()), int(self.indices.max()) + 1)


def taps(wanted: slice, step: float, length: int) -> Taps:
    """The taps of output pixels `wanted`, each as long as `step` of the `length` input pixels.

    An output pixel may stick out of the input by less than its length: what it covers decides.
    """
    reach = max(step, 1.0)
    centers = (np.arange(wanted.start, wanted.stop) + 0.5) * step - 0.5
    first = np.floor(centers - reach).astype(np.int64) + 1
    places = first[:, None] + np.arange(int(np.ceil(2 * reach)))
    weights = np.maximum(1 - np.abs(places - centers[:, None]) / reach, 0)
    weights[(places < 0) | (places >= length)] = 0
    weights /= weights.sum(1, keepdims=True)
    return Taps(np.clip(places, 0, length - 1), weights.astype(np.float32))


def resampled(read: Callable[[Box], Pixels], box: Box, step: float, shape: tuple[int, int]) -> Pixels:
    """The box of (c, y, x) whose pixels are as long as `step` of those that `read` gives.

    Args:
        read: box of an image of `shape` (y, x) -> (c, y, x) float32; asked for what is needed alone.
        box: (y, x) of the result.
    """
    rows, columns = (taps(side, step, n) for side, n in zip(box, shape, strict=True))
    pixels = read((rows.read, columns.read))
    result = np.empty((len(pixels), len(rows.indices), len(columns.indices)), np.float32)
    for start in range(0, len(rows.indices), BAND):
        band = slice(start, start + BAND)
        part = _along_rows(pixels, rows.indices[band] - rows.read.start, rows.weights[band])
        turned = np.ascontiguousarray(part.swapaxes(1, 2))
        across = _along_rows(turned, columns.indices - columns.read.start, columns.weights)
        result[:, band] = across.swapaxes(1, 2)
    return result


def _along_rows(pixels: Pixels, indices: NDArray[np.int64], weights: Pixels) -> Pixels:
    """Multiplied and added tap by tap: no pixel depends on which others are computed."""
    total = pixels[:, indices[:, 0]] * weights[:, :1]
    for tap in range(1, indices.shape[1]):
        total += pixels[:, indices[:, tap]] * weights[:, tap, None]
    return total
