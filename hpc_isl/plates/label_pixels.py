"""Pixels of label images, ours and those of other programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.pyramid import open_fresh

BAND = 1024  # rows that are read at once


@dataclass(frozen=True)
class LabelPixels:
    """One level of a label image: whatever axes it has on disk, it is read as uint32 (y, x).

    A chunk that is missing is background: most programs do not write empty ones.

    Attributes:
        folder: of the label image.
        level: of its array.
        store: (t, z, y, x).
    """

    folder: Path
    level: Path
    store: ts.TensorStore

    @property
    def shape(self) -> tuple[int, int, int]:
        """Times, height and width."""
        times, _, height, width = self.store.shape
        return times, height, width

    def read(self, time: int, y: slice, x: slice) -> NDArray[np.uint32]:
        """A box (y, x) of one time; slices may have a step.

        Raises:
            UserError: pixels do not decode, are no labels, or lie over each other in several planes.
        """
        try:
            stack = np.asarray(self.store[time, :, y, x].read().result())
        except ValueError as error:
            raise UserError(f"{self.folder}: its pixels cannot be read: {error}") from None
        flat = stack[0] if len(stack) == 1 else self._projected(stack)
        if np.can_cast(flat.dtype, np.uint32) or not flat.size:
            return flat.astype(np.uint32, copy=False)
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high >= 2**32:
            raise UserError(f"{self.folder}: holds values from {low} to {high}; labels go from 0 to 2^32 - 1")
        return flat.astype(np.uint32)

    def bands(self, rows: int = BAND) -> Iterator[NDArray[np.uint32]]:
        """All of it in bands of whole rows, from the first one on, time by time."""
        times, height, _ = self.shape
        for time in range(times):
            for first in range(0, height, rows):
                yield self.read(time, slice(first, min(first + rows, height)), slice(None))

    def _projected(self, stack: NDArray[Any]) -> NDArray[Any]:
        """One plane for all, where no object lies over another: then nothing has to be guessed."""
        top: NDArray[Any] = stack.max(0)
        covered = int(((stack != 0) & (stack != top)).any(0).sum())
        if covered:
            raise UserError(
                f"{self.folder}: its {len(stack)} planes show different objects at {covered:,} pixels; "
                "labels of one plane are needed: keep one plane, or project them"
            )
        return top


def open_labels(folder: Path, number: int = 0) -> LabelPixels:
    """The pixels of the label image in a folder: full resolution, or the level of this number.

    Raises:
        UserError: it is no label image, has axes that fit none, or its array cannot be opened.
    """
    levels, axes = label_levels(folder)
    store = open_fresh(folder, levels[number], fill_missing=True)
    if np.dtype(store.dtype.numpy_dtype).kind not in "iub":
        raise UserError(f"{folder}: holds {store.dtype.name}; labels are whole numbers")
    if len(axes) != store.rank or len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes) <= set("tczyx"):
        raise UserError(
            f"{folder}: has the axes {', '.join(axes)} for {store.rank} dimensions; y and x are needed, "
            "t and z are possible"
        )
    store = store.transpose([axes.index(axis) for axis in "tczyx" if axis in axes])
    first: tuple[Any, ...] = (slice(None),) * ("t" in axes)  # t stays before what is taken away or added
    if "c" in axes:
        if store.shape[len(first)] != 1:
            raise UserError(f"{folder}: has {store.shape[len(first)]} channels; labels have none")
        store = store[(*first, 0)]
    store = store if "z" in axes else store[(*first, ts.newaxis)]
    return LabelPixels(folder, folder / levels[number], store if first else store[ts.newaxis])


def label_levels(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of a label image's levels below its folder, the finest first, and the names of its axes."""
    try:
        multiscale = read_group(folder)["ome"]["multiscales"][0]
        levels = [str(level["path"]) for level in multiscale["datasets"]]
        axes = [str(axis["name"]) for axis in multiscale["axes"]]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder}: is no label image of OME-Zarr 0.5 ({error!r})") from None
    if not levels:
        raise UserError(f"{folder}: is a label image without levels")
    return levels, axes
