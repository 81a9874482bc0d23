"""Uncertainty of mean scores: spread over images, and intervals by resampling their hierarchy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.seeds import stream

Paths = Sequence[tuple[Hashable, ...]]
RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """Mean ± standard deviation of one score over images."""

    mean: float
    sd: float
    """of a sample (n − 1); NaN for a single image"""
    images: int
    """that have the score"""
    undefined: int
    """images left out, whose score is NaN"""

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.sd:.2f}"


@dataclass(frozen=True)
class Interval:
    """A value and the percentiles of its resamples; the bounds are NaN where there is nothing to resample."""

    value: float
    low: float
    high: float


def spread(scores: Sequence[float] | NDArray[Any]) -> Spread:
    """Returns mean and standard deviation over images; NaN scores are left out and counted."""
    values = np.asarray(scores, np.float64)
    defined = values[~np.isnan(values)]
    mean = float(defined.mean()) if len(defined) else float("nan")
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
    return Spread(mean, sd, len(defined), len(values) - len(defined))


def resampled_means(
    scores: NDArray[Any],
    paths: Paths,
    *,
    seed: int,
    crossed: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Returns the mean score of each arm in each resample, (resamples, arms).

    All arms see the same resamples, so the difference of two columns is paired. In each resample units are
    drawn with replacement, as many as there are: first the outermost, then in each unit drawn those
    within it, down to the last label; scores that share all labels stay together. The mean is over scores, as
    the mean over images is. The order of the rows plays no part. NaN where there is one unit only.

    Args:
        scores: (rows, arms): in a row the same image, scored for each arm.
        paths: one per row, the labels of its units from the outermost in, e.g. (cell line, well, field).
        seed: equal seeds give equal resamples.
        crossed: one label per row of what meets every unit of the hierarchy, e.g. the draw of annotations,
            where an unlucky one lowers the scores of all fields together. It is resampled on its own; were it
            the last of the paths, its chance would average out over the fields: intervals too narrow.
        resamples: how many.
    """
    table = _table(scores, paths)
    weights = _multiplicities(seed, "hierarchy", paths, resamples)
    if crossed is not None:
        pairs = len(set(zip(paths, crossed, strict=True)))
        if pairs != len(set(paths)) * len(set(crossed)):
            raise ValueError(
                f"{len(set(paths))} units and {len(set(crossed))} crossed labels, but {pairs} pairs of them "
                "have scores: every unit needs scores for every label"
            )
        weights *= _multiplicities(seed, "crossed", [(label,) for label in crossed], resamples)
    if (weights == 1).all():  # one unit only: nothing can be resampled
        return np.full((resamples, table.shape[1]), np.nan)
    means: NDArray[np.float64] = (weights @ table) / weights.sum(1, keepdims=True)
    return means


def interval(value: float, resampled: NDArray[Any], level: float = 0.95) -> Interval:
    """Returns the percentile interval that holds `level` of the resampled values, e.g. 2.5 % to 97.5 %."""
    tail = 50 * (1 - level)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _table(scores: NDArray[Any], paths: Paths) -> NDArray[np.float64]:
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or len(table) != len(paths) or not len(paths):
        raise ValueError(f"scores {table.shape}, {len(paths)} paths: a row of scores (one per arm) per path")
    if len({len(path) for path in paths}) > 1:
        raise ValueError("paths differ in length: every row needs a label on every level")
    if missing := int(np.isnan(table).any(1).sum()):
        raise ValueError(f"{missing} rows hold NaN: pairs need every score; leave them out for all arms")
    return table


def _multiplicities(seed: int, name: str, paths: Paths, resamples: int) -> NDArray[np.float64]:
    """Returns how often each row enters each resample, (resamples, rows)."""
    rng = stream(seed, "bootstrap", name)
    counts = np.zeros((resamples, len(paths)))

    def draw(rows: list[int], depth: int, copies: NDArray[np.int64]) -> None:
        if depth == len(paths[0]):
            counts[:, rows] = copies[:, None]
            return
        units: dict[Hashable, list[int]] = {}
        for row in rows:
            units.setdefault(paths[row][depth], []).append(row)
        # A unit drawn twice has its parts drawn twice, each time anew: one multinomial of both together.
        unit_copies = rng.multinomial(copies * len(units), np.full(len(units), 1 / len(units)))
        for place, unit in enumerate(sorted(units, key=str)):
            draw(units[unit], depth + 1, unit_copies[:, place])

    draw(list(range(len(paths))), 0, np.ones(resamples, np.int64))
    return counts
