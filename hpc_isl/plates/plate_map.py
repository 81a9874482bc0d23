"""The plate map: a table of wells that a user keeps (treatment, dose, cell line), brought to a plate."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import csv_lines
from hpc_isl.plates.plate import well_name, well_position

PlateMap = dict[str, dict[str, str]]
OF_PLATE_MAP = " (plate map)"  # ends the name of a column that is called as one of ours


def read_plate_map(path: Path, rows: int, columns: int, known: Mapping[str, Mapping[str, str]]) -> PlateMap:
    """Returns well -> column -> value from a CSV (comma, semicolon or tab) with a column `well`.

    Where the export names its images (column `image` of `known`), the table may have `image` instead.

    Args:
        rows, columns: physical size of the plate; wells outside are a `UserError`.
        known: what the export itself states of its wells.

    Raises:
        UserError: naming file, line and well: no such well, a well given twice, a line too long.
    """
    table = csv_lines(path, f"plate_map: {path}")
    if not table:
        raise UserError(f"plate_map: {path} is empty; a column well and others are expected")
    header = [name.strip() for name in table[0]]
    key = _key(path, header, known)
    images = {facts["image"]: well for well, facts in known.items() if "image" in facts}
    result: PlateMap = {}
    for number, line in enumerate(table[1:], start=2):
        values = [value.strip() for value in line]
        if not any(values):
            continue
        if len(values) > len(header):
            raise UserError(f"{path}, line {number}: {len(values)} values for {len(header)} columns")
        entry = dict(zip(header, values, strict=False))  # a line may lack cells at its end
        well = _well(entry.pop(key, ""), key, images, (rows, columns), f"{path}, line {number}")
        if well in result:
            raise UserError(f"{path}, line {number}: well {well} is given twice")
        result[well] = entry
    return result


def merged(under: Mapping[str, Mapping[str, str]], over: Mapping[str, Mapping[str, str]]) -> PlateMap:
    """Returns both maps together; where both have a value, that of `over`."""
    return {well: {**under.get(well, {}), **over.get(well, {})} for well in sorted({*under, *over})}


def map_name(column: str, ours: Collection[str]) -> str:
    """Returns how a column is called in a table that has columns of its own."""
    return f"{column}{OF_PLATE_MAP}" if column in ours else column


def _key(path: Path, header: list[str], known: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the name of the column that names the well of a line."""
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"plate_map: {path} has several columns {doubled[0]!r}")
    by_lower = {name.lower(): name for name in header}
    if "well" in by_lower:
        return by_lower["well"]
    if "image" in by_lower and any("image" in facts for facts in known.values()):
        return by_lower["image"]
    raise UserError(f"plate_map: {path} has no column 'well'; {nearest('well', header)}")


def _well(text: str, key: str, images: Mapping[str, str], size: tuple[int, int], origin: str) -> str:
    if key.lower() == "image":
        if text not in images:
            raise UserError(f"{origin}: the export has no image {text!r}; {nearest(text, images)}")
        return images[text]
    try:
        row, column = well_position(text)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    if row >= size[0] or column >= size[1]:
        raise UserError(
            f"{origin}: well {text} lies outside the plate, whose last well is "
            f"{well_name(size[0] - 1, size[1] - 1)}"
        )
    return well_name(row, column)


# ---------------------------------------------------------------- for titles

UNITS = {"uM": "µM", "um": "µm", "ug": "µg", "ul": "µl", "ug_ml": "µg/ml", "percent": "%"}
UNITS |= {unit: unit for unit in ("M", "mM", "µM", "nM", "pM", "mg", "ng", "h", "hours", "days", "min", "s")}


def described(facts: Mapping[str, str], most: int = 2) -> list[str]:
    """Returns how a title describes a well: `compound A`, `dose 10 µM`."""
    texts = []
    for column, value in facts.items():
        try:
            float(value)
        except ValueError:
            texts.append(value)
        else:
            # A number means nothing without its column's name, whose end is its unit: dose_uM, dose (µM).
            name, unit = _name_and_unit(column)
            texts.append(" ".join(filter(None, [name, value, unit])))
    return [text for text in texts if text][:most]


def _name_and_unit(column: str) -> tuple[str, str]:
    """Returns the name of a column without its unit, and the unit, or an empty one."""
    if bracketed := re.fullmatch(r"(.+?)\s*[(\[](.+)[)\]]", column):
        return bracketed[1], UNITS.get(bracketed[2], bracketed[2])
    for unit in sorted(UNITS, key=len, reverse=True):  # the longest that fits is meant
        name = column.removesuffix(f"_{unit}").removesuffix(f" {unit}")
        if name and name != column:
            return name, UNITS[unit]
    return column, ""
