"""Plates as heat maps in one page that works offline: hovering over a well shows all that is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_isl.files import now
from hpc_isl.stages.shared.html import Html, join, page, picture, tag
from hpc_isl.stages.table.heat_map_figures import (
    COLORS,
    MISSING,
    NUMBERED,
    PARTIAL,
    PlateValues,
    ink_on,
    limits,
    short,
)

MOST = 900  # CSS pixels that a plate of many wells is wide
LEFT, TOP = 26, 22  # space for letters and numbers
EDGES = {6: 64, 12: 60, 24: 52, 48: 44, 96: 34, 384: 20}  # CSS pixels of a well, by wells of a plate
STYLE = """
.plates { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; margin: .8rem 0 }
.plates figure { margin: 0 } .plates figcaption { font-weight: 600; padding-bottom: .15rem }
svg text { font-family: inherit; fill: #333 } svg rect.well:hover { stroke: #000; stroke-width: 2 }
"""


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
) -> str:
    """Returns the whole page as HTML.

    Args:
        name: of the run.
        hover: for each plate the text of each well.
        agreement: counts compared with the reference labels: a picture as PNG, and its caption.
    """
    parts: list[object] = [
        tag("style", Html(STYLE)),
        tag("h1", f"Plates of {name}"),
        tag("p", f"Written {now()[:16].replace('T', ' ')} UTC by table. Hover over a well to read it; "
            "grey wells were not imaged, are lost, or have no such figure; of those with a red edge some "
            "fields are lost.", class_="about"),
        tag("div", *[tag("p", line) for line in headline], class_="headline"),
    ]  # fmt: skip
    for heat_map in heat_maps:
        scale = limits(heat_map.plates, heat_map.unit)
        plates = [
            _plate(plate, texts, scale, heat_map.title)
            for plate, texts in zip(heat_map.plates, hover, strict=True)
        ]
        drawn = [_color_bar(*scale, heat_map.unit), tag("div", *plates, class_="plates")]
        parts.append(tag("section", tag("h2", heat_map.title), tag("p", heat_map.about), *drawn))
    if agreement is not None:
        png, caption = agreement
        parts += [tag("h2", "Compared with the reference labels"), picture(png, caption, caption, 480)]
    return page(f"{name}: plates", join(parts))


def _plate(plate: PlateValues, texts: Mapping[str, str], scale: tuple[float, float], title: str) -> Html:
    deep, wide = len(plate.rows), len(plate.columns)
    edge = EDGES.get(deep * wide, max(6, MOST // (wide + 1)))
    known, step = plate.known, -(-16 // edge)  # where wells are small not all rows and columns are named
    parts = [
        _text(int(plate.columns[x]), LEFT + (x + 0.5) * edge, TOP - 6) for x in range(0, wide, step)
    ]  # fmt: skip
    parts += [_text(plate.rows[y], LEFT - 12, TOP + (y + 0.5) * edge + 4) for y in range(0, deep, step)]
    for y, row in enumerate(plate.rows):
        for x, column in enumerate(plate.columns):
            well = f"{row}{column}"
            square = _well(known.get(well), scale, edge, deep * wide <= NUMBERED, well in plate.partial)
            shift = f"translate({LEFT + x * edge},{TOP + y * edge})"
            text = tag("title", texts.get(well, f"{well}: not imaged"))
            parts.append(tag("g", text, *square, transform=shift))
    width, height = LEFT + wide * edge + 4, TOP + deep * edge + 4
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
    attributes = {"role": "img", "aria-label": f"colours from {short(low)} to {short(high)} {unit}"}
    return tag("svg", *parts, width=LEFT + 272 + 260, height=34, **attributes)


def _color(place: float) -> tuple[float, float, float]:
    """Returns red, green and blue, 0 to 1, of a place between the ends of the scale."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps[COLORS](place)
    return float(red), float(green), float(blue)


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
