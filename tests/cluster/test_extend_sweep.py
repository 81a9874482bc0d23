"""Sweeps that end with an element for which all others must be done, and sweeps that take in more."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpc_isl.cluster.run_folder import folders
from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.submit import planning, sweep
from hpc_isl.run import Attempt, Plan, Run
from hpc_isl.site import Site

if TYPE_CHECKING:
    from tests.conftest import CommandLine

QUIET = "site.tracking=none"
ADDED_UP = ("stage=count", "final=true", QUIET, "--name", "nuc")


def elements(command_line: CommandLine) -> dict[str, Run]:
    return {one.name: one for one in Run(command_line.cwd / "runs" / "sweep" / "nuc").elements()}


def attempts(command_line: CommandLine) -> dict[str, int]:
    return {name: len(one.attempt_numbers()) for name, one in elements(command_line).items()}


def sum_of(command_line: CommandLine) -> str:
    """What the last element read in the others."""
    return elements(command_line)["final"].recipe.read_text().split("word: ")[1].splitlines()[0]


def start_and_exit(run: Run) -> tuple[str, str]:
    record = json.loads((run.attempts / "0" / "rank-0.json").read_text())
    return record["start"], record["exit"]


# ---------------------------------------------------------------- the last element


def test_the_last_element_starts_when_all_others_have_ended_and_reads_them(command_line: CommandLine) -> None:
    done = command_line("sweep", "over={steps: [3, 4, 5]}", *ADDED_UP, "site.cpus=1")
    assert done.returncode == 0, done.stdout
    assert "final adds up what 3 others have counted" in done.stdout
    assert list(elements(command_line)) == ["steps=3", "steps=4", "steps=5", "final"]
    assert sum_of(command_line) == "of 12"
    *others, final = [start_and_exit(one) for one in elements(command_line).values()]
    assert max(ended for _, ended in others) < final[0]


def test_the_last_element_says_what_is_missing_and_is_retried_after_it(command_line: CommandLine) -> None:
    over = "over=[{steps: 3}, {steps: 4, crash_rank: 0, mishaps: 1}]"
    done = command_line("sweep", over, *ADDED_UP)
    assert done.returncode == 1, done.stdout
    assert "nothing to add up for steps=4,crash_rank=0,mishaps=1" in done.stdout
    assert "1 done, 2 failed" in done.stdout
    again = command_line("retry", "nuc")
    assert again.returncode == 0, again.stdout
    assert attempts(command_line) == {"steps=3": 1, "steps=4,crash_rank=0,mishaps=1": 2, "final": 2}
    assert sum_of(command_line) == "of 7"


def test_the_last_element_comes_along_when_others_go_on(command_line: CommandLine) -> None:
    call = command_line.open("sweep", "over={seed: [0, 1, 2]}", "steps=200", "pause_s=0.1", *ADDED_UP)
    assert command_line.eventually(
        lambda: (command_line.cwd / "runs/sweep/nuc/count/seed=0/metrics.jsonl").exists()
    )
    os.killpg(call.pid, signal.SIGINT)
    output, _ = call.communicate(timeout=90)
    assert call.returncode == 130, output
    assert [one.name for one in elements(command_line).values() if one.metrics.exists()] == ["seed=0"]
    command_line.environment["COUNT_FAST"] = "1"
    assert command_line("resume", "nuc/seed=0").returncode == 0
    assert elements(command_line)["final"].summary() is None, "one element alone"
    again = command_line("resume", "nuc")
    assert again.returncode == 0, again.stdout
    assert "is resumed with 3 of 4 elements" in again.stdout
    assert sum_of(command_line) == "of 600"


def test_a_dry_run_tells_what_the_stage_arranges(command_line: CommandLine) -> None:
    done = command_line("sweep", "over={seed: [0, 1]}", *ADDED_UP, "--site", "slurm", "--dry-run")
    assert "final adds up what 2 others have counted" in done.stdout
    assert "2 times, with seed=0; seed=1\nthen final, when all of these have ended" in done.stdout
    assert "# sbatch, the first of 2" in done.stdout
    assert not (command_line.cwd / "runs").exists()


def test_elements_are_computed_at_once_where_they_fit(command_line: CommandLine) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    done = command_line("sweep", "stage=count", "over={seed: [0, 1]}", "steps=50", "pause_s=0.1",
                "site.cpus=1", QUIET, "--name", "nuc")  # fmt: skip
    assert "2 elements, 2 at once" in done.stdout
    first, second = (start_and_exit(one) for one in elements(command_line).values())
    assert max(first[0], second[0]) < min(first[1], second[1])


# ---------------------------------------------------------------- wider


def files(run: Run) -> dict[str, int]:
    """All that there is of a run, and when it was written."""
    paths = [path for path in run.folder.rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in paths}


def test_a_wider_sweep_computes_what_is_new_and_the_last_element_again(command_line: CommandLine) -> None:
    assert command_line("sweep", "over={steps: [3, 4]}", *ADDED_UP).returncode == 0
    there = {name: files(run) for name, run in elements(command_line).items()}
    key = json.loads((command_line.cwd / "runs/sweep/nuc/record.json").read_text())["key"]
    wider = command_line("sweep", "over=[{steps: [3, 4, 5]}, {seed: [1], steps: 6}]", *ADDED_UP)
    assert wider.returncode == 0, wider.stdout
    assert "sweep 'nuc' is extended: 2 of 4 elements are new; then 'final' once more" in wider.stdout
    assert "is resumed with 3 of 5 elements" in wider.stdout
    assert attempts(command_line) == {
        "steps=3": 1,
        "steps=4": 1,
        "steps=5": 1,
        "seed=1,steps=6": 1,
        "final": 1,
    }
    assert {name: files(elements(command_line)[name]) for name in ("steps=3", "steps=4")} == {
        name: there[name] for name in ("steps=3", "steps=4")
    }
    assert sum_of(command_line) == "of 18"
    earlier = Run(command_line.cwd / "runs/sweep/nuc/earlier/1/count/final")
    assert (earlier.summary() or {})["counted"] == 1, "the earlier one is kept: its model may be in use"
    record = json.loads((command_line.cwd / "runs/sweep/nuc/record.json").read_text())
    assert record["key"] == key, "the same run in MLflow"
    assert record["widened"][0]["elements"] == ["steps=5", "seed=1,steps=6"]
    same = command_line("sweep", "over=[{steps: [3, 4, 5]}, {seed: [1], steps: 6}]", *ADDED_UP)
    assert "nothing to do" in same.stdout


def test_what_was_not_done_comes_along(command_line: CommandLine) -> None:
    over = "{steps: 4, crash_rank: 0, mishaps: 1}"
    assert command_line("sweep", f"over=[{{steps: 3}}, {over}]", *ADDED_UP).returncode == 1
    wider = command_line("sweep", f"over=[{{steps: [3, 5]}}, {over}]", *ADDED_UP)
    assert wider.returncode == 0, wider.stdout
    assert "1 of 3 elements are new" in wider.stdout
    assert attempts(command_line) == {
        "steps=3": 1,
        "steps=5": 1,
        "steps=4,crash_rank=0,mishaps=1": 2,
        "final": 1,
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("over={steps: [3, 5]}",), "over.steps.1: 4 there, 5 here"),
        (("over={steps: [3]}",), "over.steps.1: 4 there, None here"),
        (("over={steps: [3, 4, 5]}", "word=other"), "  word: '' there, 'other' here"),
    ],
)
def test_a_sweep_that_would_not_compute_the_same_is_refused(
    command_line: CommandLine, words: tuple[str, ...], complaint: str
) -> None:
    assert command_line("sweep", "over={steps: [3, 4]}", *ADDED_UP).returncode == 0
    refused = command_line("sweep", *words, *ADDED_UP)
    assert refused.returncode == 2
    assert complaint in refused.stdout
    assert list(elements(command_line)) == ["steps=3", "steps=4", "final"]


def test_inputs_that_have_changed_are_found(command_line: CommandLine) -> None:
    data = command_line.cwd / "data.txt"
    data.write_text("one")
    words = (f"data={data}", "stage=count", QUIET, "--name", "nuc")
    assert command_line("sweep", "over={steps: [3]}", *words).returncode == 0
    data.write_text("two")
    for over in ("over={steps: [3]}", "over={steps: [3, 4]}"):
        refused = command_line("sweep", over, *words)
        assert refused.returncode == 2
        assert f"contents of {data}: 'one' there, 'two' here" in refused.stdout


def test_what_has_changed_is_computed_once_more_when_that_is_asked_for(command_line: CommandLine) -> None:
    """A sweep whose inputs have grown: told is which are new and how many elements they change, with the
    command that computes just these; what they were stays, and what did not change is not touched."""
    data = command_line.cwd / "data.txt"
    data.write_text("one\ntwo")
    words = ("sweep", "over={steps: [3, 4]}", f"data={data}", "parts=true", "until=2", *ADDED_UP)
    swept = (*words[:1], "over=[{steps: 3, until: 1}, {steps: 4}]", *words[2:])
    assert command_line(*swept).returncode == 0
    there = files(elements(command_line)["steps=3,until=1"])
    data.write_text("one\n2\nthree")
    refused = command_line(*swept)
    assert refused.returncode == 2
    for line in (
        "sweep 'nuc' exists, from other inputs:", f"  {data}: 1 changed: line 2",
        "they change 1 of 2 elements, and 'final'. To compute these once more", "or choose another --name",
    ):  # fmt: skip
        assert line in refused.stdout
    call = next(line for line in refused.stdout.splitlines() if line.endswith("--update"))
    assert shlex.split(call)[3:] == [*swept, "--update"]
    told = command_line(*swept, "--update", "--dry-run")
    assert "1 of 2 are computed once more; then 'final' once more: steps=4" in told.stdout
    assert files(elements(command_line)["steps=3,until=1"]) == there
    done = command_line(*shlex.split(call)[3:])
    assert done.returncode == 0, done.stdout
    assert attempts(command_line) == {"steps=3,until=1": 1, "steps=4": 1, "final": 1}
    assert files(elements(command_line)["steps=3,until=1"]) == there
    earlier = Run(command_line.cwd / "runs/sweep/nuc/earlier/1/count/steps=4")
    assert (earlier.summary() or {})["counted"] == 4
    assert "nothing to do" in command_line(*swept).stdout


def test_a_living_sweep_is_not_extended(command_line: CommandLine) -> None:
    call = command_line.open("sweep", "over={seed: [0]}", "steps=1000", "pause_s=0.2", *ADDED_UP)
    assert command_line.eventually(
        lambda: (command_line.cwd / "runs/sweep/nuc/count/seed=0/metrics.jsonl").exists()
    )
    refused = command_line("sweep", "over={seed: [0, 1]}", "steps=1000", "pause_s=0.2", *ADDED_UP)
    assert refused.returncode == 2
    assert "wait for it" in refused.stdout
    assert "cancel nuc, and extend it then" in refused.stdout
    os.killpg(call.pid, signal.SIGINT)
    call.communicate(timeout=90)


def test_a_dry_run_tells_how_many_are_there_and_how_many_are_new(command_line: CommandLine) -> None:
    assert command_line("sweep", "over={steps: [3, 4]}", *ADDED_UP).returncode == 0
    before = files(Run(command_line.cwd / "runs"))
    told = command_line("sweep", "over={steps: [3, 4, 5]}", *ADDED_UP, "--dry-run").stdout
    assert "1 times, with steps=5\nthen final" in told
    assert "1 of 3 elements are new" in told
    assert files(Run(command_line.cwd / "runs")) == before


# ---------------------------------------------------------------- ended in the middle

PRETRAIN = ("stage=pretrain", "plates=[P.zarr]", "sources=[{channel: BF, plane: 0}]",
            "targets=[{channel: DNA, plane: 0}]")  # fmt: skip


def seeds(*numbers: int) -> RunRequest:
    """A sweep over seeds whose last element names the others."""
    plain = sweep.sweep_request(None, [*PRETRAIN, f"over={{seed: {list(numbers)}}}"], Site(), "s")
    names = [Path(name) for name in plain.elements or {}]
    first = next(iter((plain.elements or {}).values()))
    final = first.model_copy(update={"plates": names})
    return replace(plain, elements={**(plain.elements or {}), "final": final}, final_element="final")


def plans_of(order: RunRequest) -> dict[str, Plan]:
    return {name: Plan(recipe) for name, recipe in (order.elements or {}).items()}


INPUTS = {"seed=1": {"boxes": "others"}}  # of which one element is planned anew


class Killed(BaseException):
    """What ends a process between two steps."""


@pytest.fixture
def end_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """end_at(n): the n-th change of a file or folder from now on does not happen, and nothing after it."""
    left = [-1]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return change(*given, **more)

        return changed

    for place, name in ((sweep, "write_atomic"), (folders, "write_atomic"), (folders, "make_folder"),
                        (os, "rename"), (Path, "unlink")):  # fmt: skip
        monkeypatch.setattr(place, name, counted(getattr(place, name)))
    return lambda number: left.__setitem__(0, number)


def test_an_extension_that_is_ended_leaves_the_sweep_as_it_was_or_as_it_will_be(
    tmp_path: Path, end_at: Callable[[int], None]
) -> None:
    moments = 0
    while _is_ended_and_consistent(tmp_path / str(moments), end_at, moments + 1):
        moments += 1
    assert moments > 20, "it has many steps, and was ended at each of them"


def _is_ended_and_consistent(root: Path, end_at: Callable[[int], None], moment: int) -> bool:
    """Whether the extension was ended at this step; False: it has no more steps."""
    few, many = seeds(0, 1), seeds(0, 1, 2, 3)
    run, ended = few.run(root), False
    folders.make_array(run, few, plans_of(few), ())
    for one in run.elements():
        Attempt(one).finish({"of": one.name})
    plans = {name: replace(plan, inputs=INPUTS.get(name, {})) for name, plan in plans_of(many).items()}
    wider = sweep.compare(run, many, plans)
    assert (wider.new_names, wider.changed_names) == (("seed=2", "seed=3"), ("seed=1",))
    end_at(moment)
    try:
        sweep.extend(run, many, plans, wider, ())
    except Killed:
        ended = True
    end_at(-1)
    sweep.finish_interrupted(run)
    as_it_was = sweep.compare(run, many, plans) == wider
    assert as_it_was or not sweep.compare(run, many, plans)
    assert [one.name for one in folders.other_elements(run)] == [
        f"seed={n}" for n in range(2 if as_it_was else 4)
    ]
    assert [one.name for one in run.elements() if not one.recipe.is_file()] == []
    assert planning.differences(run, Plan((few if as_it_was else many).recipe)) == []
    done = [one.name for one in run.elements() if one.summary()]
    assert done == ["seed=0", *(["seed=1", "final"] if as_it_was else [])]
    if as_it_was:
        sweep.extend(run, many, plans, wider, ())
    assert not sweep.compare(run, many, plans)
    final = folders.final_element(run)
    assert final is not None
    assert final.summary() is None
    assert "seed=3" in final.recipe.read_text()
    assert [path.name for path in run.folder.iterdir() if "widening" in path.name] == []
    for name in ("final", "seed=1"):
        assert (Run(run.folder / "earlier/1/pretrain" / name).summary() or {})["of"] == name
    assert json.loads((run.folder / "pretrain/seed=1/record.json").read_text())["inputs"] == INPUTS["seed=1"]
    return ended
