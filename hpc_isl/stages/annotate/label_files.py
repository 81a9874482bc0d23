"""Which annotation file belongs to which field, found out from names or a table before any pixel is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.pattern_names import by_expression, compiled, natural
from hpc_isl.plates.store import Index
from hpc_isl.stages.annotate.field_names import (
    NAMES,
    Elsewhere,
    LabelFile,
    Row,
    joined,
    key_of,
    label_file,
    raise_together,
    table_rows,
)
from hpc_isl.stages.annotate.formats import coco
from hpc_isl.stages.annotate.formats.families import BY_SUFFIX, IMAGES

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


@dataclass
class Left:
    """What is not brought in, by why: the files' names, to be told."""

    unnamed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    not_chosen: list[str] = field(default_factory=list)
    companions: list[str] = field(default_factory=list)

    def remarks(self) -> Iterator[str]:
        """One line for each reason."""
        if self.unnamed:
            yield f"{_files(self.unnamed)} have names that tell no field (regex) and are left out"
        if self.elsewhere:
            yield f"{_files(self.elsewhere)} are of wells that are not on the plate and are left out"
        if self.not_chosen:
            yield f"{_files(self.not_chosen)} are of other fields than fields= names and are left out"
        if self.companions:
            yield f"{_files(self.companions)} lie beside other annotations of the same image and are left out"


def _files(names: Sequence[str]) -> str:
    return f"{len(names)} files ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"


# ---------------------------------------------------------------- finding


def chosen(fields: Sequence[str] | None, index: Index) -> list[FieldKey]:
    """The fields named, or all, in plate order."""
    keys = [field.key for field in index.plate.fields]
    wanted = keys if fields is None else index.plate.choose(fields)
    return [key for key in keys if key in wanted]


def find(
    source: Path, regex: str | None, index: Index, fields: Sequence[str] | None = None
) -> tuple[list[LabelFile], Left]:
    """The annotations in a folder, a CSV or a single file, in the plate's order, and what is left out.

    A single file whose name tells no field is of the only one in `fields`.

    Raises:
        UserError: naming every file or line that fits no field, twice the same field, or a box outside it.
    """
    if not source.exists():
        raise UserError(f"source: {source} is not there; a folder of label images or a CSV is expected")
    if source.is_file() and source.suffix.lower() not in BY_SUFFIX:
        if regex is not None:
            raise UserError(
                f"regex: changes nothing beside the table {source}, which names wells; leave it out"
            )
        return listed(source, index, fields)
    left = Left()
    folder = list_folder(source) if source.is_dir() else _alone(source)
    candidates = _candidates(_named(folder, regex, left), index, fields, left)
    one_each = {key: _only(files, left) for key, files in candidates.items()}
    if left.unnamed == [source.name] and len(wanted := chosen(fields, index)) == 1:
        return [LabelFile(source, wanted[0])], Left()
    if not one_each:
        raise UserError(_nothing(source, regex, index, left))
    return _ordered(one_each, index), left


def listed(table: Path, index: Index, fields: Sequence[str] | None = None) -> tuple[list[LabelFile], Left]:
    """The same of a table: each of its lines must fit."""
    found: dict[FieldKey, LabelFile] = {}
    left, problems, wanted = Left(), [], chosen(fields, index)
    for row in table_rows(table):
        try:
            key = key_of(row.names, index)
            if key not in wanted:
                left.not_chosen.append(row.path.name)
                continue
            found[key] = joined(found.get(key), label_file(row, key, index))
        except UserError as mistake:
            problems.append(f"{row.origin}: {mistake}")
    raise_together(problems)
    return _ordered(found, index), left


def beside(
    folder: Path, known: Collection[str], index: Index, fields: Sequence[str] | None
) -> tuple[dict[FieldKey, LabelFile], Left]:
    """Annotations that other programs have saved in a folder beside the files that are `known`, by name.

    Raises:
        UserError: an annotation that tells no field.
    """
    left, there = Left(), list_folder(folder)
    others = Folder(there.root, frozenset(there.files - set(known)), there.leaving)
    candidates = _candidates(_named(others, None, left), index, fields, left)
    lost = [name for name in (*left.unnamed, *left.elsewhere) if _is_annotation(name)]
    if lost:
        raise UserError(
            f"{folder}: {_files(lost)} tell no field of the plate, so it is not known whose annotations they "
            f"are: name them after the field, as in {NAMES_EXPECTED}; or move them out of the folder, and "
            "import each by itself with the field that it is of, as in fields=[B03/1]"
        )
    return {key: _only(files, left) for key, files in candidates.items()}, left


def _alone(source: Path) -> Folder:
    return Folder(source.parent.resolve(), frozenset([source.name]), frozenset())


def _named(folder: Folder, regex: str | None, left: Left) -> Iterator[Row]:
    """The files whose names tell a field; of a COCO file, the images that it is about."""
    expression, in_coco = (compiled(regex or default, "regex") for default in (REGEX, IN_COCO))
    files = []
    for name in sorted(folder.files, key=natural):
        parts = _parts(folder.root / name)
        if parts is None:
            files.append(name)
        for part in parts or ():
            match = in_coco.fullmatch(part) or in_coco.fullmatch(PurePosixPath(part).name)
            if match:
                yield Row(f"{name}: {part}", folder.root / name, match.groupdict(), part)
            else:
                left.unnamed.append(f"{name}: {part}")
    found, others = by_expression(Folder(folder.root, frozenset(files), folder.leaving), expression)
    left.unnamed += [name for name in others if Path(name).suffix.lower() in BY_SUFFIX]
    for one in found:
        yield Row(one.name, folder.root / one.name, {part: getattr(one, part) for part in NAMES})


def _parts(path: Path) -> list[str] | None:
    """The images that a COCO file is about; None: it is none."""
    try:
        return coco.names(path) if path.suffix.lower() == ".json" else None
    except UserError:
        return None  # if its name tells a field, reading it will say what is wrong


def _candidates(
    rows: Iterable[Row], index: Index, fields: Sequence[str] | None, left: Left
) -> dict[FieldKey, list[LabelFile]]:
    found: dict[FieldKey, list[LabelFile]] = {}
    problems, wanted = [], chosen(fields, index)
    for row in rows:
        try:
            key = key_of(row.names, index)
        except Elsewhere:
            left.elsewhere.append(row.origin)
        except UserError as mistake:
            if fields is None:
                problems.append(f"{row.origin}: {mistake}; fields=[…] takes those that it names alone")
            else:
                left.not_chosen.append(row.origin)
        else:
            if key in wanted:
                found.setdefault(key, []).append(label_file(row, key, index))
            else:
                left.not_chosen.append(row.origin)
    raise_together(problems)
    return found


def _only(files: Sequence[LabelFile], left: Left) -> LabelFile:
    """The annotation of a field, where programs leave several files about one image.

    Cellpose names its files after the image that it has segmented, and COCO names the image.

    Raises:
        UserError: nothing tells which of them is meant.
    """
    if len(files) == 1:
        return files[0]
    best = min(files, key=_rank)
    image = PurePosixPath(best.part).stem if best.part else _plain_stem(best.path)
    about = [one for one in files if _rank(one) > _rank(best) and _plain_stem(one.path) == image]
    if _rank(best) == len(CELLPOSE) or len(about) < len(files) - 1:
        names = ", ".join(one.name for one in files)
        raise UserError(
            f"field {best.key} has {len(files)} files, {names}: leave one, or tell by regex= which"
        )
    left.companions += [one.name for one in about]
    return best


def _rank(file: LabelFile) -> int:
    ends = [place for place, end in enumerate(CELLPOSE) if file.path.stem.endswith(end)]
    return 0 if file.part else ends[0] if ends else len(CELLPOSE)


def _plain_stem(path: Path) -> str:
    """The stem of the image that a file of Cellpose is named after."""
    for end in CELLPOSE:
        if path.stem.endswith(end):
            return path.stem.removesuffix(end)
    return path.stem


def _nothing(source: Path, regex: str | None, index: Index, left: Left) -> str:
    if left.elsewhere or left.not_chosen:
        return f"{source}: there is nothing for this plate; {'; '.join(left.remarks())}; {_wells(index)}"
    there = ", ".join(map(repr, left.unnamed[:SHOWN])) or "no file that could be one"
    if regex is None:
        return f"{source}: no file is named after a field, as {NAMES_EXPECTED} are; there are: {there}"
    return (
        f"{source}: no file matches regex {regex!r}, which must match the whole path below that folder; "
        f"there are: {there}"
    )


def _wells(index: Index) -> str:
    wells = index.plate.wells
    return f"it has {len(wells)} wells, {wells[0]} to {wells[-1]}"


def _is_annotation(name: str) -> bool:
    """Whether a file can be nothing but an annotation; an image may be anything."""
    path = Path(name.split(": ")[0])
    return path.suffix.lower() not in IMAGES or path.stem.endswith(CELLPOSE[0])


def _ordered(found: Mapping[FieldKey, LabelFile], index: Index) -> list[LabelFile]:
    return [found[field.key] for field in index.plate.fields if field.key in found]
