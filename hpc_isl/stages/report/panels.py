"""Pictures of test boxes: what the networks saw, the stain, the truth, and each arm's objects beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.objects.matching import match
from hpc_isl.stages.report.example_boxes import (
    BoxLabels,
    BoxPrediction,
    ExampleBox,
    Labels,
    check,
    choose_example_boxes,
    predict_box,
    view_for,
)
from hpc_isl.stages.report.pictures import DPI, WIDTH, Picture, finished
from hpc_isl.stages.report.sweep_results import Cell, Sweep, rank
from hpc_isl.stages.shared.pictures import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes", int], None]
"""Draws a view, with a title of so many letters in a line."""
MOST, WIDEST = 4, 5
MATCHED, EXTRA, MISSED, TRUE = "#56b4e9", "#d55e00", "#f0e442", "#c2188b"
MEANING = {
    MATCHED: "matched: IoU ≥ 0.5", EXTRA: "false positive: predicted, no such object",
    MISSED: "false negative: an object that was missed",
}  # fmt: skip


def panels(sweep: Sweep) -> tuple[list[Picture], list[str]]:
    """One picture per spot, and why others could not be drawn."""
    found: list[Picture] = []
    problems: list[str] = []
    spots = choose_example_boxes(sweep)
    for spot, said in list(spots.items())[:MOST]:
        try:
            seen = predict_box(spot, view_for(sweep))
            check(seen, said)
        except (UserError, OSError, KeyError, ValueError, IndexError) as error:
            problems.append(f"{spot}: not drawn. {error}")
            continue
        found.append(_draw(spot, seen, said, f"panel-{len(found)}.png"))
    if not spots:
        problems.append("No element kept a test box to show.")
    return found, problems


def _draw(spot: ExampleBox, seen: BoxPrediction, said: Mapping[Cell, BoxLabels], name: str) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    plate, rows = _plate_views(seen, said), _rows(said)
    columns = max(4, *map(len, rows))
    height, width = seen.truth.shape
    edge = WIDTH / columns
    letters = int(edge * 12.5)
    titles = 2 + max(len(str(cell.arm)) + 10 > letters for cell in said)
    tall = (edge - 0.15) * height / width + 0.2 * titles + 0.1
    figure = Figure(figsize=(WIDTH, tall * (1 + len(rows)) + 0.35), layout="constrained", dpi=DPI)
    grid = figure.subplots(1 + len(rows), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    counts = []
    for axis, draw in zip(grid[0], plate, strict=False):
        draw(axis, letters)
    for axes, cells in zip(grid[1:], rows, strict=True):
        for axis, cell in zip(axes, cells, strict=False):
            counts.append(_draw_said(axis, seen, cell, said[cell].labels, letters))
    patches = [Patch(color=shade, label=text) for shade, text in MEANING.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    caption = f"{spot}; truth {spot.truth!r}. TP matched, FP false positive, FN false negative. First draw."
    return finished(figure, name, f"Test box {spot}. {'; '.join(counts)}", caption)


def _rows(said: Mapping[Cell, BoxLabels]) -> list[list[Cell]]:
    """Cells by number of boxes; those without any annotation end the first row."""
    cells = sorted(said, key=lambda one: one.order)
    numbers = sorted({cell.n for cell in cells if cell.n != 0}, key=rank)
    rows = [[cell for cell in cells if cell.n == n] for n in numbers] or [[]]
    rows[0] += [cell for cell in cells if cell.n == 0]
    return [row[start : start + WIDEST] for row in rows for start in range(0, len(row), WIDEST)]


def _plate_views(seen: BoxPrediction, said: Mapping[Cell, BoxLabels]) -> list[Draw]:
    """The first row: what is on the plate, and the stain that an ISL model sees there."""
    limits = np.percentile(seen.source, [0.5, 99.5])
    views = [_view_of(seen.source, limits, f"input: {seen.source_name}\n{seen.size}")]
    bright = None if seen.stain is None else np.percentile(seen.stain, [1, 99.8])
    if seen.stain is not None:
        views.append(_view_of(seen.stain, bright, f"true stain\n{seen.stain_name}", "magma"))
    stains = [(cell, one.stain) for cell, one in said.items() if one.stain is not None]
    if stains:
        cell, stain = min(stains, key=lambda pair: pair[0].order[-1])
        pixels = stain.astype(np.float32)
        scale = np.percentile(pixels, [1, 99.8]) if bright is None else bright
        views.append(_view_of(pixels, scale, f"predicted stain\n{cell.arm}", "magma"))
    title = f"truth: {seen.truth_name}\n{_count(seen.truth)} objects"
    rims = outlined(seen.truth, seen.truth > 0, TRUE, 0.0)
    return [*views, _view_of(seen.source, limits, title, rims=rims)]


def _view_of(
    plane: NDArray[Any], limits: Any, title: str, colors: str = "gray", rims: NDArray[Any] | None = None
) -> Draw:
    def draw(axis: Axes, letters: int) -> None:
        low, high = float(limits[0]), float(limits[1])
        axis.imshow(
            plane, cmap=colors, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest"
        )
        lines = [textwrap.fill(line, letters) for line in title.split("\n")]
        axis.set_title("\n".join(lines), fontsize=9, color=INK, loc="left")
        if rims is not None:
            axis.imshow(rims, interpolation="nearest")

    return draw


def _count(labels: Labels) -> int:
    return len(np.unique(labels[labels > 0]))


def _draw_said(axis: Axes, seen: BoxPrediction, cell: Cell, labels: Labels, letters: int) -> str:
    """Predicted objects by what they met; on top of them the true ones that no prediction met."""
    found = match(labels, seen.truth)
    counts = f"TP {found.hits()}, FP {found.predictions - found.hits()}, FN {found.truths - found.hits()}"
    limits = np.percentile(seen.source, [0.5, 99.5])
    _view_of(seen.source, limits, f"{cell.arm}, N = {cell.n}\n{counts}")(axis, letters)
    met = np.isin(labels, found.prediction) & (labels > 0)
    missed = ~np.isin(seen.truth, found.truth) & (seen.truth > 0)
    for which, inside, shade in (
        (labels, met, MATCHED), (labels, (labels > 0) & ~met, EXTRA), (seen.truth, missed, MISSED),
    ):  # fmt: skip
        axis.imshow(outlined(which, inside, shade, 0.35), interpolation="nearest")
    return f"{cell.arm} at N = {cell.n}: {counts}"


def outlined(labels: Labels, inside: NDArray[Any], shade: str, fill: float) -> NDArray[np.float32]:
    """(y, x, 4) in 0 to 1: objects filled thinly, their rims in full; the rim is the object's own pixels."""
    from matplotlib.colors import to_rgb

    rim = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        edges = np.diff(labels.astype(np.int64), axis=axis) != 0
        before, after = [(0, 1), (0, 0)], [(1, 0), (0, 0)]
        rim |= np.pad(edges, before if axis == 0 else before[::-1])
        rim |= np.pad(edges, after if axis == 0 else after[::-1])
    painted = np.zeros((*labels.shape, 4), np.float32)
    painted[..., :3] = to_rgb(shade)
    painted[..., 3] = np.where(inside, np.where(rim, 1.0, fill), 0.0)
    return painted
