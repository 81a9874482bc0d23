"""Micro-batches on their way from the loader to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

MicroBatch = tuple[int, int, Tensor, Tensor]
"""Step, number of the micro-batch within the step, sources, targets."""


def on_device(
    micros: Iterator[MicroBatch], device: torch.device, layout: torch.memory_format
) -> Iterator[MicroBatch]:
    """The micro-batches on the device; on a GPU the next one is copied while this one is computed."""

    def move(item: MicroBatch) -> MicroBatch:
        step, micro, *pair = item
        # First the copy, from pinned memory as it lies, then the layout on the device.
        sources, targets = (t.to(device, non_blocking=True).contiguous(memory_format=layout) for t in pair)
        return step, micro, sources, targets

    if device.type != "cuda":
        yield from map(move, micros)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    main = torch.cuda.current_stream(device)
    ahead: deque[tuple[MicroBatch, torch.Event]] = deque()
    while True:
        with torch.cuda.stream(side):
            ahead.extend((move(item), side.record_event()) for item in islice(micros, 2 - len(ahead)))
        if not ahead:
            return
        now, copied = ahead.popleft()
        main.wait_event(copied)
        for tensor in now[2:]:
            tensor.record_stream(main)
        yield now
