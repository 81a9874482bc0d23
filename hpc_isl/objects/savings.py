"""How many annotations one arm of a comparison saves over another at equal score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression


@dataclass(frozen=True)
class Between:
    """A number known to lie between `least` and `most`, which are equal where it is known exactly."""

    least: float
    most: float

    def __str__(self) -> str:
        """3.1, or 2.1–5.3; > 2.1 where no upper bound is known, < 5.3 where no lower one, ? where neither."""
        if math.isinf(self.most):
            return f"> {self.least:.3g}" if self.least else "?"
        if not self.least:
            return f"< {self.most:.3g}"
        return f"{self.most:.3g}" if self.least == self.most else f"{self.least:.3g}–{self.most:.3g}"


@dataclass(frozen=True)
class Curve:
    """Mean score of one arm against the number of annotated objects.

    An arm without any annotation has no place on it: its score is a level, not a curve.
    """

    objects: Sequence[float]
    """annotated objects, rising; above 0, because the curve lies over their logarithm"""
    scores: Sequence[float]
    """mean score at each"""

    def __post_init__(self) -> None:
        rising = bool((np.diff(self.objects, prepend=0) > 0).all())
        if not (rising and 0 < len(self.objects) == len(self.scores)):
            raise ValueError(f"objects {self.objects}: one for each score, above 0 and rising")
        if not np.isfinite(self.scores).all():
            raise ValueError(f"scores {self.scores}: a number for each count of objects")

    def monotone(self) -> list[float]:
        """Returns the rising curve nearest to the scores: more annotations score less only by chance."""
        return [float(score) for score in isotonic_regression(np.asarray(self.scores, np.float64)).x]

    def needed(self, score: float) -> Between:
        """Returns the annotated objects at which the monotone curve reaches `score`, linear in their log.

        Nothing is extrapolated: a score that is never reached needs more objects than the most of the
        curve, and one that is exceeded from the start at most the fewest.
        """
        heights = self.monotone()
        if score > heights[-1]:
            return Between(self.objects[-1], math.inf)
        if score < heights[0]:
            return Between(0.0, self.objects[0])
        above = next(place for place, height in enumerate(heights) if height >= score)
        if heights[above] == score:
            return Between(self.objects[above], self.objects[above])
        share = (score - heights[above - 1]) / (heights[above] - heights[above - 1])
        low, high = math.log(self.objects[above - 1]), math.log(self.objects[above])
        needed = math.exp(low + share * (high - low))
        return Between(needed, needed)


def saved(arm: Curve, baseline: Curve, score: float) -> Between:
    """Returns the factor of objects saved at equal score: those the baseline needs over the arm's.

    Of interest at the scores the arm reaches: `[saved(arm, baseline, score) for score in arm.monotone()]`.
    """
    arm_needs, baseline_needs = arm.needed(score), baseline.needed(score)
    most = baseline_needs.most / arm_needs.least if arm_needs.least else math.inf
    return Between(baseline_needs.least / arm_needs.most, most)


def saved_interval(factors: Sequence[Between], level: float = 0.95) -> Between:
    """Returns a percentile interval of factors from resampled curves.

    It is never narrower than the factors are known: the lower bound takes each at its least, the upper at its
    most.
    """
    # With `inverted_cdf` a percentile is one of the values: between two there is no mean with infinity.
    tail = 50 * (1 - level)
    low = np.percentile([factor.least for factor in factors], tail, method="inverted_cdf")
    high = np.percentile([factor.most for factor in factors], 100 - tail, method="inverted_cdf")
    return Between(float(low), float(high))
