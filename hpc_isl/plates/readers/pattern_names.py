"""Facts on each file from its name (by regular expressions) or a table, and the plate that they make."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.plate import (
    FORMATS,
    MOST_COLUMNS,
    MOST_ROWS,
    Channel,
    FieldKey,
    layout,
    row_name,
    well_name,
    well_position,
)
from hpc_isl.plates.readers.export import Layout
from hpc_isl.plates.readers.folder import Folder
from hpc_isl.recipes.plates import PatternRecipe

GROUPS = ("well", "row", "column", "image", "field", "channel", "plane", "time", "acquisition")
IMAGES = (".tif", ".tiff", ".png", ".stk", ".c01", ".dib")
COLUMNS = ("path", "well", "row", "column", "field", "channel", "plane", "time", "acquisition")


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


def by_regex(folder: Folder, regex: str | Sequence[str]) -> tuple[list[Named], list[str]]:
    """Returns the files whose whole path below the folder matches, in natural order, and the other images.

    Of several expressions the first that matches a file counts.

    Raises:
        UserError: an expression is none, has unknown groups, or none of those for the well; no file
            matches; a row or column is none; a link that matches leads out of the folder.
    """
    expressions = [compiled(expression, "pattern.regex") for expression in _as_list(regex)]
    if len({"image" in expression.groupindex for expression in expressions}) > 1:
        raise UserError("pattern.regex: either all of its expressions have the group image, or none")
    named_files, other_names = by_expression(folder, *expressions)
    if not named_files:
        hint = (
            "; there are: " + ", ".join(map(repr, other_names[:3]))
            if other_names
            else "; the folder is empty"
        )
        raise UserError(
            f"{folder.root}: no file matches pattern.regex {regex!r}, "
            f"which must match the whole path below that folder{hint}"
        )
    return named_files, [name for name in other_names if name.lower().endswith(IMAGES)]


def by_expression(folder: Folder, *expressions: re.Pattern[str]) -> tuple[list[Named], list[str]]:
    """Returns the files whose whole path below the folder matches, and the others' names, in natural order.

    Raises:
        UserError: a link that matches leads out of the folder.
    """
    named_files, other_names = [], []
    for name in sorted(folder.files | folder.leaving, key=natural):
        match = next(filter(None, (expression.fullmatch(name) for expression in expressions)), None)
        if match is None:
            other_names.append(name)
        elif name in folder.leaving:
            raise UserError(
                f"{folder.root / name} is a link that leads out of {folder.root}; put the file itself there"
            )
        else:
            texts = {group: text or "" for group, text in match.groupdict().items()}
            named_files.append(Named(name, name, **_with_well(texts, name)))
    return named_files, other_names


def matching(regex: str | Sequence[str], names: Sequence[str], key: str) -> set[str]:
    """Returns the names that one of these expressions matches wholly; their groups mean nothing."""
    expressions = [_expression(expression, key) for expression in _as_list(regex)]
    return {name for name in names if any(expression.fullmatch(name) for expression in expressions)}


def _with_well(texts: dict[str, str], origin: str) -> dict[str, str]:
    """Returns the texts with row and column, each a number from 1 or letters, as the name of a well."""
    if "row" not in texts:
        return texts
    position = []
    for part, most in (("row", MOST_ROWS), ("column", MOST_COLUMNS)):
        text, index = texts.pop(part), -1
        if re.fullmatch(r"[0-9]{1,3}", text):
            index = int(text) - 1
        elif re.fullmatch(r"[Aa]?[A-Za-z]", text):
            index = well_position(f"{text}1")[0]
        if not 0 <= index < most:
            expected = f"a number from 1 to {most}"
            raise UserError(f"{origin}: {part} {text!r} is neither {expected} nor letters from A")
        position.append(index)
    return texts | {"well": well_name(*position)}


def _as_list(regex: str | Sequence[str]) -> list[str]:
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
            named_files = list(_rows(csv.DictReader(file), folder, table))
    except FileNotFoundError:
        raise UserError(f"{table}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not readable as CSV (UTF-8): {error}") from None
    if not named_files:
        raise UserError(f"{table} has no rows below its header")
    return named_files


def _rows(reader: csv.DictReader[str], folder: Folder, table: Path) -> Iterator[Named]:
    # Spreadsheets leave spaces around names.
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
        # DictReader keeps surplus cells under None, and gives None for missing ones.
        if None in row or None in row.values():
            raise UserError(f"{origin}: {len(reader.fieldnames)} cells are expected, as in the header")
        cells = _with_well({name: text.strip() for name, text in row.items()}, origin)
        if not cells["path"] or not cells["well"]:
            raise UserError(f"{origin}: path and well must be given")
        yield Named(folder.locate(cells.pop("path"), origin), origin, **cells)


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FIELD = re.compile(r"(?!\d+x)[A-Za-z0-9]+")  # 1x2 would read as field 2 of acquisition 1
_COLORS = ("0000FF", "00FF00", "FF0000", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True)
class Wells:
    """The wells of the plate.

    Attributes:
        rows, columns: of the plate's format.
        names: what the files state (well or image) -> well.
        plate_map: where images stand for wells: well -> {"image": its name}.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    names: Mapping[str, str]
    plate_map: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Axes:
    """All that the names state of a plate: mappings lead from their text to names and indices.

    Attributes:
        times: (acquisition, the file's text) -> t.
    """

    wells: Wells
    channels: tuple[Channel, ...]
    channel_of: Mapping[str, int]
    fields: Mapping[str, str]
    acquisitions: Mapping[str, int]
    times: Mapping[tuple[int, str], int]

    def key(self, named: Named) -> FieldKey:
        """Returns the field that a file belongs to."""
        well = self.wells.names[named.well or named.image]
        return FieldKey(well, self.fields[named.field], self.acquisitions[named.acquisition])


def axes(named: Sequence[Named], recipe: PatternRecipe) -> Axes:
    """Returns wells, channels, fields, acquisitions and times of the files, in order.

    Raises:
        UserError: naming a file: no well name, wells that do not fit the plate, a channel that
            pattern.channels does not list.
    """
    acquisitions = _ranks({file.acquisition for file in named})
    times: dict[int, set[str]] = defaultdict(set)
    for file in named:
        times[acquisitions[file.acquisition]].add(file.time)
    stored_channels, channel_of = _channels(named, recipe)
    names = {file.field for file in named}
    if all(_FIELD.fullmatch(name) for name in names if name):  # alphanumeric, as OME-Zarr asks
        fields = {name: name or "1" for name in names}
    else:
        fields = {name: str(rank + 1) for name, rank in _ranks(names).items()}
    return Axes(
        wells=_wells(named, recipe),
        channels=stored_channels,
        channel_of=channel_of,
        fields=fields,
        acquisitions=acquisitions,
        times={(a, text): t for a, texts in times.items() for text, t in _ranks(texts).items()},
    )


def plane_number(named: Named) -> float | None:
    """Returns the plane that a name states: a whole number, a height, or None."""
    if named.plane and not _NUMBER.fullmatch(named.plane):
        raise UserError(f"{named.origin}: plane {named.plane!r} is no number; 7, -4 and 1341.95 are")
    return float(named.plane) if named.plane else None


def _wells(named: Sequence[Named], recipe: PatternRecipe) -> Wells:
    """Returns wells as written (b3, B03), or one for each image, A01, A02, …, in natural order."""
    images = sorted({file.image for file in named if file.image}, key=natural)
    if not images:
        names = {
            file.well: _well(file, recipe.wells_on_plate)
            for file in {file.well: file for file in named}.values()
        }
        numbers = sorted((text for text in names if text.isdecimal()), key=natural)
        if numbers and len(numbers) < len(names):  # they would put two wells into one
            named_well = min(text for text in names if not text.isdecimal())
            raise UserError(
                f"some wells are numbers ({numbers[0]}), some are names ({named_well}): write all as numbers "
                "or all as names"
            )
        rows, columns = layout(set(names.values()), recipe.wells_on_plate)
        return Wells(rows, columns, names, {})
    if nameless := [file for file in named if not file.image]:
        raise UserError(f"{nameless[0].origin}: the group image is empty; each file must name its image")
    rows, columns = _format_for(len(images), recipe.wells_on_plate)
    names = {image: well_name(*divmod(place, len(columns))) for place, image in enumerate(images)}
    return Wells(rows, columns, names, {well: {"image": image} for image, well in names.items()})


def _well(named: Named, wells_on_plate: int | None) -> str:
    try:
        well = well_name(*_position(named.well, wells_on_plate))
        layout({well}, wells_on_plate)
        return well
    except UserError as error:
        raise UserError(f"{named.origin}: {error}") from None


def _position(well: str, wells_on_plate: int | None) -> tuple[int, int]:
    """Returns row and column of a name, or of a running number, which counts along the rows from 1."""
    if not re.fullmatch(r"[0-9]{1,5}", well):
        return well_position(well)
    if wells_on_plate is None:
        raise UserError(
            f"well {well!r} is a running number: give pattern.wells_on_plate, as 96, so that row and column "
            "are known; numbers count along the rows from 1"
        )
    if not 1 <= int(well) <= wells_on_plate:
        raise UserError(f"well {well!r} is no number from 1 to {wells_on_plate}, the wells on the plate")
    return divmod(int(well) - 1, FORMATS[wells_on_plate][1])


def _format_for(images: int, wells_on_plate: int | None) -> Layout:
    for count, (rows, columns) in FORMATS.items():
        allowed = count >= 96 if wells_on_plate is None else count == wells_on_plate
        if allowed and images <= count:
            return tuple(map(row_name, range(rows))), tuple(f"{column + 1:02d}" for column in range(columns))
    raise UserError(
        f"{images} images do not fit a plate of {wells_on_plate or 1536} wells, one well each; "
        "name wells and fields in pattern.regex instead, or convert fewer at a time"
    )


def _channels(named: Sequence[Named], recipe: PatternRecipe) -> tuple[tuple[Channel, ...], dict[str, int]]:
    """Returns the channels in stored order, and what the files state -> index.

    The order is that of `recipe.channels`; without it, natural. Several names may share one channel.
    """
    examples = sorted({file.channel: file for file in named}.values(), key=lambda file: natural(file.channel))
    recipe_names = set(recipe.channels.values()) if not any(file.channel for file in examples) else set()
    name_of = {
        file.channel: recipe_names.pop() if len(recipe_names) == 1 else _stored_channel(file, recipe)
        for file in examples
    }
    listed_names = [*dict.fromkeys(recipe.channels.values()), *name_of.values()]
    names = [name for name in dict.fromkeys(listed_names) if name in name_of.values()]
    for name in recipe.transmitted:
        if name not in listed_names:
            raise UserError(
                f"pattern.transmitted: no channel {name!r}; {nearest(name, dict.fromkeys(listed_names))}"
            )
    stains = [name for name in names if name not in recipe.transmitted]
    hues = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(stains)}
    channels = (Channel(name, fluorescent=name in hues, color=hues.get(name, "FFFFFF")) for name in names)
    return tuple(channels), {text: names.index(name) for text, name in name_of.items()}


def _stored_channel(named: Named, recipe: PatternRecipe) -> str:
    if not recipe.channels:
        return named.channel or "channel"
    if named.channel not in recipe.channels:
        raise UserError(
            f"{named.origin}: channel {named.channel!r} is not in pattern.channels; "
            f"{nearest(named.channel, recipe.channels)}"
        )
    return recipe.channels[named.channel]


def _ranks(texts: Collection[str]) -> dict[str, int]:
    """Returns the rank of each text in natural order."""
    return {text: rank for rank, text in enumerate(sorted(texts, key=natural))}
