"""Arrays and chains on this machine: what varies, what fails, what goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.cluster.executors import local, local_array
from hpc_isl.cluster.run_folder.job import Ending, Job
from hpc_isl.cluster.submit import sweep
from hpc_isl.cluster.submit.chain import links
from hpc_isl.errors import UserError
from hpc_isl.recipes.base import ChainRecipe
from hpc_isl.recipes.strict import parse
from hpc_isl.run import Run
from hpc_isl.site import Site

if TYPE_CHECKING:
    from tests.conftest import CommandLine

QUIET = "site.tracking=none"


def elements(command_line: CommandLine, name: str) -> list[Run]:
    return Run(command_line.cwd / "runs" / "sweep" / name).elements()


# ---------------------------------------------------------------- what varies


def labels(over: str, *keys: str) -> list[str]:
    order = sweep.sweep_request(None, ["stage=pretrain", f"over={over}", *PRETRAIN, *keys], Site(), None)
    return list(order.elements or {})


PRETRAIN = ("plates=[P.zarr]", "sources=[{channel: BF, plane: 0}]", "targets=[{channel: DNA, plane: 0}]")


def test_all_combinations_are_elements() -> None:
    assert labels("{seed: [0, 1], train.steps: [64, 128]}") == [
        "seed=0,train.steps=64", "seed=0,train.steps=128", "seed=1,train.steps=64", "seed=1,train.steps=128",
    ]  # fmt: skip


def test_elements_may_be_listed_one_by_one() -> None:
    assert labels("[{seed: 3}, {net.encoder: 'tu-a/b c'}, {net.encoder: 'tu-a/b;c'}]") == [
        "seed=3", "net.encoder=tu-a_b_c", "net.encoder=tu-a_b_c (2)",
    ]  # fmt: skip


def test_an_element_is_named_by_the_values_of_numbers_however_they_are_written() -> None:
    """Sweeps that were made before keep the names of their elements."""
    assert labels("{optim.lr: [1.0e-3, 0x10], split.seed: [007]}") == [
        "optim.lr=0.001,split.seed=7", "optim.lr=16,split.seed=7",
    ]  # fmt: skip


def test_in_each_group_a_list_means_each_of_its_values() -> None:
    groups = (
        "[{seed: [0, 1], train.steps: [64, 128]}, {seed: 2, train.steps: [64]}, {net.decoder: [[32, 16]]}]"
    )
    assert labels(groups) == [
        "seed=0,train.steps=64", "seed=0,train.steps=128", "seed=1,train.steps=64", "seed=1,train.steps=128",
        "seed=2,train.steps=64", "net.decoder=_32,_16",
    ]  # fmt: skip


def test_what_comes_twice_is_one_element() -> None:
    assert labels("[{seed: [0, 1]}, {seed: [1, 2]}, {seed: 2}]") == ["seed=0", "seed=1", "seed=2"]
    assert labels("[{seed: 1, train.steps: 64}, {train.steps: [64], seed: [1]}]") == ["seed=1,train.steps=64"]


def test_each_element_has_the_recipe_that_its_name_says() -> None:
    order = sweep.sweep_request(None, ["stage=pretrain", "over={seed: [4, 5]}", *PRETRAIN], Site(), "s")
    assert [recipe.train.seed for recipe in (order.elements or {}).values()] == [4, 5]  # type: ignore[attr-defined]
    assert order.run(Path("/r")).folder == Path("/r/sweep/s")


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (["stage=pretrain"], "over: must be given"),
        (["stage=pretrain", "over={}"], "over is empty"),
        (["stage=pretrain", "over={seed: []}"], "over is empty"),
        (["stage=pretrain", "over=[{seed: [0]}, {seed: []}]"], "over is empty"),
        (["over={seed: [0]}"], "say which stage varies, as stage=pretrain"),
        (["stage=pretrian", "over={seed: [0]}"], "'pretrian' is not a stage; did you mean 'pretrain'"),
        (["stage=pretrain", "over={split.sead: [0]}", *PRETRAIN], "sead: no such key; did you mean 'seed'"),
    ],
)
def test_what_cannot_be_swept_is_refused(keys: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        sweep.sweep_request(None, keys, Site(), None)


def test_as_many_run_at_once_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cpus_here", lambda: 16)
    monkeypatch.setattr(local, "gpus_here", lambda: ["0", "1", "2", "3"])
    assert local.slots(Site()) == 1, "one that says nothing takes the machine"
    assert local.slots(Site(cpus=2)) == 8
    assert local.slots(Site(cpus=2, processes=2)) == 4
    assert local.slots(Site(gpus=1)) == 4
    assert local.slots(Site(gpus=2, cpus=4)) == 2
    assert local.slots(Site(cpus=1, array=3)) == 3
    assert local.slots(Site(cpus=64)) == 1


# ---------------------------------------------------------------- the life of an array


def test_an_element_that_the_machine_cannot_start_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job("counting", tmp_path / "sweep" / "nuc" / "count" / f"seed={seed}", 0) for seed in range(3)]

    def compute(job: Job, *_: object) -> Ending:
        if job == jobs[0]:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return Ending({0: 1}, crashed=0)

    monkeypatch.setattr(local, "compute", compute)
    lines: list[str] = []
    assert not local_array.compute_all(jobs, Site(), lines.append)
    assert "seed=0: not started: [Errno 12] Cannot allocate memory" in lines
    assert len([line for line in lines if "failed in rank 0" in line]) == 2


def test_a_failed_element_leaves_the_others_alone_and_retry_runs_it_alone(command_line: CommandLine) -> None:
    over = "over=[{word: first}, {word: second, crash_rank: 0, mishaps: 1}, {word: third}]"
    done = command_line("sweep", "stage=count", over, QUIET, "site.cpus=1", "--name", "some")
    assert done.returncode == 1, done.stdout
    assert "failed in rank 0: RuntimeError: boom" in done.stdout
    assert "2 done, 1 failed" in done.stdout
    assert "retry some" in done.stdout.splitlines()[-1]
    assert "3 elements" in done.stdout
    again = command_line("retry", "some")
    assert again.returncode == 0, again.stdout
    assert [len(run.attempt_numbers()) for run in elements(command_line, "some")] == [1, 2, 1]
    assert command_line("retry", "some").returncode == 2, "there is nothing left to retry"
    assert "3 done" in command_line("status").stdout


def test_an_element_is_named_by_its_array_and_its_own_name(command_line: CommandLine) -> None:
    assert command_line("sweep", "stage=count", "over={seed: [0, 1]}", QUIET, "--name", "two").returncode == 0
    assert "from 0 in attempt 0" in command_line("logs", "two/seed=1").stdout
    table = command_line("status", "two").stdout
    assert "two/seed=0" in table
    assert "2/2 elements" in table
    wrong = command_line("logs", "two/seed=7")
    assert wrong.returncode == 2
    assert "did you mean 'seed=" in wrong.stdout
    same = command_line("sweep", "stage=count", "over={seed: [0, 1]}", QUIET, "--name", "two")
    assert "nothing to do" in same.stdout
    other = command_line("sweep", "stage=count", "over={seed: [0, 2]}", QUIET, "--name", "two")
    assert other.returncode == 2
    assert "over.seed.1: 1 there, 2 here" in other.stdout


def test_ctrl_c_stops_the_array_and_resume_does_what_is_left(command_line: CommandLine) -> None:
    over = "over=[{word: short, steps: 2}, {seed: [0, 1]}]"
    call = command_line.open(
        "sweep", "stage=count", over, "steps=1000", "pause_s=0.2", QUIET, "--name", "torn"
    )
    folder = command_line.cwd / "runs/sweep/torn/count"
    assert command_line.eventually(lambda: (folder / "seed=0/metrics.jsonl").exists())
    os.killpg(call.pid, signal.SIGINT)
    output, _ = call.communicate(timeout=90)
    assert call.returncode == 130, output
    assert command_line.left() == []
    assert not (folder / "seed=1/metrics.jsonl").exists(), "what had not begun does not begin"
    command_line.environment["COUNT_FAST"] = "1"
    assert command_line("resume", "torn").returncode == 0
    counted = (folder / "seed=0/attempts/1/rank-0.log").read_text()
    assert "from 0 " not in counted, "it goes on from where it stopped"
    assert [len(run.attempt_numbers()) for run in elements(command_line, "torn")] == [1, 2, 2]


def test_a_dry_run_of_an_array_names_its_elements_and_writes_nothing(command_line: CommandLine) -> None:
    done = command_line(
        "sweep", "stage=count", "over={seed: [0, 1]}", "--dry-run", "--site", "slurm", "--name", "x"
    )
    assert "2 times, with seed=0; seed=1" in done.stdout
    assert "#SBATCH --array=0-1%2" in done.stdout
    assert not (command_line.cwd / "runs").exists()


# ---------------------------------------------------------------- chains

FAILS_ONCE = "{name: fails, stage: count, set: {crash_rank: 0, mishaps: 1}}"


def chain_of(command_line: CommandLine, *steps: str) -> str:
    """The file of a chain of these steps."""
    path = command_line.cwd / "my chain.yaml"
    path.write_text("steps:\n" + "".join(f"- {step}\n" for step in steps))
    return str(path)


def test_a_chain_runs_in_order_stops_for_a_person_and_continues(command_line: CommandLine) -> None:
    first = "{name: first, stage: count, set: {steps: 2}}"
    last = "{name: last, stage: count, set: {steps: 4}}"
    chain = chain_of(command_line, first, "{stop: look at the labels}", last)
    done = command_line("chain", chain, QUIET, "--name", "plan")
    assert done.returncode == 0, done.stdout
    assert "then a stop: look at the labels" in done.stdout
    assert not command_line.folder("last").exists()
    assert "waits for a person: look at the labels" in command_line("status", "plan").stdout
    again = command_line("resume", "plan")
    assert again.returncode == 0, again.stdout
    assert (command_line.folder("last") / "done/count.json").exists()
    assert "2 done" in command_line("status", "plan").stdout


def test_a_chain_ends_where_a_step_fails_and_is_resumed_from_there(command_line: CommandLine) -> None:
    chain = chain_of(command_line, FAILS_ONCE, "{name: after it, stage: count}")
    assert command_line("chain", chain, QUIET, "--name", "plan").returncode == 1
    assert not command_line.folder("after it").exists()
    again = command_line("resume", "plan")
    assert again.returncode == 0, again.stdout
    assert (command_line.folder("after it") / "done/count.json").exists()


def test_retry_of_a_chain_keeps_its_order(command_line: CommandLine) -> None:
    chain = chain_of(command_line, FAILS_ONCE, "{name: next, stage: count}")
    assert command_line("chain", chain, QUIET, "--name", "plan").returncode == 1
    again = command_line("retry", "plan")
    assert again.returncode == 0, again.stdout
    ends = [
        json.loads((command_line.folder(name) / "done/count.json").read_text()) for name in ("fails", "next")
    ]
    assert ends[0]["time"] < ends[1]["time"]


def test_a_chain_takes_no_run_of_another_recipe_for_its_own(command_line: CommandLine) -> None:
    command_line("count", "steps=3", QUIET, "--name", "taken")
    refused = command_line(
        "chain", chain_of(command_line, "{name: taken, stage: count, set: {steps: 77}}"), QUIET
    )
    assert refused.returncode == 2
    assert "steps: 3 there, 77 here" in refused.stdout


def test_a_chain_takes_a_run_that_names_another_for_its_own(command_line: CommandLine) -> None:
    """The folder of a run holds the folders of those that it uses; a step of a chain has their names."""
    assert command_line("count", QUIET, "--name", "first").returncode == 0
    assert command_line("count", "among=[first]", QUIET, "--name", "sum").returncode == 0
    chain = chain_of(command_line, "{name: sum, stage: count, set: {among: [first]}}")
    done = command_line("chain", chain, QUIET, "--name", "plan")
    assert done.returncode == 0, done.stdout
    assert "count 'sum' is done" in done.stdout
    ignored = command_line("resume", "plan", "site.cpus=1")
    assert ignored.returncode == 2
    assert "give them to the run of a step" in ignored.stdout


def test_a_typo_in_the_last_step_is_found_before_the_first_starts(command_line: CommandLine) -> None:
    chain = chain_of(command_line, "{name: one, stage: count}", "{name: two, stage: count, set: {stepz: 3}}")
    done = command_line("chain", chain, QUIET)
    assert done.returncode == 2
    assert "stepz: no such key; did you mean 'steps'" in done.stdout
    assert not (command_line.cwd / "runs").exists()


def test_a_dry_run_of_a_chain_tells_its_steps_and_writes_nothing(command_line: CommandLine) -> None:
    last = "{name: two, stage: count, site_set: {cpus: 2}}"
    chain = chain_of(command_line, "{name: one, stage: count}", "{stop: draw}", last)
    assert command_line("chain", chain, "--dry-run").stdout.splitlines() == [
        "1. count 'one': 1 process on this machine, no GPU",
        "2. stop, after one: draw",
        "3. count 'two', after stop 2: 1 process on this machine, 2 CPUs each, no GPU",
    ]
    assert not (command_line.cwd / "runs").exists()


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([{"name": "b", "stage": "convert", "after": ["a"]}, {"name": "a", "stage": "convert"}],
         "steps.0.after: 'a' is no earlier step"),
        ([{"name": "a", "stage": "convert"}, {"name": "a", "stage": "convert"}], "two steps are called 'a'"),
        ([{"name": "a", "stage": "convrt"}], "did you mean 'convert'"),
    ],
)  # fmt: skip
def test_no_circle_can_be_written(steps: list[dict[str, object]], complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        links(parse(ChainRecipe, {"steps": steps}, "chain.yaml"), "c")


# ---------------------------------------------------------------- one after another


def test_a_run_after_another_waits_for_it(command_line: CommandLine) -> None:
    first = command_line.open("count", "steps=100", "pause_s=0.1", QUIET, "--name", "first")
    assert command_line.eventually(lambda: (command_line.folder("first") / "metrics.jsonl").exists())
    second = command_line("count", "--after", "first", QUIET, "--name", "second")
    first.communicate(timeout=60)
    assert second.returncode == 0, second.stdout
    assert "waiting for 'first'" in second.stdout
    ends = [
        json.loads((command_line.folder(name) / "attempts/0/rank-0.json").read_text())
        for name in ("first", "second")
    ]
    assert ends[0]["exit"] < ends[1]["start"]


def test_an_array_that_is_stopped_has_failed_nowhere(command_line: CommandLine) -> None:
    call = command_line.open("sweep", "stage=count", "over={seed: [0, 1, 2]}", "steps=1000", "pause_s=0.2",
                     QUIET, "--name", "torn")  # fmt: skip
    first = command_line.cwd / "runs/sweep/torn/count/seed=0/metrics.jsonl"
    assert command_line.eventually(first.exists)
    alone = command_line("cancel", "torn/seed=1")
    assert alone.returncode == 2
    assert "cancel torn" in alone.stdout, "its elements compute in one process"
    assert command_line("cancel", "torn").returncode == 0
    output, _ = call.communicate(timeout=90)
    assert call.returncode == 3, output
    assert "lost" not in command_line("status", "torn").stdout


def test_nothing_waits_for_an_array_with_a_failed_element(command_line: CommandLine) -> None:
    command_line(
        "sweep", "stage=count", "over=[{seed: 0}, {seed: 1, crash_rank: 0}]", QUIET, "--name", "some"
    )
    refused = command_line("count", "--after", "some", QUIET, "--name", "child")
    assert refused.returncode == 2
    assert "--after some/seed=1,crash_rank=0: it is failed" in refused.stdout
    assert not command_line.folder("child").exists()


def test_nothing_waits_for_a_run_that_failed(command_line: CommandLine) -> None:
    command_line("count", "crash_rank=0", QUIET, "--name", "first")
    refused = command_line("count", "--after", "first", QUIET)
    assert refused.returncode == 2
    assert "never start" in refused.stdout


def test_a_group_may_write_where_the_site_says_so(command_line: CommandLine) -> None:
    import grp

    group = grp.getgrgid(os.getgroups()[0] if os.getgroups() else os.getgid())
    assert command_line("count", QUIET, f"site.group={group.gr_name}", "--name", "shared").returncode == 0
    folder = command_line.folder("shared")
    assert folder.stat().st_gid == group.gr_gid
    assert folder.stat().st_mode & 0o2070 == 0o2070, (
        "its members write there, and what they make is the group's"
    )
    kept = [path for path in folder.rglob("*") if not path.name.endswith(".lock")]
    assert [path for path in kept if not path.stat().st_mode & 0o020] == []
    refused = command_line("count", QUIET, "site.group=no-such-group")
    assert refused.returncode == 2
    assert "no-such-group" in refused.stdout
