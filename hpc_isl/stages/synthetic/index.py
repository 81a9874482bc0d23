"""The index of a synthetic export, as Harmony V5 writes it: each plane, its position and its file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import product
from math import ceil, sqrt

from hpc_isl.plates.plate import FORMATS
from hpc_isl.stages.synthetic.layout import PIXEL_UM, Channel, Well


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
    inside = (f"<{tag}>{value}</{tag.split()[0]}>" for tag, value in values.items())
    return "\n".join(['<Image Version="1">', *inside, "</Image>"])


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
