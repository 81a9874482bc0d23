"""Labels lent to a person: what they were when the folder left, and what has changed when it is back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.stages.annotate import drawn
from hpc_isl.stages.annotate.drawn import Annotation, Choices, whole
from hpc_isl.stages.annotate.field_names import Box, LabelFile

MANIFEST, TABLE = "manifest.json", "boxes.csv"
WRITER = "annotate export"


@dataclass(frozen=True)
class ExportedField:
    """The labels of one field as they were when they were exported.

    Attributes:
        content: hash of the label image in the folder.
        base: version of the plate's own labels, which may be replaced; empty: none.
        origin: who had made them; empty: nobody.
    """

    content: str
    base: str
    origin: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Folder:
    """An exported folder: the plate, the labels' name, what was lent of each field."""

    path: Path
    plate: str
    labels: str
    fields: Mapping[FieldKey, ExportedField]

    @property
    def table(self) -> Path:
        return self.path / TABLE


def content(labels: NDArray[Any]) -> str:
    """A hash of the pixels, whatever type a program saves them as."""
    return hashlib.sha256(str(labels.shape).encode() + labels.astype("<i8").tobytes()).hexdigest()[:32]


def version(image: Path, name: str) -> str:
    """A hash of an image's labels, who made them, and their boxes; empty where there are none."""
    if name not in store.label_names(image):
        return ""
    origin, boxes = store.annotation(image, name)
    text = f"{content(store.read_labels(image, name))} {origin} {[list(box) for box in boxes]}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def manifest(plate: str, labels: str, fields: Mapping[FieldKey, ExportedField]) -> str:
    """What `opened` reads."""
    rows = [
        {"well": key.well, "field": key.name, "acquisition": key.acquisition, **vars(lent)}
        for key, lent in fields.items()
    ]
    return json.dumps({"written_by": WRITER, "plate": plate, "labels": labels, "fields": rows}, indent=1)


def opened(source: Path, labels: str) -> Folder | None:
    """The exported folder that `source`, or the folder of this table, is; None: labels from elsewhere.

    Args:
        labels: that it becomes; under another name than theirs no labels of the plate are replaced.
    """
    path = source.parent if source.name == TABLE else source
    try:
        found = read_json(path / MANIFEST) if path.is_dir() else None
        if found is None or found.get("written_by") != WRITER:
            return None
        fields = dict(map(_lent, found["fields"]))
        if found["labels"] != labels:
            fields = {key: replace(one, base="") for key, one in fields.items()}
        return Folder(path, found["plate"], found["labels"], fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / MANIFEST} is damaged ({type(error).__name__}: {error}); {TABLE} and the label images, "
            "copied to a folder of their own, come in as a person's"
        ) from None


def _lent(row: Mapping[str, Any]) -> tuple[FieldKey, ExportedField]:
    boxes = tuple((int(y0), int(x0), int(y1), int(x1)) for y0, x0, y1, x1 in row["boxes"])
    key = FieldKey(row["well"], row["field"], row["acquisition"])
    return key, ExportedField(row["content"], row["base"], row["origin"], boxes)


def check(folder: Folder, index: store.Index) -> None:
    """The folder goes back to where it came from."""
    if folder.plate != index.plate.name:
        raise UserError(
            f"source: {folder.path} was exported from plate {folder.plate!r}, and this is "
            f"{index.plate.name!r}; {TABLE} and the label images, copied to a folder of their own, come in "
            "as a person's"
        )


@dataclass(frozen=True)
class Returned:
    """A label image that came back.

    Attributes:
        origin: whose labels these are now; None: as on the plate.
        beside: another program saved them beside the label image.
        left: name of a file beside it that cannot be read, and need not be.
    """

    file: LabelFile
    corrected: bool
    origin: str | None
    base: str | None
    beside: bool = False
    left: str = ""


def back(
    file: LabelFile,
    other: LabelFile | None,
    index: store.Index,
    folder: Folder,
    accept: bool,
    choices: Choices,
) -> Returned:
    """Only what a person changed, or accepted, is human; other labels keep whom they were made by.

    `other`: what another program has saved beside the label image, with the same boxes.

    Raises:
        UserError: the label image and the other were both changed, or neither can be taken.
    """
    was = folder.fields.get(file.key)
    content_was, base = (was.content, was.base) if was else ("", None)
    ours = _content(file, index, choices) != content_was
    try:
        theirs = other is not None and _content(other, index, choices) != content_was
    except UserError:
        if not ours:
            raise
        return Returned(file, True, "human", base, left=other.name if other else "")
    if ours and theirs and other is not None:
        raise UserError(
            f"{file.path.name} and {other.name} were both changed: leave one of them in the folder"
        )
    if theirs and other is not None:
        return Returned(other, True, "human", base, beside=True)
    if ours or was is None:
        return Returned(file, True, "human", base)
    if accept:
        return Returned(file, False, "human", base)
    moved = was.origin and (file.boxes or whole(index.field(file.key))) != was.boxes
    return Returned(file, False, was.origin if moved else None, base)


def _content(file: LabelFile, index: store.Index, choices: Choices) -> str:
    return content(drawn.drawing(file, index.field(file.key), choices).labels)


def annotation(one: Returned, index: store.Index, choices: Choices) -> Annotation:
    """What is to be written of a label image that came back."""
    assert one.origin is not None
    return drawn.read(one.file, index.field(one.file.key), choices, one.origin, one.base)


def return_messages(found: list[Returned], accept: bool) -> list[str]:
    """How many are corrected, and what becomes of the rest."""
    corrected = sum(one.corrected for one in found)
    rest, moved = len(found) - corrected, sum(not one.corrected and one.origin is not None for one in found)
    lines = [f"{corrected} label images are corrected, {rest} are unchanged"]
    lines += [f"{one.file.key} is taken from {one.file.name}" for one in found if one.beside]
    lines += [f"{one.left} is left out, for {one.file.name} was changed" for one in found if one.left]
    if rest and accept:
        lines.append("accept=true: the unchanged ones are human too")
    elif rest:
        lines.append(
            "the unchanged ones stay what they are; accept=true where a person found them right as they are"
        )
    if moved and not accept:
        lines.append(f"{moved} unchanged ones have other annotation boxes, which are taken over")
    return lines
