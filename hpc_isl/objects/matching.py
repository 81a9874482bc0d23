"""How good objects are: two label images, matched one to one, and the scores that follow from the matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[Any]
Box = tuple[int, int, int, int]
# Hundredths, so that an IoU of 3/5 meets 0.6: both are the double nearest to the same fraction.
THRESHOLDS = tuple(hundredths / 100 for hundredths in range(50, 100, 5))
LEAST = THRESHOLDS[0]


@dataclass(frozen=True, eq=False)
class Matching:
    """The pairs of predicted and true objects with IoU >= 0.5, each object in one pair at most.

    At a higher threshold the same pairs count, less those below it. An image without objects, predicted
    without objects, is right: AP, F1, PQ, SQ and RQ are 1. Where one of both has objects, all are 0, but for
    SQ, which is the mean over no pair: NaN.
    """

    prediction: NDArray[Any]
    """label of the predicted object, one for each pair"""
    truth: NDArray[Any]
    """label of the true object, one for each pair"""
    iou: NDArray[np.float64]
    """intersection over union, one for each pair"""
    predictions: int
    """predicted objects, in a pair or not"""
    truths: int
    """true objects, in a pair or not"""

    def hits(self, threshold: float = LEAST) -> int:
        """True positives: pairs whose IoU is `threshold` or more."""
        if not LEAST <= threshold <= 1:
            raise ValueError(f"threshold {threshold}: IoU pairs objects one to one from {LEAST} to 1 only")
        return int((self.iou >= threshold).sum())

    def ap(self, threshold: float = LEAST) -> float:
        """TP / (TP + FP + FN), which StarDist calls accuracy and Cellpose average precision."""
        hits = self.hits(threshold)
        return _share(hits, self.predictions + self.truths - hits)

    def mean_ap(self) -> float:
        """Mean of AP over the thresholds 0.50, 0.55, …, 0.95."""
        return float(np.mean([self.ap(threshold) for threshold in THRESHOLDS]))

    def f1(self, threshold: float = LEAST) -> float:
        """2 TP / (2 TP + FP + FN). At 0.5 it is the RQ of panoptic quality."""
        return _share(2 * self.hits(threshold), self.predictions + self.truths)

    def sq(self) -> float:
        """Segmentation quality: mean IoU of the pairs; NaN where objects are there and none is in a pair."""
        if not self.predictions + self.truths:
            return 1.0
        return float(self.iou.mean()) if len(self.iou) else float("nan")

    def pq(self) -> float:
        """Panoptic quality, SQ × RQ (Kirillov et al. 2019; there IoU > 0.5, here >= as in StarDist)."""
        return self.sq() * self.f1() if len(self.iou) else self.f1()

    def count_error(self) -> int:
        """Predicted less true objects: above 0 where there are too many."""
        return self.predictions - self.truths


def match(prediction: Labels, truth: Labels) -> Matching:
    """Pairs the objects of two label images of one shape, whatever their numbers; 0 is background.

    From IoU 0.5 on, pairing needs no search: a partner holds at least half of an object's pixels, so two
    partners halve it exactly, at IoU 0.5 each, and touch no other object. Of these two the one with the
    lower label is paired, the other is left over: no count and no IoU depends on which.
    """
    _check(prediction, truth)
    ours, theirs, length = _runs(prediction.ravel(), truth.ravel())
    names, here, area = _areas(ours, length)
    true_names, there, true_area = _areas(theirs, length)
    # Only pairs that share pixels are held, never the table of all by all.
    both = (ours > 0) & (theirs > 0)
    pairs, place = np.unique(here[both] * len(true_names) + there[both], return_inverse=True)
    shared = np.bincount(place, length[both], len(pairs))
    i, j = np.divmod(pairs, max(len(true_names), 1))
    iou = shared / (area[i] + true_area[j] - shared)
    i, j, iou = _one_to_one(i, j, iou)
    return Matching(names[i], true_names[j], iou, int((names > 0).sum()), int((true_names > 0).sum()))


def object_scores(prediction: Labels, truth: Labels) -> dict[str, float]:
    """All scores of one image or annotation box, by the names they have in tables."""
    found = match(prediction, truth)
    return {
        "mAP": found.mean_ap(),
        "AP50": found.ap(0.5),
        "AP75": found.ap(0.75),
        "F1": found.f1(),
        "PQ": found.pq(),
        "SQ": found.sq(),
        "RQ": found.f1(),
        "count_error": float(found.count_error()),
    }


def inside(labels: Labels, box: Box) -> Labels:
    """What an annotation box (y0, x0, y1, x1) holds of labels (…, y, x), in pixels, ends excluded.

    Pixels outside of an annotation count in no score, so prediction and truth are both cut by it, and what is
    left of a cut object counts as an object, in one piece or several: the box's edge is treated as the
    edge of a field is. An object that reaches into two boxes counts in both.
    """
    y0, x0, y1, x1 = box
    height, width = labels.shape[-2:]
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise ValueError(
            f"annotation box {box} (y0, x0, y1, x1) is empty or lies outside of {height} × {width} pixels"
        )
    return labels[..., y0:y1, x0:x1]


def _check(prediction: Labels, truth: Labels) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} is {labels.dtype}: labels are integers, 0 background")
        if labels.size and labels.min() < 0:
            raise ValueError(f"{name} holds {labels.min()}: labels are 0 (background) or above")


def _runs(ours: Labels, theirs: Labels) -> tuple[Labels, Labels, NDArray[np.int64]]:
    """Both labels along the raster and how many pixels they last: far fewer to sort than pixels."""
    change = (ours[1:] != ours[:-1]) | (theirs[1:] != theirs[:-1])
    starts = np.flatnonzero(np.concatenate([[ours.size > 0], change]))
    return ours[starts], theirs[starts], np.diff(starts, append=ours.size)


def _areas(labels: Labels, length: NDArray[np.int64]) -> tuple[Labels, NDArray[np.intp], NDArray[Any]]:
    names, place = np.unique(labels, return_inverse=True)
    return names, place, np.bincount(place, length, len(names))


def _one_to_one(*pairs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Pairs (i, j, iou) sorted by i, j: those of IoU >= 0.5, and of equals the first."""
    pairs = tuple(column[pairs[2] >= LEAST] for column in pairs)
    for side in (0, 1):
        first = np.sort(np.unique(pairs[side], return_index=True)[1])
        pairs = tuple(column[first] for column in pairs)
    return pairs


def _share(part: int, whole: int) -> float:
    """Nothing of nothing is all of it."""
    return part / whole if whole else 1.0
