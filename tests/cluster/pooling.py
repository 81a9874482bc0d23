"""A pooled stage that only computes squares, with everything that may befall its tasks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from hpc_isl import submit
from hpc_isl.cluster import jobs
from hpc_isl.mistake import Mistake
from hpc_isl.recipe import RECIPES
from hpc_isl.recipes.base import Recipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.tasks import Pools, Task


class SquareRecipe(Recipe):
    """Squares of the first numbers."""

    numbers: int = 10
    """how many"""
    pause_s: float = 0.0
    """that each takes"""


RECIPES["square"] = SquareRecipe
jobs.STAGES["square"] = "pooling"
jobs.POOLED.add("square")
submit.STAGES["square"] = "computes squares"


def plan(recipe: SquareRecipe) -> Plan:
    return Plan(recipe, says=(f"computes {recipe.numbers} squares",))


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
    with pools(10**6) as pool:
        for answer in pool.run(write_square, tasks):
            assert not answer.problem, answer
            workers.add(answer.value)
            attempt.progress(len(list(folder.iterdir())), recipe.numbers, "squares")
            attempt.metric(int(answer.name), square=1.0)
    if not attempt.stopping.is_set():
        attempt.finish({"squares": recipe.numbers, "workers": len(workers)})


def write_square(what: tuple[Path, float]) -> int:
    path, pause_s = what
    time.sleep(pause_s)
    path.write_text(str(int(path.name) ** 2))
    return os.getpid()


# ---------------------------------------------------------------- calls


def doubled(number: int) -> int:
    return 2 * number


def slowly(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def who(_: Any) -> tuple[int, str | None, str | None]:
    """The process, the GPU it sees, and the threads of its libraries."""
    time.sleep(0.05)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")


def touchy(what: tuple[Path, int]) -> int:
    """Odd numbers are refused; each trial leaves a file."""
    folder, number = what
    (folder / f"{number}-{time.monotonic_ns()}").touch()
    if number % 2:
        raise ArithmeticError(f"{number} is odd")
    return number


def mistaken(what: tuple[Path, int]) -> int:
    folder, number = what
    (folder / f"{number}-{time.monotonic_ns()}").touch()
    raise Mistake(f"well {number} is wrong")


def deadly(what: tuple[Path, int, bool]) -> int:
    """One that is deadly kills its process; each trial leaves a file."""
    folder, number, kills = what
    (folder / f"{number}-{time.monotonic_ns()}").touch()
    time.sleep(0.02)
    if kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def begun(what: tuple[Path, int, float]) -> int:
    """Leaves a file when it begins and another when it has ended."""
    folder, number, seconds = what
    (folder / f"{number}-begun").touch()
    time.sleep(seconds)
    (folder / f"{number}-ended").touch()
    return number
