"""A rank finds its place in the environment, and begins to save when its time is over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_isl.cluster.rank import Listener, deadline
from hpc_isl.cluster.run_folder.job import RankEnv, rank_env
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield Attempt(Run(tmp_path / "pretrain" / "one"))
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_deadline_asks_to_stop_where_no_signal_came(attempt: Attempt) -> None:
    listener = Listener(attempt, deadline=time.time() + 0.5)
    assert not attempt.stopping.is_set()
    assert attempt.stopping.wait(30)
    assert listener.overdue, "a reason to start again"


@pytest.mark.parametrize(("number", "overdue"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_signal_asks_to_stop(attempt: Attempt, number: signal.Signals, overdue: bool) -> None:
    listener = Listener(attempt)
    signal.raise_signal(number)
    assert attempt.stopping.wait(30)
    assert listener.overdue is overdue, "USR2 tells of the time limit; TERM of scancel, or of preemption"


@pytest.mark.parametrize("order", [(signal.SIGTERM, signal.SIGUSR2), (signal.SIGUSR2, signal.SIGTERM)])
def test_a_limit_that_came_sooner_than_was_said_sends_two_signals_in_either_order(
    attempt: Attempt, order: tuple[signal.Signals, ...]
) -> None:
    listener = Listener(attempt, deadline=time.time() + 1000)
    for number in order:
        signal.raise_signal(number)
    assert attempt.stopping.wait(30)
    assert listener.overdue


WHILE_IMPORTING = """
import sys
from hpc_isl.cluster.run_folder.job import system_metrics
taken = []

class Look:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("torch.") and len(taken) < 500:
            taken.append(system_metrics())

sys.meta_path.insert(0, Look())
import torch
assert len(taken) > 20, len(taken)
assert all("system/cpu_percent" in each for each in taken)
"""


def test_figures_of_the_machine_are_taken_while_torch_is_being_imported() -> None:
    """On a shared disk that takes a minute, and the thread that measures meets half of the module."""
    done = subprocess.run([sys.executable, "-c", WHILE_IMPORTING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_deadline_is_that_of_slurm_or_of_the_site() -> None:
    site = Site(executor="slurm", time="10min", signal_s=60)
    assert deadline(RankEnv(slurm="7", end=5000.0), site) == 4940.0
    begun = time.time()
    assert begun + 540 <= (deadline(RankEnv(slurm="7"), site) or 0) <= time.time() + 540
    assert deadline(RankEnv(), site) is None, "whoever watches over a local run keeps its time"


def test_an_element_of_an_array_is_named_by_its_array(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "HPC_ISL_EXECUTOR": "slurm", "SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "90",
        "SLURM_ARRAY_TASK_ID": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_CPUS_PER_TASK": "6", "SLURM_RESTART_COUNT": "2",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_STEP_NUM_NODES", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert rank_env() == RankEnv(3, 4, 1, 2, 6, "90_4", 2)


def test_a_local_run_inside_a_job_of_slurm_keeps_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "5", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "2"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"EXECUTOR": "local", "RANK": "1", "SIZE": "2", "CPUS": "3"}.items():
        monkeypatch.setenv(f"HPC_ISL_{name}", value)
    assert rank_env() == RankEnv(1, 2, 1, 2, 3)
