"""What the user is told when a run is submitted or has ended: what was made, where, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster import status
from hpc_isl.cluster.follow import progress_text
from hpc_isl.cluster.jobs import FAILED, MISTAKE, STOPPED
from hpc_isl.cluster.names import address
from hpc_isl.cluster.supervise import Ending
from hpc_isl.run import Run
from hpc_isl.site import runs_root

INTERRUPTED = 130


@dataclass(frozen=True)
class Caller:
    """Who asked: how to speak to them, where their runs lie, and how they type our commands."""

    say: Callable[[str], None]
    root: Path
    program: str = "python -m hpc_isl.submit"
    argv: tuple[str, ...] = ()

    def command(self, verb: str, run: Run, *options: str) -> str:
        """A line to type, such as `python -m hpc_isl.submit logs S12 -f`."""
        return " ".join([self.program, verb, address(run, runs_root()), *options])

    @property
    def ui(self) -> str:
        """The line that opens MLflow on these runs."""
        elsewhere = [] if self.root == runs_root() else ["--root", shlex.quote(str(self.root))]
        return " ".join([self.program, "ui", *elsewhere])


def done(run: Run, caller: Caller) -> int:
    """The figures of a finished run, what it made and what to do next."""
    summary = run.summary() or {}
    caller.say(f"{run.stage} {run.name!r} is done, after {status.took(run)}")
    for line in [*_columns(status.main_figures(summary)), *_columns(_paths(summary.get("made", {})))]:
        caller.say(f"  {line}")
    caller.say(f"  run folder  {run.folder}")
    following = summary.get("next") or [caller.ui]
    caller.say("next: " + "\n      ".join(map(str, following)))
    return 0


def _paths(made: Any) -> dict[str, str]:
    return {str(label): str(path) for label, path in made.items()} if isinstance(made, dict) else {}


def _columns(rows: dict[str, str]) -> Iterator[str]:
    width = max(map(len, rows), default=0)
    return (f"{name:<{width}}  {value}" for name, value in rows.items())


def ended(run: Run, ending: Ending, caller: Caller) -> int:
    """How a local run ended, in a few lines; the exit code."""
    if run.summary() is not None:
        return done(run, caller)
    if ending.crashed is not None and ending.codes[ending.crashed] != STOPPED:
        return _crashed(run, ending, ending.crashed, caller)
    return _stopped(run, ending, caller)


def _crashed(run: Run, ending: Ending, rank: int, caller: Caller) -> int:
    records = {record["rank"]: record for record in status.ranks(run)}
    record = records.get(rank, {})
    if record.get("outcome") == "mistake":
        caller.say(str(record["message"]))
        caller.say(f"{run.stage} {run.name!r} ended. Once that is right: {caller.command('resume', run)}")
        return MISTAKE
    log = run.attempts / str(run.attempt_numbers()[-1]) / f"rank-{rank}.log"
    why = record.get("message") or _code(ending.codes[rank])
    caller.say(f"{run.stage} {run.name!r} failed in rank {rank} of {len(ending.codes)}: {why}")
    caller.say(f"  traceback   {log}")
    caller.say(f"  run folder  {run.folder}")
    caller.say(f"next: {caller.command('resume', run)}")
    return FAILED


def _code(code: int) -> str:
    if code == -9:
        return "it was killed (SIGKILL); often the machine was out of memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code} before it could report"


def _stopped(run: Run, ending: Ending, caller: Caller) -> int:
    progress = (status.ranks(run) or [{}])[0].get("progress")
    at = f" at {progress_text(progress)}" if progress else ""
    how = "was killed" if ending.killed else "stopped"
    caller.say(f"{run.stage} {run.name!r} {how}{at}")
    caller.say(f"  run folder  {run.folder}")
    caller.say(f"next: {caller.command('resume', run)}")
    return INTERRUPTED if ending.interrupted else STOPPED


def queued(run: Run, job: str, caller: Caller) -> None:
    """What was handed to Slurm, and how to follow it."""
    caller.say(f"submitted as Slurm job {job}")
    caller.say(f"  run folder  {run.folder}")
    commands = [
        caller.command("logs", run, "-f"),
        caller.command("status", run),
        caller.command("cancel", run),
    ]
    caller.say("next: " + "\n      ".join(commands))


def waited(run: Run, caller: Caller) -> int:
    """How a run that was waited for has ended; the exit code."""
    found = status.state(run)
    if found.word == "done":
        return done(run, caller)
    for line in status.failure_text(run):
        caller.say(line)
    caller.say(f"{run.stage} {run.name!r} is {found.word}" + (f": {found.detail}" if found.detail else ""))
    caller.say(f"next: {caller.command('resume', run)}")
    if found.word in ("stopped", "cancelled"):
        return STOPPED
    mistake = (status.first_failure(status.ranks(run)) or {}).get("outcome") == "mistake"
    return MISTAKE if mistake else FAILED
