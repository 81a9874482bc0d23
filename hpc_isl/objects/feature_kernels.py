"""The loops of the features: each visits all pixels and adds to the row of the object they belong to.

`labels` is (y, x) uint32, `rows` the row of each label in the table, by label; background is label 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_isl.objects.compiled import compiled

FAR = 2**40  # no pixel in this row
# What a pixel of an outline adds to the perimeter, by 1 + 2 × pixels of the outline beside it + 10 × those
# askew of it: the estimator of Benkrid, Crookes and Benkrid (2000) that scikit-image has.
SHARES = np.zeros(50)
SHARES[[5, 7, 15, 17, 25, 27]] = 1
SHARES[[21, 33]] = np.sqrt(2)
SHARES[[13, 23]] = (1 + np.sqrt(2)) / 2


@compiled
def present(labels: Any, most: int) -> Any:
    """Returns which labels occur, by label up to `most`."""
    occurs = np.zeros(most + 1, np.bool_)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            occurs[labels[y, x]] = True
    return occurs


@compiled
def measure(labels: Any, rows: Any, count: int) -> Any:
    """Returns boxes y0, x0, y1, x1 (4, count), and sums of 1, y, x, y², x², x·y in them (6, count)."""
    box, sums = np.zeros((4, count), np.int64), np.zeros((6, count), np.int64)
    box[:2] = max(labels.shape)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 0:
                row = rows[labels[y, x]]
                box[0, row], box[2, row] = min(box[0, row], y), y + 1
                box[1, row], box[3, row] = min(box[1, row], x), max(box[3, row], x + 1)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 0:
                row = rows[labels[y, x]]
                down, right = y - box[0, row], x - box[1, row]
                sums[0, row] += 1
                sums[1, row] += down
                sums[2, row] += right
                sums[3, row] += down * down
                sums[4, row] += right * right
                sums[5, row] += down * right
    return box, sums


# ---------------------------------------------------------------- outlines


@compiled
def perimeters(labels: Any, rows: Any, count: int) -> Any:
    """Returns the length of each object's outline: of pixels beside which lies another label, or none."""
    outline, total = _outline(labels), np.zeros(count)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if outline[y, x]:
                kind = 1
                for v in range(max(y - 1, 0), min(y + 2, height)):
                    for u in range(max(x - 1, 0), min(x + 2, width)):
                        if outline[v, u] and labels[v, u] == labels[y, x] and (v != y or u != x):
                            kind += 2 if v == y or u == x else 10
                total[rows[labels[y, x]]] += SHARES[kind]
    return total


@compiled
def _outline(labels: Any) -> Any:
    height, width = labels.shape
    outline = np.zeros((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label != 0:
                outline[y, x] = (
                    y == 0 or x == 0 or y == height - 1 or x == width - 1
                    or labels[y - 1, x] != label or labels[y + 1, x] != label
                    or labels[y, x - 1] != label or labels[y, x + 1] != label
                )  # fmt: skip
    return outline


# ---------------------------------------------------------------- convex hulls


@compiled
def hulls(labels: Any, rows: Any, box: Any) -> Any:
    """Returns how many pixels have their centre in the convex hull of each object, or on its edge.

    The hull is that of the middles of the pixels' edges, as in scikit-image.
    """
    # Lengths are in half pixels, so that all are whole numbers and nothing is rounded.
    ends = np.cumsum(box[2] - box[0])
    left, right = _sides(labels, rows, box, ends)
    areas = np.zeros(len(ends), np.int64)
    for row in range(len(ends)):
        start = ends[row] - (box[2, row] - box[0, row])
        # The right side is mirrored, so it is a left side too, and minus its first pixel is the last.
        first, last = _firsts(left[start : ends[row]]), -_firsts(right[start : ends[row]])
        areas[row] = np.sum(last - first + 1)
    return areas


@compiled
def _sides(labels: Any, rows: Any, box: Any, ends: Any) -> Any:
    """Returns centres of the first pixel of each object in its rows, and of the last, mirrored: x -> −x."""
    total = ends[-1] if len(ends) else 0
    left, right = np.full(total, FAR), np.full(total, FAR)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 0:
                row = rows[labels[y, x]]
                place = ends[row] - box[2, row] + y
                left[place], right[place] = min(left[place], 2 * x), min(right[place], -2 * x)
    return left, right


@compiled
def _firsts(side: Any) -> Any:
    """Returns the first pixel of each row on or right of the hull's left side."""
    chain = np.empty((2, 2 * side.size + 1), np.int64)
    _chain(side, chain)
    firsts, k = np.empty(side.size, np.int64), 0
    for row in range(side.size):
        while chain[0, k + 1] < 2 * row:
            k += 1
        down, right = chain[0, k + 1] - chain[0, k], chain[1, k + 1] - chain[1, k]
        reached = chain[1, k] * down + right * (2 * row - chain[0, k])
        firsts[row] = -(-reached // (2 * down))
    return firsts


@compiled
def _chain(side: Any, chain: Any) -> None:
    """Writes the corners (y, x) of the hull's left side from the top down: Andrew's monotone chain."""
    count = 0
    for y in range(-1, 2 * side.size):
        # At odd y lie the middles of lower and upper edges, at even y those of left edges.
        x = (
            side[y // 2] - 1
            if y % 2 == 0
            else min(side[max(y // 2, 0)], side[min(y // 2 + 1, side.size - 1)])
        )
        if x >= FAR - 1:
            continue
        while count > 1 and (chain[1, count - 1] - chain[1, count - 2]) * (y - chain[0, count - 2]) >= (
            x - chain[1, count - 2]
        ) * (chain[0, count - 1] - chain[0, count - 2]):
            count -= 1
        chain[0, count], chain[1, count] = y, x
        count += 1


# ---------------------------------------------------------------- channels


@compiled
def totals(labels: Any, rows: Any, count: int, pixels: Any) -> Any:
    """Returns sum, least, greatest, and squared distances from the mean, of each object's pixels."""
    total, area, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 0:
                row, value = rows[labels[y, x]], np.float64(pixels[y, x])
                area[row] += 1
                total[row] += value
                low[row], high[row] = min(low[row], value), max(high[row], value)
    means = total / area
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 0:
                row = rows[labels[y, x]]
                squares[row] += (pixels[y, x] - means[row]) ** 2
    return total, low, high, squares


@compiled
def peaks_and_cuts(labels: Any, rows: Any, count: int, level: Any) -> Any:
    """Returns the highest level of each object, and the highest of its pixels that touch another object.

    Pixels touch in eight directions; −∞: it touches none.
    """
    peak, cut = np.full(count, -np.inf), np.full(count, -np.inf)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            own = labels[y, x]
            if own == 0:
                continue
            row, value = rows[own], np.float64(level[y, x])
            peak[row] = max(peak[row], value)
            if value <= cut[row]:
                continue
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if labels[v, u] != 0 and labels[v, u] != own:
                        cut[row] = value
    return peak, cut
