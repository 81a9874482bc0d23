"""A sweep as a whole in MLflow: its main score against annotations, arm by arm, and its report."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_isl.run import Run
from hpc_isl.stages.stage_table import STAGES


@dataclass(frozen=True)
class Summary:
    """The scores of a sweep.

    Attributes:
        curves: name of a metric -> number of annotation boxes -> mean score.
        note: the same as a table in Markdown.
    """

    curves: Mapping[str, Mapping[int, float]]
    note: str


def results_of(run: Run) -> str | None:
    """Returns what tells the results of a sweep from earlier ones; None: nothing tells of it as a whole."""
    members = [one for one in run.elements() if one.array == run]
    done = {one.name: one.summary() for one in members if one.stage in STAGES and STAGES[one.stage].report}
    times = [f"{name} {summary.get('time')}" for name, summary in sorted(done.items()) if summary]
    return hashlib.sha256("\n".join(times).encode()).hexdigest()[:16] if times else None


def summarise(run: Run, again: bool) -> Summary:
    """Returns the scores, and writes the report where the one in the folder lacks results.

    Args:
        again: earlier scores were forwarded. MLflow overwrites no metric, so these are others.

    Raises:
        UserError: no element has a score.
    """
    report: Any = importlib.import_module(str(STAGES[run.elements()[0].stage].report))
    means = report.mean_scores(run)
    if not report.is_current(run):
        report.report(run)
    done = sum(one.summary() is not None for one in run.elements())
    section = means.score + (f" of {done} elements" if again else "")
    curves = {f"{section}/{arm.replace('/', '_')}": curve for arm, curve in means.curves.items()}
    # A row for each arm, a column for each number of annotation boxes.
    counts = sorted({boxes for curve in means.curves.values() for boxes in curve})
    rows = [[f"mean {means.title}", *(f"N = {boxes}" for boxes in counts)], ["---"] * (len(counts) + 1)]
    rows += [
        [arm, *(f"{curve[boxes]:.3f}" if boxes in curve else "" for boxes in counts)]
        for arm, curve in means.curves.items()
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    note = (
        f"{table}\n\nAgainst {means.truth}, over all test boxes and draws; N: annotation boxes. As charts "
        f"over N (there: step): Model metrics, {section}. With intervals and pictures: Artifacts, "
        "report/report.html.\n"
    )
    return Summary(curves, note)
