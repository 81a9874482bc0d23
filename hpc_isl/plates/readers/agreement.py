"""Which planes can be stored together, as the headers of their files say, without reading pixels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hpc_isl.plates.plate import FieldKey, PlaneFile, Problem
from hpc_isl.plates.readers.stacks import listed

Size = tuple[int, int]
Kind = tuple[Size, str]
"""Size (y, x) and type of a plane."""
T = TypeVar("T")
Files = Mapping[FieldKey, Sequence[PlaneFile]]


def agreeing(
    files: Files, headers: Mapping[Path, Kind]
) -> tuple[dict[FieldKey, tuple[PlaneFile, ...]], list[Problem], list[str]]:
    """Returns the files without those that differ from the others, these as problems, and remarks.

    A plane has the size of most of its field, and the type of most planes of its channel, or of all of its
    field. Fields that differ as a whole are stored as they are, and remarked.
    """
    types: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    sizes: Counter[Size] = Counter()
    for key, own in files.items():
        for file in own:
            size, dtype = headers[file.path]
            types[key.acquisition, file.channel][dtype] += 1
            sizes[size] += 1
    every = sum(types.values(), Counter())
    usual_type = {place: most(counts, every) for place, counts in types.items()}
    kept: dict[FieldKey, tuple[PlaneFile, ...]] = {}
    problems: list[Problem] = []
    for key, own in files.items():
        if not own:
            kept[key] = ()
            continue
        size = most(Counter(headers[file.path][0] for file in own), sizes)
        one_type = len({headers[file.path][1] for file in own}) == 1
        odd = []
        for file in own:
            usual = (size, headers[file.path][1] if one_type else usual_type[key.acquisition, file.channel])
            if headers[file.path] != usual:
                odd.append(file)
                is_kind = f"{file.path.name} is {described(headers[file.path])}"
                problems.append(Problem(key, f"{is_kind}, other planes are {described(usual)}", "differing"))
        kept[key] = tuple(file for file in own if file not in odd)
    return kept, problems, _odd_fields(kept, headers)


def kinds(files: Files, headers: Mapping[Path, Kind]) -> dict[FieldKey, Kind]:
    """Returns the kind of most planes of each field; of a field without planes, that of most of all."""
    own = {key: Counter(headers[file.path] for file in found) for key, found in files.items()}
    every = sum(own.values(), Counter()) or Counter(headers.values())
    return {key: most(counts or every, every) for key, counts in own.items()}


def most(counts: Counter[T], others: Counter[T]) -> T:
    """Returns what occurs most; of several that do, the one that occurs most elsewhere too."""
    return max(counts, key=lambda one: (counts[one], others[one], str(one)))


def channel_sizes(channels: Iterable[tuple[int, Path]], headers: Mapping[Path, Kind]) -> dict[int, Size]:
    """Returns the size that most planes of each channel have, of (channel, file) of each plane."""
    counts: dict[int, Counter[Size]] = defaultdict(Counter)
    for channel, path in channels:
        if path in headers:
            counts[channel][headers[path][0]] += 1
    every = sum(counts.values(), Counter())
    return {channel: most(own, every) for channel, own in counts.items()}


def described(kind: Kind) -> str:
    """Returns a kind in words, as "uint16 of 512 × 512 pixels"."""
    (y, x), dtype = kind
    return f"{dtype} of {y} × {x} pixels"


def _odd_fields(files: Files, headers: Mapping[Path, Kind]) -> list[str]:
    """Remarks on fields of another kind than most, channel by channel."""
    by_kind: dict[int, dict[Kind, set[FieldKey]]] = defaultdict(lambda: defaultdict(set))
    for key, own in files.items():
        for file in own:
            by_kind[file.channel][headers[file.path]].add(key)
    odd: dict[Kind, set[FieldKey]] = defaultdict(set)
    for found in by_kind.values():
        usual = max(found, key=lambda kind: (len(found[kind]), kind))
        for kind, keys in found.items():
            if kind != usual:
                odd[kind] |= keys
    remarks = []
    for kind, keys in odd.items():
        shown = listed([str(key) for key in sorted(keys, key=lambda key: key.place)])
        remarks.append(f"{len(keys)} fields differ from most, and are {described(kind)}: {shown}")
    return remarks
