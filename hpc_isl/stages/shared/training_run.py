"""One attempt at training a network, the same for pretrain and finetune: train, validate, save the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import nn

import hpc_isl
from hpc_isl.device import remarks
from hpc_isl.learning.data.annotated_crops import AnnotatedCrops
from hpc_isl.learning.data.drift import Reference
from hpc_isl.learning.data.rescale import stains_of
from hpc_isl.learning.data.samples import Crops
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Contract, Task
from hpc_isl.learning.network.losses import Loss
from hpc_isl.learning.training.batch_plan import check_micro_batches, loading_processes, steps_of
from hpc_isl.learning.training.batches import MicroBatch, batches
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.loop import Hooks, Progress, train
from hpc_isl.learning.training.optim import Group
from hpc_isl.learning.training.precision import device_of, name_of, resolve
from hpc_isl.learning.training.world import World
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.shared.held_out import CONSTANT, constant_text, mean, quick_scores
from hpc_isl.stages.shared.plate_views import PlateField, PlateViews
from hpc_isl.stages.shared.workloads import STEPS, VALIDATION, megapixels

METRIC_LINES = 1000
TITLES = {"pcc": "PCC", "mae": "MAE", "loss": "loss"}
SomeRecipe = TypeVar("SomeRecipe", PretrainRecipe, FinetuneRecipe)


@dataclass(frozen=True)
class TrainingRun(Generic[SomeRecipe]):
    """The inputs of one rank during one attempt at a training, and the work on them.

    Attributes:
        study: the plates as the network sees them, with their split.
        net: the recipe of `network`, with the weights that it began with.
        crops: the training samples by number; none at all where nothing is trained.
        digest: of the recipe and its inputs; a checkpoint of another digest is refused.
        groups: parameters with learning rates of their own, as in `loop.train`; None: all the same.
        fold: number of the part that is left out; None: nothing is, and this is the network that is kept.
        share_of_steps: of the recipe's, for a network that learns from a part.
    """

    recipe: SomeRecipe
    attempt: Attempt
    world: World
    study: PlateViews
    net: NetRecipe
    network: nn.Module
    crops: Crops | AnnotatedCrops
    loss: Loss
    digest: str
    groups: Sequence[Group] | None = None
    fold: int | None = None
    share_of_steps: float = 1.0

    @property
    def steps(self) -> int:
        """Optimiser steps of this network's training."""
        # Without samples `train.steps` means nothing: fine-tuning without annotation trains not at all.
        if not len(self.crops):
            return 0
        train = self.recipe.train
        # Epochs are shorter where there is less to learn from; a number of steps is not.
        share = self.share_of_steps if train.steps else 1.0
        return math.ceil(steps_of(train, len(self.crops)) * share)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the forward pass on this rank's device."""
        return resolve(self.recipe.train.precision, self.world.device)

    def predictor(self, network: nn.Module | None = None) -> Predictor:
        """Returns the network (or another one of the same kind) ready to predict whole fields."""
        predict = self.recipe.predict
        return Predictor(
            network or self.network, self.world.device, self.dtype, predict.tile, predict.halo, predict.batch,
            channels_last=self.net.channels_last,
        )  # fmt: skip

    def train(self, validation: Sequence[PlateField] = ()) -> tuple[Progress, bool]:
        """Trains from the newest checkpoint, if there is one, and scores the validation fields now and then.

        Returns:
            The progress, and whether training has finished; if not, it was asked to stop and left a
            checkpoint.
        """
        recipe, attempt, world = self.recipe, self.attempt, self.world
        workers = loading_processes(recipe.data.workers if recipe.data else None, attempt.cpus)
        attempt.log(
            f"training: {world.size} process{'es' * (world.size > 1)} on {world.device.type}, each with "
            f"{torch.get_num_threads()} threads and {workers} loading processes"
        )
        for line in remarks("train.precision", recipe.train.precision, [device_of(world.device)]):
            attempt.log(line)
        share = check_micro_batches(recipe.train, world.size)
        log = TrainingLog(attempt, self.steps, recipe.train.batch, share, writes_metrics=self.fold is None)

        def from_step(first: int) -> Iterator[MicroBatch]:
            return batches(self.crops, recipe.train, world.rank, world.size, first, self.steps, workers)

        hooks = Hooks(
            batches=from_step,
            stopping=attempt.stopping.is_set,
            report=log.step,
            evaluate=partial(self._validate, log, validation) if validation else None,
            describe=self._fields_of_micro_batch,
        )
        folder = attempt.run.checkpoints
        folder = folder if self.fold is None else folder / f"fold-{self.fold}"
        checkpoints = Checkpoints(folder, self.digest, recipe.train.keep, attempt.log)
        return train(
            self.network, self.loss, hooks, recipe.train, recipe.optim, self.steps, world, checkpoints,
            self.net.channels_last, self.groups,
        )  # fmt: skip

    def _validate(self, log: TrainingLog, fields: Sequence[PlateField], step: int) -> float | None:
        stopping = self.attempt.stopping.is_set
        scores = quick_scores(
            self.predictor(), fields, self.world, stopping,
            # A loss takes batches: a field is a batch of one.
            lambda *pair: float(self.loss(*(torch.tensor(pixels)[None] for pixels in pair))),
        )  # fmt: skip
        self.attempt.clock.tick(VALIDATION, megapixels(fields[self.world.rank :: self.world.size]))
        if scores is None:
            return None
        log.validated(step, scores)
        return scores["pcc"]

    def _fields_of_micro_batch(self, step: int, micro: int) -> str:
        train = self.recipe.train
        start = step * train.batch + micro * train.micro_batch
        fields = [self.crops.field(number) for number in range(start, start + train.micro_batch)]
        names = list(dict.fromkeys(f"{field.plate} {field.key}" for field in fields))
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more fields" if len(names) > 3 else "")

    def save_model(
        self,
        step: int,
        wells: Mapping[str, Mapping[str, list[str]]],
        reference: Reference,
        task: Task | None = None,
    ) -> None:
        """Writes weights and contract into the run folder; ranks other than 0 write nothing.

        Args:
            step: optimiser steps behind the weights.
            wells, reference, task: as in `Contract`.
        """
        if self.world.rank:
            return
        contract = Contract(
            view=self.study.view, net=self.net, predict=self.recipe.predict, precision=name_of(self.dtype),
            recipe=self.recipe.model_dump(mode="json"), digest=self.digest, split=self.study.split.digest,
            wells=wells, plates=self.study.fingerprints, step=step, code=hpc_isl.__version__, task=task,
            reference=reference, stains=stains_of(self.study.view, self.study.indices),
        )  # fmt: skip
        model.save(self.attempt.run.model, self.network, contract)


@dataclass
class TrainingLog:
    """Keeps the progress bar moving, and writes about a thousand lines of metrics over the whole run.

    Attributes:
        steps: of the whole run; `batch`: crops in a step, over all ranks.
        share: micro-batches of this rank in a step.
        writes_metrics: whether lines of metrics are written; a fold's network is thrown away.
    """

    attempt: Attempt
    steps: int
    batch: int
    share: int = 1
    writes_metrics: bool = True
    _window: list[Mapping[str, float]] = field(default_factory=list)
    _bar_values: dict[str, float] = field(default_factory=dict)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values that the loop reports after a step; metrics are means since the last line."""
        self.attempt.clock.tick(STEPS, self.share)
        self._window.append(values)
        self._bar_values["loss"] = values["loss"]
        self.attempt.progress(step, self.steps, "steps", **self._bar_values)
        if not self.writes_metrics or (step % max(1, self.steps // METRIC_LINES) and step != self.steps):
            return
        means = {name: mean(line[name] for line in self._window) for name in values}
        self._window.clear()
        # Of all ranks: each has its share of the batch in the same time.
        means["crops_per_s"] = self.batch / max(means["step_s"], 1e-9)
        # In fp16 a step whose gradient is infinite is skipped; JSON has no such number.
        finite = {f"train/{name}": value for name, value in means.items() if math.isfinite(value)}
        self.attempt.metric(step, **finite)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Logs the scores of the validation fields after a step."""
        finite = {name: value for name, value in scores.items() if not math.isnan(value)}
        self._bar_values |= {"pcc": finite["pcc"]} if "pcc" in finite else {}
        self.attempt.metric(step, **{f"validation/{name}": value for name, value in finite.items()})
        text = ", ".join(f"{title} {scores[name]:.4f}" for name, title in TITLES.items() if name in scores)
        constant = f"; {constant_text(scores[CONSTANT])}" if CONSTANT in scores else ""
        self.attempt.log(f"step {step}: validation {text}{constant}")
