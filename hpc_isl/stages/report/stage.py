"""The report of a fine-tuning sweep: one page that works offline, with its figures and tables beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_isl.files import write_atomic
from hpc_isl.objects.bootstrap import Interval
from hpc_isl.run import Run
from hpc_isl.stages.report.example_panels import panels
from hpc_isl.stages.report.left_out import draw_heights
from hpc_isl.stages.report.page import headline, page_of
from hpc_isl.stages.report.provenance import training_boxes
from hpc_isl.stages.report.score_figures import (
    Picture,
    draw_curves,
    draw_differences,
    draw_scores,
    name_of_score,
)
from hpc_isl.stages.report.statistics import Results, results, spreads
from hpc_isl.stages.report.sweep import Truth, read_sweep

PAGE = "report.html"
Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The path of the page, and its headline."""

    page: Path
    headline: tuple[str, ...]


def report(run: Run) -> Report:
    """Reads the results of a sweep so far and writes `report/` in its folder; the page appears last.

    Raises:
        UserError: the run is no sweep of fine-tuning, or none of its elements is done.
    """
    figures = results(read_sweep(run))
    lines = headline(figures)
    pictures, (panel_pictures, problems) = list(_pictures(figures)), panels(figures.sweep)
    folder = _folder(run)
    for picture in (*pictures, *panel_pictures):
        # Not durably: a report can be made again from what the elements wrote.
        write_atomic(folder / picture.name, picture.png, durable=False)
    for name, text in tables(figures).items():
        write_atomic(folder / name, text, durable=False)
    page = folder / PAGE
    # Last, because a page says that all files beside it are complete.
    write_atomic(page, page_of(figures, lines, pictures, panel_pictures, problems))
    names = {picture.name for picture in (*pictures, *panel_pictures)}
    for pattern in ("panel-*.png", "curves-*.png", "differences.png", "heights.png"):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink(missing_ok=True)  # of an earlier report
    done, total = figures.sweep.done, len(figures.sweep.names)
    if done < total:
        lines = [*lines, f"{done} of {total} elements are done, and these are in the report."]
    return Report(page, tuple(lines))


def _pictures(figures: Results) -> Iterator[Picture]:
    yield draw_scores(figures, figures.sweep.fewest)
    for number, truth in enumerate(figures.sweep.truths if figures.sweep.counts else ()):
        yield draw_curves(figures, truth, f"curves-{number}.png")
    if differences := draw_differences(figures):
        yield differences
    if heights := draw_heights(figures.sweep):
        yield heights


@dataclass(frozen=True)
class Means:
    """Mean scores of a sweep.

    Attributes:
        score, title: its key and its name for people.
        truth: the labels that score, and who made them.
        curves: arm -> number of annotation boxes -> mean.
    """

    score: str
    title: str
    truth: str
    curves: Mapping[str, Mapping[int, float]]


def is_current(run: Run) -> bool:
    """Returns whether a report was written after the last element ended that it could include."""
    page, files = _folder(run) / PAGE, [element.done / f"{element.stage}.json" for element in run.elements()]
    last_end = max((path.stat().st_mtime_ns for path in files if path.exists()), default=0)
    return page.exists() and page.stat().st_mtime_ns >= last_end


def mean_scores(run: Run) -> Means:
    """Returns the main score of a sweep, over all test boxes and draws.

    Raises:
        UserError: as `report` does.
    """
    sweep, curves = read_sweep(run), dict[str, dict[int, float]]()
    for cell in sweep.cells:
        # `all` stands for as many boxes as its draws have on average.
        boxes = 0 if cell.n == 0 else round(sweep.trained(cell.n, "boxes", cell.arm))
        if scores := spreads(sweep, sweep.truths[0], cell):  # test boxes may have other labels alone
            curves.setdefault(str(cell.arm), {})[boxes] = scores[sweep.score].mean
    return Means(sweep.score, name_of_score(sweep.score), str(sweep.truths[0]), curves)


def _folder(run: Run) -> Path:
    return run.folder / "report"


# ---------------------------------------------------------------- tables


def tables(results: Results) -> dict[str, str]:
    """Returns file name -> CSV, for people who compute further; the page shows the same figures."""
    rows: dict[str, pd.DataFrame | Iterable[Row]] = {
        "scores_all.csv": results.sweep.scores, "summary.csv": _summary(results),
        "differences.csv": _differences(results), "savings.csv": _savings(results),
        "boxes.csv": training_boxes(results.sweep),
    }  # fmt: skip
    return {
        name: pd.DataFrame(table).to_csv(index=False, lineterminator="\n", float_format="%.6g")
        for name, table in rows.items()
    }


def _about(truth: Truth) -> Row:
    return {"truth": truth.name, "origin": truth.origin}


def _bounds(name: str, value: Interval) -> Row:
    return {f"{name}low": value.low, f"{name}high": value.high}


def _summary(results: Results) -> Iterator[Row]:
    sweep = results.sweep
    for (truth, facet), design in results.designs.items():
        for cell in sweep.cells:
            for score, spread in spreads(sweep, truth, cell, facet).items():
                is_main = score == sweep.score and cell in design.columns
                yield {
                    **_about(truth), "same": facet, "arm": str(cell.arm), "n": cell.n,
                    "objects": sweep.trained(cell.n, "objects", cell.arm), "score": score,
                    "mean": spread.mean, "sd": spread.sd, "scored": spread.images,
                    "undefined": spread.undefined,
                    **(_bounds("", design.mean(cell)) if is_main else {}),
                }  # fmt: skip


def _differences(results: Results) -> Iterator[Row]:
    for (truth, facet), differences in results.differences.items():
        for delta in differences:
            yield {
                **_about(truth), "same": facet, "arm": str(delta.arm), "against": str(delta.base),
                "n": delta.n, "score": results.sweep.score, "pairs": delta.pairs,
                "difference": delta.value.value,
                **_bounds("difference_", delta.value), "gain": delta.gain.value,
                **_bounds("gain_", delta.gain), "verdict": delta.verdict,
            }  # fmt: skip


def _savings(results: Results) -> Iterator[Row]:
    for truth, savings in results.savings.items():
        for saving in savings:
            factor, likely = saving.factor, saving.interval
            yield {
                **_about(truth), "arm": str(saving.arm), "against": str(saving.base), "n": saving.n,
                "objects": saving.objects, "score": saving.score,
                "least": factor.least if factor else np.nan, "most": factor.most if factor else np.nan,
                "low": likely.least if likely else np.nan, "high": likely.most if likely else np.nan,
            }  # fmt: skip
