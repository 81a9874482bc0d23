"""Compares counts without a stain with counts that are known: figures, and a scatter plot."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hpc_isl.files import write_atomic
from hpc_isl.stages.shared.pictures import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def agreement(counts: ArrayLike) -> dict[str, float]:
    """Returns how counts without the stain agree with those from it.

    Args:
        counts: (well, 2): label-free, stain.

    Returns:
        r: Pearson's correlation; slope: of the line of least squares, label-free over stain; bias: mean of
        label-free less stain; median_ratio: of label-free over stain, where the stain has any; n: wells. NaN
        where a figure is not defined.
    """
    ours, theirs = np.array(counts, np.float64).reshape(-1, 2).T
    figures = dict.fromkeys(("r", "slope", "bias", "median_ratio"), math.nan) | {"n": float(len(ours))}
    if not len(ours):
        return figures
    figures["bias"] = float(np.mean(ours - theirs))
    if (theirs > 0).any():
        figures["median_ratio"] = float(np.median(ours[theirs > 0] / theirs[theirs > 0]))
    a, b = ours - ours.mean(), theirs - theirs.mean()
    if (b * b).sum() > 0:
        figures["slope"] = float((a * b).sum() / (b * b).sum())
        if (a * a).sum() > 0:
            figures["r"] = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return figures


def draw_agreement(
    counts: ArrayLike, path: Path, title: str, trained_on: Sequence[bool] = ()
) -> dict[str, float]:
    """Draws a point for each well, label-free over stain, with the line where both are equal.

    Args:
        counts: (well, 2): label-free, stain.
        trained_on: of each well, whether the model learnt from it: these are hollow, and left out of the
            figures as long as there are others.

    Returns:
        The figures, as `agreement` has them.
    """
    from matplotlib.figure import Figure

    pairs = np.array(counts, np.float64).reshape(-1, 2)
    hollow = np.array(trained_on or [False] * len(pairs), bool)
    figures = agreement(pairs if hollow.all() else pairs[~hollow])
    figure = Figure(figsize=(5.0, 5.2), layout="constrained", dpi=DPI)
    axis = figure.subplots()
    top = 1.06 * float(pairs.max(initial=1))
    axis.plot([0, top], [0, top], color="#999999", lw=1, ls="--", zorder=1)
    axis.text(
        top * 0.97, top * 0.985, "equal ", color="#777777", fontsize=8, ha="right", va="bottom",
        rotation=45, rotation_mode="anchor",
    )  # fmt: skip
    looks: list[tuple[Any, dict[str, Any]]] = [(~hollow, {"mew": 0}), (hollow, {"mew": 1, "mfc": "none"})]
    for chosen, look in looks:
        ours, theirs = pairs[chosen].T
        axis.plot(theirs, ours, "o", ms=5, color="#0072b2", alpha=0.65, zorder=2, **look)
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axis.set_xlabel("true objects per well, by a stain or drawn by people", fontsize=9)
    axis.set_ylabel("objects found per well", fontsize=9)
    axis.set_title(f"{title}\n{agreement_text(figures)}", fontsize=10, color=INK, loc="left")
    if note := training_note(trained_on):
        figure.supxlabel("\n".join(textwrap.wrap(note, 88)), fontsize=8, color=INK, x=0.01, ha="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    write_png(figure, path)
    return figures


def training_note(trained_on: Sequence[bool]) -> str:
    """Returns what to know of wells that the model learnt from; empty: it learnt from none."""
    count = sum(trained_on)
    if not count:
        return ""
    if count == len(trained_on):
        return "The model learnt from all of these wells: this does not show how well it counts in others."
    return f"Hollow: {count} wells that the model learnt from, which are left out of the figures."


def agreement_text(figures: Mapping[str, float]) -> str:
    """Returns `r = 0.98, median ratio 1.02, bias +3.1 objects, 96 wells`."""
    parts = [] if math.isnan(figures["r"]) else [f"r = {figures['r']:.3f}"]
    parts += [] if math.isnan(figures["median_ratio"]) else [f"median ratio {figures['median_ratio']:.2f}"]
    bias = f"{figures['bias']:+.1f}".replace("-", "−")
    return ", ".join([*parts, f"bias {bias} objects", f"{figures['n']:.0f} wells"])


def write_png(figure: Figure, path: Path) -> None:
    """Writes a figure; not durably, because it can be drawn again."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    write_atomic(path, stream.getvalue(), durable=False)
