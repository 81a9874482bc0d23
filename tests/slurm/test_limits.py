"""What the real Slurm allows, as it says so itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hpc_isl.cluster.slurm import limits, machines
from hpc_isl.errors import UserError
from hpc_isl.site import Site


def site(cluster: Any, **keys: object) -> Site:
    return Site.model_validate({"executor": "slurm", "slurm_conf": cluster.conf, **keys})


def accepted(cluster: Any, *flags: str) -> bool:
    """Whether sbatch would take and could start it."""
    done = subprocess.run(
        ["sbatch", "--test-only", *flags],
        env=cluster.environment, input="#!/bin/bash\n", capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode == 0


def test_the_cluster_is_read(cluster: Any) -> None:
    found = machines.read(cluster.conf)
    assert found is not None
    assert found.name == "testcluster"
    assert {one.name: one.minutes for one in found.partitions} == {"main": 1440, "short": 10}
    [node, _] = found.partitions[0].nodes
    assert (node.cpus, node.memory, node.gpu_count, node.usable) == (4, 4000, 0, True)


@pytest.mark.parametrize(
    ("asked", "flags", "messages"),
    [
        ({"nodes": 3}, ["-N", "3"], "site.nodes=2"),
        ({"memory": "5G"}, ["--mem=5G"], "site.memory=4000M"),
        ({"cpus": 5}, ["-c", "5"], "site.cpus=4"),
        ({"gpus": 1}, ["--gpus-per-node=1"], "the cluster has none"),
        ({"constraint": "a100"}, ["-C", "a100"], "site.constraint=a100"),
        ({"partition": "shrt"}, ["-p", "shrt"], "did you mean 'short'"),
    ],
)
def test_slurm_itself_would_refuse_what_is_refused(
    asked: dict[str, object], flags: list[str], messages: str, cluster: Any
) -> None:
    with pytest.raises(UserError) as refused:
        limits.check(site(cluster, **asked))
    assert messages in str(refused.value)
    assert not accepted(cluster, *flags)


def test_slurm_would_let_a_job_that_is_too_long_wait_for_ever(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"write site\.time=10min, or site\.partition=main"):
        limits.check(site(cluster, partition="short", time="1h"))
    job = cluster.submit("true", "--partition=short", "--time=60")
    reason = lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%r").strip()  # noqa: E731
    assert cluster.eventually(lambda: reason() == "PartitionTimeLimit"), reason()
    cluster.run("scancel", job)


def test_slurm_takes_what_a_retry_asks_for_at_most(cluster: Any) -> None:
    most = limits.raised(site(cluster, nodes=2, partition="short", memory="3G", time="8min"), 9, 9)
    assert (most.memory, most.time) == ("4000M", "10min")
    assert accepted(cluster, "-N2", "-p", "short", f"--mem={most.memory}", f"--time={most.minutes}")


def test_a_retry_starts_from_what_slurm_gives_by_itself(cluster: Any) -> None:
    assert limits.raised(site(cluster, cpus=2), memory_factor=1.5).memory == "3000M", "2 × DefMemPerCPU"


@pytest.fixture(scope="module")
def strict(start_cluster: Any) -> Iterator[Any]:
    """A cluster that keeps the limits of its accounting."""
    with start_cluster("--nodes=1", "--set", "AccountingStorageEnforce=limits,qos") as cluster:
        yield cluster


LIMITS = {
    "MaxSubmitJobs": (("user", "root"), "you may have 4 jobs in Slurm at once (MaxSubmitJobs)"),
    "GrpSubmitJobs": (("account", "root"), "all users of your account together may have 4 jobs"),
    "MaxSubmitJobsPerUser": (("qos", "normal"), "a user may have 4 jobs in Slurm at once"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_sweep_that_is_too_large_is_refused_with_what_to_lower(
    limit: str, strict: Any, command_line: Any, open_user: Any
) -> None:
    """Which limit, how many it leaves, and that the number of elements is what counts."""
    user = open_user(command_line, strict)
    (table, name), messages = LIMITS[limit]
    strict.run("sacctmgr", "-i", "modify", table, name, "set", f"{limit}=4")
    words = ("sweep", "stage=count", "over={seed: [0, 1, 2, 3, 4]}", "--site", str(strict.site_file),
             "site.memory=10M", "site.tracking=none", "--name", "many")  # fmt: skip
    try:
        held = strict.submit("true", "--hold", "--mem=10")
        for dry in ([], ["--dry-run"]):
            said = command_line(*words, *dry).stdout
            assert messages in said
            assert "1 of yours are there, and this sweep is 5 more" in said
            assert "at most 3, by fewer values in `over`" in said
        assert strict.run("squeue", "-h", "-o", "%A").split() == [held], "all or none"
        assert not (command_line.cwd / "runs" / "sweep" / "many").exists()
    finally:
        strict.run("sacctmgr", "-i", "modify", table, name, "set", f"{limit}=-1")
        user.cluster.clear()
