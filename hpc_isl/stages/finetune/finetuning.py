"""Fine-tuning inside the job: starts from the arm's weights, trains on boxes, scores the test boxes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_isl.errors import UserError, many
from hpc_isl.files import read_json
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Task
from hpc_isl.learning.network.losses import object_loss, title_of_object_loss
from hpc_isl.learning.training.batch_plan import check_micro_batches
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import digest
from hpc_isl.run import Attempt
from hpc_isl.stages.finetune import stain_threshold
from hpc_isl.stages.finetune.arm import crops_of, network_of, optimizer_groups, start_task, task_of
from hpc_isl.stages.finetune.boxes import BoxObjects, objects_of, with_least_area
from hpc_isl.stages.finetune.inputs import (
    FinetuneInputs,
    Start,
    as_planned,
    guards_start,
    leaves_out,
    resolve_inputs,
)
from hpc_isl.stages.finetune.left_out import Evidence, leave_out
from hpc_isl.stages.finetune.scores import main_figures, make_scores
from hpc_isl.stages.shared.following import after_finetuning
from hpc_isl.stages.shared.held_out import Row, write_scores
from hpc_isl.stages.shared.pictures import draw_training
from hpc_isl.stages.shared.training_run import TrainingRun
from hpc_isl.stages.shared.workloads import TRIAL_S, ended_after

Training = TrainingRun[FinetuneRecipe]


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, saves the model, scores the test boxes.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt resumes there.
    """
    scores: dict[str, Any] | None = None
    with open_world(attempt) as world:
        run, inputs, task, objects = _open_run(recipe, attempt, world)
        if world.rank == 0:
            write_boxes(attempt, objects)
        start = time.monotonic()
        evidence = _learn(run, inputs, task, objects)
        seconds = time.monotonic() - start if recipe.n != 0 else 0.0
        if evidence is not None:
            final = _final_model(run, inputs, evidence)
            # Without a task the run predicts the stain by the model that it started from.
            if final.task is not None:
                final.run.save_model(
                    final.run.steps, inputs.wells(recipe.arm), inputs.reference(), final.task
                )
            scores = _scores(final, run, inputs, evidence)
    if scores is None:
        attempt.stopping.set()  # one rank was asked to stop; now all of them know
        return
    cost = {
        "boxes": len(objects),
        "objects": sum(entry.count for entry in objects),
        "steps": final.run.steps,  # 0 where the start is kept
        "seconds": round(seconds, 1),
    }
    curves = attempt.run.pictures / "training.png"
    if world.rank == 0 and recipe.n != 0:
        title = title_of_object_loss(recipe.objects.kind, recipe.objects.alpha)
        draw_training(attempt.run.metric_lines(), curves, title)
    finish(recipe, attempt, run.steps, scores, cost)
    if world.rank == 0:  # a sweep has many runs, and each checkpoint is three models large
        shutil.rmtree(attempt.run.checkpoints, ignore_errors=True)


def finish(
    recipe: FinetuneRecipe, attempt: Attempt, steps: int, scores: Mapping[str, Any], cost: Mapping[str, Any]
) -> None:
    """Writes the done record: figures, what was made, what to do next; scores become metrics of `steps`."""
    metrics = {f"test/{name}": value for name, value in scores.items() if not name.endswith("_sd")}
    attempt.metric(steps, **metrics)
    paths = {
        "model": attempt.run.model,
        "scores": attempt.run.folder / "scores.csv",
        "training curves": attempt.run.pictures / "training.png",
    }
    outputs = {name: str(path) for name, path in paths.items() if path.exists()}
    next_commands = [after_finetuning(recipe.plates)] if "model" in outputs else []
    attempt.finish({"figures": {**scores, **cost}, "arm": recipe.arm, "made": outputs, "next": next_commands})


def _learn(
    run: Training, inputs: FinetuneInputs, task: Task | None, objects: list[BoxObjects]
) -> Evidence | None:
    """Trains the network, and before it those that learn from a part; None: the run was asked to stop."""
    evidence: Evidence | None = Evidence(task)
    if run.recipe.n == 0:
        return evidence
    run.attempt.log(f"{many(len(objects), 'box')}, {many(sum(entry.count for entry in objects), 'object')}")
    if leaves_out(run.recipe) and task is not None:
        evidence = leave_out(run, inputs, task)
    if evidence is None:
        return None
    _, finished = run.train()
    return evidence if finished else None


@dataclass(frozen=True)
class _FinalModel:
    """The model that a run leaves behind: the trained network, or the one that it started from."""

    run: Training
    task: Task | None


def _final_model(run: Training, inputs: FinetuneInputs, evidence: Evidence) -> _FinalModel:
    if not evidence.keeps_start:
        return _FinalModel(run, evidence.task)
    assert evidence.task is not None
    network = network_of(run.recipe, inputs, run.net, evidence.task)
    # Without samples there are no steps: no optimiser has touched these weights.
    untrained = replace(run, network=network, crops=crops_of(run.recipe, ()))
    return _FinalModel(untrained, start_task(run.recipe, inputs, evidence.task))


def _scores(
    final: _FinalModel, trained: Training, inputs: FinetuneInputs, evidence: Evidence
) -> dict[str, Any] | None:
    """Returns the figures of a run; where its start is kept, those of the trained network beside them."""
    recipe = trained.recipe
    rows = make_scores(final.run, inputs, final.task)
    unguarded_rows: list[Row] | None = []
    if rows is not None and final.run is not trained:
        unguarded_rows = make_scores(trained, inputs, evidence.task, "unguarded")
    if rows is None or unguarded_rows is None:
        return None
    figures = main_figures(rows, recipe)
    if guards_start(recipe):
        unguarded = main_figures(unguarded_rows or rows, recipe)
        figures |= {f"unguarded_{name}": unguarded[name] for name in ("iou", "mAP") if name in unguarded}
        figures["start_kept"] = int(evidence.keeps_start)
    if evidence.scores:
        figures["left_out"] = round(float(np.mean(evidence.kept_scores)), 5)
    return figures


def trial(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains for a while, then scores one test field; keeps nothing."""
    with open_world(attempt) as world:
        run, inputs, task, _ = _open_run(recipe, attempt, world)
        with ended_after(attempt, TRIAL_S):
            run.train()
        attempt.clock.tick("between", 1)
        for plate, key in inputs.tested[:1]:
            field_boxes = tuple(box for box in inputs.testing if box.index is plate.index and box.key == key)
            make_scores(run, replace(inputs, testing=field_boxes), task)


def _open_run(
    recipe: FinetuneRecipe, attempt: Attempt, world: World
) -> tuple[Training, FinetuneInputs, Task | None, list[BoxObjects]]:
    """Opens plates, boxes and network; the last value holds the objects of each box that is learnt from."""
    check_micro_batches(recipe.train, world.size)
    record = read_json(attempt.run.record) or {}
    inputs = as_planned(recipe, resolve_inputs(recipe), record.get("parts", {}))
    objects = [objects_of(box) for box in inputs.learning]
    task = task_of(recipe, inputs, sum(entry.count for entry in objects))
    if task and recipe.objects.min_area is not None:
        task = replace(task, min_area=recipe.objects.min_area, min_area_um2=None)
    elif task and objects:
        task = with_least_area(task, inputs.study.view, objects)
        if task.min_area > 1:  # 0 and 1 drop nothing
            um2 = "" if task.min_area_um2 is None else f" ({task.min_area_um2:.3g} µm²)"
            attempt.log(
                f"objects of less than {task.min_area} pixels{um2}, half the smallest annotated one, "
                "are dropped"
            )
    start = inputs.start(recipe.arm)
    # The contract keeps the weights that this arm began with, before any run.
    weights = start.contract.net.weights if start else inputs.net.weights
    net = inputs.net.model_copy(update={"weights": None if recipe.arm == "random" else weights})
    if task and task.head == "stain" and task.from_stain and start:
        task = _calibrate(task, start, inputs, attempt, world)
    network = network_of(recipe, inputs, net, task)
    run = TrainingRun(
        recipe, attempt, world, inputs.study, net, network, crops_of(recipe, inputs.learning),
        object_loss(recipe.objects.kind, recipe.objects.alpha), digest(recipe, record.get("inputs", {})),
        optimizer_groups(recipe, network),
    )  # fmt: skip
    return run, inputs, task, objects


def _calibrate(task: Task, start: Start, inputs: FinetuneInputs, attempt: Attempt, world: World) -> Task:
    """Returns the task with the threshold of the stain that the start predicts; one rank measures it."""
    threshold = None
    if world.rank == 0:
        network, contract = model.load(start.folder)
        predictor = Predictor.by_contract(network, contract, world.device)
        threshold = stain_threshold.calibrate(inputs.study, predictor)
    threshold = world.broadcast(threshold)
    if threshold is None:
        raise UserError(
            "objects.head=stain: no field of these plates has the stain that the pretrained model predicts, "
            "so its threshold cannot be calibrated; take objects.head=same"
        )
    attempt.log(stain_threshold.message(threshold))
    return replace(task, slope=threshold.slope, centre=threshold.centre)


def write_boxes(attempt: Attempt, objects: Sequence[BoxObjects]) -> None:
    """Writes `boxes.csv`: the boxes that are learnt from."""
    rows = [
        {"plate": entry.box.plate.name, "well": entry.box.key.well, "field": entry.box.field_name,
         "time": entry.box.time, "box": " ".join(map(str, entry.box.corners)), "origin": entry.box.origin,
         "objects": entry.count}
        for entry in objects
    ]  # fmt: skip
    write_scores(rows, attempt.run.folder / "boxes.csv")
