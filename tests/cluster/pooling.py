"""A pooled stage that only computes squares, with everything that may befall its tasks."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hpc_isl.recipes.base import Recipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.stage_table import STAGES, Stage
from hpc_isl.tasks import MemoryRequirement, Pools, Task


class SquareRecipe(Recipe):
    """Squares of the first numbers."""

    numbers: int = 10
    """how many"""
    pause_s: float = 0.0
    """that each takes"""


STAGES["square"] = Stage("square", "computes squares", "pooling", "pooling.SquareRecipe", pooled=True)


def plan(recipe: SquareRecipe) -> Plan:
    return Plan(recipe, messages=(f"computes {recipe.numbers} squares",))


def square(recipe: SquareRecipe, attempt: Attempt, pools: Pools) -> None:
    """Each square is a file; those that are there are kept."""
    folder = attempt.run.folder / "squares"
    folder.mkdir(exist_ok=True)
    tasks = [
        Task(str(number), (folder / str(number), recipe.pause_s))
        for number in range(recipe.numbers)
        if not (folder / str(number)).exists()
    ]
    attempt.progress(recipe.numbers - len(tasks), recipe.numbers, "squares")
    workers = set()
    with pools(MemoryRequirement(0, 10**6)) as pool:
        for answer in pool.run(write_square, tasks):
            assert not answer.problem, answer
            workers.add(answer.value)
            attempt.progress(len(list(folder.iterdir())), recipe.numbers, "squares", workers=len(workers))
            attempt.metric(int(answer.name), square=1.0)
    if not attempt.stopping.is_set():
        attempt.finish({"squares": recipe.numbers, "workers": len(workers)})


def write_square(what: tuple[Path, float]) -> int:
    path, pause_s = what
    time.sleep(pause_s)
    path.write_text(str(int(path.name) ** 2))
    return os.getpid()
