"""The work of fine-tuning, inside the job: starts from the arm's weights, trains on boxes, scores."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hpc_isl
from hpc_isl import seeds
from hpc_isl.device import remarks
from hpc_isl.files import read_json
from hpc_isl.learning.data.annotated_crops import Annotated, AnnotatedCrops
from hpc_isl.learning.data.fields import field_view, level_on
from hpc_isl.learning.data.rescale import stains_of
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Contract, Task
from hpc_isl.learning.network.heads import set_head, start_from
from hpc_isl.learning.network.object_losses import object_loss, title_of
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batches import batches
from hpc_isl.learning.training.batchnorm import freeze_batchnorm
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.forkserver import loading_processes
from hpc_isl.learning.training.gradient_accumulation import check_micro_batches, steps_of
from hpc_isl.learning.training.loop import Hooks, Progress, train
from hpc_isl.learning.training.optim import groups_of
from hpc_isl.learning.training.precision import device_of, name_of, resolve
from hpc_isl.learning.training.prefetch import MicroBatch
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.objects.distance import distance_map
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.finetune import areas, test_wells_seen
from hpc_isl.stages.finetune.boxes import Box
from hpc_isl.stages.finetune.inputs import FinetuneInputs, as_planned, frozen_batchnorm, resolve_inputs
from hpc_isl.stages.finetune.scores import main_figures, make_scores
from hpc_isl.stages.shared.following import after_finetuning
from hpc_isl.stages.shared.held_out import write_scores
from hpc_isl.stages.shared.pictures import draw_training
from hpc_isl.stages.shared.training_log import TrainingLog
from hpc_isl.stages.shared.workloads import TRIAL_S, ended_after


@dataclass(frozen=True)
class TrainingRun:
    """One attempt at a run, and what it works on."""

    recipe: FinetuneRecipe
    attempt: Attempt
    world: World
    setting: FinetuneInputs
    task: Task | None
    network: nn.Module
    seed: int
    """of this draw: the same for all arms"""
    objects: tuple[int, ...]
    """in each box that it learns from"""


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, keeps the model, scores the test boxes.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt takes it up there.
    """
    rows, seconds = None, 0.0
    with open_world(attempt) as world:
        check_micro_batches(recipe.train, world.size)
        course = _prepare(recipe, attempt, world)
        if world.rank == 0:
            _write_boxes(course)
        finished = recipe.n == 0
        if not finished:
            start = time.monotonic()
            _, finished = _train(course)
            seconds = time.monotonic() - start
        if finished:
            _keep_model(course)
            rows = make_scores(recipe, course.setting, course.network, course.task, attempt, world)
    if rows is None:
        attempt.stopping.set()  # one rank was asked to stop; now all of them know
        return
    scores = main_figures(rows, recipe)
    figures = scores | _cost(course, seconds)
    if world.rank == 0 and recipe.n != 0:
        of = recipe.objects
        draw_training(attempt.run.metric_lines(), _curves(course), title_of(of.kind, of.alpha))
    shown = {f"test/{name}": value for name, value in scores.items() if not name.endswith("_sd")}
    attempt.metric(figures["steps"], **shown)
    made = _made(course)
    following = [after_finetuning(recipe.plates)] if "model" in made else []
    attempt.finish({"figures": figures, "arm": recipe.arm, "made": made, "next": following})
    if world.rank == 0:  # a sweep has many runs, and each checkpoint is three models large
        shutil.rmtree(attempt.run.checkpoints, ignore_errors=True)


def trial(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains for a while, then scores one field of those that test; keeps nothing."""
    with open_world(attempt) as world:
        course = _prepare(recipe, attempt, world)
        with ended_after(attempt, TRIAL_S):
            _train(course)
        attempt.clock.tick("between", 1)
        for index, key in course.setting.tested[:1]:
            own = tuple(box for box in course.setting.testing if box.index is index and box.key == key)
            setting = replace(course.setting, testing=own)
            make_scores(recipe, setting, course.network, course.task, attempt, world)


def _prepare(recipe: FinetuneRecipe, attempt: Attempt, world: World) -> TrainingRun:
    parts = (read_json(attempt.run.record) or {}).get("parts", {})
    setting = as_planned(recipe, resolve_inputs(recipe), parts)
    drawn = [areas.drawn_in(box) for box in setting.learning]
    objects = tuple(one.count for one in drawn)
    task = _task(recipe, setting, sum(objects))
    if task and recipe.objects.min_area is not None:
        task = replace(task, min_area=recipe.objects.min_area, min_area_um2=None)
    elif task and drawn:
        task = areas.with_least_area(task, setting.view, drawn)
        if task.min_area:
            attempt.log(areas.messages(task))
    seed = seeds.integer(recipe.train.seed, "draw", recipe.draw)
    network: Any = _network(recipe, setting, task, seed)
    if held := frozen_batchnorm(recipe):
        freeze_batchnorm(network.encoder if held == "encoder" else network)
    return TrainingRun(recipe, attempt, world, setting, task, network, seed, objects)


# ---------------------------------------------------------------- the network


def _task(recipe: FinetuneRecipe, setting: FinetuneInputs, objects: int) -> Task | None:
    """What the network will say; None: it goes on predicting the stain, which is then thresholded."""
    of, start = recipe.objects, setting.start(recipe.arm)
    if start is not None and recipe.n == 0:
        kept = start.contract.task
        return kept and replace(
            kept, h_maxima=of.h_maxima, method=of.method, arm=recipe.arm, boxes=0, objects=0
        )
    stain = start.contract.view.normalize.target if start else ""
    from_stain = start is not None and start.isl and of.head == "paper"
    return Task(
        labels=recipe.labels, kind=of.kind, head=of.head, from_stain=from_stain,
        span=65535.0 if stain == "none" else 1.0, slope=of.slope, scale=of.scale, h_maxima=of.h_maxima,
        method=of.method, arm=recipe.arm, boxes=len(setting.learning), objects=objects,
    )  # fmt: skip


def _network(recipe: FinetuneRecipe, setting: FinetuneInputs, task: Task | None, seed: int) -> nn.Module:
    """The one network of all arms, with the weights that this arm starts from."""
    start = setting.start(recipe.arm)
    if start is not None and recipe.n == 0:
        network, _ = model.load(start.folder)
        return network
    assert task is not None
    isl = start is not None and start.isl
    outputs = len(start.contract.view.targets) if start and task.from_stain else task.outputs
    net = _net(recipe, setting)
    network = build(net, len(setting.view.sources), outputs, seed, pretrained=start is None)
    if not isl:
        set_head(network, task, seed)
    if start is not None:
        _, state = model.read_state(start.folder)
        start_from(network, state, head=task.from_stain or not isl)
    if isl:
        set_head(network, task, seed)
    return network


def _net(recipe: FinetuneRecipe, setting: FinetuneInputs) -> NetRecipe:
    """The one network, with the weights that this arm began with, before any run."""
    start = setting.start(recipe.arm)
    weights = start.contract.net.weights if start else setting.net.weights
    return setting.net.model_copy(update={"weights": None if recipe.arm == "random" else weights})


# ---------------------------------------------------------------- training


def _train(course: TrainingRun) -> tuple[Progress, bool]:
    recipe, world, attempt = course.recipe, course.world, course.attempt
    crops = _crops(course)
    steps = steps_of(recipe.train, len(crops))
    workers = loading_processes(recipe.data.workers if recipe.data else None, attempt.cpus)
    ledger = TrainingLog(attempt, steps, recipe.train.batch, check_micro_batches(recipe.train, world.size))
    attempt.log(
        f"{len(crops.boxes)} boxes, {course.task.objects if course.task else 0} objects; {world.size} "
        f"process{'es' * (world.size > 1)} on {world.device.type}, {torch.get_num_threads()} threads each"
    )
    for line in remarks("train.precision", recipe.train.precision, [device_of(world.device)]):
        attempt.log(line)

    def from_step(first: int) -> Iterator[MicroBatch]:
        return batches(crops, recipe.train, world.rank, world.size, first, steps, workers)

    hooks = Hooks(from_step, attempt.stopping.is_set, ledger.step)
    loss = object_loss(recipe.objects.kind, recipe.objects.alpha)
    checkpoints = Checkpoints(attempt.run.checkpoints, _digest(course), recipe.train.keep, attempt.log)
    groups = groups_of(course.network, recipe.transfer.layer_lr, recipe.transfer.frozen)
    return train(
        course.network, loss, hooks, recipe.train, recipe.optim, steps, world, checkpoints,
        course.setting.net.channels_last, groups,
    )  # fmt: skip


def _crops(course: TrainingRun) -> AnnotatedCrops:
    recipe, of = course.recipe, course.recipe.objects
    return AnnotatedCrops(
        boxes=tuple(_annotated(course, box) for box in course.setting.learning),
        edge=recipe.train.crop, per_box=recipe.train.crops_per_field,
        seed=course.seed, augment=recipe.augment,
        distance=partial(distance_map, scale=of.scale) if of.kind == "cells" else None,
        in_pixels=of.scale == "pixels",
    )  # fmt: skip


def _annotated(course: TrainingRun, box: Box) -> Annotated:
    view = course.setting.view
    level = level_on(view, box.index, box.key)
    y0, x0, y1, x1 = box.at(level)
    field = field_view(view, box.index, box.key, box.time)
    return Annotated(field, box.image, box.labels, level, (slice(y0, y1), slice(x0, x1)))


def _digest(course: TrainingRun) -> str:
    """Of the recipe and its inputs: a checkpoint of anything else is refused."""
    return digest(course.recipe, (read_json(course.attempt.run.record) or {}).get("inputs", {}))


# ---------------------------------------------------------------- what is left behind


def _write_boxes(course: TrainingRun) -> None:
    rows = [
        {"plate": box.index.plate.name, "well": box.key.well, "field": box.key.name, "time": box.time,
         "box": " ".join(map(str, box.corners)), "origin": box.origin, "objects": objects}
        for box, objects in zip(course.setting.learning, course.objects, strict=True)
    ]  # fmt: skip
    write_scores(rows, course.attempt.run.folder / "boxes.csv")


def _keep_model(course: TrainingRun) -> None:
    recipe, setting, task = course.recipe, course.setting, course.task
    if course.world.rank or task is None:
        return
    contract = Contract(
        view=setting.view, net=_net(recipe, setting), predict=recipe.predict,
        precision=name_of(resolve(recipe.train.precision, course.world.device)),
        recipe=recipe.model_dump(mode="json"), digest=_digest(course), split=setting.split.digest,
        wells=test_wells_seen.wells(setting, recipe.arm),
        plates={index.plate.name: index.fingerprint for index in setting.indices},
        step=_steps(course), code=hpc_isl.__version__, task=task,
        reference=test_wells_seen.reference(setting),
        stains=stains_of(setting.view, setting.indices),
    )  # fmt: skip
    model.save(course.attempt.run.model, course.network, contract)


def _cost(course: TrainingRun, seconds: float) -> dict[str, Any]:
    return {
        "boxes": len(course.objects),
        "objects": sum(course.objects),
        "steps": _steps(course),
        "seconds": round(seconds, 1),
    }


def _steps(course: TrainingRun) -> int:
    """Of the optimiser; none without annotation."""
    of = course.recipe.train
    return steps_of(of, len(course.objects) * of.crops_per_field) if course.objects else 0


def _curves(course: TrainingRun) -> Path:
    return course.attempt.run.pictures / "training.png"


def _made(course: TrainingRun) -> dict[str, str]:
    run = course.attempt.run
    there = {
        "model": run.model,
        "scores": run.folder / "scores.csv",
        "training curves": _curves(course),
    }
    return {name: str(path) for name, path in there.items() if path.exists()}
