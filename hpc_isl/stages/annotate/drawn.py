"""What is drawn in annotation files: labels of whole fields, and which objects are meant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Field
from hpc_isl.plates.store import Index
from hpc_isl.stages.annotate.field_names import Box, LabelFile, raise_together
from hpc_isl.stages.annotate.formats import families
from hpc_isl.stages.annotate.formats.families import Drawing, Overlaps
from hpc_isl.stages.annotate.formats.outlines import Shape

MANY = 2  # pieces to a value: from here on the values are no numbers of objects


@dataclass(frozen=True)
class Choices:
    """What a user says of files that can be taken in two ways.

    Attributes:
        objects: each value is one object, or each connected piece.
        overlaps: to which of two outlines the pixels belong that both surround.
    """

    objects: Literal["values", "pieces"] | None = None
    overlaps: Overlaps = None


@dataclass(frozen=True)
class Annotation:
    """Labels (y, x) or (t, y, x) of a field and its boxes.

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


def whole(field: Field) -> tuple[Box, ...]:
    """The largest box there is."""
    return ((0, 0, *field.shape[-2:]),)


def check_files(files: Iterable[LabelFile], index: Index) -> list[str]:
    """What can be known of the files without their pixels; remarks for the user.

    Raises:
        UserError: naming all files that do not fit their fields.
    """
    problems: list[str] = []
    remarks: list[str] = []
    for file in files:
        try:
            remarks += families.check(file.path, file.part, _shape(index.field(file.key)))
        except UserError as mistake:
            problems.append(f"{file.key}: {mistake}")
    raise_together(problems)
    return list(dict.fromkeys(remarks))


def fingerprint(files: Iterable[LabelFile]) -> str:
    """Of the files' content and of the fields and boxes they are for."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.key} {file.boxes} {file.part}".encode())
        digest.update(file.path.read_bytes())
    return digest.hexdigest()[:16]


def drawing(file: LabelFile, field: Field, choices: Choices) -> Drawing:
    """All that the file holds, as (t, y, x)."""
    return families.drawing(file.path, file.part, _shape(field), choices.overlaps)


def read(
    file: LabelFile, field: Field, choices: Choices, origin: str = "human", base: str | None = None
) -> Annotation:
    """The annotation of a field, without the objects outside every box.

    Raises:
        UserError: the file cannot be taken as it is, and `choices` does not say how.
    """
    found = drawing(file, field, choices)
    labels = found.labels if found.apart else _objects(file.path, found.labels, choices.objects)
    kept, dropped = _inside(labels, file.boxes)
    of_field = kept if field.shape[0] > 1 else kept[0]
    return Annotation(of_field, file.boxes or whole(field), dropped, found.hidden, origin, base)


def _shape(field: Field) -> Shape:
    return field.shape[0], field.shape[-2], field.shape[-1]


def _objects(path: Path, labels: NDArray[Any], objects: str | None) -> NDArray[Any]:
    """The objects of a label image: a mask, a few values in many pieces, would silently become a few."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**32:
        raise UserError(f"{path} holds values from {low} to {high}; labels go from 0 to 2^32 - 1")
    if objects == "values" or not high:
        return labels
    pieces = _pieces(labels)
    if objects == "pieces":
        return pieces
    values = sum(len(np.setdiff1d(one, [0])) for one in labels)
    connected = sum(int(one.max()) for one in pieces)
    if connected >= MANY * values:
        raise UserError(
            f"{path} holds {values} values in {connected} pieces: a mask? objects=pieces takes each piece as "
            f"an object ({connected}), objects=values each value ({values})"
        )
    return labels


def _pieces(labels: NDArray[Any]) -> NDArray[Any]:
    """The connected pieces of equal value, numbered anew at each time."""
    from skimage.measure import label

    return np.stack([label(one, connectivity=2) for one in labels])


def _inside(labels: NDArray[Any], boxes: Sequence[Box]) -> tuple[NDArray[Any], int]:
    if not boxes:
        return labels, 0
    touched = np.concatenate([np.unique(labels[:, y0:y1, x0:x1]) for y0, x0, y1, x1 in boxes])
    outside = np.setdiff1d(labels, [0, *touched])
    return np.where(np.isin(labels, outside), 0, labels), len(outside)
