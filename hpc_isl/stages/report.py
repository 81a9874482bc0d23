"""The report of a fine-tuning sweep: one page that works offline, with its figures and tables beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.files import write_atomic
from hpc_isl.run import Run
from hpc_isl.stages.reporting.page import written
from hpc_isl.stages.reporting.panels import panels
from hpc_isl.stages.reporting.pictures import Picture, draw_curves, draw_differences, draw_scores
from hpc_isl.stages.reporting.sweep import read_sweep
from hpc_isl.stages.reporting.tables import Results, results, tables
from hpc_isl.stages.reporting.words import headline


@dataclass(frozen=True)
class Report:
    """Where the page lies, and what it says first."""

    page: Path
    headline: tuple[str, ...]


def report(run: Run) -> Report:
    """Reads what the sweep has so far and writes `report/` in its folder; the page appears last.

    Raises:
        Mistake: the run is no sweep of fine-tuning, or none of its elements is done.
    """
    found = results(read_sweep(run))
    truth = found.truth
    said = headline(
        found.sweep, truth, found.designs[truth, ""], found.differences[truth, ""], found.savings[truth]
    )
    pictures, (shown, problems) = list(_pictures(found)), panels(found.sweep)
    folder = run.folder / "report"
    for one in (*pictures, *shown):
        write_atomic(folder / one.name, one.png, durable=False)
    for name, text in tables(found).items():
        write_atomic(folder / name, text, durable=False)
    page = folder / "report.html"
    write_atomic(page, written(found, said, pictures, (shown, problems)))
    _forget(folder, {one.name for one in (*pictures, *shown)})
    return Report(page, tuple(said))


def _pictures(found: Results) -> Iterator[Picture]:
    yield draw_scores(found, found.sweep.fewest)
    for place, truth in enumerate(found.sweep.truths if found.sweep.counts else ()):
        yield draw_curves(found, truth, f"curves-{place}.png")
    differences = draw_differences(found)
    if differences:
        yield differences


def _forget(folder: Path, names: set[str]) -> None:
    """Figures of an earlier report that this one does not have."""
    for pattern in ("panel-*.png", "curves-*.png", "differences.png"):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink(missing_ok=True)
