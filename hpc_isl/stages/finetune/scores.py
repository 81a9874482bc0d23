"""What a network that segments makes of the test boxes: objects, scores against truth, panels to look at."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hpc_isl.files import write_atomic
from hpc_isl.learning.data.annotated_crops import labels_in
from hpc_isl.learning.data.fields import level_on
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Task
from hpc_isl.learning.training.precision import resolve
from hpc_isl.learning.training.world import World
from hpc_isl.objects.matching import inside, object_scores
from hpc_isl.objects.scores import mask_iou
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.finetune.boxes import Box
from hpc_isl.stages.finetune.inputs import FinetuneInputs
from hpc_isl.stages.shared.decoding import objects_in, rule_of
from hpc_isl.stages.shared.held_out import Row, mean, spread, write_scores
from hpc_isl.stages.shared.sweeps import SCORES
from hpc_isl.stages.shared.workloads import TEST, megapixels

Pixels = NDArray[np.float32]
Labels = NDArray[np.uint32]
Panel = tuple[int, dict[str, Any], dict[str, NDArray[Any]]]
PANELS = 4


def make_scores(
    recipe: FinetuneRecipe,
    setting: FinetuneInputs,
    network: nn.Module,
    task: Task | None,
    attempt: Attempt,
    world: World,
) -> list[Row] | None:
    """A row for each test box and truth, in order, the same on all ranks; None if the run is stopping.

    In the run folder appear `scores.csv`, `panels.json` and `panels.npz`.
    """
    predictor = _predictor(recipe, setting, network, world)
    stain = _stain(recipe, setting, world)
    rows: list[tuple[int, Row]] = []
    panels: list[Panel] = []
    shown = _shown(setting.testing)
    own = _by_field(setting.testing)[world.rank :: world.size]
    for done, boxes in enumerate(own, 1):
        if attempt.stopping.is_set():
            break
        first = boxes[0][1]
        sources, _ = read(setting.view, first.index, first.key, first.time)
        found = objects_in(predictor(sources), rule_of(task))
        for number, box in boxes:
            rows.append((number, _row(recipe, setting, box, found)))
            if number in shown:
                predicted = stain(sources)[0] if stain else None
                panels.append(_panel(shown.index(number), setting, box, found, predicted))
        attempt.clock.tick(TEST, megapixels(setting.view, [(first.index, first.key)]))
        attempt.progress(done, len(own), "test fields", **_quick([row for _, row in rows]))
    gathered = world.gather((attempt.stopping.is_set(), rows, panels))
    if any(stopped for stopped, _, _ in gathered):
        return None
    numbered = sorted((pair for _, each, _ in gathered for pair in each), key=lambda pair: pair[0])
    if world.rank == 0:
        _write(attempt, [row for _, row in numbered], [panel for _, _, each in gathered for panel in each])
    return [row for _, row in numbered]


def _predictor(
    recipe: FinetuneRecipe, setting: FinetuneInputs, network: nn.Module, world: World
) -> Predictor:
    of, dtype = recipe.predict, resolve(recipe.train.precision, world.device)
    return Predictor(
        network, world.device, dtype, of.tile, of.halo, of.batch,
        channels_last=setting.net.channels_last,
    )  # fmt: skip


def _stain(recipe: FinetuneRecipe, setting: FinetuneInputs, world: World) -> Predictor | None:
    """The ISL model behind the arm, which shows what it predicts of the stain."""
    start = setting.start(recipe.arm)
    if start is None or not start.isl:
        return None
    return _predictor(recipe, setting, model.load(start.folder)[0], world)


def _by_field(boxes: Sequence[Box]) -> list[list[tuple[int, Box]]]:
    """The test boxes with their numbers, those of one field and time together."""
    groups: dict[tuple[object, ...], list[tuple[int, Box]]] = {}
    for number, box in enumerate(boxes):
        groups.setdefault((*box.field, box.key.acquisition, box.time), []).append((number, box))
    return list(groups.values())


def _shown(boxes: Sequence[Box]) -> list[int]:
    """The numbers of up to four boxes of the main truth, evenly spread: the same for every run."""
    main = [number for number, box in enumerate(boxes) if box.labels == boxes[0].labels]
    places = np.linspace(0, len(main) - 1, min(PANELS, len(main))).round().astype(int)
    return [main[place] for place in places]


def _row(recipe: FinetuneRecipe, setting: FinetuneInputs, box: Box, found: Labels) -> Row:
    """Where the box is, what it is compared with, all scores, and the plate map's columns."""
    level = level_on(setting.view, box.index, box.key)
    truth = inside(labels_in(box.image, box.labels, level, box.time), box.at(level))
    ours = inside(found, box.at(level))
    return {
        "plate": box.index.plate.name, "well": box.key.well, "field": box.key.name, "time": box.time,
        "box": " ".join(map(str, box.corners)), "truth": box.labels, "origin": box.origin,
        "same": _same(recipe, setting, box),
        "iou": mask_iou(ours, truth), **object_scores(ours, truth),
        "objects": count(truth), "predicted": count(ours),
        **box.index.plate_map.get(box.key.well, {}),
    }  # fmt: skip


def _same(recipe: FinetuneRecipe, setting: FinetuneInputs, box: Box) -> str:
    """Whether the boxes of this draw hold the test box's value of the column."""
    if recipe.within is None or not setting.learning:
        return ""
    held = {one.value(recipe.within) for one in setting.learning}
    return "within" if box.value(recipe.within) in held else "across"


def count(labels: NDArray[Any]) -> int:
    """Objects, background apart; ends of runs along the raster are far fewer to sort than pixels."""
    flat = labels.ravel()
    ends = np.append(flat[:-1] != flat[1:], True)
    return len(np.setdiff1d(flat[ends], [0]))


def _panel(number: int, setting: FinetuneInputs, box: Box, found: Labels, stain: Pixels | None) -> Panel:
    level = level_on(setting.view, box.index, box.key)
    corners = box.at(level)
    about = {
        "key": str(number), "plate": str(box.index.path), "well": box.key.well, "field": box.key.name,
        "time": box.time, "level": level, "box": list(corners), "truth": box.labels,
    }  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {f"labels_{number}": inside(found, corners)}
    if stain is not None:
        arrays[f"stain_{number}"] = inside(stain, corners).astype(np.float16)
    return number, about, arrays


def _write(attempt: Attempt, rows: Sequence[Row], panels: Sequence[Panel]) -> None:
    folder = attempt.run.folder
    if rows:
        write_scores(rows, folder / "scores.csv")
    if not panels:
        return
    ordered = sorted(panels, key=lambda panel: panel[0])
    stream = io.BytesIO()
    arrays: Any = {name: array for _, _, each in ordered for name, array in each.items()}
    np.savez_compressed(stream, **arrays)
    write_atomic(folder / "panels.npz", stream.getvalue())
    write_atomic(folder / "panels.json", json.dumps([about for _, about, _ in ordered], indent=1))


# ---------------------------------------------------------------- figures


def main_figures(rows: Sequence[Row], recipe: FinetuneRecipe) -> dict[str, Any]:
    """Mean and standard deviation over images of the main truth; what has none is left out."""
    truth = (recipe.reference_labels or [recipe.labels])[0]
    own = [row for row in rows if row["truth"] == truth]
    found: dict[str, float] = {}
    for name in SCORES:
        values = [row[name] for row in own]
        found |= {name: mean(values), f"{name}_sd": spread(values)}
    finite = {name: round(value, 5) for name, value in found.items() if not np.isnan(value)}
    return finite | {"images": len(own)}


def _quick(rows: Sequence[Row]) -> dict[str, float]:
    return {"iou": mean(row["iou"] for row in rows), "mAP": mean(row["mAP"] for row in rows)} if rows else {}
