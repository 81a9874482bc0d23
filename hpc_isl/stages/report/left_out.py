"""The evidence of boxes left out in turn: heights that part cells, starts that were kept, confidence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hpc_isl.files import read_json
from hpc_isl.stages.report.score_figures import (
    MARKS,
    WIDTH,
    Picture,
    color,
    name_of_score,
    plain,
    to_picture,
)
from hpc_isl.stages.report.sweep import Cell, Sweep
from hpc_isl.stages.shared.following import LEFT_OUT
from hpc_isl.stages.shared.pictures import DPI, Html, table
from hpc_isl.stages.shared.pictures import picture as drawn

PICTURE = "heights.png"


def _evidence(sweep: Sweep, cell: Cell, kind: str) -> list[dict[str, Any]]:
    """Returns the evidence of one kind (fit, or confidence) in each draw that has it."""
    runs = [element.run for element in sweep.elements if element.cell == cell]
    evidence = [read_json(run.folder / LEFT_OUT) or {} for run in runs]
    return [content[kind] for content in evidence if content.get(kind)]


def draw_heights(sweep: Sweep) -> Picture | None:
    """Draws the score of pieces left out over the height h, for each arm at its most boxes; None: no fit."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    cell_by_arm = {arm: max((cell for cell in sweep.cells if cell.arm == arm), key=lambda cell: cell.order)
            for arm in sweep.arms}  # fmt: skip
    fits_by_arm = {arm: fits for arm, cell in cell_by_arm.items() if (fits := _evidence(sweep, cell, "fit"))}
    if not fits_by_arm:
        return None
    figure = Figure(figsize=(0.6 * WIDTH, 3.6), layout="constrained", dpi=DPI)
    axis, texts = figure.subplots(), []
    for number, (arm, fits) in enumerate(fits_by_arm.items()):
        curves = np.array([fit["mAP_by_h"] for fit in fits], float)
        heights, scores = curves[0, :, 0], curves[:, :, 1].mean(axis=0)
        axis.plot(heights, scores, color=color(arm), lw=2, label=str(arm))
        chosen = [float(fit["h_maxima"]) for fit in fits]
        axis.plot(
            chosen, np.interp(chosen, heights, scores), MARKS[number % len(MARKS)], color=color(arm), ms=8
        )
        texts.append(f"{arm}: h {', '.join(f'{h:g}' for h in sorted(set(chosen)))}")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("height h of peaks, in units of the map", fontsize=10)
    axis.set_ylabel("mAP of boxes left out", fontsize=10)
    axis.legend(fontsize=9, frameon=False)
    plain(axis, "both")
    caption = (
        "Mean over draws, at the most annotation boxes, before threshold and smallest area are fitted. "
        "Marks: the heights that stand, which are the nearest to the usual one of all within one standard "
        "error of the best."
    )
    return to_picture(figure, PICTURE, f"Score of boxes left out against h. {'; '.join(texts)}", caption)


def section(sweep: Sweep, picture: Picture | None) -> Iterator[Html]:
    """Yields the picture of heights, and the table of arms whose start segments already."""
    if picture is not None:
        yield drawn(picture.png, picture.alt, picture.caption, picture.width)
    rows = [row for cell in sweep.cells if (row := _start_row(sweep, cell))]
    if rows:
        score = name_of_score(sweep.score)
        header = ["arm", "N", f"{score}, unguarded", f"{score}, guarded", "draws that kept the start"]
        yield table(
            header, rows, "Arms that segment before any training. Guarded: the start is kept unless "
            "training is better on boxes left out, by more than one standard error.", range(1, 5),
        )  # fmt: skip
    rows = [row for cell in sweep.cells if (row := _confidence_row(sweep, cell))]
    if rows:
        header = ["arm", "N", "objects", "found", "AUROC", "by area alone", "Brier score", "by area alone"]
        yield table(
            header, rows, "Confidence of objects, means over draws: how well a probability learnt on half of "
            "the boxes left out tells the objects of the other half that overlap a true one by half "
            "(IoU 0.5) from others. AUROC: probability that of two such objects the right one is trusted "
            "more, 0.5 by chance. Brier score: mean squared error of the probability, 0 at best. Empty: too "
            "few objects, so that there is a score but no probability.", range(1, 8),
        )  # fmt: skip


def _confidence_row(sweep: Sweep, cell: Cell) -> list[object] | None:
    draws = [figures for figures in _evidence(sweep, cell, "confidence") if figures.get("objects")]
    if not draws:
        return None

    def mean(name: str) -> str:
        values = [float(figures[name]) for figures in draws if name in figures]
        return f"{np.mean(values):.2f}" if values else ""

    objects = round(float(np.mean([figures["objects"] for figures in draws])))
    names = ("found", "auroc", "area_auroc", "brier", "area_brier")
    return [cell.arm, cell.n, objects, *map(mean, names)]


def _start_row(sweep: Sweep, cell: Cell) -> list[object] | None:
    draws = [element.figures for element in sweep.elements if element.cell == cell]
    draws = [figures for figures in draws if "start_kept" in figures]
    if not draws:
        return None

    def mean(name: str) -> str:
        values = [float(figures.get(name, math.nan)) for figures in draws]
        return f"{np.mean(values):.2f}"

    kept = sum(int(figures["start_kept"]) for figures in draws)
    return [cell.arm, cell.n, mean(f"unguarded_{sweep.score}"), mean(sweep.score), f"{kept} of {len(draws)}"]
