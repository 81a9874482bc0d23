"""Several measurements of one plate, each an export of its own, to one plate with an acquisition for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isclose

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Channel, Export, FieldKey, Plate


def merged(exports: Sequence[Export], names: Sequence[str]) -> Export:
    """Returns one export of all, in the order given; channels of one name are one channel.

    Fields stay where they are: nothing is shifted or resampled.

    Args:
        names: of the measurements, for the messages.

    Raises:
        UserError: they differ in plate format or in the size of a pixel.
    """
    _check(exports, names)
    channels: dict[str, Channel] = {}
    for export in exports:
        for channel in export.plate.channels:
            channels.setdefault(channel.name, channel)
    parts = [_moved(export, number, list(channels)) for number, export in enumerate(exports)]
    first = exports[0].plate
    fields = tuple(field for part in parts for field in part.plate.fields)
    plate = replace(
        first,
        channels=tuple(channels.values()),
        fields=fields,
        pixel_um=next((e.plate.pixel_um for e in exports if e.plate.pixel_um), None),
        plane_um=next((e.plate.plane_um for e in exports if e.plate.plane_um), None),
        acquisitions={number: e.plate.acquisitions[0] for number, e in enumerate(exports)},
        details={**first.details, "measurements": [dict(e.plate.details) for e in exports]},
    )
    maps = [{well: dict(columns) for well, columns in export.plate_map.items()} for export in exports]
    wells = {well for plate_map in maps for well in plate_map}
    return Export(
        plate,
        {key: files for part in parts for key, files in part.files.items()},
        tuple(problem for part in parts for problem in part.problems),
        tuple(left for part in parts for left in part.left_out),
        {well: {k: v for plate_map in maps for k, v in plate_map.get(well, {}).items()} for well in wells},
        tuple(
            f"{name}: {text}" for name, export in zip(names, exports, strict=True) for text in export.remarks
        ),
    )


def _check(exports: Sequence[Export], names: Sequence[str]) -> None:
    first = exports[0].plate
    for name, export in zip(names[1:], exports[1:], strict=True):
        plate = export.plate
        if (plate.rows, plate.columns) != (first.rows, first.columns):
            raise UserError(f"{names[0]} and {name} are of different plate formats; give one as source")
        ours, theirs = first.pixel_um, plate.pixel_um
        if ours and theirs and not isclose(ours, theirs, rel_tol=0.005):
            raise UserError(
                f"{names[0]} has pixels of {ours:g} µm, {name} of {theirs:g} µm: give one as source, "
                "for acquisitions of one plate have pixels of one size"
            )


def _moved(export: Export, number: int, channels: Sequence[str]) -> Export:
    """The export as acquisition `number` of a plate with these channels."""
    plate = export.plate
    place = {n: channels.index(channel.name) for n, channel in enumerate(plate.channels)}

    def moved(key: FieldKey) -> FieldKey:
        return replace(key, acquisition=number)

    fields = tuple(
        replace(field, key=moved(field.key), shape=(field.shape[0], len(channels), *field.shape[2:]))
        for field in plate.fields
    )
    files = {
        moved(key): tuple(replace(file, channel=place[file.channel]) for file in own)
        for key, own in export.files.items()
    }
    problems = tuple(problem._replace(key=moved(problem.key)) for problem in export.problems)
    moved_plate: Plate = replace(plate, fields=fields)
    return replace(export, plate=moved_plate, files=files, problems=problems)
