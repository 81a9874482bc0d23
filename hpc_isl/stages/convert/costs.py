"""What a conversion takes: bytes in and out, from file sizes and one compressed plane per channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Field, FieldKey, PlaneFile
from hpc_isl.recipes.plates import CodecRecipe

SAMPLED_FILES = 1000
PYRAMID = 4 / 3  # levels below the first add a third

Files = Mapping[FieldKey, tuple[PlaneFile, ...]]


@dataclass(frozen=True)
class Costs:
    """Estimates. `share`: compressed over raw size, at most 1."""

    bytes_in: int
    bytes_out: int
    share: float


def costs(fields: tuple[Field, ...], files: Files, codec: CodecRecipe) -> Costs:
    """What converting these fields takes."""
    share = _compressed_share(fields, files, codec)
    raw = sum(int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize for field in fields)
    paths = sorted({file.path for field in fields for file in files[field.key]})
    return Costs(_size(paths), int(raw * PYRAMID * share), share)


def readable(size: float) -> str:
    """Bytes as people say them."""
    unit, scale = ("GB", 1e9) if size >= 1e8 else ("MB", 1e6)
    return f"{size / scale:.{1 if size >= 10 * scale else 2}f} {unit}"


def _size(paths: list[Path]) -> int:
    """Of many files from a sample: asking for all takes minutes on a network disk."""
    sample = paths[:: max(len(paths) // SAMPLED_FILES, 1)]
    sizes = [path.stat().st_size for path in sample if path.exists()]
    return sum(sizes) * len(paths) // max(len(sizes), 1)


def _compressed_share(fields: tuple[Field, ...], files: Files, codec: CodecRecipe) -> float:
    """From one plane of each channel of three fields spread over the plate."""
    if codec.name == "none" or not fields:
        return 1.0
    step = max(len(fields) // 3, 1)
    one_each = {
        (field.key, file.channel): file
        for field in fields[step // 2 :: step][:3]
        for file in files[field.key]
    }
    shares = [share for file in one_each.values() for share in _share(file, codec)]
    return min(sum(shares) / len(shares), 1.0) if shares else 1.0


def _share(file: PlaneFile, codec: CodecRecipe) -> Iterable[float]:
    try:
        plane = read_plane(file.path, file.page)
    except UserError:
        return  # the conversion itself will name it
    edge = codec.chunk
    chunks = [
        np.ascontiguousarray(plane[y : y + edge, x : x + edge])
        for y in range(0, plane.shape[0], edge)
        for x in range(0, plane.shape[1], edge)
    ]
    yield sum(_packed(chunk, codec) for chunk in chunks) / plane.nbytes


def _packed(chunk: NDArray[np.generic], codec: CodecRecipe) -> int:
    items: Any = chunk  # not bytes, as its types ask for: those have no item size to shuffle by
    return len(imagecodecs.blosc_encode(items, codec.level, compressor=codec.name, shuffle="bitshuffle"))
