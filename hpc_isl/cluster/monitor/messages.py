"""What the user is told when a run is submitted or has ended: what was made, where, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster.monitor import status_table
from hpc_isl.cluster.monitor.progress_view import progress_text
from hpc_isl.cluster.run_folder import status
from hpc_isl.cluster.run_folder.job import FAILED, MISTAKE, STOPPED, Ending
from hpc_isl.cluster.run_folder.names import address
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.run import Run
from hpc_isl.site import folders_of_runs, runs_root
from hpc_isl.stages.stage_table import stage_named

INTERRUPTED = 130


@dataclass(frozen=True)
class Console:
    """Who asked: how to speak to them, where their runs lie, and how they type our commands."""

    log: Callable[[str], None]
    root: Path
    program: str = "python -m hpc_isl.submit"
    argv: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where a run that they name may lie."""
        return tuple(dict.fromkeys((self.root, *folders_of_runs())))

    def command(self, verb: str, run: Run, *options: str) -> str:
        """A line to type, such as `python -m hpc_isl.submit logs S12 -f`."""
        return " ".join([self.program, verb, address(run, *folders_of_runs()), *options])

    @property
    def ui(self) -> str:
        """The line that opens MLflow on these runs."""
        elsewhere = [] if self.root == runs_root() else ["--root", shlex.quote(str(self.root))]
        return " ".join([self.program, "ui", *elsewhere])


def done(run: Run, console: Console) -> int:
    """The figures of a finished run, what it made and what to do next."""
    if run.elements():
        return _done_elements(run, console)
    summary = run.summary() or {}
    console.log(f"{run.stage} {run.label!r} is done, after {status_table.took(run)}")
    for line in [*_columns(status_table.main_figures(summary)), *_columns(_paths(summary.get("made", {})))]:
        console.log(f"  {line}")
    console.log(f"  run folder  {run.folder}")
    _say_next(summary.get("next"), run, console)
    return 0


def _say_next(lines: Any, run: Run, console: Console) -> None:
    """What to type next: the stage does not know how its run is called here, nor how we are."""
    typed = [_typed(str(line), run, console) for line in lines or []] or [console.ui]
    console.log("next: " + "\n      ".join(typed))


def _typed(line: str, run: Run, console: Console) -> str:
    words = line.removeprefix("python -m hpc_isl.submit ")  # of a run of an earlier version
    if "{run}" in words:
        words = words.replace("{run}", address(run, *folders_of_runs()))
    return f"{console.program} {words}"


def _done_elements(run: Run, console: Console) -> int:
    for line in status_table.table([run], elements=True):
        console.log(line)
    console.log(f"{run.stage} {run.name!r} is done")
    console.log(f"  run folder  {run.folder}")
    following = getattr(stage_named(run.elements()[0].stage).load(), "after_sweep", None)
    _say_next(following(run) if following and run.stage == "sweep" else None, run, console)
    return 0


def _paths(made: Any) -> dict[str, str]:
    return {str(label): str(path) for label, path in made.items()} if isinstance(made, dict) else {}


def _columns(rows: dict[str, str]) -> Iterator[str]:
    width = max(map(len, rows), default=0)
    return (f"{name:<{width}}  {value}" for name, value in rows.items())


def ended(run: Run, ending: Ending, console: Console) -> int:
    """How a local run ended, in a few lines; the exit code."""
    if run.summary() is not None:
        return done(run, console)
    if ending.crashed is not None and ending.codes[ending.crashed] != STOPPED:
        return _crashed(run, ending, ending.crashed, console)
    return _stopped(run, ending, console)


def _crashed(run: Run, ending: Ending, rank: int, console: Console) -> int:
    records = {record["rank"]: record for record in status.ranks(run)}
    record = records.get(rank, {})
    if record.get("outcome") == "mistake":
        console.log(str(record["message"]))
        console.log(f"{run.stage} {run.name!r} ended. Once that is right: {console.command('resume', run)}")
        return MISTAKE
    log_file = run.attempts / str(run.attempt_numbers()[-1]) / f"rank-{rank}.log"
    if not log_file.exists():  # in an allocation, where srun could not start it
        log_file = log_file.with_name("srun.log")
    why = record.get("message") or _code(ending.codes[rank])
    console.log(f"{run.stage} {run.name!r} failed in rank {rank} of {len(ending.codes)}: {why}")
    console.log(f"  traceback   {log_file}")
    console.log(f"  run folder  {run.folder}")
    console.log(f"next: {console.command('resume', run)}")
    return FAILED


def _code(code: int) -> str:
    if code == -9:
        return "it was killed (SIGKILL); often the machine was out of memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code} before it could report"


def _stopped(run: Run, ending: Ending, console: Console) -> int:
    progress = (status.ranks(run) or [{}])[0].get("progress")
    at = f" at {progress_text(progress)}" if progress else ""
    how = "was killed" if ending.killed else "stopped"
    console.log(f"{run.stage} {run.name!r} {how}{at}")
    console.log(f"  run folder  {run.folder}")
    console.log(f"next: {console.command('resume', run)}")
    return INTERRUPTED if ending.interrupted else STOPPED


def queued(run: Run, jobs: Sequence[str], console: Console) -> None:
    """What was handed to Slurm, and how to follow it."""
    families = sorted({job.split("_")[0] for job in jobs})
    what = f"Slurm job {families[0]}" if len(families) == 1 else f"Slurm jobs {', '.join(families)}"
    console.log(f"submitted as {what}" + (f", {len(jobs)} elements" if run.elements() else ""))
    console.log(f"  run folder  {run.folder}")
    follow = [] if run.elements() else [console.command("logs", run, "-f")]
    commands = [*follow, console.command("status", run), console.command("cancel", run)]
    console.log("next: " + "\n      ".join(commands))


def waited(run: Run, console: Console) -> int:
    """How a run that was waited for has ended; the exit code."""
    if run.elements():
        return _ended_elements(run, console)
    found = status.status_of(run)
    if found.state == RunState.DONE:
        return done(run, console)
    for line in status_table.failure_text(run):
        console.log(line)
    console.log(f"{run.stage} {run.label!r} is {found.state}" + (f": {found.detail}" if found.detail else ""))
    console.log(f"next: {console.command('resume', run)}")
    if found.state in (RunState.STOPPED, RunState.CANCELLED):
        return STOPPED
    mistake = (status.first_failure(status.ranks(run)) or {}).get("outcome") == "mistake"
    return MISTAKE if mistake else FAILED


# ---------------------------------------------------------------- chains and arrays


def chained(run: Run, console: Console) -> int:
    """How far a chain is that no run of failed."""
    for line in status_table.table([run], elements=True):
        console.log(line)
    return 0


def ended_array(run: Run, interrupted: bool, console: Console) -> int:
    """How an array that was computed here has ended; the exit code."""
    code = _ended_elements(run, console)
    return INTERRUPTED if interrupted and code != 0 else code


def _ended_elements(run: Run, console: Console) -> int:
    found = status.statuses(run.elements())
    if all(each.state == RunState.DONE for each in found.values()):
        return done(run, console)
    bad = {one: each for one, each in found.items() if each.state in (RunState.FAILED, RunState.LOST)}
    for one, each in list(bad.items())[:5]:
        console.log(f"{one.label} {each.state}: {each.detail}")
    console.log(f"{run.stage} {run.name!r}: {status.status_of(run).detail}")
    console.log(f"  run folder  {run.folder}")
    first = [console.command("logs", next(iter(bad)))] if bad else []
    console.log("next: " + "\n      ".join([*first, console.command("retry" if bad else "resume", run)]))
    return FAILED if bad else STOPPED
