"""From annotation boxes to training samples: crops of a field with what is drawn in them, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.augment import resize, shade, turn, zoom
from hpc_isl.learning.data.fields import FieldView
from hpc_isl.learning.data.numbering import drawn
from hpc_isl.learning.data.pixels import Box, Pixels, pad
from hpc_isl.learning.data.planes import stack
from hpc_isl.plates.store import read_label_box
from hpc_isl.recipes.training import AugmentRecipe
from hpc_isl.seeds import stream

REDRAWS = 8
Labels = NDArray[np.uint32]
Distance = Callable[[Labels], Pixels]
Maps = tuple[NDArray[np.bool_], Pixels | None]
Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class Annotated:
    """One annotation box, in pixels of the level that the network sees.

    Attributes:
        field: at one time; only its sources are read.
        image, labels, level: where the labels lie.
        box: (y, x) in which every object is drawn.
    """

    field: FieldView
    image: Path
    labels: str
    level: int
    box: Box


@dataclass(frozen=True)
class AnnotatedCrops:
    """Training samples by number, as `samples.Crops`: (seed, number) decide what is in them, nothing else.

    A crop looks beyond its box, for context; what lies outside of the box counts as unknown.

    Attributes:
        edge: of a crop, in pixels.
        distance: labels (y, x) to their distance map; None: no distance map is learnt.
        in_pixels: distances are lengths, which grow when a crop is magnified.
    """

    boxes: tuple[Annotated, ...]
    edge: int
    per_box: int
    seed: int
    augment: AugmentRecipe
    distance: Distance | None = None
    in_pixels: bool = False

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.boxes) * self.per_box

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]:
        """Source (C, edge, edge), and target (2 or 3, edge, edge): known, mask, distance; float32."""
        epoch, crop = drawn(self.seed, number, len(self))
        return self._crop(self.boxes[crop // self.per_box], stream(self.seed, "crop", epoch, crop))

    def field(self, number: int) -> FieldView:
        """The field that a sample comes from; reads nothing."""
        return self.boxes[drawn(self.seed, number, len(self))[1] // self.per_box].field

    def _crop(self, one: Annotated, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        size = round(self.edge / zoom(self.augment, rng))
        maps = _maps_of(one.image, one.labels, one.level, one.field.time, corners(one.box), self.distance)
        window = _place(one, maps, size, rng)
        sources = resize(pad(stack(one.field.sources, window), size), self.edge)
        targets = self._resized(_pad_unknown(_targets(maps, one.box, window), size))
        if self.augment.flip:
            sources, targets = turn(sources, targets, rng)
        return shade(sources, self.augment, rng), targets

    def _resized(self, targets: Pixels) -> Pixels:
        """Known and mask by their nearest pixel; distances between, and none outside of the mask."""
        size = targets.shape[-1]
        if size == self.edge:
            return targets
        nearest = ((np.arange(self.edge) + 0.5) * size / self.edge).astype(int)
        flat = targets[:2][:, nearest[:, None], nearest]
        if self.distance is None:
            return flat
        factor = self.edge / size if self.in_pixels else 1.0
        return np.concatenate([flat, resize(targets[2:], self.edge) * factor * flat[1]])


def corners(box: Box) -> Corners:
    """(y0, x0, y1, x1) of a box."""
    return box[0].start, box[1].start, box[0].stop, box[1].stop


def labels_in(image: Path, name: str, level: int, time: int) -> Labels:
    """Labels (y, x) of a field at one time."""
    return read_label_box(image, name, time, slice(None), slice(None), level)


@lru_cache(maxsize=16)
def _maps_of(image: Path, name: str, level: int, time: int, box: Corners, distance: Distance | None) -> Maps:
    """Mask and distance of a whole box: objects are measured before crops cut them."""
    labels = read_label_box(image, name, time, slice(box[0], box[2]), slice(box[1], box[3]), level)
    return labels > 0, distance(labels) if distance else None


def _place(one: Annotated, maps: Maps, size: int, rng: np.random.Generator) -> Box:
    """A window of the field with as much of the box as it can hold, and an object if eight draws find one."""
    for _ in range(REDRAWS):
        window = (
            _along(one.box[0], one.field.shape[0], size, rng),
            _along(one.box[1], one.field.shape[1], size, rng),
        )
        here, _ = _overlap(one.box, window)
        if maps[0][here].any():
            break
    return window


def _along(box: slice, length: int, size: int, rng: np.random.Generator) -> slice:
    side = min(size, length)
    low, high = sorted((box.start, box.stop - side))
    start = int(rng.integers(max(low, 0), min(high, length - side) + 1))
    return slice(start, start + side)


def _overlap(box: Box, window: Box) -> tuple[Box, Box]:
    """Where box and window meet, in pixels of the box and of the window."""
    both = [(max(b.start, w.start), min(b.stop, w.stop)) for b, w in zip(box, window, strict=True)]
    here, there = (
        tuple(slice(low - one.start, high - one.start) for (low, high), one in zip(both, of, strict=True))
        for of in (box, window)
    )
    return (here[0], here[1]), (there[0], there[1])


def _targets(maps: Maps, box: Box, window: Box) -> Pixels:
    """Known, mask and distance in the window; 0, unknown, outside of the box."""
    mask, distance = maps
    here, there = _overlap(box, window)
    cut = np.zeros((2 if distance is None else 3, *(w.stop - w.start for w in window)), np.float32)
    cut[0, *there] = 1
    cut[1, *there] = mask[here]
    if distance is not None:
        cut[2, *there] = distance[here]
    return cut


def _pad_unknown(targets: Pixels, size: int) -> Pixels:
    """As `pixels.pad` lays the sources, but what is reflected there counts as unknown."""
    missing = [max(size - length, 0) for length in targets.shape[-2:]]
    return np.pad(targets, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
