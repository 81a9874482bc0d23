"""How much work a training is, and everything that decides how long a unit of it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hpc_isl.learning.data.view import View
from hpc_isl.recipes.training import NetRecipe, PredictRecipe, TrainRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.shared.plate_views import PlateField

STEPS, VALIDATION, TEST = "micro-batches", "validation", "test"
"""Phases of a training; fields are counted in megapixels as the network sees them."""
TRIAL_S = 10.0


def net_like(net: NetRecipe, predict: PredictRecipe) -> dict[str, Any]:
    """Returns all that decides how long the network takes for a pixel: not its weights."""
    return {
        "encoder": net.encoder, "decoder": net.decoder, "channels_last": net.channels_last,
        "predict": [predict.tile, predict.halo, predict.batch] if predict.tile else None,
    }  # fmt: skip


def training_like(
    stage: str, net: NetRecipe, predict: PredictRecipe, view: View, train: TrainRecipe
) -> dict[str, Any]:
    """Returns all that decides how long a micro-batch takes, apart from the machine."""
    return {
        "stage": stage, **net_like(net, predict), "crop": train.crop, "micro_batch": train.micro_batch,
        "precision": train.precision, "compile": train.compile,
        "sources": [str(role.plane) for role in view.sources],
        "targets": [str(role.plane) for role in view.targets],
    }  # fmt: skip


def micro_batches(train: TrainRecipe, steps: int) -> float:
    """Returns the micro-batches of all steps but the first, whose time counts as the start."""
    # Of all ranks together; an estimate divides them among processes.
    return max(0, steps - 1) * (train.batch // train.micro_batch)


def megapixels(fields: Iterable[PlateField]) -> float:
    """Returns millions of pixels of fields as the network sees them, over all their times."""
    return sum((plate.megapixels(key) for plate, key in fields), 0.0)


@contextmanager
def ended_after(attempt: Attempt, seconds: float) -> Iterator[None]:
    """Asks the attempt to stop so long after its first unit of work was done; withdraws that at the end."""
    block_ended = threading.Event()

    def watch() -> None:
        while not block_ended.wait(0.05):
            if attempt.clock.lasted_s > seconds:
                attempt.stopping.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        block_ended.set()
        thread.join()
        attempt.stopping.clear()
