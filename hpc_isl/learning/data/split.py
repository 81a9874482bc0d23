"""The split: which wells train, validate and test; drawn once, kept as a file, binding every later stage."""

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
"""(plate, well), or (plate, well, field): what never straddles two parts."""
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
        """The part of a field, None where the split does not list it."""
        return self.parts.get((plate, key.well, key.name))

    def keys(self, plate: Plate, part: str) -> tuple[FieldKey, ...]:
        """The plate's fields in `part`, in the plate's order."""
        return tuple(f.key for f in plate.fields if self.part(plate.name, f.key) == part)

    @cached_property
    def digest(self) -> str:
        """What models and results cite: it depends on who is in which part, not on the file."""
        return hashlib.sha256(repr(sorted(self.parts.items())).encode()).hexdigest()[:16]


def draw(indices: Sequence[Index], recipe: SplitRecipe) -> Split:
    """The split that the recipe asks for: from its file, or drawn.

    A share above 0 gets one unit at least, as long as one is left to train; units held out by name
    count towards the share of test.

    Raises:
        UserError: a unit, column or value that no plate has; two plates of one name; nothing to train on.
    """
    names = [index.plate.name for index in indices]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two plates are called {name!r}; a split could not tell them apart")
    split = read(recipe.file) if recipe.file else _drawn(indices, recipe)
    _refuse_unfit(split, indices, recipe)
    return split


def write(split: Split, path: Path) -> None:
    """CSV with the columns plate, well, field, part; complete or not there at all."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([*place, part] for place, part in split.parts.items())
    write_atomic(path, text.getvalue())


def read(path: Path) -> Split:
    """The split in a CSV file.

    Raises:
        UserError: no such file, a missing column, an unknown part, or two parts for one field, with line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream_:
            rows = list(csv.DictReader(stream_))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: the split cannot be read: {error}") from None
    for column in COLUMNS:
        if rows and rows[0].get(column) is None:
            raise UserError(f"{path}: the split has no column {column!r}; it needs {', '.join(COLUMNS)}")
    parts: dict[FieldName, str] = {}
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


def _refuse_unfit(split: Split, indices: Sequence[Index], recipe: SplitRecipe) -> None:
    origin = str(recipe.file or "the split")
    for index in indices:
        if index.plate.name not in {plate for plate, _, _ in split.parts}:
            there = sorted({plate for plate, _, _ in split.parts})
            raise UserError(
                f"{origin}: has no plate {index.plate.name!r}; {nearest(index.plate.name, there)}"
            )
    if recipe.by == "well":
        _refuse_straddling(split, origin)
    if not any(split.keys(index.plate, "train") for index in indices):
        raise UserError(
            f"{origin}: no field is left to train on; lower split.test, split.validation or split.hold_out"
        )


def _refuse_straddling(split: Split, origin: str) -> None:
    seen: dict[tuple[str, str], str] = {}
    for (plate, well, _), part in split.parts.items():
        if seen.setdefault((plate, well), part) != part:
            raise UserError(
                f"{origin}: well {well} of {plate} is in {seen[plate, well]} and in {part}; neighbouring "
                "fields leak from part to part. Where wells are unknown, say split.by=field"
            )


# ---------------------------------------------------------------- drawing


def _drawn(indices: Sequence[Index], recipe: SplitRecipe) -> Split:
    places = sorted({place for index in indices for place in _places(index.plate)}, key=_order)
    unit_of = {place: place[: 2 if recipe.by == "well" else 3] for place in places}
    units = list(dict.fromkeys(unit_of.values()))
    maps = {index.plate.name: index.plate_map for index in indices}
    parts = dict.fromkeys(_held_out(maps, units, recipe.hold_out), "test")
    given = {"test": recipe.test_wells, "validation": recipe.validation_wells}
    for part, names in given.items():
        named = _named(units, names or [], f"split.{part}_wells")
        for unit in named:
            if parts.setdefault(unit, part) != part:
                raise UserError(
                    f"split.{part}_wells: {'/'.join(unit[1:])} is already held out for {parts[unit]}"
                )
    for part, share in (("test", recipe.test), ("validation", recipe.validation)):
        if given[part] is None:
            strata = _strata(maps, [unit for unit in units if unit not in parts], recipe.stratify)
            count = _count(share, len(units), list(parts.values()).count(part), len(units) - len(parts))
            parts |= dict.fromkeys(_share_out(strata, count, stream(recipe.seed, "split", part)), part)
    return Split({place: parts.get(unit, "train") for place, unit in unit_of.items()})


def _count(share: float, units: int, have: int, free: int) -> int:
    """Units still to draw for a part: one at least for any share; one stays to train unless all is asked."""
    wanted = max(round(share * units) - have, 1 if share and not have else 0)
    return min(wanted, free if share == 1 else max(free - 1, 0))


def _places(plate: Plate) -> list[FieldName]:
    return [(plate.name, f.key.well, f.key.name) for f in plate.fields]


def _order(place: FieldName) -> tuple[object, ...]:
    plate, well, name = place
    return plate, FieldKey(well, name).place


def _held_out(maps: Maps, units: Sequence[Unit], hold_out: Mapping[str, list[str]]) -> list[Unit]:
    found: list[Unit] = []
    for column, values in hold_out.items():
        of_unit = {unit: _value(maps, unit, column, "split.hold_out") for unit in units}
        for value in values:
            if value not in of_unit.values():
                there = sorted(set(of_unit.values()))
                raise UserError(f"split.hold_out.{column}: no well has {value!r}; {nearest(value, there)}")
        found += [unit for unit in units if of_unit[unit] in values]
    return found


def _value(maps: Maps, unit: Unit, column: str, key: str) -> str:
    """What the plate map says of a unit's well; empty where the well has no row."""
    columns = dict.fromkeys(name for row in maps[unit[0]].values() for name in row)
    if column not in columns:
        raise UserError(
            f"{key}: the plate map of {unit[0]} has no column {column!r}; {nearest(column, columns)}"
        )
    return maps[unit[0]].get(unit[1], {}).get(column, "")


def _named(units: Sequence[Unit], names: Sequence[str], key: str) -> list[Unit]:
    """The units of any plate that carry these names, written B03 (b3 will do) or B03/1."""
    known: dict[tuple[object, ...], list[Unit]] = {}
    for unit in units:
        known.setdefault((well_position(unit[1]), *unit[2:]), []).append(unit)
    found: list[Unit] = []
    for name in names:
        well, *rest = name.split("/")
        if (well_position(well), *rest) not in known:
            there = dict.fromkeys("/".join(unit[1:]) for unit in units)
            raise UserError(f"{key}: no plate has {name!r}; {nearest(name, there)}")
        found += known[well_position(well), *rest]
    return found


def _strata(maps: Maps, units: Sequence[Unit], column: str | None) -> list[list[Unit]]:
    """The units by plate, and by their value of `column`."""
    groups: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        value = _value(maps, unit, column, "split.stratify") if column else ""
        groups.setdefault((unit[0], value), []).append(unit)
    return list(groups.values())


def _share_out(strata: Sequence[list[Unit]], count: int, rng: np.random.Generator) -> list[Unit]:
    """`count` units drawn at random, from each stratum in proportion to its size (largest remainder)."""
    total = sum(map(len, strata))
    exact = [count * len(stratum) / total for stratum in strata]
    taken = [int(share) for share in exact]
    lots = rng.permutation(len(strata))
    by_rest = sorted(range(len(strata)), key=lambda i: (taken[i] - exact[i], lots[i]))
    for i in by_rest[: count - sum(taken)]:
        taken[i] += 1
    return [
        stratum[i]
        for stratum, n in zip(strata, taken, strict=True)
        for i in rng.permutation(len(stratum))[:n]
    ]
