"""The files of slurm/ that people hand to sbatch: they are taken, and the same line goes on with a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import User

FILES = Path(__file__).parents[2] / "slurm"
SMALL = ("--gpus-per-node=0", "--mem=200M", "--cpus-per-task=1", "--ntasks-per-node=1")
LONG = ("steps=1000", "pause_s=0.2")
COMMAND_LINE = Path(__file__).parents[1] / "cluster" / "command_line.py"
# What `python` is in these jobs: the stage that only counts in place of pretrain, and a server in a hurry.
PYTHON = """#!/bin/bash
if [ "$1 $2 $3" = "-m hpc_isl.submit pretrain" ]; then exec {python} {command_line} count "${{@:4}}"; fi
if [ "$3" = ui ]; then exec {python} {hurried} "${{@:3}}"; fi
exec {python} "$@"
"""
HURRIED = (
    "from hpc_isl.cluster.tracking import ui\nui.SYNC_S = 1.0\nfrom hpc_isl.submit import main\nmain()\n"
)


@dataclass(frozen=True)
class Hand:
    """Someone who hands files to sbatch themselves."""

    user: User

    def sbatch(self, name: str, *options: str, words: tuple[str, ...] = ()) -> str:
        """What sbatch prints for that file."""
        cwd, environment = self.user.command_line.cwd, self.user.command_line.environment
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(FILES / name), *words], cwd=cwd, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def pretrain(self, name: str, *words: str, nodes: int = 1) -> str:
        """The id of the job that pretrain.sbatch became."""
        options = (*SMALL, f"--nodes={nodes}", f"--job-name={name}")
        return self.sbatch("pretrain.sbatch", *options, words=(*words, "site.tracking=none"))

    def said(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted(self.user.command_line.cwd.glob(f"{name}-*.out")))

    def ends(self, job: str, within_s: float = 60) -> str:
        """The state that the job comes to, with its exit code: `FAILED 1:0`."""
        cluster = self.user.cluster
        active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
        assert cluster.eventually(lambda: cluster.job_state(job) not in active, within_s)
        told = cluster.run("scontrol", "--oneliner", "show", "job", job)
        return f"{cluster.job_state(job)} {told.split(' ExitCode=')[1].split()[0]}"


@pytest.fixture
def hand(user: User) -> Hand:
    folder = user.command_line.cwd / "bin"
    folder.mkdir()
    (folder / "hurried.py").write_text(HURRIED)
    python = PYTHON.format(python=sys.executable, command_line=COMMAND_LINE, hurried=folder / "hurried.py")
    (folder / "python").write_text(python)
    (folder / "python").chmod(0o755)
    user.command_line.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    user.command_line.environment["SLURM_CONF"] = str(user.cluster.conf)
    return Hand(user)


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.glob("*.sbatch")))
def test_sbatch_takes_each_file(hand: Hand, name: str) -> None:
    assert "to start at" in hand.sbatch(name, "--test-only", *SMALL)


def test_every_flag_of_a_file_is_understood(hand: Hand) -> None:
    """What this cluster is too small for, all but that must be heard: the words after # are no part of it."""
    job = hand.sbatch("pretrain.sbatch", *SMALL, "--hold", "--job-name=held")
    told = hand.user.cluster.run("scontrol", "show", "job", job)
    assert "Requeue=1" in told
    assert "TimeLimit=12:00:00" in told
    assert f"StdOut={hand.user.command_line.cwd}/held-{job}.out" in told
    hand.user.cluster.run("scancel", job)


def test_a_run_over_two_nodes_is_done(hand: Hand) -> None:
    job = hand.pretrain("two", "meet=true", nodes=2)
    assert hand.ends(job, 120) == "COMPLETED 0:0", hand.said("two")
    assert "2 processes on 2 Slurm nodes, 1 CPU each" in hand.said("two")
    assert "the ranks add up to 1" in hand.said("two")
    assert "count 'two' is done" in hand.said("two")
    assert hand.user.word("two") == "done"


def test_at_its_time_limit_it_goes_back_into_the_queue_and_the_same_line_resumes_it(hand: Hand) -> None:
    cluster, user = hand.user.cluster, hand.user
    job = hand.pretrain("limit", "steps=300", "pause_s=0.2", nodes=2)
    assert cluster.eventually(lambda: user.counts("limit"))
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # the signal comes at its next look
    assert cluster.eventually(lambda: cluster.job_state(job) == "PENDING", 120)
    assert [user.record("limit", rank)["outcome"] for rank in (0, 1)] == ["stopped", "stopped"]
    assert user.word("limit") == "queued"
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    cluster.start_now(job)
    assert hand.ends(job, 120) == "COMPLETED 0:0", hand.said("limit")
    assert "count 'limit' is resumed" in hand.said("limit")
    saved = max(int(path.name) for path in (user.folder("limit") / "checkpoints").iterdir())
    assert f"from {saved} in attempt 1" in hand.said("limit")
    assert user.steps("limit") == list(range(300))
    assert sorted(path.name for path in (user.folder("limit") / "attempts").iterdir()) == ["0", "1"]


def test_a_rank_that_crashes_ends_the_job_in_seconds_and_is_named(hand: Hand) -> None:
    job = hand.pretrain("crash", *LONG, "crash_rank=1", nodes=2)
    assert hand.ends(job) == "FAILED 1:0", "200 s of counting were left"
    assert "failed in rank 1 of 2: RuntimeError: boom" in hand.said("crash")
    assert "rank 1: RuntimeError: boom" in hand.user("status", "crash")


def test_a_rank_that_is_killed_ends_the_job_in_seconds_and_is_named(hand: Hand) -> None:
    job = hand.pretrain("kill", *LONG, "kill_rank=1", nodes=2)
    assert hand.ends(job) == "FAILED 1:0"
    assert "failed in rank 1 of 2: it was killed (SIGKILL)" in hand.said("kill")


def test_wrong_data_end_the_job_with_code_2(hand: Hand) -> None:
    assert hand.ends(hand.pretrain("wrong", "mistaken=true")) == "FAILED 2:0"
    assert "well B03: the data are wrong" in hand.said("wrong")


def test_scancel_saves_and_the_file_submitted_again_continues(hand: Hand) -> None:
    words, user = ("steps=40", "pause_s=0.5"), hand.user
    job = hand.pretrain("again", *words, nodes=2)
    assert user.cluster.eventually(lambda: user.counts("again"))
    user.cluster.run("scancel", job)
    assert hand.ends(job).startswith("CANCELLED")
    assert user.word("again") == "cancelled"
    refused = user.command_line("resume", "again")
    assert refused.returncode == 2
    assert "inside a job of Slurm" in refused.stdout
    assert hand.ends(hand.pretrain("again", *words), 120) == "COMPLETED 0:0"
    assert "is resumed: 1 process on 1 Slurm node" in hand.said("again")
    assert user.steps("again") == list(range(40))


def test_ctrl_c_after_salloc_saves(hand: Hand) -> None:
    """srun itself would kill the ranks; a step of a second is not broken off."""
    job = hand.pretrain("stop", "steps=1000", "pause_s=1", nodes=2)
    assert hand.user.cluster.eventually(lambda: hand.user.counts("stop"))
    [call] = [one for one in _calls("--name stop") if "command_line.py" in " ".join(one.cmdline())]
    call.send_signal(signal.SIGINT)
    assert hand.ends(job) == "FAILED 130:0", "as a call on a laptop"
    assert hand.user.record("stop", 1)["outcome"] == "stopped"
    assert list((hand.user.folder("stop") / "checkpoints").iterdir())


def _calls(words: str) -> list[psutil.Process]:
    """Processes with these words on their command line."""
    found = [one for one in psutil.process_iter(["cmdline"]) if words in " ".join(one.info["cmdline"] or [])]
    return [one for one in found if "srun" not in one.name()]


def test_an_array_is_a_run_for_each_seed(hand: Hand) -> None:
    hand.sbatch("array.sbatch", *SMALL, "--array=0-2%2", "--job-name=many", words=("site.tracking=none",))
    made = [hand.user.folder(f"many-seed{seed}") / "recipe.yaml" for seed in range(3)]
    assert hand.user.cluster.eventually(lambda: all(path.exists() for path in made)), hand.said("many")
    for seed in range(3):
        assert hand.user.becomes(f"many-seed{seed}", "done"), hand.said("many")
        assert f"seed: {seed}" in made[seed].read_text().splitlines()


def test_mlflow_runs_in_a_job_and_forwards_what_runs_measure(hand: Hand) -> None:
    user = hand.user
    user("count", *LONG, "--site", str(user.cluster.site_file), "site.memory=100M", "--name", "measured")
    assert user.cluster.eventually(lambda: user.counts("measured"))
    try:
        root = str(user.command_line.cwd / "runs")
        job = hand.sbatch("mlflow_server.sbatch", "--mem=1G", words=(root,))
        assert user.cluster.eventually(lambda: "ssh -N -L" in hand.said("mlflow-server"), 120)
        address = re.findall(r"http://127\.0\.0\.1:\d+", hand.said("mlflow-server"))[0]
        port = address.rsplit(":", 1)[1]
        assert re.search(
            rf"ssh -N -L {port}:127.0.0.1:{port} -J \S+ \S+@node[12]", hand.said("mlflow-server")
        )
        with urllib.request.urlopen(address) as page:
            assert b"MLflow" in page.read()
        seen = _losses(address)
        assert user.cluster.eventually(lambda: _losses(address) > seen, 60), "new ones come as they are made"
    finally:
        user("cancel", "measured")
        user.cluster.run("scancel", "--name=mlflow-server")
    assert hand.ends(job).startswith("CANCELLED")
    assert user.cluster.eventually(lambda: not _calls(f"sqlite:///{root}")), "no server is left"


def _losses(address: str) -> int:
    """How many steps of the only run MLflow has."""

    def ask(path: str, content: object = None) -> dict[str, list[dict[str, object]]]:
        data = json.dumps(content).encode() if content else None
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return dict(json.load(answer))

    experiments = [
        str(one["experiment_id"]) for one in ask("experiments/search?max_results=9")["experiments"]
    ]
    runs = ask("runs/search", {"experiment_ids": experiments}).get("runs", [])
    run_id = runs[0]["info"]["run_id"]  # type: ignore[index]
    return len(ask(f"metrics/get-history?run_id={run_id}&metric_key=loss").get("metrics", []))


APPTAINER = """#!/bin/bash
[ "$1 $2 $3 $4" = "exec --bind /data /image.sif" ] || exit 9
PATH=/of/the/image exec "${@:5}"
"""
BOXED = ("site.container=/image.sif", "site.binds=[/data]", f"site.python={sys.executable}", "steps=60")


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_run_in_a_container_goes_back_into_the_queue_without_an_scontrol_inside(
    hand: Hand, by_hand: bool
) -> None:
    """Apptainer's place is taken by a script: what is inside finds none of Slurm's commands."""
    user = hand.user
    apptainer = user.command_line.cwd / "bin" / "apptainer"
    apptainer.write_text(APPTAINER)
    apptainer.chmod(0o755)
    words = (*BOXED, "pause_s=0.2")
    job = hand.pretrain("boxed", *words) if by_hand else user.submit(*words, name="boxed")
    assert user.cluster.eventually(lambda: user.counts("boxed"))
    user.cluster.run("scancel", "--signal=USR2", job)
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "PENDING"), user("logs", "boxed")
    user.cluster.start_now(job)
    assert hand.ends(job, 120) == "COMPLETED 0:0", user("logs", "boxed")
    assert user.steps("boxed") == list(range(60))
    assert not list(user.folder("boxed").rglob("*requeue"))
