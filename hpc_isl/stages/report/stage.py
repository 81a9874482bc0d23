"""The report of a fine-tuning sweep: one page that works offline, with its figures and tables beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.files import write_atomic
from hpc_isl.run import Run
from hpc_isl.stages.report.page import written
from hpc_isl.stages.report.panels import panels
from hpc_isl.stages.report.pictures import Picture, draw_curves, draw_differences, draw_scores
from hpc_isl.stages.report.sentences import headline, name_of_score
from hpc_isl.stages.report.sweep_results import Cell, Sweep, read_sweep
from hpc_isl.stages.report.tables import Results, results, spreads, tables

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """Where the page lies, and what it says first."""

    page: Path
    headline: tuple[str, ...]


def report(run: Run) -> Report:
    """Reads what the sweep has so far and writes `report/` in its folder; the page appears last.

    Raises:
        UserError: the run is no sweep of fine-tuning, or none of its elements is done.
    """
    found = results(read_sweep(run))
    truth = found.truth
    said = headline(
        found.sweep, truth, found.designs[truth, ""], found.differences[truth, ""], found.savings[truth]
    )
    pictures, (shown, problems) = list(_pictures(found)), panels(found.sweep)
    folder = _folder(run)
    for one in (*pictures, *shown):
        write_atomic(folder / one.name, one.png, durable=False)
    for name, text in tables(found).items():
        write_atomic(folder / name, text, durable=False)
    page = folder / PAGE
    write_atomic(page, written(found, said, pictures, (shown, problems)))
    _forget(folder, {one.name for one in (*pictures, *shown)})
    return Report(page, tuple(said))


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
    """Whether a report was written after the last element ended that it could speak of."""
    page, done = _folder(run) / PAGE, [one.done / f"{one.stage}.json" for one in run.elements()]
    ended = max((path.stat().st_mtime_ns for path in done if path.exists()), default=0)
    return page.exists() and page.stat().st_mtime_ns >= ended


def mean_scores(run: Run) -> Means:
    """Returns the main score of a sweep, over all test boxes and draws.

    Raises:
        UserError: as `report`.
    """
    sweep, curves = read_sweep(run), dict[str, dict[int, float]]()
    for cell in sweep.cells:
        mean = spreads(sweep, sweep.truths[0], cell)[sweep.score].mean
        curves.setdefault(str(cell.arm), {})[_boxes(sweep, cell)] = mean
    return Means(sweep.score, name_of_score(sweep.score), str(sweep.truths[0]), curves)


def _boxes(sweep: Sweep, cell: Cell) -> int:
    return 0 if cell.n == 0 else round(sweep.trained(cell.n, "boxes"))


def _folder(run: Run) -> Path:
    return run.folder / "report"


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
