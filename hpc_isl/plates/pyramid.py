"""The pyramid of one image on disk: sharded zarr v3 arrays, written whole, read box by box."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import adopted, nodes, packed
from hpc_isl.recipes.plates import CodecRecipe

SHARD_EDGE = 4096
SMALLEST_EDGE = 256
_ROWS = 64  # averaged at once


def count_levels(shape: tuple[int, ...], levels: int | None) -> int:
    """Returns the number of levels: `levels`, or until the longer edge of (…, y, x) is at most 256 pixels."""
    if levels is not None:
        return levels
    edge, count = max(shape[-2:]), 1
    while edge > SMALLEST_EDGE:
        edge, count = -(-edge // 2), count + 1
    return count


def level_within(shape: tuple[int, ...], levels: int, edge: int) -> int:
    """Returns the first level whose longer edge is at most `edge`, or the last one; `shape`: (…, y, x)."""
    longest, level = max(shape[-2:]), 0
    while longest > edge << level and level + 1 < levels:
        level += 1
    return level


def level_of_at_least(shape: tuple[int, ...], levels: int, edge: int) -> int:
    """Returns the last level whose longer edge is at least `edge`, or 0; `shape`: (…, y, x)."""
    return max((level for level in range(levels) if max(shape[-2:]) >> level >= edge), default=0)


def write_pyramid(
    folder: Path,
    pixels: NDArray[Any],
    axes: tuple[str, ...],
    levels: int,
    codec: CodecRecipe,
    method: Literal["mean", "stride"],
) -> None:
    """Writes arrays `0`, `1`, … below `folder`: each halves y and x of the one before.

    `mean` rounds 2 × 2 means half to even in integer types, over existing pixels at odd edges; `stride` takes
    the nearest pixel, for labels.
    """
    for level in range(levels):
        if level:
            pixels = _coarser(pixels, method)
        store = create_level(folder, level, pixels.shape, pixels.dtype, axes, codec)
        # Without a copy: the pixels stay as they are until all of them are written.
        store.write(pixels, can_reference_source_data_indefinitely=True).result()
    _open.cache_clear()  # arrays that were replaced are opened again


def _coarser(pixels: NDArray[Any], method: Literal["mean", "stride"]) -> NDArray[Any]:
    """Returns the next level of an image, see `write_pyramid`."""
    if method == "stride":
        return np.ascontiguousarray(pixels[..., ::2, ::2])
    *planes, height, width = pixels.shape
    if height % 2 or width % 2 or pixels.dtype not in (np.uint8, np.uint16):
        return np.asarray(ts.downsample(ts.array(pixels), _halved(pixels.ndim), method).read().result())
    # The usual case in 40 % of tensorstore's time: sums of four, halves to even, rows that fit into a cache.
    coarse = np.empty((*planes, height // 2, width // 2), pixels.dtype)
    for place in np.ndindex(*planes):
        for y in range(0, height, _ROWS):
            rows = pixels[place][y : y + _ROWS].astype(np.uint32)
            lines = rows[::2] + rows[1::2]
            sums = lines[:, ::2] + lines[:, 1::2]
            coarse[place][y // 2 : (y + _ROWS) // 2] = (sums + 1 + ((sums >> 2) & 1)) >> 2
    return coarse


def write_coarser(
    folder: Path, first: ts.TensorStore, axes: tuple[str, ...], levels: int, codec: CodecRecipe
) -> None:
    """Writes levels 1, 2, … of labels whose level 0 exists, a shard at a time: memory holds four of them."""
    fine = first
    # "stride" and not "mean": a mean of two labels would be a third object.
    for level in range(1, levels):
        view = ts.downsample(fine, _halved(fine.rank), "stride")
        coarse = create_level(folder, level, tuple(view.shape), fine.dtype.numpy_dtype, axes, codec)
        for box in shard_boxes(coarse):
            write_shards(coarse, box, view[box].read().result())
        fine = coarse


def write_shards(store: ts.TensorStore, box: tuple[slice, ...], pixels: NDArray[Any]) -> None:
    """Writes whole shards.

    Raises:
        ValueError: the box begins or ends within a shard.
    """
    # Of a shard that two processes write a part of each, one part would be lost without an error.
    size = [int(edge or 0) for edge in store.chunk_layout.write_chunk.shape or ()]
    for side, edge, length in zip(box, size, store.shape, strict=True):
        if side.start % edge or (side.stop % edge and side.stop != length):
            raise ValueError(f"{side.start}:{side.stop} of {length} are no whole shards of {edge}")
    store[box].write(pixels).result()


def shard_boxes(store: ts.TensorStore) -> Iterator[tuple[slice, ...]]:
    """Yields the boxes that have a file each: what one writer may write at once."""
    size = [int(edge or 0) for edge in store.chunk_layout.write_chunk.shape or ()]
    starts = [range(0, length, edge) for length, edge in zip(store.shape, size, strict=True)]
    for corner in product(*starts):
        yield tuple(
            slice(start, min(start + edge, length))
            for start, edge, length in zip(corner, size, store.shape, strict=True)
        )


def _halved(rank: int) -> list[int]:
    return [1] * (rank - 2) + [2, 2]


def open_level(image: Path, level: int) -> ts.TensorStore:
    """Returns the array of one level, (c, z, y, x) or (t, c, z, y, x), opened once per process.

    Threads are limited by HPC_ISL_IO_THREADS (default 4). Reading a missing chunk fails: it is damage, for
    dark chunks are written too. The pixels of an adopted plate lie elsewhere, see `adopted`.
    """
    return _open(image, level, os.getpid())


@lru_cache(maxsize=4096)
def _open(image: Path, level: int, process: int) -> ts.TensorStore:  # a fork may not use its parent's store
    return open_fresh(image, level) if packed.is_dir(image / str(level)) else adopted.open_level(image, level)


def open_fresh(image: Path, level: int | str, fill_missing: bool = False) -> ts.TensorStore:
    """Returns an array that may be overwritten, as labels are, opened anew.

    `fill_missing`: a missing chunk has the array's fill value, as other programs mean it.
    """
    return nodes.open_array(image / str(level), fill_missing)


def read_box(
    image: Path, level: int, time: int, channel: int, planes: list[int] | slice, y: slice, x: slice
) -> NDArray[Any]:
    """Returns a box (z, y, x) of the planes of one channel and time, in counts as stored."""
    store = open_level(image, level)
    store = store[time] if store.rank == 5 else store
    try:
        return np.asarray(store[channel][planes, y, x].read().result())
    except ValueError as error:
        raise UserError(f"{image}: level {level} cannot be read: {error}") from None


def shards(shape: tuple[int, ...], chunk: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of a shard and a chunk: a field is one shard for each t, up to 4096 pixels wide."""
    inner = (1,) * (len(shape) - 2) + (chunk, chunk)
    largest = max(SHARD_EDGE // chunk, 1) * chunk
    edges = tuple(min(-(-length // chunk) * chunk, largest) for length in shape[-2:])
    time = (1,) * (len(shape) - 4)
    return time + shape[len(time) : -2] + edges, inner


def create_level(
    folder: Path,
    level: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axes: tuple[str, ...],
    codec: CodecRecipe,
) -> ts.TensorStore:
    """Returns a new array of one level, as yet without pixels."""
    shard, chunk = shards(shape, codec.chunk)
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    inner: list[dict[str, Any]] = [endian if dtype.itemsize > 1 else {"name": "bytes"}]
    if codec.name != "none":
        filters = {"shuffle": "bitshuffle", "typesize": dtype.itemsize}
        blosc = {"cname": codec.name, "clevel": codec.level, **filters}
        inner.append({"name": "blosc", "configuration": blosc})
    sharding = {
        "chunk_shape": chunk,
        "codecs": inner,
        "index_codecs": [endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/{level}/"},
        "store_data_equal_to_fill_value": True,  # so that a missing chunk is damage
        "metadata": {
            "shape": shape,
            "data_type": dtype.name,
            "dimension_names": axes,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "fill_value": 0,
        },
    }
    return ts.open(spec, create=True, delete_existing=True, context=nodes.io_context()).result()
