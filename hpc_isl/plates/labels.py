"""Labels of an image: integer images under `labels/`, who made them and in which boxes they are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import metadata
from hpc_isl.plates.atomic_directory import atomic_directory, translate_write_errors
from hpc_isl.plates.label_checksums import checksum, files_digest, refuse_edited
from hpc_isl.plates.label_groups import Box, existing, facts, find, label_folder, label_paths, noted, slug
from hpc_isl.plates.label_pixels import BAND, LabelPixels, open_labels
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
    """Writes labels of an image under `labels/`, with as many levels as the image, as uint32; their checksum.

    Labels that a person edited since they were written are never replaced, whatever `overwrite` says.

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
    plate, field, levels = facts(image)
    pixels = _checked(image, name, labels, field)
    outside = [box for box in boxes if not _inside(box, field.shape[-2:])]
    if outside:
        raise UserError(
            f"{image}: annotation box {tuple(outside[0])} (y0, x0, y1, x1) is empty or lies outside the "
            f"image of {field.shape[-2]} × {field.shape[-1]} pixels"
        )
    if not overwrite and find(image, name):
        raise UserError(f"{image}: has labels {name!r} already")
    about = _About(image, name, plate, field, levels, origin, boxes, fingerprint)
    with atomic_directory(label_folder(image, name), pixels.nbytes, overwrite) as folder:
        write_pyramid(folder, pixels, about.axes, levels, CodecRecipe(), "stride")
        flat = pixels.reshape(-1, *field.shape[-2:])
        found = checksum(flat.shape, flat)
        about.write(folder, _values(pixels), found)
        refuse_edited(image, name, (found, made_from))
    _list(image, name)
    return found


def write_large_labels(
    image: Path,
    name: str,
    times: Sequence[NDArray[np.uint32]],
    *,
    origin: str,
    fingerprint: str,
    overwrite: bool = False,
) -> str:
    """Labels of a whole image that memory does not hold, as `write_labels` writes those that it does.

    Args:
        times: (y, x) of each time, in files that are mapped to memory: they are read a shard at a time.
    """
    plate, field, levels = facts(image)
    y, x = field.shape[-2:]
    about = _About(image, name, plate, field, levels, origin, [(0, 0, y, x)], fingerprint)
    with atomic_directory(label_folder(image, name), 4 * len(times) * y * x, overwrite) as folder:
        shape = (*((len(times),) if len(times) > 1 else ()), 1, y, x)
        store = create_level(folder, 0, shape, np.dtype(np.uint32), about.axes, CodecRecipe())
        for box in shard_boxes(store):
            inside = times[box[0]] if len(times) > 1 else times  # a shard holds all times
            part = np.stack([labels[box[-2:]] for labels in inside])
            write_shards(store, box, part.reshape(store[box].shape))
        write_coarser(folder, store, about.axes, levels, CodecRecipe())
        bands = (one[first : first + BAND] for one in times for first in range(0, y, BAND))
        found = checksum((len(times), y, x), bands)
        about.write(folder, range(1, 1 + min(MOST_COLORS, max(int(one.max()) for one in times))), found)
        refuse_edited(image, name, (found,))
    _list(image, name)
    return found


@dataclass(frozen=True)
class _About:
    """What is said of labels beside their pixels."""

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

    def write(self, folder: Path, values: Sequence[int], pixels: str) -> None:
        """The group's metadata.

        Args:
            values: labels that get a colour.
            pixels: their checksum.
        """
        from hpc_isl.plates import ngff

        boxes = [list(map(int, box)) for box in self.boxes]
        ours: dict[str, Any] = {"name": self.name, "origin": self.origin, "boxes": boxes}
        ours |= {"fingerprint": self.fingerprint} if self.fingerprint else {}
        ours |= {"checksum": pixels, "files": files_digest(folder / "0")}
        found = ngff.attributes(ngff.label_image(self.plate, self.field, self.levels, self.name))
        metadata.write_group(folder, ngff.colored(found, values), ours)


# ---------------------------------------------------------------- reading


def read_labels(image: Path, name: str, level: int = 0) -> NDArray[np.uint32]:
    """Labels (y, x), or (t, y, x) where the image has times, on the grid of one level of the pyramid.

    They are taken from full resolution, for that is what people correct, and what other programs surely have.
    """
    pixels, step = labels_of(image, name), slice(None, None, 2**level)
    times = [pixels.read(time, step, step) for time in range(pixels.shape[0])]
    return np.stack(times) if len(times) > 1 else times[0]


def label_bands(image: Path, name: str, rows: int = BAND) -> Iterator[NDArray[np.uint32]]:
    """Labels at full resolution in bands of whole rows, from the first one on, time by time."""
    return labels_of(image, name).bands(rows)


def read_label_box(
    image: Path, name: str, time: int, y: slice, x: slice, level: int = 0
) -> NDArray[np.uint32]:
    """A box (y, x) of the labels of one time, on the grid of one level; no more is read."""
    pixels = labels_of(image, name)
    height, width = pixels.shape[1:]
    return pixels.read(time, _at_full(y, height, 2**level), _at_full(x, width, 2**level))


def _at_full(side: slice, length: int, step: int) -> slice:
    """The pixels of full resolution that a side on a coarser grid shows."""
    stop = length if side.stop is None else min(side.stop * step, length)
    return slice((side.start or 0) * step, stop, step)


def labels_of(image: Path, name: str) -> LabelPixels:
    """The pixels of labels; those of other programs must fit the image."""
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


def _list(image: Path, name: str) -> None:
    """The labels group names every folder that is there, so it heals after a kill in between.

    Others may add labels to the image meanwhile, and list them; whoever writes the list last looks again.
    """
    from hpc_isl.plates import ngff

    there, listed = label_paths(image), None
    while there != listed:
        group = ngff.attributes(ngff.labels_group(there))
        with translate_write_errors(image / "labels"):
            metadata.write_group(image / "labels", group, writer=slug(name))
        there, listed = label_paths(image), there


def _checked(image: Path, name: str, labels: NDArray[Any], field: Field) -> NDArray[np.uint32]:
    times = field.shape[:1] if field.shape[0] > 1 else ()
    expected = times + field.shape[-2:]
    if labels.shape != expected:
        raise UserError(f"{image}: labels {name!r} of shape {labels.shape} do not fit the image's {expected}")
    if labels.dtype.kind not in "iub":
        raise UserError(f"{image}: labels {name!r} are {labels.dtype}; whole numbers are expected")
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= 2**32):
        raise UserError(f"{image}: labels {name!r} go from {labels.min()} to {labels.max()}; 0 to 2^32-1 fit")
    return labels.astype(np.uint32)[..., None, :, :]


def _values(pixels: NDArray[np.uint32]) -> list[int]:
    """The labels there are, background apart; the first of very many, for each takes 70 bytes of metadata."""
    few = pixels.size and pixels.max() < 4 * pixels.size
    found = np.flatnonzero(np.bincount(pixels.ravel())) if few else np.unique(pixels)
    return [int(value) for value in found if value][:MOST_COLORS]


def _inside(box: Box, shape: tuple[int, ...]) -> bool:
    y0, x0, y1, x1 = box
    return 0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]
