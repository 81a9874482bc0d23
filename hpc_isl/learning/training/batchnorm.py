"""BatchNorm's running statistics as a function of the step's samples, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpc_isl.errors import UserError
from hpc_isl.learning.network.unet import construct
from hpc_isl.learning.training.world import World
from hpc_isl.recipes.training import NetRecipe


class RunningStatistics:
    """One update per step, towards the mean over all micro-batches of their mean and variance.

    torch alone would update once per forward pass, with the micro-batches of one rank.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.layers = [layer for layer in layers if not getattr(layer, "frozen", False)]
        # None would be a cumulative mean over all steps in torch; here it is the default of 0.1.
        self.momenta = [0.1 if layer.momentum is None else layer.momentum for layer in self.layers]
        self.buffers = [
            buffer for m in self.layers for buffer in (m.running_mean, m.running_var) if buffer is not None
        ]
        self.counts = [m.num_batches_tracked for m in self.layers if m.num_batches_tracked is not None]
        weights = [momentum for momentum in self.momenta for _ in range(2)]
        self.weight = self._join(
            [torch.full_like(buffer, weight) for buffer, weight in zip(self.buffers, weights, strict=True)]
        )

    @staticmethod
    def _join(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.zeros(0)

    def start_step(self) -> None:
        """Call before the first forward pass of a step."""
        self.before = self._join(self.buffers)
        self.total = torch.zeros_like(self.before)

    def add(self) -> None:
        """Call after each forward pass."""
        # With a momentum of 1 the buffers hold the statistics of that micro-batch alone.
        self.total += self._join(self.buffers)

    def end_step(self, world: World, micro_batches: int) -> None:
        """Call after the last forward pass; `micro_batches`: of the step, over all ranks."""
        if not self.buffers:
            return
        mean = world.all_reduce(self.total) / micro_batches
        after = torch.lerp(self.before, mean, self.weight)
        parts = torch.split(after, [b.numel() for b in self.buffers])
        torch._foreach_copy_(self.buffers, list(parts))
        if world.size > 1 and self.counts:
            # Each rank has counted its own micro-batches only.
            torch._foreach_add_(self.counts, micro_batches - micro_batches // world.size)


@contextmanager
def running_statistics(network: nn.Module) -> Iterator[RunningStatistics]:
    """Gives the statistics of `network` while it trains, and restores its layers' momentum afterwards."""
    statistics = RunningStatistics(network)
    for layer in statistics.layers:
        layer.momentum = 1.0
    try:
        yield statistics
    finally:
        for layer, momentum in zip(statistics.layers, statistics.momenta, strict=True):
            layer.momentum = momentum


def freeze_batchnorm(network: nn.Module) -> None:
    """Makes BatchNorm keep its running statistics, and normalise by them in training too."""
    for module in list(network.modules()):
        if isinstance(module, _BatchNorm) and not getattr(module, "frozen", False):
            kind: Any = type(module)
            # The class changes, not the module: `train()` of the whole network must not unfreeze it.
            module.__class__ = _frozen_class(kind)
            module.train()


@cache
def _frozen_class(kind: Any) -> Any:
    """Returns a subclass of a layer's class that stays in evaluation mode, whatever its `forward` does."""

    class Frozen(kind):  # type: ignore[misc]
        frozen = True

        def train(self, mode: bool = True) -> Frozen:
            kind.train(self, False)
            return self

    return Frozen


def single_value(net: NetRecipe, sources: int, edge: int, frozen: str = "") -> bool:
    """Returns whether training on one crop of `edge` pixels leaves some BatchNorm one value per channel.

    That is so at the deepest level of a small crop, and in encoders that normalise pooled features.

    Args:
        frozen: the part of the network that keeps its statistics: encoder, all, or none ("").
    """
    decoder = None if net.decoder is None else tuple(net.decoder)
    return _single_value(net.encoder, decoder, sources, edge, frozen)


@cache
def _single_value(
    encoder: str, decoder: tuple[int, ...] | None, sources: int, edge: int, frozen: str
) -> bool:
    net = NetRecipe(encoder=encoder, decoder=decoder and list(decoder), weights=None)

    def fails(network: Any) -> bool:
        network.train()
        if frozen:
            freeze_batchnorm(network.encoder if frozen == "encoder" else network)
        try:
            with torch.no_grad():
                network(torch.zeros(1, sources, edge, edge))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return True
        return False

    try:
        with torch.device("meta"):  # tensors without numbers: fast, where the encoder can be built so
            return fails(construct(net, sources, 1).to("meta"))
    except (UserError, RuntimeError, NotImplementedError):
        return fails(construct(net, sources, 1))
