"""Which module reads which annotation files: one for each family of formats.

A module has two functions. `check(path, part, shape)` raises a `UserError` for what the file tells
without its pixels, and returns remarks for the user. `read(path, part, shape)` gives label numbers
(t, y, x), or a list of `Outline`. `part` is the image that is meant, in a file about several; `shape` is
(t, y, x) of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.formats import arrays, coco, imagej, images, qupath
from hpc_isl.stages.annotate.formats.outlines import Outline, Shape, painted

Overlaps = Literal["smaller_on_top"] | None
Check = Callable[[Path, str, Shape], Sequence[str]]
Read = Callable[[Path, str, Shape], NDArray[Any] | list[Outline]]


@dataclass(frozen=True)
class Format:
    """One family: what it checks and reads."""

    check: Check
    read: Read


LABEL_IMAGE = Format(images.check, images.read)
ARRAY = Format(arrays.check, arrays.read)
IMAGEJ = Format(imagej.check, imagej.read)
QUPATH = Format(qupath.check, qupath.read)
COCO = Format(coco.check, coco.read)
BY_SUFFIX = {
    ".tif": LABEL_IMAGE, ".tiff": LABEL_IMAGE, ".png": LABEL_IMAGE, ".npy": ARRAY,
    ".zip": IMAGEJ, ".roi": IMAGEJ, ".geojson": QUPATH, ".json": QUPATH,
}  # fmt: skip
IMAGES = (".tif", ".tiff", ".png")


@dataclass(frozen=True)
class Drawing:
    """What a file holds.

    Attributes:
        labels: numbers of objects (t, y, x).
        apart: the file itself tells its objects apart, as outlines do.
        hidden: objects that have no pixel, because smaller ones cover them or they are smaller than one.
    """

    labels: NDArray[Any]
    apart: bool
    hidden: int = 0


def format_of(path: Path, part: str) -> Format:
    """The family of a file.

    Raises:
        UserError: a suffix that none has.
    """
    if part:
        return COCO
    found = BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        raise UserError(f"{path}: annotations are read from {', '.join(BY_SUFFIX)} files")
    return found


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Remarks about a file; a `UserError` where it cannot be the annotation of such a field."""
    return format_of(path, part).check(path, part, shape)


def drawing(path: Path, part: str, shape: Shape, overlaps: Overlaps) -> Drawing:
    """All that a file holds.

    Raises:
        UserError: outlines overlap, and `overlaps` does not say what then.
    """
    found = format_of(path, part).read(path, part, shape)
    if not isinstance(found, list):
        return Drawing(found, apart=False)
    labels, hidden = painted(path, found, shape, smaller_on_top=overlaps == "smaller_on_top")
    return Drawing(labels, apart=True, hidden=hidden)
