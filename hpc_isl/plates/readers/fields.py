"""From planes, as names and metadata describe them, to fields and channels of a plate."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hpc_isl.plates.plate import Channel, Field, FieldKey, LeftOut, PlaneFile, Problem, imaged
from hpc_isl.plates.readers import agreement, stacks
from hpc_isl.plates.readers.agreement import Kind, Size
from hpc_isl.plates.readers.plane_metadata import PlaneMetadata
from hpc_isl.plates.readers.quantities import seconds_between

_TRANSMITTED = re.compile(r"bright-?\s?field|phase|transmi|(?<![a-z])(?:dic|tl|bf)(?![a-z])", re.IGNORECASE)
SQUARE = 0.005  # edges of a pixel that agree within this share are those of a square


@dataclass(frozen=True, slots=True)
class Shot:
    """One plane of a field: where it lies, and what is said of it."""

    file: PlaneFile
    metadata: PlaneMetadata


@dataclass(frozen=True, slots=True)
class Described:
    """One plane as a vendor describes it: `time`, `channel` and `plane` are the vendor's numbers."""

    key: FieldKey
    path: Path
    time: int
    channel: int
    plane: int
    metadata: PlaneMetadata
    page: int = 0


def placed(planes: Sequence[Described], channels: Sequence[int]) -> dict[FieldKey, list[Shot]]:
    """Returns the planes of each field, in plate order, with indices into its stored image.

    Channels are in the order of `channels`; planes rank among those of their acquisition, times among
    those that fields with a time in common have: wells with a time line each begin at 0 each.
    """
    channel_of = {number: place for place, number in enumerate(channels)}
    depths: dict[int, set[int]] = defaultdict(set)
    for plane in planes:
        depths[plane.key.acquisition].add(plane.plane)
    plane_of = {a: {number: rank for rank, number in enumerate(sorted(own))} for a, own in depths.items()}
    time_of = _time_ranks(planes)
    found: dict[FieldKey, list[Shot]] = defaultdict(list)
    for plane in planes:
        acquisition = plane.key.acquisition
        time, z = time_of[acquisition, plane.time], plane_of[acquisition][plane.plane]
        file = PlaneFile(plane.path, time, channel_of[plane.channel], z, plane.page)
        found[plane.key].append(Shot(file, plane.metadata))
    return {key: found[key] for key in sorted(found, key=lambda key: key.place)}


class Parts(NamedTuple):
    """What planes make of a plate."""

    channels: tuple[Channel, ...]
    fields: tuple[Field, ...]
    files: Mapping[FieldKey, tuple[PlaneFile, ...]]
    problems: list[Problem]
    remarks: list[str]


def parts(
    planes: Sequence[Described],
    channels: Mapping[int, Channel],
    pixel_um: float | None,
    unreadable: Mapping[Path, str] = {},
    *,
    kinds: Mapping[FieldKey, Kind] = {},
    headers: Mapping[Path, Kind] = {},
    absent: Collection[Path] = (),
    indexed: bool = False,
    details: Mapping[FieldKey, Mapping[str, Any]] = {},
) -> Parts:
    """Returns the fields that planes make, checked, and what is remarkable about them.

    Args:
        channels: the vendor's number -> channel, in stored order.
        unreadable, absent, indexed: as for `stacks.check`.
        kinds: size (y, x) and type of each field, where nothing is known of
        headers: size and type of each file: those that differ from the others are problems.
        details: further facts of fields.
    """
    names = [channel.name for channel in channels.values()]
    shots = placed(planes, list(channels))
    named = {key: [shot.file for shot in own] for key, own in shots.items()}
    files, problems = stacks.check(named, names, unreadable, absent=absent, indexed=indexed)
    remarks: list[str] = []
    if headers:
        files, differing, remarks = agreement.agreeing(files, headers)
        problems += differing
        kinds = agreement.kinds(files, headers)
    made = tuple(
        field(key, own, names, *kinds[key], pixel_um, details.get(key, {})) for key, own in shots.items()
    )
    exposed, uneven = with_exposures(
        list(channels.values()), [shot for own in shots.values() for shot in own]
    )
    return Parts(exposed, made, files, problems, [*remarks, *uneven, *stacks.gaps(named, names)])


def odd_channels(names: Mapping[int, str], sizes: Mapping[int, Size]) -> tuple[set[int], list[str]]:
    """Returns the channels that have not the size of most, and remarks that they are left out.

    A channel of another size (other binning, another camera) cannot be stored beside the others as it is.
    """
    counts = Counter(sizes.values())
    if len(counts) < 2:
        return set(), []
    usual = max(counts, key=lambda size: (counts[size], size))
    odd = {number for number, size in sizes.items() if size != usual}
    return odd, [
        f"channel {names[number]!r} has {sizes[number][0]} × {sizes[number][1]} pixels, the others "
        f"{usual[0]} × {usual[1]}: it is left out, for pixels are not resampled unasked"
        for number in sorted(odd)
    ]


def of_one_size(
    planes: Sequence[Described], channels: Mapping[int, Channel], sizes: Mapping[int, Size]
) -> tuple[list[Described], dict[int, Channel], list[LeftOut], list[str]]:
    """Returns planes and channels that have the size of most, and what becomes of the others."""
    odd, remarks = odd_channels({number: channel.name for number, channel in channels.items()}, sizes)
    left_out = [
        LeftOut(plane.path, "channel of another size", plane.key.well, channels[plane.channel].name)
        for plane in planes
        if plane.channel in odd
    ]
    kept = [plane for plane in planes if plane.channel not in odd]
    used = {plane.channel for plane in kept}
    return kept, {number: one for number, one in channels.items() if number in used}, left_out, remarks


def _time_ranks(planes: Iterable[Described]) -> dict[tuple[int, int], int]:
    """(acquisition, the vendor's number) -> rank among the times of the same line."""
    times: dict[FieldKey, set[int]] = defaultdict(set)
    for plane in planes:
        times[plane.key].add(plane.time)
    ranks: dict[tuple[int, int], int] = {}
    for acquisition in {key.acquisition for key in times}:
        lines: list[set[int]] = []
        for own in {frozenset(times[key]) for key in times if key.acquisition == acquisition}:
            joined = [line for line in lines if line & own]
            lines = [line for line in lines if not line & own] + [set(own).union(*joined)]
        ranks |= {(acquisition, time): rank for line in lines for rank, time in enumerate(sorted(line))}
    return ranks


def field(
    key: FieldKey,
    shots: Sequence[Shot],
    names: Sequence[str],
    size: tuple[int, int],
    dtype: str,
    pixel_um: float | None,
    details: Mapping[str, Any] = {},
) -> Field:
    """Returns the field that these planes make; `names` are those of the plate's channels.

    The position is that of the first plane that states one, of the earliest time.
    """
    planes = [shot.file for shot in shots]
    times, depth = stacks.extent(planes)
    heights = _heights(shots, names)
    longest = max(heights.values(), key=len, default=())
    stored = imaged([plane.place for plane in planes], names, times)
    if len(set(heights.values())) > 1:
        details = {**details, "z_um": {name: list(values) for name, values in heights.items()}}
    return Field(
        key=key,
        shape=(times, len(names), depth, *size),
        dtype=dtype,
        position_um=first_pixel(_center(shots), size, pixel_um),
        z_um=longest if len(longest) == depth else (),
        details={**stored, **_times(shots), **_projections(shots, names), **details},
    )


def first_pixel(
    center_um: tuple[float, float] | None, size: tuple[int, int], pixel_um: float | None
) -> tuple[float, float] | None:
    """Returns (y, x) of the centre of a field's first pixel in µm, from that of the field."""
    if center_um is None or pixel_um is None:
        return None
    y, x = (round(at - (length - 1) / 2 * pixel_um, 4) for at, length in zip(center_um, size, strict=True))
    return y, x


def pixel_edge(edges: Iterable[tuple[float, float] | None]) -> tuple[float | None, list[str]]:
    """Returns the one edge of all pixels in µm, from stated edges (y, x); or None and why, as remarks."""
    stated = {edge for edge in edges if edge is not None}
    if not stated:
        return None, []
    values = sorted({value for edge in stated for value in edge})
    if values[-1] <= values[0] * (1 + SQUARE):
        return min(stated)[1], []
    if len(stated) == 1:
        y, x = stated.pop()
        return None, [f"pixels are not square: {x:g} µm along x, {y:g} µm along y; the size is left unknown"]
    listed = ", ".join(f"{value:g}" for value in values[:5])
    return None, [f"files state different pixel sizes ({listed} µm); the size is left unknown"]


def with_exposures(
    channels: Sequence[Channel], shots: Iterable[Shot]
) -> tuple[tuple[Channel, ...], list[str]]:
    """Returns the channels with their exposures, and a remark on each that has several."""
    stated: dict[int, set[float]] = defaultdict(set)
    for shot in shots:
        if shot.metadata.exposure_s is not None:
            stated[shot.file.channel].add(shot.metadata.exposure_s)
    remarks = [
        f"channel {channels[number].name!r} has exposures from {min(times):g} to {max(times):g} s"
        for number, times in sorted(stated.items())
        if len(times) > 1
    ]
    return tuple(
        replace(channel, exposure_s=min(stated[number])) if len(stated.get(number, ())) == 1 else channel
        for number, channel in enumerate(channels)
    ), remarks


def unique(name: str, taken: Collection[str]) -> str:
    """Returns the name, numbered where it is taken: `FITC`, `FITC 2`, …"""
    names = [name, *(f"{name} {count}" for count in range(2, len(taken) + 2))]
    return next(candidate for candidate in names if candidate not in taken)


def is_transmitted(name: str) -> bool:
    """Whether a channel's name speaks of bright-field, phase, DIC or other transmitted light."""
    return bool(_TRANSMITTED.search(name))


def _center(shots: Sequence[Shot]) -> tuple[float, float] | None:
    ordered = sorted(shots, key=lambda shot: shot.file.place)
    return next((s.metadata.center_um for s in ordered if s.metadata.center_um is not None), None)


def _heights(shots: Sequence[Shot], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Channel -> heights of its planes at the first time that has them; empty where one is unknown."""
    heights: dict[int, dict[int, float | None]] = defaultdict(dict)
    for shot in sorted(shots, key=lambda shot: shot.file.place):
        heights[shot.file.channel].setdefault(shot.file.plane, shot.metadata.z_um)
    stated = {}
    for channel in sorted(heights):
        values = [height for _, height in sorted(heights[channel].items()) if height is not None]
        stated[names[channel]] = tuple(values) if len(values) == len(heights[channel]) else ()
    return stated


def _times(shots: Sequence[Shot]) -> dict[str, Any]:
    """`time`, the field's first moment, and of a series the `seconds` from it or from the start of all."""
    first: dict[int, PlaneMetadata] = {}
    for shot in sorted(shots, key=lambda shot: (shot.metadata.moment, shot.metadata.seconds or 0.0)):
        first.setdefault(shot.file.time, shot.metadata)
    ordered = [first[time] for time in sorted(first)]
    moments = [metadata.moment for metadata in ordered]
    found: dict[str, Any] = {"time": min(moments)} if any(moments) and all(moments) else {}
    elapsed = [metadata.seconds for metadata in ordered]
    if all(value is None for value in elapsed) and found:
        elapsed = [seconds_between(found["time"], moment) for moment in moments]
    if len(ordered) > 1 and not all(value is None for value in elapsed):
        found["seconds"] = elapsed
    return found


def _projections(shots: Sequence[Shot], names: Sequence[str]) -> dict[str, Any]:
    """Channels whose planes are projections, and how these were made."""
    found = {names[s.file.channel]: s.metadata.projection for s in shots if s.metadata.projection}
    return {"projections": found} if found else {}
