"""`ui`: all runs forwarded, then MLflow's own pages on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpc_isl.cluster import forward, names
from hpc_isl.mistake import Mistake
from hpc_isl.site import Site

HOST = "127.0.0.1"
START_S = 120.0


def serve(root: Path, port: int | None, say: Callable[[str], None]) -> int:
    """Opens the database of `root`; runs that were forwarded to a server are found there."""
    runs = names.all_runs(root)
    if not runs:
        raise Mistake(f"there are no runs in {root}; --root names another folder")
    forward.sync_all(runs, say)
    uri = Site().tracking_address(root)
    if not (root / "mlflow.db").exists():
        say("no run was forwarded to a database here; see the addresses above")
        return 0
    port = port or _free_port()
    server = _start(str(uri), root, port)
    try:
        _await(server, port)
        say(f"MLflow: http://{HOST}:{port}   (Ctrl-C ends it)")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _free_port() -> int:
    """5000, where MLflow is expected, or else any."""
    for port in (5000, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise Mistake("there is no free port on this machine")


def _start(uri: str, root: Path, port: int) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that it can be ended with all its workers."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--default-artifact-root", (root / "mlflow-artifacts").as_uri()]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    # Its job runner is eight more processes that nothing here uses.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **quiet, "DO_NOT_TRACK": "true"}
    with (root / "mlflow.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2).close()
            return
        time.sleep(0.3)
    raise Mistake(f"MLflow did not start on port {port}; its log is mlflow.log in the folder of runs")


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(5)
            break
