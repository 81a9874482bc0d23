"""Figures of a report: scores of each arm, and how they rise with annotations."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_isl.seeds import stream
from hpc_isl.stages.report.statistics import Design, Difference, Results
from hpc_isl.stages.report.sweep import Arm, Cell, N, Sweep, Truth
from hpc_isl.stages.shared.pictures import DPI, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.7
PALE = "#777777"
# Okabe and Ito: told apart by all kinds of colour vision, and by their lightness within a pair of arms.
COLORS = {
    "random": "#e69f00", "random+isl": "#d55e00", "imagenet": "#56b4e9", "imagenet+isl": "#0072b2",
    "drafted": "#009e73",
}  # fmt: skip
OTHER = "#cc79a7"
MARKS = "os^Dv<>p"
FACETS = {"": "all test boxes", "within": "test boxes within", "across": "test boxes across"}
NAMES = {"iou": "IoU", "count_error": "count error"}
SPELLED_OUT = {"iou": "intersection over union (IoU)", "mAP": "mean average precision (mAP)"}


@dataclass(frozen=True)
class Picture:
    """A figure as PNG.

    Attributes:
        alt: what it says, for readers who do not see it.
        width: in CSS pixels, so that a point of its letters is a point.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    width: int


def name_of_score(score: str) -> str:
    return NAMES.get(score, score)


def spelled_out(score: str) -> str:
    """Returns the name of a score where it is read for the first time."""
    return SPELLED_OUT.get(score, name_of_score(score))


def to_picture(figure: Figure, name: str, alt: str, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    # An inch of CSS has 96 pixels, whatever the screen.
    return Picture(name, buffer.getvalue(), alt, caption, round(figure.get_figwidth() * 96))


def color(arm: Arm) -> str:
    return COLORS.get(arm.name, OTHER)


def facet_title(sweep: Sweep, facet: str) -> str:
    """Returns `across: another cell_line`, than that of the training boxes."""
    if not facet or not sweep.first.within:
        return FACETS[facet]
    return f"{facet}: {'the same' if facet == 'within' else 'another'} {sweep.first.within}"


# ---------------------------------------------------------------- each arm at one number of boxes


def draw_scores(results: Results, n: N) -> Picture:
    """Draws every test box and draw as a point, mean and interval beside them; arms from top to bottom."""
    from matplotlib.figure import Figure

    sweep, columns = results.sweep, results.designs[results.truth, ""].columns
    # Those without any annotation come last, unless the figure is about them.
    cells = [cell for cell in sweep.cells if cell in columns and cell.n in (0, n)]
    cells.sort(key=lambda cell: cell.n == 0 != n)
    figure = Figure(figsize=(WIDTH, 1.2 + 0.62 * len(cells)), layout="constrained", dpi=DPI)
    grid = figure.subplots(1, len(sweep.facets), sharex=True, sharey=True, squeeze=False)[0]
    for axis, facet in zip(grid, sweep.facets, strict=True):
        for row, cell in enumerate(cells):
            _draw_cell(axis, results.designs[results.truth, facet], cell, row)
        axis.set_title(facet_title(sweep, facet), fontsize=10, color=INK, loc="left")
        axis.set_xlabel(f"{spelled_out(sweep.score)}, {results.truth}", fontsize=10)
        plain(axis, "x")
    names = [str(cell.arm) if cell.n == n else f"{cell.arm}, N = {cell.n}" for cell in cells]
    grid[0].set_yticks(range(len(cells)), names, fontsize=10)
    grid[0].set_ylim(len(cells) - 0.45, -0.55)
    means = "; ".join(
        f"{cell.arm} {results.designs[results.truth, ''].mean(cell).value:.2f}" for cell in cells
    )
    caption = "Each point: one test box in one draw. Black: mean over points and its 95 % interval."
    if any(cell.n == 0 for cell in cells):
        caption += " N = 0 learnt from no annotation: the predicted stain, thresholded."
    return to_picture(figure, "scores.png", f"Scores of each arm at N = {n}. Means: {means}", caption)


def _draw_cell(axis: Axes, design: Design, cell: Cell, row: int) -> None:
    if cell not in design.columns:
        return
    values = np.array(list(design.columns[cell].values()))
    # Seeded, so that the same scores give the same picture.
    spread = row - 0.12 + stream(0, "jitter", row).uniform(-0.22, 0.1, len(values))
    axis.plot(
        values, spread, "o", color=color(cell.arm), ms=4, alpha=min(0.8, 25 / len(values) + 0.25), mew=0
    )
    mean = design.mean(cell)
    if not math.isnan(mean.low):
        axis.plot([mean.low, mean.high], [row + 0.22] * 2, color="black", lw=2.2, solid_capstyle="butt")
    axis.plot(mean.value, row + 0.22, "D", color="black", ms=6)


# ---------------------------------------------------------------- over the number of annotations


def draw_curves(results: Results, truth: Truth, name: str) -> Picture:
    """Draws the mean score with its interval over boxes, and over annotated objects; a row per facet."""
    from matplotlib.figure import Figure

    sweep = results.sweep
    figure = Figure(figsize=(WIDTH, 1.0 + 3.6 * len(sweep.facets)), layout="constrained", dpi=DPI)
    grid = figure.subplots(len(sweep.facets), 2, sharey=True, squeeze=False)
    for axes, facet in zip(grid, sweep.facets, strict=True):
        for axis, over in zip(axes, ("boxes", "objects"), strict=True):
            _draw_arms(axis, sweep, results.designs[truth, facet], over)
        axes[0].set_title(facet_title(sweep, facet), fontsize=10, color=INK, loc="left")
    for axis in grid[:, 0]:
        axis.set_ylabel(f"{spelled_out(sweep.score)},\nmean against {truth}", fontsize=10)
    lines, labels = grid[0, 0].get_legend_handles_labels()
    columns = 3 if max(map(len, labels), default=0) < 24 else 2
    figure.legend(lines, labels, loc="outside lower center", ncols=columns, fontsize=10, frameon=False)
    caption = (
        "Mean score over test boxes and draws; bands: 95 % intervals. Left over the number of annotation "
        "boxes (evenly spaced), right over the objects in them (logarithmic)."
    )
    if any(cell.n == 0 for cell in results.designs[truth, ""].columns):
        caption += " Dotted: no annotation at all."
    levels = "; ".join(f"{cell.arm} at N = {cell.n}: {results.designs[truth, ''].mean(cell).value:.2f}"
                       for cell in results.designs[truth, ""].columns)  # fmt: skip
    return to_picture(figure, name, f"Mean score against annotations. {levels}", caption)


def _draw_arms(axis: Axes, sweep: Sweep, design: Design, over: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    places = {n: float(index) for index, n in enumerate(sweep.counts)}
    cells = [cell for cell in sweep.cells if cell.n in places]
    positions = {cell: places[cell.n] for cell in cells}
    if over == "objects":
        positions = {cell: sweep.trained(cell.n, "objects", cell.arm) for cell in cells}
        axis.set_xscale("log")
    for arm in sweep.arms:
        curve = [Cell(arm, n) for n in sweep.counts if Cell(arm, n) in design.columns]
        if curve:
            _draw_curve(axis, sweep, design, curve, [positions[cell] for cell in curve])
    for arm in [arm for arm in sweep.arms if Cell(arm, 0) in design.columns]:
        level = design.mean(Cell(arm, 0)).value
        axis.axhline(level, color=color(arm), lw=1.8, ls=":", label=f"{arm}, N = 0")
    if over == "boxes":
        axis.set_xticks(list(places.values()), [_tick(sweep, n) for n in places], fontsize=10)
        axis.set_xlim(-0.4, len(places) - 0.6)
    else:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # Between 1, 2, 5 and 10 there is no room for further ticks.
        axis.xaxis.set_minor_locator(NullLocator())
        # A logarithmic axis has no place for boxes without objects.
        positive_positions = [position for position in positions.values() if position > 0]
        if positive_positions:
            axis.set_xlim(min(positive_positions) / 1.25, max(positive_positions) * 1.25)
    axis.set_xlabel("annotation boxes, N" if over == "boxes" else "annotated objects", fontsize=10)
    plain(axis, "both")


def _draw_curve(
    axis: Axes, sweep: Sweep, design: Design, curve: Sequence[Cell], positions: Sequence[float]
) -> None:
    arm, means = curve[0].arm, [design.mean(cell) for cell in curve]
    # Colour and line tell ISL and initialisation; the mark tells what else an arm varies.
    variant = list(dict.fromkeys(sweep_arm.variant for sweep_arm in sweep.arms)).index(arm.variant)
    isl = arm.name.endswith("+isl")
    axis.plot(
        positions, [mean.value for mean in means], MARKS[variant % len(MARKS)], color=color(arm), lw=2, ms=7,
        ls="-" if isl else "--", mfc=color(arm) if isl else "white", mew=1.6, label=str(arm),
        clip_on=False, zorder=3,
    )  # fmt: skip
    low, high = [mean.low for mean in means], [mean.high for mean in means]
    axis.fill_between(positions, low, high, color=color(arm), alpha=0.15, lw=0)


def _tick(sweep: Sweep, n: N) -> str:
    return f"all ({sweep.trained(n, 'boxes'):g})" if n == "all" else str(n)


def draw_differences(results: Results) -> Picture | None:
    """Draws the difference of each pair of arms over the number of boxes; open where its interval holds 0."""
    from matplotlib.figure import Figure

    differences = results.differences[results.truth, ""]
    pairs = list(dict.fromkeys((delta.arm, delta.base) for delta in differences))
    if not pairs:
        return None
    # Four pairs are two arms with two rivals each, as a rule: they stand one above the other.
    columns = 2 if len(pairs) in (2, 4) else min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(WIDTH * min(1, columns / 2.6), 0.3 + 2.9 * rows), layout="constrained", dpi=DPI)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis in grid[len(pairs) :]:
        axis.set_axis_off()
    for axis, pair in zip(grid, pairs, strict=False):
        _draw_pair(axis, results.sweep, [delta for delta in differences if (delta.arm, delta.base) == pair])
    for axis in grid[::columns]:
        axis.set_ylabel(f"difference of\n{spelled_out(results.sweep.score)}", fontsize=10)
    texts = "; ".join(
        f"{o.arm} less {o.base} at N = {o.n}: {o.value.value:+.2f}, {o.verdict}" for o in differences
    )
    caption = (
        "Difference on the same test boxes and draws with its 95 % interval. Above 0: the arm with ISL "
        "scores higher. Open: the interval includes 0, or there is none."
    )
    return to_picture(figure, "differences.png", f"Differences between arms. {texts}", caption)


def _draw_pair(axis: Axes, sweep: Sweep, deltas: Sequence[Difference]) -> None:
    axis.axhline(0, color=PALE, lw=1)
    for position, delta in enumerate(deltas):
        shade = color(delta.arm)
        if not math.isnan(delta.value.low):
            axis.plot([position] * 2, [delta.value.low, delta.value.high], color=shade, lw=2.2)
        is_clear = delta.verdict in ("better", "worse")
        axis.plot(
            position, delta.value.value, "o", color=shade, ms=8, mfc=shade if is_clear else "white", mew=1.8
        )
    axis.set_xticks(range(len(deltas)), [_tick(sweep, delta.n) for delta in deltas], fontsize=10)
    axis.set_xlim(-0.6, len(deltas) - 0.4)
    axis.set_title(f"{deltas[0].arm}\nless {deltas[0].base}", fontsize=10, color=INK, loc="left")
    axis.set_xlabel("annotation boxes, N", fontsize=10)
    plain(axis, "y")


def plain(axis: Axes, grid: str) -> None:
    """Leaves out the frame and draws a light grid along `grid`."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10)
    axis.grid(axis=grid, alpha=0.25)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
