"""Outlines of objects, as ImageJ, QuPath and COCO keep them, filled to label numbers.

Coordinates are (x, y) in pixels, from the outer corner of the first one: its centre is at (0.5, 0.5). A pixel
is inside where its centre is; one whose centre lies on the line between two neighbours is in one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError

Shape = tuple[int, int, int]
Ring = NDArray[np.float64]
Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]
Patch = tuple[int, int, Mask]
"""First row and column of a mask, and the mask."""
SHOWN = 3


@dataclass(frozen=True)
class Outline:
    """One object.

    Attributes:
        name: for messages.
        box: (x0, y0, x1, y1) around it.
        fill: returns its pixels in an image of a height and width.
    """

    name: str
    time: int
    box: Box
    fill: Callable[[int, int], Patch]


def polygon_outline(name: str, time: int, polygons: Sequence[Sequence[Ring]]) -> Outline:
    """Returns an object of polygons, each of rings: what an even number of rings surrounds is a hole."""
    points = np.concatenate([ring for rings in polygons for ring in rings])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return Outline(name, time, (x0, y0, x1, y1), partial(_polygon_patch, polygons))


def ellipse_outline(name: str, time: int, box: Box) -> Outline:
    """Returns the ellipse that touches the sides of a box."""
    return Outline(name, time, box, partial(_ellipse_patch, box))


def mask_outline(name: str, time: int, size: tuple[int, int], mask: Callable[[], Mask]) -> Outline:
    """Returns an object that is given as a mask of the whole image."""
    return Outline(name, time, (0, 0, size[1], size[0]), lambda height, width: (0, 0, mask()))


# ---------------------------------------------------------------- filling


def _polygon_patch(polygons: Sequence[Sequence[Ring]], height: int, width: int) -> Patch:
    points = np.concatenate([ring for rings in polygons for ring in rings])
    x0, y0 = np.floor(points.min(0)).astype(int).clip(0, (width, height))
    x1, y1 = np.ceil(points.max(0)).astype(int).clip((x0, y0), (width, height))
    mask = np.zeros((y1 - y0, x1 - x0), np.bool_)
    for rings in polygons:
        mask |= _fill_rings([ring - (x0, y0) for ring in rings], *mask.shape)
    return int(y0), int(x0), mask


def _fill_rings(rings: Sequence[Ring], height: int, width: int) -> Mask:
    """Returns the pixels to which a line from the left crosses an odd number of edges."""
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    # All edges run downwards: neighbours compute the same crossings of the edge they share.
    down = (start[:, 1] <= end[:, 1])[:, None]
    top, bottom = np.where(down, start, end), np.where(down, end, start)
    first, last = (np.ceil(edge[:, 1] - 0.5).clip(0, height).astype(int) for edge in (top, bottom))
    rows = last - first
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows) + first[edge]
    slope = (bottom[edge, 0] - top[edge, 0]) / (bottom[edge, 1] - top[edge, 1])
    x = top[edge, 0] + (row + 0.5 - top[edge, 1]) * slope
    # Rounded so that ties between neighbours are decided as ImageJ decides them.
    crossings = np.zeros((height, width + 1), np.int64)
    np.add.at(crossings, (row, np.floor(x + 0.5).clip(0, width).astype(int)), 1)
    return (crossings.cumsum(1)[:, :width] & 1).astype(np.bool_)


def _ellipse_patch(box: Box, height: int, width: int) -> Patch:
    x0, y0, x1, y1 = box
    left, top = max(int(x0), 0), max(int(y0), 0)
    x = np.arange(left, max(min(int(np.ceil(x1)), width), left)) + 0.5
    y = np.arange(top, max(min(int(np.ceil(y1)), height), top)) + 0.5
    across, up = 2 * (x - (x0 + x1) / 2) / (x1 - x0), 2 * (y - (y0 + y1) / 2) / (y1 - y0)
    return top, left, across**2 + up[:, None] ** 2 <= 1


# ---------------------------------------------------------------- painting


def check_places(path: Path, outlines: Sequence[Outline], shape: Shape) -> None:
    """Raises a `UserError` that names the outlines beside the image, or of a time that it does not have."""
    times, height, width = shape
    late = [outline.name for outline in outlines if not 0 <= outline.time < times]
    if late:
        raise UserError(
            f"{path}: {_outlines_text(late)} are of a time that the field has not; it has {times}"
        )
    outside = [
        outline.name
        for outline in outlines
        for x0, y0, x1, y1 in [outline.box]
        if not (x0 < width and y0 < height and x1 > 0 and y1 > 0)
    ]
    if outside:
        raise UserError(
            f"{path}: {_outlines_text(outside)} lie outside of the field of {height} × {width} pixels"
        )


def painted(
    path: Path, outlines: Sequence[Outline], shape: Shape, smaller_on_top: bool
) -> tuple[NDArray[np.uint32], int]:
    """Returns labels (t, y, x), numbered as the outlines are, and how many outlines have no pixel.

    Raises:
        UserError: outlines overlap without `smaller_on_top`, or some lie outside.
    """
    check_places(path, outlines, shape)
    labels = np.zeros(shape, np.uint32)
    patches = [outline.fill(*shape[1:]) for outline in outlines]
    sizes = np.array([mask.sum() for *_, mask in patches])
    pairs: list[tuple[str, str]] = []
    shared = 0
    for number in np.argsort(-sizes, kind="stable"):  # smaller ones are painted over larger ones
        y, x, mask = patches[number]
        window = labels[outlines[number].time, y : y + mask.shape[0], x : x + mask.shape[1]]
        below = window[mask]
        shared += int(np.count_nonzero(below))
        pairs += [(outlines[k - 1].name, outlines[number].name) for k in np.unique(below[below > 0])]
        window[mask] = number + 1
    if pairs and not smaller_on_top:
        examples = ", ".join(f"{below} and {above}" for below, above in pairs[:SHOWN])
        raise UserError(
            f"{path}: {len(pairs)} pairs of outlines overlap, in {shared:,} pixels ({examples}"
            f"{', …' if len(pairs) > SHOWN else ''}); overlaps=smaller_on_top gives these to the smaller one"
        )
    return labels, len(outlines) - int(np.count_nonzero(np.unique(labels)))


def _outlines_text(names: Sequence[str]) -> str:
    return f"{len(names)} outlines ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
