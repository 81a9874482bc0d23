"""Annotation boxes: which there are, which of them a draw takes to learn from, and which test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl import seeds
from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.fields import fields_of
from hpc_isl.learning.data.split import PARTS, Split
from hpc_isl.learning.data.view import View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, LabelState, annotation, label_names, label_state

Corners = tuple[int, int, int, int]
"""(y0, x0, y1, x1) in pixels, ends excluded."""


@dataclass(frozen=True)
class Box:
    """One annotation box of a field at one time.

    Attributes:
        labels, origin: name of the labels, and who made them.
        corners: in pixels of level 0.
    """

    index: Index
    key: FieldKey
    time: int
    labels: str
    origin: str
    corners: Corners

    @property
    def image(self) -> Path:
        return self.index.image(self.key)

    @property
    def field(self) -> tuple[str, str, str]:
        return self.index.plate.name, self.key.well, self.key.name

    @property
    def place(self) -> tuple[str | int, ...]:
        """What tells it from all others, wherever the plate lies."""
        return *self.field, self.key.acquisition, self.time, *self.corners

    @property
    def name(self) -> str:
        """`P01 B03/1 [0, 0, 512, 512] 'nuclei'`: as people are told of it, unique."""
        moment = f" time {self.time}" if self.index.field(self.key).shape[0] > 1 else ""
        return f"{self.index.plate.name} {self.key}{moment} {list(self.corners)} {self.labels!r}"

    def at(self, level: int) -> Corners:
        """The corners in pixels of a level: those that lie wholly inside, or the one that it starts in."""
        y0, x0, y1, x1 = self.corners
        height, width = self.index.field(self.key).shape[-2:]
        top, bottom = _coarse(y0, y1, height, 2**level)
        left, right = _coarse(x0, x1, width, 2**level)
        return top, left, bottom, right

    def value(self, column: str) -> str:
        """Of its well in the plate map; empty where it has none."""
        return self.index.plate_map.get(self.key.well, {}).get(column, "")


def _coarse(start: int, stop: int, length: int, edge: int) -> tuple[int, int]:
    """From pixels to larger ones of an edge; levels round odd sizes up, so the last one may be less."""
    first, last = -(-start // edge), -(-stop // edge) if stop == length else stop // edge
    return (first, last) if first < last else (start // edge, start // edge + 1)


def boxes_of(
    view: View, indices: Sequence[Index], split: Split, labels: str, parts: Sequence[str] = PARTS
) -> list[Box]:
    """Every box of these labels in fields of these parts, plate by plate.

    Raises:
        UserError: no field has labels of that name.
    """
    found = [box for index in indices for part in parts for key in fields_of(view, index, split, part)
             for box in _boxes(index, key, labels)]  # fmt: skip
    if not found:
        every = (index.image(field.key) for index in indices for field in index.plate.fields)
        names = {name for image in every for name in label_names(image)}
        where = "" if set(parts) == set(PARTS) else f" in the parts {', '.join(parts)} of the split"
        raise UserError(f"labels {labels!r}: no field{where} has them; {nearest(labels, sorted(names))}")
    return found


def _boxes(index: Index, key: FieldKey, labels: str) -> Iterator[Box]:
    image = index.image(key)
    if labels in label_names(image):
        origin, boxes = annotation(image, labels)
        for time in range(index.field(key).shape[0]):
            yield from (Box(index, key, time, labels, origin, box) for box in boxes)


def draw(boxes: Sequence[Box], n: int | str, number: int) -> list[Box]:
    """The first `n` boxes (or all) in the order of draw `number`; fewer are a `UserError`.

    The order is by a hash of the draw and the box, so that draws are nested in N, the same for all
    arms, and stay as they are when boxes are added elsewhere.
    """
    if n != "all" and int(n) > len(boxes):
        raise UserError(f"n={n}: there are {len(boxes)} annotation boxes to learn from; take n=all")
    ordered = sorted(boxes, key=lambda box: seeds.integer(number, "annotation", *box.place))
    return ordered if n == "all" else ordered[: int(n)]


def only(boxes: Sequence[Box], wanted: Mapping[str, Sequence[str]]) -> list[Box]:
    """The boxes whose wells have one of the values wanted in each column.

    Raises:
        UserError: a column or value that no annotated well has.
    """
    for column, values in wanted.items():
        there = sorted({box.value(column) for box in boxes} - {""})
        for value in values:
            if value not in there:
                raise UserError(f"only.{column}: no annotated well has {value!r}; {nearest(value, there)}")
    return [box for box in boxes if all(box.value(c) in values for c, values in wanted.items())]


def fields(boxes: Iterable[Box]) -> list[tuple[str, str, str]]:
    """The annotated fields, in the order of the boxes."""
    return list(dict.fromkeys(box.field for box in boxes))


def states(boxes: Iterable[Box]) -> dict[tuple[Path, str], LabelState]:
    """What one look at the labels of these boxes tells, by image and name."""
    return {at: label_state(*at) for at in dict.fromkeys((box.image, box.labels) for box in boxes)}


def parts(boxes: Iterable[Box], stamp: Callable[[Path, str], str]) -> dict[str, str]:
    """What each box is called, and the start of the `stamp` of its image's labels, in order."""
    boxes = list(boxes)
    stamps = {at: stamp(*at) for at in {(box.image, box.labels) for box in boxes}}
    return {box.name: stamps[box.image, box.labels][:16] for box in boxes}


def fingerprint(boxes: Iterable[Box], stamp: Callable[[Path, str], str]) -> str:
    """Hash of where boxes lie, and of the `stamp` of their labels, by image and name."""
    total = hashlib.sha256()
    for image, name in sorted({(box.image, box.labels) for box in boxes}):
        total.update(stamp(image, name).encode())
    total.update(repr(sorted(box.place for box in boxes)).encode())
    return total.hexdigest()[:32]
