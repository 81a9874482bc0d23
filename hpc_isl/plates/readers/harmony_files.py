"""Where Harmony's and Columbus' indices lie, and the files that they name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey, PlaneFile, well_name
from hpc_isl.plates.readers import harmony_index
from hpc_isl.plates.readers.folder import list_folder
from hpc_isl.plates.readers.harmony_fields import ChannelOrder
from hpc_isl.plates.readers.harmony_index import Image, Index

# Below the index's folder: beside it; in archives; of exports with corrected images.
_FOLDERS = ("", "Images/", "images/", "flex/")


def indices(folder: Path) -> list[Path]:
    """Returns the index of the export at `folder`; else those of the exports just below it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if own := _index_of(folder):
        return [own]
    return [path for below in _entries(folder) if (path := _index_of(below))]


def plane_files(
    index: Index, order: ChannelOrder, path: Path
) -> tuple[dict[FieldKey, list[PlaneFile]], dict[Path, str], dict[Path, str]]:
    """Returns the file of every image by field; clauses on those that are missing, and that never were."""
    folder = list_folder(path.parent.parent if path.parent.name.lower() == "index" else path.parent)
    lower = {name.lower(): name for name in folder.files}
    below, by_well = _below(index, lower)
    named: dict[FieldKey, list[PlaneFile]] = defaultdict(list)
    absent: dict[Path, str] = {}
    unwritten: dict[Path, str] = {}
    for image in index.images:
        origin = f"{path}: image {image.id}"
        name = folder.locate(image.url or image.id or "(no file)", origin)
        if below or by_well:
            name = folder.locate(below + (_well_folder(image) if by_well else "") + name, origin)
        if name not in folder.files:
            name = lower.get(name.lower(), name)  # the ending may be .tif here and .TIF there
        file = folder.root / name
        if name not in folder.files:
            if not image.url or image.failed:
                unwritten[file] = f"the instrument wrote no file for {image.id}"
            else:
                absent[file] = f"{image.url} is missing"
        t, c, z = order.times[image.time], order.channels[image.channel], order.planes[image.plane]
        named[key_of(image)].append(PlaneFile(file, t, c, z, image.page))
    return dict(named), absent, unwritten


def key_of(image: Image) -> FieldKey:
    """Returns the field that an image belongs to."""
    return FieldKey(well_name(image.row - 1, image.column - 1), str(image.field))


def _index_of(folder: Path) -> Path | None:
    """The first kind of index of those in `Images`, the folder itself, or `index` as in archives."""
    places = (folder / "Images", folder / "images", folder, folder / "index")
    paths = (path for place in places for path in _entries(place, harmony_index.NAMES))
    return next(filter(harmony_index.recognise, paths), None)


def _entries(folder: Path, names: Collection[str] = ()) -> list[Path]:
    """What is in a folder, in order; where names are given, in lower case, those alone in their order."""
    try:
        found = os.listdir(folder)
    except OSError:  # no folder, or not ours to read: nothing is found there
        return []
    if names:
        ranks = {name: rank for rank, name in enumerate(names)}
        kept = [name for name in found if name.lower() in ranks]
        return [folder / name for name in sorted(kept, key=lambda name: (ranks[name.lower()], name))]
    return [folder / name for name in sorted(found, key=str.lower)]


def _below(index: Index, files: Collection[str]) -> tuple[str, bool]:
    """Where most images lie below the index's folder, and whether each well has a folder of its own.

    Exports keep them beside the index; archives in `images`, some in a folder such as r04c03, of which
    not all need to be there.

    Args:
        files: in lower case.
    """
    places = list(product(_FOLDERS, (False, True)))
    counts = [sum(name in files for name in _names(index, *place)) for place in places]
    return places[counts.index(max(counts))]


def _names(index: Index, below: str, by_well: bool) -> Iterator[str]:
    for image in index.images:
        name = below + (_well_folder(image) if by_well else "") + image.url
        yield name.replace("\\", "/").lower()


def _well_folder(image: Image) -> str:
    return f"r{image.row:02d}c{image.column:02d}/"
