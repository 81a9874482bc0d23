"""Fields and channels of a plate, made from planes and what is stated of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from hpc_isl.plates.plate import Channel, Field, FieldKey, PlaneFile, color_of, imaged, is_transmitted
from hpc_isl.plates.readers import plane_checks
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata, seconds_between

SQUARE = 0.005  # edges of a pixel that agree within this share are those of a square


@dataclass(frozen=True, slots=True)
class Shot:
    """One plane of a field: its file, and what is stated of it."""

    file: PlaneFile
    metadata: PlaneMetadata


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
    times, depth = plane_checks.extent(planes)
    heights = plane_heights(shots, names)
    longest = max(heights.values(), key=len, default=())
    ordered_shots = sorted(shots, key=lambda shot: shot.file.place)
    center_um = next((s.metadata.center_um for s in ordered_shots if s.metadata.center_um is not None), None)
    projections = {names[s.file.channel]: s.metadata.projection for s in shots if s.metadata.projection}
    imaged_details: dict[str, Any] = imaged([plane.place for plane in planes], names, times)
    imaged_details |= _times(shots)
    if projections:  # channels whose planes are projections, and how these were made
        imaged_details["projections"] = projections
    if len(set(heights.values())) > 1:
        details = {**details, "z_um": {name: list(values) for name, values in heights.items()}}
    return Field(
        key=key,
        shape=(times, len(names), depth, *size),
        dtype=dtype,
        position_um=first_pixel(center_um, size, pixel_um),
        z_um=longest if len(longest) == depth else (),
        details={**imaged_details, **details},
    )


def first_pixel(
    center_um: tuple[float, float] | None, size: tuple[int, int], pixel_um: float | None
) -> tuple[float, float] | None:
    """Returns (y, x) of the centre of a field's first pixel in µm, from that of the field."""
    if center_um is None or pixel_um is None:
        return None
    y, x = (
        round(center - (length - 1) / 2 * pixel_um, 4) for center, length in zip(center_um, size, strict=True)
    )
    return y, x


def pixel_edge(edges: Iterable[tuple[float, float] | None]) -> tuple[float | None, list[str]]:
    """Returns the one edge of all pixels in µm, from stated edges (y, x); or None and why, as remarks."""
    stated_edges = {edge for edge in edges if edge is not None}
    valid_edges = {edge for edge in stated_edges if all(isfinite(value) and value > 0 for value in edge)}
    if not valid_edges:
        wrong = ", ".join(
            f"{value:g}" for value in sorted({value for edge in stated_edges for value in edge})[:5]
        )
        return None, [f"pixels of {wrong} µm cannot be; the size is left unknown"] if stated_edges else []
    values = sorted({value for edge in valid_edges for value in edge})
    # Rounded in metadata, edges of a square pixel differ a little.
    if values[-1] <= values[0] * (1 + SQUARE):
        return min(valid_edges)[1], []
    if len(valid_edges) == 1:
        y, x = valid_edges.pop()
        return None, [f"pixels are not square: {x:g} µm along x, {y:g} µm along y; the size is left unknown"]
    examples = ", ".join(f"{value:g}" for value in values[:5])
    return None, [f"files state different pixel sizes ({examples} µm); the size is left unknown"]


def with_exposures(
    channels: Sequence[Channel], shots: Iterable[Shot]
) -> tuple[tuple[Channel, ...], list[str]]:
    """Returns the channels with their exposures, and a remark on each that has several."""
    exposures_of: dict[int, set[float]] = defaultdict(set)
    for shot in shots:
        if shot.metadata.exposure_s is not None:
            exposures_of[shot.file.channel].add(shot.metadata.exposure_s)
    remarks = [
        f"channel {channels[number].name!r} has exposures from {min(exposures):g} to {max(exposures):g} s"
        for number, exposures in sorted(exposures_of.items())
        if len(exposures) > 1
    ]
    return tuple(
        replace(channel, exposure_s=min(exposures_of[number]))
        if len(exposures_of.get(number, ())) == 1
        else channel
        for number, channel in enumerate(channels)
    ), remarks


def unique(name: str, taken: Collection[str]) -> str:
    """Returns the name, numbered where it is taken: `FITC`, `FITC 2`, …"""
    names = [name, *(f"{name} {count}" for count in range(2, len(taken) + 2))]
    return next(candidate for candidate in names if candidate not in taken)


def channel(
    name: str, excitation_nm: float | None, emission_nm: float | None, *, transmitted: bool = False
) -> Channel:
    """Returns a channel; one of transmitted light, by its name or as stated, has no wavelengths.

    Wavelengths of 0 are unknown.
    """
    fluorescent = not transmitted and not is_transmitted(name)
    excitation, emission = (nm or None if fluorescent else None for nm in (excitation_nm, emission_nm))
    color = color_of(fluorescent, emission)
    return Channel(name, fluorescent, color, excitation_nm=excitation, emission_nm=emission)


def plane_heights(shots: Sequence[Shot], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Returns channel -> heights of its planes at the first time with them; empty where one is unknown."""
    heights: dict[int, dict[int, float | None]] = defaultdict(dict)
    for shot in sorted(shots, key=lambda shot: shot.file.place):
        heights[shot.file.channel].setdefault(shot.file.plane, shot.metadata.z_um)
    named_heights = {}
    for channel in sorted(heights):
        values = [height for _, height in sorted(heights[channel].items()) if height is not None]
        named_heights[names[channel]] = tuple(values) if len(values) == len(heights[channel]) else ()
    return named_heights


def _times(shots: Sequence[Shot]) -> dict[str, Any]:
    """Returns `time`, the field's first moment, and of a series the `seconds` from it or from its start."""
    # The earliest plane of each time counts.
    by_time: dict[int, PlaneMetadata] = {}
    for shot in sorted(shots, key=lambda shot: (shot.metadata.moment, shot.metadata.seconds or 0.0)):
        by_time.setdefault(shot.file.time, shot.metadata)
    ordered = [by_time[time] for time in sorted(by_time)]
    moments = [metadata.moment for metadata in ordered]
    details: dict[str, Any] = {"time": min(moments)} if any(moments) and all(moments) else {}
    elapsed = [metadata.seconds for metadata in ordered]
    if all(value is None for value in elapsed) and details:
        elapsed = [seconds_between(details["time"], moment) for moment in moments]
    if len(ordered) > 1 and not all(value is None for value in elapsed):
        details["seconds"] = elapsed
    return details
