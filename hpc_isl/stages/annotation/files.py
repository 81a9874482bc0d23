"""Which label image belongs to which field, found out from file names or a table before any pixel is read."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates.planes import header, read_plane
from hpc_isl.plates.plate import Field, FieldKey, well_name, well_position
from hpc_isl.plates.readers.folder import list_folder
from hpc_isl.plates.readers.pattern_names import by_regex
from hpc_isl.plates.store import Index

Box = tuple[int, int, int, int]
REGEX = r"(?i:(?:.*/)?(?P<well>[A-Z]{1,2}\d{1,3})[_/-](?P<field>[A-Z0-9]+)\.(?:tiff?|png))"
EDGES = ("y0", "x0", "y1", "x1")
Row = tuple[str, Path, Mapping[str, str | None]]  # for messages, the file, what is said of it
NAMES = ("well", "image", "field", "acquisition")
COLUMNS = ("path", *NAMES, *EDGES)


@dataclass(frozen=True)
class LabelFile:
    """A label image of a field, and the boxes (y0, x0, y1, x1) in which it is complete; none: all of it."""

    path: Path
    key: FieldKey
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Annotation:
    """Labels (y, x) or (t, y, x) of a field and its boxes.

    Attributes:
        dropped: objects that lay outside every box.
        origin: who made them.
        base: version of the plate's labels that these were made from, and may replace; None: of none.
    """

    labels: NDArray[Any]
    boxes: tuple[Box, ...]
    dropped: int = 0
    origin: str = "human"
    base: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        objects = len(np.setdiff1d(self.labels, [0]))
        return {"objects": objects, "boxes": len(self.boxes), "dropped": self.dropped}


def whole(field: Field) -> tuple[Box, ...]:
    """The largest box there is."""
    return ((0, 0, *field.shape[-2:]),)


def chosen(fields: Sequence[str] | None, index: Index) -> list[FieldKey]:
    """The fields named, or all, in plate order."""
    keys = [field.key for field in index.plate.fields]
    wanted = keys if fields is None else index.plate.choose(fields)
    return [key for key in keys if key in wanted]


def find(source: Path, regex: str | None, index: Index) -> tuple[list[LabelFile], str]:
    """The label images in a folder or CSV, in the plate's order, and a remark on the files passed over.

    Raises:
        Mistake: naming every file or line that fits no field, twice the same field, or a box outside it.
    """
    if not source.exists():
        raise Mistake(f"source: {source} is not there; a folder of label images or a CSV is expected")
    if regex is not None and not source.is_dir():
        raise Mistake(f"regex: changes nothing beside the table {source}, which names wells; leave it out")
    rows, remark = _folder(source, regex or REGEX) if source.is_dir() else (list(_table(source)), "")
    return _fitted(rows, index), remark


def _folder(source: Path, regex: str) -> tuple[list[Row], str]:
    folder = list_folder(source)
    found, remark = by_regex(folder, regex, "regex")
    return [
        (one.origin, folder.root / one.name, {part: getattr(one, part) for part in NAMES}) for one in found
    ], remark


def _fitted(rows: Iterable[Row], index: Index) -> list[LabelFile]:
    found: dict[FieldKey, LabelFile] = {}
    problems: list[str] = []
    for origin, path, names in rows:
        try:
            key = _key(names, index)
            one = LabelFile(path, key, _boxes(names, index.field(key)))
            found[key] = _joined(found.get(key), one)
        except Mistake as mistake:
            problems.append(f"{origin}: {mistake}")
    raise_together(problems)
    return [found[field.key] for field in index.plate.fields if field.key in found]


def _joined(first: LabelFile | None, second: LabelFile) -> LabelFile:
    """Several lines of a table may give a field several boxes, in one and the same image."""
    if first is None:
        return second
    if first.path != second.path or not (first.boxes and second.boxes):
        raise Mistake(f"field {second.key} has its labels from {first.path.name} already")
    return replace(first, boxes=first.boxes + second.boxes)


def _boxes(names: Mapping[str, str | None], field: Field) -> tuple[Box, ...]:
    texts = [(names.get(edge) or "").strip() for edge in EDGES]
    if not any(texts):
        return ()
    if not all(text.isdigit() for text in texts):
        raise Mistake(f"y0, x0, y1, x1 are whole numbers of pixels, all four or none; got {texts}")
    y0, x0, y1, x1 = map(int, texts)
    height, width = field.shape[-2:]
    if not (y0 < y1 <= height and x0 < x1 <= width):
        raise Mistake(
            f"annotation box {(y0, x0, y1, x1)} (y0, x0, y1, x1) is empty or leaves the field "
            f"of {height} × {width} pixels"
        )
    return ((y0, x0, y1, x1),)


def _key(names: Mapping[str, str | None], index: Index) -> FieldKey:
    """The one field that well (or image), field and acquisition name; left out, there must be no choice."""
    well = _well(names, index)
    inside = [field.key for field in index.plate.fields if field.key.well == well]
    if not inside:
        raise Mistake(f"well {well} is not on the plate; {nearest(well, index.plate.wells)}")
    name, acquisition = names.get("field") or "", names.get("acquisition") or ""
    fits = [
        key
        for key in inside
        if (not name or _plain(key.name) == _plain(name))
        and (not acquisition or str(key.acquisition) == _plain(acquisition))
    ]
    if len(fits) != 1:
        said = f"field {name!r}" if name else "no field"
        raise Mistake(f"{said} names {len(fits)} fields of well {well}; {nearest(name, fits or inside)}")
    return fits[0]


def _well(names: Mapping[str, str | None], index: Index) -> str:
    if well := names.get("well"):
        return well_name(*well_position(well))
    images = {row["image"]: well for well, row in index.plate_map.items() if row.get("image")}
    image = names.get("image") or ""
    if image not in images:
        raise Mistake(f"image {image!r} is not in the plate map; {nearest(image, images)}")
    return images[image]


def _plain(name: str) -> str:
    """Field 01 is field 1."""
    return str(int(name)) if name.isdigit() else name


def _table(path: Path) -> Iterator[Row]:
    """The rows of a CSV; paths are relative to it. Mistakes in its header end the reading."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, list(reader.fieldnames or ()))
            for row in reader:
                origin = f"{path} line {reader.line_num}"
                yield origin, path.parent / (row["path"] or ""), row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Mistake(f"{path} is not readable as CSV (UTF-8): {error}") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise Mistake(f"{path}: unknown column {name!r}; {nearest(name, COLUMNS)}")
    if "path" not in columns or not {"well", "image"} & set(columns):
        raise Mistake(f"{path}: the columns path and well (or image) are needed")


# ---------------------------------------------------------------- pixels


def check_headers(files: Iterable[LabelFile], index: Index) -> None:
    """What the files' headers tell: whole numbers, each field's shape, a page for each time."""
    problems = []
    for file in files:
        try:
            _check_header(file, index.field(file.key))
        except Mistake as mistake:
            problems.append(str(mistake))
    raise_together(problems)


def _check_header(file: LabelFile, field: Field) -> None:
    shape, dtype, pages = header(file.path)
    if np.dtype(dtype).kind not in "iub":
        raise Mistake(f"{file.path} holds {dtype}; labels are whole numbers: 0 background, k the k-th object")
    expected = (field.shape[0], *field.shape[-2:])
    if (pages, *shape) != expected:
        raise Mistake(
            f"{file.path} has the shape {(pages, *shape)}, but field {file.key} has {expected} (t, y, x)"
        )


def fingerprint(files: Iterable[LabelFile]) -> str:
    """Of the files' content and of the fields and boxes they are for."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.key} {file.boxes} ".encode())
        digest.update(file.path.read_bytes())
    return digest.hexdigest()[:16]


def pixels(file: LabelFile, field: Field) -> NDArray[np.integer]:
    """All that the file holds, as (t, y, x)."""
    return np.stack([read_plane(file.path, page) for page in range(field.shape[0])])


def read(file: LabelFile, field: Field) -> tuple[NDArray[np.integer], int]:
    """Labels (y, x), or (t, y, x), without the objects outside every box, and how many those were."""
    labels = pixels(file, field)
    _check_values(file.path, labels)
    kept, dropped = _inside(labels, file.boxes)
    return (kept if field.shape[0] > 1 else kept[0]), dropped


def _check_values(path: Path, labels: NDArray[np.integer]) -> None:
    """A mask, one value in many pieces, would silently become one object."""
    from scipy import ndimage

    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**32:
        raise Mistake(f"{path} holds values from {low} to {high}; labels go from 0 to 2^32 - 1")
    if high and not ((labels != 0) & (labels != high)).any():
        pieces = ndimage.label(labels[0], np.ones((3, 3)))[1]
        if pieces > 2:
            raise Mistake(
                f"{path} holds one value, {high}, in {pieces} pieces: a mask; "
                "give each object its own number (skimage.measure.label does)"
            )


def _inside(labels: NDArray[np.integer], boxes: tuple[Box, ...]) -> tuple[NDArray[np.integer], int]:
    if not boxes:
        return labels, 0
    touched = np.concatenate([np.unique(labels[:, y0:y1, x0:x1]) for y0, x0, y1, x1 in boxes])
    outside = np.setdiff1d(labels, [0, *touched])
    return np.where(np.isin(labels, outside), 0, labels), len(outside)


def raise_together(problems: list[str], most: int = 20) -> None:
    """One `Mistake` for all of them, on one screen."""
    if len(problems) == 1:
        raise Mistake(problems[0])
    if problems:
        more = [f"… and {len(problems) - most} more"] if len(problems) > most else []
        raise Mistake("\n  ".join([f"{len(problems)} problems:", *problems[:most], *more]))
