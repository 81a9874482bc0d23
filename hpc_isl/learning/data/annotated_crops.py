"""From annotation boxes to training samples: crops of a field, and the objects drawn inside its box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.augment import resize, shade, turn, zoom
from hpc_isl.learning.data.fields import FieldView
from hpc_isl.learning.data.pixels import Box, Pixels, pad
from hpc_isl.learning.data.samples import REDRAWS, drawn
from hpc_isl.learning.data.view import stack
from hpc_isl.plates.store import read_label_box
from hpc_isl.recipes.training import AugmentRecipe
from hpc_isl.seeds import stream

Labels = NDArray[np.uint32]
Distance = Callable[[Labels], Pixels]
Maps = tuple[NDArray[Any], ...]
"""(y, x) each: the mask, and where a distance map is learnt, the pixels in which it counts, and the map."""
Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class Annotated:
    """One annotation box, in pixels of the level that the network sees.

    Attributes:
        field: at one time; only its sources are read.
        image, labels, level: image, name and pyramid level of the labels.
        box: (y, x) in which every object is drawn.
    """

    field: FieldView
    image: Path
    labels: str
    level: int
    box: Box


@dataclass(frozen=True)
class AnnotatedCrops:
    """Training samples by number, as `samples.Crops`: seed and number alone decide what a sample holds.

    A crop extends beyond its box, for context; pixels outside of the box count as unknown.

    Attributes:
        edge: of a crop, in pixels.
        distance: labels (y, x) to their distance map; None: no distance map is learnt.
        in_pixels: distances are lengths, which grow when a crop is magnified.
        whole_only: the map of an object that the box's edge cuts does not count: its centre is not known.
    """

    boxes: tuple[Annotated, ...]
    edge: int
    per_box: int
    seed: int
    augment: AugmentRecipe
    distance: Distance | None = None
    in_pixels: bool = False
    whole_only: bool = False

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.boxes) * self.per_box

    def field(self, number: int) -> FieldView:
        """Returns the field that a sample comes from; reads nothing."""
        return self.boxes[drawn(self.seed, number, len(self))[1] // self.per_box].field

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]:
        """Returns source (C, edge, edge) and target (2 or 4, edge, edge), float32.

        A target is known and mask; with a distance map also where that counts, and the map.
        """
        epoch, crop = drawn(self.seed, number, len(self))
        annotation, rng = self.boxes[crop // self.per_box], stream(self.seed, "crop", epoch, crop)
        size = round(self.edge / zoom(self.augment, rng))
        y, x = annotation.box
        corners = y.start, x.start, y.stop, x.stop
        maps = _maps_of(
            annotation.image,
            annotation.labels,
            annotation.level,
            annotation.field.time,
            corners,
            self.distance,
            self.whole_only,
        )
        window = _place(annotation, maps, size, rng)
        sources = resize(pad(stack(annotation.field.sources, window), size), self.edge)
        targets = _targets(maps, annotation.box, window)
        # Sources are padded by reflection; what is reflected counts as unknown, 0 in all targets.
        missing = [max(size - length, 0) for length in targets.shape[-2:]]
        targets = self._resize(np.pad(targets, [(0, 0), *((m // 2, m - m // 2) for m in missing)]))
        if self.augment.flip:
            sources, targets = turn(sources, targets, rng)
        return shade(sources, self.augment, rng), targets

    def _resize(self, targets: Pixels) -> Pixels:
        """Takes all but distances from the nearest pixel; interpolates these, 0 outside of the mask."""
        size = targets.shape[-1]
        if size == self.edge:
            return targets
        nearest = ((np.arange(self.edge) + 0.5) * size / self.edge).astype(int)
        flat = targets[: len(targets) - (self.distance is not None), nearest[:, None], nearest]
        if self.distance is None:
            return flat
        factor = self.edge / size if self.in_pixels else 1.0
        # Interpolation smears distances beyond the mask, where they are 0.
        return np.concatenate([flat, resize(targets[-1:], self.edge) * factor * flat[1]])


# Boxes recur in every epoch, and a distance map takes longer than a crop.
@lru_cache(maxsize=16)
def _maps_of(
    image: Path, name: str, level: int, time: int, box: Corners, distance: Distance | None, whole_only: bool
) -> Maps:
    """Returns the maps of a whole box: objects are measured before crops cut them."""
    labels = read_label_box(image, name, time, slice(box[0], box[2]), slice(box[1], box[3]), level)
    if distance is None:
        return (labels > 0,)
    counts = np.ones(labels.shape, bool)
    if whole_only:
        from skimage.segmentation import clear_border  # a plan loads this module, and no scikit-image

        counts = (labels == 0) | (clear_border(labels) > 0)
    return labels > 0, counts, distance(labels)


def _place(annotation: Annotated, maps: Maps, size: int, rng: np.random.Generator) -> Box:
    """Returns a window of the field with as much of the box as it can hold, and an object if possible."""

    def along(box: slice, length: int) -> slice:
        # In a box smaller than the crop the window may start anywhere that covers the box.
        side = min(size, length)
        low, high = sorted((box.start, box.stop - side))
        start = int(rng.integers(max(low, 0), min(high, length - side) + 1))
        return slice(start, start + side)

    for _ in range(REDRAWS):  # of the draws the last one counts, with or without an object
        window = (
            along(annotation.box[0], annotation.field.shape[0]),
            along(annotation.box[1], annotation.field.shape[1]),
        )
        in_box, _ = _overlap(annotation.box, window)
        if maps[0][in_box].any():
            break
    return window


def _overlap(box: Box, window: Box) -> tuple[Box, Box]:
    """Returns the overlap of box and window, in pixels of the box and in pixels of the window."""
    ranges = [
        (max(box_side.start, window_side.start), min(box_side.stop, window_side.stop))
        for box_side, window_side in zip(box, window, strict=True)
    ]
    in_box, in_window = (
        tuple(
            slice(low - side.start, high - side.start)
            for (low, high), side in zip(ranges, sides, strict=True)
        )
        for sides in (box, window)
    )
    return (in_box[0], in_box[1]), (in_window[0], in_window[1])


def _targets(maps: Maps, box: Box, window: Box) -> Pixels:
    """Returns known and the maps in the window; 0, unknown, outside of the box."""
    in_box, in_window = _overlap(box, window)
    cut = np.zeros((1 + len(maps), *(side.stop - side.start for side in window)), np.float32)
    # Outside of the box `known` stays 0: there the loss ignores mask and distance.
    cut[0, *in_window] = 1
    for channel, pixels in enumerate(maps, 1):
        cut[channel, *in_window] = pixels[in_box]
    return cut
