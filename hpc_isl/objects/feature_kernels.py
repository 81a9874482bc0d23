"""The loops of the features: each visits the pixels of all objects and adds to their rows of the table.

`labels` is (y, x) uint32, background is label 0. `runs` is (run, 4) int32, in raster order: y, first x and
end of neighbours of one label, and the row of their object in the table. Most figures follow from runs
alone, without a look at a pixel.
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
def runs_of(labels: Any) -> Any:
    """Returns the runs with their label in place of the row."""
    runs, n = np.empty((1024, 4), np.uint32), 0
    for y in range(labels.shape[0]):
        x = 0
        while x < labels.shape[1]:
            label, start = labels[y, x], x
            x += 1
            while x < labels.shape[1] and labels[y, x] == label:
                x += 1
            if label == 0:
                continue
            if n == len(runs):
                longer = np.empty((2 * n, 4), np.uint32)
                longer[:n] = runs
                runs = longer
            runs[n, 0], runs[n, 1], runs[n, 2], runs[n, 3] = y, start, x, label
            n += 1
    return runs[:n]


@compiled
def measure(runs: Any, count: int, shape: Any) -> Any:
    """Returns boxes y0, x0, y1, x1 (4, count), and sums of 1, y, x, y², x², x·y in them (6, count)."""
    box, sums = np.zeros((4, count), np.int64), np.zeros((6, count), np.int64)
    box[:2] = max(shape)
    for y, start, end, row in runs:
        box[0, row], box[2, row] = min(box[0, row], y), y + 1
        box[1, row], box[3, row] = min(box[1, row], start), max(box[3, row], end)
    for y, start, end, row in runs:
        down, low, high = np.int64(y - box[0, row]), start - box[1, row], end - box[1, row]
        size = high - low
        right = (high * (high - 1) - low * (low - 1)) // 2  # low + … + high − 1
        sums[0, row] += size
        sums[1, row] += size * down
        sums[2, row] += right
        sums[3, row] += size * down * down
        # The squares of 0 … n − 1 are (n − 1) n (2 n − 1) / 6, which fits for objects a million pixels wide.
        sums[4, row] += ((high - 1) * high * (2 * high - 1) - (low - 1) * low * (2 * low - 1)) // 6
        sums[5, row] += down * right
    return box, sums


# ---------------------------------------------------------------- outlines


@compiled
def perimeters(labels: Any, runs: Any, count: int) -> Any:
    """Returns the length of each object's outline: of pixels beside which lies another label, or none."""
    outline, total = _outline(labels, runs), np.zeros(count)
    for y, start, end, row in runs:
        label = labels[y, start]
        # The outline's frame of 0 makes pixel (y, x) lie at (y + 1, x + 1).
        north, middle, south = outline[y], outline[y + 1], outline[y + 2]
        for x in range(np.uintp(start), np.uintp(end)):
            if middle[x + 1] == label:
                beside = np.int64(middle[x] == label) + (middle[x + 2] == label)
                beside += np.int64(north[x + 1] == label) + (south[x + 1] == label)
                askew = np.int64(north[x] == label) + (north[x + 2] == label)
                askew += np.int64(south[x] == label) + (south[x + 2] == label)
                total[row] += SHARES[1 + 2 * beside + 10 * askew]
    return total


@compiled
def _outline(labels: Any, runs: Any) -> Any:
    """Returns the labels of pixels on outlines, 0 elsewhere, in a frame of 0."""
    height, width = labels.shape
    outline = np.zeros((height + 2, width + 2), np.uint32)
    for y, start, end, _ in runs:
        label = labels[y, start]
        if y == 0 or y == height - 1:
            outline[y + 1, start + 1 : end + 1] = label
            continue
        for x in range(np.uintp(start), np.uintp(end)):
            if labels[y - 1, x] != label or labels[y + 1, x] != label:
                outline[y + 1, x + 1] = label
        outline[y + 1, start + 1] = outline[y + 1, end] = label
    return outline


# ---------------------------------------------------------------- convex hulls


@compiled
def hulls(runs: Any, box: Any) -> Any:
    """Returns how many pixels have their centre in the convex hull of each object, or on its edge.

    The hull is that of the middles of the pixels' edges, as in scikit-image.
    """
    # Lengths are in half pixels, so that all are whole numbers and nothing is rounded.
    ends = np.cumsum(box[2] - box[0])
    left, right = _sides(runs, box, ends)
    areas = np.zeros(len(ends), np.int64)
    for row in range(len(ends)):
        start = ends[row] - (box[2, row] - box[0, row])
        # The right side is mirrored, so it is a left side too, and minus its first pixel is the last.
        first, last = _firsts(left[start : ends[row]]), -_firsts(right[start : ends[row]])
        areas[row] = np.sum(last - first + 1)
    return areas


@compiled
def _sides(runs: Any, box: Any, ends: Any) -> Any:
    """Returns centres of the first pixel of each object in its rows, and of the last, mirrored: x -> −x."""
    total = ends[-1] if len(ends) else 0
    left, right = np.full(total, FAR), np.full(total, FAR)
    for y, start, end, row in runs:
        place = ends[row] - box[2, row] + y
        left[place], right[place] = min(left[place], 2 * start), min(right[place], -2 * (end - 1))
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
def totals(runs: Any, count: int, pixels: Any) -> Any:
    """Returns sum, least, greatest, and squared distances from the mean, of each object's pixels."""
    total, area, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    for y, start, end, row in runs:
        added, least, most = total[row], low[row], high[row]
        for x in range(start, end):
            value = np.float64(pixels[y, x])
            added += value
            least, most = min(least, value), max(most, value)
        total[row], low[row], high[row] = added, least, most
        area[row] += end - start
    means = total / area
    for y, start, end, row in runs:
        added, mean = squares[row], means[row]
        for x in range(start, end):
            added += (pixels[y, x] - mean) ** 2
        squares[row] = added
    return total, low, high, squares


@compiled
def peaks_and_cuts(labels: Any, runs: Any, count: int, level: Any) -> Any:
    """Returns the highest level of each object, and the highest of its pixels that touch another object.

    Pixels touch in eight directions; −∞: it touches none.
    """
    peak, cut = np.full(count, -np.inf), np.full(count, -np.inf)
    height, width = labels.shape
    for y, start, end, row in runs:
        label = labels[y, start]
        for x in range(start, end):
            value = np.float64(level[y, x])
            peak[row] = max(peak[row], value)
            if value <= cut[row]:
                continue
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if labels[v, u] != 0 and labels[v, u] != label:
                        cut[row] = value
    return peak, cut
