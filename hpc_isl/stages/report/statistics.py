"""What the scores of a sweep say: means with intervals, differences between arms, annotations saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.objects.bootstrap import RESAMPLES, Interval, interval, resampled_means
from hpc_isl.objects.savings import Between, Curve, saved, saved_interval
from hpc_isl.stages.report.arms import Arm
from hpc_isl.stages.report.sweep_results import Cell, N, Replicate, Scored, Sweep, Truth

Path_ = tuple[str, ...]
Key = tuple[Path_, Replicate]
"""One score: the path of its test box in the hierarchy, and draw and seed."""
SEED = 0
NOTHING = 0.005
"""Scores below are shown as 0.00: no share of them is told, and nothing is saved for them."""


@dataclass(frozen=True, eq=False)
class Design:
    """One score of all cells, laid out by test box and chance, so that cells are compared in pairs.

    Attributes:
        columns: cell -> key -> score; scores that are not a number are left out.
    """

    columns: Mapping[Cell, Mapping[Key, float]]

    def mean(self, cell: Cell) -> Interval:
        """Mean score over test boxes and draws, with its interval."""
        values, resampled = self.resampled([cell])
        return interval(float(values[0]), resampled[:, 0])

    def common(self, cells: Sequence[Cell]) -> list[Key]:
        """What all of these cells have a score for."""
        keys = set.intersection(*(set(self.columns[cell]) for cell in cells))
        return sorted(keys, key=str)

    def resampled(self, cells: Sequence[Cell]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean of each cell over what all have a score for, and the same in each resample, paired.

        The resamples are NaN where one draw alone was made: its luck cannot be told from the arm.
        """
        keys, chances = self.common(cells), {chance for _, chance in self.common(cells)}
        if not keys:
            return np.full(len(cells), np.nan), np.full((RESAMPLES, len(cells)), np.nan)
        if len(chances) == 1 and any(cell.n != 0 for cell in cells):
            return self._table(cells, keys).mean(0), np.full((RESAMPLES, len(cells)), np.nan)
        if keys == self._all[0] and set(cells) <= set(self._all[1]):
            places = [self._all[1].index(cell) for cell in cells]
            return self._all[2].mean(0)[places], self._all[3][:, places]
        table = self._table(cells, keys)
        return table.mean(0), _resampled(table, keys)

    def _table(self, cells: Sequence[Cell], keys: Sequence[Key]) -> NDArray[np.float64]:
        return np.array([[self.columns[cell][key] for cell in cells] for key in keys])

    @cached_property
    def _all(self) -> tuple[list[Key], list[Cell], NDArray[Any], NDArray[Any]]:
        """Resampled once for all cells that have every score: nearly always all there are."""
        union = {key for column in self.columns.values() for key in column}
        cells = [cell for cell, column in self.columns.items() if len(column) == len(union)]
        keys = sorted(union, key=str)
        table = self._table(cells, keys)
        return keys, cells, table, _resampled(table, keys) if cells else np.empty((RESAMPLES, 0))


def _resampled(table: NDArray[Any], keys: Sequence[Key]) -> NDArray[np.float64]:
    """Draws are crossed with test boxes; where a group of boxes meets only some draws, they lie within it."""
    paths, chances = [path for path, _ in keys], [chance for _, chance in keys]
    if len(set(paths)) * len(set(chances)) == len(keys):
        return resampled_means(table, paths, seed=SEED, crossed=chances)
    nested = [(path[0], chance, *path[1:]) for path, chance in keys]
    return resampled_means(table, nested, seed=SEED)


def design(sweep: Sweep, truth: Truth, same: str = "", score: str | None = None) -> Design:
    """The scores against one truth; `same`: of test boxes that share, or do not, what trained."""
    found: dict[Cell, dict[Key, float]] = {}
    for element in sweep.elements:
        column = found.setdefault(element.cell, {})
        for scored in element.scored:
            value = scored.values[score or sweep.score]
            if scored.truth == truth and same in ("", scored.same) and not np.isnan(value):
                column[path_of(scored, sweep.group), element.chance] = value
    return Design({cell: _for_all(sweep, cell, column) for cell, column in sorted_(found) if column})


def sorted_(found: Mapping[Cell, dict[Key, float]]) -> list[tuple[Cell, dict[Key, float]]]:
    """In the order in which cells are shown."""
    return sorted(found.items(), key=lambda pair: pair[0].order)


def _for_all(sweep: Sweep, cell: Cell, column: dict[Key, float]) -> dict[Key, float]:
    """What learns from no box knows no draw: its one run stands beside each of them."""
    if cell.n != 0 or len({chance for _, chance in column}) > 1:
        return column
    return {(path, chance): value for (path, _), value in column.items() for chance in sweep.chances}


def path_of(scored: Scored, group: str | None) -> Path_:
    """Group of the plate map (all in one where there is none), well, box: from the outermost unit in."""
    plate, well, *inside = scored.place
    return scored.columns.get(group, "") if group else "", f"{plate}/{well}", "/".join(inside)


# ---------------------------------------------------------------- arms against each other


@dataclass(frozen=True)
class Difference:
    """Score of an arm less that of another, on the same test boxes and draws.

    Attributes:
        gain: the same as a share of the other's score; not a number where that is next to nothing.
        pairs: test boxes × draws that both have.
    """

    arm: Arm
    base: Arm
    n: N
    value: Interval
    gain: Interval
    pairs: int

    @property
    def verdict(self) -> str:
        if np.isnan(self.value.low):
            return "not known"
        if self.value.low > 0:
            return "better"
        return "worse" if self.value.high < 0 else "no difference shown"


def rivals(sweep: Sweep) -> list[tuple[Arm, Arm]]:
    """Each arm with ISL beside the same without, and beside the one that starts from drafted labels.

    Arms that differ in more are compared where all else is equal. A control that no arm on the other
    side has a like of, such as `random` trained for longer, or ISL on permuted stains, is set beside the
    plain one.
    """
    isl = [arm for arm in sweep.arms if arm.name.endswith("+isl")]
    bases = [arm for arm in sweep.arms if arm not in isl]
    ours, theirs = ({arm.rest for arm in arms} for arms in (isl, bases))

    def alike(arm: Arm, base: Arm) -> bool:
        alone = (arm.rest not in theirs) + (base.rest not in ours)
        return arm.rest == base.rest or alone == 1 or not ours & theirs

    return [
        (arm, base)
        for arm in isl
        for name in (arm.name.removesuffix("+isl"), "drafted")
        for base in bases
        if base.name == name and alike(arm, base)
    ]


def differences(sweep: Sweep, found: Design) -> Iterator[Difference]:
    """At every number of boxes that both arms have, 0 too."""
    for arm, base in rivals(sweep):
        for n in (0, *sweep.counts):
            ours, theirs = Cell(arm, n), Cell(base, n)
            if ours in found.columns and theirs in found.columns and found.common([ours, theirs]):
                yield _difference(found, ours, theirs)


def _difference(found: Design, ours: Cell, theirs: Cell) -> Difference:
    values, resampled = found.resampled([ours, theirs])
    less = resampled[:, 0] - resampled[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = less / resampled[:, 1]
        gain = (values[0] - values[1]) / values[1] if values[1] >= NOTHING else np.nan
    if not (np.isfinite(gain) and np.isfinite(share).all()):
        share = np.full(len(share), np.nan)
    return Difference(
        ours.arm, theirs.arm, ours.n, interval(float(values[0] - values[1]), less),
        interval(float(gain), share), len(found.common([ours, theirs])),
    )  # fmt: skip


# ---------------------------------------------------------------- annotations saved


@dataclass(frozen=True)
class Saving:
    """Annotated objects that another arm needs for the score of an arm at N, over those it had.

    Attributes:
        factor: None where the score is next to nothing: that much is reached without annotations.
        likely: 95 % interval; None where one draw alone was made, or there is no factor.
    """

    arm: Arm
    base: Arm
    n: N
    objects: float
    score: float
    factor: Between | None
    likely: Between | None


def savings(sweep: Sweep, found: Design) -> Iterator[Saving]:
    """At the scores that each arm with ISL reaches, curves taken as rising."""
    for arm, base in rivals(sweep):
        ours, theirs = (_on_curve(sweep, found, one) for one in (arm, base))
        if ours and theirs and found.common([*ours, *theirs]):
            yield from _savings(sweep, found, ours, theirs)


def _on_curve(sweep: Sweep, found: Design, arm: Arm) -> list[Cell]:
    """Cells of an arm by rising number of objects; where two have as many, the first stands."""
    cells = {sweep.trained(n, "objects"): Cell(arm, n) for n in reversed(sweep.counts)
             if Cell(arm, n) in found.columns}  # fmt: skip
    return [cells[objects] for objects in sorted(cells) if objects > 0]


def _savings(sweep: Sweep, found: Design, ours: list[Cell], theirs: list[Cell]) -> Iterator[Saving]:
    values, resampled = found.resampled([*ours, *theirs])
    objects = [[sweep.trained(cell.n, "objects") for cell in cells] for cells in (ours, theirs)]

    def factors(means: NDArray[Any]) -> list[tuple[float, Between]]:
        scores = means.tolist()
        curve, other = Curve(objects[0], scores[: len(ours)]), Curve(objects[1], scores[len(ours) :])
        return [(score, saved(curve, other, score)) for score in curve.monotone()]

    again = [] if np.isnan(resampled).any() else [factors(means) for means in resampled]
    for place, (cell, (score, factor)) in enumerate(zip(ours, factors(values), strict=True)):
        known = score >= NOTHING
        likely = saved_interval([one[place][1] for one in again]) if again and known else None
        yield Saving(
            cell.arm, theirs[0].arm, cell.n, objects[0][place], score, factor if known else None, likely
        )
