"""What trainings have to do, and what the time of a unit of it hangs on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hpc_isl.learning.data.fields import level_on
from hpc_isl.learning.data.view import View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import NetRecipe, PredictRecipe, TrainRecipe
from hpc_isl.run import Attempt

STEPS, VALIDATION, TEST = "micro-batches", "validation", "test"
"""Phases of a training; fields are counted in megapixels as the network sees them."""
TRIAL_S = 10.0


def net_like(net: NetRecipe, predict: PredictRecipe) -> dict[str, Any]:
    """The network, whatever its weights, and how it looks at whole fields."""
    return {
        "encoder": net.encoder, "decoder": net.decoder, "channels_last": net.channels_last,
        "predict": [predict.tile, predict.halo, predict.batch] if predict.tile else None,
    }  # fmt: skip


def training_like(
    stage: str, net: NetRecipe, predict: PredictRecipe, view: View, train: TrainRecipe
) -> dict[str, Any]:
    """All that the time of a micro-batch hangs on, but for the machine."""
    return {
        "stage": stage, **net_like(net, predict), "crop": train.crop, "micro_batch": train.micro_batch,
        "precision": train.precision, "compile": train.compile,
        "sources": [str(role.plane) for role in view.sources],
        "targets": [str(role.plane) for role in view.targets],
    }  # fmt: skip


def micro_batches(train: TrainRecipe, steps: int) -> float:
    """Of all steps but the first, which belongs to the start."""
    return max(0, steps - 1) * (train.batch // train.micro_batch)


def megapixels(view: View, places: Iterable[tuple[Index, FieldKey]]) -> float:
    """Of fields at the level that the network sees, over all their times."""
    total = 0.0
    for index, key in places:
        times, _, _, y, x = index.field(key).shape
        total += times * y * x / 4 ** level_on(view, index, key) / 1e6
    return total


@contextmanager
def ended_after(attempt: Attempt, seconds: float) -> Iterator[None]:
    """The attempt is asked to stop so many seconds after its first unit was done, and no more afterwards."""
    left = threading.Event()

    def look() -> None:
        while not left.wait(0.05):
            if attempt.clock.lasted_s > seconds:
                attempt.stopping.set()

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        left.set()
        watch.join()
        attempt.stopping.clear()
