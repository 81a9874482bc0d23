"""The test boxes that elements kept for a report's pictures, and what the plate holds there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.learning.data.fields import image_key, level_on
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.data.view import View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_names, open_plate, read_labels
from hpc_isl.stages.report.sweep_results import Cell, Element, Sweep
from hpc_isl.stages.shared.plate_views import name_of

Labels = NDArray[Any]


@dataclass(frozen=True)
class ExampleBox:
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
class BoxLabels:
    """What one element predicted in a spot."""

    labels: Labels
    stain: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class BoxPrediction:
    """What the plate holds in a spot; the stain None where it has none."""

    source: NDArray[Any]
    source_name: str
    stain: NDArray[Any] | None
    stain_name: str
    truth: Labels
    truth_name: str
    size: str


def choose_example_boxes(sweep: Sweep) -> dict[ExampleBox, dict[Cell, BoxLabels]]:
    """Of each cell at no, the fewest and the most boxes the first draw that kept the spot."""
    wanted = {0, sweep.fewest, *sweep.counts[-1:]}
    found: dict[ExampleBox, dict[Cell, BoxLabels]] = {}
    for element in sorted(sweep.elements, key=lambda one: (*one.cell.order, one.chance)):
        if element.recipe.n in wanted:
            for spot, said in _kept(element):
                found.setdefault(spot, {}).setdefault(element.cell, said)
    return found


def _kept(element: Element) -> Iterator[tuple[ExampleBox, BoxLabels]]:
    """What is in panels.json and panels.npz; nothing where they are not there, or torn."""
    try:
        listed = json.loads((element.run.folder / "panels.json").read_text())
        with (element.run.folder / "panels.npz").open("rb") as stream, np.load(stream) as arrays:
            for entry in listed:
                key = entry["key"]
                stain = arrays[f"stain_{key}"] if f"stain_{key}" in arrays.files else None
                y0, x0, y1, x1 = entry["box"]
                spot = ExampleBox(
                    entry["plate"], entry["well"], entry["field"], int(entry["time"]), int(entry["level"]),
                    (y0, x0, y1, x1), entry["truth"],
                )  # fmt: skip
                yield spot, BoxLabels(arrays[f"labels_{key}"], stain)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return


def view_for(sweep: Sweep) -> View:
    """Of the ISL model, which knows the stain too; else that of an element."""
    for folder in map(Path, sweep.first.pretrained):
        if (content := read_json(folder / "model" / "contract.json")) is not None:
            return View.from_dict(content["view"])
    content = read_json(sweep.elements[0].run.model / "contract.json")
    if content is None:
        raise UserError("neither the ISL run nor an element has a model that says what the networks saw")
    return replace(View.from_dict(content["view"]), targets=())


def predict_box(spot: ExampleBox, view: View) -> BoxPrediction:
    index = open_plate(Path(spot.plate))
    key = _key(index, spot, view)
    if level_on(view, index, key) != spot.level:
        raise UserError(
            f"the ISL model looks at level {level_on(view, index, key)}, the picture was kept at {spot.level}"
        )
    y0, x0, y1, x1 = spot.box
    sources, targets = read(view, index, key, spot.time, (slice(y0, y1), slice(x0, x1)))
    size = index.plate.pixel_um
    return BoxPrediction(
        sources[0], name_of(view.sources[0]), None if targets is None else targets[0],
        name_of(view.targets[0]) if view.targets else "", _truth(index, key, spot, view), spot.truth,
        f"{(y1 - y0) * size * 2**spot.level:.0f} × {(x1 - x0) * size * 2**spot.level:.0f} µm" if size
        else f"{y1 - y0} × {x1 - x0} pixels",
    )  # fmt: skip


def _key(index: Index, spot: ExampleBox, view: View) -> FieldKey:
    own = view.sources[0].acquisition
    for field in index.plate.fields:
        key = field.key
        if (key.well, key.name) == (spot.well, spot.field) and own in (None, key.acquisition):
            return key
    raise UserError(f"{index.path}: has no field {spot.well}/{spot.field}")


def _truth(index: Index, key: FieldKey, spot: ExampleBox, view: View) -> Labels:
    """The labels lie beside the sources, or beside the stain where that is another pass."""
    keys = [key, *(image_key(key, role) for role in view.targets)]
    image = next(
        (image for image in map(index.image, keys) if spot.truth in label_names(image)), index.image(key)
    )
    labels = read_labels(image, spot.truth, spot.level)
    y0, x0, y1, x1 = spot.box
    return (labels[spot.time] if labels.ndim == 3 else labels)[y0:y1, x0:x1]


def check(seen: BoxPrediction, said: Mapping[Cell, BoxLabels]) -> None:
    for cell, one in said.items():
        if one.labels.shape != seen.truth.shape:
            raise UserError(f"{cell.arm} kept {one.labels.shape} pixels, the plate holds {seen.truth.shape}")
