"""From a network's prediction of a field to objects, by the rule in the model's contract."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log

import numpy as np
from skimage.measure import label

from hpc_isl.learning.network.contract import Task
from hpc_isl.objects.draft_labels import drop_small, pieces_of
from hpc_isl.objects.types import Labels, Pixels
from hpc_isl.objects.watershed import reference, watershed


@dataclass(frozen=True)
class Rule:
    """How a prediction becomes labels.

    Attributes:
        kind: nuclei (mask alone), cells (distance map and mask), or stain (objects are drafted from it).
        h_maxima: least height between peaks of two objects, in the unit of the distance map.
        min_area: smaller objects are dropped, in pixels; `min_area_um2`: the same in µm², where known.
        method: watershed, or reference: the same by scikit-image.
        sigma: of the Gaussian before a stain's threshold, in pixels.
        threshold: logit of the mask above which a pixel is of an object.
    """

    kind: str
    h_maxima: float = 10.0
    min_area: int = 0
    method: str = "watershed"
    sigma: float = 1.0
    min_area_um2: float | None = None
    threshold: float = 0.0

    def finer(self, factor: float, pixel_um: float | None) -> Rule:
        """Returns the rule for a grid of pixels of `pixel_um`, `factor` times as many along each edge."""
        # 0 and 1 drop nothing, on any grid.
        area = round(self.min_area * factor**2) if self.min_area > 1 else self.min_area
        if self.min_area_um2 is not None and pixel_um is not None:
            area = ceil(self.min_area_um2 / pixel_um**2)
        return replace(self, min_area=area, sigma=self.sigma * factor)


# As `annotate draft` treats a true stain; the smallest objects in pixels that the model sees.
DRAFTED = Rule("stain", min_area=20)


def rule_of(task: Task | None) -> Rule:
    """Returns the rule of a model; a model without a task predicts a stain."""
    if task is None:
        return DRAFTED
    threshold = 0.0 if task.mask_threshold is None else logit(task.mask_threshold)
    return Rule(
        task.kind, task.h_maxima, task.min_area, task.method, min_area_um2=task.min_area_um2,
        threshold=threshold,
    )  # fmt: skip


def logit(probability: float) -> float:
    """Returns the logit of a probability; 0 for 0.5, exactly."""
    return log(probability / (1 - probability))


def decode(prediction: Pixels, rule: Rule) -> tuple[Labels, int]:
    """Returns labels and the number of objects that were dropped because they are too small.

    Args:
        prediction: (output, y, x) float32.

    Returns:
        Labels (y, x) uint32, numbered by the objects' first pixels.
    """
    if rule.kind == "stain":
        # A predicted stain is drafted from as `annotate draft` drafts from a true one.
        pieces = pieces_of(prediction[0], "otsu", rule.sigma, rule.min_area, split=True)
        return drop_small(pieces, rule.min_area)
    if rule.kind == "nuclei":
        # Pixels that touch at a corner are of one object, as in masks that are imported.
        labels: Labels = label(prediction[0] > rule.threshold, connectivity=2).astype(np.uint32)
    else:
        method = reference if rule.method == "reference" else watershed
        labels = method(prediction[0], prediction[1] > rule.threshold, rule.h_maxima)
    return drop_small(labels, rule.min_area) if rule.min_area > 1 else (labels, 0)
