"""Which field of a plate is meant: by the well, field and acquisition that a file's name or a table tells."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.plate import Field, FieldKey, well_name, well_position
from hpc_isl.plates.store import Index

Box = tuple[int, int, int, int]
EDGES = ("y0", "x0", "y1", "x1")
NAMES = ("well", "image", "field", "acquisition")
COLUMNS = ("path", *NAMES, *EDGES)


@dataclass(frozen=True)
class Row:
    """A file, and what is said of it.

    Attributes:
        origin: for messages.
        part: the image that is meant, in a file about several.
        names: of well, image, field and acquisition, and the edges of a box, as written.
    """

    origin: str
    path: Path
    names: Mapping[str, str | None]
    part: str = ""


@dataclass(frozen=True)
class LabelFile:
    """The annotation of a field, and the boxes (y0, x0, y1, x1) in which it is complete; none: all of it."""

    path: Path
    key: FieldKey
    boxes: tuple[Box, ...] = ()
    part: str = ""

    @property
    def name(self) -> str:
        return f"{self.path.name}: {self.part}" if self.part else self.path.name


class Elsewhere(UserError):
    """A well, or image, that is not on the plate."""


def label_file(row: Row, key: FieldKey, index: Index) -> LabelFile:
    return LabelFile(row.path, key, _boxes(row.names, index.field(key)), row.part)


def joined(first: LabelFile | None, second: LabelFile) -> LabelFile:
    """Several lines of a table may give a field several boxes, in one and the same image."""
    if first is None:
        return second
    if first.path != second.path or not (first.boxes and second.boxes):
        raise UserError(f"field {second.key} has its labels from {first.path.name} already")
    return replace(first, boxes=first.boxes + second.boxes)


def _boxes(names: Mapping[str, str | None], field: Field) -> tuple[Box, ...]:
    texts = [(names.get(edge) or "").strip() for edge in EDGES]
    if not any(texts):
        return ()
    if not all(text.isdigit() for text in texts):
        raise UserError(f"y0, x0, y1, x1 are whole numbers of pixels, all four or none; got {texts}")
    y0, x0, y1, x1 = map(int, texts)
    height, width = field.shape[-2:]
    if not (y0 < y1 <= height and x0 < x1 <= width):
        raise UserError(
            f"annotation box {(y0, x0, y1, x1)} (y0, x0, y1, x1) is empty or leaves the field "
            f"of {height} × {width} pixels"
        )
    return ((y0, x0, y1, x1),)


def key_of(names: Mapping[str, str | None], index: Index) -> FieldKey:
    """The one field that well (or image), field and acquisition name; left out, there must be no choice."""
    well = _well(names, index)
    inside = [field.key for field in index.plate.fields if field.key.well == well]
    if not inside:
        raise Elsewhere(f"well {well} is not on the plate; {nearest(well, index.plate.wells)}")
    name, acquisition = names.get("field") or "", names.get("acquisition") or ""
    fits = [
        key
        for key in inside
        if (not name or _plain(key.name) == _plain(name))
        and (not acquisition or str(key.acquisition) == _plain(acquisition))
    ]
    if len(fits) != 1:
        said = f"field {name!r}" if name else "no field"
        raise UserError(f"{said} names {len(fits)} fields of well {well}; {nearest(name, fits or inside)}")
    return fits[0]


def _well(names: Mapping[str, str | None], index: Index) -> str:
    if well := names.get("well"):
        return well_name(*well_position(well))
    images = {row["image"]: well for well, row in index.plate_map.items() if row.get("image")}
    image = names.get("image") or ""
    if image not in images:
        raise Elsewhere(f"image {image!r} is not in the plate map; {nearest(image, images)}")
    return images[image]


def _plain(name: str) -> str:
    """Field 01 is field 1."""
    return str(int(name)) if name.isdigit() else name


def table_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV; paths are relative to it. Faults in its header end the reading."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, list(reader.fieldnames or ()))
            for row in reader:
                yield Row(f"{path} line {reader.line_num}", path.parent / (row["path"] or ""), row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable as CSV (UTF-8): {error}") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"{path}: unknown column {name!r}; {nearest(name, COLUMNS)}")
    if "path" not in columns or not {"well", "image"} & set(columns):
        raise UserError(f"{path}: the columns path and well (or image) are needed")


def raise_together(problems: Sequence[str], most: int = 20) -> None:
    """One `UserError` for all of them, on one screen."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        more = [f"… and {len(problems) - most} more"] if len(problems) > most else []
        raise UserError("\n  ".join([f"{len(problems)} problems:", *problems[:most], *more]))
