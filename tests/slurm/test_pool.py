"""A pooled stage on a real Slurm: over two nodes, one of which may be lost, and over its time limit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import User

TWO_NODES = ("site.nodes=2", "site.workers=1")


def folder(user: User, name: str) -> Path:
    return user.command_line.cwd / "runs" / "square" / name


def record(user: User, name: str, rank: int = 0, attempt: int = 0) -> dict[str, Any]:
    path = folder(user, name) / "attempts" / str(attempt) / f"rank-{rank}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def summary(user: User, name: str) -> dict[str, Any]:
    return dict(json.loads((folder(user, name) / "done" / "square.json").read_text()))


def squares(user: User, name: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder(user, name) / "squares").glob("[0-9]*")}


def has_both_nodes(user: User, name: str, attempt: int = 0) -> bool:
    """Whether the processes of both nodes have answered."""
    return (
        int(record(user, name, attempt=attempt).get("progress", {}).get("metrics", {}).get("workers", 0)) > 1
    )


def test_the_processes_of_two_nodes_work_together(user: User) -> None:
    user.submit("numbers=150", "pause_s=0.2", *TWO_NODES, name="two", verb="square")
    assert user.becomes("two", "done"), user("logs", "two")
    assert squares(user, "two") == {str(n): str(n * n) for n in range(150)}
    assert summary(user, "two")["workers"] == 2
    assert user.cluster.eventually(lambda: user.command_line.left() == []), "the other rank leaves too"
    assert [record(user, "two", rank)["outcome"] for rank in (0, 1)] == ["done", "done"]
    log = (folder(user, "two") / "attempts/0/rank-0.log").read_text()
    assert "ssh -L" in log, "how to see the dashboard from elsewhere"
    assert not (folder(user, "two") / "attempts/0/scheduler.json").exists()


def test_a_node_that_is_lost_is_done_without(user: User) -> None:
    job = user.submit("numbers=300", "pause_s=0.2", *TWO_NODES, name="lost", verb="square")
    assert user.cluster.eventually(lambda: has_both_nodes(user, "lost"))
    other = record(user, "lost", rank=1)
    user.cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    try:
        assert user.becomes("lost", "done"), user("logs", "lost") + user.cluster.job_state(job)
    finally:
        user.cluster.restart("slurmd")
    assert squares(user, "lost") == {str(n): str(n * n) for n in range(300)}
    assert len(list((folder(user, "lost") / "attempts").iterdir())) == 1, "in one go"
    assert other["rank"] == 1


@pytest.mark.kill
def test_a_killed_rank_of_another_node_does_not_end_the_run(user: User) -> None:
    user.submit("numbers=150", "pause_s=0.2", *TWO_NODES, name="killed", verb="square")
    assert user.cluster.eventually(lambda: has_both_nodes(user, "killed"))
    os.kill(record(user, "killed", rank=1)["pid"], signal.SIGKILL)
    assert user.becomes("killed", "done"), user("logs", "killed")
    assert squares(user, "killed") == {str(n): str(n * n) for n in range(150)}


@pytest.mark.kill
def test_the_run_ends_with_rank_0(user: User) -> None:
    user.submit("numbers=1000", "pause_s=0.2", *TWO_NODES, name="first", verb="square")
    assert user.cluster.eventually(lambda: has_both_nodes(user, "first"))
    os.kill(record(user, "first")["pid"], signal.SIGKILL)
    assert user.becomes("first", "failed", within_s=240), user("logs", "first")
    assert user.cluster.eventually(lambda: user.command_line.left() == [])


def test_at_its_time_limit_a_pooled_run_is_started_again(user: User) -> None:
    job = user.submit("numbers=6000", "pause_s=0.2", *TWO_NODES, name="limit", verb="square")
    assert user.cluster.eventually(lambda: has_both_nodes(user, "limit"))
    user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "PENDING", 120), user(
        "logs", "limit"
    )
    before = len(squares(user, "limit"))
    assert before < 6000
    assert [record(user, "limit", rank)["outcome"] for rank in (0, 1)] == ["stopped", "stopped"]
    user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    user.cluster.start_now(job)
    assert user.cluster.eventually(lambda: has_both_nodes(user, "limit", attempt=1))
    assert record(user, "limit", attempt=1)["progress"]["done"] >= before, "it goes on where it was"
    user("cancel", "limit")
