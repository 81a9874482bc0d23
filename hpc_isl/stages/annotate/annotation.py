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
from numpy.lib import format as npy
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import header, read_plane
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.stages.annotate import outline_files
from hpc_isl.stages.annotate.label_files import Box, LabelFile, raise_together
from hpc_isl.stages.annotate.outlines import Outline, Shape, painted

EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}  # whole numbers up to here keep their value
NUMPY = ".npy"


# ---------------------------------------------------------------- label images: each object has a number


def check_label_image(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Checks by the header that a file holds numbers of the field's shape; of decimal ones, reads all."""
    if _check_header(path, shape).kind == "f":
        read_label_image(path, part, shape)
    return ()


def read_label_image(path: Path, part: str, shape: Shape) -> NDArray[Any]:
    """Returns label numbers (t, y, x)."""
    if path.suffix.lower() != NUMPY:
        pages = [read_plane(path, page, drawn=True) for page in range(shape[0])]
        return np.stack(
            [(_color_numbers if page.ndim == 3 else _whole_numbers)(path, page) for page in pages]
        )
    _check_header(path, shape)
    try:
        pixels = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return _whole_numbers(path, pixels).reshape(shape)


def _check_header(path: Path, shape: Shape) -> np.dtype[Any]:
    if path.suffix.lower() == NUMPY:
        stored, dtype = _numpy_header(path)
        # An array of a field with one time may do without that axis.
        padded = (1,) * (3 - len(stored)) + stored
    else:
        plane, name, pages = header(path, drawn=True)
        stored = padded = (pages, *plane)
        dtype = np.dtype(name)
    if dtype.kind not in "iub" and dtype.name not in EXACT:
        raise UserError(f"{path} holds {dtype}; labels are whole numbers: 0 background, k the k-th object")
    if padded != shape:
        raise UserError(f"{path} has the shape {stored}, but the field has {shape} (t, y, x)")
    return dtype


def _numpy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with path.open("rb") as file:
            read = {(1, 0): npy.read_array_header_1_0}.get(npy.read_magic(file), npy.read_array_header_2_0)
            shape, _, dtype = read(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if dtype.hasobject:
        raise UserError(
            f"{path} holds objects of Python, and opening these may run any program: save the masks instead, "
            "in Cellpose by File > Save masks as PNG/tif, or in Python by cellpose.io.save_masks"
        )
    return shape, dtype


def _color_numbers(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Returns R + 256 G + 65536 B of colours (y, x, sample); what is transparent or black is background."""
    samples = pixels.shape[-1]
    if pixels.dtype != np.uint8 and samples > 2:
        raise UserError(
            f"{path} has colours of {pixels.dtype}; 8 bits each for red, green and blue are expected"
        )
    planes = np.moveaxis(pixels, -1, 0)
    *colors, alpha = planes if samples in (2, 4) else (*planes, 1)
    # As COCO numbers the segments of its panoptic images.
    numbers = sum(color.astype(np.uint32) << 8 * place for place, color in enumerate(colors))
    return np.where(alpha, numbers, 0)


def _whole_numbers(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Returns decimal numbers, as which ImageJ keeps 32-bit labels, as whole ones.

    Raises:
        UserError: they are not whole, or so large that neighbours may have become one.
    """
    if pixels.dtype.kind != "f":
        return pixels
    if not np.isfinite(pixels).all() or (pixels != np.round(pixels)).any():
        raise UserError(
            f"{path} holds {pixels.dtype} that are not whole; labels are: 0 background, k the k-th object"
        )
    if pixels.size and np.abs(pixels).max() >= EXACT[pixels.dtype.name]:
        raise UserError(f"{path} holds {pixels.dtype} up to {pixels.max():.0f}: so large they are not exact")
    return pixels.astype(np.int64)


# ---------------------------------------------------------------- all formats


@dataclass(frozen=True)
class Format:
    """The functions that check and read files of one kind."""

    check: Callable[[Path, str, Shape], Sequence[str]]
    read: Callable[[Path, str, Shape], NDArray[Any] | list[Outline]]


LABEL_IMAGE = Format(check_label_image, read_label_image)
IMAGEJ = Format(outline_files.check_rois, outline_files.read_rois)
GEOJSON = Format(outline_files.check_geojson, outline_files.read_geojson)
COCO = Format(outline_files.check_coco, outline_files.read_coco)
BY_SUFFIX = {
    ".tif": LABEL_IMAGE, ".tiff": LABEL_IMAGE, ".png": LABEL_IMAGE, ".npy": LABEL_IMAGE,
    ".zip": IMAGEJ, ".roi": IMAGEJ, ".geojson": GEOJSON, ".json": GEOJSON,
}  # fmt: skip
# From this many connected pieces per value on, the values are not taken for numbers of objects.
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


def outside(box: Box | None, keys: Iterable[FieldKey], index: Index) -> list[str]:
    """Returns a line for each field that does not hold an annotation box, if one is given."""
    if box is None:
        return []
    sizes = {key: index.field(key).shape[-2:] for key in keys}
    return [
        f"{key}: box {box} (y0, x0, y1, x1) is empty or leaves the {height} × {width} pixels"
        for key, (height, width) in sizes.items()
        if not (box[0] < box[2] <= height and box[1] < box[3] <= width)
    ]


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
    field_labels = labels if field.shape[0] > 1 else labels[0]
    labels_inside, dropped = inside_boxes(field_labels, file.boxes) if file.boxes else (field_labels, 0)
    return Annotation(labels_inside, file.boxes or whole_field(field), dropped, content.hidden, origin, base)


def inside_boxes(labels: NDArray[Any], boxes: Sequence[Box]) -> tuple[NDArray[Any], int]:
    """Returns labels (…, y, x) without the objects outside every box, and the number of these."""
    # An object that a box cuts is kept whole; what touches no box is not known to be complete.
    touched = [np.unique(labels[..., y0:y1, x0:x1]) for y0, x0, y1, x1 in boxes]
    dropped = np.setdiff1d(labels, [0, *np.concatenate(touched)])
    return (np.where(np.isin(labels, dropped), 0, labels) if len(dropped) else labels), len(dropped)


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
