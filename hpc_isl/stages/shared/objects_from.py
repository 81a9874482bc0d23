"""From what a network says of a field to its objects, as its model's contract has it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from hpc_isl.learning.contract import Task
from hpc_isl.objects.draft import draft, without_small
from hpc_isl.objects.flood import flood, reference

Pixels = NDArray[np.float32]
Labels = NDArray[np.uint32]


@dataclass(frozen=True)
class Rule:
    """How a prediction becomes labels.

    Attributes:
        kind: nuclei (mask alone), cells (distance map and mask), or stain (objects are drafted from it).
        h: in the unit of the distance map.
        min_area: smaller objects are dropped, in pixels.
        method: flood, or reference: the same by scikit-image.
        sigma: of the Gaussian before a stain's threshold, in pixels.
    """

    kind: str
    h: float = 10.0
    min_area: int = 0
    method: str = "flood"
    sigma: float = 1.0

    def finer(self, factor: float) -> Rule:
        """The same on a grid of `factor` times as many pixels along each edge."""
        area = round(self.min_area * factor**2) if self.min_area > 1 else self.min_area
        return replace(self, min_area=area, sigma=self.sigma * factor)


# As `annotate draft` treats a true stain; the smallest objects in pixels that the model sees.
DRAFTED = Rule("stain", min_area=20)


def rule_of(task: Task | None) -> Rule:
    """The rule of a model; without a task it predicts a stain."""
    return Rule(task.kind, task.h, task.min_area, task.method) if task else DRAFTED


def objects_in(prediction: Pixels, rule: Rule) -> Labels:
    """Labels (y, x) from a prediction (output, y, x), numbered by their first pixel."""
    if rule.kind == "stain":
        how = {"threshold": "otsu", "sigma": rule.sigma, "min_area": rule.min_area, "split": True}
        return draft(prediction[0], **how)  # type: ignore[arg-type]
    if rule.kind == "nuclei":
        found: Labels = label(prediction[0] > 0, connectivity=2).astype(np.uint32)
    else:
        way = reference if rule.method == "reference" else flood
        found = way(prediction[0], prediction[1] > 0, rule.h)
    return without_small(found, rule.min_area) if rule.min_area > 1 else found
