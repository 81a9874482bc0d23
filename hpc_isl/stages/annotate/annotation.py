"""The content of annotation files: labels of whole fields, in the format that a file's suffix names.

A format has two functions. `check(path, part, shape)` raises a `UserError` for what the file tells without
its pixels, and returns remarks for the user. `read(path, part, shape)` returns label numbers (t, y, x), or a
list of `Outline`. `part` is the image that is meant, in a file about several; `shape` is (t, y, x).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Field
from hpc_isl.plates.store import Index
from hpc_isl.stages.annotate import imagej, json_outlines, label_images
from hpc_isl.stages.annotate.label_files import Box, LabelFile, raise_together
from hpc_isl.stages.annotate.outlines import Outline, Shape, painted


@dataclass(frozen=True)
class Format:
    """The functions that check and read files of one kind."""

    check: Callable[[Path, str, Shape], Sequence[str]]
    read: Callable[[Path, str, Shape], NDArray[Any] | list[Outline]]


LABEL_IMAGE = Format(label_images.check, label_images.read)
IMAGEJ = Format(imagej.check, imagej.read)
GEOJSON = Format(json_outlines.check_geojson, json_outlines.read_geojson)
COCO = Format(json_outlines.check_coco, json_outlines.read_coco)
BY_SUFFIX = {
    ".tif": LABEL_IMAGE, ".tiff": LABEL_IMAGE, ".png": LABEL_IMAGE, ".npy": LABEL_IMAGE,
    ".zip": IMAGEJ, ".roi": IMAGEJ, ".geojson": GEOJSON, ".json": GEOJSON,
}  # fmt: skip
# From so many connected pieces to a value on, the values are no numbers of objects.
MANY_PIECES = 2


@dataclass(frozen=True)
class Choices:
    """The user's choices for files that can be taken in two ways.

    Attributes:
        objects: each value is one object, or each connected piece.
        overlaps: to which of two outlines the pixels belong that both surround.
    """

    objects: Literal["values", "pieces"] | None = None
    overlaps: Literal["smaller_on_top"] | None = None


@dataclass(frozen=True)
class Drawing:
    """The content of a file.

    Attributes:
        labels: numbers of objects (t, y, x).
        apart: the file itself tells its objects apart, as outlines do.
        hidden: objects that have no pixel, because smaller ones cover them or they are smaller than one.
    """

    labels: NDArray[Any]
    apart: bool
    hidden: int = 0


@dataclass(frozen=True)
class Annotation:
    """Labels (y, x) or (t, y, x) of a field and its annotation boxes.

    Attributes:
        dropped: objects that lay outside every box.
        hidden: outlines that have no pixel of their own.
        origin: who made them.
        base: version of the plate's labels that these were made from, and may replace; None: of none.
    """

    labels: NDArray[Any]
    boxes: tuple[Box, ...]
    dropped: int = 0
    hidden: int = 0
    origin: str = "human"
    base: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        objects = len(np.setdiff1d(self.labels, [0]))
        return {
            "objects": objects, "boxes": len(self.boxes), "dropped": self.dropped, "hidden": self.hidden,
        }  # fmt: skip


def whole_field(field: Field) -> tuple[Box, ...]:
    """Returns the largest annotation box of a field."""
    return ((0, 0, *field.shape[-2:]),)


def _format_of(path: Path, part: str) -> Format:
    if part:
        return COCO
    if path.suffix.lower() not in BY_SUFFIX:
        raise UserError(f"{path}: annotations are read from {', '.join(BY_SUFFIX)} files")
    return BY_SUFFIX[path.suffix.lower()]


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Returns remarks about a file; raises a `UserError` where it cannot annotate such a field."""
    return _format_of(path, part).check(path, part, shape)


def drawing(path: Path, part: str, shape: Shape, overlaps: str | None) -> Drawing:
    """Returns all that a file holds.

    Raises:
        UserError: outlines overlap, and `overlaps` does not say what then.
    """
    content = _format_of(path, part).read(path, part, shape)
    if not isinstance(content, list):
        return Drawing(content, apart=False)
    labels, hidden = painted(path, content, shape, smaller_on_top=overlaps == "smaller_on_top")
    return Drawing(labels, apart=True, hidden=hidden)


def check_files(files: Iterable[LabelFile], index: Index) -> list[str]:
    """Returns remarks for the user about files, as far as they are known without their pixels.

    Raises:
        UserError: naming all files that do not fit their fields.
    """
    problems: list[str] = []
    remarks: list[str] = []
    for file in files:
        try:
            remarks += check(file.path, file.part, shape_of(index.field(file.key)))
        except UserError as error:
            problems.append(f"{file.key}: {error}")
    raise_together(problems)
    return list(dict.fromkeys(remarks))


def files_fingerprint(files: Iterable[LabelFile]) -> str:
    """Returns a hash of the files' content and of the fields and boxes they are for."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.key} {file.boxes} {file.part}".encode())
        digest.update(file.path.read_bytes())
    return digest.hexdigest()[:16]


def shape_of(field: Field) -> Shape:
    """Returns (t, y, x) of a field."""
    return field.shape[0], field.shape[-2], field.shape[-1]


def read_annotation(
    file: LabelFile, field: Field, choices: Choices, origin: str = "human", base: str | None = None
) -> Annotation:
    """Returns the annotation of a field, without the objects outside every box.

    Raises:
        UserError: the file cannot be taken as it is, and `choices` does not say how.
    """
    content = drawing(file.path, file.part, shape_of(field), choices.overlaps)
    labels = content.labels if content.apart else _objects(file.path, content.labels, choices.objects)
    outside: NDArray[Any] = np.array([])
    if file.boxes:
        # An object that a box cuts is kept whole; what touches no box is not known to be complete.
        touched = np.concatenate([np.unique(labels[:, y0:y1, x0:x1]) for y0, x0, y1, x1 in file.boxes])
        outside = np.setdiff1d(labels, [0, *touched])
        labels = np.where(np.isin(labels, outside), 0, labels)
    of_field = labels if field.shape[0] > 1 else labels[0]
    return Annotation(of_field, file.boxes or whole_field(field), len(outside), content.hidden, origin, base)


def _objects(path: Path, labels: NDArray[Any], objects: str | None) -> NDArray[Any]:
    """Returns the objects of a label image; of a mask, a few values in many pieces, if the user says how."""
    # A mask would silently become one object, or as many as it has grey values.
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**32:
        raise UserError(f"{path} holds values from {low} to {high}; labels go from 0 to 2^32 - 1")
    if objects == "values" or not high:
        return labels
    from skimage.measure import label  # here, because a plan does without it

    pieces = np.stack([label(image, connectivity=2) for image in labels])
    if objects == "pieces":
        return pieces
    values = sum(len(np.setdiff1d(image, [0])) for image in labels)
    connected = sum(int(image.max()) for image in pieces)
    if connected >= MANY_PIECES * values:
        raise UserError(
            f"{path} holds {values} values in {connected} pieces: a mask? objects=pieces takes each piece as "
            f"an object ({connected}), objects=values each value ({values})"
        )
    return labels
