"""The daemons of a test cluster in the order in which they need each other, each waited for."""

from __future__ import annotations

import socket
from pathlib import Path

import processes
from settings import Settings, configure

USABLE = {"IDLE", "MIXED", "ALLOCATED", "IDLE+COMPLETING", "MIXED+COMPLETING", "ALLOCATED+COMPLETING"}


def bring_up(folder: Path, settings: Settings) -> None:
    """Starts all daemons and returns when every node is usable."""
    for name in ("log", "state"):
        (folder / name).mkdir()
    configure(folder, settings)
    _munge(folder)
    if settings.accounting:
        _accounting(folder)
    start_controller(folder)
    start_nodes(folder, settings)
    until_usable(folder, settings)


def _munge(folder: Path) -> None:
    # It wants a socket that every user reaches; this one is ours alone.
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    options = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
    processes.start(folder, "munged", "munged", "--foreground", "--force", *options)
    processes.wait(folder, "munged", (folder / "munge.socket").exists)


def _accounting(folder: Path) -> None:
    options = f"--defaults-file={folder}/mariadb.cnf"
    processes.call(
        folder, "mariadb-install-db", options, f"--extra-file={folder}/mariadb.sql", "--skip-test-db"
    )
    processes.start(folder, "mariadbd", "mariadbd", options)
    processes.wait(folder, "mariadbd", (folder / "mariadbd.pid").exists)
    processes.start(folder, "slurmdbd", "slurmdbd", "-D")
    port = _setting(folder / "slurmdbd.conf", "DbdPort")
    processes.wait(folder, "slurmdbd", lambda: _listens(int(port)))
    processes.call(folder, "sacctmgr", "--immediate", "add", "cluster", "testcluster")


def start_controller(folder: Path) -> None:
    processes.start(folder, "slurmctld", "slurmctld", "-D", "-f", f"{folder}/slurm.conf")
    port = _setting(folder / "slurm.conf", "SlurmctldPort")
    processes.wait(folder, "slurmctld", lambda: _listens(int(port)))


def start_nodes(folder: Path, settings: Settings) -> None:
    for name in settings.names:
        processes.start(folder, f"slurmd.{name}", "slurmd", "-D", "-N", name, "-f", f"{folder}/slurm.conf")


def until_usable(folder: Path, settings: Settings) -> None:
    for name in settings.names:
        processes.wait(folder, f"slurmd.{name}", lambda name=name: _answers(folder, name))


def _answers(folder: Path, node: str) -> bool:
    """Returns whether the node answers: the controller takes it for idle before it has heard of it."""
    answer = processes.call(folder, "scontrol", "--oneliner", "show", "node", node)
    about = dict(word.split("=", 1) for word in answer.split() if "=" in word)
    return about["State"] in USABLE and about["SlurmdStartTime"] != "None" and _listens(int(about["Port"]))


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _setting(conf: Path, key: str) -> str:
    lines = dict(line.split("=", 1) for line in conf.read_text().splitlines())
    return lines[key]
