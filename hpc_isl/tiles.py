"""Tiles of an image with halos: pure arithmetic, no pixels.

A module of its own, because libraries that do not import each other share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Tile:
    """One inference window: `own` boxes partition the image, `read` is `own` grown by the halo at least."""

    own: Box
    read: Box


def tiles(shape: tuple[int, ...], size: int | None, halo: int = 0, stride: int = 1) -> Iterator[Tile]:
    """Yields tiles on one global grid with its origin at 0, in raster order.

    Args:
        shape: of the image, in pixels, e.g. (y, x).
        size: edge of an own box, a multiple of `stride`; None makes the whole image one tile.
        halo: pixels that `read` goes beyond `own` on each side, where there is an image; a multiple of
            `stride`.
        stride: edges of `read` boxes are multiples of it, as if the image were padded at its end.
    """
    if size is not None and size < 1:
        raise ValueError(f"tile size {size}: a positive number of pixels, or null for one tile")
    for sides in product(*(_sides(length, size, halo, stride) for length in shape)):
        yield Tile(tuple(own for own, _ in sides), tuple(read for _, read in sides))


def _sides(length: int, size: int | None, halo: int, stride: int) -> list[tuple[slice, slice]]:
    """Returns what the tiles along one axis own and read."""
    end = -(-length // stride) * stride  # padded to a whole number of strides
    if size is None or size + 2 * halo >= end:  # a tile would read all of it
        return [(slice(0, length), slice(0, end))]
    wide = size + 2 * halo
    # All tiles read boxes of one shape: at the border a box is moved inside rather than clipped.
    starts = [(start, min(max(start - halo, 0), end - wide)) for start in range(0, length, size)]
    return [
        (slice(start, min(start + size, length)), slice(read_start, read_start + wide))
        for start, read_start in starts
    ]
