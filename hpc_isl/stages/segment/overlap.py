"""Fields that overlap on the stage: objects that two of them show are found, so that they count once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_isl.objects.overlap import Crop, Seen, counted_first, duplicates, overlapping
from hpc_isl.objects.types import Labels
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.store import Index, open_plate, read_label_box
from hpc_isl.stages.segment.files import FieldTask, Row, check_owner, labels_name
from hpc_isl.stages.segment.inputs import SegmentInputs
from hpc_isl.tasks import Pool, Task

BAND = 512  # rows that are compared at once
HELD = 64  # bytes a pixel of two bands: labels, masks, and what is sorted to count them
Duplicate = tuple[str, int, int, str]
"""Image of an object (`B03/2`), its time and label, and the object that it is again (`B03/1:17`)."""
Duplicates = Mapping[str, Sequence[Duplicate]]
"""Slug of a plate -> its objects that another field shows already."""


@dataclass(frozen=True)
class Well:
    """The fields of one well and acquisition whose positions on the stage are known, and their labels.

    Attributes:
        labels: their name; `fingerprints`: of each field's labels.
        iou: of two objects that are one.
    """

    plate: Path
    labels: str
    iou: float
    keys: tuple[FieldKey, ...]
    fingerprints: tuple[str, ...]


def mark_duplicates(
    inputs: SegmentInputs, tasks: Sequence[FieldTask], rows: Sequence[Row], pool: Pool
) -> Duplicates | None:
    """Returns the objects of overlapping fields that do not count; None if the run is stopping."""
    if inputs.recipe.overlap is None or not inputs.keeps_labels:
        return {}
    fingerprints: dict[str, dict[FieldKey, str]] = {plate.slug: {} for plate in inputs.plates}
    for task, row in zip(tasks, rows, strict=True):
        if "problem" not in row:
            fingerprints[task.slug][task.key] = task.labels_fingerprint
    pool_tasks, owner = [], {}
    for plate in inputs.plates:
        wells = wells_of(plate.index, fingerprints[plate.slug], inputs.models.labels, inputs.recipe.overlap)
        for number, well in enumerate(wells):
            # Two fields are compared at a time, in bands.
            widest = max(plate.index.field(key).shape[-1] for key in well.keys)
            pool_tasks.append(Task(f"{plate.slug} {number}", well, HELD * BAND * widest))
            owner[pool_tasks[-1].name] = plate.slug
    duplicates: dict[str, list[Duplicate]] = {}
    answers = 0
    for answer in pool.run(find_duplicates, pool_tasks):
        if answer.problem:
            raise RuntimeError(f"overlapping fields of {answer.name}: {answer.problem}")
        answers += 1
        duplicates.setdefault(owner[answer.name], []).extend(answer.value)
    return duplicates if answers == len(pool_tasks) else None


def wells_of(index: Index, fingerprints: Mapping[FieldKey, str], labels: str, iou: float) -> list[Well]:
    """Returns the wells in which fields overlap; `fingerprints`: of each field's labels."""
    if index.plate.pixel_um is None:
        return []
    groups: dict[tuple[str, int], list[Field]] = {}
    for key in fingerprints:
        field = index.field(key)
        if field.position_um is not None:
            groups.setdefault((key.well, key.acquisition), []).append(field)
    wells = []
    for fields in groups.values():
        if overlapping(*_places(fields, index.plate.pixel_um)):
            keys = tuple(field.key for field in fields)
            wells.append(Well(index.path, labels, iou, keys, tuple(fingerprints[key] for key in keys)))
    return wells


def _places(
    fields: Sequence[Field], pixel_um: float
) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    """Returns the positions (y, x) of the first pixels, in pixels, and the shapes."""
    places = [field.position_um or (0.0, 0.0) for field in fields]
    return [(y / pixel_um, x / pixel_um) for y, x in places], [(f.shape[-2], f.shape[-1]) for f in fields]


def find_duplicates(well: Well) -> list[Duplicate]:
    """Returns the objects of a well that another field shows better, or equally well and earlier."""
    index = open_plate(well.plate)
    assert index.plate.pixel_um is not None
    fields = [index.field(key) for key in well.keys]
    images = [
        _labels(index, key, well.labels, fingerprint)
        for key, fingerprint in zip(well.keys, well.fingerprints, strict=True)
    ]
    pairs = overlapping(*_places(fields, index.plate.pixel_um))
    repeats: list[Duplicate] = []
    for time in range(min(field.shape[0] for field in fields)):
        matches = [
            ((a, label_a), (b, label_b))
            for a, b, box_a, box_b in pairs
            for label_a, label_b in duplicates(_bands(images[a], images[b], time, box_a, box_b), well.iou)
        ]
        groups = _groups(matches)
        field_numbers = {field for group in groups for field, _ in group}
        # An object that is cut by the border of one field may be whole in the other.
        cut = {(field, label) for field in field_numbers for label in images[field].cut(time)}
        for group in groups:
            counted, *copies = counted_first(group, cut)
            name = f"{well.keys[counted[0]]}:{counted[1]}"
            # What one field shows apart is two objects, even where another shows them as one.
            copies = [copy for copy in copies if copy[0] != counted[0]]
            repeats += [(str(well.keys[field]), time, label, name) for field, label in copies]
    return sorted(repeats)


def _groups(pairs: Sequence[tuple[Seen, Seen]]) -> list[list[Seen]]:
    """Returns groups of objects that are one and the same, also where a third links them."""
    graph: dict[Seen, set[Seen]] = {}
    for a, b in pairs:
        graph.setdefault(a, {a}).add(b)
        graph.setdefault(b, {b}).add(a)
    groups: list[list[Seen]] = []
    while graph:
        start, neighbours = graph.popitem()
        group, todo = {start}, set(neighbours)
        while todo := todo - group:
            group |= todo
            todo = set().union(*(graph.pop(linked) for linked in todo))
        groups.append(sorted(group))
    return groups


def _bands(a: _Labels, b: _Labels, time: int, in_a: Crop, in_b: Crop) -> Iterator[tuple[Labels, Labels]]:
    """Yields the same area in both fields, a few rows at once."""
    for first in range(0, in_a[0].stop - in_a[0].start, BAND):
        y_a, y_b = (slice(y.start + first, min(y.start + first + BAND, y.stop)) for y in (in_a[0], in_b[0]))
        yield a.box(time, y_a, in_a[1]), b.box(time, y_b, in_b[1])


@dataclass(frozen=True)
class _Labels:
    """The labels of one field, of which memory holds only what is asked for."""

    image: Path
    name: str
    shape: tuple[int, int]

    def box(self, time: int, y: slice, x: slice) -> Labels:
        return read_label_box(self.image, self.name, time, y, x)

    def cut(self, time: int) -> set[int]:
        """Returns the objects that touch the border of their image: perhaps they are not whole."""
        y, x = self.shape
        whole_y, whole_x = slice(0, y), slice(0, x)
        edges = [(slice(at, at + 1), whole_x) for at in (0, y - 1)]
        edges += [(whole_y, slice(at, at + 1)) for at in (0, x - 1)]
        return {int(label) for edge in edges for label in np.unique(self.box(time, *edge))}


def _labels(index: Index, key: FieldKey, name: str, fingerprint: str) -> _Labels:
    """Returns the labels of this run; a `UserError` where another run has replaced them."""
    image = index.image(key)
    check_owner(image, name, fingerprint)
    y, x = index.field(key).shape[-2:]
    return _Labels(image, labels_name(image, name), (y, x))
