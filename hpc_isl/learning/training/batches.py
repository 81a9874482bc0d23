"""Batches: samples by number to micro-batches on the way to the network, through loading processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.training.forkserver import fork_server
from hpc_isl.learning.training.gradient_accumulation import micro_batches
from hpc_isl.recipes.training import TrainRecipe

# A job that is stopping saves at a step's end: till then its loading processes live on.
GRACE_S = 30

Pair = tuple[torch.Tensor, torch.Tensor]


class Samples(Protocol):
    """Samples by number, the same whoever asks; picklable."""

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]: ...


def batches(
    crops: Samples,
    train: TrainRecipe,
    rank: int = 0,
    size: int = 1,
    first_step: int = 0,
    last_step: int = 1,
    workers: int = 0,
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """(step, micro-batch, source, target) in order; tensors (micro_batch, channels, y, x), float32.

    Args:
        last_step: the first step that is not given any more.
        workers: loading processes; 0 reads in this one. Changes no number. They end with the iterator.

    Raises:
        UserError: as in the loading process: pixels of a field that cannot be read.
    """
    plan = list(micro_batches(train, rank, size, first_step, last_step))
    loader = DataLoader(
        _MicroBatches(crops),
        sampler=[numbers for _, _, numbers in plan],
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=fork_server() if workers else None,
        worker_init_fn=_alone,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        for step, micro, _ in plan:
            loaded = next(iterator)
            if isinstance(loaded, UserError):
                raise loaded
            yield step, micro, *loaded
    finally:
        del iterator  # ends the loading processes


@dataclass(frozen=True)
class _MicroBatches(Dataset[Pair | UserError]):
    """Micro-batches by their sample numbers; a mistake is handed over, for torch would bury its text."""

    crops: Samples

    def __getitem__(self, numbers: range) -> Pair | UserError:
        try:
            samples = [self.crops[number] for number in numbers]
        except UserError as mistake:
            return mistake
        sources, targets = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True))
        return sources, targets


def _alone(worker: int) -> None:
    """A loading process has one thread, and leaves the job's signals to the process that trains."""
    torch.set_num_threads(1)
    for each in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
