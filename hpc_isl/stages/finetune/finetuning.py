"""Fine-tuning inside the job: starts from the arm's weights, trains on boxes, scores the test boxes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from hpc_isl import seeds
from hpc_isl.files import read_json, write_atomic
from hpc_isl.learning.data.annotated_crops import Annotated, AnnotatedCrops
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Task
from hpc_isl.learning.network.heads import set_head, start_from
from hpc_isl.learning.network.losses import object_loss, title_of_object_loss
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batch_plan import check_micro_batches
from hpc_isl.learning.training.batchnorm import freeze_batchnorm
from hpc_isl.learning.training.optim import groups_of
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.objects.distance import distance_map
from hpc_isl.objects.geodesic import geodesic_map
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.finetune import fit
from hpc_isl.stages.finetune.boxes import Box, BoxObjects, objects_of, with_least_area
from hpc_isl.stages.finetune.inputs import FinetuneInputs, as_planned, frozen_batchnorm, resolve_inputs
from hpc_isl.stages.finetune.scores import main_figures, make_scores
from hpc_isl.stages.shared.following import after_finetuning
from hpc_isl.stages.shared.held_out import write_scores
from hpc_isl.stages.shared.pictures import draw_training
from hpc_isl.stages.shared.training_run import TrainingRun
from hpc_isl.stages.shared.workloads import TRIAL_S, ended_after

FIT = "fit.json"


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, saves the model, scores the test boxes.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt resumes there.
    """
    rows, seconds = None, 0.0
    with open_world(attempt) as world:
        run, inputs, task, objects = _open_run(recipe, attempt, world)
        if world.rank == 0:
            _write_boxes(attempt, objects)
        finished = recipe.n == 0
        if not finished:
            count = task.objects if task else 0
            attempt.log(f"{len(objects)} boxes, {count} objects")
            start = time.monotonic()
            if task is not None and recipe.fits_objects:
                task, finished = _fitted(run, inputs, task)
            else:
                finished = True
            if finished:
                _, finished = run.train()
            seconds = time.monotonic() - start
        if finished:
            # Without a task the run predicts the stain by the model that it started from.
            if task is not None:
                run.save_model(run.steps, inputs.wells(recipe.arm), inputs.reference(), task)
            rows = make_scores(run, inputs, task)
    if rows is None:
        attempt.stopping.set()  # one rank was asked to stop; now all of them know
        return
    scores = main_figures(rows, recipe)
    cost = {
        "boxes": len(objects),
        "objects": sum(own.count for own in objects),
        "steps": run.steps,
        "seconds": round(seconds, 1),
    }
    curves = attempt.run.pictures / "training.png"
    if world.rank == 0 and recipe.n != 0:
        title = title_of_object_loss(recipe.objects.kind, recipe.objects.alpha)
        draw_training(attempt.run.metric_lines(), curves, title)
    shown = {f"test/{name}": value for name, value in scores.items() if not name.endswith("_sd")}
    attempt.metric(run.steps, **shown)
    paths = {
        "model": attempt.run.model,
        "scores": attempt.run.folder / "scores.csv",
        "training curves": curves,
    }
    made = {name: str(path) for name, path in paths.items() if path.exists()}
    following = [after_finetuning(recipe.plates)] if "model" in made else []
    attempt.finish({"figures": scores | cost, "arm": recipe.arm, "made": made, "next": following})
    if world.rank == 0:  # a sweep has many runs, and each checkpoint is three models large
        shutil.rmtree(attempt.run.checkpoints, ignore_errors=True)


def trial(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains for a while, then scores one test field; keeps nothing."""
    with open_world(attempt) as world:
        run, inputs, task, _ = _open_run(recipe, attempt, world)
        with ended_after(attempt, TRIAL_S):
            run.train()
        attempt.clock.tick("between", 1)
        for plate, key in inputs.tested[:1]:
            own = tuple(box for box in inputs.testing if box.index is plate.index and box.key == key)
            make_scores(run, replace(inputs, testing=own), task)


def _fitted(run: TrainingRun[FinetuneRecipe], inputs: FinetuneInputs, task: Task) -> tuple[Task, bool]:
    """Returns the task with what its left-out boxes say of h, threshold and area; False: asked to stop.

    A network that has learnt is found again in its last checkpoint, so that a later attempt goes on there.
    """
    recipe, attempt, world = run.recipe, run.attempt, run.world
    seed = seeds.integer(recipe.train.seed, "draw", recipe.draw)
    folds = fit.deal(inputs.learning)
    left_out: list[fit.LeftOut] = []
    for number, pieces in enumerate(folds):
        others = [piece.box for other in folds if other is not pieces for piece in other]
        network: Any = _network(recipe, inputs, run.net, task, seed)
        if frozen := frozen_batchnorm(recipe):
            freeze_batchnorm(network.encoder if frozen == "encoder" else network)
        attempt.log(f"fitting: fold {number + 1} of {len(folds)} is left out, to see what parts its objects")
        fold = replace(
            run, network=network, crops=_crops(recipe, seed, others), fold=number,
            groups=groups_of(network, recipe.transfer.layer_lr, recipe.transfer.frozen),
            share_of_steps=1 - 1 / len(folds),
        )  # fmt: skip
        _, finished = fold.train()
        if not finished:
            return task, False
        if world.rank == 0:
            predictor = fold.predictor()
            for piece in pieces:
                sources, _ = piece.box.plate.read(piece.box.key, piece.box.time)
                left_out.append(fit.LeftOut.of(piece, predictor(sources)))
    scores: dict[str, Any] | None = None
    if world.rank == 0 and any(own.truth.any() for own in left_out):
        task, scores = fit.fit(task, recipe.objects, left_out)
        write_atomic(attempt.run.folder / FIT, json.dumps(scores, indent=1))
    task, scores = world.broadcast((task, scores))
    if scores is None:
        attempt.log(
            f"h_maxima={task.h_maxima:g}, the usual height: too little is annotated to leave a part of it out"
        )
    else:
        attempt.log(
            f"h_maxima={task.h_maxima:g}, mask_threshold={task.mask_threshold:g}, min_area={task.min_area}: "
            f"fitted on {scores['objects']} objects left out in turn, mAP {scores['mAP']:.3f} "
            f"({scores['mAP_usual']:.3f} at the usual h_maxima={scores['usual']:g})"
        )
    return task, True


def _open_run(
    recipe: FinetuneRecipe, attempt: Attempt, world: World
) -> tuple[TrainingRun[FinetuneRecipe], FinetuneInputs, Task | None, list[BoxObjects]]:
    """Opens plates, boxes and network; the last value holds the objects of each box that is learnt from."""
    check_micro_batches(recipe.train, world.size)
    record = read_json(attempt.run.record) or {}
    inputs = as_planned(recipe, resolve_inputs(recipe), record.get("parts", {}))
    objects = [objects_of(box) for box in inputs.learning]
    task = _task(recipe, inputs, sum(own.count for own in objects))
    if task and recipe.objects.min_area is not None:
        task = replace(task, min_area=recipe.objects.min_area, min_area_um2=None)
    elif task and objects:
        task = with_least_area(task, inputs.study.view, objects)
        if task.min_area:
            um2 = "" if task.min_area_um2 is None else f" ({task.min_area_um2:.3g} µm²)"
            attempt.log(
                f"objects of less than {task.min_area} pixels{um2}, half the smallest annotated one, "
                "are dropped"
            )
    seed = seeds.integer(recipe.train.seed, "draw", recipe.draw)  # the same for all arms of a draw
    start = inputs.start(recipe.arm)
    # The contract keeps the weights that this arm began with, before any run.
    weights = start.contract.net.weights if start else inputs.net.weights
    net = inputs.net.model_copy(update={"weights": None if recipe.arm == "random" else weights})
    network: Any = _network(recipe, inputs, net, task, seed)
    if frozen := frozen_batchnorm(recipe):
        freeze_batchnorm(network.encoder if frozen == "encoder" else network)
    run = TrainingRun(
        recipe, attempt, world, inputs.study, net, network, _crops(recipe, seed, inputs.learning),
        object_loss(recipe.objects.kind, recipe.objects.alpha), digest(recipe, record.get("inputs", {})),
        groups_of(network, recipe.transfer.layer_lr, recipe.transfer.frozen),
    )  # fmt: skip
    return run, inputs, task, objects


def _task(recipe: FinetuneRecipe, inputs: FinetuneInputs, objects: int) -> Task | None:
    """Returns what the network will predict; None: still the stain, from which objects are then drafted."""
    asked, start = recipe.objects, inputs.start(recipe.arm)
    if start is not None and recipe.n == 0:
        known = start.contract.task
        return known and replace(
            known, h_maxima=known.h_maxima if asked.h_maxima == "fit" else asked.h_maxima,
            method=asked.method, arm=recipe.arm, boxes=0, objects=0,
        )  # fmt: skip
    stain = start.contract.view.normalize.target if start else ""
    from_stain = start is not None and start.isl and asked.head == "paper"
    return Task(
        labels=recipe.labels, kind=asked.kind, head=asked.head, from_stain=from_stain,
        span=65535.0 if stain == "none" else 1.0, slope=asked.slope, scale=asked.scale,
        map=asked.map, h_maxima=fit.height_of(asked), mask_threshold=asked.mask_threshold,
        method=asked.method, arm=recipe.arm, boxes=len(inputs.learning), objects=objects,
    )  # fmt: skip


def _network(
    recipe: FinetuneRecipe, inputs: FinetuneInputs, net: NetRecipe, task: Task | None, seed: int
) -> nn.Module:
    """Returns the network of all arms, with the weights that this arm starts from."""
    start = inputs.start(recipe.arm)
    if start is not None and recipe.n == 0:
        return model.load(start.folder)[0]
    assert task is not None
    isl = start is not None and start.isl
    outputs = len(start.contract.view.targets) if start and task.from_stain else task.outputs
    network = build(net, len(inputs.study.view.sources), outputs, seed, pretrained=start is None)
    # A model that segments brings weights for the head, so its head must exist before they are loaded;
    # an ISL model brings a stain's last layer, behind which the head is put afterwards.
    if not isl:
        set_head(network, task, seed)
    if start is not None:
        _, state = model.read_state(start.folder)
        start_from(network, state, head=task.from_stain or not isl)
    if isl:
        set_head(network, task, seed)
    return network


def _crops(recipe: FinetuneRecipe, seed: int, boxes: Sequence[Box]) -> AnnotatedCrops:
    objects = recipe.objects
    distance = geodesic_map if objects.map == "geodesic" else distance_map

    def annotated(box: Box) -> Annotated:
        y0, x0, y1, x1 = box.at(box.level)
        field = field_view(box.plate.view, box.index, box.key, box.time)
        return Annotated(field, box.image, box.labels, box.level, (slice(y0, y1), slice(x0, x1)))

    return AnnotatedCrops(
        boxes=tuple(map(annotated, boxes)), edge=recipe.train.crop,
        per_box=recipe.train.crops_per_field, seed=seed, augment=recipe.augment,
        distance=partial(distance, scale=objects.scale) if objects.kind == "cells" else None,
        in_pixels=objects.scale == "pixels", whole_only=objects.map == "geodesic",
    )  # fmt: skip


def _write_boxes(attempt: Attempt, objects: list[BoxObjects]) -> None:
    rows = [
        {"plate": own.box.plate.name, "well": own.box.key.well, "field": own.box.key.name,
         "time": own.box.time, "box": " ".join(map(str, own.box.corners)), "origin": own.box.origin,
         "objects": own.count}
        for own in objects
    ]  # fmt: skip
    write_scores(rows, attempt.run.folder / "boxes.csv")
