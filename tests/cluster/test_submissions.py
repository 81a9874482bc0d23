"""Whether a job of Slurm is a run's own, on recorded answers: what may be in a queue is not started again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpc_isl.cluster.executors import slurm
from hpc_isl.cluster.executors.slurm import Batch
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import status, submissions
from hpc_isl.cluster.run_folder.job import Job
from hpc_isl.cluster.slurm import commands
from hpc_isl.cluster.submit import launch
from hpc_isl.cluster.tracking.mlflow_run import sync
from hpc_isl.errors import UserError
from hpc_isl.files import now
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site, saved_site

if TYPE_CHECKING:
    from tests.conftest import CommandLine

Tool = Callable[[str, str], None]
SLURM = Site(executor="slurm")
MUTE = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """tool(name, script): a program of Slurm that answers so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)

    write("sacct", "true")
    return write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "count" / "one")
    run.folder.mkdir(parents=True)
    run.site.write_text(to_yaml(Site(executor="slurm")))
    run.recipe.write_text("steps: 3\n")
    return run


def handed_over(run: Run, job: str | None = "7", site: Site = SLURM, **more: Any) -> None:
    """As a submission notes it."""
    batch = Batch(run, run.next_attempt(), (Job("counting", run.folder, 0),))
    [(_, facts)] = slurm.parts(batch, site)[0].facts(batch, site)
    submissions.note(run, batch.attempt, site, **facts, **({"job": job} if job else {}), **more)


def working_in(folder: Path | str, state: str = "PENDING") -> str:
    return f"echo '7|{state}|None|node1|10:00|{folder}'"


def test_a_job_is_known_by_the_folder_that_slurm_was_given(run: Run, tool: Tool, tmp_path: Path) -> None:
    handed_over(run)
    tool("squeue", working_in(run.folder))
    (tmp_path / "link").symlink_to("runs")
    assert status.status_of(Run(tmp_path / "link" / "count" / "one")).state == "queued"
    os.rename(tmp_path / "runs", tmp_path / "moved")
    assert status.status_of(Run(tmp_path / "moved" / "count" / "one")).state == "queued"
    tool("squeue", working_in("/home/someone else"))
    assert status.status_of(Run(tmp_path / "moved" / "count" / "one")).state == "lost", (
        "a number that came again"
    )


def test_a_run_of_an_earlier_version_is_known_through_a_link(run: Run, tool: Tool, tmp_path: Path) -> None:
    """Its submission does not tell the folder: device and inode do."""
    (run.attempts / "0").mkdir(parents=True)
    (run.attempts / "0" / "submission.json").write_text(
        json.dumps({"executor": "slurm", "job": "7", "host": "login", "slurm_conf": None})
    )
    (tmp_path / "link").symlink_to("runs")
    tool("squeue", working_in(tmp_path / "link" / "count" / "one"))
    assert status.status_of(run).state == "queued"


def test_a_copy_has_no_job(run: Run, tool: Tool, tmp_path: Path) -> None:
    handed_over(run)
    tool("squeue", working_in(run.folder))
    shutil.copytree(tmp_path / "runs", tmp_path / "copies")
    assert status.status_of(Run(tmp_path / "copies" / "count" / "one")).state == "lost"


def test_the_slurm_that_has_the_job_is_asked(
    run: Run, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From whichever shell, which may name another cluster."""
    tool("squeue", f'echo "$SLURM_CONF $SLURM_CLUSTERS" >> {tmp_path}/asked; {working_in(run.folder)}')
    monkeypatch.setenv("SLURM_CONF", "/of/this.conf")
    handed_over(run)
    monkeypatch.setenv("SLURM_CONF", "/of/another.conf")
    status.status_of(run)
    monkeypatch.delenv("SLURM_CONF")
    handed_over(run, site=Site(executor="slurm", sbatch={"clusters": "east"}))
    monkeypatch.setenv("SLURM_CONF", "/of/another.conf")
    status.status_of(run)
    handed_over(run, site=Site(executor="slurm", slurm_conf=Path("/of/the/site.conf")))
    status.status_of(run)
    asked = [line.strip() for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == ["/of/this.conf", "east", "/of/the/site.conf"]


def script(run: Run, attempt: int, target: str = "") -> Path:
    """What submitit leaves: a link once sbatch has told the number."""
    run.sbatch.mkdir(exist_ok=True)
    path = run.sbatch / ".submission_file_0af.sh"
    text = f"#!/bin/bash\n# part 0 of attempt {attempt}\nsrun\n"
    if target:
        (run.sbatch / target).write_text(text)
        path.symlink_to(target)
    else:
        path.write_text(text)
    return path


def test_a_run_whose_done_record_a_network_disk_shows_late_is_done(
    run: Run, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a disk shows a new file where one was missing after its folder is listed, or after a minute."""
    handed_over(run)
    tool("squeue", working_in(run.folder, "COMPLETED"))
    Attempt(run).finish({})
    list_folder, summary, listed = os.listdir, Run.summary, set[Path]()

    def listing(folder: Path) -> list[str]:
        listed.add(Path(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "listdir", listing)
    monkeypatch.setattr(Run, "summary", lambda self: summary(self) if self.done in listed else None)
    assert status.status_of(run).state == "done"


def test_after_ctrl_c_during_the_submission_the_user_reads_that_there_is_a_job(
    tool: Tool, command_line: CommandLine
) -> None:
    tool("scontrol", "true")
    tool("sbatch", "kill -INT $PPID; sleep 0.2; echo Submitted batch job 17")
    command_line.environment["PATH"] = os.environ["PATH"]
    (command_line.cwd / "c.yaml").write_text("executor: slurm\ntracking: none\n")
    done = command_line("count", "--site", "c.yaml", "--name", "one")
    assert done.returncode == 130
    assert "submitted as Slurm job 17" in done.stdout
    assert "cancel one" in done.stdout
    assert done.stdout.endswith("stopped\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's use of sqlalchemy
def test_forwarding_a_run_that_computes_asks_no_queue(run: Run, tool: Tool, tmp_path: Path) -> None:
    """The node of each running element of a sweep forwards it every few seconds."""
    tool("squeue", f"touch {tmp_path}/asked")
    run.site.write_text(to_yaml(Site(executor="slurm", tracking=f"sqlite:///{tmp_path}/mlflow.db")))
    run.record.write_text('{"key": "k"}')
    handed_over(run, site=saved_site(run.site))
    attempt = Attempt(run)
    attempt.note(rank=0, start=now(), heartbeat=now(), node="node1")
    attempt.metric(1, loss=0.5)
    assert "1 metric values" in sync(run, running=True)
    attempt.metric(2, loss=0.4)
    assert "1 metric values" in sync(run, running=True)
    assert not (tmp_path / "asked").exists()


def test_of_many_jobs_a_message_says_how_many(tool: Tool) -> None:
    assert commands.jobs_text(["17_0", "18"]) == "job 17_0, job 18"
    names = [f"17_{number}" for number in range(1000)]
    assert commands.jobs_text(names) == "1,000 jobs of 17"
    tool("scancel", "echo 'no right' >&2; exit 1")
    with pytest.raises(UserError, match=r"^scancel of 1,000 jobs of 17: no right$"):
        commands.cancel(names)


def test_a_job_that_only_submitit_could_note_is_found(run: Run, tool: Tool) -> None:
    handed_over(run, job=None)
    script(run, 0, "7_submission.sh")
    tool("squeue", working_in(run.folder, "RUNNING"))
    assert status.status_of(run).state == "running"


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("echo '7|{script}'", "queued"),
        ("echo '8|/runs/of/another/.submission_file_1b.sh'", "lost"),
        (MUTE, "queued"),
    ],
)
def test_a_job_that_nobody_could_note_is_found_by_its_script(
    run: Run, tool: Tool, answer: str, word: str
) -> None:
    handed_over(run, job=None)
    path = script(run, 0)
    tool(
        "squeue",
        f'[[ "$*" == *%o* ]] && {{ {answer.format(script=path)}; exit $?; }}; {working_in(run.folder)}',
    )
    assert status.status_of(run).state == word


def test_a_script_of_an_earlier_attempt_is_none_of_this_one(run: Run, tool: Tool) -> None:
    script(run, 0, "7_submission.sh")
    handed_over(run)
    handed_over(run, job=None)
    tool("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert status.status_of(run).state == "lost"


ENDED = {"exit": "2026-01-01T00:00:09+00:00"}


@pytest.mark.parametrize(
    ("record", "minutes_ago", "word"),
    [
        ({}, 0, "queued"),
        ({}, 9, "running"),
        ({**ENDED, "outcome": "stopped"}, 9, "stopped"),  # it saved, and may have been put back
        ({**ENDED, "outcome": "failed", "message": "boom"}, 9, "failed"),  # perhaps with its node
    ],
)
def test_while_slurm_does_not_answer_nothing_is_started(
    run: Run, tool: Tool, record: dict[str, str], minutes_ago: float, word: str
) -> None:
    """The folder tells how far the run came, and not whether Slurm will start it again; who knows that it
    will not says so with `cancel`."""
    handed_over(run)
    if minutes_ago:
        beat = (datetime.now(UTC) - timedelta(minutes=minutes_ago)).isoformat()
        Attempt(run).note(rank=0, node="node1", start=beat, heartbeat=beat, **record)
    tool("squeue", MUTE)
    found = status.status_of(run)
    assert (found.state, found.alive) == (word, True)
    assert found.detail.startswith("Slurm does not answer")
    console = Console(lambda text: None, run.root)
    for start in (launch.resume, launch.retry):
        with pytest.raises(UserError, match=r"job may be there: Slurm does not|nothing to retry"):
            start(run, Site(), console, False)
    run.cancelled.touch()
    assert status.status_of(run) == status.RunStatus("cancelled", "Slurm does not answer")


@pytest.mark.parametrize(
    ("private", "word", "unheard"), [("jobs,usage", "queued", True), ("none", "lost", False)]
)
def test_a_job_of_another_user_that_slurm_does_not_show_may_be_there(
    run: Run, tool: Tool, monkeypatch: pytest.MonkeyPatch, private: str, word: str, unheard: bool
) -> None:
    """In a folder that a group shares."""
    handed_over(run)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    tool("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    tool("scontrol", f"echo 'PrivateData             = {private}'")
    found = status.status_of(run)
    assert (found.state, bool(found.unheard)) == (word, unheard)


def test_what_was_refused_leaves_no_script_that_a_later_attempt_would_be_taken_for(
    run: Run, tool: Tool
) -> None:
    tool("sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    tool("squeue", "true")
    batch = Batch(run, run.next_attempt(), (Job("counting", run.folder, 0),))
    with pytest.raises(UserError, match="invalid partition"):
        slurm.submit(batch, SLURM)
    assert not list(run.sbatch.glob(".submission_file_*"))


def test_a_job_leaves_a_run_that_was_submitted_again(run: Run) -> None:
    handed_over(run, "7")
    assert not submissions.superseded(run, 0, "7")
    (run.attempts / str(run.next_attempt())).mkdir(exist_ok=True)
    assert not submissions.superseded(run, 0, "7"), "Slurm itself has started it again"
    handed_over(run, "8")
    assert submissions.superseded(run, 0, "7")
    assert not submissions.superseded(run, 2, "8")


def test_a_job_leaves_a_run_that_went_on_without_slurm(run: Run) -> None:
    handed_over(run, "7")
    submissions.note(run, run.next_attempt(), Site(), pid=1, pid_started=1.0)
    assert submissions.superseded(run, 0, "7")
