"""Scores of a network that segments on the test boxes, and panels for the report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.files import write_atomic
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Task
from hpc_isl.learning.training.world import World
from hpc_isl.objects.matching import inside, object_scores
from hpc_isl.objects.scores import mask_iou
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.run import Attempt
from hpc_isl.seeds import evenly_spread
from hpc_isl.stages.finetune.boxes import Box, by_field
from hpc_isl.stages.finetune.inputs import FinetuneInputs
from hpc_isl.stages.shared.decoding import decode, rule_of
from hpc_isl.stages.shared.following import SCORES
from hpc_isl.stages.shared.held_out import (
    Row,
    finite_figures,
    mean,
    means_and_deviations,
    with_plate_map,
    write_scores,
)
from hpc_isl.stages.shared.training_run import TrainingRun
from hpc_isl.stages.shared.workloads import TEST, megapixels

Pixels = NDArray[np.float32]
Labels = NDArray[np.uint32]
Segmented = tuple[Labels, Pixels | None]
"""Labels (y, x) of a field, and the stain (y, x) that the ISL model predicts of it, where the arm has one."""
Panel = tuple[int, dict[str, Any], dict[str, NDArray[Any]]]
"""Number of a panel, its box in words, and its arrays by name."""
PANELS = 4


def make_scores(
    run: TrainingRun[FinetuneRecipe], inputs: FinetuneInputs, task: Task | None, name: str = "scores"
) -> list[Row] | None:
    """Scores what a network makes of each test box: see `score_boxes`."""
    predictor = run.predictor()
    start = inputs.start(run.recipe.arm)
    # The report shows what the ISL model that the arm started from predicts of the stain.
    stain_predictor = run.predictor(model.load(start.folder)[0]) if start and start.isl else None

    def segment_box(box: Box, is_shown: bool) -> Segmented:
        sources, _ = box.plate.read(box.key, box.time)
        labels, _ = decode(predictor(sources), rule_of(task))
        return labels, stain_predictor(sources)[0] if stain_predictor and is_shown else None

    return score_boxes(run.recipe, run.attempt, run.world, inputs, segment_box, name)


def score_boxes(
    recipe: FinetuneRecipe, attempt: Attempt, world: World, inputs: FinetuneInputs,
    segment_box: Callable[[Box, bool], Segmented], name: str = "scores",
) -> list[Row] | None:  # fmt: skip
    """Scores each test box of the inputs; returns None if the run is stopping.

    Writes `scores.csv`, `panels.json` and `panels.npz` into the run folder; under another name than `scores`
    the table alone.

    Args:
        segment_box: segments the whole field of a box; called once for all boxes of a field and time, with
            whether one of them is shown in the report.

    Returns:
        A row for each test box and reference labels, in order, the same on all ranks.
    """
    rows: list[tuple[int, Row]] = []
    panels: list[Panel] = []
    panel_numbers = _panel_numbers(inputs.testing)
    # By field, because a field is predicted whole, whatever its number of boxes.
    rank_fields = by_field(inputs.testing)[world.rank :: world.size]
    for done, boxes in enumerate(rank_fields, 1):
        if attempt.stopping.is_set():
            break
        first_box = next(iter(boxes.values()))
        labels, stain = segment_box(first_box, not boxes.keys().isdisjoint(panel_numbers))
        for number, box in boxes.items():
            rows.append((number, _row(recipe, inputs, box, labels)))
            if number in panel_numbers:
                panels.append(_panel(panel_numbers.index(number), box, labels, stain))
        attempt.clock.tick(TEST, megapixels([(first_box.plate, first_box.key)]))
        means = {name: mean(row[name] for _, row in rows) for name in ("iou", "mAP")} if rows else {}
        attempt.progress(done, len(rank_fields), "test fields", **means)
    gathered = world.gather((attempt.stopping.is_set(), rows, panels))
    if any(stopped for stopped, _, _ in gathered):
        return None
    numbered = sorted((pair for _, part, _ in gathered for pair in part), key=lambda pair: pair[0])
    ordered_rows = [row for _, row in numbered]
    if world.rank == 0:
        if ordered_rows:
            write_scores(ordered_rows, attempt.run.folder / f"{name}.csv")
        if name == "scores":
            _write_panels(attempt, [panel for _, _, part in gathered for panel in part])
    return ordered_rows


def _panel_numbers(boxes: Sequence[Box]) -> list[int]:
    """Returns the numbers of up to four boxes of the main labels, evenly spread, equal for every run."""
    main_numbers = [number for number, box in enumerate(boxes) if box.labels == boxes[0].labels]
    return evenly_spread(main_numbers, PANELS)


def _row(recipe: FinetuneRecipe, inputs: FinetuneInputs, box: Box, labels: Labels) -> Row:
    """Returns where the box is, what it is compared with, all scores, and the plate map's columns."""
    truth, predicted = box.drawn(box.level), inside(labels, box.at(box.level))
    same = ""  # whether the boxes of this draw hold the test box's value of the column `within`
    if recipe.within is not None and inputs.learning:
        learnt_values = {training_box.value(recipe.within) for training_box in inputs.learning}
        same = "within" if box.value(recipe.within) in learnt_values else "across"
    row = {
        "plate": box.plate.name, "well": box.key.well, "field": box.field_name, "time": box.time,
        "box": " ".join(map(str, box.corners)), "truth": box.labels, "origin": box.origin, "same": same,
        "iou": mask_iou(predicted, truth), **object_scores(predicted, truth),
        "objects": count(truth), "predicted": count(predicted),
    }  # fmt: skip
    return with_plate_map(row, box.plate.plate_map(box.key), row)


def count(labels: NDArray[Any]) -> int:
    """Returns the number of objects, background apart."""
    flat = labels.ravel()
    # The last pixels of runs along the raster are far fewer to sort than all pixels.
    ends = np.append(flat[:-1] != flat[1:], True)
    return len(np.setdiff1d(flat[ends], [0]))


def _panel(number: int, box: Box, labels: Labels, stain: Pixels | None) -> Panel:
    corners = box.at(box.level)
    description = {
        "key": str(number), "plate": str(box.index.path), "well": box.key.well, "field": box.field_name,
        "time": box.time, "level": box.level, "box": list(corners), "truth": box.labels,
    }  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {f"labels_{number}": inside(labels, corners)}
    if stain is not None:
        arrays[f"stain_{number}"] = inside(stain, corners).astype(np.float16)
    return number, description, arrays


def _write_panels(attempt: Attempt, panels: Sequence[Panel]) -> None:
    if not panels:
        return
    ordered = sorted(panels, key=lambda panel: panel[0])
    stream = io.BytesIO()
    arrays: Any = {name: array for _, _, panel_arrays in ordered for name, array in panel_arrays.items()}
    np.savez_compressed(stream, **arrays)
    folder = attempt.run.folder
    write_atomic(folder / "panels.npz", stream.getvalue())
    write_atomic(folder / "panels.json", json.dumps([description for _, description, _ in ordered], indent=1))


def main_figures(rows: Sequence[Row], recipe: FinetuneRecipe) -> dict[str, Any]:
    """Returns mean and standard deviation of each score over boxes of the main reference labels."""
    main_labels = (recipe.reference_labels or [recipe.labels])[0]
    main_rows = [row for row in rows if row["truth"] == main_labels]
    return finite_figures(means_and_deviations(main_rows, SCORES)) | {"images": len(main_rows)}
