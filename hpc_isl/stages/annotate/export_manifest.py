"""The manifest of an exported folder: what its labels were, and what has changed when it is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.stages.annotate.annotation import Choices, drawing, shape_of, whole_field
from hpc_isl.stages.annotate.label_files import Box, LabelFile

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
class ExportedFolder:
    """An exported folder: the plate, the labels' name, and each field as it was."""

    path: Path
    plate: str
    labels: str
    fields: Mapping[FieldKey, ExportedField]


def content_hash(labels: NDArray[Any]) -> str:
    """Returns a hash of the pixels, whatever type a program saves them as."""
    # As int64, because napari saves int32, Cellpose uint16 and ImageJ float32 of the same labels.
    return hashlib.sha256(str(labels.shape).encode() + labels.astype("<i8").tobytes()).hexdigest()[:32]


def labels_version(image: Path, name: str) -> str:
    """Returns a hash of an image's labels, who made them, and their boxes; empty where there are none."""
    if name not in store.label_names(image):
        return ""
    origin, boxes = store.annotation(image, name)
    text = f"{content_hash(store.read_labels(image, name))} {origin} {[list(box) for box in boxes]}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PresentLabels:
    """The labels of a field as a person gets them to correct.

    Attributes:
        labels: (y, x), or (t, y, x) where the field has times; uint32, all background where there are none.
        origin: who made them; empty: there are none.
        boxes: in which every object is to be drawn.
        version: as `labels_version` returns it.
    """

    labels: NDArray[np.uint32]
    origin: str
    boxes: tuple[Box, ...]
    version: str


def present_labels(index: store.Index, key: FieldKey, name: str, box: Box | None) -> PresentLabels:
    """Returns the labels of a field; `box`: of those that no person drew; None: the box they have."""
    image, field = index.image(key), index.field(key)
    version = labels_version(image, name)
    if not version:
        shape = (field.shape[:1] if field.shape[0] > 1 else ()) + field.shape[-2:]
        return PresentLabels(np.zeros(shape, np.uint32), "", (box,) if box else whole_field(field), "")
    origin, stored_boxes = store.annotation(image, name)
    boxes = tuple(stored_boxes) or whole_field(field)
    # What a person drew keeps its own boxes: outside them nobody has looked.
    if box and origin != "human":
        boxes = (box,)
    return PresentLabels(store.read_labels(image, name), origin, boxes, version)


def manifest_text(plate: str, labels: str, fields: Mapping[FieldKey, ExportedField]) -> str:
    """Returns the text that `read_manifest` reads."""
    rows = [
        {"well": key.well, "field": key.name, "acquisition": key.acquisition, **vars(exported)}
        for key, exported in fields.items()
    ]
    return json.dumps({"written_by": WRITER, "plate": plate, "labels": labels, "fields": rows}, indent=1)


def read_manifest(source: Path, plate: str, labels: str) -> ExportedFolder | None:
    """Returns the exported folder that `source` is, or of which it is the table; None: labels from elsewhere.

    Args:
        plate: that they are imported to.
        labels: the name that they get; under another name than theirs no labels of the plate are replaced.

    Raises:
        UserError: the manifest is damaged, or of another plate.
    """
    path = source.parent if source.name == TABLE else source
    try:
        manifest = read_json(path / MANIFEST) if path.is_dir() else None
        if manifest is None or manifest.get("written_by") != WRITER:
            return None
        fields = {}
        for row in manifest["fields"]:
            boxes = tuple((int(y0), int(x0), int(y1), int(x1)) for y0, x0, y1, x1 in row["boxes"])
            # Only under their own name do corrections replace labels of the plate.
            base = row["base"] if manifest["labels"] == labels else ""
            key = FieldKey(row["well"], row["field"], row["acquisition"])
            fields[key] = ExportedField(row["content"], base, row["origin"], boxes)
        folder = ExportedFolder(path, manifest["plate"], manifest["labels"], fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / MANIFEST} is damaged ({type(error).__name__}: {error}); {TABLE} and the label images, "
            "copied to a folder of their own, are imported as a person's"
        ) from None
    if folder.plate != plate:
        raise UserError(
            f"source: {path} was exported from plate {folder.plate!r}, and this is {plate!r}; {TABLE} and "
            "the label images, copied to a folder of their own, are imported as a person's"
        )
    return folder


@dataclass(frozen=True)
class Returned:
    """A label image of an exported folder that is imported.

    Attributes:
        origin: whose labels these are now; None: as on the plate.
        saved_beside: another program saved them beside the label image.
        left_out: name of a file beside it that cannot be read, and need not be.
    """

    file: LabelFile
    corrected: bool
    origin: str | None
    base: str | None
    saved_beside: bool = False
    left_out: str = ""


def returned(
    file: LabelFile,
    other: LabelFile | None,
    index: store.Index,
    folder: ExportedFolder,
    accept: bool,
    choices: Choices,
) -> Returned:
    """Returns whose labels a label image holds now: only what a person changed, or accepted, becomes human.

    Args:
        other: what another program has saved beside the label image.

    Raises:
        UserError: the label image and the other were both changed, or neither can be taken.
    """

    def differs(file: LabelFile) -> bool:
        shape = shape_of(index.field(file.key))
        labels = drawing(file.path, file.part, shape, choices.overlaps).labels
        return content_hash(labels) != (exported.content if exported else "")

    exported = folder.fields.get(file.key)
    base = exported.base if exported else None
    changed = differs(file)
    if other is not None:
        other = replace(other, boxes=file.boxes)
        try:
            other_changed = differs(other)
        except UserError:
            if not changed:  # the unreadable file may hold all of a person's work
                raise
            return Returned(file, True, "human", base, left_out=other.name)
        if changed and other_changed:
            raise UserError(
                f"{file.path.name} and {other.name} were both changed: leave one of them in the folder"
            )
        if other_changed:
            return Returned(other, True, "human", base, saved_beside=True)
    if changed or exported is None:
        return Returned(file, True, "human", base)
    if accept:
        return Returned(file, False, "human", base)
    # Unchanged labels whose box a person has changed are written again, by whom they were made before.
    moved = exported.origin and (file.boxes or whole_field(index.field(file.key))) != exported.boxes
    return Returned(file, False, exported.origin if moved else None, base)


def return_messages(files: list[Returned], accept: bool) -> list[str]:
    """Returns lines for the user: how many label images are corrected, and what becomes of the rest."""
    corrected = sum(image.corrected for image in files)
    moved = sum(not image.corrected and image.origin is not None for image in files)
    unchanged = len(files) - corrected
    lines = [f"{corrected} label images are corrected, {unchanged} are unchanged"]
    lines += [f"{image.file.key} is taken from {image.file.name}" for image in files if image.saved_beside]
    lines += [
        f"{image.left_out} is left out, because {image.file.name} was changed"
        for image in files
        if image.left_out
    ]
    if unchanged and accept:
        lines.append("accept=true: the unchanged ones are human too")
    elif unchanged:
        lines.append(
            "the unchanged ones stay what they are; accept=true where a person found them right as they are"
        )
    if moved and not accept:
        lines.append(f"{moved} unchanged ones have other annotation boxes, which are taken over")
    return lines
