"""The index of a synthetic export, as Harmony V5 writes it: what was imaged, where, in which file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, sqrt

from hpc_isl.plates.plate import FORMATS
from hpc_isl.stages.synthetic.layout import PIXEL_UM, Channel, Well


def file_name(well: Well, field: int, plane: int, channel: int) -> str:
    """Of one plane; field, plane and channel count from 1."""
    return f"r{well.row + 1:02d}c{well.column + 1:02d}f{field:02d}p{plane:02d}-ch{channel}sk1fk1fl1.tiff"


def index(
    wells: Sequence[Well],
    plate_format: int,
    fields: int,
    channels: Sequence[Channel],
    heights_um: Sequence[float],
    size: int,
) -> str:
    """The text of `Index.idx.xml`: every plane of every field of every well."""
    images = [
        _image(_which(well, field, plane, number) | _how(channel, size) | _where(field, fields, z_um, size))
        for well in wells
        for field in range(1, fields + 1)
        for plane, z_um in enumerate(heights_um, 1)
        for number, channel in enumerate(channels, 1)
    ]
    lines = [
        '\ufeff<?xml version="1.0" encoding="utf-8"?>',
        '<EvaluationInputData Version="1" xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5">',
        "<User>hpc_isl</User>",
        "<InstrumentType>Synthetic</InstrumentType>",
        *_plate(wells, plate_format),
        "<Maps><Map>",
        *(_flat_field(number, channel, size) for number, channel in enumerate(channels, 1)),
        "</Map></Maps>",
        "<Images>",
        *images,
        "</Images>",
        "</EvaluationInputData>",
    ]
    return "\n".join(lines) + "\n"


def _plate(wells: Sequence[Well], plate_format: int) -> list[str]:
    rows, columns = FORMATS[plate_format]
    return [
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
    ]


def _image(values: Mapping[str, object]) -> str:
    """The entry of one plane; keys are tags, with their unit where they have one."""
    inside = (f"<{tag}>{value}</{tag.split()[0]}>" for tag, value in values.items())
    return "\n".join(['<Image Version="1">', *inside, "</Image>"])


def _which(well: Well, field: int, plane: int, number: int) -> dict[str, object]:
    return {
        "id": f"{well.row + 1:02d}{well.column + 1:02d}K1F{field}P{plane}R{number}",
        "State": "Ok",
        "URL": file_name(well, field, plane, number),
        "Row": well.row + 1,
        "Col": well.column + 1,
        "FieldID": field,
        "PlaneID": plane,
        "TimepointID": 0,
        "ChannelID": number,
        "FlimID": 1,
    }


def _how(channel: Channel, size: int) -> dict[str, object]:
    return {
        "ChannelName": channel.name,
        "ImageType": "Signal",
        "AcquisitionType": "NonConfocal",
        "IlluminationType": "Epifluorescence" if channel.stain else "Transmitted",
        "ChannelType": channel.kind,
        'ImageResolutionX Unit="m"': f"{PIXEL_UM * 1e-6:.6E}",
        'ImageResolutionY Unit="m"': f"{PIXEL_UM * 1e-6:.6E}",
        "ImageSizeX": size,
        "ImageSizeY": size,
        "BinningX": 2,
        "BinningY": 2,
        "MaxIntensity": 65535,
        "CameraType": "Synthetic",
        'MainExcitationWavelength Unit="nm"': channel.nm[0],
        'MainEmissionWavelength Unit="nm"': channel.nm[1],
        'ObjectiveMagnification Unit=""': 20,
        'ObjectiveNA Unit=""': 1,
        'ExposureTime Unit="s"': 0.1,
    }


def _where(field: int, fields: int, z_um: float, size: int) -> dict[str, object]:
    """The stage position of a field's centre: fields in a square grid without gaps, y upwards."""
    wide = ceil(sqrt(fields))
    row, column = divmod(field - 1, wide)
    edge = size * PIXEL_UM * 1e-6
    return {
        'PositionX Unit="m"': f"{(column - (wide - 1) / 2) * edge:.9f}",
        'PositionY Unit="m"': f"{((wide - 1) / 2 - row) * edge:.9f}",
        'PositionZ Unit="m"': f"{z_um * 1e-6:.6E}",
        'AbsPositionZ Unit="m"': f"{0.1346 + z_um * 1e-6:.9f}",
        'MeasurementTimeOffset Unit="s"': 0,
        "AbsTime": "2024-01-01T12:00:00.000+00:00",
    }


def _flat_field(number: int, channel: Channel, size: int) -> str:
    """The `FlatfieldProfile` of a channel: not JSON, but names and values in braces without quotes."""
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
