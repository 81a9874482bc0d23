"""Thermo Cellomics ArrayScan and CX: images PLATE_C18f00d0.C01, .DIB or .TIF, to an `Export`."""

# Seen with pixels: `.C01` of three channels and two fields, whose header states the pixel size, and an
# overlay. Only read about: `.DIB`, and `.TIF` of the same names. Channel names, exposures and places lie in
# an Access database (`.mdb`) that is not read: channels are named by the files, d0, d1, ….

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import (
    Channel,
    Export,
    FieldKey,
    LeftOut,
    color_of,
    layout,
    normal_well,
)
from hpc_isl.plates.readers import export, tiff_metadata
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.folder import Folder, left_out_by_name, list_folder
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata

_NAME = re.compile(
    r"(?:.*/)?(?P<plate>[^/]+)_(?P<well>A?[A-Z]\d\d)f(?P<field>\d+)(?P<kind>[do])(?P<channel>\d+)\.(?P<ending>C01|DIB|TIFF?)",
    re.IGNORECASE,
)
_IMAGES = (".c01", ".dib", ".tif", ".tiff", ".png")


def recognise(below: Folder) -> bool:
    """Returns whether there is an image named as Cellomics names them."""
    return any(_NAME.fullmatch(name) for name in below.files)


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate of a folder; fields are named by the vendor's numbers, from 0.

    Raises:
        UserError: no image of Cellomics, several plates, or no image that can be read.
    """
    below = list_folder(folder)
    matches = {name: match for name in sorted(below.files) if (match := _NAME.fullmatch(name))}
    if not matches:
        raise UserError(f"{below.root}: no image of Cellomics; names such as PLATE_C18f00d0.C01 are expected")
    export.check_one_plate((match["plate"] for match in matches.values()), below.root)
    images, left_out_files = _images(below, matches)
    metadata, unreadable = tiff_metadata.read_single([below.root / name for name in images])
    planes = []
    for name, match in images.items():
        path = below.root / name
        key = FieldKey(normal_well(match["well"]), str(int(match["field"])))
        plane_metadata = metadata[path].planes[0] if path in metadata else PlaneMetadata()
        planes.append(Described(key, path, 0, int(match["channel"]), 0, plane_metadata))
    numbers = sorted({plane.channel for plane in planes})
    plate_export = export.build(
        planes,
        {n: Channel(f"d{n}", True, color_of(True, None)) for n in numbers},
        *tiff_metadata.sizes_and_edges(metadata),
        name=next(iter(matches.values()))["plate"],
        layout=layout,
        details={"reader": "cellomics", "instrument": "Cellomics"},
        unreadable=unreadable,
        left_out=left_out_files,
        resample=resample,
    )
    names = ", ".join(channel.name for channel in plate_export.plate.channels)
    remark = (
        f"channels are named {names}, as the files are: their names lie in an .mdb that is not read; name "
        "them with patterns/cellomics.yaml"
    )
    return replace(plate_export, remarks=(remark, *plate_export.remarks))


def _images(
    below: Folder, matches: dict[str, re.Match[str]]
) -> tuple[dict[str, re.Match[str]], list[LeftOut]]:
    """Returns the images to read, and the others: overlays, copies as TIFF, and images with other names."""
    originals = {
        PurePosixPath(name).stem.lower()
        for name, match in matches.items()
        if match["ending"].upper() in ("C01", "DIB")
    }
    images: dict[str, re.Match[str]] = {}
    left_out = []
    for name in sorted(below.files):
        match = matches.get(name)
        if match is None:
            if name.lower().endswith(_IMAGES):
                left_out.append(left_out_by_name(below.root, name, "unknown name"))
            continue
        well = normal_well(match["well"])
        if match["kind"].lower() == "o":
            left_out.append(LeftOut(below.root / name, "overlay", well, f"o{match['channel']}"))
        # Exported beside its original, an image would be there twice.
        elif match["ending"].upper().startswith("TIF") and PurePosixPath(name).stem.lower() in originals:
            left_out.append(LeftOut(below.root / name, "copy as TIFF", well, f"d{match['channel']}"))
        else:
            images[name] = match
    if not images:
        raise UserError(f"{below.root} holds overlays alone, and no image of a channel")
    return images, left_out
