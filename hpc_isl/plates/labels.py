"""Labels of an image: written with who made them and where they are complete, read, and checked for edits.

A checksum of their pixels is kept with labels when they are written, and a hash of their files: as long as
the files are the same, no pixel need be decoded. Names, sizes and dates of files prove nothing, as an edit
may leave these alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import adopted, metadata, packed
from hpc_isl.plates.atomic_directory import atomic_directory, translate_write_errors
from hpc_isl.plates.label_groups import (
    BAND,
    Box,
    LabelPixels,
    existing,
    facts,
    find,
    label_depth,
    label_folder,
    label_levels,
    label_paths,
    labels_home,
    listed_labels,
    noted,
    open_labels,
    slug,
)
from hpc_isl.plates.plate import Field, Plate
from hpc_isl.plates.pyramid import create_level, shard_boxes, write_coarser, write_pyramid, write_shards
from hpc_isl.recipes.plates import CodecRecipe

MOST_COLORS = 4096


def write_labels(
    image: Path,
    name: str,
    labels: NDArray[Any],
    *,
    origin: str,
    boxes: Sequence[Box],
    fingerprint: str = "",
    overwrite: bool = False,
    made_from: str | None = None,
) -> str:
    """Writes labels of an image under `labels/`, as uint32 with as many levels as the image.

    Returns their checksum. Labels that a person edited since they were written are never replaced, whatever
    `overwrite` is.

    Args:
        labels: (y, x) integers of the image's size, or (t, y, x) where it has times; 0 background.
        origin: who made them: "human", "drafted", …
        boxes: (y0, x0, y1, x1) in pixels, ends excluded, in which every object is drawn.
        fingerprint: of what computed them, kept with them, so that two computations never mix.
        overwrite: replace labels of this name.
        made_from: checksum of the labels that these were made from: they may be replaced though edited.

    Raises:
        UserError: labels that do not fit the image, or that may not be replaced.
    """
    plate, field, _ = facts(image)
    content = _Labels(image, name, plate, field, label_depth(image), origin, boxes, fingerprint)
    height, width = content.field.shape[-2:]
    pixels = _checked_labels(image, name, labels, content.field)
    for y0, x0, y1, x1 in boxes:
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise UserError(
                f"{image}: annotation box {(y0, x0, y1, x1)} (y0, x0, y1, x1) is empty or lies outside the "
                f"image of {height} × {width} pixels"
            )
    if not overwrite and find(image, name):
        raise UserError(f"{image}: has labels {name!r} already")
    with atomic_directory(label_folder(image, name), pixels.nbytes, overwrite) as folder:
        write_pyramid(folder, pixels, content.axes, content.levels, CodecRecipe(), "stride")
        flat = pixels.reshape(-1, height, width)
        pixels_checksum = checksum(flat.shape, flat)
        # Of very many labels the first ones get a colour, as each takes 70 bytes of metadata. Neighbours
        # mostly have one label, so that few pixels need be sorted.
        row = pixels.ravel()
        values = np.unique(np.append(row[:1], row[1:][row[1:] != row[:-1]]))
        content.write(folder, values[values > 0][:MOST_COLORS].tolist(), pixels_checksum)
        # Checked last, just before the folder is replaced: people may have edited the labels meanwhile.
        refuse_edited(image, name, (pixels_checksum, made_from))
    _update_list(image, name)
    return pixels_checksum


def write_large_labels(
    image: Path,
    name: str,
    times: Sequence[NDArray[np.uint32]],
    *,
    origin: str,
    fingerprint: str,
    overwrite: bool = False,
) -> str:
    """Writes labels larger than memory, as `write_labels` does smaller ones; returns their checksum.

    Args:
        times: (y, x) of each time, in files that are mapped to memory: they are read a shard at a time.
    """
    plate, field, _ = facts(image)
    y, x = field.shape[-2:]
    levels = label_depth(image)
    content = _Labels(image, name, plate, field, levels, origin, [(0, 0, y, x)], fingerprint)
    with atomic_directory(label_folder(image, name), 4 * len(times) * y * x, overwrite) as folder:
        shape = (*((len(times),) if len(times) > 1 else ()), 1, y, x)
        store = create_level(folder, 0, shape, np.dtype(np.uint32), content.axes, CodecRecipe())
        for box in shard_boxes(store):
            shard_times = times[box[0]] if len(times) > 1 else times  # a shard holds all times
            part = np.stack([labels[box[-2:]] for labels in shard_times])
            write_shards(store, box, part.reshape(store[box].shape))
        write_coarser(folder, store, content.axes, levels, CodecRecipe())
        bands = (labels[first : first + BAND] for labels in times for first in range(0, y, BAND))
        pixels_checksum = checksum((len(times), y, x), bands)
        greatest = max(int(labels.max()) for labels in times)
        content.write(folder, range(1, 1 + min(MOST_COLORS, greatest)), pixels_checksum)
        refuse_edited(image, name, (pixels_checksum,))
    _update_list(image, name)
    return pixels_checksum


@dataclass(frozen=True)
class _Labels:
    """The metadata of labels, beside their pixels."""

    image: Path
    name: str
    plate: Plate
    field: Field
    levels: int
    origin: str
    boxes: Sequence[Box]
    fingerprint: str

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in metadata.axes(self.field) if axis != "c")

    def write(self, folder: Path, values: Sequence[int], pixels_checksum: str) -> None:
        """Writes the group's metadata; `values` are the labels that get a colour."""
        from hpc_isl.plates import ngff

        boxes = [list(map(int, box)) for box in self.boxes]
        ours: dict[str, Any] = {"name": self.name, "origin": self.origin, "boxes": boxes}
        ours |= {"fingerprint": self.fingerprint} if self.fingerprint else {}
        ours |= {"checksum": pixels_checksum, "files": _files_digest(folder / "0")}
        attributes = ngff.attributes(ngff.label_image(self.plate, self.field, self.levels, self.name))
        metadata.write_group(folder, ngff.colored(attributes, values), ours)


def _checked_labels(image: Path, name: str, labels: NDArray[Any], field: Field) -> NDArray[np.uint32]:
    expected = (field.shape[:1] if field.shape[0] > 1 else ()) + field.shape[-2:]
    if labels.shape != expected:
        raise UserError(f"{image}: labels {name!r} of shape {labels.shape} do not fit the image's {expected}")
    if labels.dtype.kind not in "iub":
        raise UserError(f"{image}: labels {name!r} are {labels.dtype}; whole numbers are expected")
    if (
        not np.can_cast(labels.dtype, np.uint32)
        and labels.size
        and not 0 <= labels.min() <= labels.max() < 2**32
    ):
        raise UserError(f"{image}: labels {name!r} go from {labels.min()} to {labels.max()}; 0 to 2^32-1 fit")
    return np.ascontiguousarray(labels, np.uint32)[..., None, :, :]


def _update_list(image: Path, name: str) -> None:
    from hpc_isl.plates import ngff

    # The list names every folder that exists, so it heals after a kill in between. Others may add labels to
    # the image meanwhile, and list them: the last to write the list looks again.
    labels = labels_home(image)
    while True:
        listed = listed_labels(labels)
        # What another program lists in its own plate stays, whether we can read it or not.
        other_paths = listed if adopted.labels_inside(image) else []
        present = label_paths(labels, known=[*listed, slug(name)])
        label_list = [*other_paths, *(path for path in present if path not in other_paths)]
        if label_list == listed:
            return
        with translate_write_errors(labels):
            metadata.update_group(labels, ngff.attributes(ngff.labels_group(label_list)), writer=slug(name))


# ---------------------------------------------------------------- reading


def read_labels(image: Path, name: str, level: int = 0) -> NDArray[np.uint32]:
    """Returns labels (y, x), or (t, y, x) where the image has times, on the grid of one level of the pyramid.

    They are taken from full resolution, which is what people correct, and what other programs surely have.
    """
    pixels, step = labels_of(image, name), slice(None, None, 2**level)
    times = [pixels.read(time, step, step) for time in range(pixels.shape[0])]
    return np.stack(times) if len(times) > 1 else times[0]


def label_bands(image: Path, name: str, rows: int = BAND) -> Iterator[NDArray[np.uint32]]:
    """Returns labels at full resolution in bands of whole rows, from the first one on, time by time."""
    return labels_of(image, name).bands(rows)


def read_label_box(
    image: Path, name: str, time: int, y: slice, x: slice, level: int = 0
) -> NDArray[np.uint32]:
    """Returns a box (y, x) of the labels of one time, on the grid of one level; no more is read."""
    pixels, step = labels_of(image, name), 2**level

    def at_full_resolution(side: slice, length: int) -> slice:
        stop = length if side.stop is None else min(side.stop * step, length)
        return slice((side.start or 0) * step, stop, step)

    height, width = pixels.shape[1:]
    return pixels.read(time, at_full_resolution(y, height), at_full_resolution(x, width))


def labels_of(image: Path, name: str) -> LabelPixels:
    """Returns the pixels of labels; those of other programs must fit the image."""
    folder = existing(image, name)
    pixels = open_labels(folder)
    if not noted(folder):
        times, *_, y, x = facts(image)[1].shape
        if pixels.shape != (times, y, x):
            raise UserError(
                f"{image}: labels {name!r} of shape {pixels.shape} do not fit the image's {(times, y, x)} "
                "(t, y, x)"
            )
    return pixels


# ---------------------------------------------------------------- checksums and edits


def checksum(shape: tuple[int, ...], bands: Iterable[NDArray[np.uint32]]) -> str:
    """Returns a hash of the pixels of labels (t, y, x), given in raster order, however these are stored."""
    hasher = hashlib.sha256(str(tuple(shape)).encode())
    for band in bands:
        hasher.update(np.ascontiguousarray(band, "<u4").data)
    return hasher.hexdigest()[:32]


def labels_checksum(image: Path, name: str) -> str:
    """Returns a hash of the labels' pixels as they are now."""
    folder = existing(image, name)
    return _present_checksum(folder, noted(folder))


def edited(image: Path, name: str) -> bool | None:
    """Returns whether the labels' pixels differ from those written; None: no checksum was kept with them."""
    return label_state(image, name).edited


@dataclass(frozen=True)
class LabelState:
    """The identity of labels, and whether they were edited.

    Attributes:
        stamp: tells these labels from others: who made them, their boxes and their pixels.
        edited: as `edited` returns it.
    """

    stamp: str
    edited: bool | None


def label_state(image: Path, name: str) -> LabelState:
    """Reads the labels' files, and decodes them where they are not those that were written."""
    folder = existing(image, name)
    notes = noted(folder)
    present_checksum = _present_checksum(folder, notes)
    stamp = hashlib.sha256(repr((name, _without_hashes(notes), present_checksum)).encode()).hexdigest()
    return LabelState(stamp, present_checksum != notes["checksum"] if "checksum" in notes else None)


def stamp(image: Path, name: str) -> str:
    """Returns what tells these labels from others: who made them, their boxes and their pixels."""
    return label_state(image, name).stamp


def former_stamp(image: Path, name: str) -> str:
    """Returns the stamp as runs noted it before checksums were of pixels: by names and sizes of files."""
    folder = existing(image, name)
    hasher = hashlib.sha256(repr((name, _without_hashes(noted(folder)))).encode())
    for path in packed.files_below(folder):
        hasher.update(f"{path.relative_to(folder)} {packed.size(path)}\n".encode())
    return hasher.hexdigest()


def _without_hashes(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in notes.items() if key not in ("checksum", "files")}


def _files_digest(level: Path) -> str:
    hasher = hashlib.sha256()
    for path in packed.files_below(level):
        content = packed.read_bytes(path)
        hasher.update(f"{path.relative_to(level)} {len(content)}\n".encode() + content)
    return hasher.hexdigest()[:32]


def _present_checksum(folder: Path, notes: Mapping[str, Any]) -> str:
    # Files that are the same hold the same pixels, which then need not be decoded.
    if notes.get("files") and notes["files"] == _files_digest(folder / label_levels(folder)[0][0]):
        return str(notes["checksum"])
    pixels = open_labels(folder)
    return checksum(pixels.shape, pixels.bands())


def refuse_edited(image: Path, name: str, same: Collection[str | None] = ()) -> None:
    """Checks that labels are as they were written, so that no work is lost if they are replaced.

    Args:
        same: checksums of other pixels that may be replaced: those that the new labels hold anyway, or were
            made from.

    Raises:
        UserError: a person edited them, or nobody knows.
    """
    folder = find(image, name)
    if folder is None:
        if label_folder(image, name).exists():
            raise UserError(f"{label_folder(image, name)}: holds no zarr.json; move it away first")
        return
    notes = noted(folder)
    try:
        present_checksum = _present_checksum(folder, notes)
    except UserError as error:
        raise UserError(f"{error}; what cannot be read is not replaced: move it away first") from None
    if present_checksum not in (notes.get("checksum"), *same):
        raise UserError(f"{image}: labels {name!r} {edits_stay('checksum' in notes)}")


def edits_stay(known: bool) -> str:
    """Returns why labels are not replaced, and what to do; `known`: they have a checksum, which differs."""
    edits = "were edited since they were written (their pixels are not those of their checksum)"
    unknown = (
        "have no checksum, as those of other programs or earlier versions: a person may have edited them"
    )
    return (
        f"{edits if known else unknown}; they are not replaced. Choose another labels=, or make them a "
        "person's: annotate export, then annotate import accept=true"
    )
