"""Annotation boxes: those that exist, those that a draw learns from, and the objects drawn inside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl import seeds
from hpc_isl.errors import UserError, many, nearest
from hpc_isl.learning.data.split import PARTS
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.contract import Task
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import (
    Index,
    LabelState,
    annotation,
    label_names,
    label_state,
    read_label_box,
)
from hpc_isl.stages.shared.plate_views import PlateView, PlateViews

Corners = tuple[int, int, int, int]
"""(y0, x0, y1, x1) in pixels, ends excluded."""
LEAST = 0.5
"""The share of the smallest annotated object's area below which an object is dropped."""
SHOWN = 6  # fields that a remark names
SPECK = 0.05
"""The share of the median area of a box's objects below which one is a slip of the pen."""


@dataclass(frozen=True)
class Box:
    """One annotation box of a field at one time.

    Attributes:
        labels, origin: name of the labels, and who made them.
        corners: in pixels of level 0.
    """

    plate: PlateView
    key: FieldKey
    time: int
    labels: str
    origin: str
    corners: Corners

    @property
    def index(self) -> Index:
        return self.plate.index

    @property
    def image(self) -> Path:
        return self.index.image(self.key)

    @property
    def field(self) -> tuple[str, str, str]:
        """Plate, well and name of its field."""
        return self.plate.name, self.key.well, self.key.name

    @property
    def field_name(self) -> str:
        """The name of its field in tables: with the acquisition where another one has these labels too."""
        if self.plate.view.sources[0].acquisition is not None:
            return self.key.name
        others = {*self.index.plate.acquisitions} - {self.key.acquisition}
        keys = (replace(self.key, acquisition=other) for other in others)
        return self.key.image if any(map(self._has_boxes, keys)) else self.key.name

    def _has_boxes(self, key: FieldKey) -> bool:
        """Returns whether a field is on the plate, can be seen and has these labels."""
        on_plate = key in self.index.statistics and bool(self.plate.times(key))
        return on_plate and self.labels in label_names(self.index.image(key))

    @property
    def place(self) -> tuple[str | int, ...]:
        """Identifies the box, wherever the plate is stored."""
        return *self.field, self.key.acquisition, self.time, *self.corners

    @property
    def name(self) -> str:
        """The unique name that messages use, as in `P01 B03/1 [0, 0, 512, 512] 'nuclei'`."""
        moment = f" time {self.time}" if self.index.field(self.key).shape[0] > 1 else ""
        return f"{self.plate.name} {self.key}{moment} {list(self.corners)} {self.labels!r}"

    @property
    def level(self) -> int:
        """The pyramid level that the network sees."""
        return self.plate.level(self.key)

    def at(self, level: int) -> Corners:
        """Returns the corners in pixels of a level: of those wholly inside, or the first one if none is."""
        y0, x0, y1, x1 = self.corners
        height, width = self.index.field(self.key).shape[-2:]
        top, bottom = _coarse(y0, y1, height, 2**level)
        left, right = _coarse(x0, x1, width, 2**level)
        return top, left, bottom, right

    def drawn(self, level: int) -> NDArray[Any]:
        """Returns the labels (y, x) inside the box at a level; no more of the field is read."""
        y0, x0, y1, x1 = self.at(level)
        rows, columns = slice(y0, y1), slice(x0, x1)
        return read_label_box(self.image, self.labels, self.time, rows, columns, level)

    def value(self, column: str) -> str:
        """Returns its well's value in the plate map; empty where it has none."""
        return self.plate.plate_map(self.key).get(column, "")


def _coarse(start: int, stop: int, length: int, edge: int) -> tuple[int, int]:
    """Converts a range of pixels to pixels that are `edge` times as large."""
    # Levels round odd sizes up, so the last pixel of a level may cover less than the others.
    first, last = -(-start // edge), -(-stop // edge) if stop == length else stop // edge
    return (first, last) if first < last else (start // edge, start // edge + 1)


def boxes_of(study: PlateViews, labels: str, parts: Sequence[str] = PARTS) -> list[Box]:
    """Returns every box of these labels in fields of these parts, plate by plate, where they can be seen.

    Raises:
        UserError: no field has labels of that name, or none of them has all sources.
    """
    boxes, annotated = [], False
    for plate in study.plates:
        for key in (key for part in parts for key in study.keys(plate.index, part)):
            image = plate.index.image(key)
            if labels in label_names(image):
                origin, corners = annotation(image, labels)
                times, annotated = plate.times(key), True
                boxes += [Box(plate, key, time, labels, origin, edges) for time in times for edges in corners]
    if not boxes:
        parts_text = "" if set(parts) == set(PARTS) else f" in the parts {', '.join(parts)} of the split"
        if annotated:
            raise UserError(
                f"labels {labels!r}: of the fields{parts_text} that have them none has all sources"
            )
        images = (index.image(field.key) for index in study.indices for field in index.plate.fields)
        names = {name for image in images for name in label_names(image)}
        raise UserError(f"labels {labels!r}: no field{parts_text} has them; {nearest(labels, sorted(names))}")
    return boxes


def unseen_remarks(study: PlateViews, labels: str) -> Iterator[str]:
    """Yields which fields have labels but lack a source at some of their times: boxes there do not count."""
    fields = [
        f"{key} of {plate.name}"
        for plate in study.plates
        for part in PARTS
        for key in study.keys(plate.index, part)
        if len(plate.times(key)) < plate.index.field(key).shape[0]
        and labels in label_names(plate.index.image(key))
    ]
    if fields:
        more = f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else ""
        yield (
            f"labels {labels!r} of {many(len(fields), 'field', 'is', 'are')} left out at times at which a "
            f"source was not imaged: {', '.join(fields[:SHOWN])}{more}"
        )


def draw(boxes: Sequence[Box], n: int | str, number: int) -> list[Box]:
    """Returns the first `n` boxes (or all) in the order of draw `number`; raises a UserError for fewer.

    The order is by a hash of the draw and the box, so that draws are nested in N, are the same for all
    arms, and do not change when boxes are added elsewhere.
    """
    if n != "all" and int(n) > len(boxes):
        raise UserError(f"n={n}: there are {len(boxes)} annotation boxes to learn from; take n=all")
    # A hash per box, not one shuffle: a box that is added moves no other.
    ordered = sorted(boxes, key=lambda box: seeds.integer(number, "annotation", *box.place))
    return ordered if n == "all" else ordered[: int(n)]


def in_wells(boxes: Sequence[Box], selection: Mapping[str, Sequence[str]]) -> list[Box]:
    """Returns the boxes whose wells have, in each column of `selection`, one of the values that it lists.

    Raises:
        UserError: a column or value that no annotated well has.
    """
    for column, values in selection.items():
        column_values = sorted({box.value(column) for box in boxes} - {""})
        for value in values:
            if value not in column_values:
                raise UserError(
                    f"train_where.{column}: no annotated well has {value!r}; {nearest(value, column_values)}"
                )
    return [box for box in boxes if all(box.value(name) in values for name, values in selection.items())]


def fields(boxes: Iterable[Box]) -> list[tuple[str, str, str]]:
    """Returns the annotated fields, in the order of the boxes."""
    return list(dict.fromkeys(box.field for box in boxes))


def by_field(boxes: Sequence[Box]) -> list[Mapping[int, Box]]:
    """Returns boxes by their numbers, those of one field and time together: they are predicted once."""
    groups: dict[tuple[object, ...], dict[int, Box]] = {}
    for number, box in enumerate(boxes):
        groups.setdefault((*box.field, box.key.acquisition, box.time), {})[number] = box
    return list(groups.values())


# ---------------------------------------------------------------- identity of boxes and labels


def states(boxes: Iterable[Box]) -> dict[tuple[Path, str], LabelState]:
    """Returns image and name of labels -> their state; reads the labels of each image once."""
    return {key: label_state(*key) for key in dict.fromkeys((box.image, box.labels) for box in boxes)}


def parts(boxes: Iterable[Box], stamp: Callable[[Path, str], str]) -> dict[str, str]:
    """Returns the name of each box -> the start of the `stamp` of its image's labels, in order."""
    boxes = list(boxes)
    stamps = {key: stamp(*key) for key in {(box.image, box.labels) for box in boxes}}
    return {box.name: stamps[box.image, box.labels][:16] for box in boxes}


def fingerprint(boxes: Iterable[Box], stamp: Callable[[Path, str], str]) -> str:
    """Returns a hash of the boxes' places, and of the `stamp` of their labels, by image and name."""
    total = hashlib.sha256()
    for image, name in sorted({(box.image, box.labels) for box in boxes}):
        total.update(stamp(image, name).encode())
    total.update(repr(sorted(box.place for box in boxes)).encode())
    return total.hexdigest()[:32]


# ---------------------------------------------------------------- objects inside boxes


@dataclass(frozen=True)
class BoxObjects:
    """The objects inside an annotation box.

    Attributes:
        smallest: area of the smallest object that no edge of the box cuts, in pixels of level 0; where
            edges cut all of them, of the smallest one; specks apart. None: there is no object.
    """

    box: Box
    count: int
    smallest: int | None


def objects_of(box: Box) -> BoxObjects:
    """Counts and measures the objects of a box, at full resolution."""
    labels = box.drawn(level=0)
    names, areas = np.unique(labels[labels > 0], return_counts=True)
    if not len(names):
        return BoxObjects(box, 0, None)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    # Objects that the box cuts look smaller than they are.
    whole_areas = areas[~np.isin(names, border)]
    measured_areas = whole_areas if len(whole_areas) else areas
    # A stray pixel, and nothing would be too small to count.
    object_areas = measured_areas[measured_areas >= SPECK * np.median(measured_areas)]
    return BoxObjects(box, len(names), int(object_areas.min()))


def with_least_area(task: Task, view: View, objects: Sequence[BoxObjects]) -> Task:
    """Returns the task that drops objects of less than half the smallest annotated area."""
    pixels: list[float] = []
    um2: list[float | None] = []
    for entry in objects:
        if entry.smallest is None:
            continue
        edge_um = entry.box.index.plate.pixel_um
        area_um2 = None if edge_um is None else entry.smallest * edge_um**2
        um2.append(area_um2)
        if area_um2 is not None and view.pixel_um is not None:
            pixels.append(area_um2 / view.pixel_um**2)
        else:  # sizes are unknown: a pixel of level n covers 4^n of level 0
            pixels.append(float(entry.smallest) / (1 << 2 * view.level))
    if not pixels:
        return task
    known_areas = [area for area in um2 if area is not None]
    comparable = view.pixel_um is not None and len(known_areas) == len(um2)
    least_um2 = LEAST * min(known_areas) if comparable else None
    return replace(task, min_area=ceil(LEAST * min(pixels)), min_area_um2=least_um2)
