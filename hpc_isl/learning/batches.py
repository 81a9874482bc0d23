"""Batches: samples by number to micro-batches on the way to the network, through loading processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hpc_isl.learning.samples import Crops
from hpc_isl.mistake import Mistake
from hpc_isl.recipe import TrainRecipe

# Imported by the server that loading processes are forked from.
PRELOADED = ["hpc_isl.learning.loading"]
# A job that is stopping saves at a step's end: till then its loading processes live on.
GRACE_S = 30
MOST_WORKERS = 12

Pair = tuple[torch.Tensor, torch.Tensor]


def micro_batches(
    train: TrainRecipe, rank: int, size: int, first_step: int, last_step: int
) -> Iterator[tuple[int, int, range]]:
    """(step, micro-batch, sample numbers) of one rank, for steps first_step <= step < last_step.

    Micro-batch j of step s holds the numbers s * batch + j * micro_batch onwards, whoever computes it;
    rank r takes those with j % size == r.
    """
    for step in range(first_step, last_step):
        for micro in range(rank, train.batch // train.micro_batch, size):
            start = step * train.batch + micro * train.micro_batch
            yield step, micro, range(start, start + train.micro_batch)


def batches(
    crops: Crops,
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
        Mistake: as in the loading process: pixels of a field that cannot be read.
    """
    plan = list(micro_batches(train, rank, size, first_step, last_step))
    loader = DataLoader(
        _MicroBatches(crops),
        sampler=[numbers for _, _, numbers in plan],
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=_forkserver() if workers else None,
        worker_init_fn=_alone,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        for step, micro, _ in plan:
            loaded = next(iterator)
            if isinstance(loaded, Mistake):
                raise loaded
            yield step, micro, *loaded
    finally:
        del iterator  # ends the loading processes


def default_workers(cpus: int) -> int:
    """Loading processes of a rank that has so many CPUs: one stays for the training itself."""
    return max(min(cpus - 1, MOST_WORKERS), 0)


@dataclass(frozen=True)
class _MicroBatches(Dataset[Pair | Mistake]):
    """Micro-batches by their sample numbers; a mistake is handed over, for torch would bury its text."""

    crops: Crops

    def __getitem__(self, numbers: range) -> Pair | Mistake:
        try:
            samples = [self.crops[number] for number in numbers]
        except Mistake as mistake:
            return mistake
        sources, targets = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True))
        return sources, targets


def _forkserver() -> multiprocessing.context.ForkServerContext:
    """Loading processes are forked from a server that has imported much and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _environment(
        PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path)
    ):
        forkserver.ensure_running()
    return context


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables for a process that is started meanwhile: it imports what this one would import."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _alone(worker: int) -> None:
    """A loading process has one thread, and leaves the job's signals to the process that trains."""
    torch.set_num_threads(1)
    for each in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
