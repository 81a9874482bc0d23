"""The page of a plate and its picture: thumbnails by well and channel, then heat maps."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hpc_isl.errors import many
from hpc_isl.files import now
from hpc_isl.plates.plate import well_position
from hpc_isl.stages.overview.mosaics import Mosaic
from hpc_isl.stages.shared import heat_maps
from hpc_isl.stages.shared.heat_maps import HeatMap
from hpc_isl.stages.shared.pictures import DPI, INK, Html, join, page, save, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MADE_BY = "UTC by overview"  # by which a later call knows its page
MOST_SHEETS = 4  # channels in the picture
SHEET = 975  # pixels that a sheet is wide in the picture, about
STYLE = """
.sheet { display: grid; gap: 2px; width: max-content; max-width: 100%; font-size: .72rem; color: #333;
  grid-template-columns: 1.6rem repeat(var(--columns), minmax(26px, var(--edge))) }
.sheet span { align-self: center; text-align: center; overflow: hidden }
.sheet button { padding: 0; border: 0; background: none; cursor: zoom-in; display: block; line-height: 0 }
.sheet button:focus-visible, .sheet button:hover { outline: 3px solid #d55e00 }
.sheet img { width: 100%; height: auto; display: block }
dialog { border: 1px solid #777; padding: 1rem; width: min(94vw, 1300px); max-height: 94vh }
dialog::backdrop { background: #0009 }
dialog h3 { margin: 0 3rem .3rem 0 } dialog form { position: absolute; right: 1rem; top: 1rem }
dialog .views { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)) }
dialog figure { margin: 0 } dialog canvas { width: 100%; max-width: 76vh; height: auto; background: #000 }
dialog button { font: inherit; padding: .3rem .9rem }
@media print { .sheet { grid-template-columns: 1.6rem repeat(var(--columns), minmax(0, var(--edge))) } }
"""
# All that the page does, without a library.
SCRIPT = """
const wells = JSON.parse(document.getElementById("wells").textContent);
const look = document.getElementById("look"), order = Object.keys(wells);
let shown = [0, 0];
function show(well, field) {
  const all = wells[order[well]];
  shown = [well, Math.max(0, Math.min(field, all.fields.length - 1))];
  const [name, about, lines] = all.fields[shown[1]];
  look.querySelector("h3").textContent = order[well] + "/" + name;
  look.querySelector("p").textContent = [about, ...all.about].filter(text => text).join(" · ");
  look.querySelector(".views").replaceChildren(...Array.from(document.querySelectorAll(
      `button[data-well="${order[well]}"] img`), image => {
    const canvas = document.createElement("canvas"), text = document.createElement("figcaption");
    const figure = document.createElement("figure"), channel = image.dataset.channel, edge = all.edge;
    canvas.width = canvas.height = edge;
    canvas.getContext("2d").drawImage(image, shown[1] % all.across * edge,
      Math.floor(shown[1] / all.across) * edge, edge, edge, 0, 0, edge, edge);
    text.textContent = channel + ": " + (lines[channel] || "not imaged");
    figure.append(canvas, text);
    return figure;
  }));
  if (!look.open) look.showModal();
}
function step(by) {
  let [well, field] = [shown[0], shown[1] + by];
  if (field < 0 || field >= wells[order[well]].fields.length) {
    well = (well + by + order.length) % order.length;
    field = by > 0 ? 0 : wells[order[well]].fields.length - 1;
  }
  show(well, field);
}
document.addEventListener("click", event => {
  const button = event.target.closest("button[data-well]");
  if (!button) return;
  const box = button.getBoundingClientRect(), all = wells[button.dataset.well];
  const down = Math.ceil(all.fields.length / all.across);
  const x = Math.floor((event.clientX - box.left) / box.width * all.across);
  const y = Math.floor((event.clientY - box.top) / box.height * down);
  show(order.indexOf(button.dataset.well), event.detail ? y * all.across + x : 0);
});
document.getElementById("back").onclick = () => step(-1);
document.getElementById("next").onclick = () => step(1);
look.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
"""


@dataclass(frozen=True)
class Sheet:
    """The thumbnails of one channel.

    Attributes:
        about: what is shown of it, and on which range of counts.
        wells: in plate order.
    """

    channel: str
    about: str
    wells: Mapping[str, Mosaic]


@dataclass(frozen=True)
class WellText:
    """The text about a well when one of its fields is shown.

    Attributes:
        about: lines of the plate map.
        fields: name, what is odd, and a line for each channel.
    """

    about: Sequence[str]
    fields: Sequence[tuple[str, str, Mapping[str, str]]]


def page_of(
    name: str,
    headline: Sequence[str],
    sheets: Sequence[Sheet],
    texts: Mapping[str, WellText],
    maps: Sequence[HeatMap],
    hover: Mapping[str, str],
) -> str:
    """Returns the whole page as HTML; its one script is in it, and nothing is asked for.

    Args:
        name: of the plate.
        texts: well -> the text where its fields are shown.
        hover: well -> text over a heat map.
    """
    sections = [(f"images-{n}", f"Images, {sheet.channel}", sheet) for n, sheet in enumerate(sheets)]
    contents = [tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in sections]
    contents.append(tag("li", tag("a", "Heat maps of all wells", href="#heat-maps")))
    parts: list[object] = [
        tag("style", Html(heat_maps.STYLE + STYLE)),
        tag("h1", f"Plate {name}"),
        tag("p", f"Written {now()[:16].replace('T', ' ')} {MADE_BY}. Click a field to see it "
            "larger, in all channels; the arrow keys go on from there.", class_="about"),
        tag("div", *[tag("p", line) for line in headline], class_="headline"),
        tag("nav", tag("ol", *contents), **{"aria-label": "contents"}),
    ]  # fmt: skip
    for anchor, title, sheet in sections:
        content = [tag("p", sheet.about), tag("div", _sheet(sheet), class_="wide")]
        parts.append(tag("section", tag("h2", title), *content, id=anchor))
    map_sections = [
        tag("section", tag("h3", heat_map.title), *heat_maps.drawn(heat_map, [hover])) for heat_map in maps
    ]
    parts.append(tag("section", tag("h2", "Heat maps of all wells"), *map_sections, id="heat-maps"))
    return page(f"{name}: overview", join([*parts, *_dialog(sheets, texts)]))


def _sheet(sheet: Sheet) -> Html:
    """Returns a grid of the rows and columns that hold a well, each with its picture."""
    rows, columns = _rows_and_columns(sheet)
    cells: list[Html] = [tag("span"), *[tag("span", int(column)) for column in columns]]
    for row in rows:
        cells.append(tag("span", row))
        for column in columns:
            mosaic = sheet.wells.get(f"{row}{column}")
            cells.append(tag("span") if mosaic is None else _well(f"{row}{column}", sheet.channel, mosaic))
    width = max(mosaic.across * mosaic.edge for mosaic in sheet.wells.values())
    return tag("div", *cells, class_="sheet", style=f"--columns: {len(columns)}; --edge: {width}px")


def _rows_and_columns(sheet: Sheet) -> tuple[list[str], list[str]]:
    places = sorted(sheet.wells, key=well_position)
    return list(dict.fromkeys(well[:-2] for well in places)), sorted({well[-2:] for well in places})


def _well(well: str, channel: str, mosaic: Mosaic) -> Html:
    source = f"data:image/jpeg;base64,{base64.b64encode(mosaic.jpeg).decode()}"
    title = f"{well}, {channel}: {many(len(mosaic.fields), 'field')}"
    image = tag("img", src=source, alt=title, **{"data-channel": channel}).removesuffix("</img>")
    return tag("button", Html(image), type="button", title=well, **{"data-well": well})


def _dialog(sheets: Sequence[Sheet], texts: Mapping[str, WellText]) -> list[Html]:
    """Returns what a click opens, what it says of each well, and the script."""
    content = {
        well: {"edge": mosaic.edge, "across": mosaic.across, "about": texts[well].about,
               "fields": texts[well].fields}
        for well, mosaic in (sheets[0].wells if sheets else {}).items()
    }  # fmt: skip
    # Names of plates may hold anything, and `</script>` would end the element.
    data = Html(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))
    close = tag("form", tag("button", "Close"), method="dialog")
    steps = [tag("button", text, type="button", id=name) for name, text in (("back", "‹"), ("next", "›"))]
    elements = [close, tag("h3"), tag("p"), tag("div", class_="views"), tag("p", *steps)]
    return [
        tag("dialog", *elements, id="look", **{"aria-label": "one field"}),
        tag("script", data, type="application/json", id="wells"),
        tag("script", Html(SCRIPT)),
    ]


# ---------------------------------------------------------------- the picture


def draw(name: str, sheets: Sequence[Sheet], maps: Sequence[HeatMap], path: Path) -> None:
    """Saves the overview as one PNG: thumbnails of at most four channels, and all heat maps."""
    from matplotlib.figure import Figure

    drawn_sheets = list(sheets[:MOST_SHEETS])
    arrays = [_compose(sheet) for sheet in drawn_sheets]
    width = 13.0
    sheet_width = width / min(len(drawn_sheets), 2) if drawn_sheets else width
    sheets_height = sum(
        max(sheet_width * array.shape[0] / array.shape[1] for array in arrays[n : n + 2]) + 0.6
        for n in range(0, len(arrays), 2)
    )
    map_rows = -(-len(maps) // 4)
    map_height = 3.0 * len(maps[0].plates[0].rows) / len(maps[0].plates[0].columns) + 0.8
    figure = Figure(
        figsize=(width, sheets_height + map_height * map_rows + 0.5), layout="constrained", dpi=DPI
    )
    figure.suptitle(f"Plate {name}", fontsize=13, color=INK, x=0.01, ha="left")
    ratios = [sheets_height, map_height * map_rows] if drawn_sheets else [map_height * map_rows]
    parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    if drawn_sheets:
        _draw_sheets(parts[0], drawn_sheets, arrays)
    grid = parts[-1].subplots(map_rows, 4, squeeze=False).ravel()
    for axis in grid[len(maps) :]:
        axis.set_axis_off()
    for axis, heat_map in zip(grid, maps, strict=False):
        _draw_map(axis, heat_map)
    save(figure, path, durable=False)


def _compose(sheet: Sheet) -> np.ndarray[Any, Any]:
    """Returns all wells in one picture (y, x), 255 where there is none."""
    rows, columns = _rows_and_columns(sheet)
    size = max(
        32, min(SHEET // len(columns), max(picture.across * picture.edge for picture in sheet.wells.values()))
    )
    # Two fields side by side are half as high as wide.
    aspect = max(-(-len(mosaic.fields) // mosaic.across) / mosaic.across for mosaic in sheet.wells.values())
    height = round(size * aspect)
    canvas = np.full((height * len(rows), size * len(columns)), 255, np.uint8)
    for well, mosaic in sheet.wells.items():
        y, x = height * rows.index(well[:-2]), size * columns.index(well[-2:])
        with Image.open(io.BytesIO(mosaic.jpeg)) as image:
            image.thumbnail((size - 2, size - 2), Image.Resampling.BOX)
            canvas[y : y + image.height, x : x + image.width] = np.asarray(image)
    return canvas


def _draw_sheets(part: Figure, sheets: Sequence[Sheet], arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    across = min(len(sheets), 2)
    grid = part.subplots(-(-len(sheets) // across), across, squeeze=False).ravel()
    for axis in grid[len(sheets) :]:
        axis.set_axis_off()
    for axis, sheet, array in zip(grid, sheets, arrays, strict=False):
        rows, columns = _rows_and_columns(sheet)
        axis.imshow(array, cmap="gray", vmin=0, vmax=255)
        axis.set_xticks(
            array.shape[1] / len(columns) * (np.arange(len(columns)) + 0.5),
            [str(int(name)) for name in columns],
        )
        axis.set_yticks(len(array) / len(rows) * (np.arange(len(rows)) + 0.5), rows)
        axis.tick_params(length=0, labelsize=7, labelcolor=INK, top=False, labeltop=True, labelbottom=False)
        axis.spines[:].set_visible(False)
        axis.set_title(sheet.channel, fontsize=10, color=INK, loc="left")


def _draw_map(axis: Axes, heat_map: HeatMap) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(*heat_maps.limits(heat_map.plates, heat_map.unit)), heat_maps.COLORS)
    heat_maps.draw_plate(axis, heat_map.plates[0], scale, numbered=False)
    if len(heat_map.plates[0].columns) > 12:
        axis.tick_params(labelsize=4.5)
    axis.set_title(heat_map.title, fontsize=9, color=INK, loc="left", pad=14)
    ticks = heat_maps.ticks(heat_map.plates)
    bar = axis.figure.colorbar(scale, ax=axis, shrink=0.8, aspect=18, pad=0.02, ticks=ticks)
    bar.set_label(heat_map.unit, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    bar.ax.ticklabel_format(useOffset=False)  # counts as they are, not what they exceed another number by
