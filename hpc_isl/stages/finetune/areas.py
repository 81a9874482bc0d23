"""How small the objects are that people drew: what a model finds below half of the smallest is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.annotated_crops import labels_in
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.contract import Task
from hpc_isl.objects.matching import inside
from hpc_isl.stages.finetune.boxes import Box

LEAST = 0.5
"""The share of the smallest annotated object below which an object is dropped."""


@dataclass(frozen=True)
class Drawn:
    """The objects inside an annotation box.

    Attributes:
        smallest: area in pixels of level 0 of the smallest that no edge of the box cuts (where edges cut all
            of them: of the smallest); None: there is none.
    """

    box: Box
    count: int
    smallest: int | None

    def in_um2(self) -> float | None:
        """The smallest area in µm²; None where the size of a pixel is not known."""
        edge = self.box.index.plate.pixel_um
        return None if edge is None or self.smallest is None else self.smallest * edge**2

    def in_pixels(self, view: View) -> float:
        """The same in pixels that the network sees."""
        if (area := self.in_um2()) is not None and view.pixel_um is not None:
            return area / view.pixel_um**2
        return float(self.smallest or 0) / (1 << 2 * view.level)


def drawn_in(box: Box) -> Drawn:
    """Counts and measures the objects of a box, at full resolution."""
    labels: NDArray[Any] = inside(labels_in(box.image, box.labels, 0, box.time), box.corners)
    names, areas = np.unique(labels[labels > 0], return_counts=True)
    cut = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    whole = areas[~np.isin(names, cut)]
    measured = whole if len(whole) else areas
    return Drawn(box, len(names), int(measured.min()) if len(measured) else None)


def with_least_area(task: Task, view: View, drawn: Sequence[Drawn]) -> Task:
    """The task that drops objects of less than half the smallest annotated area."""
    known = [one for one in drawn if one.smallest is not None]
    if not known:
        return task
    pixels = LEAST * min(one.in_pixels(view) for one in known)
    sizes = [one.in_um2() for one in known]
    um2 = None if view.pixel_um is None or None in sizes else LEAST * min(size for size in sizes if size)
    return replace(task, min_area=ceil(pixels), min_area_um2=um2)


def messages(task: Task) -> str:
    """What is dropped, for people."""
    um2 = "" if task.min_area_um2 is None else f" ({task.min_area_um2:.3g} µm²)"
    return f"objects of less than {task.min_area} pixels{um2}, half the smallest annotated one, are dropped"
