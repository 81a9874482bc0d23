"""Fits how maps become objects, on boxes left out: h, the mask's threshold and the smallest area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log2, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.network.contract import Task
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.matching import match
from hpc_isl.objects.types import AnyLabels, Floats, Pixels
from hpc_isl.recipes.finetune import ObjectsRecipe
from hpc_isl.stages.finetune.boxes import Box
from hpc_isl.stages.shared.decoding import decode, logit, rule_of

# Heights that are tried, and the one that stands where annotations cannot tell: it parts people's own
# outlines best under noise and blur, by docs/study/maps.py.
HEIGHTS = {
    "object": (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 120.0),
    "pixels": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0),
}
USUAL = {("geodesic", "object"): 40.0, ("geodesic", "pixels"): 3.0,
         ("euclidean", "object"): 60.0, ("euclidean", "pixels"): 1.5}  # fmt: skip
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
AREAS = (0.05, 0.1, 0.2, 0.3)  # of the median annotated object


@dataclass(frozen=True)
class Piece:
    """An annotation box, or a half of the only one, left out of training.

    Attributes:
        edge: where a half is cut from the other: the axis, and its first (0) or last (-1) row or column; None
            for a whole box. What this edge cuts counts nowhere.
    """

    box: Box
    edge: tuple[int, int] | None = None


def height_of(objects: ObjectsRecipe) -> float:
    """Returns the height that the recipe gives, or the usual one of its map."""
    return USUAL[objects.map, objects.scale] if objects.h_maxima == "fit" else objects.h_maxima


@dataclass(frozen=True)
class LeftOut:
    """A piece, as predicted by networks that have not learnt from it.

    Attributes:
        prediction: (output, y, x) after training on other pieces.
        start: the prediction before any training; None: the start segments nothing.
    """

    piece: Piece
    prediction: Pixels
    start: Pixels | None = None

    @cached_property  # read from the plate once, and asked for at every height
    def truth(self) -> NDArray[Any]:
        return self.piece.box.drawn(self.piece.box.level)


def fit(task: Task, objects: ObjectsRecipe, left_out: Sequence[LeftOut]) -> tuple[Task, dict[str, Any]]:
    """Returns the task with what parts the left-out objects best, and the scores behind it.

    The score is mAP, as a mean over pieces. Height, threshold and smallest area are fitted one after the
    other. A value is taken over the usual one only if it is better by more than one standard error of the
    difference (Breiman et al. 1984): of all within one of the best, the nearest to the usual one stands.
    """
    truths = [entry.truth for entry in left_out]
    counted = [
        without_cut(truth, truth, entry.piece.edge) for truth, entry in zip(truths, left_out, strict=True)
    ]
    usual_height = height_of(objects)
    usual_threshold = 0.5 if objects.mask_threshold is None else objects.mask_threshold

    def labels_of(h: float, threshold: float) -> list[AnyLabels]:
        # Small objects stay: the smallest area is fitted last, on the same labels.
        rule = replace(rule_of(task), h_maxima=h, threshold=logit(threshold), min_area=0)
        pairs = zip(left_out, truths, strict=True)
        return [
            without_cut(decode(entry.prediction, rule)[0], truth, entry.piece.edge) for entry, truth in pairs
        ]

    def scores(labels: list[AnyLabels], area: float) -> list[float]:
        kept_labels = [drop_small(predicted, round(area))[0] for predicted in labels]
        return [
            match(predicted, truth).mean_ap() for predicted, truth in zip(kept_labels, counted, strict=True)
        ]

    by_height = {
        h: scores(labels_of(h, usual_threshold), task.min_area)
        for h in sorted({*HEIGHTS[task.scale], usual_height})
    }
    h = best(by_height, lambda h: abs(log2(h / usual_height)))
    thresholds = THRESHOLDS if objects.mask_threshold is None else (usual_threshold,)
    decoded = {threshold: labels_of(h, threshold) for threshold in thresholds}
    by_threshold = {threshold: scores(labels, task.min_area) for threshold, labels in decoded.items()}
    threshold = best(by_threshold, lambda threshold: abs(logit(threshold) - logit(usual_threshold)))
    by_area = {float(task.min_area): by_threshold[threshold]}
    areas = np.concatenate([np.bincount(truth.ravel())[1:] for truth in counted])
    if objects.min_area is None and areas.any():
        median = float(np.median(areas[areas > 0]))
        by_area |= {share * median: scores(decoded[threshold], share * median) for share in AREAS}
    area = best(by_area, lambda area: abs(area - task.min_area))
    um2 = None if task.min_area_um2 is None or not task.min_area else task.min_area_um2 / task.min_area * area
    fitted = replace(task, h_maxima=h, mask_threshold=threshold, min_area=round(area), min_area_um2=um2)
    return fitted, {
        "pieces": len(left_out), "objects": int((areas > 0).sum()),
        "h_maxima": h, "mask_threshold": threshold, "min_area": round(area),
        "mAP": round(float(np.mean(by_area[area])), 5), "usual": usual_height,
        "mAP_usual": round(float(np.mean(by_height[usual_height])), 5),
        "mAP_by_h": [[height, round(float(np.mean(values)), 5)] for height, values in by_height.items()],
    }  # fmt: skip


def best(scores: dict[Any, list[float]], distance: Any) -> Any:
    """Returns the setting nearest to the usual one, of those within one standard error of the best.

    The error is that of the difference to the best one, paired over pieces; 0 for a single piece.
    """
    best_setting = max(scores, key=lambda setting: (np.mean(scores[setting]), -distance(setting)))
    near_best = []
    for setting, setting_scores in scores.items():
        deficits = np.subtract(scores[best_setting], setting_scores)
        if deficits.mean() <= standard_error(deficits):
            near_best.append(setting)
    return min(near_best, key=lambda setting: (distance(setting), -np.mean(scores[setting])))


def standard_error(values: Floats) -> float:
    """Returns the standard error of the mean; 0 for a single value, which has none."""
    return float(values.std(ddof=1) / sqrt(values.size)) if values.size > 1 else 0.0


def without_cut(labels: AnyLabels, truth: AnyLabels, edge: tuple[int, int] | None) -> AnyLabels:
    """Returns labels without those that the edge cuts or that lie mostly in true ones which it cuts."""
    if edge is None:
        return labels
    axis, end = edge
    cut = np.isin(truth, np.setdiff1d(np.take(truth, end, axis), [0]))
    area = np.bincount(labels.ravel())
    removed = 2 * np.bincount(labels.ravel(), cut.ravel(), len(area)) > area
    removed[np.take(labels, end, axis)] = True
    return np.where(removed[labels], 0, labels)
