"""A stage that only counts, with everything that may befall one: crashes, mistakes, deafness, children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hpc_isl import submit
from hpc_isl.errors import UserError
from hpc_isl.recipes.base import Arrangement, Recipe
from hpc_isl.run import Attempt, Plan, Run
from hpc_isl.stages.stage_table import STAGES, Stage
from hpc_isl.tasks import Workload


class CountRecipe(Recipe):
    """Counts to a number."""

    RUNS = ("among",)

    steps: int = 3
    """how far"""
    pause_s: float = 0.01
    """between steps"""
    seed: int = 5
    """of nothing"""
    crash_rank: int | None = None
    """this rank fails at its second step"""
    kill_rank: int | None = None
    """this rank is killed at its second step"""
    mishaps: int = 1000
    """attempts that something befalls; later ones go well"""
    saves: bool = True
    """leaves a checkpoint when asked to stop"""
    meet: bool = False
    """its processes meet as those of a training do, and add up their ranks"""
    mistaken: bool = False
    """the data turn out to be wrong"""
    deaf: bool = False
    """does not stop when asked to"""
    child: bool = False
    """starts a process that would outlive it"""
    word: str = ""
    """said at the start"""
    data: Path | None = None
    """an input"""
    parts: bool = False
    """each line of the input is a part of it"""
    until: int = 1000
    """the last line that is read"""
    final: bool = False
    """a sweep of such ends with an element `final` that adds up what the others have counted"""
    among: list[Path] = []
    """the runs that it adds up"""


STAGES["count"] = Stage("count", "counts to a number", "counting", "counting.CountRecipe")


def plan(recipe: CountRecipe) -> Plan:
    if recipe.steps > 1000:
        raise UserError(f"steps: {recipe.steps} is more than I can count; 1000 at most")
    lines = recipe.data.read_text().splitlines()[: recipe.until] if recipe.data else []
    inputs = {str(recipe.data): "\n".join(lines)} if recipe.data else {}
    parts = {f"line {number}": line for number, line in enumerate(lines, 1)} if recipe.parts else {}
    if recipe.among:
        return Plan(recipe.model_copy(update={"word": f"of {_sum(recipe.among)}"}))
    named = dict.fromkeys(inputs, parts) if parts else {}
    work = Workload({"stage": "count", "seed": recipe.seed}, {"steps": recipe.steps - 1})
    return Plan(recipe, messages=(f"counts to {recipe.steps}",), inputs=inputs, parts=named, workload=work)


def trial(recipe: CountRecipe, attempt: Attempt) -> None:
    """A few steps, in a folder that is thrown away."""
    for _ in range(3):
        time.sleep(recipe.pause_s)
        attempt.clock.tick("steps", 1)


def arrange(elements: Mapping[str, CountRecipe], folder: Path) -> Arrangement:
    """One more element, if that is asked for."""
    if not any(recipe.final for recipe in elements.values()):
        return Arrangement(elements)
    final = CountRecipe(steps=1, among=[folder / "count" / name for name in elements])
    messages = (f"final adds up what {len(elements)} others have counted",)
    return Arrangement({**elements, "final": final}, messages, last="final")


def _sum(runs: list[Path]) -> int:
    found = {path.name: Run(path).summary() for path in runs}
    missing = [name for name, summary in found.items() if summary is None]
    if missing:
        raise UserError(f"nothing to add up for {', '.join(missing)}; retry the sweep")
    return sum(summary["counted"] for summary in found.values() if summary)


def count(recipe: CountRecipe, attempt: Attempt) -> None:
    folder = attempt.run.checkpoints
    folder.mkdir(exist_ok=True)
    if recipe.meet:
        attempt.log(f"the ranks add up to {_sum_of_ranks(attempt)}")
    first = max((int(path.name) for path in folder.iterdir()), default=0)
    attempt.log(f"from {first} in attempt {attempt.number} {recipe.word}".strip())
    attempt.log(f"code in {Path(submit.__file__).parent}")
    if recipe.child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    if recipe.mistaken:
        raise UserError("well B03: the data are wrong")
    for step in range(first, recipe.steps):
        _mishap(recipe, attempt, step - first)
        time.sleep(0 if os.environ.get("COUNT_FAST") else recipe.pause_s)
        attempt.clock.tick("steps", 1)
        attempt.metric(step, loss=1.0 / (step + 1))
        attempt.progress(step + 1, recipe.steps, "steps", loss=1.0 / (step + 1))
        if attempt.stopping.is_set() and not recipe.deaf:
            if attempt.rank == 0 and recipe.saves:
                (folder / str(step + 1)).touch()
            return
    attempt.finish({"counted": recipe.steps, "made": {"nothing": "at all"}})


def _sum_of_ranks(attempt: Attempt) -> int:
    import torch

    from hpc_isl.learning.training.world import open_world

    with open_world(attempt, timeout_s=120) as world:
        return int(world.all_reduce(torch.tensor([attempt.rank])))


def _mishap(recipe: CountRecipe, attempt: Attempt, step: int) -> None:
    if attempt.number >= recipe.mishaps:
        return
    if step == 1 and attempt.rank == recipe.crash_rank:
        raise RuntimeError("boom")
    if step == 1 and attempt.rank == recipe.kill_rank:
        os.kill(os.getpid(), signal.SIGKILL)
