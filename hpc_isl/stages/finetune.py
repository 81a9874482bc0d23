"""Fine-tuning: from a pretrained model and a few annotated boxes to a model that segments."""

from __future__ import annotations

from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.run import Attempt, Plan


def plan(recipe: FinetuneRecipe) -> Plan:
    """What fine-tuning would do; writes nothing."""
    return Plan(recipe)


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, keeps the model, scores the test boxes."""
    from hpc_isl.stages import finetune_work

    finetune_work.finetune(recipe, attempt)
