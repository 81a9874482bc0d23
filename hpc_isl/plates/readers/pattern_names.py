"""Which files belong where, as their names (by regular expression) or a table (CSV) tell: text as written."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates.readers.folder import Folder

GROUPS = ("well", "image", "field", "channel", "plane", "time", "acquisition")
IMAGES = (".tif", ".tiff", ".png")
COLUMNS = ("path", "well", "field", "channel", "plane", "time", "acquisition")


@dataclass(frozen=True, slots=True)
class Named:
    """One file and what is said of it, as written; "" where nothing is said.

    Attributes:
        name: path below the folder of the export.
        origin: for messages: the name, or the line of the table.
        image: stands for a well of its own; then `well` is "".
    """

    name: str
    origin: str
    well: str = ""
    image: str = ""
    field: str = ""
    channel: str = ""
    plane: str = ""
    time: str = ""
    acquisition: str = ""


def natural(text: str) -> tuple[list[tuple[str, int, str]], str]:
    """Sorting key: numbers within the text count as numbers, so that t10 follows t9."""
    parts = [(word, digits.lstrip("0")) for word, digits in re.findall(r"(\D*)(\d*)", text)]
    return [(word, len(digits), digits) for word, digits in parts], text


def by_regex(folder: Folder, regex: str, key: str = "pattern.regex") -> tuple[list[Named], str]:
    """The files whose whole path below the folder matches, in natural order, and a remark on the rest.

    `key` is what the user knows the expression by.

    Raises:
        Mistake: the expression is none, has unknown groups, or neither `well` nor `image`; no file
            matches; a link that matches leads out of the folder.
    """
    found, names = by_expression(folder, compiled(regex, key))
    if not found:
        shown = "; there are: " + ", ".join(map(repr, names[:3])) if names else "; the folder is empty"
        raise Mistake(
            f"{folder.root}: no file matches {key} {regex!r}, "
            f"which must match the whole path below that folder{shown}"
        )
    others = [name for name in names if name.lower().endswith(IMAGES)]
    shown = ", ".join(map(repr, others[:3]))
    remark = f"{len(others)} images do not match {key} and are left out, e.g. {shown}" if others else ""
    return found, remark


def by_expression(folder: Folder, expression: re.Pattern[str]) -> tuple[list[Named], list[str]]:
    """The files whose whole path below the folder matches, and the names of the others, in natural order.

    Raises:
        Mistake: a link that matches leads out of the folder.
    """
    found, others = [], []
    for name in sorted(folder.files | folder.leaving, key=natural):
        match = expression.fullmatch(name)
        if match is None:
            others.append(name)
        elif name in folder.leaving:
            raise Mistake(
                f"{folder.root / name} is a link that leads out of {folder.root}; put the file itself there"
            )
        else:
            found.append(Named(name, name, **_texts(match)))
    return found, others


def _texts(match: re.Match[str]) -> dict[str, str]:
    return {group: text or "" for group, text in match.groupdict().items()}


def compiled(regex: str, key: str) -> re.Pattern[str]:
    """The expression, which the user knows by `key`, with groups that we know.

    Raises:
        Mistake: it is none, or has others, or neither `well` nor `image`.
    """
    try:
        expression = re.compile(regex)
    except re.error as error:
        raise Mistake(f"{key} {regex!r} is no regular expression: {error}") from None
    for group in expression.groupindex:
        if group not in GROUPS:
            raise Mistake(f"{key} {regex!r} has a group {group!r}; {nearest(group, GROUPS)}")
    if ("well" in expression.groupindex) == ("image" in expression.groupindex):
        raise Mistake(f"{key} {regex!r} needs one of the groups well and image, as in (?P<well>[A-P]\\d\\d)")
    return expression


def by_table(folder: Folder, table: Path) -> list[Named]:
    """The rows of a CSV file with columns path and well, and any of field, channel, plane, time, acquisition.

    The files that it names need not be there.

    Raises:
        Mistake: naming table and line: unreadable, other columns, no rows, an empty path or well, a
            path that leads out of the folder.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            found = list(_rows(csv.DictReader(file), folder, table))
    except FileNotFoundError:
        raise Mistake(f"{table}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Mistake(f"{table} is not readable as CSV (UTF-8): {error}") from None
    if not found:
        raise Mistake(f"{table} has no rows below its header")
    return found


def _rows(reader: csv.DictReader[str], folder: Folder, table: Path) -> Iterator[Named]:
    reader.fieldnames = [str(name).strip() for name in reader.fieldnames or ()]
    for name in reader.fieldnames:
        if name not in COLUMNS:
            raise Mistake(f"{table}: unknown column {name!r}; {nearest(name, COLUMNS)}")
    if len(set(reader.fieldnames)) < len(reader.fieldnames) or not {"path", "well"} <= set(reader.fieldnames):
        raise Mistake(
            f"{table}: has columns {', '.join(reader.fieldnames)}; path and well are needed, each once"
        )
    for row in reader:
        origin = f"{table} line {reader.line_num}"
        if None in row or None in row.values():
            raise Mistake(f"{origin}: {len(reader.fieldnames)} cells are expected, as in the header")
        cells = {name: text.strip() for name, text in row.items()}
        if not cells["path"] or not cells["well"]:
            raise Mistake(f"{origin}: path and well must be given")
        yield Named(folder.locate(cells.pop("path"), origin), origin, **cells)
