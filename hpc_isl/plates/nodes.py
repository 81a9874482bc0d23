"""Groups and arrays of zarr 2 and 3, whichever program wrote them: metadata, files, and pixels to be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from hpc_isl.errors import UserError
from hpc_isl.plates import packed

GROUPS = ("zarr.json", ".zattrs", ".zgroup")  # the files that make a folder a group


def is_group(folder: Path) -> bool:
    """Returns whether a folder is a group of zarr 3, or of zarr 2."""
    return any(packed.is_file(folder / name) for name in GROUPS)


def ome_attributes(folder: Path) -> dict[str, Any]:
    """Returns what the specification of OME-Zarr keeps in a group: `attributes.ome` (0.5), `.zattrs` (0.4).

    Raises:
        UserError: the folder is no group, or its metadata are damaged.
    """
    if packed.is_file(file := folder / "zarr.json"):
        attributes = _read_object(file).get("attributes", {})
        content = attributes.get("ome", {}) if isinstance(attributes, dict) else None
    elif packed.is_file(file := folder / ".zattrs"):
        content = _read_object(file)
    elif packed.is_file(folder / ".zgroup"):
        content = {}
    else:
        raise UserError(f"{folder}: holds neither zarr.json nor .zattrs, so it is no group of OME-Zarr")
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: its attributes are no object")
    return content


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(packed.read_text(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no object")
    return content


# ---------------------------------------------------------------- arrays


@dataclass(frozen=True)
class ArrayFacts:
    """An array by its metadata.

    Attributes:
        dtype: numpy name, in whatever order its bytes are stored.
        chunk: the unit of reads; of a sharded array the chunk within the shard.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]


def decoded_per_used(facts: ArrayFacts, axes: Sequence[str], crop: int) -> float:
    """Returns how many bytes are decoded for each byte of a random square crop of one plane, on average.

    >>> decoded_per_used(ArrayFacts((4, 2160, 2160), "uint16", (1, 1080, 1080)), "cyx", 1080)
    4.0
    """
    ratio = 1.0
    for axis, length, chunk in zip(axes, facts.shape, facts.chunk, strict=True):
        used = min(crop, length) if axis in ("y", "x") else 1
        # A crop of n pixels that begins anywhere touches 1 + (n - 1) / chunk chunks, of those that there are.
        touched = min(-(-length // chunk), 1 + (used - 1) / chunk)
        ratio *= touched * chunk / used
    return ratio


def array_facts(folder: Path) -> ArrayFacts:
    """Returns shape, type and chunk of an array; opens no chunk.

    Raises:
        UserError: the folder is no array, or its metadata are damaged.
    """
    try:
        if packed.is_file(file := folder / "zarr.json"):
            content = _read_object(file)
            chunk, dtype = content["chunk_grid"]["configuration"]["chunk_shape"], content["data_type"]
            for codec in content["codecs"]:
                if codec["name"] == "sharding_indexed":
                    chunk = codec["configuration"]["chunk_shape"]
        elif packed.is_file(file := folder / ".zarray"):
            content = _read_object(file)
            chunk, dtype = content["chunks"], content["dtype"]
        else:
            raise UserError(f"{folder}: holds neither zarr.json nor .zarray, so there is no array")
        dtype_name = np.dtype(dtype).newbyteorder("=").name
        return ArrayFacts(tuple(map(int, content["shape"])), dtype_name, tuple(map(int, chunk)))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} describes no array that can be read: {error!r}") from None


def open_array(folder: Path, fill_missing: bool = False) -> ts.TensorStore:
    """Returns an array of zarr 2 or 3, opened anew.

    `fill_missing`: a missing chunk has the array's fill value, as other programs mean it.
    """
    spec = {
        "driver": "zarr" if packed.is_file(folder / ".zarray") else "zarr3",
        "kvstore": packed.kvstore(folder),
        "fill_missing_data_reads": fill_missing,
    }
    try:
        return ts.open(spec, open=True, read=True, write=False, context=io_context()).result()
    except ValueError as error:
        where = f"{folder.parent}: level {folder.name}"
        raise UserError(f"{where} cannot be read: {error}") from None


def io_context() -> ts.Context:
    """Returns the threads and caches that all arrays of this process share."""
    return _context(os.getpid())


@lru_cache(maxsize=1)
def _context(process: int) -> ts.Context:
    limit = {"limit": int(os.environ.get("HPC_ISL_IO_THREADS", "4"))}
    directories = {"total_bytes_limit": 1 << 27}
    return ts.Context(
        {
            "data_copy_concurrency": limit,
            "file_io_concurrency": limit,
            "cache_pool#packed": directories,
        }
    )


def files_digest(folder: Path) -> str:
    """Returns a hash of names, sizes and times of all files of an array; none of them is opened."""
    lines = sorted(_files(str(folder), ""))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def _files(folder: str, below: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, f"{below}{entry.name}/")
            else:
                facts = entry.stat()
                yield f"{below}{entry.name} {facts.st_size} {facts.st_mtime_ns}\n"
