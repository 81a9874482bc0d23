"""A part of an export: some of its fields, channels, times and planes, as if the others were not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.plate import (
    BY_CHANNEL,
    Export,
    Field,
    FieldKey,
    PlaneFile,
    Plate,
    well_name,
    well_position,
)
from hpc_isl.plates.readers.plane_checks import listed


@dataclass(frozen=True)
class Choice:
    """The part of an export to store; None: all of it.

    Attributes:
        fields: B03/1 is one, B03 means all of its well.
        times, planes: by their numbers in the plate that all of the export would make, from 0.
    """

    fields: Sequence[str] | None = None
    channels: Sequence[str] | None = None
    times: Sequence[int] | None = None
    planes: Sequence[int] | None = None


def chosen_part(export: Export, choice: Choice) -> Export:
    """Returns the chosen part of the export, in its order, with remarks on what is left out.

    Channels, times and planes that remain are numbered anew, without gaps. Fields of which no plane remains
    are left out. A problem of a field is dropped where every chosen plane exists.

    Raises:
        UserError: a field, well, channel, time or plane that the export does not have; nothing remains.
    """
    remarks = []
    if choice.fields is not None:
        keys, total = _fields(export, choice.fields), len(export.plate.fields)
        export = _with_fields(export, keys)
        if len(keys) < total:
            remarks.append(f"fields: {len(keys)} of {total} are chosen, the others are left out")
    plate = export.plate
    names = [channel.name for channel in plate.channels]
    ranges = [range(max((f.shape[axis] for f in plate.fields), default=0)) for axis in (0, 2)]
    channels = _numbers("channels", choice.channels, names)
    times = _numbers("times", choice.times, list(ranges[0]))
    planes = _numbers("planes", choice.planes, list(ranges[1]))
    for kind, chosen, values in (
        ("channels", channels, names), ("times", times, list(ranges[0])), ("planes", planes, list(ranges[1])),
    ):  # fmt: skip
        if omitted := [str(value) for number, value in enumerate(values) if number not in chosen]:
            remarks.append(f"{kind}: {listed(omitted)} {'is' if len(omitted) == 1 else 'are'} left out")
    if (len(channels), len(times), len(planes)) != (len(names), len(ranges[0]), len(ranges[1])):
        export = _with_chosen_planes(export, channels, times, planes)
        remaining = {field.key for field in export.plate.fields}
        if emptied := [str(field.key) for field in plate.fields if field.key not in remaining]:
            remarks.append(f"fields that have nothing of it are left out: {len(emptied)} ({listed(emptied)})")
    if plate.fields and not export.plate.fields:
        raise UserError("channels, times and planes that are chosen were imaged in no field")
    return replace(export, remarks=(*export.remarks, *remarks))


def _fields(export: Export, choices: Sequence[str]) -> set[FieldKey]:
    keys = [field.key for field in export.plate.fields]
    chosen: set[FieldKey] = set()
    for choice in choices:
        well, slash, name = choice.partition("/")
        normal = well_name(*well_position(well)) + slash + name
        matches = {key for key in keys if normal in (str(key), key.well)}
        if not matches:
            names = [*map(str, keys), *export.plate.wells]
            raise UserError(f"fields: the export has no field or well {choice!r}; {nearest(choice, names)}")
        chosen |= matches
    return chosen


def _with_fields(export: Export, keys: set[FieldKey]) -> Export:
    problems = tuple(problem for problem in export.problems if problem.key in keys)
    return replace(export, plate=export.plate.keep(keys), problems=problems)


def _numbers(kind: str, chosen: Sequence[Any] | None, values: Sequence[Any]) -> list[int]:
    """Returns the places of the chosen values among all of them, ascending."""
    if chosen is None:
        return list(range(len(values)))
    for value in chosen:
        if value not in values:
            raise UserError(f"{kind}: the export has no {kind[:-1]} {value!r}; {nearest(value, values)}")
    return sorted(values.index(value) for value in set(chosen))


# ---------------------------------------------------------------- channels, times and planes


def _with_chosen_planes(
    export: Export, channels: Sequence[int], times: Sequence[int], planes: Sequence[int]
) -> Export:
    ranks = [{number: rank for rank, number in enumerate(numbers)} for numbers in (times, channels, planes)]
    files = {key: _files(plane_files, *ranks) for key, plane_files in export.files.items()}
    plate = _plate(export.plate, channels, planes)
    fields, places_by_field = [], {}
    for field in export.plate.fields:
        part, places = _field(field, export.plate, channels, times, planes)
        if places:
            fields.append(part)
            places_by_field[field.key] = places
    places_by_acquisition: dict[int, set[tuple[int, int, int]]] = {}
    for key, plane_files in files.items():
        places_by_acquisition.setdefault(key.acquisition, set()).update(file.place for file in plane_files)
    complete = {
        key
        for key, places in places_by_field.items()
        if places | places_by_acquisition.get(key.acquisition, set())
        == {file.place for file in files.get(key, ())}
    }
    return replace(
        export,
        plate=replace(plate, fields=tuple(fields)),
        files={key: files[key] for key in files if key in places_by_field},
        problems=tuple(p for p in export.problems if p.key in places_by_field and p.key not in complete),
    )


def _files(
    files: Sequence[PlaneFile], time: Mapping[int, int], channel: Mapping[int, int], plane: Mapping[int, int]
) -> tuple[PlaneFile, ...]:
    return tuple(
        replace(file, time=time[file.time], channel=channel[file.channel], plane=plane[file.plane])
        for file in files
        if file.time in time and file.channel in channel and file.plane in plane
    )


def _plate(plate: Plate, channels: Sequence[int], planes: Sequence[int]) -> Plate:
    chosen = tuple(plate.channels[number] for number in channels)
    omitted = {channel.name for channel in plate.channels} - {channel.name for channel in chosen}
    details = dict(plate.details)
    # What the vendor states of each. Numbers of the vendor's, as CellVoyager's Ch1, are no names, and stay.
    if isinstance(stated := details.get("channels"), Mapping):
        details["channels"] = {name: facts for name, facts in stated.items() if name not in omitted}
    steps, plane_um = {upper - lower for lower, upper in pairwise(planes)}, None
    if plate.plane_um is not None and len(steps) < 2:
        plane_um = round(plate.plane_um * max(steps, default=1), 4)
    return replace(plate, channels=chosen, plane_um=plane_um, details=details)


def _field(
    field: Field, plate: Plate, channels: Sequence[int], times: Sequence[int], planes: Sequence[int]
) -> tuple[Field, set[tuple[int, int, int]]]:
    """Returns the part of a field, and the planes of it that the export names, by their new numbers."""
    own_times = [time for time in times if time < field.shape[0]]
    own_planes = [plane for plane in planes if plane < field.shape[2]]
    details, places = dict(field.details), set()
    imaged_planes = {
        plate.channels[number].name: field.planes(plate.channels[number].name) for number in channels
    }
    times_of: Mapping[str, Collection[int]] = details.get("times", {})
    for fact in BY_CHANNEL:
        if fact in details:
            details[fact] = {name: values for name, values in details[fact].items() if name in imaged_planes}
    details["planes"], details["times"] = {}, {}
    for rank, (name, plane_numbers) in enumerate(imaged_planes.items()):
        new_planes = [number for number, plane in enumerate(own_planes) if plane in plane_numbers]
        new_times = [number for number, time in enumerate(own_times) if time in times_of.get(name, own_times)]
        if new_planes and new_times:
            places |= {(time, rank, plane) for time in new_times for plane in new_planes}
            details["planes"][name], details["times"][name] = new_planes, new_times
            if name in details.get("z_um", {}):
                heights = dict(zip(plane_numbers, field.details["z_um"][name], strict=False))
                details["z_um"][name] = [heights[plane] for plane in own_planes if plane in heights]
    if all(len(new_times) == len(own_times) for new_times in details["times"].values()):
        del details["times"]
    if len(details.get("seconds", ())) == field.shape[0]:
        details["seconds"] = [details["seconds"][time] for time in own_times]
    depth = max((plane for *_, plane in places), default=0) + 1
    shape = (max(len(own_times), 1), len(channels), depth, *field.shape[-2:])
    z_um = tuple(field.z_um[plane] for plane in own_planes) if field.z_um else ()
    z_um = z_um if len(z_um) == depth else ()
    return replace(field, shape=shape, z_um=z_um, details=details), places
