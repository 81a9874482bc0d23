"""Thermo Cellomics ArrayScan and CX: images PLATE_C18f00d0.C01, .DIB or .TIF, to an `Export`.

Seen with pixels: `.C01` of three channels and two fields, whose header states the pixel size, and an overlay.
Only read about: `.DIB`, and `.TIF` of the same names. Channel names, exposures and places lie in an Access
database (`.mdb`) that is not read: channels are named by the files, d0, d1, ….
"""

from __future__ import annotations

import re
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import (
    Channel,
    Export,
    FieldKey,
    LeftOut,
    Plate,
    color_of,
    layout,
    well_name,
    well_position,
)
from hpc_isl.plates.readers import agreement, fields, left_out, tiff_metadata
from hpc_isl.plates.readers.fields import Described
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.plane_metadata import PlaneMetadata
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata

_NAME = re.compile(
    r"(?:.*/)?(?P<plate>[^/]+)_(?P<well>[A-P]\d\d)f(?P<field>\d+)(?P<kind>[do])(?P<channel>\d+)\.(?P<ending>C01|DIB|TIFF?)",
    re.IGNORECASE,
)
_IMAGES = (".c01", ".dib", ".tif", ".tiff", ".png")


def recognise(below: Folder) -> bool:
    """Whether there is an image named as Cellomics names them."""
    return any(_NAME.fullmatch(name) for name in below.files)


def read(folder: Path) -> Export:
    """Returns the plate of a folder; fields are named by the vendor's numbers, from 0.

    Raises:
        UserError: no image of Cellomics, several plates, or no image that can be read.
    """
    below = list_folder(folder)
    named = {name: match for name in sorted(below.files) if (match := _NAME.fullmatch(name))}
    if not named:
        raise UserError(f"{below.root}: no image of Cellomics; names such as PLATE_C18f00d0.C01 are expected")
    plates = sorted({match["plate"] for match in named.values()})
    if len(plates) > 1:
        raise UserError(f"{below.root} holds several plates ({', '.join(plates[:5])}); give one as source")
    taken, others = _taken(below, named)
    metadata, unreadable = tiff_metadata.read_all([below.root / name for name in taken])
    for path in [path for path, found in metadata.items() if found.header.pages > 1]:
        unreadable[path] = f"{path} holds {metadata.pop(path).header.pages} planes; one is expected"
    if not metadata:
        raise UserError(f"no image can be used; {next(iter(unreadable.values()))}")
    headers = {path: found.header[:2] for path, found in metadata.items()}
    planes = [_described(below.root / name, match, metadata) for name, match in taken.items()]
    numbers = sorted({plane.channel for plane in planes})
    channels = {n: Channel(f"d{n}", True, color_of(True, None)) for n in numbers}
    sizes = agreement.channel_sizes(((plane.channel, plane.path) for plane in planes), headers)
    planes, channels, of_other_size, resized = fields.of_one_size(planes, channels, sizes)
    pixel_um, unknown = fields.pixel_edge(metadata[p.path].pixel_um for p in planes if p.path in metadata)
    parts = fields.parts(planes, channels, pixel_um, unreadable, headers=headers)
    rows, columns = layout({plane.key.well for plane in planes})
    plate = Plate(
        name=plates[0],
        rows=rows,
        columns=columns,
        channels=parts.channels,
        fields=parts.fields,
        pixel_um=pixel_um,
        details={"reader": "cellomics", "instrument": "Cellomics"},
    )
    remark = (
        f"channels are named {', '.join(c.name for c in parts.channels)}, as the files are: their names lie "
        "in an .mdb that is not read; name them with patterns/cellomics.yaml"
    )
    return Export(
        plate,
        parts.files,
        tuple(parts.problems),
        (*others, *of_other_size),
        remarks=(remark, *resized, *unknown, *parts.remarks),
    )


def _taken(below: Folder, named: dict[str, re.Match[str]]) -> tuple[dict[str, re.Match[str]], list[LeftOut]]:
    """The images to read, and the others: overlays, copies as TIFF, and images with other names."""
    originals = {
        name.rpartition(".")[0].rpartition("/")[2].lower()
        for name, match in named.items()
        if match["ending"].upper() in ("C01", "DIB")
    }
    taken: dict[str, re.Match[str]] = {}
    others = []
    for name in sorted(below.files):
        match = named.get(name)
        if match is None:
            if name.lower().endswith(_IMAGES):
                others.append(left_out.of_name(below.root, name, "unknown name"))
            continue
        stem = name.rpartition(".")[0].rpartition("/")[2].lower()
        well = well_name(*well_position(match["well"]))
        if match["kind"].lower() == "o":
            others.append(LeftOut(below.root / name, "overlay", well, f"o{match['channel']}"))
        elif match["ending"].upper().startswith("TIF") and stem in originals:
            others.append(LeftOut(below.root / name, "copy as TIFF", well, f"d{match['channel']}"))
        else:
            taken[name] = match
    if not taken:
        raise UserError(f"{below.root} holds overlays alone, and no image of a channel")
    return taken, others


def _described(path: Path, match: re.Match[str], metadata: dict[Path, TiffMetadata]) -> Described:
    key = FieldKey(well_name(*well_position(match["well"])), str(int(match["field"])))
    stated = metadata[path].planes[0] if path in metadata else PlaneMetadata()
    return Described(key, path, 0, int(match["channel"]), 0, stated)
