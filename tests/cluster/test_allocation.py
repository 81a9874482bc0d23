"""Inside a job of Slurm: what it has given becomes the site; needs no Slurm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.cluster.run_folder.job import rank_env
from hpc_isl.cluster.submit.planning import site_of
from hpc_isl.cluster.submit.sweep import sweep_request
from hpc_isl.errors import UserError
from hpc_isl.site import Site, load

if TYPE_CHECKING:
    from tests.conftest import CommandLine

GIVEN = {
    "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "24", "SLURM_GPUS_ON_NODE": "4",
}  # fmt: skip


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Stands in a job of two nodes with four processes each, and nothing else of Slurm around it."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_job_says_how_many_processes_there_are(job: pytest.MonkeyPatch) -> None:
    found = site_of("pretrain", load("allocation", ["nodes=9", "cpus=1"]))
    assert (found.nodes, found.per_node, found.cpus, found.visible_gpus) == (2, 4, 6, 4)
    assert found.ranks == 8


def test_a_stage_of_one_process_has_the_cpus_of_a_node(job: pytest.MonkeyPatch) -> None:
    found = site_of("convert", load("allocation", []))
    assert (found.ranks, found.cpus, found.visible_gpus) == (1, 24, 0)


def test_a_pooled_stage_has_one_process_per_node_with_all_of_it(job: pytest.MonkeyPatch) -> None:
    found = site_of("segment", load("allocation", []))
    assert (found.ranks, found.cpus, found.visible_gpus, found.workers) == (2, 24, 4, 0)
    assert site_of("segment", found) == found, "a run that goes on has as much as it began with"
    assert site_of("segment", load("allocation", ["processes=3"])).workers == 3


def test_what_the_job_did_not_ask_for_is_shared_out(job: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE"):
        job.delenv(name)
    found = site_of("pretrain", load("allocation", []))
    assert (found.ranks, found.cpus, found.visible_gpus) == (8, 6, 0)


def test_outside_of_a_job_it_is_a_mistake(job: pytest.MonkeyPatch) -> None:
    job.delenv("SLURM_JOB_ID")
    with pytest.raises(UserError, match=r"slurm/pretrain\.sbatch, or after salloc"):
        site_of("pretrain", load("allocation", []))


def test_a_sweep_is_sent_to_where_arrays_are(job: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"slurm/array\.sbatch"):
        sweep_request(
            Path("pretrain.yaml"), ["plates=[P1.zarr]", "over={seed: [0, 1]}"], load("allocation", []), None
        )


def test_attempts_are_counted_once(job: pytest.MonkeyPatch) -> None:
    """Where Slurm starts a job of ours again it counts; in an allocation whoever calls srun does."""
    job.setenv("SLURM_RESTART_COUNT", "2")
    for executor, restarts in (("slurm", 2), ("allocation", 0)):
        job.setenv("HPC_ISL_EXECUTOR", executor)
        assert rank_env().restarts == restarts
        assert rank_env().slurm == "17"


def test_the_executor_of_the_shipped_site(job: pytest.MonkeyPatch) -> None:
    assert load("allocation", []) == Site(executor="allocation")


def test_a_run_that_ended_within_its_job_is_not_taken_for_running(command_line: CommandLine) -> None:
    """After salloc a run may fail while its job, the shell in which it was typed, continues for hours: to
    cancel the run would end that shell."""
    tools = command_line.cwd / "bin"
    tools.mkdir()
    for name, script in {
        "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
        "squeue": "echo '17|RUNNING|None|node1|10:00|/home/me'",
        "scancel": f"touch {tools}/cancelled",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    one_process = GIVEN | {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    path = f"{tools}:{command_line.environment['PATH']}"
    command_line.environment.update(one_process, PATH=path, COUNT_FAST="1")
    words = ("count", "crash_rank=0", "--site", "allocation", "site.tracking=none", "--name", "one")
    assert command_line(*words).returncode == 1
    assert "failed" in command_line("status", "one").stdout.splitlines()[1].split()
    assert "'one' is not running: it is failed" in command_line("cancel", "one").stdout
    assert not (tools / "cancelled").exists()
    assert "resumed" in command_line("resume", "one").stdout
    record = command_line.folder("one") / "attempts" / "1" / "rank-0.json"
    record.write_text(record.read_text().replace('"failed"', '"stopped"'))
    (tools / "squeue").write_text("#!/bin/bash\necho '17|CANCELLED|None|node1|10:00|/home/me'\n")
    assert "cancelled" in command_line("status", "one").stdout.splitlines()[1].split(), "as Slurm says"
