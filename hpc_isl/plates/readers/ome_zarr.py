"""Plates that other programs wrote as OME-Zarr, rewritten in chunks that training reads fast."""

# Seen and read about: see `plates/ome_zarr.py`. Their labels are not taken along.

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.plates import ome_zarr
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.nodes import files_digest
from hpc_isl.plates.ome_zarr import OtherPlate
from hpc_isl.plates.plate import Export, Field, PlaneFile
from hpc_isl.plates.readers.folder import Folder

THREADS = 8


def recognise(below: Folder) -> bool:
    """Returns whether the folder itself is a plate of OME-Zarr that another program has written."""
    return is_plate(below.root)


def is_plate(folder: Path) -> bool:
    """Returns the same of a folder whose files, perhaps millions of chunks, nobody has listed."""
    try:
        ours = (folder / "zarr.json").is_file() and "hpc_isl" in read_group(folder)
    except UserError:
        return False
    return not ours and ome_zarr.is_other_plate(folder)


def read(folder: Path) -> Export:
    """Returns the plate as an export: a plane's file is the array of its image, its page the place in that.

    Raises:
        UserError: see `ome_zarr.read`.
    """
    if not is_plate(folder):
        raise UserError(f"source: {folder} is no OME-Zarr plate of another program")
    other = ome_zarr.read(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        fields = tuple(pool.map(lambda field: _with_files(other, field), other.plate.fields))
    files = {field.key: _planes(other, field) for field in fields}
    return Export(replace(other.plate, fields=fields), files, other.problems, remarks=other.remarks)


def _with_files(other: OtherPlate, field: Field) -> Field:
    # In the field's facts, so that a conversion that is resumed sees chunks that changed.
    return replace(field, details={**field.details, "files": files_digest(_array(other, field))})


def _array(other: OtherPlate, field: Field) -> Path:
    source = other.sources[field.key]
    return other.path / source.image / str(source.levels[0])


def _planes(other: OtherPlate, field: Field) -> tuple[PlaneFile, ...]:
    times, _, depth, *_ = field.shape
    channels = [(ours, own) for ours, own in enumerate(other.sources[field.key].channels) if own is not None]
    shape, folder = (times, len(channels), depth), _array(other, field)
    return tuple(
        PlaneFile(folder, time, ours, plane, int(np.ravel_multi_index((time, own, plane), shape)))
        for time in range(times)
        for ours, own in channels
        for plane in range(depth)
    )
