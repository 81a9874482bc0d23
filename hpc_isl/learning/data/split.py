"""The split: which wells train, validate and test; drawn once, kept as a file, valid for all later stages."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import write_atomic
from hpc_isl.plates.plate import FieldKey, Plate, well_position
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import SplitRecipe
from hpc_isl.seeds import stream

PARTS = ("train", "validation", "test")
COLUMNS = ("plate", "well", "field", "part")

FieldName = tuple[str, str, str]
"""Plate, well and field name; all acquisitions of a field share its part."""
Unit = tuple[str, ...]
"""(plate, well), or (plate, well, field): the unit that is never divided between parts."""
Maps = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Plate -> well -> column of the plate map -> value."""


@dataclass(frozen=True)
class Split:
    """The part of each field.

    Attributes:
        parts: (plate, well, field name) -> train, validation or test.
    """

    parts: Mapping[FieldName, str]

    def part(self, plate: str, key: FieldKey) -> str | None:
        """Returns the part of a field, None where the split does not list it."""
        return self.parts.get((plate, key.well, key.name))

    def keys(self, plate: Plate, part: str) -> tuple[FieldKey, ...]:
        """Returns the plate's fields in `part`, in the plate's order."""
        return tuple(field.key for field in plate.fields if self.part(plate.name, field.key) == part)

    @cached_property
    def digest(self) -> str:
        """The hash that models and results cite: of the fields and their parts, not of the file."""
        return hashlib.sha256(repr(sorted(self.parts.items())).encode()).hexdigest()[:16]


def draw(indices: Sequence[Index], recipe: SplitRecipe) -> Split:
    """Returns the split that the recipe asks for: from its file, or drawn.

    A share above 0 gets one unit at least, as long as one is left to train; units held out by name
    count towards the share of test.

    Raises:
        UserError: a unit, column or value that no plate has; two plates of one name; nothing to train on.
    """
    names = [index.plate.name for index in indices]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two plates are called {name!r}; a split could not tell them apart")
    split = read(recipe.file) if recipe.file else _draw_split(indices, recipe)
    _check(split, indices, recipe)
    return split


def write(split: Split, path: Path) -> None:
    """Writes a CSV file with the columns plate, well, field, part; it appears complete or not at all."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([*place, part] for place, part in split.parts.items())
    write_atomic(path, buffer.getvalue())


def read(path: Path) -> Split:
    """Returns the split in a CSV file.

    Raises:
        UserError: no such file, a missing column, an unknown part, or two parts for one field, with its line.
    """
    try:
        # utf-8-sig: Excel puts a byte order mark before the first column.
        with path.open(newline="", encoding="utf-8-sig") as stream_:
            rows = list(csv.DictReader(stream_))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: the split cannot be read: {error}") from None
    for column in COLUMNS:
        if rows and rows[0].get(column) is None:
            raise UserError(f"{path}: the split has no column {column!r}; it needs {', '.join(COLUMNS)}")
    parts: dict[FieldName, str] = {}
    # Line 1 holds the names of the columns.
    for line, row in enumerate(rows, 2):
        if row["part"] not in PARTS:
            raise UserError(
                f"{path}, line {line}: no part is called {row['part']!r}; {nearest(row['part'], PARTS)}"
            )
        place = (row["plate"], row["well"], row["field"])
        if parts.setdefault(place, row["part"]) != row["part"]:
            raise UserError(
                f"{path}, line {line}: {'/'.join(place)} is in {parts[place]} and in {row['part']}"
            )
    return Split(parts)


def _check(split: Split, indices: Sequence[Index], recipe: SplitRecipe) -> None:
    origin = str(recipe.file or "the split")
    plates = sorted({plate for plate, _, _ in split.parts})
    for name in (index.plate.name for index in indices):
        if name not in plates:
            raise UserError(f"{origin}: has no plate {name!r}; {nearest(name, plates)}")
    if recipe.by == "well":
        wells: dict[tuple[str, str], str] = {}
        for (plate, well, _), part in split.parts.items():
            if wells.setdefault((plate, well), part) != part:
                raise UserError(
                    f"{origin}: well {well} of {plate} is in {wells[plate, well]} and in {part}; "
                    "neighbouring fields leak from part to part. Where wells are unknown, say split.by=field"
                )
    if not any(split.keys(index.plate, "train") for index in indices):
        raise UserError(
            f"{origin}: no field is left to train on; lower split.test, split.validation or split.hold_out"
        )


# ---------------------------------------------------------------- drawing


def _draw_split(indices: Sequence[Index], recipe: SplitRecipe) -> Split:
    fields = {(i.plate.name, f.key.well, f.key.name) for i in indices for f in i.plate.fields}
    # Sorted, so that the draw does not depend on the order of fields on disk.
    places = sorted(fields, key=lambda place: (place[0], FieldKey(place[1], place[2]).place))
    unit_of = {place: place[: 2 if recipe.by == "well" else 3] for place in places}
    units = list(dict.fromkeys(unit_of.values()))
    maps = {index.plate.name: index.plate_map for index in indices}
    parts = dict.fromkeys(_held_out_units(maps, units, recipe.hold_out), "test")
    named_wells = {"test": recipe.test_wells, "validation": recipe.validation_wells}
    for part, names in named_wells.items():
        for unit in _units_named(units, names or [], f"split.{part}_wells"):
            if parts.setdefault(unit, part) != part:
                raise UserError(
                    f"split.{part}_wells: {'/'.join(unit[1:])} is already held out for {parts[unit]}"
                )
    for part, share in (("test", recipe.test), ("validation", recipe.validation)):
        if named_wells[part] is not None:
            continue
        strata: dict[tuple[str, str], list[Unit]] = {}  # units by plate, and by their value of the column
        for unit in units:
            if unit not in parts:
                column = recipe.stratify
                value = _value(maps, unit, column, "split.stratify") if column else ""
                strata.setdefault((unit[0], value), []).append(unit)
        assigned, free = list(parts.values()).count(part), len(units) - len(parts)
        # One unit at least for any share; one stays to train unless all are asked for.
        needed = max(round(share * len(units)) - assigned, 1 if share and not assigned else 0)
        count = min(needed, free if share == 1 else max(free - 1, 0))
        rng = stream(recipe.seed, "split", part)
        parts |= dict.fromkeys(_share_out(list(strata.values()), count, rng), part)
    return Split({place: parts.get(unit, "train") for place, unit in unit_of.items()})


def _held_out_units(maps: Maps, units: Sequence[Unit], hold_out: Mapping[str, list[str]]) -> list[Unit]:
    held_out: list[Unit] = []
    for column, values in hold_out.items():
        value_of = {unit: _value(maps, unit, column, "split.hold_out") for unit in units}
        for value in values:
            if value not in value_of.values():
                legal_values = sorted(set(value_of.values()))
                raise UserError(
                    f"split.hold_out.{column}: no well has {value!r}; {nearest(value, legal_values)}"
                )
        held_out += [unit for unit in units if value_of[unit] in values]
    return held_out


def _value(maps: Maps, unit: Unit, column: str, key: str) -> str:
    """Returns the plate map's value for a unit's well; empty where the well has no row."""
    columns = dict.fromkeys(name for row in maps[unit[0]].values() for name in row)
    if column not in columns:
        raise UserError(
            f"{key}: the plate map of {unit[0]} has no column {column!r}; {nearest(column, columns)}"
        )
    return maps[unit[0]].get(unit[1], {}).get(column, "")


def _units_named(units: Sequence[Unit], names: Sequence[str], key: str) -> list[Unit]:
    """Returns the units of any plate with these names, written B03 (or b3) or B03/1."""
    units_by_name: dict[tuple[object, ...], list[Unit]] = {}
    for unit in units:
        units_by_name.setdefault((well_position(unit[1]), *unit[2:]), []).append(unit)
    named_units: list[Unit] = []
    for name in names:
        well, *field = name.split("/")
        if (well_position(well), *field) not in units_by_name:
            spellings = dict.fromkeys("/".join(unit[1:]) for unit in units)
            raise UserError(f"{key}: no plate has {name!r}; {nearest(name, spellings)}")
        named_units += units_by_name[well_position(well), *field]
    return named_units


def _share_out(strata: Sequence[list[Unit]], count: int, rng: np.random.Generator) -> list[Unit]:
    """Returns `count` random units, from each stratum in proportion to its size (largest remainder)."""
    total = sum(map(len, strata))
    exact = [count * len(stratum) / total for stratum in strata]
    counts = [int(share) for share in exact]
    # Equal remainders are ordered at random.
    lots = rng.permutation(len(strata))
    by_remainder = sorted(range(len(strata)), key=lambda i: (counts[i] - exact[i], lots[i]))
    for i in by_remainder[: count - sum(counts)]:
        counts[i] += 1
    return [
        stratum[i]
        for stratum, n in zip(strata, counts, strict=True)
        for i in rng.permutation(len(stratum))[:n]
    ]
