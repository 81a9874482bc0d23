"""Statistics of the scores of a sweep: means with intervals, differences between arms, objects saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from hpc_isl.objects.bootstrap import RESAMPLES, Interval, Spread, interval, resampled_means, spread
from hpc_isl.objects.savings import Between, Curve, saved, saved_interval
from hpc_isl.objects.types import Floats
from hpc_isl.stages.report.sweep import BOX, Arm, Cell, Element, N, Replicate, Sweep, Truth
from hpc_isl.stages.shared.following import SCORES

Key = tuple[tuple[str, ...], Replicate]
"""One score: the path of its test box (group, well, box), and draw and seed."""
SEED = 0
NOTHING = 0.005
"""Scores below are shown as 0.00: no gain over them is defined, and nothing is saved for them."""


@dataclass(frozen=True, eq=False)
class Design:
    """One score of all cells by test box and replicate, so that cells are compared in pairs.

    Attributes:
        columns: cell -> key -> score; scores that are not a number are left out.
    """

    columns: Mapping[Cell, Mapping[Key, float]]

    @property
    def has_one_box(self) -> bool:
        """Whether one test box alone has scores."""
        return len({path for column in self.columns.values() for path, _ in column}) == 1

    def mean(self, cell: Cell) -> Interval:
        """Returns the mean score over test boxes and draws, with its interval."""
        values, resampled = self.resampled([cell])
        return interval(float(values[0]), resampled[:, 0])

    def common(self, cells: Sequence[Cell]) -> list[Key]:
        """Returns the keys that all of these cells have a score for, in an order that repeats."""
        return sorted(set.intersection(*(set(self.columns[cell]) for cell in cells)), key=str)

    def resampled(self, cells: Sequence[Cell]) -> tuple[Floats, Floats]:
        """Returns the mean of each cell over the keys that all have, and the same in each resample, paired.

        The resamples are NaN where one draw alone was made, or one test box alone scored: its luck cannot be
        told from the arm.
        """
        keys, undefined = self.common(cells), np.full((RESAMPLES, len(cells)), np.nan)
        if not keys:
            return np.full(len(cells), np.nan), undefined
        one_draw = len({replicate for _, replicate in keys}) == 1 and any(cell.n != 0 for cell in cells)
        if one_draw or len({path for path, _ in keys}) == 1:
            return self._table(cells, keys).mean(0), undefined
        if keys == self._complete_table[0] and set(cells) <= set(self._complete_table[1]):
            places = [self._complete_table[1].index(cell) for cell in cells]
            return self._complete_table[2].mean(0)[places], self._complete_table[3][:, places]
        table = self._table(cells, keys)
        return table.mean(0), _resample_means(table, keys)

    def _table(self, cells: Sequence[Cell], keys: Sequence[Key]) -> Floats:
        return np.array([[self.columns[cell][key] for cell in cells] for key in keys])

    @cached_property
    def _complete_table(self) -> tuple[list[Key], list[Cell], Floats, Floats]:
        """All keys, the cells that have every score, their table and its resamples."""
        # Resampled once for all of them: nearly always these are all the cells of the sweep.
        union = {key for column in self.columns.values() for key in column}
        cells = [cell for cell, column in self.columns.items() if len(column) == len(union)]
        keys = sorted(union, key=str)
        table = self._table(cells, keys)
        return keys, cells, table, _resample_means(table, keys) if cells else np.empty((RESAMPLES, 0))


def _resample_means(table: Floats, keys: Sequence[Key]) -> Floats:
    """Returns the means of each resample: draws are crossed with test boxes, or nested in their groups."""
    paths, replicates = [path for path, _ in keys], [replicate for _, replicate in keys]
    if len(set(paths)) * len(set(replicates)) == len(keys):
        return resampled_means(table, paths, seed=SEED, crossed=replicates)
    # Some group of boxes has only some of the draws.
    nested = [(path[0], replicate, *path[1:]) for path, replicate in keys]
    return resampled_means(table, nested, seed=SEED)


def design(sweep: Sweep, truth: Truth, facet: str = "") -> Design:
    """Returns the main scores against one truth; `facet`: of test boxes within, or across, what trained."""
    columns: dict[Cell, dict[Key, float]] = {}
    for element in sweep.elements:
        column = columns.setdefault(element.cell, {})
        for path, value in _paths(sweep, element, truth, facet):
            column[path, element.replicate] = value
    for cell, column in columns.items():
        if cell.n == 0 and len({replicate for _, replicate in column}) == 1:
            # Without boxes there are no draws: the one run stands beside each of them.
            columns[cell] = {
                (path, replicate): value
                for (path, _), value in column.items()
                for replicate in sweep.replicates
            }
    return Design({cell: columns[cell] for cell in sweep.cells if columns[cell]})


def _paths(
    sweep: Sweep, element: Element, truth: Truth, facet: str
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yields the path of each test box, from the outermost unit in, and its score where it is a number."""
    scores = select(element.scores, truth, facet).dropna(subset=[sweep.score])
    groups = scores[sweep.group] if sweep.group in scores else [""] * len(scores)
    boxes = scores[BOX].itertuples(index=False)
    for group, (plate, well, *box), value in zip(groups, boxes, scores[sweep.score], strict=True):
        yield (group, f"{plate}/{well}", "/".join(box)), value


def select(scores: pd.DataFrame, truth: Truth, facet: str = "") -> pd.DataFrame:
    """Returns the rows of scores against one truth, of one facet; "": of all test boxes."""
    rows = scores[(scores.truth == truth.name) & (scores.origin == truth.origin)]
    return rows[rows.same == facet] if facet else rows


def spreads(sweep: Sweep, truth: Truth, cell: Cell, facet: str = "") -> dict[str, Spread]:
    """Returns mean ± sd of each score over the test boxes and draws of a cell."""
    scores = select(sweep.scores, truth, facet)
    rows = scores[(scores.arm == str(cell.arm)) & (scores.n == cell.n)]
    return {score: spread(rows[score].tolist()) for score in SCORES if len(rows)}


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
    """Returns each arm with ISL with the same arm without, and with the one that starts from drafted labels.

    Arms that differ in more are compared where all else is equal. A control without a counterpart on the
    other side, such as `random` trained for longer or ISL on permuted stains, is compared with the plain arm.
    """
    isl = [arm for arm in sweep.arms if arm.name.endswith("+isl")]
    bases = [arm for arm in sweep.arms if arm not in isl]
    isl_variants, base_variants = ({arm.variant for arm in arms} for arms in (isl, bases))

    def alike(arm: Arm, base: Arm) -> bool:
        alone = (arm.variant not in base_variants) + (base.variant not in isl_variants)
        return arm.variant == base.variant or alone == 1 or not isl_variants & base_variants

    return [
        (arm, base)
        for arm in isl
        for name in (arm.name.removesuffix("+isl"), "drafted")
        for base in bases
        if base.name == name and alike(arm, base)
    ]


def differences(sweep: Sweep, scores: Design) -> Iterator[Difference]:
    """Yields the differences at every number of boxes that both arms have, 0 too."""
    for arm, base in rivals(sweep):
        for n in (0, *sweep.counts):
            cell, base_cell = Cell(arm, n), Cell(base, n)
            if cell in scores.columns and base_cell in scores.columns and scores.common([cell, base_cell]):
                yield _difference(scores, cell, base_cell)


def _difference(scores: Design, cell: Cell, base_cell: Cell) -> Difference:
    values, resampled = scores.resampled([cell, base_cell])
    deltas = resampled[:, 0] - resampled[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = deltas / resampled[:, 1]
        gain = (values[0] - values[1]) / values[1] if values[1] >= NOTHING else np.nan
    # Some resample has a mean of 0, of which nothing is a share: the gain has no interval.
    if not (np.isfinite(gain) and np.isfinite(gains).all()):
        gains = np.full(len(gains), np.nan)
    return Difference(
        cell.arm, base_cell.arm, cell.n, interval(float(values[0] - values[1]), deltas),
        interval(float(gain), gains), len(scores.common([cell, base_cell])),
    )  # fmt: skip


# ---------------------------------------------------------------- annotated objects saved


@dataclass(frozen=True)
class Saving:
    """Annotated objects that another arm needs for the score of an arm at N, over those it had.

    Attributes:
        factor: None where the score is next to nothing: that much is reached without annotations.
        interval: 95 % interval; None where one draw or one test box alone was scored, or there is no factor.
    """

    arm: Arm
    base: Arm
    n: N
    objects: float
    score: float
    factor: Between | None
    interval: Between | None


def savings(sweep: Sweep, scores: Design) -> Iterator[Saving]:
    """Yields the savings at the scores that each arm with ISL reaches, curves taken as rising."""
    for arm, base in rivals(sweep):
        arm_cells, base_cells = _curve_cells(sweep, scores, arm), _curve_cells(sweep, scores, base)
        if arm_cells and base_cells and scores.common([*arm_cells, *base_cells]):
            yield from _savings(sweep, scores, arm_cells, base_cells)


def _curve_cells(sweep: Sweep, scores: Design, arm: Arm) -> list[Cell]:
    """Returns the cells of an arm by rising number of objects; where two have as many, the first."""
    # Reversed, so that of two numbers with as many objects the smaller one stays.
    cells = {sweep.trained(n, "objects", arm): Cell(arm, n) for n in reversed(sweep.counts)
             if Cell(arm, n) in scores.columns}  # fmt: skip
    return [cells[objects] for objects in sorted(cells) if objects > 0]


def _savings(sweep: Sweep, scores: Design, arm_cells: list[Cell], base_cells: list[Cell]) -> Iterator[Saving]:
    values, resampled = scores.resampled([*arm_cells, *base_cells])
    objects = [
        [sweep.trained(cell.n, "objects", cell.arm) for cell in cells] for cells in (arm_cells, base_cells)
    ]

    def factors(means: Floats) -> list[tuple[float, Between]]:
        scores = means.tolist()
        curve, base = Curve(objects[0], scores[: len(arm_cells)]), Curve(objects[1], scores[len(arm_cells) :])
        return [(score, saved(curve, base, score)) for score in curve.monotone()]

    # One draw, or one test box, alone has no resamples.
    resamples = [] if np.isnan(resampled).any() else [factors(means) for means in resampled]
    for index, (cell, (score, factor)) in enumerate(zip(arm_cells, factors(values), strict=True)):
        defined = score >= NOTHING
        likely = saved_interval([factor[index][1] for factor in resamples]) if resamples and defined else None
        yield Saving(
            cell.arm, base_cells[0].arm, cell.n, objects[0][index], score, factor if defined else None, likely
        )


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True, eq=False)
class Results:
    """All that is computed from the scores of a sweep: against each truth, facet by facet."""

    sweep: Sweep
    designs: Mapping[tuple[Truth, str], Design]
    differences: Mapping[tuple[Truth, str], Sequence[Difference]]
    savings: Mapping[Truth, Sequence[Saving]]

    @property
    def truth(self) -> Truth:
        """The main one."""
        return self.sweep.truths[0]


def results(sweep: Sweep) -> Results:
    """Computes means, differences and savings, each once."""
    designs = {
        (truth, facet): design(sweep, truth, facet) for truth in sweep.truths for facet in sweep.facets
    }
    return Results(
        sweep, designs, {key: list(differences(sweep, scores)) for key, scores in designs.items()},
        {truth: list(savings(sweep, designs[truth, ""])) for truth in sweep.truths},
    )  # fmt: skip
