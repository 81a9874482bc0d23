"""Maps that rise towards one centre of each object, along paths inside it: one peak, however long it is.

The Euclidean distance to the edge has several peaks in a long or bent object, and each may become an object.
The geodesic distance to a centre has none but that one. Lengths are quasi-Euclidean: 5 for a step along an
axis and 7 for a diagonal one (Borgefors 1986), in whole numbers, so that equal paths are equal exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.measure import label

from hpc_isl.objects.compiled import compiled
from hpc_isl.objects.distance import PEAK, Scale, names_of
from hpc_isl.objects.types import AnyLabels, Distance

AXIS, DIAGONAL = 5, 7  # lengths of steps; AXIS is one pixel
FAR = 2**30


def geodesic_map(labels: AnyLabels, scale: Scale = "object") -> Distance:
    """Returns how much nearer each pixel (y, x) is to its object's centre than the farthest one; 0 outside.

    The centre is the pixel whose largest distance to another one inside the object is smallest, the first
    such pixel in raster order. Pieces of one label that do not touch have a centre each.

    Args:
        labels: (y, x), 0 background, k the k-th object.
        scale: "pixels": lengths in pixels, 1 at the farthest pixel. "object": the centre is 255.
    """
    pieces = label(names_of(labels), connectivity=2)
    pixels = np.flatnonzero(pieces)
    # Pixels of one piece follow each other, in raster order: a stable sort keeps that order.
    order = pixels[np.argsort(pieces.ravel()[pixels], kind="stable")]
    starts = np.append(0, np.cumsum(np.bincount(pieces.ravel())[1:])).astype(np.int64)
    height, width = pieces.shape
    heights = np.zeros((height + 2) * (width + 2), np.float32)
    framed = np.pad(pieces, 1).ravel().astype(np.int64)
    y, x = np.divmod(order, max(width, 1))
    _fill(framed, (y + 1) * (width + 2) + x + 1, starts, width + 2, heights)
    if scale == "pixels":
        return np.ascontiguousarray(heights.reshape(height + 2, width + 2)[1:-1, 1:-1])
    top = np.ones(len(starts), np.float64)
    np.maximum.at(top, framed, heights)
    scaled = (heights * (PEAK / top[framed])).astype(np.float32)
    return np.ascontiguousarray(scaled.reshape(height + 2, width + 2)[1:-1, 1:-1])


@compiled
def _fill(framed: Any, order: Any, starts: Any, row: int, heights: Any) -> None:
    """Writes each pixel's height in pixels: of its piece's largest distance, what is left, plus one."""
    place = np.full(framed.size, -1, np.int64)
    for piece in range(starts.size - 1):
        pixels = order[starts[piece] : starts[piece + 1]]
        for i in range(pixels.size):
            place[pixels[i]] = i
        # Neighbours before and after in raster order: two axis steps and two diagonal ones each.
        neighbours = np.full((pixels.size, 8), -1, np.int64)
        steps = (-1, -row, -row - 1, -row + 1, 1, row, row - 1, row + 1)
        for i in range(pixels.size):
            for k in range(8):
                if framed[pixels[i] + steps[k]] == piece + 1:
                    neighbours[i, k] = place[pixels[i] + steps[k]]
        distance, largest = _centre(neighbours, pixels, row)
        for i in range(pixels.size):
            heights[pixels[i]] = (largest + AXIS - distance[i]) / AXIS


@compiled
def _distances(neighbours: Any, start: Any, distance: Any) -> Any:
    """Writes all distances from one pixel, by scans until nothing changes; returns the largest."""
    distance[:] = FAR
    distance[start] = 0
    changed = True
    while changed:
        changed = False
        for backwards in range(2):
            for j in range(distance.size):
                i = distance.size - 1 - j if backwards else j
                least = distance[i]
                for k in range(4 * backwards, 4 * backwards + 4):
                    neighbour = neighbours[i, k]
                    if neighbour >= 0:
                        length = distance[neighbour] + (AXIS if k % 4 < 2 else DIAGONAL)
                        least = min(least, length)
                if least < distance[i]:
                    distance[i] = least
                    changed = True
    return distance.max()


@compiled
def _centre(neighbours: Any, pixels: Any, row: int) -> Any:
    """Returns all distances from the centre, and the largest of them.

    Exact without trying every pixel: a pixel's largest distance is at least its distance to any pixel tried,
    so pixels are tried by that lower bound until none can be better (Takes & Kosters 2013).
    """
    count = pixels.size
    lower, distance = np.zeros(count, np.int64), np.empty(count, np.int64)
    best, best_largest, tried = -1, FAR, np.zeros(count, np.bool_)
    best_distance = np.empty(count, np.int64)
    y, x = (pixels // row).mean(), (pixels % row).mean()
    candidate = int(np.argmin((pixels // row - y) ** 2 + (pixels % row - x) ** 2))
    while True:
        farthest = candidate
        for end in range(2):  # an object's far ends bound all other pixels best
            if end == 1:
                candidate = farthest
            if tried[candidate]:
                continue
            tried[candidate] = True
            largest = _distances(neighbours, candidate, distance)
            lower = np.maximum(lower, np.maximum(distance, largest - distance))
            farthest = int(np.argmax(distance))
            if largest < best_largest or (largest == best_largest and candidate < best):
                best, best_largest = candidate, largest
                best_distance[:] = distance
        candidate, least = -1, best_largest
        for i in range(count):
            if not tried[i] and (lower[i] < least or (lower[i] == least and candidate < 0 and i < best)):
                candidate, least = i, lower[i]
        if candidate < 0:
            return best_distance, best_largest
