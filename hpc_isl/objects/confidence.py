"""How far an object may be trusted: what the maps say of it, and the probability learnt from that.

An object counts as found if it overlaps one of the reference with an IoU of 0.5 or more. The probability of
that is a logistic regression (Cox 1958) of three measures, learnt from objects of boxes that the network had
not seen. Without enough of them there is only a score, which orders objects and is no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hpc_isl.objects import feature_kernels
from hpc_isl.objects.features import objects_in
from hpc_isl.objects.types import AnyLabels, Floats, Pixels

MEASURES = ("margin", "sharpness", "log_area")
ENOUGH = 200  # objects, below which no probability is learnt


def measures(labels: AnyLabels, prediction: Pixels, threshold: float, pixels: float = 1.0) -> Floats:
    """Returns (object, measure) by ascending label, in the order of `MEASURES`.

    margin: mean probability of the object's pixels to lie inside one, where the mask's threshold is 0.5.
    sharpness: how far the map falls from the object's peak to the highest of its pixels that touch another
    object, as a share of the peak; 1 where it touches none, and where there is no distance map.
    log_area: natural logarithm of its area in pixels of the network.

    Args:
        labels: (y, x), 0 background.
        prediction: (output, y, x): the distance map of cells, then the mask's logits, of the same pixels.
        threshold: logit of the mask above which a pixel is of an object.
        pixels: pixels of the network that one of these covers.
    """
    tidy, names, runs = objects_in(labels)
    inside = expit(prediction[-1] - np.float32(threshold))
    margin, *_ = feature_kernels.totals(runs, len(names), inside)
    area = np.bincount(runs[:, 3], runs[:, 2] - runs[:, 1], len(names))
    sharpness = np.ones(len(names))
    if len(prediction) > 1:
        peak, cut = feature_kernels.peaks_and_cuts(
            tidy, runs, len(names), np.ascontiguousarray(prediction[0])
        )
        touches = np.isfinite(cut) & (peak > 0)
        sharpness[touches] = np.clip(1 - cut[touches] / peak[touches], 0, 1)
    return np.stack([margin / area, sharpness, np.log(area * pixels)], axis=1)


def confidence(column: str, values: Floats, weights: Sequence[float]) -> Floats:
    """Returns the column `confidence`, a probability, or `score`: margin × sharpness, which is none."""
    if column == "confidence":
        return probability(values, weights)
    score: Floats = values[:, 0] * values[:, 1]
    return score


def probability(values: Floats, weights: Sequence[float]) -> Floats:
    """Returns the probability of each object to be found right.

    Args:
        weights: the constant, then one for each measure, as `learn` returns them.
    """
    chance: Floats = expit(weights[0] + values @ np.asarray(weights[1:]))
    return chance


def learn(values: Floats, found: NDArray[np.bool_]) -> tuple[float, ...]:
    """Returns the constant and the weight of each measure, by a logistic regression with a weak penalty."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and needed once in a run

    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread[spread == 0] = 1  # a measure that is the same for all objects says nothing
    model = LogisticRegression().fit((values - mean) / spread, found)
    weights = model.coef_[0] / spread
    return (float(model.intercept_[0] - weights @ mean), *map(float, weights))


@dataclass(frozen=True)
class Calibration:
    """What was learnt of the confidence of objects, and how good it is on objects that taught nothing.

    Attributes:
        weights: of `probability`; empty: too few objects, or all alike, so that there is only a score.
        figures: objects, share that was found; Brier score (mean squared error of the probability; 0 is
            best) and AUROC (probability that a found object has the higher confidence than another one), and
            the same of a regression on the area alone, each on the half of the boxes that taught it nothing.
    """

    weights: tuple[float, ...]
    figures: dict[str, Any]


def calibrate(values: Sequence[Floats], found: Sequence[NDArray[np.bool_]]) -> Calibration:
    """Learns the probability from the objects of each box left out.

    Args:
        values: the measures of the objects of each box, found: whether each overlaps a true one.
    """
    all_values, all_found = np.concatenate(values), np.concatenate(found)
    figures: dict[str, Any] = (
        {"objects": len(all_found), "found": round(float(all_found.mean()), 4)} if len(all_found) else {}
    )
    if len(all_found) < ENOUGH or not 0 < all_found.sum() < len(all_found):
        return Calibration((), figures)
    halves = np.repeat(np.arange(len(found)) % 2, [len(box_found) for box_found in found])
    for name, columns in (("", slice(None)), ("area_", slice(2, None))):
        chance = _cross_validated(all_values[:, columns], all_found, halves)
        if chance is not None:
            figures |= {f"{name}{key}": value for key, value in _figures(all_found, chance).items()}
    return Calibration(learn(all_values, all_found), figures)


def _cross_validated(values: Floats, found: NDArray[np.bool_], halves: NDArray[np.int64]) -> Floats | None:
    """Returns the probability of each object as the other half of the boxes teaches it; None: it cannot."""
    chance = np.empty(len(found))
    for half in (0, 1):
        other_half = halves != half
        if not 0 < found[other_half].sum() < other_half.sum():
            return None
        chance[~other_half] = probability(values[~other_half], learn(values[other_half], found[other_half]))
    return chance


def _figures(found: NDArray[np.bool_], chance: Floats) -> dict[str, float]:
    from sklearn.metrics import brier_score_loss, roc_auc_score

    return {
        "brier": round(float(brier_score_loss(found, chance)), 4),
        "auroc": round(float(roc_auc_score(found, chance)), 4),
    }
