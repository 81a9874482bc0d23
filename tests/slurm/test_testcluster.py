"""The test cluster itself: a real Slurm comes up, does what the other tests need, and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest


def _touching(folder: Path) -> list[str]:
    """Processes that have this folder in their command or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in f"{process.cmdline()} {process.environ()}":
                found.append(process.name())
        except psutil.Error:
            continue
    return found


def test_two_nodes_are_idle(cluster: Any) -> None:
    assert cluster.run("sinfo", "-hN", "-p", "main", "-o", "%N %T").split("\n")[:2] == [
        "node1 idle",
        "node2 idle",
    ]


def test_accounting_knows_a_finished_job(cluster: Any) -> None:
    job = cluster.submit("srun hostname", "--wait", "--nodes=2")
    assert cluster.eventually(
        lambda: "COMPLETED" in cluster.run("sacct", "-nX", "-j", job, "-o", "State")
    )  # fmt: skip
    assert len((cluster.folder / f"{job}.txt").read_text().split()) == 2


def test_a_requeued_job_starts_again(cluster: Any) -> None:
    job = cluster.submit("echo start $SLURM_RESTART_COUNT; sleep 600", "--open-mode=append")
    assert cluster.eventually(lambda: cluster.job_state(job) == "RUNNING")
    cluster.run("scontrol", "requeue", job)
    assert cluster.eventually(lambda: cluster.job_state(job) == "PENDING")
    cluster.start_now(job)
    assert cluster.eventually(lambda: "start 1" in (cluster.folder / f"{job}.txt").read_text())
    cluster.run("scancel", job)


@pytest.mark.parametrize("daemon", ["slurmctld", "slurmd"])
def test_a_job_survives_a_restart(cluster: Any, daemon: str) -> None:
    job = cluster.submit("sleep 600")
    assert cluster.eventually(lambda: cluster.job_state(job) == "RUNNING")
    cluster.restart(daemon, stop_s=1)
    assert cluster.job_state(job) == "RUNNING"
    cluster.run("sacct")  # the other daemons, slurmdbd too, were left alone
    cluster.run("scancel", job)
    assert cluster.eventually(lambda: cluster.job_state(job) == "CANCELLED")


def test_an_array_over_the_limit_is_refused(cluster_without_accounting: Any) -> None:
    with pytest.raises(RuntimeError, match="Invalid job array specification"):
        cluster_without_accounting.submit("true", "--array=0-10")


def test_starting_it_twice_is_reported(cluster_without_accounting: Any) -> None:
    again = ("start", "--without-accounting", f"--site-file={cluster_without_accounting.site_file}")
    same = ("--set", "MaxArraySize=10", "MinJobAge=5")
    assert str(cluster_without_accounting.conf) in cluster_without_accounting.script(*again, *same)
    with pytest.raises(RuntimeError, match="other settings"):
        cluster_without_accounting.script(*again, "--nodes=3")


def test_a_stopped_cluster_leaves_nothing(
    start_cluster: Callable[..., AbstractContextManager[Any]],
) -> None:
    with start_cluster("--without-accounting", "--nodes=1") as cluster:
        job = cluster.submit("trap '' TERM; sleep 600 & sleep 600")
        assert cluster.eventually(lambda: cluster.job_state(job) == "RUNNING")
        cluster.script("stop")
        assert not cluster.folder.exists()
        assert not cluster.site_file.exists()
        assert _touching(cluster.folder) == []


@pytest.mark.kill
@pytest.mark.parametrize("moment", ["settings.json", "log/munged.out", "database/mysql", "log/slurmctld.out"])
def test_what_a_killed_start_leaves_is_stopped(
    start_cluster: Callable[..., AbstractContextManager[Any]], moment: str
) -> None:
    with start_cluster("--without-accounting", "--nodes=1") as cluster:
        cluster.script("stop")
        start = cluster.open("start", f"--site-file={cluster.site_file}")
        assert cluster.eventually((cluster.folder / moment).exists)
        start.kill()
        start.wait()
        cluster.script("stop")
        assert not cluster.folder.exists()
        assert not cluster.site_file.exists()
        assert _touching(cluster.folder) == []


def test_a_folder_with_something_else_is_refused(
    start_cluster: Callable[..., AbstractContextManager[Any]], tmp_path: Path
) -> None:
    with start_cluster("--without-accounting", "--nodes=1") as cluster:
        cluster.script("stop")
        cluster.folder.mkdir()
        (cluster.folder / "thesis.tex").touch()
        with pytest.raises(RuntimeError, match="something else"):
            cluster.script("start")
        assert "no test cluster" in cluster.script("stop")
        assert (cluster.folder / "thesis.tex").exists()
