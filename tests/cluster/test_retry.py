"""A retry gives more of what was missing, up to what the partition has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import status
from hpc_isl.cluster.submit import launch
from hpc_isl.errors import UserError
from hpc_isl.files import now
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site

PARTITION = (
    "PartitionName=gpu AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=1-00:00:00 State=UP "
    "TotalCPUs=64 TotalNodes=1 DefMemPerNode=UNLIMITED Nodes=gpu01"
)
NODE = (
    "NodeName=gpu01 CPUTot=64 RealMemory=100000 Gres=gpu:4 State=IDLE Partitions=gpu AvailableFeatures=a100 "
    "ActiveFeatures=a100"
)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, answering as recorded; sbatch keeps what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    shown = f'case "$*" in *partition*) echo "{PARTITION}";; *node*) echo "{NODE}";; esac'
    for name, script in {
        "scontrol": shown,
        "sbatch": f'cat "$1" >> {tmp_path}/given; echo Submitted batch job 5',
        "sinfo": "true",
        "sacct": "true",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def ended(tools: Path, tmp_path: Path, word: str) -> Run:
    """A run whose job ended as Slurm says with that word."""
    (tools / "squeue").write_text(f"#!/bin/bash\necho '4|{word}|None|gpu01|0:00|'\n")
    (tools / "squeue").chmod(0o755)
    run = Run(tmp_path / "runs" / "pretrain" / "one")
    run.folder.mkdir(parents=True)
    site = Site(executor="slurm", partition="gpu", memory="60G", time="6h")
    run.site.write_text(to_yaml(site))
    run.recipe.write_text("{}\n")
    run.record.write_text(json.dumps({"key": "k"}))
    content = {"executor": "slurm", "job": "4", "host": "login"}
    (run.attempts / str(run.next_attempt()) / "submission.json").write_text(json.dumps(content))
    return run


@pytest.mark.parametrize(
    ("word", "flags"),
    [
        ("OUT_OF_MEMORY", ["--mem=97G", "--time=360"]),  # twice 60G is more than the node has
        ("TIMEOUT", ["--mem=60G", "--time=720"]),
        ("NODE_FAIL", ["--mem=60G", "--time=360"]),
    ],
)
def test_what_was_missing_is_raised_and_no_more(
    tools: Path, tmp_path: Path, word: str, flags: list[str]
) -> None:
    run = ended(tools, tmp_path, word)
    assert status.status_of(run).cause == word.lower()
    assert launch.retry(run, None, Console(print, tmp_path / "runs"), wait=False) == 0
    given = (tmp_path / "given").read_text()
    assert [flag for flag in flags if f"#SBATCH {flag}\n" not in given] == []
    assert run.attempt_numbers() == [0, 1], "the same folder"


@pytest.mark.parametrize(("before", "after"), [("4G", "8G"), (1500, "3000M")])
def test_memory_per_cpu_is_raised_where_the_site_gives_it(
    tools: Path, tmp_path: Path, before: str | int, after: str
) -> None:
    """`mem` is no flag of such a job: the retry had as little as the attempt that had failed."""
    run = ended(tools, tmp_path, "OUT_OF_MEMORY")
    run.site.write_text(to_yaml(Site(executor="slurm", partition="gpu", sbatch={"mem-per-cpu": before})))
    assert launch.retry(run, None, Console(print, tmp_path / "runs"), wait=False) == 0
    assert f"#SBATCH --mem-per-cpu={after}\n" in (tmp_path / "given").read_text()


def test_a_run_that_was_stopped_before_it_could_save_has_more_time(tools: Path, tmp_path: Path) -> None:
    run = ended(tools, tmp_path, "FAILED")
    reason = "stopped at the time limit without a new checkpoint: not started again; give it more time"
    Attempt(run).note(
        rank=0, start=now(), heartbeat=now(), exit=now(), outcome="stopped", reason=reason, node="gpu01"
    )
    assert status.status_of(run).state == "stopped"
    assert launch.retry(run, None, Console(print, tmp_path / "runs"), wait=False) == 0
    assert "#SBATCH --time=720\n" in (tmp_path / "given").read_text()


def test_slurm_is_asked_once_for_elements_that_failed_alike(tools: Path, tmp_path: Path) -> None:
    """A sweep of a thousand may run out of memory: its cluster is not asked three thousand times."""
    array, count = Run(tmp_path / "runs" / "sweep" / "nuc"), 8
    elements = [Run(array.folder / "pretrain" / f"seed={seed}") for seed in range(count)]
    for seed, element in enumerate(elements):
        folder = element.attempts / str(element.next_attempt())
        element.site.write_text(to_yaml(Site(executor="slurm", partition="gpu", memory="20G")))
        element.recipe.write_text("{}\n")
        content = {"executor": "slurm", "job": f"4_{seed}", "host": "login"}
        (folder / "submission.json").write_text(json.dumps(content))
    array.recipe.write_text("{}\n")
    array.site.write_text(to_yaml(Site(executor="slurm")))
    array.elements_file.write_text(json.dumps({"elements": [f"pretrain/{run.name}" for run in elements]}))
    rows = " ".join(f"'4_{seed}|OUT_OF_MEMORY|None|gpu01|0:00|'" for seed in range(count))
    (tools / "squeue").write_text(f"#!/bin/bash\nprintf '%s\\n' {rows}\n")
    (tools / "squeue").chmod(0o755)
    scontrol = (tools / "scontrol").read_text()
    (tools / "scontrol").write_text(scontrol + f'\necho "$*" >> {tmp_path}/asked\n')
    assert launch.retry(array, None, Console(print, tmp_path / "runs"), wait=False) == 0
    assert "--mem=40G" in (tmp_path / "given").read_text()
    assert (tmp_path / "asked").read_text().count("show node") < count


def test_a_site_that_is_given_is_taken_as_it_is(tools: Path, tmp_path: Path) -> None:
    run = ended(tools, tmp_path, "OUT_OF_MEMORY")
    chosen = Site(executor="slurm", partition="gpu", memory="61G")
    launch.retry(run, chosen, Console(print, tmp_path / "runs"), wait=False)
    assert "--mem=61G" in (tmp_path / "given").read_text()
    assert "memory: 61G" in run.site.read_text(), "the run's site is now this one"


def test_a_retry_that_is_refused_leaves_what_is_done_as_it_was(tools: Path, tmp_path: Path) -> None:
    run = ended(tools, tmp_path, "COMPLETED")
    Attempt(run).finish({"lost": 2, "made": {"table": "x"}})
    before = run.summary()
    (tools / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(UserError, match="invalid partition"):
        launch.retry(run, None, Console(print, tmp_path / "runs"), wait=False)
    assert run.summary() == before
    (tools / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 5\n")
    assert launch.retry(run, None, Console(print, tmp_path / "runs"), wait=False) == 0
    assert run.summary() is None


def test_what_is_done_is_not_retried(tools: Path, tmp_path: Path) -> None:
    run = ended(tools, tmp_path, "COMPLETED")
    Attempt(run).finish({})
    with pytest.raises(UserError, match="nothing to retry: done"):
        launch.retry(run, None, Console(print, tmp_path / "runs"), wait=False)
