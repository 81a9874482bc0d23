"""Pictures of test boxes: what the networks saw, the stain, the truth, and each arm's objects beside it."""

from __future__ import annotations

import json
import textwrap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.files import read_json
from hpc_isl.learning.fields import image_key, level_on
from hpc_isl.learning.samples import read
from hpc_isl.learning.view import View
from hpc_isl.mistake import Mistake
from hpc_isl.objects.matching import match
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_names, open_plate, read_labels
from hpc_isl.stages.pictures import INK
from hpc_isl.stages.report_pictures import DPI, WIDTH, Picture, finished
from hpc_isl.stages.report_sweep import Cell, Element, Sweep
from hpc_isl.stages.study import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Labels = NDArray[Any]
MOST = 4
MATCHED, EXTRA, MISSED = "#56b4e9", "#d55e00", "#f0e442"
MEANING = {
    MATCHED: "matched: IoU ≥ 0.5", EXTRA: "false positive: predicted, no such object",
    MISSED: "false negative: an object that was missed",
}  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A test box that all elements kept; `box` in pixels of `level`."""

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
class Said:
    """What one element predicted in a spot."""

    labels: Labels
    stain: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class Seen:
    """What the plate holds in a spot; the stain None where it has none."""

    source: NDArray[Any]
    source_name: str
    stain: NDArray[Any] | None
    stain_name: str
    truth: Labels
    size_um: str


def panels(sweep: Sweep) -> tuple[list[Picture], list[str]]:
    """One picture per spot, and why others could not be drawn."""
    found: list[Picture] = []
    problems: list[str] = []
    spots = _spots(sweep)
    for spot, said in list(spots.items())[:MOST]:
        try:
            seen = _look(spot, _view(sweep, spot))
            _check(seen, said)
        except (Mistake, OSError, KeyError, ValueError, IndexError) as error:
            problems.append(f"{spot}: not drawn. {error}")
            continue
        found.append(_draw(sweep, spot, seen, said, f"panel-{len(found)}.png"))
    if not spots:
        problems.append("No element kept a test box to show.")
    return found, problems


def _spots(sweep: Sweep) -> dict[Spot, dict[Cell, Said]]:
    """Of each cell at no, the fewest and the most boxes the first draw that kept the spot."""
    wanted = {0, sweep.fewest, *sweep.counts[-1:]}
    found: dict[Spot, dict[Cell, Said]] = {}
    for element in sorted(sweep.elements, key=lambda one: (*one.cell.order, one.chance)):
        if element.recipe.n in wanted:
            for spot, said in _kept(element):
                found.setdefault(spot, {}).setdefault(element.cell, said)
    return found


def _kept(element: Element) -> Iterator[tuple[Spot, Said]]:
    """What is in panels.json and panels.npz; nothing where they are not there, or torn."""
    try:
        listed = json.loads((element.run.folder / "panels.json").read_text())
        with np.load(element.run.folder / "panels.npz") as arrays:
            for entry in listed:
                key = entry["key"]
                stain = arrays[f"stain_{key}"] if f"stain_{key}" in arrays.files else None
                y0, x0, y1, x1 = entry["box"]
                places = [str(entry[name]) for name in ("plate", "well", "field")]
                spot = Spot(
                    *places, int(entry["time"]), int(entry["level"]), (y0, x0, y1, x1), entry["truth"]
                )
                yield spot, Said(arrays[f"labels_{key}"], stain)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return


def _view(sweep: Sweep, spot: Spot) -> View:
    """Of the ISL model, which knows the stain too; else that of an element."""
    for folder in map(Path, sweep.first.pretrained):
        if (content := read_json(folder / "model" / "contract.json")) is not None:
            return View.from_dict(content["view"])
    content = read_json(sweep.elements[0].run.model / "contract.json")
    if content is None:
        raise Mistake("neither the ISL run nor an element has a model that says what the networks saw")
    return replace(View.from_dict(content["view"]), targets=())


def _look(spot: Spot, view: View) -> Seen:
    index = open_plate(Path(spot.plate))
    key = _key(index, spot, view)
    if level_on(view, index, key) != spot.level:
        raise Mistake(
            f"the ISL model looks at level {level_on(view, index, key)}, the picture was kept at {spot.level}"
        )
    y0, x0, y1, x1 = spot.box
    sources, targets = read(view, index, key, spot.time, (slice(y0, y1), slice(x0, x1)))
    size = index.plate.pixel_um
    return Seen(
        sources[0], name_of(view.sources[0]), None if targets is None else targets[0],
        name_of(view.targets[0]) if view.targets else "", _truth(index, key, spot, view),
        f"{(y1 - y0) * size * 2**spot.level:.0f} × {(x1 - x0) * size * 2**spot.level:.0f} µm" if size
        else f"{y1 - y0} × {x1 - x0} pixels",
    )  # fmt: skip


def _key(index: Index, spot: Spot, view: View) -> FieldKey:
    own = view.sources[0].acquisition
    for field in index.plate.fields:
        key = field.key
        if (key.well, key.name) == (spot.well, spot.field) and own in (None, key.acquisition):
            return key
    raise Mistake(f"{index.path}: has no field {spot.well}/{spot.field}")


def _truth(index: Index, key: FieldKey, spot: Spot, view: View) -> Labels:
    """The labels lie beside the sources, or beside the stain where that is another pass."""
    keys = [key, *(image_key(key, role) for role in view.targets)]
    image = next(
        (image for image in map(index.image, keys) if spot.truth in label_names(image)), index.image(key)
    )
    labels = read_labels(image, spot.truth, spot.level)
    y0, x0, y1, x1 = spot.box
    return (labels[spot.time] if labels.ndim == 3 else labels)[y0:y1, x0:x1]


def _check(seen: Seen, said: Mapping[Cell, Said]) -> None:
    for cell, one in said.items():
        if one.labels.shape != seen.truth.shape:
            raise Mistake(f"{cell.arm} kept {one.labels.shape} pixels, the plate holds {seen.truth.shape}")


# ---------------------------------------------------------------- drawing


def _draw(sweep: Sweep, spot: Spot, seen: Seen, said: Mapping[Cell, Said], name: str) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = _rows(said)
    columns = max(4, *map(len, rows))
    height, width = seen.truth.shape
    edge = WIDTH / columns
    tall = (edge - 0.15) * height / width + 0.6
    figure = Figure(figsize=(WIDTH, tall * (1 + len(rows)) + 0.35), layout="constrained", dpi=DPI)
    grid = figure.subplots(1 + len(rows), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    letters = int(edge * 13)
    _draw_plate(list(grid[0]), seen, said, letters)
    counts = [_draw_said(axis, seen, cell, said[cell].labels, letters)
              for axes, cells in zip(grid[1:], rows, strict=True) for axis, cell in zip(axes, cells, strict=False)]  # fmt: skip
    patches = [Patch(color=shade, label=text) for shade, text in MEANING.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    caption = f"{spot}; truth {spot.truth!r}. TP matched, FP false positive, FN false negative; the first draw of each arm."
    return finished(figure, name, f"Test box {spot}. {'; '.join(counts)}", caption)


def _rows(said: Mapping[Cell, Said]) -> list[list[Cell]]:
    """Cells by number of boxes, no annotation at all first."""
    numbers = dict.fromkeys(cell.n for cell in sorted(said, key=lambda cell: cell.order[-1]))
    return [[cell for cell in sorted(said, key=lambda one: one.order) if cell.n == n] for n in numbers]


def _draw_plate(axes: Sequence[Axes], seen: Seen, said: Mapping[Cell, Said], letters: int) -> None:
    limits = np.percentile(seen.source, [0.5, 99.5])
    _show(axes[0], seen.source, limits, f"input: {seen.source_name}\n{seen.size_um}", letters)
    place = 1
    bright = None if seen.stain is None else np.percentile(seen.stain, [1, 99.8])
    if seen.stain is not None:
        _show(axes[place], seen.stain, bright, f"true stain: {seen.stain_name}\n", letters, "magma")
        place += 1
    stains = [(cell, one.stain) for cell, one in said.items() if one.stain is not None]
    if stains:
        cell, stain = min(stains, key=lambda pair: pair[0].order[-1])
        pixels = stain.astype(np.float32)
        scale = np.percentile(pixels, [1, 99.8]) if bright is None else bright
        _show(axes[place], pixels, scale, f"predicted stain\n{cell.arm}", letters, "magma")
        place += 1
    _show(axes[place], seen.source, limits, f"truth\n{_count(seen.truth)} objects", letters)
    axes[place].imshow(outlined(seen.truth, seen.truth > 0, "#ffffff", 0.0), interpolation="nearest")


def _show(
    axis: Axes, plane: NDArray[Any], limits: Any, title: str, letters: int, colors: str = "gray"
) -> None:
    low, high = float(limits[0]), float(limits[1])
    axis.imshow(plane, cmap=colors, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    axis.set_title(_wrapped(title, letters), fontsize=9, color=INK, loc="left")


def _wrapped(title: str, letters: int) -> str:
    return "\n".join(textwrap.fill(line, letters) for line in title.split("\n"))


def _count(labels: Labels) -> int:
    return len(np.unique(labels[labels > 0]))


def _draw_said(axis: Axes, seen: Seen, cell: Cell, labels: Labels, letters: int) -> str:
    """Predicted objects by what they met; on top of them the true ones that no prediction met."""
    found = match(labels, seen.truth)
    counts = f"TP {found.hits()}, FP {found.predictions - found.hits()}, FN {found.truths - found.hits()}"
    _show(
        axis,
        seen.source,
        np.percentile(seen.source, [0.5, 99.5]),
        f"{cell.arm}, N = {cell.n}\n{counts}",
        letters,
    )
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
