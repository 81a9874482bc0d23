"""The processes of a test cluster: started, found again by a mark in their environment, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import programs

MARK = "HPC_ISL_TESTCLUSTER"
STEP = "slurmstepd"
OPTIONS = ("SLURM", "SBATCH", "SRUN", "SQUEUE", "SACCT", "SCANCEL", "SCONTROL", "SINFO")  # for its programs


class Broken(Exception):
    """A daemon ended or did not answer; its name comes first."""


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    """as its log: slurmctld, slurmd.node1; slurmstepd and job for what runs jobs"""


def start(folder: Path, name: str, *command: str) -> None:
    """Starts a program in the foreground of a session of its own, with its output in a log.

    It returns when the process carries the mark by which `running` finds it.
    """
    with (folder / "log" / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            env=environment(folder, name), start_new_session=True,
        )  # fmt: skip
    # A program that is being loaded has no environment yet.
    while process.poll() is None and _process(folder, process.pid) is None:
        time.sleep(0.01)


def call(folder: Path, *command: str, within_s: float = 60) -> str:
    """Returns the output of a command of Slurm or of the database."""
    try:
        done = subprocess.run(
            command, env=environment(folder, command[0]), timeout=within_s, check=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise Broken(command[0], error.stdout.strip()) from None
    except subprocess.TimeoutExpired:
        raise Broken(command[0], f"did not answer within {within_s:g} s") from None
    return done.stdout


def environment(folder: Path, name: str) -> dict[str, str]:
    """Returns the caller's environment without what another cluster or a job around us has set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OPTIONS)}
    return {
        **kept,
        "PATH": programs.path(),
        "SLURM_CONF": str(folder / "slurm.conf"),
        MARK: f"{folder} {name}",
    }


def wait(folder: Path, name: str, true: Callable[[], bool], within_s: float = 60) -> None:
    """Waits until `true()`; raises `Broken` when the daemon has ended, or time is up."""
    deadline = time.monotonic() + within_s
    while not true():
        if not any(process.name == name for process in running(folder)):
            raise Broken(name, "ended")
        if time.monotonic() > deadline:
            raise Broken(name, f"was not ready within {within_s:g} s")
        time.sleep(0.05)


def running(folder: Path) -> list[Process]:
    """Returns all processes of the cluster in the folder."""
    return [process for pid in _pids() if (process := _process(folder, pid))]


def end(folder: Path, name: str, patience_s: float = 2) -> None:
    """Sends TERM to all whose name begins so (all: for an empty name), and KILL to those that are left."""
    _send(signal.SIGTERM, folder, name)
    if not gone(folder, name, patience_s):
        kill(folder, name)


def kill(folder: Path, name: str) -> None:
    """Kills all whose name begins so, repeatedly: a killed script may just have started another program."""
    for _ in range(40):
        _send(signal.SIGKILL, folder, name)
        if gone(folder, name, 0.05):
            return


def _send(sent: signal.Signals, folder: Path, name: str) -> None:
    for process in _named(folder, name):
        with suppress(ProcessLookupError):
            os.kill(process.pid, sent)


def gone(folder: Path, name: str, patience_s: float) -> bool:
    """Waits for the end of all whose name begins so; returns whether they ended in time."""
    deadline = time.monotonic() + patience_s
    while _named(folder, name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _named(folder: Path, name: str) -> list[Process]:
    return [process for process in running(folder) if name in ("", process.name, process.name.split(".")[0])]


def _pids() -> Iterator[int]:
    me = os.getpid()
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me)


def _process(folder: Path, pid: int) -> Process | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        program = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return None  # it has ended, or is another user's
    mark = f"{MARK}={folder} ".encode()
    name = next((each[len(mark) :].decode() for each in variables if each.startswith(mark)), None)
    if name is not None:
        return Process(pid, STEP if program.startswith(STEP) else name)
    # What a job starts carries no mark. A shell from which somebody looks at the cluster has the first
    # of these too; the second stands on nodes alone.
    on_node = any(each.startswith(b"SLURMD_NODENAME=") for each in variables)
    return (
        Process(pid, "job") if on_node and f"SLURM_CONF={folder}/slurm.conf".encode() in variables else None
    )
