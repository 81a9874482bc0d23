#!/usr/bin/env python3
"""A real Slurm in a private folder on this machine, to try a cluster and to test against.

    python slurm/testcluster/testcluster.py start --nodes 2 --cpus 4

brings it up and says how to use it; `stop` leaves nothing behind.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import daemons
import processes
import programs
from processes import Broken
from settings import Settings, site, too_long, written_by_us

ORDER = ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged")  # of ending


class UserError(Exception):
    """The user's mistake; printed in one line."""


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    folder = asked.folder.expanduser().resolve()
    try:
        if asked.verb == "start":
            return start(folder, _settings(asked))
        if asked.verb == "stop":
            return stop(folder)
        return restart(folder, asked.daemon, asked.stop_s)
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2


def start(folder: Path, settings: Settings) -> int:
    """Starts the cluster; returns 0 when every node is idle."""
    if missing := programs.missing(settings.accounting):
        raise UserError(f"missing: {', '.join(missing)}. On Debian: apt install {programs.PACKAGES}")
    with _alone(folder):
        known = Settings.of(folder)
        if known and written_by_us(Path(known.site_file), folder) and processes.running(folder):
            return _already(folder, known, settings)
        _end_processes(folder)  # of a start that was cut off
        return _start(folder, settings)


def stop(folder: Path) -> int:
    """Ends and removes everything, also what a killed start has left."""
    if not _ours(folder):
        print(f"no test cluster in {folder}")
        return 0
    began = time.monotonic()
    _end(folder)
    print(f"stopped in {time.monotonic() - began:.1f} s, and {folder} removed")
    return 0


def restart(folder: Path, daemon: str, stop_s: float) -> int:
    """Ends a daemon, waits, starts it again; jobs continue meanwhile."""
    settings = Settings.of(folder)
    if settings is None or not processes.running(folder):
        raise UserError(f"no test cluster runs in {folder}: start one first")
    processes.end(folder, daemon, patience_s=30)  # the controller writes its state first
    time.sleep(stop_s)
    try:
        daemons.start_controller(folder) if daemon == "slurmctld" else daemons.start_nodes(folder, settings)
        daemons.until_usable(folder, settings)
    except Broken as broken:
        return _failed(folder, broken)
    return 0


def _start(folder: Path, settings: Settings) -> int:
    began = time.monotonic()
    site_file = Path(settings.site_file)
    if site_file.exists() and not written_by_us(site_file):
        raise UserError(f"{site_file} is not a test cluster's: name another with --site-file")
    _clear(folder)
    settings.write(folder)
    try:
        daemons.bring_up(folder, settings)
    except (Broken, KeyboardInterrupt) as broken:
        status = _failed(folder, broken) if isinstance(broken, Broken) else 130
        _end(folder)
        return status
    site_file.parent.mkdir(parents=True, exist_ok=True)
    site_file.write_text(site(folder))
    _print_usage(folder, settings, time.monotonic() - began)
    return 0


def _end(folder: Path) -> None:
    _end_processes(folder)
    settings = Settings.of(folder)
    if settings and written_by_us(Path(settings.site_file), folder):
        Path(settings.site_file).unlink()
    _clear(folder)
    (folder / "settings.json").unlink(missing_ok=True)
    folder.rmdir()


def _end_processes(folder: Path) -> None:
    if any(process.name == "slurmctld" for process in processes.running(folder)):
        _cancel_jobs(folder)
    # Those that would not go, while the controller knows them as cancelled: it does not start them again.
    processes.kill(folder, "job")
    processes.kill(folder, processes.STEP)
    for name in (*ORDER, ""):
        processes.end(folder, name, patience_s=1)


def _cancel_jobs(folder: Path) -> None:
    try:
        jobs = processes.call(folder, "squeue", "--noheader", "--format=%A", within_s=5).split()
        if jobs:
            processes.call(folder, "scancel", "--full", *sorted(set(jobs)), within_s=5)
            processes.gone(folder, processes.STEP, 2)
    except Broken:
        pass  # what cannot be cancelled is killed below


def _failed(folder: Path, broken: Broken) -> int:
    name, reason = broken.args
    log = folder / "log" / f"{name}.out"
    print(f"{name} {reason}", file=sys.stderr)
    if log.is_file():
        print(*log.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
    return 1


def _already(folder: Path, known: Settings, settings: Settings) -> int:
    if known != settings:
        raise UserError(
            f"a test cluster with other settings runs in {folder}: "
            f"stop it first with `stop --folder {folder}`, or start this one with another --folder"
        )
    print(f"runs already: export SLURM_CONF={folder}/slurm.conf")
    return 0


def _print_usage(folder: Path, settings: Settings, took_s: float) -> None:
    count = f"{settings.nodes} nodes of {settings.cpus} CPUs and {settings.memory} MB"
    print(f"{count}, {'with' if settings.accounting else 'without'} accounting, up in {took_s:.1f} s")
    print("To look with sinfo, squeue and sacct:")
    print(f"  export SLURM_CONF={folder}/slurm.conf")
    print("To compute there:")
    default = Path(settings.site_file) == _site_file()
    print(f"  python -m hpc_isl.submit pretrain … --site {'testcluster' if default else settings.site_file}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder: two starts in one folder take turns."""
    if too_long(folder):
        raise UserError(
            f"--folder {folder}: too long for the names of sockets below it; take one such as /tmp/cluster"
        )
    if folder.exists() and not _ours(folder):
        raise UserError(f"--folder {folder}: holds something else; name an empty or a new one")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _ours(folder: Path) -> bool:
    """Returns whether the folder is a test cluster's, or empty, as a start that was killed leaves it."""
    return folder.is_dir() and ((folder / "settings.json").exists() or not any(folder.iterdir()))


def _clear(folder: Path) -> None:
    """Removes everything but the file that marks the folder as ours: a stop can then resume this."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "settings.json":
            path.unlink()


def _settings(asked: argparse.Namespace) -> Settings:
    site_file = str((asked.site_file or _site_file()).expanduser().absolute())
    if wrong := [line for line in asked.lines if "=" not in line]:
        raise UserError(f"--set {wrong[0]}: write Key=Value, as in slurm.conf")
    return Settings(asked.nodes, asked.cpus, asked.memory, asked.accounting, tuple(asked.lines), site_file)


def _site_file() -> Path:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "hpc_isl" / "sites" / "testcluster.yaml"


def _parser() -> argparse.ArgumentParser:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder", type=Path, default=cache / "hpc_isl" / "testcluster", metavar="DIR",
        help="everything of the cluster lies here (default: %(default)s)",
    )  # fmt: skip
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    _start_options(verbs.add_parser("start", parents=[common], help="bring a cluster up"))
    verbs.add_parser("stop", parents=[common], help="end it, and remove all of it")
    again = verbs.add_parser(
        "restart", parents=[common], help="end a daemon and start it again; jobs continue"
    )
    again.add_argument("daemon", choices=["slurmctld", "slurmd"])
    again.add_argument("--stop-s", type=float, default=0, metavar="SECONDS", help="how long it is away")
    return parser


def _start_options(start: argparse.ArgumentParser) -> None:
    start.add_argument("--nodes", type=_positive, default=2)
    start.add_argument("--cpus", type=_positive, default=4, help="per node; more than there are is fine")
    start.add_argument("--memory", type=_positive, default=4000, metavar="MB", help="per node")
    start.add_argument("--without-accounting", dest="accounting", action="store_false", help="no sacct")
    start.add_argument(
        "--set", dest="lines", nargs="+", action="extend", default=[], metavar="Key=Value",
        help="lines of slurm.conf that replace or add, e.g. MaxArraySize=10 KillWait=5",
    )  # fmt: skip
    start.add_argument("--site-file", type=Path, metavar="FILE", help="where to write the site")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
