"""Scores of predicted objects: two label images are matched one to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_isl.objects.types import AnyLabels, Box, Floats

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

    prediction: AnyLabels
    """label of the predicted object, one for each pair"""
    truth: AnyLabels
    """label of the true object, one for each pair"""
    iou: Floats
    """intersection over union, one for each pair"""
    predictions: int
    """predicted objects, in a pair or not"""
    truths: int
    """true objects, in a pair or not"""

    def hits(self, threshold: float = LEAST) -> int:
        """Returns the true positives: pairs whose IoU is `threshold` or more."""
        if not LEAST <= threshold <= 1:
            raise ValueError(f"threshold {threshold}: IoU pairs objects one to one from {LEAST} to 1 only")
        return int((self.iou >= threshold).sum())

    def ap(self, threshold: float = LEAST) -> float:
        """Returns TP / (TP + FP + FN), which StarDist calls accuracy and Cellpose average precision."""
        hits = self.hits(threshold)
        return _share(hits, self.predictions + self.truths - hits)

    def mean_ap(self) -> float:
        """Returns the mean of AP over the thresholds 0.50, 0.55, …, 0.95."""
        return float(np.mean([self.ap(threshold) for threshold in THRESHOLDS]))

    def f1(self, threshold: float = LEAST) -> float:
        """Returns 2 TP / (2 TP + FP + FN). At 0.5 it is the RQ of panoptic quality."""
        return _share(2 * self.hits(threshold), self.predictions + self.truths)

    def sq(self) -> float:
        """Returns the segmentation quality, the mean IoU of the pairs; NaN of objects without any pair."""
        if not self.predictions + self.truths:
            return 1.0
        return float(self.iou.mean()) if len(self.iou) else float("nan")

    def pq(self) -> float:
        """Returns panoptic quality, SQ × RQ (Kirillov et al. 2019; IoU >= 0.5 as in StarDist, there >)."""
        return self.sq() * self.f1() if len(self.iou) else self.f1()

    def count_error(self) -> int:
        """Returns predicted minus true objects: above 0 where there are too many."""
        return self.predictions - self.truths


def match(prediction: AnyLabels, truth: AnyLabels) -> Matching:
    """Pairs the objects of two label images of one shape, whatever their numbers; 0 is background."""
    _check(prediction, truth)
    labels, true_labels = prediction.ravel(), truth.ravel()
    # Runs of equal labels along the raster, and their lengths: far fewer to sort than pixels.
    change = (labels[1:] != labels[:-1]) | (true_labels[1:] != true_labels[:-1])
    starts = np.flatnonzero(np.concatenate([[labels.size > 0], change]))
    labels, true_labels, length = labels[starts], true_labels[starts], np.diff(starts, append=labels.size)
    names, index = np.unique(labels, return_inverse=True)
    true_names, true_index = np.unique(true_labels, return_inverse=True)
    area, true_area = np.bincount(index, length, len(names)), np.bincount(true_index, length, len(true_names))
    # Only pairs that share pixels are held, never the table of all by all.
    overlap = (labels > 0) & (true_labels > 0)
    pairs, pair_index = np.unique(index[overlap] * len(true_names) + true_index[overlap], return_inverse=True)
    shared_pixels = np.bincount(pair_index, length[overlap], len(pairs))
    i, j = np.divmod(pairs, max(len(true_names), 1))
    iou = shared_pixels / (area[i] + true_area[j] - shared_pixels)
    # From IoU 0.5 on, pairing needs no search: a partner holds at least half of an object's pixels, so two
    # partners halve it exactly, at IoU 0.5 each, and touch no other object. Of these two the one with the
    # lower label is paired, the other is left over: no count and no IoU depends on which.
    paired = np.flatnonzero(iou >= LEAST)
    for side in (i, j):
        paired = paired[np.sort(np.unique(side[paired], return_index=True)[1])]
    counts = int((names > 0).sum()), int((true_names > 0).sum())
    return Matching(names[i[paired]], true_names[j[paired]], iou[paired], *counts)


COVERED_BY_A_PIECE = 0.1
COVERED_BY_A_MERGE = 0.5


def splits_and_merges(prediction: AnyLabels, truth: AnyLabels) -> tuple[int, int]:
    """Returns the number of true objects in pieces, and of predicted objects that join several.

    A true object is in pieces where two or more predicted ones hold at least a tenth of its pixels each;
    a predicted one joins those true objects of which it holds at least half.
    """
    _check(prediction, truth)
    names, index = np.unique(prediction, return_inverse=True)
    true_names, true_index = np.unique(truth, return_inverse=True)
    pairs, shared_pixels = np.unique(index.ravel() * len(true_names) + true_index.ravel(), return_counts=True)
    i, j = np.divmod(pairs, len(true_names))
    share = shared_pixels / np.bincount(true_index.ravel(), minlength=len(true_names))[j]
    objects = (names[i] > 0) & (true_names[j] > 0)
    pieces = np.bincount(j[objects & (share >= COVERED_BY_A_PIECE)], minlength=1)
    joined = np.bincount(i[objects & (share >= COVERED_BY_A_MERGE)], minlength=1)
    return int((pieces > 1).sum()), int((joined > 1).sum())


def object_scores(prediction: AnyLabels, truth: AnyLabels) -> dict[str, float]:
    """Returns all scores of one image or annotation box, by the names they have in tables."""
    matching = match(prediction, truth)
    return {
        "mAP": matching.mean_ap(),
        "AP50": matching.ap(0.5),
        "AP75": matching.ap(0.75),
        "F1": matching.f1(),
        "PQ": matching.pq(),
        "SQ": matching.sq(),
        "RQ": matching.f1(),
        "count_error": float(matching.count_error()),
    }


def inside(labels: AnyLabels, box: Box) -> AnyLabels:
    """Returns the part of labels (…, y, x) in an annotation box (y0, x0, y1, x1), in pixels, ends excluded.

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


def _check(prediction: AnyLabels, truth: AnyLabels) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} is {labels.dtype}: labels are integers, 0 background")
        if labels.size and labels.min() < 0:
            raise ValueError(f"{name} holds {labels.min()}: labels are 0 (background) or above")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0  # no objects, and none predicted: all are right
