"""The strict total order of pixels: from the highest level to the lowest, equal levels in raster order."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_isl.objects.compiled import compiled

FEW = 64  # up to so many pixels, sorting by insertion is faster than clearing a radix sort's counters


@compiled
def sort_components(pixels: Any, ends: Any, level: Any, bits: Any) -> None:
    """Sorts each component from the highest level to the lowest; equal ones stay in raster order."""
    # One component after the other, because each is small and near: the caches of the processor hold it.
    largest, start = 0, 0
    for end in ends:
        largest, start = max(largest, end - start), end
    keys, spare = np.empty((2, largest), bits.dtype), np.empty((2, largest), np.int32)
    counts, start = np.zeros((bits.itemsize, 256), np.int64), 0
    for end in ends:
        if end - start > FEW:
            _sort_many(pixels[start:end], bits, keys, spare, counts)
        else:
            _sort_few(pixels[start:end], level)
        start = end


@compiled
def _sort_few(pixels: Any, level: Any) -> None:
    # By insertion.
    for i in range(1, pixels.size):
        pixel, j = pixels[i], i
        while j > 0 and level[pixels[j - 1]] < level[pixel]:
            pixels[j] = pixels[j - 1]
            j -= 1
        pixels[j] = pixel


@compiled
def _sort_many(pixels: Any, bits: Any, keys: Any, spare: Any, counts: Any) -> None:
    """Sorts by the bytes of the level, the least first: a radix sort, which keeps the order of equals."""
    sign = np.uint64(1) << np.uint64(8 * bits.itemsize - 1)
    counts[:] = 0
    for i in range(pixels.size):
        bit = np.uint64(bits[pixels[i]])  # floats order as their bits do, but for the sign
        key = bit if bit & sign else bit ^ (sign - np.uint64(1))
        keys[0, i], spare[0, i] = key, pixels[i]
        for byte in range(bits.itemsize):
            counts[byte, (key >> np.uint64(8 * byte)) & np.uint64(255)] += 1
    row = 0
    for byte in range(bits.itemsize):
        if counts[byte].max() < pixels.size:  # else they are all equal in this byte
            _by_byte(keys, spare, row, pixels.size, 8 * byte, counts[byte])
            row = 1 - row
    for i in range(pixels.size):
        pixels[i] = spare[row, i]


@compiled
def _by_byte(keys: Any, spare: Any, row: int, size: int, shift: int, counts: Any) -> None:
    """Does one turn of the radix sort, from one row into the other; `counts` of the values of this byte."""
    total = 0
    for value in range(256):
        counts[value], total = total, total + counts[value]
    for i in range(size):
        value = (keys[row, i] >> shift) & 255
        keys[1 - row, counts[value]] = keys[row, i]
        spare[1 - row, counts[value]] = spare[row, i]
        counts[value] += 1
