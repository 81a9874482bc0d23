"""A part of an export: some of its fields, channels, times and planes, as if the others were not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.plate import Export, Field, FieldKey, PlaneFile, Plate, well_name, well_position
from hpc_isl.plates.readers.plane_checks import listed

PER_CHANNEL = ("planes", "times", "z_um", "projections")  # what a field's details hold for each channel


@dataclass(frozen=True)
class Choice:
    """What of an export is stored; None: all.

    Attributes:
        fields: B03/1 is one, B03 means all of its well.
        times, planes: by their numbers in the plate that all of the export would make, from 0.
    """

    fields: Sequence[str] | None = None
    channels: Sequence[str] | None = None
    times: Sequence[int] | None = None
    planes: Sequence[int] | None = None


def chosen_part(export: Export, choice: Choice) -> Export:
    """Returns the export with what is chosen alone, in its own order, and remarks on what is left out.

    Channels, times and planes that remain are numbered anew, without gaps. Fields of which no plane remains
    are left out. A fault of a field is forgotten where every plane that is chosen is there.

    Raises:
        UserError: a field, well, channel, time or plane that the export does not have; nothing remains.
    """
    remarks = []
    if choice.fields is not None:
        keys, before = _fields(export, choice.fields), len(export.plate.fields)
        export = _keep(export, keys)
        if len(keys) < before:
            remarks.append(f"fields: {len(keys)} of {before} are chosen, the others are left out")
    plate = export.plate
    names = [channel.name for channel in plate.channels]
    every = [range(max((f.shape[axis] for f in plate.fields), default=0)) for axis in (0, 2)]
    channels = _numbers("channels", choice.channels, names)
    times = _numbers("times", choice.times, list(every[0]))
    planes = _numbers("planes", choice.planes, list(every[1]))
    for what, kept, known in (
        ("channels", channels, names), ("times", times, list(every[0])), ("planes", planes, list(every[1])),
    ):  # fmt: skip
        if omitted := [str(item) for number, item in enumerate(known) if number not in kept]:
            remarks.append(f"{what}: {listed(omitted)} {'is' if len(omitted) == 1 else 'are'} left out")
    if (len(channels), len(times), len(planes)) != (len(names), len(every[0]), len(every[1])):
        export = _part(export, channels, times, planes)
        remaining = {field.key for field in export.plate.fields}
        if bare := [str(field.key) for field in plate.fields if field.key not in remaining]:
            remarks.append(f"fields that have nothing of it are left out: {len(bare)} ({listed(bare)})")
    if plate.fields and not export.plate.fields:
        raise UserError("channels, times and planes that are chosen were imaged in no field")
    return replace(export, remarks=(*export.remarks, *remarks))


def _fields(export: Export, wanted: Sequence[str]) -> set[FieldKey]:
    keys = [field.key for field in export.plate.fields]
    found: set[FieldKey] = set()
    for text in wanted:
        well, slash, name = text.partition("/")
        normal = well_name(*well_position(well)) + slash + name
        named = {key for key in keys if normal in (str(key), key.well)}
        if not named:
            names = [*map(str, keys), *export.plate.wells]
            raise UserError(f"fields: the export has no field or well {text!r}; {nearest(text, names)}")
        found |= named
    return found


def _keep(export: Export, keys: set[FieldKey]) -> Export:
    problems = tuple(problem for problem in export.problems if problem.key in keys)
    return replace(export, plate=export.plate.keep(keys), problems=problems)


def _numbers(what: str, wanted: Sequence[Any] | None, known: Sequence[Any]) -> list[int]:
    """Returns the places of what is wanted among what is known, ascending."""
    if wanted is None:
        return list(range(len(known)))
    for item in wanted:
        if item not in known:
            raise UserError(f"{what}: the export has no {what[:-1]} {item!r}; {nearest(item, known)}")
    return sorted(known.index(item) for item in set(wanted))


# ---------------------------------------------------------------- channels, times and planes


def _part(export: Export, channels: Sequence[int], times: Sequence[int], planes: Sequence[int]) -> Export:
    ranks = [{number: rank for rank, number in enumerate(kept)} for kept in (times, channels, planes)]
    files = {key: _files(own, *ranks) for key, own in export.files.items()}
    plate = _plate(export.plate, channels, planes)
    fields, named = [], {}
    for field in export.plate.fields:
        part, places = _field(field, export.plate, channels, times, planes)
        if places:
            fields.append(part)
            named[field.key] = places
    usual: dict[int, set[tuple[int, int, int]]] = {}
    for key, own in files.items():
        usual.setdefault(key.acquisition, set()).update(file.place for file in own)
    complete = {
        key
        for key, places in named.items()
        if places | usual.get(key.acquisition, set()) == {file.place for file in files.get(key, ())}
    }
    return replace(
        export,
        plate=replace(plate, fields=tuple(fields)),
        files={key: files[key] for key in files if key in named},
        problems=tuple(p for p in export.problems if p.key in named and p.key not in complete),
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
    kept = tuple(plate.channels[number] for number in channels)
    names = {channel.name for channel in kept}
    details = dict(plate.details)
    if isinstance(details.get("channels"), Mapping):  # what the vendor states of each
        details["channels"] = {name: own for name, own in details["channels"].items() if name in names}
    steps, plane_um = {upper - lower for lower, upper in pairwise(planes)}, None
    if plate.plane_um is not None and len(steps) < 2:
        plane_um = round(plate.plane_um * max(steps, default=1), 4)
    return replace(plate, channels=kept, plane_um=plane_um, details=details)


def _field(
    field: Field, plate: Plate, channels: Sequence[int], times: Sequence[int], planes: Sequence[int]
) -> tuple[Field, set[tuple[int, int, int]]]:
    """Returns the part of a field, and the planes of it that the export names, by their new numbers."""
    own_times = [time for time in times if time < field.shape[0]]
    own_planes = [plane for plane in planes if plane < field.shape[2]]
    details, named = dict(field.details), set()
    imaged = {plate.channels[number].name: field.planes(plate.channels[number].name) for number in channels}
    at: Mapping[str, Collection[int]] = details.get("times", {})
    for fact in PER_CHANNEL:
        if fact in details:
            details[fact] = {name: own for name, own in details[fact].items() if name in imaged}
    details["planes"], details["times"] = {}, {}
    for rank, (name, stored) in enumerate(imaged.items()):
        kept = [number for number, plane in enumerate(own_planes) if plane in stored]
        moments = [number for number, time in enumerate(own_times) if time in at.get(name, own_times)]
        if kept and moments:
            named |= {(time, rank, plane) for time in moments for plane in kept}
            details["planes"][name], details["times"][name] = kept, moments
            if name in details.get("z_um", {}):
                heights = dict(zip(stored, field.details["z_um"][name], strict=False))
                details["z_um"][name] = [heights[plane] for plane in own_planes if plane in heights]
    if all(len(moments) == len(own_times) for moments in details["times"].values()):
        del details["times"]
    if len(details.get("seconds", ())) == field.shape[0]:
        details["seconds"] = [details["seconds"][time] for time in own_times]
    depth = max((plane for *_, plane in named), default=0) + 1
    shape = (max(len(own_times), 1), len(channels), depth, *field.shape[-2:])
    z_um = tuple(field.z_um[plane] for plane in own_planes) if field.z_um else ()
    z_um = z_um if len(z_um) == depth else ()
    return replace(field, shape=shape, z_um=z_um, details=details), named
