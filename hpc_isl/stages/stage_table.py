"""The one table of stages: the command line, the recipes and the cluster know stages by it alone."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hpc_isl.errors import UserError, nearest


@dataclass(frozen=True)
class Stage:
    """One stage. Modules are named as text and imported when they are needed: they import torch and zarr.

    Attributes:
        name: the verb; the module holds a function of this name, and `plan`.
        summary: one line of the command line's overview.
        module: of the stage's functions.
        recipe: class of its recipe, with its module.
        alone: computed by one process, which starts others as it needs them.
        pooled: computed by one process per node; rank 0 uses the worker processes of all nodes.
        report: module that reports on all elements of a sweep together; None: there is none.
        actions: words that may stand before the recipe on the command line.
        word: key of the recipe that a word without a key means, as in `adopt PLATE`.
    """

    name: str
    summary: str
    module: str
    recipe: str
    alone: bool = False
    pooled: bool = False
    report: str | None = None
    actions: tuple[str, ...] = ()
    word: str = ""

    def load(self) -> ModuleType:
        """Imports and returns the stage's module."""
        return importlib.import_module(self.module)

    def load_recipe(self) -> Any:
        """Imports and returns the class of the stage's recipe."""
        module, _, name = self.recipe.rpartition(".")
        return getattr(importlib.import_module(module), name)


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "convert", "a vendor's export to an OME-Zarr plate",
            "hpc_isl.stages.convert.stage", "hpc_isl.recipes.plates.ConvertRecipe", alone=True,
        ),
        Stage(
            "adopt", "an OME-Zarr plate of another program, used where it lies",
            "hpc_isl.stages.adopt.stage", "hpc_isl.recipes.plates.AdoptRecipe", alone=True, word="plate",
        ),
        Stage(
            "annotate", "labels of a plate: drafted from a stain, corrected by a person, imported",
            "hpc_isl.stages.annotate.stage", "hpc_isl.recipes.plates.AnnotateRecipe", alone=True,
            actions=("import", "draft", "export", "edit", "propose"),
        ),
        Stage(
            "pretrain", "in silico labeling: a network learns stains from label-free images",
            "hpc_isl.stages.pretrain.stage", "hpc_isl.recipes.pretrain.PretrainRecipe",
        ),
        Stage(
            "finetune", "a few annotated boxes turn a pretrained network into one that segments",
            "hpc_isl.stages.finetune.stage", "hpc_isl.recipes.finetune.FinetuneRecipe",
            report="hpc_isl.stages.report.stage",
        ),
        Stage(
            "segment", "plates and a fine-tuned model to objects: labels, a table of features, counts",
            "hpc_isl.stages.segment.stage", "hpc_isl.recipes.segment.SegmentRecipe", pooled=True,
        ),
    )
}  # fmt: skip


def stage_named(name: str) -> Stage:
    """Returns the stage of this name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in STAGES:
        raise UserError(f"{name!r} is not a stage; {nearest(name, STAGES)}")
    return STAGES[name]


def is_alone(name: str) -> bool:
    """Returns whether one process computes the stage; False also for a name that is no stage, as `sweep`."""
    return name in STAGES and STAGES[name].alone


def is_pooled(name: str) -> bool:
    """Returns whether worker processes compute the stage; False also for a name that is no stage."""
    return name in STAGES and STAGES[name].pooled
