"""Micro-batches: from sample numbers, through loading processes, to tensors on the device."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.training.batch_plan import fork_server, micro_batches
from hpc_isl.recipes.training import TrainRecipe

# A job that is stopping saves at the end of a step; until then its loading processes must live on.
GRACE_S = 30
MicroBatch = tuple[int, int, Tensor, Tensor]
"""Step, number of the micro-batch within the step, sources, targets."""


class Samples(Protocol):
    """Samples by number, the same in every process; picklable."""

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]: ...


def batches(
    crops: Samples,
    train: TrainRecipe,
    rank: int = 0,
    size: int = 1,
    first_step: int = 0,
    last_step: int = 1,
    workers: int = 0,
) -> Iterator[MicroBatch]:
    """Yields a rank's micro-batches in order; tensors (micro_batch, channels, y, x), float32.

    Args:
        last_step: the first step that is not yielded any more.
        workers: loading processes, which end with the iterator; 0 reads in this one. Changes no number.

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
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the loader would otherwise draw from torch's, and change dropout.
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
class _MicroBatches(Dataset[tuple[Tensor, Tensor] | UserError]):
    """Micro-batches by their sample numbers."""

    crops: Samples

    def __getitem__(self, numbers: range) -> tuple[Tensor, Tensor] | UserError:
        try:
            samples = [self.crops[number] for number in numbers]
        except UserError as error:
            return error  # not raised: torch would bury its text in a traceback of the loading process
        sources, targets = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True))
        return sources, targets


def _start_worker(worker: int) -> None:
    """Gives a loading process one thread, and leaves the job's signals to the process that trains."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


def prefetch_to_device(
    micros: Iterator[MicroBatch], device: torch.device, memory_format: torch.memory_format
) -> Iterator[MicroBatch]:
    """Yields the micro-batches on the device; on a GPU the next one is copied while this one is computed."""

    def move(item: MicroBatch) -> MicroBatch:
        step, micro, *pair = item
        # First the copy, from pinned memory in its own layout, then the layout on the device: faster.
        on_device = (t.to(device, non_blocking=True) for t in pair)
        sources, targets = (t.contiguous(memory_format=memory_format) for t in on_device)
        return step, micro, sources, targets

    if device.type != "cuda":
        yield from map(move, micros)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    computing = torch.cuda.current_stream(device)
    ahead: deque[tuple[MicroBatch, torch.Event]] = deque()
    while True:
        with torch.cuda.stream(copying):
            ahead.extend((move(item), copying.record_event()) for item in islice(micros, 2 - len(ahead)))
        if not ahead:
            return
        current, copy_event = ahead.popleft()
        computing.wait_event(copy_event)
        for tensor in current[2:]:
            # The allocator must not reuse its memory for the next copy while it is still computed with.
            tensor.record_stream(computing)
        yield current
