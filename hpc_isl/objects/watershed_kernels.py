"""The loops of the watershed: pixels are visited from the highest down, and each joins the basin it touches.

A union-find in the strict order is h-maxima and watershed at once. Images are flat here, in a frame of −∞ one
pixel wide: the pixels around p are p ± 1, p ± width and p ± width ± 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_isl.objects.compiled import compiled
from hpc_isl.objects.level_order import sort_components


class Basins(NamedTuple):
    """State of each basin, by number from 1; of joined basins that of their root counts.

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
    """Returns labels of the image that lies within the frame of `level`."""
    names, parent = names_for(level.shape)
    pixels, ends = components_of(level, names, parent)
    labels = flood_basins(pixels, ends, level.ravel(), names, parent, steps_around(level.shape), h)
    return np.ascontiguousarray(labels.reshape(level.shape)[1:-1, 1:-1])


@compiled
def framed(distance: Any, mask: Any) -> Any:
    """Returns the levels of a map where the mask is true, −∞ elsewhere and in a frame around it.

    Second comes the number of pixels of the map, in the mask or not, that are not finite.
    """
    height, width = distance.shape
    level = np.full((height + 2, width + 2), -np.inf, distance.dtype)
    non_finite = 0
    for y in range(height):
        for x in range(width):
            non_finite += not np.isfinite(distance[y, x])
            if mask[y, x]:
                level[y + 1, x + 1] = distance[y, x] + distance.dtype.type(0)  # −0 becomes 0, which it equals
    return level, non_finite


def names_for(shape: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns arrays for the name of each pixel of a framed image, and for the parent of each name."""
    # Components newly named do not touch each other, nor do peaks: at most one pixel in four.
    most = (shape[0] - 1) // 2 * ((shape[1] - 1) // 2) + 1
    return np.zeros(shape[0] * shape[1], np.int32), np.zeros(most, np.int32)


def steps_around(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Returns steps from each pixel of a framed image to the eight around it, (pixels, 8)."""
    width = shape[1]
    steps = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    return np.broadcast_to(np.array(steps, np.int32), (shape[0] * width, 8))  # one row in memory


def components_of(
    level: NDArray[Any], names: Any, parent: Any
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Returns the pixels of a framed image component by component, in raster order, and where each ends.

    `names` are 0 before and after; some components are empty.
    """
    flat = level.ravel()
    pixels, ends = _collect(names, parent, _name_components(flat, names, parent, level.shape[1]))
    return pixels, ends


def flood_basins(
    pixels: Any, ends: Any, level: Any, names: Any, parent: Any, around: Any, h: float
) -> NDArray[np.uint32]:
    """Returns labels of all pixels, flat, by flooding those given; 0 elsewhere.

    Args:
        pixels, ends: components, as `components_of` has them; this sorts them.
        level: of each pixel, flat; pixel 0 is none.
        names: 0 for each pixel. parent: as long as there may be peaks, and one more.
        around: (pixels, 8) steps from each pixel to those around it; a step to pixel 0 leads nowhere.
    """
    sort_components(pixels, ends, level, level.view(f"u{level.itemsize}"))
    basins = Basins(parent, np.zeros(parent.size, level.dtype), *np.zeros((2, parent.size), np.int32))
    _visit(pixels, level, names, basins, around, level.dtype.type(h))
    labels: NDArray[np.uint32] = _number(names, basins)
    return labels


# ---------------------------------------------------------------- components of the mask


@compiled
def _root(parent: Any, name: Any) -> Any:
    while parent[name] != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name


@compiled
def _join(parent: Any, a: int, b: int) -> int:
    a, b = _root(parent, a), _root(parent, b)
    root = min(a, b)  # the smaller name stands for both
    parent[max(a, b)] = root
    return root


@compiled
def _name_components(level: Any, names: Any, parent: Any, width: int) -> Any:
    """Names the components of the mask, some by several names that `parent` joins.

    Returns how many names there are, and the pixels of each.
    """
    count, sizes = 0, np.zeros(parent.size, np.int32)
    for p in range(width + 1, level.size - width - 1):
        if level[p] == -np.inf:
            continue
        name = names[p - width]
        if name == 0:  # a pixel to the north would touch the three others, which are joined to it
            west, east = max(names[p - 1], names[p - width - 1]), names[p - width + 1]
            name = max(west, east)
            if west > 0 and east > 0 and west != east:
                name = _join(parent, west, east)
        if name == 0:
            count += 1
            parent[count] = count
            name = count
        names[p] = name
        sizes[name] += 1
    return sizes[: count + 1]


@compiled
def _collect(names: Any, parent: Any, sizes: Any) -> Any:
    """Returns pixels component by component, in raster order, and where each name ends; clears the names.

    Args:
        sizes: pixels of each name.
    """
    ends, total = np.zeros(sizes.size, np.int64), 0
    for name in range(1, sizes.size):
        parent[name] = parent[parent[name]]
        if parent[name] != name:
            sizes[parent[name]] += sizes[name]
            sizes[name] = 0
    for name in range(1, sizes.size):
        ends[name] = total
        total += sizes[name]
    pixels = np.empty(total, np.int32)
    for p in range(names.size):
        if names[p] > 0:
            name = parent[names[p]]
            pixels[ends[name]] = p
            ends[name] += 1
            names[p] = 0
    return pixels, ends


# ---------------------------------------------------------------- the flood


@compiled
def _visit(pixels: Any, level: Any, names: Any, basins: Basins, around: Any, h: Any) -> None:
    """Lets each pixel join the basin of the visited pixels around it, or be the peak of a new one."""
    count = 0
    for p in pixels:
        # Nearly all pixels touch one basin: greatest and least name tell that without a branch at each of
        # the eight, most of which a processor would predict wrongly. 0 − 1 is the greatest of 32 bits.
        most, least = np.uint32(0), np.uint32(0xFFFFFFFF)
        for step in around[p]:
            name = np.uint32(names[np.uintp(p + step)])  # unsigned: none is counted from the end
            most, least = max(most, name), min(least, np.uint32(name - np.uint32(1)))
        basin = 0 if most == 0 else _root(basins.parent, most)
        if most != 0 and most != least + np.uint32(1):
            for step in around[p]:
                name = names[p + step]
                if name != 0 and _root(basins.parent, name) != basin:
                    basin = _meet(p, level, names, basins, around[p])
                    break
        if basin == 0:
            count += 1
            basin = count
            basins.parent[basin] = basin
            basins.low[basin] = level[p] - h
        names[p] = basin


@compiled
def _meet(p: int, level: Any, names: Any, basins: Basins, around: Any) -> int:
    """Returns the basin that a pixel joins at which several basins meet.

    If none of them is an object yet, they are one from here on. Else the pixel goes to the object that is
    first, and the basins that are none are flooded from here.
    """
    basin = _first_basin(p, level, names, basins, around)
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
def _first_basin(p: int, level: Any, names: Any, basins: Basins, around: Any) -> int:
    """Returns the basin of the object around a pixel whose flood is here first; 0: none is an object yet."""
    # A pixel is flooded at its own turn, or, in a basin that was no object, with the pixel of its entry.
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
    """Returns the later of two pixels in the strict order; 0, in the frame, is no pixel."""
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
    """Returns labels by the first pixel of each object; a basin that met no other is one, however low."""
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


@compiled
def renumbered(labels: Any, numbers: Any) -> Any:
    """Returns the labels (y, x) by their new numbers, as uint32."""
    result = np.empty(labels.shape, np.uint32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            result[y, x] = numbers[labels[y, x]]
    return result


# ---------------------------------------------------------------- blocks of a larger image


@compiled
def part(pixels: Any, ends: Any, width: int, low: Any, high: Any) -> Any:
    """Separates components that end within a block from those that reach a side where another block begins.

    Args:
        pixels, ends: the components, as `components_of` has them, in a frame `width` pixels wide.
        low, high: (y, x) in the frame; a pixel on `low`, before it, on `high` or beyond it is at such a side.

    Returns:
        pixels, ends of the former, pixels, ends of the latter, without empty ones.
    """
    inner, outer = np.empty_like(pixels), np.empty_like(pixels)
    inner_ends, outer_ends = np.empty_like(ends), np.empty_like(ends)
    inner_count, outer_count, inner_size, outer_size, start = 0, 0, 0, 0, 0
    for end in ends:
        reaches = False
        for p in pixels[start:end]:
            y, x = p // width, p % width
            reaches |= y <= low[0] or y >= high[0] or x <= low[1] or x >= high[1]
        size = end - start
        if reaches:
            outer[outer_size : outer_size + size] = pixels[start:end]
            outer_size += size
            outer_ends[outer_count] = outer_size
            outer_count += 1
        elif size:
            inner[inner_size : inner_size + size] = pixels[start:end]
            inner_size += size
            inner_ends[inner_count] = inner_size
            inner_count += 1
        start = end
    return (
        inner[:inner_size].copy(),
        inner_ends[:inner_count].copy(),
        outer[:outer_size].copy(),
        outer_ends[:outer_count].copy(),
    )


@compiled
def first_and_area(labels: Any, count: int) -> Any:
    """Returns of labels 1 … count, flat, where each is first, and its area in pixels."""
    first, area = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    for p in range(labels.size):
        if labels[p] != 0:
            if area[labels[p] - 1] == 0:
                first[labels[p] - 1] = p
            area[labels[p] - 1] += 1
    return first, area


@compiled
def steps_between(index: Any, width: int) -> Any:
    """Returns steps from each of some pixels to those around it, for `flood_basins`: (1 + pixels, 8).

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
