"""Plates as heat maps: as pictures, and in pages that work offline."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_isl.files import now
from hpc_isl.stages.shared.pictures import DPI, INK, Html, join, page, picture, save, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

COLORS = "viridis"
MISSING = "#e3e3e3"
PARTIAL = "#d62728"  # edge of wells of which fields failed
FROM_ZERO = ("objects", "objects / mm²", "share of the area", "fields", "planes")  # units
NUMBERED = 96  # wells: of more there is no room for numbers
WELL = {6: 1.0, 12: 0.9, 24: 0.75, 48: 0.65, 96: 0.5, 384: 0.27}  # inches by wells of a plate
MOST = 900  # CSS pixels that a plate of many wells is wide
LEFT, TOP = 26, 22  # space for letters and numbers
EDGES = {6: 64, 12: 60, 24: 52, 48: 44, 96: 34, 384: 20}  # CSS pixels of a well, by wells of a plate
STYLE = """
.plates { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; margin: .8rem 0 }
.plates figure { margin: 0 } .plates figcaption { font-weight: 600; padding-bottom: .15rem }
.plates figure { max-width: 100% } .plates svg, svg.scale { max-width: 100%; height: auto }
svg text { font-family: inherit; fill: #333 } svg rect.well:hover { stroke: #000; stroke-width: 2 }
"""


@dataclass(frozen=True)
class PlateValues:
    """The values of one plate, or of one of its times, for a heat map.

    Attributes:
        rows, columns: all physical ones of the plate: ("A", …), ("01", …).
        values: by well; wells that are missing, or NaN, are drawn grey.
        partial: wells of which some fields failed: their counts are too low.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[str, float]
    partial: Collection[str] = ()

    @property
    def known(self) -> dict[str, float]:
        return {well: value for well, value in self.values.items() if math.isfinite(value)}


def draw_plates(plates: Sequence[PlateValues], title: str, unit: str, path: Path) -> None:
    """Draws plates side by side on one scale of colours.

    Args:
        unit: of the colour bar; empty where the values have none.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows, columns = max(len(plate.rows) for plate in plates), max(len(plate.columns) for plate in plates)
    well = WELL.get(rows * columns, 0.15 if rows * columns > 384 else 0.5)
    width, height = columns * well + 0.5, rows * well + 0.65  # inches, with letters and numbers
    across = max(1, min(len(plates), int(15 / width)))
    down = -(-len(plates) // across)
    size = (max(4.2, across * width + 1.1), down * height + 0.55)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    scale = ScalarMappable(Normalize(*limits(plates, unit)), COLORS)
    for axis in grid[len(plates) :]:
        axis.set_axis_off()
    for axis, plate in zip(grid, plates, strict=False):
        draw_plate(axis, plate, scale)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    if any(plate.partial for plate in plates):
        note = "red edge: fields of the well failed"
        figure.supxlabel(note, fontsize=8, color=PARTIAL, x=0.01, ha="left")
    shrink = min(1.0, 2.6 / height / down + 0.35)
    bar = figure.colorbar(scale, ax=grid.tolist(), shrink=shrink, aspect=22, pad=0.02, ticks=ticks(plates))
    bar.set_label(unit, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    save(figure, path, durable=False)


def ticks(plates: Sequence[PlateValues]) -> Locator:
    """Returns the ticks of a colour bar: whole numbers where all values are, as of fields or objects."""
    from matplotlib.ticker import MaxNLocator

    whole = all(float(value).is_integer() for plate in plates for value in plate.known.values())
    return MaxNLocator("auto", integer=whole, min_n_ticks=1)


def limits(plates: Sequence[PlateValues], unit: str) -> tuple[float, float]:
    """Returns the lowest and the highest value of all plates; amounts of objects begin at 0."""
    values = [value for plate in plates for value in plate.known.values()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if unit in FROM_ZERO:
        return min(low, 0.0), high if high > 0 else 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def draw_plate(axis: Axes, plate: PlateValues, scale: Any, numbered: bool = True) -> None:
    """Draws the wells of one plate.

    Args:
        scale: turns values into colours, a `matplotlib.cm.ScalarMappable`.
        numbered: with the values, where wells are few.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    wells = {
        f"{row}{column}": (x, y)
        for y, row in enumerate(plate.rows)
        for x, column in enumerate(plate.columns)
    }  # fmt: skip
    values = plate.known
    colors = [scale.to_rgba(values[well]) if well in values else MISSING for well in wells]
    # One collection: thousands of patches of their own take seconds.
    squares = [Rectangle((x - 0.46, y - 0.46), 0.92, 0.92) for x, y in wells.values()]
    widths = [1.2 if well in plate.partial else 0 for well in wells]
    axis.add_collection(PatchCollection(squares, facecolors=colors, edgecolors=PARTIAL, linewidths=widths))
    if numbered and len(wells) <= NUMBERED:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5}
        for (well, (x, y)), color in zip(wells.items(), colors, strict=True):
            if well in values:
                text = axis.text(x, y, short(values[well]), color=ink_on(to_rgb(color)), **style)
                # The layout would measure each of a thousand texts.
                text.set_in_layout(False)
    axis.set_xlim(-0.6, len(plate.columns) - 0.4)
    axis.set_ylim(len(plate.rows) - 0.4, -0.6)
    axis.set_aspect("equal")
    # Letters on the left and numbers above, as they are moulded into plates.
    step = 1 if len(plate.columns) <= 24 else 4
    axis.set_xticks(range(0, len(plate.columns), step), [str(int(name)) for name in plate.columns[::step]])
    axis.set_yticks(range(0, len(plate.rows), step), list(plate.rows[::step]))
    sides: dict[str, Any] = {"top": False, "labeltop": True, "labelbottom": False}
    axis.tick_params(length=0, labelsize=7, labelcolor=INK, pad=1, **sides)
    axis.spines[:].set_visible(False)
    # The pad leaves room for the numbers of the columns.
    axis.set_title(plate.title, fontsize=10, color=INK, loc="left", pad=16)


def ink_on(color: Sequence[float]) -> str:
    """Returns black or white, whichever is read more easily on a colour (red, green, blue of 0 to 1)."""
    # The eye's sensitivity to red, green and blue, as television (Rec. 601) weighs them.
    return "black" if float(np.dot(color, (0.299, 0.587, 0.114))) > 0.5 else "white"


def short(value: float) -> str:
    """Returns a number in four characters or so: 0.12, 12.3, 1234, 12k."""
    if value == 0 or (float(value).is_integer() and abs(value) < 10_000):
        return f"{value:.0f}"
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k" if abs(value) < 1e7 else f"{value:.0e}"
    if abs(value) < 0.01:
        return f"{value:.0e}"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.3g}"


# ---------------------------------------------------------------- the page


@dataclass(frozen=True)
class HeatMap:
    """One column of the table, on all plates.

    Attributes:
        about: a sentence that says what is shown.
        unit: empty where the values have none.
    """

    title: str
    about: str
    unit: str
    plates: Sequence[PlateValues]


def page_of(
    name: str,
    headline: Sequence[str],
    heat_maps: Sequence[HeatMap],
    hover: Sequence[Mapping[str, str]],
    agreement: tuple[bytes, str] | None,
    section: Html,
) -> str:
    """Returns the whole page as HTML.

    Args:
        name: of the run.
        hover: for each plate the text of each well.
        agreement: counts compared with the reference labels: a picture as PNG, and its caption.
        section: what the page ends with.
    """
    parts: list[object] = [
        tag("style", Html(STYLE)),
        tag("h1", f"Plates of {name}"),
        tag("p", f"Written {now()[:16].replace('T', ' ')} UTC by table. Hover over a well to read it; "
            "grey wells were not imaged, failed, or have no such figure; of those with a red edge some "
            "fields failed.", class_="about"),
        tag("div", *[tag("p", line) for line in headline], class_="headline"),
    ]  # fmt: skip
    parts += [tag("section", tag("h2", heat_map.title), *drawn(heat_map, hover)) for heat_map in heat_maps]
    if agreement is not None:
        png, caption = agreement
        parts += [tag("h2", "Compared with the reference labels"), picture(png, caption, caption, 480)]
    return page(f"{name}: plates", join([*parts, section]))


def drawn(heat_map: HeatMap, hover: Sequence[Mapping[str, str]]) -> Iterator[Html]:
    """Yields what a heat map shows, its scale of colours and its plates; `hover` as `page_of` takes it."""
    scale = limits(heat_map.plates, heat_map.unit)
    plates = [
        _plate(plate, texts, scale, heat_map.title)
        for plate, texts in zip(heat_map.plates, hover, strict=True)
    ]
    yield tag("p", heat_map.about)
    yield _color_bar(*scale, heat_map.unit)
    yield tag("div", *plates, class_="plates")


def _plate(plate: PlateValues, texts: Mapping[str, str], scale: tuple[float, float], title: str) -> Html:
    rows, columns = len(plate.rows), len(plate.columns)
    edge = EDGES.get(rows * columns, max(6, MOST // (columns + 1)))
    values, step = plate.known, -(-16 // edge)  # where wells are small not all rows and columns are named
    parts = [
        _text(int(plate.columns[x]), LEFT + (x + 0.5) * edge, TOP - 6) for x in range(0, columns, step)
    ]  # fmt: skip
    parts += [_text(plate.rows[y], LEFT - 12, TOP + (y + 0.5) * edge + 4) for y in range(0, rows, step)]
    for y, row in enumerate(plate.rows):
        for x, column in enumerate(plate.columns):
            well = f"{row}{column}"
            square = _well(values.get(well), scale, edge, rows * columns <= NUMBERED, well in plate.partial)
            shift = f"translate({LEFT + x * edge},{TOP + y * edge})"
            text = tag("title", texts.get(well, f"{well}: not imaged"))
            parts.append(tag("g", text, *square, transform=shift))
    width, height = LEFT + columns * edge + 4, TOP + rows * edge + 4
    attributes = {
        "role": "img", "aria-label": f"{title}, plate {plate.title}" if plate.title else title,
        "viewBox": f"0 0 {width} {height}", "width": width, "height": height,
    }  # fmt: skip
    return tag("figure", tag("figcaption", plate.title), tag("svg", *parts, **attributes))


def _well(
    value: float | None, scale: tuple[float, float], edge: int, numbered: bool, partial: bool
) -> Iterator[Html]:
    """Yields a square, and its value where there is space for it."""
    color = None if value is None else _color((value - scale[0]) / (scale[1] - scale[0]))
    fill = MISSING if color is None else _hex(color)
    line = {"stroke": PARTIAL, "stroke-width": "2"} if partial else {}
    yield tag("rect", class_="well", width=edge - 2, height=edge - 2, rx=2, fill=fill, **line)
    if value is not None and color is not None and numbered:
        yield _text(short(value), edge / 2 - 1, edge / 2 + 3, {"style": f"fill: {ink_on(color)}"})


def _text(content: object, x: float, y: float, style: Mapping[str, str] = {}) -> Html:
    attributes = {"text-anchor": "middle", "font-size": 11, **style}
    return tag("text", content, x=f"{x:g}", y=f"{y:g}", **attributes)


def _color_bar(low: float, high: float, unit: str) -> Html:
    """Returns the scale of colours, with a few round values along it."""
    from matplotlib.ticker import MaxNLocator

    parts = [
        tag("rect", x=LEFT + 4 * step, y=2, width=5, height=12, fill=_hex(_color(step / 63)))
        for step in range(64)
    ]
    ticks = [float(value) for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]
    parts += [_text(f"{value:g}", LEFT + 256 * (value - low) / (high - low), 28) for value in ticks]
    parts.append(tag("text", unit, x=LEFT + 272, y=13, **{"font-size": 13}))
    width = LEFT + 272 + 160
    attributes = {
        "role": "img", "aria-label": f"colours from {short(low)} to {short(high)} {unit}",
        "viewBox": f"0 0 {width} 34", "class": "scale",
    }  # fmt: skip
    return tag("svg", *parts, width=width, height=34, **attributes)


def _color(place: float) -> tuple[float, float, float]:
    """Returns red, green and blue, 0 to 1, of a place between the ends of the scale."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps[COLORS](place)
    return float(red), float(green), float(blue)


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
