"""Cutting a shape into boxes and pasting them back: pure arithmetic, no pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Tile:
    """One inference window: `own` boxes partition the image, `read` is `own` grown by the halo.

    `read` is clipped to the image. `inner` cuts `own` out of an array that holds `read`.
    """

    own: Box
    read: Box

    @property
    def inner(self) -> Box:
        return tuple(
            slice(own.start - read.start, own.stop - read.start)
            for own, read in zip(self.own, self.read, strict=True)
        )


def tiles(shape: tuple[int, ...], size: int | None, halo: int = 0) -> Iterator[Tile]:
    """Tiles on one global grid with its origin at 0, in raster order.

    Args:
        shape: of the image, in pixels, e.g. (y, x).
        size: edge of an own box; None makes the whole image one tile.
        halo: pixels that `read` goes beyond `own` on each side, inside the image.
    """
    if size is not None and size < 1:
        raise ValueError(f"tile size {size}: a positive number of pixels, or null for one tile")
    edges = [range(0, length, size or max(length, 1)) for length in shape]
    for corner in product(*edges):
        own = tuple(
            slice(start, min(start + (size or length), length))
            for start, length in zip(corner, shape, strict=True)
        )
        read = tuple(
            slice(max(box.start - halo, 0), min(box.stop + halo, length))
            for box, length in zip(own, shape, strict=True)
        )
        yield Tile(own, read)


def padding(length: int, stride: int) -> int:
    """Pixels to add to `length` so that it is a whole number of strides."""
    return -length % stride
