"""The one training loop: steps, micro-batches, ranks, precision, checkpoints; nothing of plates."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpc_isl import seeds
from hpc_isl.errors import UserError
from hpc_isl.learning.network.losses import Loss
from hpc_isl.learning.training.batchnorm import RunningStatistics, running_statistics
from hpc_isl.learning.training.checkpoint import Checkpoints, State
from hpc_isl.learning.training.gradient_accumulation import check_micro_batches
from hpc_isl.learning.training.optim import Group, groups_of, optimizer_of, rate, set_rate
from hpc_isl.learning.training.precision import autocast, resolve
from hpc_isl.learning.training.prefetch import MicroBatch, on_device
from hpc_isl.learning.training.world import World
from hpc_isl.recipes.training import OptimRecipe, TrainRecipe


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of whoever trains.

    Attributes:
        batches: first step -> this rank's micro-batches from there to the end.
        stopping: whether this process was asked to stop; all ranks then stop after the same step.
        report: told after each step: its number (from 1) and loss, lr, grad_norm, step_s, wait_s.
        evaluate: the network's score after that many steps, higher is better, the same on all ranks;
            None: cut short because the run is stopping.
        describe: what is in a micro-batch, for the error about a loss that is not finite.
    """

    batches: Callable[[int], Iterator[MicroBatch]]
    stopping: Callable[[], bool] = lambda: False
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None
    evaluate: Callable[[int], float | None] | None = None
    describe: Callable[[int, int], str] = lambda step, micro: ""


@dataclass(frozen=True)
class Progress:
    """How far training is; kept in the checkpoints.

    Attributes:
        step: optimiser steps done.
        evaluated: the step that was last scored.
        best, best_step: the best score and when it was reached.
        misses: scores since then.
    """

    step: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int = 0
    misses: int = 0

    def scored(self, score: float) -> Progress:
        """The same with one more score; NaN counts as no better."""
        if not math.isnan(score) and (self.best is None or score > self.best):
            return replace(self, evaluated=self.step, best=score, best_step=self.step, misses=0)
        return replace(self, evaluated=self.step, misses=self.misses + 1)


def train(
    network: nn.Module,
    loss: Loss,
    hooks: Hooks,
    recipe: TrainRecipe,
    optim: OptimRecipe,
    steps: int,
    world: World,
    checkpoints: Checkpoints,
    channels_last: bool = True,
    groups: Sequence[Group] | None = None,
) -> tuple[Progress, bool]:
    """Trains `network` in place for `steps` optimiser steps, from the newest checkpoint if there is one.

    Args:
        groups: parameters with learning rates of their own, from `optim.groups_of`; None: all the same.

    Returns:
        The progress, and whether training has come to its end: after all steps, or by
        `recipe.patience` (the network then holds the best weights). Else it was stopped, and a
        checkpoint lies there.

    Raises:
        UserError: a loss that is not finite (no weights are touched), or numbers that do not fit.
    """
    course = _Training(network, loss, hooks, recipe, optim, steps, world, checkpoints, channels_last, groups)
    with running_statistics(network) as norms:
        progress = course.run(norms)
    finished = course.finished(progress)
    best = checkpoints.best() if finished and recipe.patience is not None else None
    if best is not None:
        network.load_state_dict(best["network"])
    return progress, finished


@dataclass
class _Training:
    """One call of `train`: its arguments, and what is made from them."""

    network: nn.Module
    loss: Loss
    hooks: Hooks
    recipe: TrainRecipe
    optim: OptimRecipe
    steps: int
    world: World
    checkpoints: Checkpoints
    channels_last: bool
    groups: Sequence[Group] | None
    share: int = field(init=False)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.share = check_micro_batches(self.recipe, self.world.size)
        self.precision = resolve(self.recipe.precision, self.world.device)
        self.layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network.to(self.world.device).to(memory_format=self.layout)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(self.groups or groups_of(self.network), self.optim)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision == torch.float16)

    def run(self, norms: RunningStatistics) -> Progress:
        progress = self.saved = self._resume()
        self.runner = self._runner()
        micro_batches = on_device(self.hooks.batches(progress.step), self.world.device, self.layout)
        self.network.train()
        while True:
            progress = self._evaluate_and_checkpoint(progress)
            if self.stopped or self.finished(progress):
                return progress
            self._step(progress.step, micro_batches, norms)
            progress = replace(progress, step=progress.step + 1)

    def finished(self, progress: Progress) -> bool:
        patience = self.recipe.patience
        return progress.step >= self.steps or (patience is not None and progress.misses >= patience)

    def _runner(self) -> nn.Module:
        if self.recipe.compile:
            self.network.compile()
        if self.world.size == 1:
            return self.network
        devices = [self.world.device.index] if self.world.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about the next name of broadcast_buffers
            return DistributedDataParallel(
                self.network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _evaluate_and_checkpoint(self, progress: Progress) -> Progress:
        """Between two steps: score and save, where it is time to."""
        step, last = progress.step, progress.step >= self.steps
        due = step > progress.evaluated and (last or step % self.recipe.evaluate_every == 0)
        if self.hooks.evaluate is not None and due and not self.stopped:
            progress = self._evaluate(self.hooks.evaluate, progress)
        ends = self.stopped or self.finished(progress)
        if (ends or step % self.recipe.checkpoint_every == 0) and progress != self.saved:
            self.saved = progress
            if self.world.rank == 0:
                self.checkpoints.save(step, self._state(progress))
        if ends:
            self.world.barrier()
        return progress

    def _evaluate(self, evaluate: Callable[[int], float | None], progress: Progress) -> Progress:
        self.network.eval()
        score = evaluate(progress.step)
        self.network.train()
        if score is None:
            self.stopped = True
            return progress
        scored = progress.scored(score)
        if self.recipe.patience is not None and scored.misses == 0 and self.world.rank == 0:
            self.checkpoints.save_best({"network": self.network.state_dict(), "step": scored.step})
        return scored

    def _state(self, progress: Progress) -> State:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(progress),
        }

    def _resume(self) -> Progress:
        """Takes up the newest checkpoint; all ranks the same one, read by each."""
        found = self.checkpoints.newest() if self.world.rank == 0 else None
        step = self.world.broadcast(found["step"] if found else None)
        if step is None:
            return Progress()
        state = found or self.checkpoints.read(step)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.checkpoints.log(f"taken up again after step {step}")
        return Progress(**state["progress"])

    # ------------------------------------------------------------ one step

    def _step(self, step: int, micro_batches: Iterator[MicroBatch], norms: RunningStatistics) -> None:
        start = time.perf_counter()
        step_losses = torch.zeros(self.share * self.world.size + 1, device=self.world.device)
        step_losses[-1] = float(self.hooks.stopping())
        self.optimizer.zero_grad(set_to_none=True)
        norms.start_step()
        waited = 0.0
        for place in range(self.share):
            asked = time.perf_counter()
            of_step, micro, sources, targets = next(micro_batches)
            waited += time.perf_counter() - asked
            assert of_step == step, f"micro-batch of step {of_step} in step {step}"
            last = place == self.share - 1
            step_losses[micro] = self._micro(step, micro, sources, targets, last)
            norms.add()
        values = self._optimizer_step(step, step_losses)
        norms.end_step(self.world, self.share * self.world.size)
        self.hooks.report(step + 1, values | {"step_s": time.perf_counter() - start, "wait_s": waited})

    def _micro(self, step: int, micro: int, sources: Tensor, targets: Tensor, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; gradients of the ranks meet in the last one."""
        # Dropout is then a function of the position in the run, not of what was drawn before.
        torch.manual_seed(seeds.integer(self.recipe.seed, "step", step, micro))
        try:
            with self._maybe_no_sync(last):
                with autocast(self.world.device, self.precision):
                    prediction = self.runner(sources)
                value = self.loss(prediction.float(), targets)
                torch.autograd.backward(self.scaler.scale(value / self.share))
        except torch.OutOfMemoryError:
            raise UserError(
                f"step {step + 1}: the GPU has too little memory for {len(sources)} crops at once: lower "
                f"train.micro_batch (now {self.recipe.micro_batch}), or train.crop"
            ) from None
        return value.detach()

    def _maybe_no_sync(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.runner, DistributedDataParallel) and not last:
            return self.runner.no_sync()
        return nullcontext()

    def _optimizer_step(self, step: int, step_losses: Tensor) -> dict[str, float]:
        """One step of the optimiser, once every rank has seen that the losses are finite."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optim.clip_norm or math.inf)
        *losses, stop, size = torch.cat([self.world.all_reduce(step_losses), norm.reshape(1)]).tolist()
        self.stopped = stop > 0
        self._refuse_nan(step, losses, size)
        lr = self.optim.lr * rate(step, self.steps, self.optim.schedule, self.optim.warmup)
        set_rate(self.optimizer, lr, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": sum(losses) / len(losses), "lr": lr, "grad_norm": size}

    def _refuse_nan(self, step: int, losses: list[float], norm: float) -> None:
        bad = [micro for micro, value in enumerate(losses) if not math.isfinite(value)]
        if not bad and (math.isfinite(norm) or self.scaler.is_enabled()):
            return
        what = f"the loss is {losses[bad[0]]}" if bad else "the gradient is not finite"
        where = "; ".join(text for micro in bad[:4] if (text := self.hooks.describe(step, micro)))
        raise UserError(
            f"step {step + 1}: {what}{f' in {where}' if where else ''}. Weights and checkpoints were left as "
            f"they were. Try a lower optim.lr (now {self.optim.lr:g}), optim.clip_norm=1, "
            "train.precision=fp32, or another data.normalize (raw counts as targets make large gradients)"
        )
