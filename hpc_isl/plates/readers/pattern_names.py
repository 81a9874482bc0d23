"""What file names (by regular expressions) or a table state of each file: text as written."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.plate import FORMATS, well_name, well_position
from hpc_isl.plates.readers.folder import Folder

GROUPS = ("well", "row", "column", "image", "field", "channel", "plane", "time", "acquisition")
IMAGES = (".tif", ".tiff", ".png", ".stk", ".c01", ".dib")
COLUMNS = ("path", "well", "row", "column", "field", "channel", "plane", "time", "acquisition")
_ROWS, _COLUMNS = max(FORMATS.values())


@dataclass(frozen=True, slots=True)
class Named:
    """One file and what is stated of it, as written; "" where nothing is stated.

    Attributes:
        name: path below the folder of the export.
        origin: for messages: the name, or the line of the table.
        well: a name as B03, or a running number; row and column are made into a name.
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
    """Returns a sorting key by which numbers within the text count as numbers, so that t10 follows t9."""
    parts = [(word, digits.lstrip("0")) for word, digits in re.findall(r"(\D*)(\d*)", text)]
    return [(word, len(digits), digits) for word, digits in parts], text


def by_regex(
    folder: Folder, regex: str | Sequence[str], key: str = "pattern.regex"
) -> tuple[list[Named], list[str]]:
    """Returns the files whose whole path below the folder matches, in natural order, and the other images.

    Of several expressions the first that matches a file counts.

    Args:
        key: the recipe's key of the expression, for messages.

    Raises:
        UserError: an expression is none, has unknown groups, or none of those for the well; no file
            matches; a row or column is none; a link that matches leads out of the folder.
    """
    expressions = [compiled(expression, key) for expression in _listed(regex)]
    if len({"image" in expression.groupindex for expression in expressions}) > 1:
        raise UserError(f"{key}: either all of its expressions have the group image, or none")
    named, names = by_expression(folder, *expressions)
    if not named:
        shown = "; there are: " + ", ".join(map(repr, names[:3])) if names else "; the folder is empty"
        raise UserError(
            f"{folder.root}: no file matches {key} {regex!r}, "
            f"which must match the whole path below that folder{shown}"
        )
    return named, [name for name in names if name.lower().endswith(IMAGES)]


def by_expression(folder: Folder, *expressions: re.Pattern[str]) -> tuple[list[Named], list[str]]:
    """Returns the files whose whole path below the folder matches, and the others' names, in natural order.

    Raises:
        UserError: a link that matches leads out of the folder.
    """
    named, others = [], []
    for name in sorted(folder.files | folder.leaving, key=natural):
        match = next(filter(None, (expression.fullmatch(name) for expression in expressions)), None)
        if match is None:
            others.append(name)
        elif name in folder.leaving:
            raise UserError(
                f"{folder.root / name} is a link that leads out of {folder.root}; put the file itself there"
            )
        else:
            texts = {group: text or "" for group, text in match.groupdict().items()}
            named.append(Named(name, name, **_with_well(texts, name)))
    return named, others


def matching(regex: str | Sequence[str], names: Sequence[str], key: str) -> set[str]:
    """Returns the names that one of these expressions matches wholly; their groups mean nothing."""
    expressions = [_expression(expression, key) for expression in _listed(regex)]
    return {name for name in names if any(expression.fullmatch(name) for expression in expressions)}


def _with_well(texts: dict[str, str], origin: str) -> dict[str, str]:
    """Returns the texts with row and column, each a number from 1 or letters, as the name of a well."""
    if "row" not in texts:
        return texts
    position = []
    for part, most in (("row", _ROWS), ("column", _COLUMNS)):
        text, index = texts.pop(part), -1
        if re.fullmatch(r"[0-9]{1,3}", text):
            index = int(text) - 1
        elif re.fullmatch(r"A?[A-Za-z]", text):
            index = well_position(f"{text}1")[0]
        if not 0 <= index < most:
            number = f"a number from 1 to {most}"
            raise UserError(f"{origin}: {part} {text!r} is neither {number} nor letters from A")
        position.append(index)
    return texts | {"well": well_name(*position)}


def _listed(regex: str | Sequence[str]) -> list[str]:
    return [regex] if isinstance(regex, str) else list(regex)


def compiled(regex: str, key: str) -> re.Pattern[str]:
    """Returns the expression that the recipe has under `key`.

    Raises:
        UserError: it is no expression, has unknown groups, or none of those for the well.
    """
    expression = _expression(regex, key)
    for group in expression.groupindex:
        if group not in GROUPS:
            raise UserError(f"{key} {regex!r} has a group {group!r}; {nearest(group, GROUPS)}")
    groups = [group for group in ("well", "row", "column", "image") if group in expression.groupindex]
    if groups not in (["well"], ["row", "column"], ["image"]):
        raise UserError(
            f"{key} {regex!r} needs one of the groups well and image, as in (?P<well>[A-P]\\d\\d), "
            "or both of row and column"
        )
    return expression


def _expression(regex: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise UserError(f"{key} {regex!r} is no regular expression: {error}") from None


def by_table(folder: Folder, table: Path) -> list[Named]:
    """Returns the rows of a CSV file: path, well (or row, column), field, channel, plane, time, acquisition.

    The files that it names need not be there.

    Raises:
        UserError: naming table and line: unreadable, other columns, no rows, an empty path or well, a
            path that leads out of the folder.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            named = list(_rows(csv.DictReader(file), folder, table))
    except FileNotFoundError:
        raise UserError(f"{table}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not readable as CSV (UTF-8): {error}") from None
    if not named:
        raise UserError(f"{table} has no rows below its header")
    return named


def _rows(reader: csv.DictReader[str], folder: Folder, table: Path) -> Iterator[Named]:
    reader.fieldnames = [str(name).strip() for name in reader.fieldnames or ()]
    for name in reader.fieldnames:
        if name not in COLUMNS:
            raise UserError(f"{table}: unknown column {name!r}; {nearest(name, COLUMNS)}")
    columns = set(reader.fieldnames)
    well_columns = {"well", "row", "column"} & columns
    repeated = len(columns) < len(reader.fieldnames)
    if repeated or "path" not in columns or well_columns not in ({"well"}, {"row", "column"}):
        raise UserError(
            f"{table}: has columns {', '.join(reader.fieldnames)}; path and well, or path, row and column, "
            "are needed, each once"
        )
    for row in reader:
        origin = f"{table} line {reader.line_num}"
        if None in row or None in row.values():
            raise UserError(f"{origin}: {len(reader.fieldnames)} cells are expected, as in the header")
        cells = _with_well({name: text.strip() for name, text in row.items()}, origin)
        if not cells["path"] or not cells["well"]:
            raise UserError(f"{origin}: path and well must be given")
        yield Named(folder.locate(cells.pop("path"), origin), origin, **cells)
