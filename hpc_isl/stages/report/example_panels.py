"""Pictures of test boxes: what the networks saw, the stain, the truth, and each arm's objects beside it."""

from __future__ import annotations

import json
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError, many
from hpc_isl.files import read_json
from hpc_isl.learning.data.fields import image_key, level_on
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.data.view import View
from hpc_isl.objects.matching import match
from hpc_isl.plates.store import label_names, open_plate, read_labels
from hpc_isl.stages.report.score_figures import WIDTH, Picture, to_picture
from hpc_isl.stages.report.sweep import Cell, Element, Sweep, rank
from hpc_isl.stages.shared.pictures import DPI, INK
from hpc_isl.stages.shared.plate_views import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Labels = NDArray[Any]  # (y, x) integers: uint32 of plates, smaller types of what elements kept
Draw = Callable[["Axes", int], None]
"""Draws a view, with a title of so many letters in a line."""
MOST, WIDEST = 4, 5
MATCHED, EXTRA, MISSED, TRUE = "#56b4e9", "#d55e00", "#f0e442", "#c2188b"
MEANING = {
    MATCHED: "matched: IoU ≥ 0.5", EXTRA: "false positive: predicted, no such object",
    MISSED: "false negative: an object that was missed",
}  # fmt: skip


@dataclass(frozen=True)
class ExampleBox:
    """A test box that all elements kept; `box` (y0, x0, y1, x1) in pixels of `level`."""

    plate: str
    well: str
    field: str
    time: int
    level: int
    box: tuple[int, int, int, int]
    truth: str

    def __str__(self) -> str:
        y0, x0, y1, x1 = self.box
        return f"{Path(self.plate).stem} {self.well}/{self.field}, rows {y0} to {y1}, columns {x0} to {x1}"


@dataclass(frozen=True, eq=False)
class BoxPrediction:
    """The prediction of one element in a box."""

    labels: Labels
    stain: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class BoxContent:
    """The pixels and labels that the plate holds in a box; the stain None where it has none."""

    source: NDArray[Any]
    source_name: str
    stain: NDArray[Any] | None
    stain_name: str
    truth: Labels
    truth_name: str
    size: str


Predictions = Mapping[Cell, BoxPrediction]


def panels(sweep: Sweep) -> tuple[list[Picture], list[str]]:
    """Returns one picture per box, and why others could not be drawn."""
    pictures: list[Picture] = []
    problems: list[str] = []
    boxes = _choose_boxes(sweep)
    for box, predictions in list(boxes.items())[:MOST]:
        try:
            content = _read_box(box, _view_of_sweep(sweep))
            for cell, prediction in predictions.items():
                # The plate may have been converted anew since the element kept its box.
                kept_shape, stored_shape = prediction.labels.shape, content.truth.shape
                if kept_shape != stored_shape:
                    raise UserError(f"{cell.arm} kept {kept_shape} pixels, the plate holds {stored_shape}")
        except (UserError, OSError, KeyError, ValueError, IndexError) as error:
            problems.append(f"{box}: not drawn. {error}")
            continue
        pictures.append(_draw(box, content, predictions, f"panel-{len(pictures)}.png"))
    if not boxes:
        problems.append("No element kept a test box to show.")
    return pictures, problems


# ---------------------------------------------------------------- what elements kept, and what plates hold


def _choose_boxes(sweep: Sweep) -> dict[ExampleBox, dict[Cell, BoxPrediction]]:
    """Returns predictions of cells at no, the fewest and the most boxes, of the first draw that has them."""
    box_counts = {0, sweep.fewest, *sweep.counts[-1:]}
    boxes: dict[ExampleBox, dict[Cell, BoxPrediction]] = {}
    for element in sorted(sweep.elements, key=lambda element: (*element.cell.order, element.replicate)):
        if element.recipe.n in box_counts:
            for box, prediction in _saved_predictions(element):
                boxes.setdefault(box, {}).setdefault(element.cell, prediction)
    return boxes


def _saved_predictions(element: Element) -> Iterator[tuple[ExampleBox, BoxPrediction]]:
    """Yields the content of panels.json and panels.npz; nothing where they do not exist, or are torn."""
    try:
        entries = json.loads((element.run.folder / "panels.json").read_text())
        with (element.run.folder / "panels.npz").open("rb") as stream, np.load(stream) as arrays:
            for entry in entries:
                key = entry["key"]
                stain = arrays[f"stain_{key}"] if f"stain_{key}" in arrays.files else None
                y0, x0, y1, x1 = entry["box"]
                box = ExampleBox(
                    entry["plate"], entry["well"], entry["field"], int(entry["time"]), int(entry["level"]),
                    (y0, x0, y1, x1), entry["truth"],
                )  # fmt: skip
                yield box, BoxPrediction(arrays[f"labels_{key}"], stain)
    # An element that was killed while it wrote them: its pictures are missing, nothing else.
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return


def _view_of_sweep(sweep: Sweep) -> View:
    """Returns the view of the ISL model, which knows the stain too; else that of an element."""
    for folder in map(Path, sweep.first.pretrained):
        if (content := read_json(folder / "model" / "contract.json")) is not None:
            return View.from_dict(content["view"])
    content = read_json(sweep.elements[0].run.model / "contract.json")
    if content is None:
        raise UserError("neither the ISL run nor an element has a model that says what the networks saw")
    return replace(View.from_dict(content["view"]), targets=())


def _read_box(box: ExampleBox, view: View) -> BoxContent:
    index = open_plate(Path(box.plate))
    acquisition = view.sources[0].acquisition
    keys = [field.key for field in index.plate.fields if acquisition in (None, field.key.acquisition)]
    in_well = (key for key in keys if key.well == box.well)
    key = next((key for key in in_well if box.field in (key.name, key.image)), None)
    if key is None:
        raise UserError(f"{index.path}: has no field {box.well}/{box.field}")
    if level_on(view, index, key) != box.level:
        raise UserError(
            f"the ISL model looks at level {level_on(view, index, key)}, the picture was kept at {box.level}"
        )
    y0, x0, y1, x1 = box.box
    sources, targets = read(view, index, key, box.time, (slice(y0, y1), slice(x0, x1)))
    # Labels lie beside the sources, or beside the stain where that is another pass of imaging.
    candidate_keys = [key, *(image_key(key, role) for role in view.targets)]
    labels_key = next(
        (labels_key for labels_key in candidate_keys if box.truth in label_names(index.image(labels_key))),
        key,
    )
    labels = read_labels(index.image(labels_key), box.truth, box.level)
    shift = [round(step / 2**box.level) for step in index.shift(key, labels_key) or (0, 0)]
    rows, columns = (
        np.clip(np.arange(start, stop) + step, 0, length - 1)
        for start, stop, step, length in zip((y0, x0), (y1, x1), shift, labels.shape[-2:], strict=True)
    )
    truth = (labels[box.time] if labels.ndim == 3 else labels)[np.ix_(rows, columns)]
    pixel_um = (index.plate.pixel_um or 0) * 2**box.level
    size = f"{(y1 - y0) * pixel_um:.0f} × {(x1 - x0) * pixel_um:.0f} µm"
    return BoxContent(
        sources[0], name_of(view.sources[0]), None if targets is None else targets[0],
        name_of(view.targets[0]) if view.targets else "", truth, box.truth,
        size if pixel_um else f"{y1 - y0} × {x1 - x0} pixels",
    )  # fmt: skip


# ---------------------------------------------------------------- drawing


def _draw(box: ExampleBox, content: BoxContent, predictions: Predictions, name: str) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    plate_views, rows = _plate_views(content, predictions), _rows(predictions)
    columns = max(4, *map(len, rows))
    height, width = content.truth.shape
    edge = WIDTH / columns
    # So many letters of 9 points fit above a picture of this width.
    letters = int(edge * 12.5)
    title_lines = 2 + max(len(str(cell.arm)) + 10 > letters for cell in predictions)
    row_height = (edge - 0.15) * height / width + 0.2 * title_lines + 0.1
    figure = Figure(figsize=(WIDTH, row_height * (1 + len(rows)) + 0.35), layout="constrained", dpi=DPI)
    grid = figure.subplots(1 + len(rows), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    count_texts = []
    for axis, draw in zip(grid[0], plate_views, strict=False):
        draw(axis, letters)
    for axes, cells in zip(grid[1:], rows, strict=True):
        for axis, cell in zip(axes, cells, strict=False):
            count_texts.append(_draw_prediction(axis, content, cell, predictions[cell].labels, letters))
    patches = [Patch(color=shade, label=text) for shade, text in MEANING.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    caption = f"{box}; truth {box.truth!r}. TP matched, FP false positive, FN false negative. First draw."
    return to_picture(figure, name, f"Test box {box}. {'; '.join(count_texts)}", caption)


def _rows(predictions: Predictions) -> list[list[Cell]]:
    """Returns cells by number of boxes; those without any annotation end the first row."""
    cells = sorted(predictions, key=lambda cell: cell.order)
    numbers = sorted({cell.n for cell in cells if cell.n != 0}, key=rank)
    rows = [[cell for cell in cells if cell.n == n] for n in numbers] or [[]]
    rows[0] += [cell for cell in cells if cell.n == 0]
    return [row[start : start + WIDEST] for row in rows for start in range(0, len(row), WIDEST)]


def _plate_views(content: BoxContent, predictions: Predictions) -> list[Draw]:
    """Returns the first row: what is on the plate, and the stain that an ISL model predicts there."""
    limits = np.percentile(content.source, [0.5, 99.5])
    views = [_view(content.source, limits, f"input: {content.source_name}\n{content.size}")]
    stain_limits = None if content.stain is None else np.nanpercentile(content.stain, [1, 99.8])
    if content.stain is not None:
        views.append(_view(content.stain, stain_limits, f"true stain\n{content.stain_name}", "magma"))
    # One predicted stain is shown, that of the fewest boxes.
    stains = [
        (cell, prediction.stain) for cell, prediction in predictions.items() if prediction.stain is not None
    ]
    if stains:
        cell, stain = min(stains, key=lambda pair: pair[0].order[-1])
        pixels = stain.astype(np.float32)
        # On the scale of the true stain, so that a prediction too dark is seen to be.
        scale = np.percentile(pixels, [1, 99.8]) if stain_limits is None else stain_limits
        views.append(_view(pixels, scale, f"predicted stain\n{cell.arm}", "magma"))
    count = len(np.unique(content.truth[content.truth > 0]))
    title = f"truth: {content.truth_name}\n{many(count, 'object')}"
    return [
        *views,
        _view(content.source, limits, title, rims=_outline(content.truth, content.truth > 0, TRUE, 0.0)),
    ]


def _view(
    plane: NDArray[Any], limits: Any, title: str, colors: str = "gray", rims: NDArray[Any] | None = None
) -> Draw:
    def draw(axis: Axes, letters: int) -> None:
        low, high = float(limits[0]), float(limits[1])
        high = high if high > low else low + 1
        axis.imshow(plane, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
        lines = [textwrap.fill(line, letters) for line in title.split("\n")]
        axis.set_title("\n".join(lines), fontsize=9, color=INK, loc="left")
        if rims is not None:
            axis.imshow(rims, interpolation="nearest")

    return draw


def _draw_prediction(axis: Axes, content: BoxContent, cell: Cell, labels: Labels, letters: int) -> str:
    """Draws predicted objects by their match, and above them the true ones that no prediction matched."""
    matches = match(labels, content.truth)
    hits = matches.hits()
    counts = f"TP {hits}, FP {matches.predictions - hits}, FN {matches.truths - hits}"
    limits = np.percentile(content.source, [0.5, 99.5])
    _view(content.source, limits, f"{cell.arm}, N = {cell.n}\n{counts}")(axis, letters)
    matched = np.isin(labels, matches.prediction) & (labels > 0)
    missed = ~np.isin(content.truth, matches.truth) & (content.truth > 0)
    for objects, inside, shade in (
        (labels, matched, MATCHED), (labels, (labels > 0) & ~matched, EXTRA), (content.truth, missed, MISSED),
    ):  # fmt: skip
        axis.imshow(_outline(objects, inside, shade, 0.35), interpolation="nearest")
    return f"{cell.arm} at N = {cell.n}: {counts}"


def _outline(labels: Labels, inside: NDArray[Any], shade: str, fill: float) -> NDArray[np.float32]:
    """Returns (y, x, 4) in 0 to 1: objects filled thinly, their rims in full, which are their own pixels."""
    from matplotlib.colors import to_rgb

    rim = np.zeros(labels.shape, bool)
    # Both pixels at an edge are rims: each object is outlined by its own.
    for axis in (0, 1):
        edges = np.diff(labels.astype(np.int64), axis=axis) != 0
        before, after = [(0, 1), (0, 0)], [(1, 0), (0, 0)]
        rim |= np.pad(edges, before if axis == 0 else before[::-1])
        rim |= np.pad(edges, after if axis == 0 else after[::-1])
    rgba = np.zeros((*labels.shape, 4), np.float32)
    rgba[..., :3] = to_rgb(shade)
    rgba[..., 3] = np.where(inside, np.where(rim, 1.0, fill), 0.0)
    return rgba
