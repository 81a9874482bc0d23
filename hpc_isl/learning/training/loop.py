"""The one training loop: steps, micro-batches, ranks, precision, checkpoints; it knows nothing of plates."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpc_isl import seeds
from hpc_isl.errors import UserError
from hpc_isl.learning.network.losses import Loss
from hpc_isl.learning.training.batch_plan import check_micro_batches
from hpc_isl.learning.training.batches import MicroBatch, prefetch_to_device
from hpc_isl.learning.training.batchnorm import RunningStatistics, running_statistics
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.optim import Group, groups_of, optimizer_of, rate
from hpc_isl.learning.training.precision import autocast, resolve
from hpc_isl.learning.training.world import World
from hpc_isl.recipes.training import OptimRecipe, TrainRecipe


@dataclass(frozen=True)
class Hooks:
    """The calls that the loop makes.

    Attributes:
        batches: first step -> this rank's micro-batches from there to the end.
        stopping: whether this process was asked to stop; all ranks then stop after the same step.
        report: called after each step with its number (from 1) and loss, lr, grad_norm, step_s, wait_s.
        evaluate: the network's score after that many steps, higher is better, the same on all ranks;
            None: interrupted because the run is stopping.
        describe: the content of a micro-batch, for the error about a loss that is not finite.
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
        """Returns the progress with one more score; NaN counts as no better."""
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
        The progress, and whether training has finished: after all steps, or by `recipe.patience` (the
        network then holds the best weights). If not, it was asked to stop and left a checkpoint.

    Raises:
        UserError: a loss that is not finite (no weights are touched), or numbers that do not fit.
    """
    loop = _Loop(network, loss, hooks, recipe, optim, steps, world, checkpoints, channels_last, groups)
    with running_statistics(network) as batchnorm:
        progress = loop.run(batchnorm)
    finished = loop.finished(progress)
    best = checkpoints.best() if finished and recipe.patience is not None else None
    if best is not None:
        network.load_state_dict(best["network"])
    return progress, finished


@dataclass
class _Loop:
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
    stopped: bool = False

    def __post_init__(self) -> None:
        self.accumulation_steps = check_micro_batches(self.recipe, self.world.size)
        self.dtype = resolve(self.recipe.precision, self.world.device)
        self.memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network.to(self.world.device).to(memory_format=self.memory_format)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(self.groups or groups_of(self.network), self.optim)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.dtype == torch.float16)

    def run(self, batchnorm: RunningStatistics) -> Progress:
        progress = self.saved = self._resume()
        self.model = self._model()
        batches = self.hooks.batches(progress.step)
        micro_batches = prefetch_to_device(batches, self.world.device, self.memory_format)
        self.network.train()
        while True:
            progress = self._evaluate_and_checkpoint(progress)
            if self.stopped or self.finished(progress):
                return progress
            self._step(progress.step, micro_batches, batchnorm)
            progress = replace(progress, step=progress.step + 1)

    def finished(self, progress: Progress) -> bool:
        patience = self.recipe.patience
        return progress.step >= self.steps or (patience is not None and progress.misses >= patience)

    # ------------------------------------------------------------ one step

    def _step(self, step: int, micro_batches: Iterator[MicroBatch], batchnorm: RunningStatistics) -> None:
        """Forward and backward of this rank's micro-batches, then one step of the optimiser."""
        started, waited = time.perf_counter(), 0.0
        # Losses of all ranks' micro-batches by number; the last place counts the ranks asked to stop.
        step_losses = torch.zeros(self.accumulation_steps * self.world.size + 1, device=self.world.device)
        step_losses[-1] = float(self.hooks.stopping())
        self.optimizer.zero_grad(set_to_none=True)
        batchnorm.start_step()
        for accumulated in range(self.accumulation_steps):
            wait_start = time.perf_counter()
            batch_step, micro, sources, targets = next(micro_batches)
            waited += time.perf_counter() - wait_start
            assert batch_step == step, f"micro-batch of step {batch_step} in step {step}"
            # Dropout is then a function of the position in the run, so that a resumed run repeats it.
            torch.manual_seed(seeds.integer(self.recipe.seed, "step", step, micro))
            is_last = accumulated == self.accumulation_steps - 1
            try:
                with (
                    # Ranks average their gradients in the last backward pass alone, once for all.
                    self.model.no_sync()
                    if isinstance(self.model, DistributedDataParallel) and not is_last
                    else nullcontext()
                ):
                    with autocast(self.world.device, self.dtype):
                        prediction = self.model(sources)
                    # The loss is computed in float32: sums over many pixels lose too much in half precision.
                    loss = self.loss(prediction.float(), targets)
                    # Divided, the gradients of the micro-batches add up to the mean over this rank's crops.
                    self.scaler.scale(loss / self.accumulation_steps).backward()  # type: ignore[no-untyped-call]
            except torch.OutOfMemoryError:
                raise UserError(
                    f"step {step + 1}: the GPU has too little memory for {len(sources)} crops at once: lower "
                    f"train.micro_batch (now {self.recipe.micro_batch}), or train.crop"
                ) from None
            step_losses[micro] = loss.detach()
            del prediction, loss  # else they would take memory beside those of the next forward pass
            batchnorm.add()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)  # clipping refers to true gradients
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optim.clip_norm or math.inf)
        # One transfer from the device in each step: `tolist` waits until all work up to here is done.
        summed = self.world.all_reduce(step_losses)
        *losses, stop_requests, grad_norm = torch.cat([summed, norm.reshape(1)]).tolist()
        self.stopped = stop_requests > 0
        self._refuse_non_finite(step, losses, grad_norm)
        lr = self.optim.lr * rate(step, self.steps, self.optim.schedule, self.optim.warmup)
        for group in self.optimizer.param_groups:
            # A checkpoint of an earlier version has groups without either key.
            group["lr"] = lr * group.get("scale", 1.0) * (step >= group.get("rests", 0))
        self.scaler.step(self.optimizer)  # in fp16 it skips a step whose gradients are infinite
        self.scaler.update()
        batchnorm.end_step(self.world, self.accumulation_steps * self.world.size)
        values = {"loss": sum(losses) / len(losses), "lr": lr, "grad_norm": grad_norm}
        self.hooks.report(step + 1, values | {"step_s": time.perf_counter() - started, "wait_s": waited})

    def _refuse_non_finite(self, step: int, losses: list[float], grad_norm: float) -> None:
        """Raises a UserError before the optimiser touches any weight; every rank sees the same losses."""
        non_finite = [micro for micro, value in enumerate(losses) if not math.isfinite(value)]
        # An infinite gradient is normal with a scaler, which skips that step and scales by less.
        if not non_finite and (math.isfinite(grad_norm) or self.scaler.is_enabled()):
            return
        problem = f"the loss is {losses[non_finite[0]]}" if non_finite else "the gradient is not finite"
        contents = "; ".join(
            description for micro in non_finite[:4] if (description := self.hooks.describe(step, micro))
        )
        raise UserError(
            f"step {step + 1}: {problem}{f' in {contents}' if contents else ''}. Weights and checkpoints "
            f"were left as they were. Try a lower optim.lr (now {self.optim.lr:g}), optim.clip_norm=1, "
            "train.precision=fp32, or another data.normalize (raw counts as targets make large gradients)"
        )

    # ------------------------------------------------------------ before and between steps

    def _model(self) -> nn.Module:
        """Returns the network as the forward pass calls it: compiled, and synchronised between ranks."""
        if self.recipe.compile:
            self.network.compile()
        if self.world.size == 1:
            return self.network
        devices = [self.world.device.index] if self.world.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about the next name of broadcast_buffers
            # Buffers are not broadcast: `RunningStatistics` keeps them equal on all ranks.
            return DistributedDataParallel(
                self.network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _resume(self) -> Progress:
        """Loads the newest checkpoint that rank 0 finds complete; every rank reads it."""
        state = self.checkpoints.newest() if self.world.rank == 0 else None
        step = self.world.broadcast(state["step"] if state else None)
        if step is None:
            return Progress()
        state = state or self.checkpoints.read(step)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.checkpoints.log(f"resumed after step {step}")
        return Progress(**state["progress"])

    def _evaluate_and_checkpoint(self, progress: Progress) -> Progress:
        """Scores and saves, if it is time to."""
        step, last = progress.step, progress.step >= self.steps
        due = step > progress.evaluated and (last or step % self.recipe.evaluate_every == 0)
        if self.hooks.evaluate is not None and due and not self.stopped:
            progress = self._evaluate(self.hooks.evaluate, progress)
        ends = self.stopped or self.finished(progress)
        if (ends or step % self.recipe.checkpoint_every == 0) and progress != self.saved:
            self.saved = progress
            if self.world.rank == 0:
                state = {
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "progress": asdict(progress),
                }
                self.checkpoints.save(step, state)
        if ends:
            self.world.barrier()  # no rank reads a checkpoint that rank 0 is still writing
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
