"""Which planes can be stored together: finds duplicate, missing and differing ones without reading pixels."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hpc_isl.errors import many
from hpc_isl.plates.plate import NOT_IMAGED, FieldKey, PlaneFile, PlaneIndex, Problem, well_position

SHOWN = 3
NEARLY_ALL = 0.75  # of the wells: a channel that these have, the others lack by accident

Size = tuple[int, int]
Kind = tuple[Size, str]
"""Size (y, x) and type of a plane."""
Files = Mapping[FieldKey, Sequence[PlaneFile]]
T = TypeVar("T")


def check(
    named: Mapping[FieldKey, Sequence[PlaneFile]],
    channels: Sequence[str],
    unreadable: Mapping[Path, str],
    *,
    absent: Collection[Path] = (),
    unimaged: Collection[Path] = (),
    indexed: bool = False,
) -> tuple[dict[FieldKey, tuple[PlaneFile, ...]], list[Problem]]:
    """Returns the planes that can be stored, and the problems of the fields.

    Of two files for one plane, and of one for two planes, nothing is stored, because nothing tells which is
    right. What is named twice alike is named once.

    Args:
        named: the planes that an index, a table or file names list, by field.
        channels: names of the plate's channels, for the messages.
        unreadable: those of the named files that are missing or damaged -> a clause for the message.
        absent, unimaged: those of them that are missing, and that the instrument never wrote.
        indexed: an index names the planes: what it does not name was not imaged, which is no damage.
    """
    problems: list[Problem] = []
    files: dict[FieldKey, tuple[PlaneFile, ...]] = {}
    fields_of = _shared_files(named, unreadable)
    for key, planes in named.items():
        planes = list(dict.fromkeys(planes))
        duplicates, doubtful_planes = _contradictions(planes, channels)
        shared_planes = [plane for plane in planes if (plane.path, plane.page) in fields_of]
        doubtful_planes.update(shared_planes)
        duplicates += dict.fromkeys(
            f"{plane.path.name} is given for the fields "
            + listed([str(field) for field in fields_of[plane.path, plane.page]])
            for plane in shared_planes
        )
        lost_paths = {plane.path for plane in planes if plane.path in unreadable}
        for kind, paths in (
            ("missing", lost_paths.intersection(absent)),
            (NOT_IMAGED, lost_paths.intersection(unimaged)),
            ("damaged", lost_paths.difference(absent, unimaged)),
        ):
            clauses = list(dict.fromkeys(unreadable[p.path] for p in planes if p.path in paths))
            problems += [Problem(key, listed(clauses), kind)] if clauses else []
        problems += [Problem(key, listed(duplicates), "duplicate")] if duplicates else []
        kept_planes = [
            plane for plane in planes if plane not in doubtful_planes and plane.path not in lost_paths
        ]
        files[key] = tuple(sorted(kept_planes, key=lambda plane: plane.place))
    return files, problems + _incomplete_fields(named, channels, NOT_IMAGED if indexed else "incomplete")


def extent(planes: Sequence[PlaneFile]) -> tuple[int, int]:
    """Returns the numbers of times and planes that a stored image of these planes has."""
    return 1 + max(p.time for p in planes), 1 + max(p.plane for p in planes)


def _shared_files(
    named: Mapping[FieldKey, Sequence[PlaneFile]], unreadable: Mapping[Path, str]
) -> dict[tuple[Path, int], list[FieldKey]]:
    """Returns (file, page) -> its fields, of those pages that are given for several fields."""
    first_fields: dict[tuple[Path, int], FieldKey] = {}
    shared: dict[tuple[Path, int], list[FieldKey]] = {}
    for key, planes in named.items():
        # Of what is not there nothing is stored: indices may give images without a file one name.
        for page in dict.fromkeys(
            (plane.path, plane.page) for plane in planes if plane.path not in unreadable
        ):
            if (first := first_fields.setdefault(page, key)) != key:
                shared.setdefault(page, [first]).append(key)
    return shared


def _contradictions(planes: Sequence[PlaneFile], channels: Sequence[str]) -> tuple[list[str], set[PlaneFile]]:
    """Returns clauses on planes with two files and files for two planes, and the planes concerned."""
    by_place: dict[PlaneIndex, PlaneFile] = {}
    by_file: dict[tuple[Path, int], PlaneFile] = {}
    clauses: list[str] = []
    doubtful_planes: set[PlaneFile] = set()
    for plane in planes:
        same_place = by_place.setdefault(plane.place, plane)
        same_page = by_file.setdefault((plane.path, plane.page), plane)
        if same_place is not plane:
            # Both paths, below the last folder that they share.
            folder = os.path.commonpath([same_place.path.parent, plane.path.parent])
            paths = f"{same_place.path.relative_to(folder)} and {plane.path.relative_to(folder)}"
            clauses.append(f"{_plane_name(plane.place, channels)} is given twice: {paths}")
            doubtful_planes |= {same_place, plane}
        elif same_page.place != plane.place:
            places = f"{_plane_name(same_page.place, channels)} and {_plane_name(plane.place, channels)}"
            clauses.append(f"{plane.path.name} is given for {places}")
            doubtful_planes |= {same_page, plane}
    return clauses, doubtful_planes


def _incomplete_fields(
    named: Mapping[FieldKey, Sequence[PlaneFile]], channels: Sequence[str], kind: str
) -> list[Problem]:
    """Returns fields that lack planes which their neighbours have: a lost file leaves no other trace.

    Expected of a channel are the planes that at least half of the fields with this channel have.
    """
    # A channel that most fields of a well lack was left out by design, unless nearly all wells have it; so
    # was the end of a series.
    problems = []
    for acquisition in {key.acquisition for key in named}:
        planes_by_field = {key: planes for key, planes in named.items() if key.acquisition == acquisition}
        usual_places = _usual_places(planes_by_field)
        wells = {channel: _wells_with_channel(planes_by_field, channel) for channel in usual_places}
        well_count = len({key.well for key in planes_by_field})
        for key, planes in planes_by_field.items():
            last_time = max((plane.time for plane in planes), default=0)
            expected = {
                place
                for channel, places in usual_places.items()
                if key.well in wells[channel] or len(wells[channel]) >= NEARLY_ALL * well_count
                for place in places
                if place[0] <= last_time
            }
            if lacking := sorted(expected - {plane.place for plane in planes}):
                names = listed([_plane_name(where, channels) for where in lacking])
                problems.append(Problem(key, f"lacks {names}, which most fields have", kind))
    return problems


def _usual_places(named: Mapping[FieldKey, Sequence[PlaneFile]]) -> dict[int, set[PlaneIndex]]:
    """Returns channel -> the planes that at least half of its fields have."""
    counts: dict[int, Counter[PlaneIndex]] = defaultdict(Counter)
    fields: Counter[int] = Counter()
    for planes in named.values():
        places = {plane.place for plane in planes}
        fields.update({channel for _, channel, _ in places})
        for place in places:
            counts[place[1]][place] += 1
    return {
        channel: {place for place, n in count.items() if 2 * n >= fields[channel]}
        for channel, count in counts.items()
    }


def _wells_with_channel(named: Mapping[FieldKey, Sequence[PlaneFile]], channel: int) -> set[str]:
    """Returns the wells of which at least half of the fields have a channel."""
    fields = Counter(key.well for key in named)
    having = Counter(key.well for key, planes in named.items() if any(p.channel == channel for p in planes))
    return {well for well, count in having.items() if 2 * count >= fields[well]}


def gaps(named: Mapping[FieldKey, Sequence[PlaneFile]], channels: Sequence[str]) -> list[str]:
    """Returns remarks on what was not imaged: channels that some wells lack, and series that ended early."""
    wells: dict[int, set[str]] = defaultdict(set)
    for key, planes in named.items():
        for channel in {plane.channel for plane in planes}:
            wells[channel].add(key.well)
    all_wells = {key.well for key in named}
    remarks = []
    for channel, imaged_wells in sorted(wells.items()):
        if lacking := sorted(all_wells - imaged_wells, key=well_position):
            remarks.append(
                f"channel {channels[channel]!r} was not imaged in {len(lacking)} of {len(all_wells)} wells "
                f"({listed(lacking)})"
            )
    last_times = {key: max(plane.time for plane in planes) for key, planes in named.items() if planes}
    latest: dict[int, int] = {}  # of each acquisition, whose series have lengths of their own
    for key, time in last_times.items():
        latest[key.acquisition] = max(latest.get(key.acquisition, 0), time)
    early_fields = [key for key, time in last_times.items() if time < latest[key.acquisition]]
    if early_fields:
        examples = listed([str(key) for key in early_fields])
        remarks.append(
            f"{len(early_fields)} of {len(last_times)} fields end before the last time ({examples})"
        )
    return remarks


def _plane_name(where: PlaneIndex, channels: Sequence[str]) -> str:
    time, channel, plane = where
    return f"channel {channels[channel]!r} plane {plane}" + (f" time {time}" if time else "")


def listed(items: Sequence[str]) -> str:
    """Returns the first items, and how many more there are."""
    remainder = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + remainder


# ---------------------------------------------------------------- size and type, by the files' headers


def agreeing(
    files: Files, headers: Mapping[Path, Kind]
) -> tuple[dict[FieldKey, tuple[PlaneFile, ...]], list[Problem], list[str]]:
    """Returns the files without those that differ from the others, these as problems, and remarks.

    A plane has the size of most of its field, and the type of most planes of its channel, or of all of its
    field. Fields that differ as a whole are stored as they are, and remarked.
    """
    types: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    sizes: Counter[Size] = Counter()
    for key, plane_files in files.items():
        for file in plane_files:
            size, dtype = headers[file.path]
            types[key.acquisition, file.channel][dtype] += 1
            sizes[size] += 1
    all_types = sum(types.values(), Counter())
    # Types are compared by channel, because cameras of one plate may differ; sizes within a field.
    usual_type = {place: most(counts, all_types) for place, counts in types.items()}
    kept_files: dict[FieldKey, tuple[PlaneFile, ...]] = {}
    problems: list[Problem] = []
    for key, plane_files in files.items():
        if not plane_files:
            kept_files[key] = ()
            continue
        size = most(Counter(headers[file.path][0] for file in plane_files), sizes)
        one_type = len({headers[file.path][1] for file in plane_files}) == 1
        odd_files = []
        for file in plane_files:
            usual_kind = (
                size,
                headers[file.path][1] if one_type else usual_type[key.acquisition, file.channel],
            )
            if headers[file.path] != usual_kind:
                odd_files.append(file)
                is_kind = f"{file.path.name} is {described(headers[file.path])}"
                problems.append(
                    Problem(key, f"{is_kind}, other planes are {described(usual_kind)}", "differing")
                )
        kept_files[key] = tuple(file for file in plane_files if file not in odd_files)
    return kept_files, problems, _odd_fields(kept_files, headers)


def kinds(files: Files, headers: Mapping[Path, Kind]) -> dict[FieldKey, Kind]:
    """Returns the kind of most planes of each field; of a field without planes, that of most of all."""
    by_field = {
        key: Counter(headers[file.path] for file in plane_files) for key, plane_files in files.items()
    }
    all_kinds = sum(by_field.values(), Counter()) or Counter(headers.values())
    return {key: most(counts or all_kinds, all_kinds) for key, counts in by_field.items()}


def most(counts: Counter[T], others: Counter[T]) -> T:
    """Returns what occurs most; of several that do, the one that occurs most elsewhere too."""
    # By text at last, so that a tie does not depend on the order of files.
    return max(counts, key=lambda value: (counts[value], others[value], str(value)))


def channel_sizes(channels: Iterable[tuple[int, Path]], headers: Mapping[Path, Kind]) -> dict[int, Size]:
    """Returns the size that most planes of each channel have, of (channel, file) of each plane."""
    counts: dict[int, Counter[Size]] = defaultdict(Counter)
    for channel, path in channels:
        if path in headers:
            counts[channel][headers[path][0]] += 1
    all_sizes = sum(counts.values(), Counter())
    return {channel: most(size_counts, all_sizes) for channel, size_counts in counts.items()}


def described(kind: Kind) -> str:
    """Returns a kind in words, as "uint16 of 512 × 512 pixels"."""
    (y, x), dtype = kind
    return f"{dtype} of {y} × {x} pixels"


def _odd_fields(files: Files, headers: Mapping[Path, Kind]) -> list[str]:
    """Returns remarks on fields of another kind than most, channel by channel."""
    by_kind: dict[int, dict[Kind, set[FieldKey]]] = defaultdict(lambda: defaultdict(set))
    for key, plane_files in files.items():
        for file in plane_files:
            by_kind[file.channel][headers[file.path]].add(key)
    odd_keys: dict[Kind, set[FieldKey]] = defaultdict(set)
    for fields in by_kind.values():
        usual_kind = max(fields, key=lambda kind: (len(fields[kind]), kind))
        for kind, keys in fields.items():
            if kind != usual_kind:
                odd_keys[kind] |= keys
    remarks = []
    for kind, keys in odd_keys.items():
        examples = listed([str(key) for key in sorted(keys, key=lambda key: key.place)])
        remarks.append(
            f"{many(len(keys), 'field', 'differs', 'differ')} from most: {described(kind)}, {examples}"
        )
    return remarks
