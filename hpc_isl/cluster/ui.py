"""`ui`: all runs forwarded, and again each minute, and MLflow's own pages on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import re
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
SYNC_S = 60.0
QUIET = re.compile(r": (nothing new for|its site says tracking: none)")


def serve(root: Path, port: int | None, say: Callable[[str], None]) -> int:
    """Opens the database of `root`; runs that were forwarded to a server are found there."""
    runs = names.all_runs(root)
    if not runs:
        raise Mistake(f"there are no runs in {names.listed([root])}. {names.ELSEWHERE}")
    forward.sync_all(runs, say)
    uri = Site().tracking_address(root)
    if not (root / "mlflow.db").exists():
        say("no run was forwarded to a database here; see the addresses above")
        return 0
    port = port or _free_port()
    server = _start(str(uri), root, port)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # scancel ends it as Ctrl-C does
        _await(server, port)
        say(f"MLflow: http://{HOST}:{port}   (Ctrl-C ends it)")
        for line in _from_elsewhere(port):
            say(line)
        return _forward_until_ended(server, root)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # said twice, it ends all the same
        _end(server)


def _from_elsewhere(port: int) -> list[str]:
    """In a job of Slurm: what to type on one's own computer, whose browser then finds the pages here."""
    if not os.environ.get("SLURM_JOB_ID"):
        return []
    user, login = os.environ.get("USER", "me"), os.environ.get("SLURM_SUBMIT_HOST", "LOGIN")
    hop = f"-J {user}@{login} {user}@{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}"
    return ["On your own computer, then open that address there:", f"  ssh -N -L {port}:{HOST}:{port} {hop}"]


def _forward_until_ended(server: subprocess.Popen[bytes], root: Path) -> int:
    """What runs have measured since is forwarded each minute; the server's exit code."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return server.wait(SYNC_S)
        _forward_again(root)


def _forward_again(root: Path) -> None:
    """One pass; one that fails only says so in the server's log: the next makes up for it."""
    lines: list[str] = []
    try:
        forward.sync_all(names.all_runs(root), lines.append)
    except Exception as error:  # a folder that cannot be read just now, say
        lines.append(f"not forwarded: {type(error).__name__}: {error}")
    with suppress(OSError), (root / "mlflow.log").open("a") as log:
        log.writelines(f"{line}\n" for line in lines if not QUIET.search(line))


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
