"""The loops of `blocks`: which components leave a block, and the pixels around one among few."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_isl.objects.compiled import compiled


@compiled
def part(pixels: Any, ends: Any, width: int, low: Any, high: Any) -> Any:
    """Components that end within a block, and those that reach a side where another block begins.

    Args:
        pixels, ends: the components, as `components_of` has them, in a frame `width` pixels wide.
        low, high: (y, x) in the frame; a pixel on `low`, before it, on `high` or beyond it is at such a side.

    Returns:
        pixels, ends of the former, pixels, ends of the latter, without empty ones.
    """
    inner, outer = np.empty_like(pixels), np.empty_like(pixels)
    inner_ends, outer_ends = np.empty_like(ends), np.empty_like(ends)
    m, n, i, o, start = 0, 0, 0, 0, 0
    for end in ends:
        reaches = False
        for p in pixels[start:end]:
            y, x = p // width, p % width
            reaches |= y <= low[0] or y >= high[0] or x <= low[1] or x >= high[1]
        size = end - start
        if reaches:
            outer[o : o + size] = pixels[start:end]
            o += size
            outer_ends[n] = o
            n += 1
        elif size:
            inner[i : i + size] = pixels[start:end]
            i += size
            inner_ends[m] = i
            m += 1
        start = end
    return inner[:i].copy(), inner_ends[:m].copy(), outer[:o].copy(), outer_ends[:n].copy()


@compiled
def first_and_area(labels: Any, count: int) -> Any:
    """Of labels 1 … count, flat: where each is first, and its pixels."""
    first, area = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    for p in range(labels.size):
        if labels[p] != 0:
            if area[labels[p] - 1] == 0:
                first[labels[p] - 1] = p
            area[labels[p] - 1] += 1
    return first, area


@compiled
def steps_between(index: Any, width: int) -> Any:
    """From each of some pixels to those around it, for `flooded`: (1 + pixels, 8).

    Args:
        index: raster indices in an image `width` wide, ascending; the first of them is pixel 1.
    """
    around = np.empty((index.size + 1, 8), np.int32)
    for p in range(index.size + 1):
        around[p] = -p
    north = 0
    for i in range(index.size):
        x = index[i] % width
        if i > 0 and x > 0 and index[i - 1] == index[i] - 1:
            around[i + 1, 3], around[i, 4] = -1, 1
        while index[north] < index[i] - width - (x > 0):
            north += 1
        j = north
        while index[j] <= index[i] - width + (x < width - 1):
            side = index[j] - index[i] + width
            around[i + 1, 1 + side], around[j + 1, 6 - side] = j - i, i - j
            j += 1
    return around
