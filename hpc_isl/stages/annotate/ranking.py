"""Which fields to annotate next, from their embeddings: k-centre greedy, in strata, with a second term.

Pure functions of arrays. k-centre greedy is the 2-approximation of Gonzalez (Theoretical Computer Science 38,
1985), which Sener and Savarese (ICLR 2018) use to choose what is annotated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DECIMALS = 4  # of standardised features: the order of sums, which differs from CPU to CPU, decides no rank
CONSTANT = 1e-6  # a feature that varies by a smaller share of its values is a rounding error
BLOCK = 512  # rows of the table of distances that are held at once


@dataclass(frozen=True)
class Pick:
    """A field that was chosen.

    Attributes:
        number: of the field.
        score: by which it was chosen, 0 to 1; NaN for the first of all, where nothing is annotated.
        distance: to the nearest annotated or chosen field (see `distances`); NaN for the first of all.
        nearest: number of that field; None for the first of all.
        opens: it is the first of its stratum.
    """

    number: int
    score: float = float("nan")
    distance: float = float("nan")
    nearest: int | None = None
    opens: bool = False


def standardised(features: NDArray[Any]) -> Floats:
    """Returns features (field, feature) with mean 0 and standard deviation 1 over fields.

    Features that are equal in all fields become 0, and so does NaN: of a channel that a field lacks.
    """
    values = np.asarray(features, np.float64)
    finite = np.isfinite(values)
    count = np.maximum(finite.sum(0), 1)
    filled = np.where(finite, values, 0)
    centred = np.where(finite, filled - filled.sum(0) / count, 0)
    sd = np.sqrt((centred**2).sum(0) / count)
    varies = sd > CONSTANT * np.abs(filled).max(0, initial=0)
    scaled: Floats = np.where(varies, centred / np.where(varies, sd, 1), 0)
    return scaled.round(DECIMALS)


def distances(features: Floats, others: Floats) -> Floats:
    """Returns the root mean square differences of features: (field, other), in standard deviations."""
    from scipy.spatial.distance import cdist  # here, because a plan does without it

    table: Floats = cdist(features, others) / np.sqrt(max(features.shape[1], 1))
    return table


def medoid(features: Floats) -> int:
    """Returns the field whose distances to all others have the smallest sum; of equals the first."""
    blocks = (features[first : first + BLOCK] for first in range(0, len(features), BLOCK))
    return int(np.argmin(np.concatenate([distances(block, features).sum(1) for block in blocks])))


def scaled_residuals(residuals: Floats) -> Floats:
    """Returns residuals scaled to 0 to 1; NaN becomes the median, and all are 0 where they are equal."""
    if not np.isfinite(residuals).any():
        return np.zeros(len(residuals))
    filled = np.where(np.isfinite(residuals), residuals, np.nanmedian(residuals))
    span = float(np.ptp(filled))
    return (filled - filled.min()) / span if span else np.zeros(len(filled))


def ranked(
    features: Floats,
    annotated: Sequence[int],
    n: int,
    strata: Sequence[Hashable] | None = None,
    residuals: Floats | None = None,
    weight: float = 0.0,
) -> list[Pick]:
    """Returns `n` fields, each the one with the greatest score given those before it; of equals the first.

    A score is (1 - weight) × distance to the nearest annotated or chosen field, over the greatest such
    distance at the beginning, + weight × residual. Where nothing is annotated, the first is the medoid.
    No stratum gets a field while it has one, annotated or chosen, and another that has fields left has none.

    Args:
        features: of all fields, standardised: (field, feature).
        annotated: numbers of the fields that are not to be chosen.
        strata: of each field; None: one.
        residuals: of each field, 0 to 1 (`scaled_residuals`).
    """
    groups = list(strata) if strata is not None else [None] * len(features)
    second = np.zeros(len(features)) if residuals is None else residuals
    counts = Counter(groups[number] for number in annotated)
    remaining = sorted({*range(len(features))} - {*annotated})
    picks: list[Pick] = []
    gap, nearest = np.full(len(features), np.inf), np.full(len(features), -1)
    for number in annotated:
        _add(features, number, gap, nearest)
    if not annotated:
        picks.append(Pick(medoid(features), opens=True))
        counts[groups[picks[0].number]] += 1
        remaining.remove(picks[0].number)
        _add(features, picks[0].number, gap, nearest)
    unit = float(gap[remaining].max(initial=0)) or 1.0
    while len(picks) < n:
        uncovered = [number for number in remaining if not counts[groups[number]]]
        eligible = np.array(uncovered or remaining)
        scores = (1 - weight) * gap[eligible] / unit + weight * second[eligible]
        best = int(np.argmax(scores))
        number = int(eligible[best])
        opens = not counts[groups[number]]
        picks.append(Pick(number, float(scores[best]), float(gap[number]), int(nearest[number]), opens))
        counts[groups[number]] += 1
        remaining.remove(number)
        _add(features, number, gap, nearest)
    return picks


def _add(features: Floats, number: int, gap: Floats, nearest: NDArray[np.int64]) -> None:
    """Takes one more field into the distances to the nearest one, and into which that is."""
    distance = distances(features, features[number : number + 1])[:, 0]
    closer = distance < gap
    gap[closer], nearest[closer] = distance[closer], number
