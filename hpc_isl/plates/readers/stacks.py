"""What every reader checks of the planes it found: duplicate, missing, and fewer than other fields have."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from hpc_isl.plates.plate import Field, FieldKey, PlaneFile

Problem = tuple[FieldKey, str]
Place = tuple[int, int, int]
SHOWN = 3
MEASURED = 0.05  # share by which steps between heights that a stage has measured may differ


def check(
    named: Mapping[FieldKey, Sequence[PlaneFile]], channels: Sequence[str], unreadable: Mapping[Path, str]
) -> tuple[dict[FieldKey, tuple[PlaneFile, ...]], list[Problem]]:
    """The planes that can be read, and what is wrong with the fields.

    Args:
        named: the planes that an index, a table or file names speak of, by field.
        channels: names of the plate's channels, for the messages.
        unreadable: those of the named files that are missing or damaged -> a clause that says so.
    """
    problems: list[Problem] = []
    files: dict[FieldKey, tuple[PlaneFile, ...]] = {}
    for key, planes in named.items():
        twice = _twice(planes, channels)
        lost = [unreadable[plane.path] for plane in planes if plane.path in unreadable]
        problems += [(key, listed(twice))] if twice else []
        problems += [(key, listed(lost))] if lost else []
        unique = {place(plane): plane for plane in reversed(planes) if plane.path not in unreadable}
        files[key] = tuple(unique[where] for where in sorted(unique))
    return files, problems + _incomplete(named, channels)


def place(plane: PlaneFile) -> Place:
    """Indices (time, channel, plane) into the field's stored image."""
    return plane.time, plane.channel, plane.plane


def extent(planes: Sequence[PlaneFile]) -> tuple[int, int]:
    """Times and planes that a stored image of these planes has."""
    return 1 + max(p.time for p in planes), 1 + max(p.plane for p in planes)


def imaged(planes: Sequence[PlaneFile], channels: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """What of a field exists, for its `details`: `planes`, and `times` where a channel lacks some."""
    depths: dict[int, set[int]] = defaultdict(set)
    times: dict[int, set[int]] = defaultdict(set)
    for plane in planes:
        depths[plane.channel].add(plane.plane)
        times[plane.channel].add(plane.time)
    found = {"planes": {channels[c]: sorted(depths[c]) for c in sorted(depths)}}
    every, _ = extent(planes)
    if any(len(seen) < every for seen in times.values()):
        found["times"] = {channels[c]: sorted(times[c]) for c in sorted(times)}
    return found


def spacing(fields: Iterable[Field], tolerance: float = 0.01) -> float | None:
    """Distance of planes in µm where all stacks rise in steps that are even within a share, else None."""
    steps = [upper - lower for z_um in {f.z_um for f in fields} for lower, upper in pairwise(z_um)]
    if not steps or min(steps) <= 0 or max(steps) > (1 + tolerance) * min(steps):
        return None
    return round(sum(steps) / len(steps), 4)


def _twice(planes: Sequence[PlaneFile], channels: Sequence[str]) -> list[str]:
    """Two files for one plane, and one file for two planes."""
    seen: dict[Place, PlaneFile] = {}
    used: dict[tuple[Path, int], Place] = {}
    found = []
    for plane in planes:
        where, first = place(plane), seen.setdefault(place(plane), plane)
        if first is not plane:
            found.append(f"{_said(where, channels)} is given twice: {_apart(first.path, plane.path)}")
        elif used.setdefault((plane.path, plane.page), where) != where:
            other = used[plane.path, plane.page]
            found.append(
                f"{plane.path.name} is given for {_said(other, channels)} and {_said(where, channels)}"
            )
    return found


def _incomplete(named: Mapping[FieldKey, Sequence[PlaneFile]], channels: Sequence[str]) -> list[Problem]:
    """Fields that lack planes which at least half of the fields of the same acquisition have.

    Half, because a file lost in copying leaves no other trace than its absence, while a stain that
    only few wells have is no fault of the others.
    """
    places = {key: {place(plane) for plane in planes} for key, planes in named.items()}
    counts: dict[int, Counter[Place]] = defaultdict(Counter)
    fields = Counter(key.acquisition for key in places)
    for key, has in places.items():
        counts[key.acquisition].update(has)
    usual = {a: {p for p, n in count.items() if 2 * n >= fields[a]} for a, count in counts.items()}
    lacking = {key: sorted(usual[key.acquisition] - has) for key, has in places.items()}
    return [
        (key, f"lacks {listed([_said(where, channels) for where in lack])}, which most fields have")
        for key, lack in lacking.items()
        if lack
    ]


def _apart(first: Path, second: Path) -> str:
    """Both paths, below the last folder that they share."""
    shared = os.path.commonpath([first.parent, second.parent])
    return f"{first.relative_to(shared)} and {second.relative_to(shared)}"


def _said(where: Place, channels: Sequence[str]) -> str:
    time, channel, plane = where
    return f"channel {channels[channel]!r} plane {plane}" + (f" time {time}" if time else "")


def listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
