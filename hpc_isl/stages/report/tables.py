"""A report's tables as CSV, for whoever wants to compute on; the page shows the same figures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_isl.objects.bootstrap import Interval, Spread, spread
from hpc_isl.stages.report.statistics import Design, Difference, Saving, design, differences, savings
from hpc_isl.stages.report.sweep_results import PLACE, Cell, Sweep, Truth, rank
from hpc_isl.stages.shared.sweeps import SCORES


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
    """Means, differences and savings, each once."""
    designs = {(truth, same): design(sweep, truth, same) for truth in sweep.truths for same in sweep.facets}
    return Results(
        sweep, designs, {key: list(differences(sweep, found)) for key, found in designs.items()},
        {truth: list(savings(sweep, designs[truth, ""])) for truth in sweep.truths},
    )  # fmt: skip


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order of their first appearance; a number that is none is left empty."""
    text = io.StringIO()
    table = csv.DictWriter(
        text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
    )
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def tables(found: Results) -> dict[str, str]:
    """File name -> CSV."""
    return {
        "scores_all.csv": csv_text(list(_scores(found.sweep))),
        "summary.csv": csv_text(list(_summary(found))),
        "differences.csv": csv_text(list(_differences(found))),
        "savings.csv": csv_text(list(_savings(found))),
        "boxes.csv": csv_text(list(training_boxes(found.sweep))),
    }


def _scores(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for element in sweep.elements:
        own: dict[str, Any] = {"element": element.run.name, "arm": str(element.arm), "n": element.recipe.n}
        own |= {"draw": element.recipe.draw, "seed": element.recipe.train.seed}
        own |= {f"trained_{what}": element.trained(what) for what in ("boxes", "objects")}
        for scored in element.scored:
            about = {"truth": scored.truth.name, "origin": scored.truth.origin, "same": scored.same}
            yield (
                own
                | dict(zip(PLACE, scored.place, strict=True))
                | about
                | {**scored.values, **scored.columns}
            )


def spreads(sweep: Sweep, truth: Truth, cell: Cell, same: str = "") -> dict[str, Spread]:
    """Mean ± sd of each score over the test boxes and draws of a cell."""
    rows = [
        scored.values
        for element in sweep.elements
        if element.cell == cell
        for scored in element.scored
        if scored.truth == truth and same in ("", scored.same)
    ]
    return {score: spread([row[score] for row in rows]) for score in SCORES if rows}


def _summary(found: Results) -> Iterator[dict[str, Any]]:
    sweep = found.sweep
    for (truth, same), one in found.designs.items():
        for cell in sweep.cells:
            for score, each in spreads(sweep, truth, cell, same).items():
                yield {
                    "truth": truth.name, "origin": truth.origin, "same": same, "arm": str(cell.arm),
                    "n": cell.n, "objects": sweep.trained(cell.n, "objects"), "score": score,
                    "mean": each.mean, "sd": each.sd, "scored": each.images, "undefined": each.undefined,
                    **(_bounds("", one.mean(cell)) if score == sweep.score and cell in one.columns else {}),
                }  # fmt: skip


def _differences(found: Results) -> Iterator[dict[str, Any]]:
    for (truth, same), each in found.differences.items():
        for one in each:
            yield {
                "truth": truth.name, "origin": truth.origin, "same": same, "arm": str(one.arm),
                "against": str(one.base), "n": one.n, "score": found.sweep.score, "pairs": one.pairs,
                "difference": one.value.value, **_bounds("difference_", one.value),
                "gain": one.gain.value, **_bounds("gain_", one.gain), "verdict": one.verdict,
            }  # fmt: skip


def _bounds(name: str, found: Interval) -> dict[str, float]:
    return {f"{name}low": found.low, f"{name}high": found.high}


def _savings(found: Results) -> Iterator[dict[str, Any]]:
    for truth, each in found.savings.items():
        for one in each:
            factor, likely = one.factor, one.likely
            yield {
                "truth": truth.name, "origin": truth.origin, "arm": str(one.arm), "against": str(one.base),
                "n": one.n, "objects": one.objects, "score": one.score,
                "least": factor.least if factor else np.nan, "most": factor.most if factor else np.nan,
                "low": likely.least if likely else np.nan, "high": likely.most if likely else np.nan,
            }  # fmt: skip


def training_boxes(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The boxes of each number, draw and fold, once: all arms learn from the same."""
    seen: dict[tuple[Any, ...], None] = {}
    for element in sorted(sweep.elements, key=lambda e: (rank(e.recipe.n), e.chance)):
        recipe = element.recipe
        for box in element.boxes:
            known = {
                name: box.get(name, "") for name in ("plate", "well", "field", "box", "origin", "objects")
            }
            key = (recipe.n, recipe.draw, "" if recipe.fold is None else recipe.fold, *known.values())
            if key not in seen:
                seen[key] = None
                yield dict(zip(("n", "draw", "fold"), key[:3], strict=True)) | known
