"""Any folder of TIFF or PNG files whose names, or a table, tell what they show, to an `Export`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from hpc_isl.mistake import Mistake
from hpc_isl.plates.planes import Header, header
from hpc_isl.plates.plate import Export, Field, FieldKey, PlaneFile, Plate
from hpc_isl.plates.readers import pattern_axes, stacks
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.pattern_axes import Axes
from hpc_isl.plates.readers.pattern_names import Named, by_regex, by_table
from hpc_isl.recipes.plates import PatternRecipe


@dataclass(frozen=True, slots=True)
class Shot:
    """One page of one file; `number` is its plane's, by name or by page, None where none is said."""

    file: PlaneFile
    number: float | None


def read(folder: Path, recipe: PatternRecipe) -> Export:
    """The plate that the file names of `folder`, or a table, describe; the headers of all files are read.

    - Planes are ordered by number: -4 before 2 before 10. Numbers count within an acquisition, so a
      channel with the one plane 5 has it where others have theirs. Numbers with a decimal point are
      heights in µm, and count within a field.
    - A file with several pages holds one plane per page.
    - Times and acquisitions are in natural order (t2 before t10).
    - With a group `image` each image becomes a well, A01, A02, …, in natural order; its name is kept
      in the plate map's column `image`.
    - Field names stay where all are alphanumeric, else they are numbered in natural order and kept in
      `details["name"]`.

    Raises:
        Mistake: see `by_regex`, `by_table` and `axes`; also a plane that is no number, and no file
            that can be read.
    """
    below = list_folder(folder)
    named, remarks = _named(below, recipe)
    axes = pattern_axes.axes(named, recipe)
    names = [channel.name for channel in axes.channels]
    headers, unreadable = _headers(below, named)
    by_field: dict[FieldKey, list[Shot]] = defaultdict(list)
    for n in named:
        by_field[axes.key(n)] += _shots(n, below.root / n.name, axes, headers)
    heights = any("." in n.plane for n in named)
    numbers = _numbers(by_field, heights)
    planes = {key: _planes(shots, numbers[key]) for key, shots in by_field.items()}
    files, problems = stacks.check(planes, names, unreadable)
    z_um = {key: _z_um(numbers[key], heights, recipe.plane_um) for key in planes}
    fields = tuple(_field(key, planes[key], axes, numbers[key], z_um[key], headers) for key in planes)
    plate = Plate(
        name=below.root.name,
        rows=axes.wells.rows,
        columns=axes.wells.columns,
        channels=axes.channels,
        fields=fields,
        pixel_um=recipe.pixel_um,
        plane_um=stacks.spacing(fields),
        acquisitions={number: name or "0" for name, number in axes.acquisitions.items()},
        details={"reader": "pattern"},
    )
    problems += _disagreements(files, headers, below.root)
    if heights:
        remarks.append("the planes' names have decimal points and are taken as heights in micrometres")
    return Export(plate, files, tuple(problems), axes.wells.plate_map, tuple(remarks))


def _named(below: Folder, recipe: PatternRecipe) -> tuple[list[Named], list[str]]:
    if recipe.table is not None:
        return by_table(below, recipe.table), []
    assert recipe.regex is not None, "the recipe holds one of the two"
    named, others = by_regex(below, recipe.regex)
    return named, [others] if others else []


def _headers(below: Folder, named: Sequence[Named]) -> tuple[dict[Path, Header], dict[Path, str]]:
    """The headers of the files that can be used, and a clause about each of the others."""
    stated = {n.name: n.plane for n in named}
    unreadable = {below.root / name: f"{name} is missing" for name in stated.keys() - below.files}
    names = sorted(stated.keys() & below.files)
    headers: dict[Path, Header] = {}
    with ThreadPoolExecutor(8) as pool:  # they wait for the file system together
        for name, result in zip(names, pool.map(_header, [below.root / name for name in names]), strict=True):
            if isinstance(result, Mistake):
                unreadable[below.root / name] = str(result)
            elif result.pages > 1 and stated[name]:
                plane = stated[name]
                unreadable[below.root / name] = (
                    f"{name} has {result.pages} pages, but is said to be plane {plane}"
                )
            else:
                headers[below.root / name] = result
    if not headers:
        raise Mistake(f"{below.root}: no file can be used; {next(iter(unreadable.values()))}")
    return headers, unreadable


def _header(path: Path) -> Header | Mistake:
    try:
        return header(path)
    except Mistake as error:
        return error


def _shots(named: Named, path: Path, axes: Axes, headers: Mapping[Path, Header]) -> list[Shot]:
    pages = headers[path].pages if path in headers else 1
    stated = pattern_axes.plane_number(named)
    time = axes.times[axes.acquisitions[named.acquisition], named.time]
    return [
        Shot(
            PlaneFile(path, time, axes.channel_of[named.channel], plane=0, page=page),
            float(page) if pages > 1 else stated,
        )
        for page in range(pages)
    ]


def _numbers(by_field: Mapping[FieldKey, Sequence[Shot]], heights: bool) -> dict[FieldKey, list[float]]:
    """The plane numbers that count for each field, in order: its own heights, or its acquisition's."""
    own = {key: {shot.number for shot in shots if shot.number is not None} for key, shots in by_field.items()}
    shared: dict[int, set[float]] = defaultdict(set)
    for key, numbers in own.items():
        shared[key.acquisition] |= numbers
    return {key: sorted(own[key] if heights else shared[key.acquisition]) for key in own}


def _planes(shots: Sequence[Shot], numbers: Sequence[float]) -> list[PlaneFile]:
    z_of = {number: z for z, number in enumerate(numbers)}
    return [replace(s.file, plane=0 if s.number is None else z_of[s.number]) for s in shots]


def _field(
    key: FieldKey,
    planes: Sequence[PlaneFile],
    axes: Axes,
    numbers: Sequence[float],
    z_um: tuple[float, ...],
    headers: Mapping[Path, Header],
) -> Field:
    """A field of which no file can be used is given the shape of another: its problems say so."""
    names = [channel.name for channel in axes.channels]
    known = next((headers[p.path] for p in planes if p.path in headers), next(iter(headers.values())))
    times, depth = stacks.extent(planes)
    return Field(
        key=key,
        shape=(times, len(names), max(depth, len(numbers)), *known.shape),
        dtype=known.dtype,
        z_um=z_um,
        details={**stacks.imaged(planes, names), **axes.original(key), **_stated(numbers)},
    )


def _stated(numbers: Sequence[float]) -> dict[str, list[float]]:
    """The numbers of the planes as the names have them, 2 rather than 2.0."""
    return {"plane_numbers": [int(n) if n.is_integer() else n for n in numbers]} if numbers else {}


def _z_um(numbers: Sequence[float], heights: bool, plane_um: float | None) -> tuple[float, ...]:
    """Heights as the names state them; or from numbers, whose smallest difference is `plane_um`."""
    if heights:
        return tuple(numbers)
    if plane_um is None or len(numbers) < 2:
        return ()
    step = min(upper - lower for lower, upper in pairwise(numbers))
    return tuple(round((number - numbers[0]) / step * plane_um, 4) for number in numbers)


def _disagreements(
    files: Mapping[FieldKey, Sequence[PlaneFile]], headers: Mapping[Path, Header], root: Path
) -> list[stacks.Problem]:
    """Fields whose planes can each be read, but not be stacked."""
    problems = []
    for key, planes in files.items():
        kinds = {(headers[p.path].shape, headers[p.path].dtype): p.path for p in planes}
        if len(kinds) > 1:
            said = ", ".join(
                f"{path.relative_to(root)} {shape} {dtype}" for (shape, dtype), path in kinds.items()
            )
            problems.append((key, f"its planes differ in shape or type: {said}"))
    return problems
