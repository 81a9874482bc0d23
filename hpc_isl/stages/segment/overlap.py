"""Fields that overlap on the stage: objects seen twice are found, so that they count once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_isl.objects.overlap import Crop, Seen, counted_first, duplicates, overlapping
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.store import Index, open_plate, read_label_box
from hpc_isl.stages.segment.files import check_owner, labels_name

Pixels = NDArray[np.uint32]
BAND = 512  # rows that are compared at once
HELD = 64  # bytes a pixel of two bands: labels, masks, and what is sorted to count them
Duplicate = tuple[str, int, int, str]
"""Image of an object (`B03/2`), its time and label, and the object that it is again (`B03/1:17`)."""


@dataclass(frozen=True)
class Well:
    """The fields of one well and acquisition whose places on the stage are known, and their labels."""

    plate: Path
    labels: str
    iou: float
    keys: tuple[FieldKey, ...]
    marks: tuple[str, ...]


def wells_of(index: Index, marks: Mapping[FieldKey, str], labels: str, iou: float) -> list[Well]:
    """Wells in which fields overlap; `marks`: of each field's labels."""
    if index.plate.pixel_um is None:
        return []
    groups: dict[tuple[str, int], list[Field]] = {}
    for key in marks:
        field = index.field(key)
        if field.position_um is not None:
            groups.setdefault((key.well, key.acquisition), []).append(field)
    return [
        Well(
            index.path,
            labels,
            iou,
            tuple(field.key for field in fields),
            tuple(marks[field.key] for field in fields),
        )
        for fields in groups.values()
        if overlapping(*_places(fields, index.plate.pixel_um))
    ]


def _places(
    fields: Sequence[Field], pixel_um: float
) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    """First pixels (y, x) in pixels, and shapes."""
    places = [field.position_um or (0.0, 0.0) for field in fields]
    return [(y / pixel_um, x / pixel_um) for y, x in places], [(f.shape[-2], f.shape[-1]) for f in fields]


def memory(index: Index, well: Well) -> int:
    """Bytes while the fields of a well are compared, two at a time, in bands."""
    return HELD * BAND * max(index.field(key).shape[-1] for key in well.keys)


def find_duplicates(well: Well) -> list[Duplicate]:
    """The objects of a well that another field shows better, or as well and before."""
    index = open_plate(well.plate)
    assert index.plate.pixel_um is not None
    fields = [index.field(key) for key in well.keys]
    images = [_labels(index, key, well.labels, mark) for key, mark in zip(well.keys, well.marks, strict=True)]
    pairs = overlapping(*_places(fields, index.plate.pixel_um))
    found: list[Duplicate] = []
    for time in range(min(field.shape[0] for field in fields)):
        same = [
            ((a, one), (b, two))
            for a, b, box_a, box_b in pairs
            for one, two in duplicates(_bands(images[a], images[b], time, box_a, box_b), well.iou)
        ]
        groups = _groups(same)
        shown = {field for group in groups for field, _ in group}
        cut = {(field, label) for field in shown for label in images[field].cut(time)}
        for group in groups:
            kept, *others = counted_first(group, cut)
            name = f"{well.keys[kept[0]]}:{kept[1]}"
            # What one field shows apart is two objects, even where another shows them as one.
            others = [one for one in others if one[0] != kept[0]]
            found += [(str(well.keys[field]), time, label, name) for field, label in others]
    return sorted(found)


def _groups(pairs: Sequence[tuple[Seen, Seen]]) -> list[list[Seen]]:
    """Objects that are one and the same, also where they are so by way of a third."""
    graph: dict[Seen, set[Seen]] = {}
    for a, b in pairs:
        graph.setdefault(a, {a}).add(b)
        graph.setdefault(b, {b}).add(a)
    groups: list[list[Seen]] = []
    while graph:
        start, near = graph.popitem()
        group, todo = {start}, set(near)
        while todo := todo - group:
            group |= todo
            todo = set().union(*(graph.pop(each) for each in todo))
        groups.append(sorted(group))
    return groups


def _bands(a: _Labels, b: _Labels, time: int, in_a: Crop, in_b: Crop) -> Iterator[tuple[Pixels, Pixels]]:
    """The same ground in both fields, a few rows at once."""
    rows = in_a[0].stop - in_a[0].start
    for first in range(0, rows, BAND):
        y_a, y_b = (_some_rows(crop[0], first) for crop in (in_a, in_b))
        yield a.box(time, y_a, in_a[1]), b.box(time, y_b, in_b[1])


def _some_rows(rows: slice, first: int) -> slice:
    return slice(rows.start + first, min(rows.start + first + BAND, rows.stop))


@dataclass(frozen=True)
class _Labels:
    """The labels of one field, of which memory holds what is asked for."""

    image: Path
    name: str
    shape: tuple[int, int]

    def box(self, time: int, y: slice, x: slice) -> Pixels:
        return read_label_box(self.image, self.name, time, y, x)

    def cut(self, time: int) -> set[int]:
        """The objects that touch the border of their image: perhaps not seen whole."""
        y, x = self.shape
        whole_y, whole_x = slice(0, y), slice(0, x)
        edges = [(slice(at, at + 1), whole_x) for at in (0, y - 1)]
        edges += [(whole_y, slice(at, at + 1)) for at in (0, x - 1)]
        return {int(label) for edge in edges for label in np.unique(self.box(time, *edge))}


def _labels(index: Index, key: FieldKey, name: str, mark: str) -> _Labels:
    """Those of this run; a `UserError` where another run has replaced them."""
    image = index.image(key)
    check_owner(image, name, mark)
    y, x = index.field(key).shape[-2:]
    return _Labels(image, labels_name(image, name), (y, x))
