"""`ui`: all runs forwarded, and again each minute, and MLflow's own pages on this machine, until Ctrl-C."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from hpc_isl.cluster.run_folder import folders
from hpc_isl.cluster.tracking import forward
from hpc_isl.errors import UserError
from hpc_isl.site import Site, user_name

HOST = "127.0.0.1"  # alone, because these pages have no password
PAGES = "hpc_isl"  # the name of the module `pages` among MLflow's plugins
START_S = 600.0
LOG_S = 30.0  # between lines to a person who waits for the start
LOG_LINES = 12
SYNC_S = 60.0
QUIET = re.compile(r": (nothing new for|its site says tracking: none|has not begun|was deleted in MLflow)")


def serve(root: Path, port: int | None, log: Callable[[str], None]) -> int:
    """Opens the database of `root`; runs that were forwarded to a server are found there."""
    runs = folders.all_runs(root)
    if not runs:
        raise UserError(f"there are no runs in {folders.listed([root])}. {folders.ELSEWHERE}")
    _free_port(port)  # a taken one is an error before everything is forwarded
    forward.sync_all(runs, log)
    uri = Site().tracking_address(root)
    if not (root / "mlflow.db").exists():
        log("no run was forwarded to a database here; see the addresses above")
        return 0
    port, log_file = _free_port(port), root / "mlflow.log"
    server = _start(str(uri), root, port, log_file)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # scancel ends it as Ctrl-C does
        _await(server, port, log_file, log)
        log(f"MLflow: http://{HOST}:{port}   (Ctrl-C ends it)")
        if os.environ.get("SLURM_JOB_ID"):  # in a job: the user's own computer has the browser
            user, login = user_name(), os.environ.get("SLURM_SUBMIT_HOST", "LOGIN")
            jump = f"-J {user}@{login} {user}@{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}"
            log("On your own computer, then open that address there:")
            log(f"  ssh -N -L {port}:{HOST}:{port} {jump}")
        while True:  # what runs have measured since is forwarded each minute
            with suppress(subprocess.TimeoutExpired):
                return server.wait(SYNC_S)
            _forward_again(root)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # said twice, it ends all the same
        _end(server)


def _forward_again(root: Path) -> None:
    """Forwards once; a pass that fails is only noted in the server's log: the next makes up for it."""
    lines: list[str] = []
    try:
        forward.sync_all(folders.all_runs(root), lines.append, ask=False)
    except Exception as error:  # a folder that cannot be read just now, say
        lines.append(f"not forwarded: {type(error).__name__}: {error}")
    with suppress(OSError), (root / "mlflow.log").open("a") as log_file:
        log_file.writelines(f"{line}\n" for line in lines if not QUIET.search(line))


def _free_port(port: int | None) -> int:
    """Returns the port that was asked for; by default 5000, where MLflow is expected, or else any."""
    for candidate in (5000, 0) if port is None else (port,):
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, candidate))
            return int(probe.getsockname()[1])
    raise UserError(f"--port {port}: not free on this machine; leave it out, and a free one is found")


def _start(uri: str, root: Path, port: int, log_file: Path) -> subprocess.Popen[bytes]:
    """Starts the server in a process group of its own, so that it can be ended with all its workers."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--default-artifact-root", (root / "mlflow-artifacts").as_uri()]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    if any(plugin.name == PAGES for plugin in metadata.entry_points(group="mlflow.app")):
        command += ["--app-name", PAGES]  # a package that was not installed has no plugins
    # Its job runner is eight more processes that nothing here uses.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **settings, "DO_NOT_TRACK": "true"}
    with log_file.open("ab") as stream:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, process_group=0
        )


def _await(server: subprocess.Popen[bytes], port: int, log_file: Path, log: Callable[[str], None]) -> None:
    """Returns once the server answers; importing MLflow from a slow disk may take minutes.

    Raises:
        UserError: it has ended, or gives no answer for `START_S`; the reason stands in its log too.
    """
    start = logged = time.monotonic()
    while (problem := _server_problem(port)) and server.poll() is None and time.monotonic() - start < START_S:
        if time.monotonic() - logged > LOG_S:
            logged = time.monotonic()
            log(f"MLflow does not answer yet after {logged - start:.0f} s ({problem}); its log is {log_file}")
        time.sleep(0.3)
    if not problem:
        return
    ended = server.poll() is not None
    reason = f"its server ended with code {server.returncode}" if ended else f"it does not answer: {problem}"
    tail = "\n".join(f"  {line}" for line in log_file.read_text(errors="replace").splitlines()[-LOG_LINES:])
    with suppress(OSError), log_file.open("a") as stream:
        stream.write(f"given up: {reason}\n")
    raise UserError(f"MLflow did not start on port {port}: {reason}. Its log, {log_file}, ends:\n{tail}")


def _server_problem(port: int) -> str:
    """Returns why the server does not answer; empty: it does. Does not use a proxy that the user has set."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{HOST}:{port}/health", timeout=2).close()
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(5)
            break
