"""Plans tell how long they take, from what was timed on this machine, or after a trial of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.run_folder.submissions import FILE, machine, timings
from hpc_isl.cluster.submit import planning
from hpc_isl.recipes.base import SweepRecipe
from hpc_isl.site import Site
from hpc_isl.tasks import Estimate

if TYPE_CHECKING:
    from tests.conftest import CommandLine

QUIET = "site.tracking=none"


def time_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("time: ")]


def left(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_phases_of_less_than_a_second_are_not_named() -> None:
    request = RunRequest("count", SweepRecipe(stage="count", over={"seed": [0, 1]}), Site())
    time = planning._message(request, [Estimate({"start": 0.4, "end": 0.1}, ("one",))])
    assert time == "time: about 0 s (timed in 'one')"


def test_a_plan_tells_the_time_once_something_like_it_was_timed_here(command_line: CommandLine) -> None:
    """First that it is not known, and what makes it known; later how long, of which phases, after which
    run. Another machine, or work of another kind, is not taken for it."""
    first = command_line("count", QUIET, "steps=20", "--name", "one")
    assert time_in(first.stdout) == [
        "time: not known, because nothing like it was timed on such a machine yet; --dry-run --time tries it "
        "for ten seconds"
    ]
    (known,) = time_in(command_line("count", QUIET, "steps=900", "--dry-run").stdout)
    assert known.startswith("time: about ")
    assert "steps " in known
    assert known.endswith("timed in 'one')")
    for other in ("seed=6", "site.cpus=1", "site.processes=2"):
        (line,) = time_in(command_line("count", QUIET, other, "--dry-run").stdout)
        assert ("not known" in line) == (other != f"site.cpus={len(os.sched_getaffinity(0))}"), other


def test_a_sweep_reports_the_time_of_an_element_and_of_all(command_line: CommandLine) -> None:
    words = ("stage=count", "over={steps: [20, 30]}", QUIET, "site.array=2", "final=true")
    assert command_line("sweep", *words, "--name", "two").returncode == 0
    (line,) = time_in(command_line("sweep", *words, "--name", "more", "--dry-run").stdout)
    assert "2 at once (2 elements, " in line
    assert "timed in 'two/steps=" in line
    (line,) = time_in(
        command_line("sweep", *words, "over={steps: [20, 30, 40]}", "--name", "two", "--dry-run").stdout
    )
    assert "1 at once (1 elements, " in line, "what a wider sweep has already is not computed again"


def test_a_trial_tells_it_at_once_and_leaves_nothing(command_line: CommandLine) -> None:
    before = left(command_line.cwd)
    for words in (("count", "steps=900"), ("sweep", "stage=count", "over={steps: [800, 900]}")):
        tried = command_line(*words, QUIET, "--dry-run", "--time")
        assert tried.returncode == 0, tried.stdout
        assert f"trying {'count' if words[0] == 'count' else 'steps=900'} for ten seconds" in tried.stdout
        (line,) = time_in(tried.stdout)
        assert "tried just now" in line
    assert left(command_line.cwd) == before


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("count", "--time"), "--time goes with --dry-run"),
        (("count", "--time", "--dry-run", "--site", "slurm"), "this machine would be timed, not the nodes"),
    ],
)
def test_a_trial_that_would_tell_nothing_is_refused(
    command_line: CommandLine, words: tuple[str, ...], messages: str
) -> None:
    refused = command_line(*words)
    assert refused.returncode == 2
    assert messages in refused.stdout


def test_the_newest_of_many_timings_count(tmp_path: Path) -> None:
    here = machine(Site(cpus=1), 1)
    for number in range(8):
        path = tmp_path / "count" / f"r{number}" / "attempts" / "0" / FILE
        path.parent.mkdir(parents=True)
        like = {"stage": "other" if number == 7 else "count"}
        path.write_text(json.dumps({"like": like, "machine": here, "phases": {"start": [number, 1]}}))
        os.utime(path, (number, number))
    found = timings([tmp_path], {"stage": "count"}, here)
    assert [name for name, _ in found] == ["r6", "r5", "r4", "r3", "r2"]
    assert timings([tmp_path], {"stage": "count"}, machine(Site(cpus=2), 2)) == []


def test_nodes_of_one_partition_are_one_machine(tmp_path: Path) -> None:
    slurm = Site(executor="slurm", partition="gpu", gpus=4)
    assert machine(slurm, 8) == machine(slurm.model_copy(update={"time": "2d", "account": "x"}), 8)
    assert machine(slurm, 8) != machine(slurm.model_copy(update={"partition": "cpu"}), 8)
    assert machine(slurm, 8) != machine(slurm.model_copy(update={"nodes": 2}), 8)


def test_a_sweep_in_the_foreground_says_each_minute_how_far_it_is(command_line: CommandLine) -> None:
    """Who waits for a sweep reads how many elements have ended, how far the others are, and about how long
    it still takes; here each second."""
    command_line.environment["LINE_S"] = "1"
    done = command_line(
        "sweep", "stage=count", "over={seed: [0, 1]}", "steps=40", "pause_s=0.1", QUIET, "site.array=1"
    )
    assert done.returncode == 0, done.stdout
    told = [line for line in done.stdout.splitlines() if "elements ended; seed=" in line]
    assert any(line.startswith("0 of 2 elements ended; seed=0: ") for line in told), done.stdout
    assert any(line.startswith("1 of 2 elements ended; seed=1: ") for line in told)
    assert all("/40 steps" in line and " left" in line for line in told)
