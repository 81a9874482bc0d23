"""The beginning of a run, by its arm: the task, the network and its weights, the training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from hpc_isl import seeds
from hpc_isl.learning.data.annotated_crops import Annotated, AnnotatedCrops
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Task
from hpc_isl.learning.network.heads import set_head, start_from
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batchnorm import freeze_batchnorm
from hpc_isl.learning.training.optim import Group, groups_of
from hpc_isl.objects.distance import distance_map
from hpc_isl.objects.geodesic import geodesic_map
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.stages.finetune.boxes import Box
from hpc_isl.stages.finetune.fit import height_of
from hpc_isl.stages.finetune.inputs import FinetuneInputs, frozen_batchnorm, guards_start


def task_of(recipe: FinetuneRecipe, inputs: FinetuneInputs, objects: int) -> Task | None:
    """Returns what the network will predict; None: still the stain, from which objects are then drafted."""
    settings, start = recipe.objects, inputs.start(recipe.arm)
    if start is not None and recipe.n == 0:
        task = start.contract.task
        return task and replace(
            task, h_maxima=task.h_maxima if settings.h_maxima == "fit" else settings.h_maxima,
            method=settings.method, arm=recipe.arm, boxes=0, objects=0,
        )  # fmt: skip
    stain = start.contract.view.normalize.target if start else ""
    from_stain = start is not None and start.isl and settings.head in ("paper", "stain")
    return Task(
        labels=recipe.labels, kind=settings.kind, head=settings.head, from_stain=from_stain,
        span=65535.0 if stain == "none" else 1.0, slope=settings.slope, scale=settings.scale,
        map=settings.map, h_maxima=height_of(settings), mask_threshold=settings.mask_threshold,
        method=settings.method, arm=recipe.arm, boxes=len(inputs.learning), objects=objects,
        confidence=(),  # until boxes left out have taught one
    )  # fmt: skip


def start_task(recipe: FinetuneRecipe, inputs: FinetuneInputs, task: Task) -> Task | None:
    """Returns how the start's own prediction becomes objects, where a run guards it; else None."""
    if not guards_start(recipe):
        return None
    start = inputs.start(recipe.arm)
    # A start that segments has its own height and areas; one from the stain has none yet but the run's.
    base = (start.contract.task if start else None) or task
    return replace(base, labels=task.labels, arm=recipe.arm, boxes=0, objects=0, confidence=task.confidence)


def seed_of(recipe: FinetuneRecipe) -> int:
    """Returns the seed of weights and crops: of a draw it is the same for all arms."""
    return seeds.integer(recipe.train.seed, "draw", recipe.draw)


def network_of(
    recipe: FinetuneRecipe, inputs: FinetuneInputs, net: NetRecipe, task: Task | None
) -> nn.Module:
    """Returns the network of all arms, with the weights that this arm starts from."""
    start, seed = inputs.start(recipe.arm), seed_of(recipe)
    if start is not None and recipe.n == 0:
        return model.load(start.folder)[0]
    assert task is not None
    isl = start is not None and start.isl
    outputs = len(start.contract.view.targets) if start and task.from_stain else task.outputs
    network: Any = build(net, len(inputs.study.view.sources), outputs, seed, pretrained=start is None)
    # A model that segments brings weights for the head, so its head must exist before they are loaded;
    # an ISL model brings a stain's last layer, behind which the head is put afterwards.
    if not isl:
        set_head(network, task, seed)
    if start is not None:
        _, state = model.read_state(start.folder)
        start_from(network, state, head=task.from_stain or not isl)
    if isl:
        set_head(network, task, seed)
    if frozen_part := frozen_batchnorm(recipe):
        freeze_batchnorm(network.encoder if frozen_part == "encoder" else network)
    module: nn.Module = network
    return module


def optimizer_groups(recipe: FinetuneRecipe, network: nn.Module) -> list[Group]:
    """Returns the parameters with their learning rates, as `transfer` asks for them."""
    return groups_of(network, recipe.transfer.layer_lr, recipe.transfer.frozen)


def crops_of(recipe: FinetuneRecipe, boxes: Sequence[Box]) -> AnnotatedCrops:
    """Returns the training samples of annotation boxes."""
    objects = recipe.objects
    distance = geodesic_map if objects.map == "geodesic" else distance_map

    def annotated(box: Box) -> Annotated:
        y0, x0, y1, x1 = box.at(box.level)
        field = field_view(box.plate.view, box.index, box.key, box.time)
        return Annotated(field, box.image, box.labels, box.level, (slice(y0, y1), slice(x0, x1)))

    return AnnotatedCrops(
        boxes=tuple(map(annotated, boxes)), edge=recipe.train.crop,
        per_box=recipe.train.crops_per_field, seed=seed_of(recipe), augment=recipe.augment,
        distance=partial(distance, scale=objects.scale) if objects.kind == "cells" else None,
        in_pixels=objects.scale == "pixels", whole_only=objects.map == "geodesic",
    )  # fmt: skip
