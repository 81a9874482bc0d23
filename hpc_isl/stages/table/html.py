"""Plates as heat maps in one page that works offline: hovering over a well tells what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_isl.files import now
from hpc_isl.stages.shared.html import Html, join, page, picture, tag
from hpc_isl.stages.table.pictures import COLORS, MISSING, NUMBERED, PARTIAL, Map, ink_on, limits, short

MOST = 900  # CSS pixels that a plate of many wells is wide
LEFT, TOP = 26, 22  # room for letters and numbers
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
    maps: Sequence[Map]


def written(
    name: str,
    headline: Sequence[str],
    shown: Sequence[HeatMap],
    hover: Sequence[Mapping[str, str]],
    against: tuple[bytes, str] | None,
) -> str:
    """The whole page.

    Args:
        name: of the run.
        hover: for each plate what is told of each well.
        against: counts against the truth: a picture as PNG, and its caption.
    """
    parts: list[object] = [
        tag("style", Html(STYLE)),
        tag("h1", f"Plates of {name}"),
        tag("p", f"Written {now()[:16].replace('T', ' ')} UTC by table. Hover over a well to read it; "
            "grey wells were not imaged, are lost, or have no such figure; of those with a red edge some "
            "fields are lost.", class_="about"),
        tag("div", *[tag("p", line) for line in headline], class_="headline"),
    ]  # fmt: skip
    for one in shown:
        parts += [tag("section", tag("h2", one.title), tag("p", one.about), *_plates(one, hover))]
    if against is not None:
        parts += [tag("h2", "Held against the truth"), picture(against[0], against[1], against[1], 480)]
    return page(f"{name}: plates", join(parts))


def _plates(one: HeatMap, hover: Sequence[Mapping[str, str]]) -> Iterator[Html]:
    low, high = limits(one.maps, one.unit)
    yield _bar(low, high, one.unit)
    drawn = [_plate(each, facts, low, high, one.title) for each, facts in zip(one.maps, hover, strict=True)]
    yield tag("div", *drawn, class_="plates")


def _plate(one: Map, facts: Mapping[str, str], low: float, high: float, what: str) -> Html:
    deep, wide = len(one.rows), len(one.columns)
    edge = EDGES.get(deep * wide, max(6, MOST // (wide + 1)))
    known, parts = one.known(), list(_names(one, edge))
    for y, row in enumerate(one.rows):
        for x, column in enumerate(one.columns):
            well = f"{row}{column}"
            inside = _well(known.get(well), (low, high), edge, deep * wide <= NUMBERED, well in one.partial)
            at = f"translate({LEFT + x * edge},{TOP + y * edge})"
            parts.append(
                tag("g", tag("title", facts.get(well, f"{well}: not imaged")), *inside, transform=at)
            )
    size = {"width": LEFT + wide * edge + 4, "height": TOP + deep * edge + 4}
    alt = f"{what}, plate {one.title}" if one.title else what
    given = {"role": "img", "aria-label": alt, "viewBox": f"0 0 {size['width']} {size['height']}", **size}
    return tag("figure", tag("figcaption", one.title), tag("svg", *parts, **given))


def _names(one: Map, edge: int) -> Iterator[Html]:
    """Letters on the left, numbers above; not all where wells are small."""
    step = -(-16 // edge)
    for x, column in list(enumerate(one.columns))[::step]:
        yield _text(int(column), LEFT + (x + 0.5) * edge, TOP - 6, 11)
    for y, row in list(enumerate(one.rows))[::step]:
        yield _text(row, LEFT - 12, TOP + (y + 0.5) * edge + 4, 11)


def _well(
    value: float | None, scale: tuple[float, float], edge: int, numbered: bool, partial: bool
) -> Iterator[Html]:
    """A square, and its value where there is room for it."""
    color = None if value is None else _color((value - scale[0]) / (scale[1] - scale[0]))
    fill = MISSING if color is None else _hex(color)
    line = {"stroke": PARTIAL, "stroke-width": "2"} if partial else {}
    yield tag("rect", class_="well", width=edge - 2, height=edge - 2, rx=2, fill=fill, **line)
    if value is not None and color is not None and numbered:
        yield _text(short(value), edge / 2 - 1, edge / 2 + 3, 11, ink_on(color))


def _text(said: object, x: float, y: float, size: int, fill: str | None = None) -> Html:
    style = {} if fill is None else {"style": f"fill: {fill}"}
    given = {"text-anchor": "middle", "font-size": size, **style}
    return tag("text", said, x=f"{x:g}", y=f"{y:g}", **given)


def _bar(low: float, high: float, unit: str) -> Html:
    """The scale of colours, with round values along it."""
    steps = [_hex(_color(place / 63)) for place in range(64)]
    parts = [
        tag("rect", x=LEFT + 4 * at, y=2, width=5, height=12, fill=fill) for at, fill in enumerate(steps)
    ]
    parts += [
        _text(f"{value:g}", LEFT + 256 * (value - low) / (high - low), 28, 11) for value in _round(low, high)
    ]
    parts.append(tag("text", unit, x=LEFT + 272, y=13, **{"font-size": 13}))
    alt = {"role": "img", "aria-label": f"colours from {short(low)} to {short(high)} {unit}"}
    return tag("svg", *parts, width=LEFT + 272 + 260, height=34, **alt)


def _round(low: float, high: float) -> list[float]:
    """A few round values from one end to the other."""
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]


def _color(place: float) -> tuple[float, float, float]:
    """Red, green and blue, 0 to 1, of a place between the ends of the scale."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps[COLORS](place)
    return float(red), float(green), float(blue)


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
