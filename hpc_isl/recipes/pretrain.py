"""The recipe of pretraining: in silico labeling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from hpc_isl.recipes.base import Recipe, one_or_more
from hpc_isl.recipes.training import (
    AugmentRecipe,
    DataRecipe,
    LossRecipe,
    NetRecipe,
    OptimRecipe,
    PlaneRecipe,
    PredictRecipe,
    SplitRecipe,
    TrainRecipe,
    unused_in_optim,
    unused_in_predict,
    unused_in_split,
    with_seed,
)


class PretrainRecipe(Recipe):
    """In silico labeling: a network learns to predict stains from label-free planes."""

    PLATES = ("plates",)

    plates: list[Path]
    """plates to learn from; globs are allowed"""
    sources: list[PlaneRecipe]
    """what the network sees"""
    targets: list[PlaneRecipe]
    """what it predicts"""
    labels: str | None = None
    """labels over whose objects PCC is also reported; null: none"""
    split: SplitRecipe = SplitRecipe()
    """train, validation, test"""
    control: Literal["none", "permuted"] = "none"
    """permuted: each training field learns the stain of another training field of equal size; what the
    network then gains, it does not gain from what the stain shows"""
    data: DataRecipe = DataRecipe()
    """from stored pixels to crops"""
    augment: AugmentRecipe = AugmentRecipe()
    """random changes of crops"""
    net: NetRecipe = NetRecipe()
    """the network"""
    loss: LossRecipe = LossRecipe()
    """what is minimised"""
    optim: OptimRecipe = OptimRecipe()
    """the optimiser"""
    train: TrainRecipe = TrainRecipe(steps=20000)
    """how long and in which portions"""
    predict: PredictRecipe = PredictRecipe()
    """whole fields after training"""

    @model_validator(mode="before")
    @classmethod
    def _seed_of_training(cls, content: Any) -> Any:
        return with_seed(content, steps=20000)

    _one_or_more = field_validator("plates", mode="before")(one_or_more)

    @model_validator(mode="after")
    def _something(self) -> PretrainRecipe:
        for name in ("plates", "sources", "targets"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        return self

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from unused_in_split(self.split)
        yield from unused_in_optim(self.optim)
        yield from unused_in_predict(self.predict)
        if self.data.normalize.target != "percentile":
            reason = f"data.normalize.target is {self.data.normalize.target}"
            yield from ((f"data.normalize.{name}", reason) for name in ("low", "high"))
        if not self.data.foreground.required:
            names = ("channel", "threshold", "fraction")
            yield from ((f"data.foreground.{name}", "data.foreground.required is false") for name in names)
