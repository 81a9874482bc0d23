"""The loops of the flood: pixels are visited from the highest down, and each joins the basin it touches.

A union-find in the strict order is h-maxima and watershed at once. Images are flat here, in a frame of −∞ one
pixel wide: the pixels around p are p ± 1, p ± width and p ± width ± 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_isl.objects.compiled import compiled

FEW = 64  # pixels that are sorted sooner than the counters of a radix sort are cleared


class Basins(NamedTuple):
    """What is known of each basin, by number from 1; of joined basins their root says it.

    parent: union-find of basins that met before either was an object.
    low: the highest peak − h. A basin that reaches below it is an object.
    owner: number of the basin whose object this one belongs to; 0: not known yet.
    entry: the pixel through which another object's flood came in; 0: it holds a seed of its own.
    """

    parent: NDArray[np.int32]
    low: NDArray[Any]
    owner: NDArray[np.int32]
    entry: NDArray[np.int32]


def objects_of(level: NDArray[Any], h: float) -> NDArray[np.uint32]:
    """Labels of the image that lies within the frame of `level`."""
    names, parent = names_for(level.shape)
    pixels, ends = components_of(level, names, parent)
    labels = flood_basins(pixels, ends, level.ravel(), names, parent, steps_around(level.shape), h)
    return np.ascontiguousarray(labels.reshape(level.shape)[1:-1, 1:-1])


def names_for(shape: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Room for the name of each pixel of a framed image, and for the parent of each name."""
    # Components newly named do not touch each other, nor do peaks: at most one pixel in four.
    most = (shape[0] - 1) // 2 * ((shape[1] - 1) // 2) + 1
    return np.zeros(shape[0] * shape[1], np.int32), np.zeros(most, np.int32)


def steps_around(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """From each pixel of a framed image to the eight around it: (pixels, 8), one row in memory."""
    width = shape[1]
    steps = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    return np.broadcast_to(np.array(steps, np.int32), (shape[0] * width, 8))


def components_of(
    level: NDArray[Any], names: Any, parent: Any
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Pixels of a framed image component by component, each in raster order, and where each ends.

    `names` are 0 before and after; some components are empty.
    """
    flat = level.ravel()
    pixels, ends = _collect(names, parent[: 1 + _name(flat, names, parent, level.shape[1])])
    return pixels, ends


def flood_basins(
    pixels: Any, ends: Any, level: Any, names: Any, parent: Any, around: Any, h: float
) -> NDArray[np.uint32]:
    """Labels of all pixels, flat, by the flood of those given; 0 elsewhere.

    Args:
        pixels, ends: components, as `components_of` has them; this sorts them.
        level: of each pixel, flat; pixel 0 is none.
        names: 0 for each pixel. parent: room for as many basins as there are peaks, and one.
        around: (pixels, 8) steps from each pixel to those around it; a step to pixel 0 leads nowhere.
    """
    _sort(pixels, ends, level, level.view(f"u{level.itemsize}"))
    basins = Basins(parent, np.zeros(parent.size, level.dtype), *np.zeros((2, parent.size), np.int32))
    _visit(pixels, level, names, basins, around, level.dtype.type(h))
    labels: NDArray[np.uint32] = _number(names, basins)
    return labels


# ---------------------------------------------------------------- components of the mask


@compiled
def _root(parent: Any, name: int) -> int:
    while parent[name] != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name


@compiled
def _join(parent: Any, a: int, b: int) -> int:
    """The smaller name speaks for both."""
    a, b = _root(parent, a), _root(parent, b)
    root = min(a, b)
    parent[max(a, b)] = root
    return root


@compiled
def _name(level: Any, names: Any, parent: Any, width: int) -> int:
    """Names the components of the mask, some by several names that `parent` joins; how many names."""
    count = 0
    for p in range(width + 1, level.size - width - 1):
        if level[p] == -np.inf:
            continue
        names[p] = names[p - width]
        if names[p] == 0:  # a pixel to the north would touch the three others, which are joined to it
            west, east = max(names[p - 1], names[p - width - 1]), names[p - width + 1]
            names[p] = max(west, east)
            if west > 0 and east > 0:
                names[p] = _join(parent, west, east)
        if names[p] == 0:
            count += 1
            parent[count] = count
            names[p] = count
    return count


@compiled
def _collect(names: Any, parent: Any) -> Any:
    """Pixels component by component, each in raster order, and where each name ends; clears the names."""
    sizes, ends, total = np.zeros(parent.size, np.int64), np.zeros(parent.size, np.int64), 0
    for name in range(1, parent.size):
        parent[name] = parent[parent[name]]
    for p in range(names.size):
        names[p] = parent[names[p]]
        sizes[names[p]] += 1
    for name in range(1, parent.size):
        ends[name] = total
        total += sizes[name]
    pixels = np.empty(total, np.int32)
    for p in range(names.size):
        if names[p] > 0:
            pixels[ends[names[p]]] = p
            ends[names[p]] += 1
            names[p] = 0
    return pixels, ends


# ---------------------------------------------------------------- the strict order


@compiled
def _sort(pixels: Any, ends: Any, level: Any, bits: Any) -> None:
    """Within each component from the highest level to the lowest; equal ones stay in raster order.

    One component after the other, because each is small and near: the caches of the processor hold it.
    """
    largest, start = 0, 0
    for end in ends:
        largest, start = max(largest, end - start), end
    keys, spare = np.empty((2, largest), bits.dtype), np.empty((2, largest), np.int32)
    counts, start = np.zeros(256, np.int64), 0
    for end in ends:
        if end - start > FEW:
            _sort_many(pixels[start:end], bits, keys, spare, counts)
        else:
            _sort_few(pixels[start:end], level)
        start = end


@compiled
def _sort_few(pixels: Any, level: Any) -> None:
    """By insertion."""
    for i in range(1, pixels.size):
        pixel, j = pixels[i], i
        while j > 0 and level[pixels[j - 1]] < level[pixel]:
            pixels[j] = pixels[j - 1]
            j -= 1
        pixels[j] = pixel


@compiled
def _sort_many(pixels: Any, bits: Any, keys: Any, spare: Any, counts: Any) -> None:
    """By the bytes of the level, the least first: a radix sort, which keeps the order of equals."""
    sign = np.uint64(1) << np.uint64(8 * bits.itemsize - 1)
    for i in range(pixels.size):
        bit = np.uint64(bits[pixels[i]])  # floats order as their bits do, but for the sign
        keys[0, i] = bit if bit & sign else bit ^ (sign - np.uint64(1))
        spare[0, i] = pixels[i]
    row = 0
    for byte in range(bits.itemsize):
        row = _by_byte(keys, spare, row, pixels.size, 8 * byte, counts)
    for i in range(pixels.size):
        pixels[i] = spare[row, i]


@compiled
def _by_byte(keys: Any, spare: Any, row: int, size: int, shift: int, counts: Any) -> int:
    """One turn of the radix sort, from one row into the other; which row has the result."""
    for value in range(256):
        counts[value] = 0
    for i in range(size):
        counts[(keys[row, i] >> shift) & 255] += 1
    total = 0
    for value in range(256):
        counts[value], total = total, total + counts[value]
    for i in range(size):
        value = (keys[row, i] >> shift) & 255
        keys[1 - row, counts[value]] = keys[row, i]
        spare[1 - row, counts[value]] = spare[row, i]
        counts[value] += 1
    return 1 - row


# ---------------------------------------------------------------- the flood


@compiled
def _visit(pixels: Any, level: Any, names: Any, basins: Basins, around: Any, h: Any) -> None:
    """Each pixel joins the basin of the pixels around it that were visited, or is the peak of a new one."""
    count = 0
    for p in pixels:
        basin = 0
        for step in around[p]:
            name = names[p + step]
            if name == 0 or name == basin:
                continue
            name = _root(basins.parent, name)
            if basin != 0 and name != basin:
                basin = _meet(p, level, names, basins, around[p])
                break
            basin = name
        if basin == 0:
            count += 1
            basin = count
            basins.parent[basin] = basin
            basins.low[basin] = level[p] - h
        names[p] = basin


@compiled
def _meet(p: int, level: Any, names: Any, basins: Basins, around: Any) -> int:
    """Where basins meet at a pixel: the basin that it joins.

    If none of them is an object yet, they are one from here on. Else the pixel goes to the object that is
    first, and the basins that are none are flooded from here.
    """
    basin = _first(p, level, names, basins, around)
    owner = basins.owner[basin]
    for step in around:
        if names[p + step] == 0:
            continue
        name = _root(basins.parent, names[p + step])
        if owner == 0:
            basin = _unite(basins, name, basin if basin else name)
        elif basins.owner[name] == 0:
            basins.owner[name], basins.entry[name] = owner, p
    return basin


@compiled
def _first(p: int, level: Any, names: Any, basins: Basins, around: Any) -> int:
    """Of the objects around a pixel the basin whose flood is here first; 0: none is an object yet.

    A pixel is flooded at its own turn, or, in a basin that was no object, with the pixel of its entry.
    """
    earliest, basin = 0, 0
    for step in around:
        if names[p + step] == 0:
            continue
        name = _root(basins.parent, names[p + step])
        if basins.owner[name] == 0 and basins.low[name] > level[p]:
            basins.owner[name] = name
        if basins.owner[name] != 0:
            turn = _later(level, p + step, basins.entry[name])
            if earliest == 0 or _later(level, earliest, turn) == earliest:
                earliest, basin = turn, name
    return basin


@compiled
def _later(level: Any, a: int, b: int) -> int:
    """Of two pixels the later in the strict order; 0, in the frame, is no pixel."""
    if b == 0 or level[a] < level[b] or (level[a] == level[b] and a > b):
        return a
    return b


@compiled
def _unite(basins: Basins, a: int, b: int) -> int:
    a, b = _root(basins.parent, a), _root(basins.parent, b)
    low = max(basins.low[a], basins.low[b])
    root = _join(basins.parent, a, b)
    basins.low[root] = low
    return root


@compiled
def _number(names: Any, basins: Basins) -> Any:
    """Labels by the first pixel of each object; a basin that met no other is one, however low its peak."""
    labels, numbers = np.zeros(names.size, np.uint32), np.zeros(basins.parent.size, np.uint32)
    count = 0
    for p in range(names.size):
        if names[p] != 0:
            name = _root(basins.parent, names[p])
            owner = basins.owner[name] if basins.owner[name] != 0 else name
            if numbers[owner] == 0:
                count += 1
                numbers[owner] = count
            labels[p] = numbers[owner]
    return labels
