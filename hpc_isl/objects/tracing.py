"""Outlines of objects along the edges of their pixels: polygons with holes that hold these pixels alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import label

from hpc_isl.objects.types import Labels

Ring = NDArray[np.int64]
"""Corners (n, 2) as x, y from the outer corner of the image's first pixel; the last joins the first."""
Polygon = list[Ring]
"""The outer ring, whose area by the shoelace formula over x and y is positive, then holes, negative."""


def outlines(labels: Labels) -> Iterator[tuple[int, list[Polygon]]]:
    """Yields each object's number, in rising order, and its polygons: one for each piece.

    Pixels of a piece touch along an edge, so that no ring crosses or touches itself; what touches at a corner
    alone is a further piece, as the specification of simple features asks.

    Args:
        labels: (y, x), 0 is background.
    """
    pieces = label(labels, background=0, connectivity=1)
    polygons: dict[int, list[Polygon]] = {}
    for number, box in enumerate(find_objects(pieces), 1):
        mask = pieces[box] == number
        corner = np.array([box[1].start, box[0].start])
        value = int(labels[box][mask][0])
        polygons.setdefault(value, []).append([ring + corner for ring in _rings(mask)])
    yield from sorted(polygons.items())


def _rings(mask: NDArray[np.bool_]) -> Polygon:
    """Returns the rings of one piece, the outer one first."""
    width = mask.shape[1] + 1  # of the grid of corners
    rings: list[Ring] = []
    edges = _edges(mask, width)
    for first in sorted(edges):
        if first in edges:
            rings += _loops(first, edges, width)
    # Twice the area with its sign, which tells holes from the outer ring (shoelace formula).
    areas = [(x * np.roll(y, -1) - np.roll(x, -1) * y).sum() for x, y in (ring.T for ring in rings)]
    return [rings[index] for index in np.argsort(np.array(areas) < 0, kind="stable")]


def _edges(mask: NDArray[np.bool_], width: int) -> set[int]:
    """Returns the edges between the piece and what is around it: 4 × corner where they begin + direction.

    Directions are right, down, left and up; the piece lies on the right hand of each edge.
    """
    padded = np.pad(mask, 1)
    beside = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    edges: set[int] = set()
    for direction, (neighbours, shift) in enumerate(zip(beside, (0, 1, width + 1, width), strict=True)):
        y, x = np.nonzero(mask & ~neighbours)
        edges.update((4 * (y * width + x + shift) + direction).tolist())
    return edges


def _loops(first: int, edges: set[int], width: int) -> Iterator[Ring]:
    """Yields the simple rings of the loop that begins with an edge, and takes its edges away."""
    steps = (1, width, -1, -width)
    path: list[int] = []  # corners
    places: dict[int, int] = {}  # of the corners in the path
    edge, previous = first, -1
    while edge in edges:
        edges.remove(edge)
        corner, direction = divmod(edge, 4)
        if direction != previous:
            if corner in places:  # the loop touches itself here: what lies between is a ring of its own
                start = places[corner]
                yield _points(path[start:], width)
                for ring_corner in path[start:]:
                    del places[ring_corner]
                del path[start:]
            places[corner] = len(path)
            path.append(corner)
        previous, next_corner = direction, corner + steps[direction]
        # Where four edges meet, the right turn stays with the same pixel.
        turns = [4 * next_corner + (direction + turn) % 4 for turn in (1, 0, 3)]
        edge = next((candidate for candidate in turns if candidate in edges), first)
    yield _points(path, width)


def _points(corners: list[int], width: int) -> Ring:
    y, x = np.divmod(np.array(corners, np.int64), width)
    return np.stack([x, y], axis=1)
