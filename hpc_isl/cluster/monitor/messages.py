"""Messages about a run that is submitted or has ended: what was made, where, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster.monitor import status_table
from hpc_isl.cluster.monitor.status_table import progress_text
from hpc_isl.cluster.run_folder import status
from hpc_isl.cluster.run_folder.folders import address
from hpc_isl.cluster.run_folder.job import FAILED, MISTAKE, STOPPED, Ending
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.run import Run
from hpc_isl.site import folders_of_runs, runs_root
from hpc_isl.stages.stage_table import stage_named

INTERRUPTED = 130


@dataclass(frozen=True)
class Console:
    """How to print to the user, where their runs lie, and how they type our commands."""

    log: Callable[[str], None]
    root: Path
    program: str = "python -m hpc_isl.submit"
    argv: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders in which a run that they name may lie."""
        return tuple(dict.fromkeys((self.root, *folders_of_runs())))

    def command(self, verb: str, run: Run, *options: str) -> str:
        """Returns a line to type, such as `python -m hpc_isl.submit logs S12 -f`."""
        return " ".join([self.program, verb, address(run, *folders_of_runs()), *options])

    @property
    def ui(self) -> str:
        """The line that opens MLflow on these runs."""
        root_option = [] if self.root == runs_root() else ["--root", shlex.quote(str(self.root))]
        return " ".join([self.program, "ui", *root_option])

    def next_lines(self, lines: Sequence[str]) -> None:
        """Prints the commands that may be typed next."""
        self.log("next: " + "\n      ".join(lines))


def done(run: Run, console: Console) -> int:
    """Prints the figures of a finished run, what it made and what to do next; returns the exit code."""
    if run.elements():
        for line in status_table.table([run], elements=True):
            console.log(line)
        console.log(f"{run.stage} {run.name!r} is done")
        console.log(f"  run folder  {run.folder}")
        after_sweep = getattr(stage_named(run.elements()[0].stage).load(), "after_sweep", None)
        _next_of_stage(after_sweep(run) if after_sweep and run.stage == "sweep" else None, run, console)
        return 0
    summary = run.summary() or {}
    console.log(f"{run.stage} {run.label!r} is done, after {status_table.took(run)}")
    outputs = summary.get("made", {})
    paths = {str(label): str(path) for label, path in outputs.items()} if isinstance(outputs, dict) else {}
    for line in [*_columns(status_table.main_figures(summary)), *_columns(paths)]:
        console.log(f"  {line}")
    console.log(f"  run folder  {run.folder}")
    _next_of_stage(summary.get("next"), run, console)
    return 0


def _next_of_stage(lines: Any, run: Run, console: Console) -> None:
    """Prints what the stage proposes to type next; it knows neither the run's name here nor our program's."""
    commands = []
    for line in lines or []:
        words = str(line).removeprefix("python -m hpc_isl.submit ")  # of a run of an earlier version
        if "{run}" in words:
            words = words.replace("{run}", address(run, *folders_of_runs()))
        commands.append(f"{console.program} {words}")
    console.next_lines(commands or [console.ui])


def _columns(rows: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, rows), default=0)
    return (f"{name:<{width}}  {value}" for name, value in rows.items())


def ended(run: Run, ending: Ending, console: Console) -> int:
    """Prints how a local run ended, in a few lines; returns the exit code."""
    if run.summary() is not None:
        return done(run, console)
    if ending.crashed is not None and ending.codes[ending.crashed] != STOPPED:
        return _report_crash(run, ending, ending.crashed, console)
    progress = (status.ranks(run) or [{}])[0].get("progress")
    position = f" at {progress_text(progress)}" if progress else ""
    console.log(f"{run.stage} {run.name!r} {'was killed' if ending.killed else 'stopped'}{position}")
    console.log(f"  run folder  {run.folder}")
    console.next_lines([console.command("resume", run)])
    return INTERRUPTED if ending.interrupted else STOPPED


def _report_crash(run: Run, ending: Ending, rank: int, console: Console) -> int:
    record = {record["rank"]: record for record in status.ranks(run)}.get(rank, {})
    if record.get("outcome") == "mistake":
        console.log(str(record["message"]))
        console.log(f"{run.stage} {run.name!r} ended. Once that is right: {console.command('resume', run)}")
        return MISTAKE
    log_file = run.attempts / str(run.attempt_numbers()[-1]) / f"rank-{rank}.log"
    if not log_file.exists():  # in an allocation, where srun could not start it
        log_file = log_file.with_name("srun.log")
    code = ending.codes[rank]
    ending_text = f"ended by signal {-code}" if code < 0 else f"ended with code {code} before it could report"
    if code == -9:
        ending_text = "it was killed (SIGKILL); often the machine was out of memory"
    reason = record.get("message") or ending_text
    console.log(f"{run.stage} {run.name!r} failed in rank {rank} of {len(ending.codes)}: {reason}")
    console.log(f"  traceback   {log_file}")
    console.log(f"  run folder  {run.folder}")
    console.next_lines([console.command("resume", run)])
    return FAILED


def queued(run: Run, jobs: Sequence[str], console: Console) -> None:
    """Prints what was submitted to Slurm, and how to follow it."""
    families = sorted({job.split("_")[0] for job in jobs})
    jobs_text = f"Slurm job {families[0]}" if len(families) == 1 else f"Slurm jobs {', '.join(families)}"
    console.log(f"submitted as {jobs_text}" + (f", {len(jobs)} elements" if run.elements() else ""))
    console.log(f"  run folder  {run.folder}")
    follow = [] if run.elements() else [console.command("logs", run, "-f")]
    console.next_lines([*follow, console.command("status", run), console.command("cancel", run)])


def waited(run: Run, console: Console) -> int:
    """Prints how a run that was waited for has ended; returns the exit code."""
    if run.elements():
        return _report_ended_array(run, console)
    run_status = status.status_of(run)
    if run_status.state == RunState.DONE:
        return done(run, console)
    for line in status_table.failure_text(run):
        console.log(line)
    detail = f": {run_status.detail}" if run_status.detail else ""
    console.log(f"{run.stage} {run.label!r} is {run_status.state}{detail}")
    console.next_lines([console.command("resume", run)])
    if run_status.state in (RunState.STOPPED, RunState.CANCELLED):
        return STOPPED
    failure = status.first_failure(status.ranks(run)) or {}
    return MISTAKE if failure.get("outcome") == "mistake" else FAILED


# ---------------------------------------------------------------- chains and arrays


def chained(run: Run, console: Console) -> int:
    """Prints how far a chain is of which no run failed; returns the exit code."""
    for line in status_table.table([run], elements=True):
        console.log(line)
    return 0


def ended_array(run: Run, interrupted: bool, console: Console) -> int:
    """Prints how an array that was computed here has ended; returns the exit code."""
    code = _report_ended_array(run, console)
    return INTERRUPTED if interrupted and code != 0 else code


def _report_ended_array(run: Run, console: Console) -> int:
    statuses = status.statuses(run.elements())
    if all(run_status.state == RunState.DONE for run_status in statuses.values()):
        return done(run, console)
    failures = {
        element: run_status
        for element, run_status in statuses.items()
        if run_status.state in (RunState.FAILED, RunState.LOST)
    }
    for member, run_status in list(failures.items())[:5]:
        console.log(f"{member.label} {run_status.state}: {run_status.detail}")
    console.log(f"{run.stage} {run.name!r}: {status.status_of(run).detail}")
    console.log(f"  run folder  {run.folder}")
    logs_command = [console.command("logs", next(iter(failures)))] if failures else []
    console.next_lines([*logs_command, console.command("retry" if failures else "resume", run)])
    return FAILED if failures else STOPPED
