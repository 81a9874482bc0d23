"""Pictures and pages for people: predictions side by side, the curves of training, pages of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.files import write_atomic

if TYPE_CHECKING:  # matplotlib is slow to import: training starts without it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
EDGE = 512
MOST_PANELS = 2
INK = "#333333"


@dataclass(frozen=True)
class Example:
    """One field for a row of the picture; arrays are (channel, y, x).

    Attributes:
        title: well, and its columns of the plate map.
        source_names, target_names: of the sources and targets shown.
        pccs: of each target, over the whole field.
        pixel_um: edge of a pixel in micrometres, or None.
    """

    title: str
    sources: NDArray[Any]
    targets: NDArray[Any] | None
    prediction: NDArray[Any]
    source_names: tuple[str, ...]
    target_names: tuple[str, ...]
    pccs: tuple[float, ...]
    pixel_um: float | None = None

    def cropped(self) -> Example:
        """Returns at most two sources and two targets, and the middle 512 × 512 pixels: visible in print."""
        corners = [max(length - EDGE, 0) // 2 for length in self.sources.shape[1:]]
        box = tuple(slice(corner, corner + EDGE) for corner in corners)

        def cut(pixels: NDArray[Any]) -> NDArray[Any]:
            return pixels[:MOST_PANELS, *box].astype(np.float32)

        return replace(
            self, sources=cut(self.sources), targets=None if self.targets is None else cut(self.targets),
            prediction=cut(self.prediction), source_names=self.source_names[:MOST_PANELS],
            target_names=self.target_names[:MOST_PANELS], pccs=self.pccs[:MOST_PANELS],
        )  # fmt: skip


def draw_examples(examples: Sequence[Example], path: Path) -> None:
    """Draws one row per field: its sources, then truth and prediction of each target on one scale."""
    from matplotlib.figure import Figure

    first = examples[0]
    columns = len(first.sources) + 2 * len(first.prediction)
    figure = Figure(figsize=(3.0 * columns, 3.25 * len(examples)), layout="constrained", dpi=110)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for axes, example in zip(grid, examples, strict=True):
        for axis in axes:
            axis.set_axis_off()
        _draw_row(list(axes), example)
    save(figure, path)


def _draw_row(axes: list[Axes], example: Example) -> None:
    def show(
        axis: Axes, plane: NDArray[Any], limits: tuple[float, float], title: str, colors: str = "magma"
    ) -> None:
        axis.imshow(plane, cmap=colors, vmin=limits[0], vmax=limits[1], interpolation="nearest")
        axis.set_title(title, fontsize=9, color=INK, loc="left")

    for number, (axis, plane) in enumerate(zip(axes, example.sources, strict=False)):
        title = f"{'' if number else example.title}\n{example.source_names[number]}"
        show(axis, plane, _limits(plane, 0.5, 99.5), title, "gray")
    _scale_bar(axes[0], example.sources.shape[1:], example.pixel_um)
    target_axes = axes[len(example.sources) :]
    for number, prediction in enumerate(example.prediction):
        # Both on the range of the truth: a prediction too dark is seen to be.
        truth = None if example.targets is None else example.targets[number]
        limits = _limits(prediction if truth is None else truth, 1, 99.8)
        if truth is not None:
            show(target_axes[2 * number], truth, limits, f"\n{example.target_names[number]}")
        score = f"PCC {example.pccs[number]:.2f} in the whole field" if example.pccs else "no stain"
        show(target_axes[2 * number + 1], prediction, limits, f"predicted\n{score}")


def _limits(plane: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    bottom, top = np.percentile(plane, [low, high])
    # A plane of one value still needs a range to be drawn on.
    return float(bottom), float(top if top > bottom else bottom + 1)


def panel_grid(count: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Returns a figure and axes without frames, row by row: at least `count`, and `across` in a row.

    Args:
        width, height: of a panel, in inches.
    """
    from matplotlib.figure import Figure

    across = min(across, count)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained", dpi=110)
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def show_grey(axis: Axes, plane: NDArray[Any], interpolation: str | None = "nearest") -> None:
    """Draws a plane (y, x) in grey, from the darkest half percent of its pixels to the brightest."""
    low, high = _limits(plane, 0.5, 99.5)
    axis.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation=interpolation)


def _scale_bar(axis: Axes, shape: tuple[int, ...], pixel_um: float | None) -> None:
    """Draws a bar of a round length near a quarter of the width, if the size of a pixel is known."""
    if pixel_um is None:
        return
    from matplotlib.patches import Rectangle

    y, x = shape
    length = round_length(x * pixel_um / 4)
    left, top, width = 0.04 * x, 0.94 * y, length / pixel_um
    ground = Rectangle((left / 2, top - 0.07 * y), width + left, 0.11 * y, color="black", alpha=0.55, lw=0)
    axis.add_patch(ground)
    axis.add_patch(Rectangle((left, top), width, 0.012 * y, color="white", lw=0))
    axis.text(left + width / 2, top - 0.01 * y, f"{length:g} µm", color="white", fontsize=8, ha="center")


def round_length(limit: float) -> float:
    """Returns the greatest of 1, 2, 5, 10, 20, 50, … (and their tenths, …) that is not above `limit`."""
    decade = 10.0 ** np.floor(np.log10(limit))
    # The tolerance is for lengths that are round already, but for a rounding error.
    return float(max(step * decade for step in (1, 2, 5) if step * decade <= limit * 1.0001))


def draw_training(lines: Iterable[Mapping[str, Any]], path: Path, loss: str) -> None:
    """Saves the training curves as a PNG; see `training_figure`."""
    save(training_figure(lines, loss), path)


def training_figure(lines: Iterable[Mapping[str, Any]], loss: str) -> Figure:
    """Returns loss by step, and scores of validation fields, if any, from lines of metrics.jsonl.

    Args:
        loss: its name.
    """
    from matplotlib.figure import Figure

    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line["values"].items():
            curves.setdefault(name, {})[line["step"]] = value  # an attempt that repeats steps replaces them
    training, validation, pcc = (
        dict(sorted(curves.get(name, {}).items()))
        for name in ("train/loss", "validation/loss", "validation/pcc")
    )
    panels = 2 if pcc else 1
    figure = Figure(figsize=(4.5 * panels, 3.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, panels, sharex=True, squeeze=False)[0]

    def plot(axis: Axes, points: Mapping[int, float], label: str, color: str) -> None:
        mark = "o" if len(points) < 50 else ""
        axis.plot(list(points), list(points.values()), color=color, lw=1.4, marker=mark, ms=3, label=label)

    def label(axis: Axes, title: str, quantity: str) -> None:
        axis.set_title(title, fontsize=10, color=INK, loc="left")
        axis.set_ylabel(quantity, fontsize=9)
        axis.set_xlabel("step", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)

    plot(axes[0], training, "training crops", "#2a6f97")
    if validation:
        plot(axes[0], validation, "validation fields", "#d1495b")
        axes[0].legend(fontsize=8, frameon=False)
    # A logarithmic axis has no place for losses of 0 or below.
    if min([*training.values(), *validation.values()], default=0) > 0:
        axes[0].set_yscale("log")
    label(axes[0], "Loss", loss)
    if pcc:
        plot(axes[1], pcc, "validation fields", "#d1495b")
        label(axes[1], "Validation", "Pearson correlation (PCC)")
    return figure


def save(figure: Figure, path: Path, *, durable: bool = True) -> None:
    """Writes the picture as a PNG, complete or not at all; durably, unless it can be drawn again."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    write_atomic(path, stream.getvalue(), durable=durable)


STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; max-width: 1360px; padding: 1.5rem 2rem 4rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .2rem }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .5rem; border-top: 1px solid #c9c9c9 }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
p, li { max-width: 62rem } p.about { color: #444; margin-top: 0 }
nav ol { columns: 2; padding-left: 1.4rem; margin: .6rem 0; max-width: 50rem }
a { color: #0b4f8a }
.headline { background: #eef4fa; border-left: 5px solid #0072b2; padding: .7rem 1.2rem; margin: 1rem 0 }
.headline p { margin: .45rem 0; font-size: 1.08rem }
.warning { background: #fdf1e7; border-left: 5px solid #d55e00; padding: .5rem 1.2rem; margin: 1rem 0 }
figure { margin: 1rem 0 1.4rem } figure img { max-width: 100%; height: auto; display: block }
figcaption, caption { color: #333; font-size: .92rem; max-width: 62rem }
.wide { overflow-x: auto; margin: .8rem 0 1.4rem }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .35rem }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
thead th { border-bottom: 2px solid #777 } td.number, th.number { text-align: right; white-space: nowrap }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: .88em;
  overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: .7rem 1rem; white-space: pre-wrap }
@media print { body { max-width: none; padding: 0; font-size: 11pt } figure, tr { break-inside: avoid }
  h2, h3 { break-after: avoid } .wide { overflow: visible } table { font-size: 8.5pt }
  th, td { padding: .15rem .35rem } td.number, th.number { white-space: normal } }
"""


# ---------------------------------------------------------------- pages


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def safe(inside: object) -> Html:
    """Returns HTML as it is, anything else escaped."""
    return inside if isinstance(inside, Html) else Html(escape(str(inside)))


def join(parts: Iterable[object]) -> Html:
    return Html("\n".join(map(safe, parts)))


def tag(element: str, *inside: object, **attributes: object) -> Html:
    """Returns an element, as in `tag("p", "a < b", class_="about")`."""
    # `class` is a word of Python: callers write class_.
    attribute_text = "".join(
        f' {name.rstrip("_")}="{escape(str(value))}"' for name, value in attributes.items()
    )
    return Html(f"<{element}{attribute_text}>{''.join(map(safe, inside))}</{element}>")


def picture(png: bytes, alt: str, caption: object, width: int | None = None) -> Html:
    """Returns a figure whose pixels are part of the page; `width` in CSS pixels."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    size = f' width="{width}"' if width else ""
    image = Html(f'<img src="{source}" alt="{escape(alt)}"{size}>')
    return tag("figure", image, tag("figcaption", caption))


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], caption: object, numbers: Iterable[int] = ()
) -> Html:
    """Returns a table; `numbers`: the columns that hold numbers, which are right-aligned."""
    right_aligned = set(numbers)

    def line(kind: str, cells: Sequence[object]) -> Html:
        marked_cells = [
            tag(kind, cell, **({"class_": "number"} if column in right_aligned else {}))
            for column, cell in enumerate(cells)
        ]
        return tag("tr", *marked_cells)

    body = join(line("td", row) for row in rows)
    content = tag("table", tag("caption", caption), tag("thead", line("th", header)), tag("tbody", body))
    return tag("div", content, class_="wide")


def page(title: str, body: Html) -> str:
    """Returns the whole file, without scripts and without anything to download."""
    head = join([
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Html(STYLE)),
    ])  # fmt: skip
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n{tag("body", body)}\n</html>\n'
