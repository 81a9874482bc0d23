"""A synthetic plate with known truth, as a vendor writes it, for a newcomer's first run and the tests.

    python -m hpc_isl.stages.synthetic demo/export --wells 24 --fields 2

makes a Harmony V5 export (`Images/Index.idx.xml` and one TIFF per plane), `plate_map.csv`, and in `truth/`
the label images of all cells and nuclei (`nuclei/B02_1.tiff`: well, field).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from itertools import product
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from hpc_isl.errors import UserError, many
from hpc_isl.files import write_atomic
from hpc_isl.plates.plate import FORMATS
from hpc_isl.seeds import stream
from hpc_isl.stages.synthetic.cells import Truth, grow
from hpc_isl.stages.synthetic.layout import (
    BRIGHTFIELD,
    CELLMASK,
    HOECHST,
    PHASE,
    PIXEL_UM,
    PLANE_UM,
    Channel,
    Well,
    expose,
    illumination,
    lay_out,
)

MARGIN = 32  # pixels grown around a field and cut off, so that no edge shows in its optics
_INNER = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))


def write(
    folder: Path,
    *,
    wells: int = 24,
    fields: int = 2,
    size: int = 384,
    planes: int = 3,
    phase: bool = False,
    empty: bool = True,
    seed: int = 0,
) -> None:
    """Writes the export; the index comes last, so that an interrupted one is not taken for whole.

    Args:
        folder: must not hold an export yet.
        wells: 1 to 308; a field depends on the seed and its place, not on how many others there are.
        size: edge of a field in pixels of 0.598 µm.
        planes: z positions, 4 µm apart, the middle one in focus.
        phase: a channel Digital Phase Contrast too.
        empty: the last field of the last well holds no cells (unless it is the only one).
        seed: of everything.
    """
    index_file = folder / "Images" / "Index.idx.xml"
    if index_file.exists():
        raise UserError(f"{folder}: holds an export already; name another folder")
    if min(wells, fields, planes) < 1 or size < 64:
        raise UserError("wells, fields and planes are at least 1, size is at least 64")
    layout, plate_format = lay_out(wells)
    channels = [BRIGHTFIELD, *([PHASE] if phase else []), HOECHST, CELLMASK]
    heights = [PLANE_UM * (p - (planes - 1) / 2) for p in range(planes)]
    for well in layout:
        for number in range(1, fields + 1):
            condition = well.condition(seed)
            if empty and wells * fields > 1 and (well, number) == (layout[-1], fields):
                condition = replace(condition, density=0.0)
            truth = grow(stream(seed, "cells", well.name, number), size + 2 * MARGIN, condition)
            for name, pixels in _planes(truth, well, number, channels, heights, seed):
                _write_tiff(index_file.parent / name, pixels)
            for kind in ("cells", "nuclei"):
                path = folder / "truth" / kind / f"{well.name}_{number}.tiff"
                _write_tiff(path, getattr(truth, kind)[_INNER])
    with (folder / "plate_map.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["well", "treatment", "dose_uM", "control"])
        table.writerows([w.name, w.treatment, f"{w.dose_um:g}", w.control] for w in layout)
    write_atomic(index_file, index_text(layout, plate_format, fields, channels, heights, size))


def _planes(
    truth: Truth, well: Well, field: int, channels: Sequence[Channel], heights: Sequence[float], seed: int
) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Yields file name and pixels of each plane of a field, without the margin."""
    for number, channel in enumerate(channels, 1):
        for plane, z_um in enumerate(heights, 1):
            light = channel.light(truth, z_um)[_INNER]
            rng = stream(seed, "camera", well.name, field, channel.name, plane)
            image = light * illumination(channel.profile, light.shape[0])
            yield file_name(well, field, plane, number), expose(image, rng)


def _write_tiff(path: Path, pixels: NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a description by tifffile, which the files of no instrument have.
    tifffile.imwrite(path, pixels, compression="lzw", metadata=None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hpc_isl.stages.synthetic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where to write")
    for name, default in {"wells": 24, "fields": 2, "size": 384, "planes": 3, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--phase", action="store_true", help="a channel Digital Phase Contrast too")
    options = parser.parse_args(arguments)
    try:
        write(**vars(options))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{options.folder}: {many(options.wells, 'well')} × {many(options.fields, 'field')} "
        f"of {options.size}² pixels"
    )
    return 0


# ---------------------------------------------------------------- the index, as Harmony V5 writes it


def file_name(well: Well, field: int, plane: int, channel: int) -> str:
    """Returns the file name of a plane; field, plane and channel count from 1."""
    return f"r{well.row + 1:02d}c{well.column + 1:02d}f{field:02d}p{plane:02d}-ch{channel}sk1fk1fl1.tiff"


def index_text(
    wells: Sequence[Well],
    plate_format: int,
    fields: int,
    channels: Sequence[Channel],
    heights_um: Sequence[float],
    size: int,
) -> str:
    """Returns the text of `Index.idx.xml`: every plane of every field of every well."""
    rows, columns = FORMATS[plate_format]
    side = ceil(sqrt(fields))  # fields lie in a square grid without gaps, y upwards
    edge_m = size * PIXEL_UM * 1e-6
    images = []
    for well, field, plane, channel in product(
        wells, range(1, fields + 1), enumerate(heights_um, 1), enumerate(channels, 1)
    ):
        row, column = divmod(field - 1, side)
        center_m = (column - (side - 1) / 2) * edge_m, ((side - 1) / 2 - row) * edge_m
        images.append(_image(well, field, plane, channel, center_m, size))
    lines = [
        # Harmony's files begin with a byte order mark.
        '\ufeff<?xml version="1.0" encoding="utf-8"?>',
        '<EvaluationInputData Version="1" xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5">',
        "<User>hpc_isl</User>",
        "<InstrumentType>Synthetic</InstrumentType>",
        "<Plates><Plate>",
        "<PlateID>synthetic</PlateID>",
        "<MeasurementID>00000000-0000-0000-0000-000000000000</MeasurementID>",
        "<MeasurementStartTime>2024-01-01T12:00:00.0000000+00:00</MeasurementStartTime>",
        "<Name>synthetic</Name>",
        f"<PlateTypeName>{plate_format} synthetic</PlateTypeName>",
        f"<PlateRows>{rows}</PlateRows>",
        f"<PlateColumns>{columns}</PlateColumns>",
        *(f'<Well id="{well.row + 1:02d}{well.column + 1:02d}" />' for well in wells),
        "</Plate></Plates>",
        "<Maps><Map>",
        *(_flat_field(number, channel, size) for number, channel in enumerate(channels, 1)),
        "</Map></Maps>",
        "<Images>",
        *images,
        "</Images>",
        "</EvaluationInputData>",
    ]
    return "\n".join(lines) + "\n"


def _image(
    well: Well,
    field: int,
    plane: tuple[int, float],
    channel: tuple[int, Channel],
    center_m: tuple[float, float],
    size: int,
) -> str:
    """Returns the entry of one plane, with (number, height in µm) and (number, channel) of it."""
    (z, z_um), (number, imaged) = plane, channel
    values = {
        # Harmony counts rows and columns from 1.
        "id": f"{well.row + 1:02d}{well.column + 1:02d}K1F{field}P{z}R{number}",
        "State": "Ok",
        "URL": file_name(well, field, z, number),
        "Row": well.row + 1,
        "Col": well.column + 1,
        "FieldID": field,
        "PlaneID": z,
        "TimepointID": 0,
        "ChannelID": number,
        "FlimID": 1,
        "ChannelName": imaged.name,
        "ImageType": "Signal",
        "AcquisitionType": "NonConfocal",
        "IlluminationType": "Epifluorescence" if imaged.stain else "Transmitted",
        "ChannelType": imaged.kind,
        'ImageResolutionX Unit="m"': f"{PIXEL_UM * 1e-6:.6E}",
        'ImageResolutionY Unit="m"': f"{PIXEL_UM * 1e-6:.6E}",
        "ImageSizeX": size,
        "ImageSizeY": size,
        "BinningX": 2,
        "BinningY": 2,
        "MaxIntensity": 65535,
        "CameraType": "Synthetic",
        'MainExcitationWavelength Unit="nm"': imaged.nm[0],
        'MainEmissionWavelength Unit="nm"': imaged.nm[1],
        'ObjectiveMagnification Unit=""': 20,
        'ObjectiveNA Unit=""': 1,
        'ExposureTime Unit="s"': 0.1,
        'PositionX Unit="m"': f"{center_m[0]:.9f}",
        'PositionY Unit="m"': f"{center_m[1]:.9f}",
        'PositionZ Unit="m"': f"{z_um * 1e-6:.6E}",
        'AbsPositionZ Unit="m"': f"{0.1346 + z_um * 1e-6:.9f}",
        'MeasurementTimeOffset Unit="s"': 0,
        "AbsTime": "2024-01-01T12:00:00.000+00:00",
    }
    elements = (f"<{tag}>{value}</{tag.split()[0]}>" for tag, value in values.items())
    return "\n".join(['<Image Version="1">', *elements, "</Image>"])


def _flat_field(number: int, channel: Channel, size: int) -> str:
    """Returns the profile of a channel: not JSON, but names and values in braces without quotes."""
    if len(channel.profile) == 1:
        background = "Character: Null, Profile: {Type: Identity}, Quality: 1"
    else:
        coefficients = [list(order) for order in channel.profile]
        origin, scale = (size - 1) / 2, 1 / size
        background = (
            f"Character: NonFlat, Mean: {channel.base + 0.1 * channel.gain:g}, Profile: {{"
            f"Coefficients: {coefficients}, Dims: [{size}, {size}], Origin: [{origin}, {origin}], "
            f"Scale: [{scale:.11f}, {scale:.11f}], Type: Polynomial}}, Quality: 1.0"
        )
    text = f"{{Background: {{{background}}}, Channel: {number}, ChannelName: {channel.name}, Version: 1}}"
    profile = f"<FlatfieldProfile>{escape(text)}</FlatfieldProfile>"
    return f'<Entry ChannelID="{number}">{profile}</Entry>'
