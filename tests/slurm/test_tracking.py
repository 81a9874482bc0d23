"""Metrics of a Slurm job in MLflow, whose server is killed in mid-run and comes back."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import User


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(user: User, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's own server on loopback, killed with all its workers at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, process_group=0
        )
    try:
        assert user.cluster.eventually(lambda: answers(port), 120), (folder / "server.log").read_text()
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
        return True
    return False


def steps(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = database.execute("select step from metrics where key = 'loss' order by step").fetchall()
    return [step for (step,) in rows]


@pytest.mark.kill
def test_a_server_that_is_killed_and_comes_back_holds_each_step_once(user: User) -> None:
    folder, port = user.command_line.cwd, free_port()
    with server(user, folder, port):
        said = user("count", "steps=150", "pause_s=0.2", f"site.tracking=http://127.0.0.1:{port}", "--site",
                    str(user.cluster.site_file), "site.memory=500M", "--name", "kept")  # fmt: skip
        assert "submitted" in said
        assert user.cluster.eventually(lambda: steps(folder), 120), "it is forwarded as it goes"
    seen = len(steps(folder))
    assert seen < 150
    assert user.becomes("kept", "done"), "the run does not notice"
    with server(user, folder, port):
        user("sync", "kept")
    assert steps(folder) == list(range(150))


def families(folder: Path) -> list[tuple[str, str]]:
    """(parent, child) of all runs that are below another."""
    query = (
        "select parent.name, child.name from tags t join runs child on child.run_uuid = t.run_uuid "
        "join runs parent on parent.run_uuid = t.value where t.key = 'mlflow.parentRunId' order by 2"
    )
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def test_elements_of_an_array_find_one_parent_from_several_nodes(user: User) -> None:
    folder, port = user.command_line.cwd, free_port()
    whole = [(name, "FINISHED") for name in ("nuc", "nuc/seed=0", "nuc/seed=1")]

    def forwarded() -> bool:
        """A job that has just ended may still forward its element: until then `sync` leaves it alone."""
        user("sync", "nuc")
        return states(folder) == whole

    with server(user, folder, port):
        user("sweep", "stage=count", "over={seed: [0, 1]}", f"site.tracking=http://127.0.0.1:{port}",
             "--site", str(user.cluster.site_file), "site.memory=500M", "site.cpus=1",
             "site.sbatch={exclusive: true}", "--name", "nuc")  # fmt: skip
        assert user.becomes("nuc", "done"), user("status", "nuc")
        assert user.cluster.eventually(forwarded, 120), user("sync", "nuc")
        user("sync", "nuc")
    assert states(folder) == whole
    assert families(folder) == [("nuc", "nuc/seed=0"), ("nuc", "nuc/seed=1")]


def states(folder: Path) -> list[tuple[str, str]]:
    """(name, status) of all runs."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return database.execute("select name, status from runs order by name").fetchall()
