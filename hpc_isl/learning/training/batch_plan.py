"""Batches as planned before torch is imported: steps, the micro-batches of a rank, loading processes.

Plans need the numbers alone, and the server that forks loading processes must start before torch is imported.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from hpc_isl.errors import UserError
from hpc_isl.recipes.training import TrainRecipe


def steps_of(train: TrainRecipe, samples: int) -> int:
    """Returns the optimiser steps of a run; `samples`: of one epoch."""
    return train.steps or math.ceil((train.epochs or 0) * samples / train.batch)


def micro_batches(
    train: TrainRecipe, rank: int, size: int, first_step: int, last_step: int
) -> Iterator[tuple[int, int, range]]:
    """Yields (step, micro-batch, sample numbers) of one rank, for steps first_step <= step < last_step.

    Micro-batch j of step s holds the numbers from s * batch + j * micro_batch on, on any rank; rank r
    takes those with j % size == r.
    """
    for step in range(first_step, last_step):
        for micro in range(rank, train.batch // train.micro_batch, size):
            start = step * train.batch + micro * train.micro_batch
            yield step, micro, range(start, start + train.micro_batch)


def check_micro_batches(train: TrainRecipe, size: int) -> int:
    """Returns the micro-batches per rank and step.

    Raises:
        UserError: `size` processes cannot share the micro-batches of a step evenly.
    """
    count = train.batch // train.micro_batch
    if count % size:
        legal = [n for n in range(1, count + 1) if count % n == 0]
        # The next smaller and the next larger number that fit.
        nearest = [n for n in legal if n < size][-1:] + [n for n in legal if n > size][:1]
        raise UserError(
            f"{size} processes cannot share the {count} micro-batches of a step "
            f"(train.batch={train.batch} / train.micro_batch={train.micro_batch}): "
            f"take {' or '.join(map(str, nearest))} processes, or train.batch="
            f"{train.micro_batch * size * max(1, round(count / size))}"
        )
    return count // size


PRELOADED = ["hpc_isl.learning.training.forkserver_preload"]  # imported by the server
MOST_WORKERS = 12


def loading_processes(wanted: int | None, cpus: int) -> int:
    """Returns `wanted`; for None, one process for each CPU of the rank but one, which trains."""
    return max(min(cpus - 1, MOST_WORKERS), 0) if wanted is None else wanted


def fork_server() -> ForkServerContext:
    """Starts the server unless it runs already. Called early, it imports while this process imports too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    environment = dict(os.environ)
    # The server inherits the environment; with these paths it imports what this process would import.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    return context
