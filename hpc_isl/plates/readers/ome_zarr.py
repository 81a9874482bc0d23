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
    """Returns whether a folder is such a plate, without listing its files, perhaps millions of chunks."""
    try:
        is_ours = (folder / "zarr.json").is_file() and "hpc_isl" in read_group(folder)
    except UserError:
        return False
    return not is_ours and ome_zarr.is_other_plate(folder)


def read(folder: Path) -> Export:
    """Returns the plate as an export: a plane's file is the array of its image, its page the place in it.

    Raises:
        UserError: see `ome_zarr.read`.
    """
    if not is_plate(folder):
        raise UserError(f"source: {folder} is no OME-Zarr plate of another program")
    other_plate = ome_zarr.read(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        fields = tuple(pool.map(lambda field: _with_files(other_plate, field), other_plate.plate.fields))
    files = {field.key: _planes(other_plate, field) for field in fields}
    return Export(
        replace(other_plate.plate, fields=fields), files, other_plate.problems, remarks=other_plate.remarks
    )


def _with_files(other_plate: OtherPlate, field: Field) -> Field:
    # In the field's facts, so that a conversion that is resumed sees chunks that changed.
    return replace(field, details={**field.details, "files": files_digest(_array(other_plate, field))})


def _array(other_plate: OtherPlate, field: Field) -> Path:
    source = other_plate.sources[field.key]
    return other_plate.path / source.image / str(source.levels[0])


def _planes(other_plate: OtherPlate, field: Field) -> tuple[PlaneFile, ...]:
    times, _, depth, *_ = field.shape
    channels = [
        (channel, stored_channel)
        for channel, stored_channel in enumerate(other_plate.sources[field.key].channels)
        if stored_channel is not None
    ]
    shape, folder = (times, len(channels), depth), _array(other_plate, field)
    return tuple(
        PlaneFile(
            folder, time, channel, plane, int(np.ravel_multi_index((time, stored_channel, plane), shape))
        )
        for time in range(times)
        for channel, stored_channel in channels
        for plane in range(depth)
    )
