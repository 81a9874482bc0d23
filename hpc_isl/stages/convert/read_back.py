"""A field of a plate read back, and compared with the files that it was made of.

Nothing is read as the conversion read it: files are decoded by Pillow, where it can, pixels by zarr-python.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import packed, planes
from hpc_isl.plates.assemble import resampled
from hpc_isl.plates.plate import FieldKey, PlaneFile, normal_well, well_position
from hpc_isl.plates.readers import tiff_metadata
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata


@dataclass(frozen=True)
class FieldCheck:
    """The planes of one field, to be compared with their files; `names` are the channels'."""

    key: FieldKey
    array: Path
    files: tuple[PlaneFile, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class FieldResult:
    """The digest of a field's pixels, and of its files where they are, what is wrong, and what read them.

    Attributes:
        pages: how many planes each file holds, those of other fields among them.
        independent: files that state the well of all planes of this field, and it is the field's.
        resampled: files of which the plate holds the pixels resampled, as was asked for.
    """

    key: FieldKey
    digest: str
    stored: Mapping[Path, list[str]]
    faults: Mapping[Path, str]
    decoders: Mapping[Path, str]
    pages: Mapping[Path, int]
    independent: frozenset[Path]
    resampled: frozenset[Path]


def compare_field(task: FieldCheck) -> FieldResult:
    """Reads a field back and compares it with its files, plane by plane."""
    import zarr

    archive = packed.split(task.array)
    store: Any = zarr.storage.ZipStore(archive[0], mode="r") if archive else task.array
    stored = np.asarray(zarr.open_array(store, path=archive[1] if archive else None, mode="r")[...])
    stored = stored.reshape(-1, *stored.shape[-4:])  # (t, c, z, y, x): plates of one time have no axis t
    places: dict[Path, list[str]] = defaultdict(list)
    wrong: dict[Path, str] = {}
    decoders: dict[Path, str] = {}
    pages: dict[Path, int] = {}
    independent, rescaled = set(), set()
    planes_by_file: dict[Path, list[PlaneFile]] = defaultdict(list)
    for file in task.files:
        planes_by_file[file.path].append(file)
    for path, file_planes in planes_by_file.items():
        try:
            metadata = tiff_metadata.tried(path)
            header = planes.header(path) if isinstance(metadata, UserError) else metadata.header
            pages[path] = header.pages
            for plane in file_planes:
                pixels, decoders[path] = decoded(path, plane.page, header)
                if plane.size is not None:
                    pixels = resampled(pixels, (stored.shape[-2], stored.shape[-1]))
                    rescaled.add(path)
                name = task.names[plane.channel]
                place = f"{task.key} {name} plane {plane.plane} time {plane.time}"
                if not np.array_equal(pixels, stored[plane.time, plane.channel, plane.plane]):
                    wrong[path] = f"pixels differ from {place}"
                places[path].append(place)
        except UserError as error:
            wrong[path] = str(error)
            continue
        stated_wells = _wells_stated(metadata, [plane.page for plane in file_planes])
        if stated_wells == {task.key.well}:
            independent.add(path)
        elif stated_wells:
            wrong[path] = f"states well {', '.join(sorted(stated_wells))}, and is stored as {task.key.well}"
    content = hashlib.sha256(f"{stored.dtype.name} {stored.shape}".encode())
    content.update(np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).data)
    return FieldResult(
        task.key, content.hexdigest(), places, wrong, decoders, pages, frozenset(independent),
        frozenset(rescaled),
    )  # fmt: skip


def decoded(path: Path, page: int, header: planes.Header) -> tuple[NDArray[Any], str]:
    """Returns a plane (y, x) of a file as another library than the conversion's decodes it, and its name.

    Raises:
        UserError: as `planes.read_plane`.
    """
    from PIL import Image

    dtype = np.dtype(header.dtype)
    with (
        suppress(OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError),
        Image.open(path) as image,
    ):
        image.seek(page)
        pixels = np.asarray(image)
        if (pixels.shape, pixels.dtype.itemsize) == (header.shape, dtype.itemsize):
            # Signed pixels, which Pillow does not know, are the same bits.
            return pixels.view(dtype) if pixels.dtype.kind in "iu" else pixels, "Pillow"
    return planes.read_plane(path, page), "own"


def _wells_stated(metadata: TiffMetadata | UserError, pages: Sequence[int]) -> set[str]:
    """Returns the wells that a TIFF states of the planes on these pages, as "E07 : Site 1" does."""
    wells = set()
    for plane in [metadata.planes[page] for page in pages] if isinstance(metadata, TiffMetadata) else ():
        with suppress(UserError):
            well = plane.label.partition(":")[0].strip()
            well_position(well)
            wells.add(normal_well(well))
    return wells
