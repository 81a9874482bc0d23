"""How wells are drawn: plates as heat maps, and counts without a stain against counts that are known."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_isl.files import write_atomic
from hpc_isl.stages.shared.pictures import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
COLORS = "viridis"
MISSING = "#e3e3e3"
PARTIAL = "#d62728"  # edge of wells of which fields are lost
FROM_ZERO = ("objects", "objects / mm²", "share of the area")  # units
NUMBERED = 96  # wells: of more there is no room for numbers
WELL = {6: 1.0, 12: 0.9, 24: 0.75, 48: 0.65, 96: 0.5, 384: 0.27}  # inches by wells of a plate


@dataclass(frozen=True)
class Map:
    """One plate, or one time of it, for a heat map.

    Attributes:
        rows, columns: all physical ones of the plate: ("A", …), ("01", …).
        values: by well; wells that are missing, or NaN, are drawn grey.
        partial: wells of which some fields are lost: their counts are too low.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[str, float]
    partial: Collection[str] = ()

    def known(self) -> dict[str, float]:
        return {well: value for well, value in self.values.items() if math.isfinite(value)}


def plate_heat_map(
    values: Mapping[str, float],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    unit: str,
    path: Path,
) -> None:
    """One plate as a PNG."""
    draw_plates([Map("", rows, columns, values)], title, unit, path)


def draw_plates(maps: Sequence[Map], title: str, unit: str, path: Path) -> None:
    """Plates side by side on one scale of colours, as a PNG.

    Args:
        unit: what the colour bar counts in; empty where the values have none.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    across = panels_across(maps)
    deep = -(-len(maps) // across)
    wide, high = _size(maps)
    figure = Figure(
        figsize=(max(4.2, across * wide + 1.1), deep * high + 0.55), layout="constrained", dpi=DPI
    )
    grid = figure.subplots(deep, across, squeeze=False).ravel()
    scale = ScalarMappable(Normalize(*limits(maps, unit)), COLORS)
    for axis in grid[len(maps) :]:
        axis.set_axis_off()
    for axis, one in zip(grid, maps, strict=False):
        _draw_plate(axis, one, scale)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    if any(one.partial for one in maps):
        figure.supxlabel(
            "red edge: fields of the well are lost", fontsize=8, color=PARTIAL, x=0.01, ha="left"
        )
    bar = figure.colorbar(
        scale, ax=grid.tolist(), shrink=min(1.0, 2.6 / high / deep + 0.35), aspect=22, pad=0.02
    )
    bar.set_label(unit, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    _write(figure, path)


def panels_across(maps: Sequence[Map]) -> int:
    """How many plates stand side by side."""
    wide, _ = _size(maps)
    return max(1, min(len(maps), int(15 / wide)))


def _size(maps: Sequence[Map]) -> tuple[float, float]:
    """Width and height of a plate in inches, with its letters and numbers."""
    deep, wide = max(len(one.rows) for one in maps), max(len(one.columns) for one in maps)
    well = WELL.get(deep * wide, 0.15 if deep * wide > 384 else 0.5)
    return wide * well + 0.5, deep * well + 0.65


def limits(maps: Sequence[Map], unit: str) -> tuple[float, float]:
    """The least value and the greatest of all plates; amounts of objects begin at 0."""
    known = [value for one in maps for value in one.known().values()]
    low, high = min(known, default=0.0), max(known, default=1.0)
    low = min(low, 0.0) if unit in FROM_ZERO else low
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _draw_plate(axis: Axes, one: Map, scale: Any) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    wells = {
        f"{row}{column}": (x, y) for y, row in enumerate(one.rows) for x, column in enumerate(one.columns)
    }
    known = one.known()
    colors = [scale.to_rgba(known[well]) if well in known else MISSING for well in wells]
    squares = [Rectangle((x - 0.46, y - 0.46), 0.92, 0.92) for x, y in wells.values()]
    widths = [1.2 if well in one.partial else 0 for well in wells]
    axis.add_collection(PatchCollection(squares, facecolors=colors, edgecolors=PARTIAL, linewidths=widths))
    if len(wells) <= NUMBERED:
        for (well, place), color in zip(wells.items(), colors, strict=True):
            if well in known:
                ink = ink_on(to_rgb(color))
                text = axis.text(
                    *place, short(known[well]), ha="center", va="center", fontsize=6.5, color=ink
                )
                text.set_in_layout(False)
    axis.set_xlim(-0.6, len(one.columns) - 0.4)
    axis.set_ylim(len(one.rows) - 0.4, -0.6)
    axis.set_aspect("equal")
    _name_wells(axis, one)
    axis.set_title(one.title, fontsize=10, color=INK, loc="left", pad=16)


def _name_wells(axis: Axes, one: Map) -> None:
    """Letters on the left and numbers above, as they are moulded into plates."""
    step = 1 if len(one.columns) <= 24 else 4
    axis.set_xticks(range(0, len(one.columns), step), [str(int(name)) for name in one.columns[::step]])
    axis.set_yticks(range(0, len(one.rows), step), list(one.rows[::step]))
    axis.tick_params(
        length=0, labelsize=7, labelcolor=INK, top=False, labeltop=True, labelbottom=False, pad=1
    )
    axis.spines[:].set_visible(False)


def ink_on(color: Sequence[float]) -> str:
    """Black or white, whichever is read more easily on a colour (red, green, blue of 0 to 1)."""
    return "black" if float(np.dot(color, (0.299, 0.587, 0.114))) > 0.5 else "white"


def short(value: float) -> str:
    """Four characters or so: 0.12, 12.3, 1234, 12k."""
    if value == 0 or (float(value).is_integer() and abs(value) < 10_000):
        return f"{value:.0f}"
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k" if abs(value) < 1e7 else f"{value:.0e}"
    if abs(value) < 0.01:
        return f"{value:.0e}"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.3g}"


# ---------------------------------------------------------------- against the truth


def agreement(counts: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How counts without the stain go with those from it, by pairs (label-free, stain), one for each well.

    r: Pearson's correlation; slope: of the line of least squares, label-free over stain; bias: mean of
    label-free less stain; median_ratio: of label-free over stain, where the stain has any; n: pairs. NaN
    where a figure is not defined.
    """
    ours, theirs = np.array(counts, np.float64).reshape(-1, 2).T
    known = dict.fromkeys(("r", "slope", "bias", "median_ratio"), math.nan)
    if len(ours):
        known["bias"] = float(np.mean(ours - theirs))
    if (theirs > 0).any():
        known["median_ratio"] = float(np.median(ours[theirs > 0] / theirs[theirs > 0]))
    a, b = ours - ours.mean() if len(ours) else ours, theirs - theirs.mean() if len(ours) else theirs
    if (b * b).sum() > 0:
        known["slope"] = float((a * b).sum() / (b * b).sum())
    if (a * a).sum() > 0 and (b * b).sum() > 0:
        known["r"] = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return {**known, "n": float(len(ours))}


def scatter(
    counts: Sequence[tuple[float, float]], path: Path, title: str, taught: Sequence[bool] = ()
) -> dict[str, float]:
    """A point for each well, label-free over stain, with the line where both are equal.

    Args:
        taught: of each well, whether the model learnt from it: these are hollow, and left out of the figures
            as long as there are others.

    Returns:
        The figures, as `agreement` has them.
    """
    from matplotlib.figure import Figure

    taught = taught or [False] * len(counts)
    new = [pair for pair, known in zip(counts, taught, strict=True) if not known]
    found = agreement(new or counts)
    figure = Figure(figsize=(5.0, 5.2), layout="constrained", dpi=DPI)
    axis = figure.subplots()
    ours, theirs = np.array(counts, np.float64).reshape(-1, 2).T
    top = 1.06 * float(max(ours.max(initial=1), theirs.max(initial=1)))
    axis.plot([0, top], [0, top], color="#999999", lw=1, ls="--", zorder=1)
    axis.text(
        top * 0.97, top * 0.985, "equal ", color="#777777", fontsize=8, ha="right", va="bottom",
        rotation=45, rotation_mode="anchor",
    )  # fmt: skip
    hollow = np.array(taught, bool)
    for chosen, look in ((~hollow, {"mew": 0}), (hollow, {"mew": 1, "mfc": "none"})):
        axis.plot(theirs[chosen], ours[chosen], "o", ms=5, color="#0072b2", alpha=0.65, zorder=2, **look)
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axis.set_xlabel("true objects per well, by a stain or drawn by people", fontsize=9)
    axis.set_ylabel("objects found per well", fontsize=9)
    axis.set_title(f"{title}\n{agreement_text(found)}", fontsize=10, color=INK, loc="left")
    if note := taught_note(taught):
        figure.supxlabel("\n".join(textwrap.wrap(note, 88)), fontsize=8, color=INK, x=0.01, ha="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    _write(figure, path)
    return found


def taught_note(taught: Sequence[bool]) -> str:
    """What to know of wells that the model learnt from; empty: it learnt from none."""
    count = sum(taught)
    if not count:
        return ""
    if count == len(taught):
        return "The model learnt from all of these wells: this does not show how well it counts in others."
    return f"Hollow: {count} wells that the model learnt from, which are left out of the figures."


def agreement_text(found: Mapping[str, float]) -> str:
    """`r = 0.98, median ratio 1.02, bias +3.1 objects, 96 wells`."""
    parts = [] if math.isnan(found["r"]) else [f"r = {found['r']:.3f}"]
    parts += [] if math.isnan(found["median_ratio"]) else [f"median ratio {found['median_ratio']:.2f}"]
    bias = f"{found['bias']:+.1f}".replace("-", "−")
    return ", ".join([*parts, f"bias {bias} objects", f"{found['n']:.0f} wells"])


def _write(figure: Figure, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    write_atomic(path, stream.getvalue(), durable=False)
