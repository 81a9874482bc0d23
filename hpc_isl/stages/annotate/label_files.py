"""Which annotation file belongs to which field, known from names or a table before any pixel is read."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.plates.plate import FieldKey, well_name, well_position
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.pattern_names import by_expression, compiled, natural
from hpc_isl.plates.store import Index
from hpc_isl.stages.annotate.outline_files import coco_images

Box = tuple[int, int, int, int]
EDGES = ("y0", "x0", "y1", "x1")
NAMES = ("well", "image", "field", "acquisition")
COLUMNS = ("path", *NAMES, *EDGES)
IMAGES = (".tif", ".tiff", ".png")
SUFFIXES = (*IMAGES, ".npy", ".zip", ".roi", ".geojson", ".json")

_FIELD = r"(?:.*/)?(?P<well>[A-Z]{1,2}\d{1,3})[_/-](?P<field>[A-Z0-9]+)"
_FILES = (
    r"(?:\.labels)?\.(?:ome\.)?(?:tiff?|png)",
    r"(?:\.(?:image|labels|ome))?_cp_masks\.(?:tiff?|png)",
    r"(?:\.(?:image|labels|ome))?(?:_seg)?\.npy",
    r"(?:\.(?:image|labels|ome))?(?:\.tiff?|\.png)?(?:[_.](?:rois|RoiSet))?\.(?:zip|roi|geojson|json)",
)
REGEX = f"(?i:{_FIELD}(?:{'|'.join(_FILES)}))"
IN_COCO = rf"(?i:{_FIELD}(?:\.image)?(?:\.\w+)*)"
NAMES_EXPECTED = "B03_1.tif, B03/1.png, B03_1_cp_masks.png, B03_1_RoiSet.zip, B03_1.geojson"
CELLPOSE = ("_cp_masks", "_rois", "_seg")  # ends of the names that it gives, the most exact file first
SHOWN = 5

LeftOut = defaultdict[str, list[str]]
"""Names of the files that are not imported, by reason."""
UNNAMED = "left out: no field is told by the name (regex)"
NOT_ON_PLATE = "left out: of wells that are not on the plate"
NOT_CHOSEN = "left out: of other fields than fields= names"
COMPANION = "left out: beside other annotations of the same image"


def remarks(left_out: LeftOut) -> list[str]:
    """Returns a line for each reason why files are not imported."""
    reasons = (UNNAMED, NOT_ON_PLATE, NOT_CHOSEN, COMPANION)
    return [f"{_files(left_out[reason])} {reason}" for reason in reasons if left_out.get(reason)]


def _files(names: Sequence[str]) -> str:
    return f"{many(len(names), 'file')} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"


@dataclass(frozen=True)
class LabelFile:
    """The annotation of a field, and the boxes (y0, x0, y1, x1) in which it is complete; none: all of it.

    Attributes:
        part: the image that is meant, in a file about several.
    """

    path: Path
    key: FieldKey
    boxes: tuple[Box, ...] = ()
    part: str = ""

    @property
    def name(self) -> str:
        return f"{self.path.name}: {self.part}" if self.part else self.path.name


@dataclass(frozen=True)
class Row:
    """A file, and the field that its name or a line of a table tells.

    Attributes:
        origin: for messages.
        names: of well, image, field and acquisition, and the edges of a box, as written.
        part: the image that is meant, in a file about several.
    """

    origin: str
    path: Path
    names: Mapping[str, str | None]
    part: str = ""

    def key(self, index: Index) -> FieldKey:
        """Returns the one field that the names tell; a field or acquisition may be left out if there is one.

        A field 2x1 is field 1 of acquisition 2, as images are called and exported.

        Raises:
            UserError: no field, or several; `NotOnPlate` where the well is not on the plate.
        """
        if named_well := self.names.get("well"):
            well = well_name(*well_position(named_well))
        else:  # an image that the plate map assigns to a well
            images = {row["image"]: well for well, row in index.plate_map.items() if row.get("image")}
            image = self.names.get("image") or ""
            if image not in images:
                raise NotOnPlate(f"image {image!r} is not in the plate map; {nearest(image, images)}")
            well = images[image]
        well_keys = [field.key for field in index.plate.fields if field.key.well == well]
        if not well_keys:
            raise NotOnPlate(f"well {well} is not on the plate; {nearest(well, index.plate.wells)}")
        name, acquisition = self.names.get("field") or "", self.names.get("acquisition") or ""
        image_name = re.fullmatch(r"(\d+)[xX](.+)", name)
        # Other programs may call a field itself so.
        if image_name and not acquisition and name not in {key.name for key in well_keys}:
            acquisition, name = image_name.groups()
        matches = [
            key
            for key in well_keys
            if (not name or _plain(key.name) == _plain(name))
            and (not acquisition or str(key.acquisition) == _plain(acquisition))
        ]
        if len(matches) != 1:
            subject = f"field {name!r}" if name else "no field"
            raise UserError(
                f"{subject} names {len(matches)} fields of well {well}; {nearest(name, matches or well_keys)}"
            )
        return matches[0]

    def label_file(self, key: FieldKey, index: Index) -> LabelFile:
        """Returns the file as the annotation of a field, with the box that the row gives."""
        texts = [(self.names.get(edge) or "").strip() for edge in EDGES]
        if not any(texts):
            return LabelFile(self.path, key, (), self.part)
        if not all(text.isdecimal() for text in texts):
            raise UserError(f"y0, x0, y1, x1 are whole numbers of pixels, all four or none; got {texts}")
        y0, x0, y1, x1 = map(int, texts)
        height, width = index.field(key).shape[-2:]
        if not (y0 < y1 <= height and x0 < x1 <= width):
            raise UserError(
                f"annotation box {(y0, x0, y1, x1)} (y0, x0, y1, x1) is empty or leaves the field "
                f"of {height} × {width} pixels"
            )
        return LabelFile(self.path, key, ((y0, x0, y1, x1),), self.part)


class NotOnPlate(UserError):
    """A well, or image, that is not on the plate."""


def _plain(name: str) -> str:
    """Returns 1 of 01: field 01 is field 1."""
    return str(int(name)) if name.isdecimal() else name


def raise_together(problems: Sequence[str], most: int = 20) -> None:
    """Raises one `UserError` for all problems, if there are any, on one screen."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        more = [f"… and {len(problems) - most} more"] if len(problems) > most else []
        raise UserError("\n  ".join([f"{len(problems)} problems:", *problems[:most], *more]))


# ---------------------------------------------------------------- finding


def chosen(fields: Sequence[str] | None, index: Index) -> list[FieldKey]:
    """Returns the fields named, or all, in plate order."""
    keys = [field.key for field in index.plate.fields]
    if fields is None:
        return keys
    chosen_keys = index.plate.choose(fields)
    return [key for key in keys if key in chosen_keys]


def find(
    source: Path, regex: str | None, index: Index, fields: Sequence[str] | None = None
) -> tuple[list[LabelFile], LeftOut]:
    """Returns the annotations in a folder, a CSV or a single file, in plate order, and what is left out.

    A single file whose name tells no field is of the only one in `fields`.

    Raises:
        UserError: naming every file or line that fits no field, twice the same field, or a box outside it.
    """
    if not source.exists():
        raise UserError(f"source: {source} is not there; a folder of label images or a CSV is expected")
    if source.is_file() and source.suffix.lower() not in SUFFIXES:
        if regex is not None:
            raise UserError(
                f"regex: changes nothing beside the table {source}, which names wells; leave it out"
            )
        return from_table(source, index, fields)
    left_out = LeftOut(list)
    single_file = Folder(source.parent.resolve(), frozenset([source.name]), frozenset())
    folder = list_folder(source) if source.is_dir() else single_file
    files = _by_field(_files_by_name(folder, regex, left_out), index, fields, left_out)
    # A single file may have any name, if the user says which field it is of.
    if left_out[UNNAMED] == [source.name] and len(chosen_keys := chosen(fields, index)) == 1:
        return [LabelFile(source, chosen_keys[0])], LeftOut(list)
    if not files:
        raise UserError(_nothing_for_plate(source, regex, index, left_out))
    return [files[field.key] for field in index.plate.fields if field.key in files], left_out


def from_table(
    table: Path, index: Index, fields: Sequence[str] | None = None
) -> tuple[list[LabelFile], LeftOut]:
    """Returns the annotations that a table names, in plate order, and what is left out.

    Several lines may give a field several boxes, in one and the same image.

    Raises:
        UserError: naming every line that does not fit.
    """
    files: dict[FieldKey, LabelFile] = {}
    left_out, problems, chosen_keys = LeftOut(list), [], set(chosen(fields, index))
    for row in _table_rows(table):
        try:
            key = row.key(index)
            if key not in chosen_keys:
                left_out[NOT_CHOSEN].append(row.path.name)
                continue
            file, former = row.label_file(key, index), files.get(key)
            if former and (former.path != file.path or not (former.boxes and file.boxes)):
                raise UserError(f"field {key} has its labels from {former.path.name} already")
            files[key] = replace(former, boxes=former.boxes + file.boxes) if former else file
        except UserError as error:
            problems.append(f"{row.origin}: {error}")
    raise_together(problems)
    return [files[field.key] for field in index.plate.fields if field.key in files], left_out


def _table_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a CSV; paths are relative to it. Errors in its header end the reading."""
    try:
        # Excel begins a CSV with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            for name in columns:
                if name not in COLUMNS:
                    raise UserError(f"{path}: unknown column {name!r}; {nearest(name, COLUMNS)}")
            if "path" not in columns or not {"well", "image"} & set(columns):
                raise UserError(f"{path}: the columns path and well (or image) are needed")
            for row in reader:
                yield Row(f"{path} line {reader.line_num}", path.parent / (row["path"] or ""), row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable as CSV (UTF-8): {error}") from None


def beside(
    folder: Path, known: Collection[str], index: Index, fields: Sequence[str] | None
) -> tuple[dict[FieldKey, LabelFile], LeftOut]:
    """Returns annotations that other programs have saved in a folder beside the files named in `known`.

    Raises:
        UserError: an annotation that tells no field.
    """
    left_out, content = LeftOut(list), list_folder(folder)
    other_files = Folder(content.root, frozenset(content.files - set(known)), content.leaving)
    rows = (_of_exported_image(row) for row in _files_by_name(other_files, None, left_out))
    files = _by_field(rows, index, fields, left_out)
    nameless = []
    for name in (*left_out[UNNAMED], *left_out[NOT_ON_PLATE]):
        # An image may be anything, such as a picture of the field; these can be nothing but annotations.
        path = Path(name.split(": ")[0])
        if path.suffix.lower() not in IMAGES or path.stem.endswith(CELLPOSE[0]):
            nameless.append(name)
    if nameless:
        raise UserError(
            f"{folder}: no field of the plate is told by the name of {_files(nameless)}, so it is not known "
            f"what is annotated: name files after the field, as in {NAMES_EXPECTED}; or move them out of "
            "the folder, and import each by itself with the field that it is of, as in fields=[B03/1]"
        )
    return files, left_out


def _of_exported_image(row: Row) -> Row:
    """Returns the row of a file named after an exported image: without an acquisition it is of the first."""
    name = row.names.get("field") or ""
    return row if re.match(r"\d+[xX]", name) else replace(row, names={**row.names, "acquisition": "0"})


def _files_by_name(folder: Folder, regex: str | None, left_out: LeftOut) -> Iterator[Row]:
    """Yields the files whose names tell a field; of a COCO file, the images that it is about."""
    expression, in_coco = (compiled(regex or default, "regex") for default in (REGEX, IN_COCO))
    files = []
    for name in sorted(folder.files, key=natural):
        images = None
        if name.lower().endswith(".json"):
            with suppress(UserError):  # if its name tells a field, reading it will say what is wrong
                images = coco_images(folder.root / name)
        if images is None:
            files.append(name)
        for image in images or ():
            match = in_coco.fullmatch(image) or in_coco.fullmatch(PurePosixPath(image).name)
            if match:
                yield Row(f"{name}: {image}", folder.root / name, match.groupdict(), image)
            else:
                left_out[UNNAMED].append(f"{name}: {image}")
    matches, others = by_expression(Folder(folder.root, frozenset(files), folder.leaving), expression)
    left_out[UNNAMED] += [name for name in others if Path(name).suffix.lower() in SUFFIXES]
    for file in matches:
        yield Row(file.name, folder.root / file.name, {part: getattr(file, part) for part in NAMES})


def _by_field(
    rows: Iterable[Row], index: Index, fields: Sequence[str] | None, left_out: LeftOut
) -> dict[FieldKey, LabelFile]:
    candidates: dict[FieldKey, list[LabelFile]] = {}
    problems, chosen_keys = [], set(chosen(fields, index))
    for row in rows:
        try:
            key = row.key(index)
        except NotOnPlate:
            left_out[NOT_ON_PLATE].append(row.origin)
        except UserError as error:
            # Ambiguous names are an error, unless the user has chosen fields and may not mean them.
            if fields is None:
                problems.append(f"{row.origin}: {error}; fields=[…] takes those that it names alone")
            else:
                left_out[NOT_CHOSEN].append(row.origin)
        else:
            if key in chosen_keys:
                candidates.setdefault(key, []).append(row.label_file(key, index))
            else:
                left_out[NOT_CHOSEN].append(row.origin)
    raise_together(problems)
    return {key: _most_exact_file(files, left_out) for key, files in candidates.items()}


def _most_exact_file(files: Sequence[LabelFile], left_out: LeftOut) -> LabelFile:
    """Returns the annotation of a field, where programs leave several files about one image.

    Raises:
        UserError: nothing tells which of them is meant.
    """

    def rank(file: LabelFile) -> int:
        ends = [place for place, end in enumerate(CELLPOSE) if file.path.stem.endswith(end)]
        return 0 if file.part else ends[0] if ends else len(CELLPOSE)

    if len(files) == 1:
        return files[0]
    best = min(files, key=rank)
    # Cellpose names its files after the image that it has segmented, and COCO names the image.
    image = PurePosixPath(best.part).stem if best.part else _image_stem(best.path)
    companions = [file for file in files if rank(file) > rank(best) and _image_stem(file.path) == image]
    # Files of equal rank, or about another image, are no companions of the best one.
    if rank(best) == len(CELLPOSE) or len(companions) < len(files) - 1:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"field {best.key} has {len(files)} files, {names}: leave one, or tell by regex= which"
        )
    left_out[COMPANION] += [file.name for file in companions]
    return best


def _image_stem(path: Path) -> str:
    """Returns the stem of the image that a file of Cellpose is named after."""
    ends = [end for end in CELLPOSE if path.stem.endswith(end)]
    return path.stem.removesuffix(ends[0]) if ends else path.stem


def _nothing_for_plate(source: Path, regex: str | None, index: Index, left_out: LeftOut) -> str:
    if left_out[NOT_ON_PLATE] or left_out[NOT_CHOSEN]:
        wells = index.plate.wells
        on_plate = f"it has {many(len(wells), 'well')}, {wells[0]} to {wells[-1]}"
        return f"{source}: there is nothing for this plate; {'; '.join(remarks(left_out))}; {on_plate}"
    names = ", ".join(map(repr, left_out[UNNAMED][:SHOWN])) or "no file that could be one"
    if regex is None:
        return f"{source}: no file is named after a field, as {NAMES_EXPECTED} are; there are: {names}"
    return (
        f"{source}: no file matches regex {regex!r}, which must match the whole path below that folder; "
        f"there are: {names}"
    )
