"""Training on a real Slurm, interrupted in every way: the weights are those of a run that was left alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import CommandLine
    from tests.slurm.conftest import User

STEPS = 150
RECIPE = (
    "sources=[{channel: Brightfield, plane: focus}]", "targets=[{channel: Hoechst, plane: max}]",
    "net.encoder=resnet18", "net.weights=null", "net.decoder=[32,16,16,8,8]", f"train.steps={STEPS}",
    "train.batch=4", "train.micro_batch=2", "train.crop=32", "train.precision=fp32", "data.workers=0",
    "predict.stain=false", "site.tracking=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    open_command_line: Callable[[Path], CommandLine],
    write_stained_plate: Callable[..., Any],
) -> CommandLine:
    """A folder with a plate, and a run of two processes that was left alone."""
    command_line = open_command_line(tmp_path_factory.mktemp("trained"))
    write_stained_plate(command_line.cwd / "P1.zarr")
    done = command_line(
        "pretrain", f"plates=[{command_line.cwd}/P1.zarr]", *RECIPE, "site.processes=2", "--name", "alone"
    )
    assert done.returncode == 0, done.stdout
    return command_line


def weights(command_line: CommandLine, name: str) -> bytes:
    return (command_line.cwd / "runs/pretrain" / name / "model/weights.safetensors").read_bytes()


def status(pid: int) -> str:
    path = Path(f"/proc/{pid}/status")
    return path.read_text() if path.exists() else ""


def held(pid: int) -> bool:
    return "State:\tT" in status(pid)


def told_of_the_limit(pid: int) -> bool:
    """Whether USR2 waits for a process that is held, or it was let go on with it."""
    found = status(pid)
    pending = int(found.split("ShdPnd:")[1].split()[0], 16) if found else 0
    return "State:\tT" not in found or bool(pending & 1 << signal.SIGUSR2 - 1)


def test_signal_requeue_and_time_limit_leave_the_weights_as_they_would_have_been(
    user: User, trained: CommandLine
) -> None:
    cluster, folder = user.cluster, trained.cwd / "runs/pretrain/torn"

    def step(attempt: int) -> int:
        path = folder / "attempts" / str(attempt) / "rank-0.json"
        progress = json.loads(path.read_text()).get("progress") if path.exists() else None
        return progress["done"] if progress and progress["unit"] == "steps" else 0

    def reaches(attempt: int, wanted: int) -> bool:
        return cluster.eventually(lambda: step(attempt) >= wanted, 120)

    def process(rank: int) -> int:
        return int(json.loads((folder / f"attempts/2/rank-{rank}.json").read_text())["pid"])

    def story() -> str:
        logs = sorted(folder.glob("attempts/*/rank-*.log")) + sorted(folder.glob("sbatch/*.err"))
        told = "\n".join(f"== {log.relative_to(folder)}\n{log.read_text()[-2000:]}" for log in logs)
        return f"{cluster.run('scontrol', 'show', 'job', job)}\n{told}"

    def goes_back() -> None:
        assert cluster.eventually(lambda: cluster.job_state(job) == "PENDING", 120), story()
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
        cluster.start_now(job)

    said = trained("pretrain", f"plates=[{trained.cwd}/P1.zarr]", *RECIPE, "site.nodes=2", "site.memory=1G",
                   "--site", str(cluster.site_file), "--name", "torn").stdout  # fmt: skip
    job = said.split("submitted as Slurm job ")[1].split()[0]
    assert reaches(0, 15), said
    cluster.run("scancel", "--signal=USR2", job)  # what Slurm sends some time before the end
    goes_back()
    assert reaches(1, step(0) + 15), story()
    cluster.run("scontrol", "requeue", job)  # what preemption does
    goes_back()
    assert reaches(2, step(1) + 15), story()
    ranks = [process(rank) for rank in (0, 1)]
    for pid in ranks:  # Slurm looks at limits every 30 s: on a quick machine the run would be done by then
        os.kill(pid, signal.SIGSTOP)
    assert cluster.eventually(lambda: all(map(held, ranks)), 10), story()
    cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now+100")  # in less than signal_s
    assert cluster.eventually(lambda: all(map(told_of_the_limit, ranks)), 90), story()
    for pid in filter(held, ranks):
        os.kill(pid, signal.SIGCONT)
    goes_back()
    assert cluster.eventually((folder / "done/pretrain.json").exists, 240), story()
    assert 15 <= step(0) < step(1) < step(2) < STEPS, "it was torn in mid-run three times"
    assert weights(trained, "torn") == weights(trained, "alone")
