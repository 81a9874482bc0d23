"""The state of runs, from the records of their ranks; the queue or the process list tells which live."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from hpc_isl.cluster.run_folder import submissions
from hpc_isl.cluster.run_folder.submissions import NoAnswer, Submission, by_cluster, job_states, watcher
from hpc_isl.cluster.slurm import commands
from hpc_isl.cluster.slurm.commands import QueuedJob
from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json, write_atomic
from hpc_isl.run import Run

FRESH_S = 60.0  # a younger heartbeat is that of a living rank, where nothing else can be asked
TOO_SHORT = "stopped at the time limit without a new "  # how the reason begins, where more time would help
REFUSAL = "requeue.txt"  # in the attempt's folder: why the job was not put back into the queue
DIED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<rank>\d+)\S*: (?P<how>.+)")


def ranks(run: Run, number: int | None = None) -> list[dict[str, Any]]:
    """Returns the records of an attempt's ranks (default: of the newest attempt), by rank."""
    numbers = run.attempt_numbers() if number is None else [number]
    if not numbers:
        return []
    folder = run.attempts / str(numbers[-1])
    with suppress(FileNotFoundError):
        names = (
            entry for entry in os.listdir(folder) if entry.startswith("rank-") and entry.endswith(".json")
        )
        records = (record for name in names if (record := read_json(folder / name)))
        return sorted(records, key=lambda record: int(record["rank"]))
    return []


def first_failure(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the record of the rank that failed first: the others often only lost their partner."""
    failures = [record for record in records if record.get("outcome") in ("failed", "mistake")]
    return min(failures, key=lambda record: str(record["exit"]), default=None)


def all_stopped(records: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether every rank saved and stopped."""
    return bool(records) and all(record.get("outcome") == "stopped" for record in records)


def beating(records: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a rank has a fresh heartbeat and no exit record."""
    return any(age_s(str(record["heartbeat"])) < FRESH_S for record in records if not record.get("exit"))


def last_seen(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns `last seen 2026-01-31T12:00:00 UTC`, by the newest heartbeat."""
    newest = max((str(record.get("heartbeat")) for record in records), default=None)
    return f"last seen {newest[:19]} UTC" if newest else "it never reported"


def why_stopped(run: Run, records: Sequence[Mapping[str, Any]]) -> str:
    """Returns why the job was not started again, as rank 0 noted it, or the shell that was asked to do it."""
    refusal = run.attempts / str(run.attempt_numbers()[-1]) / REFUSAL
    reason = refusal.read_text(errors="replace").strip() if refusal.is_file() else ""
    return f"not started again: {first_line(reason)}" if reason else str(records[0].get("reason", ""))


def job_output(run: Run, lines: int) -> list[str]:
    """Returns the last lines that the newest job of the run wrote itself, outside of the ranks' logs."""
    submission = submissions.newest(run)
    if not submission.get("job"):
        return []
    # An element of an array may have been resumed alone, with sbatch files of its own.
    folders = dict.fromkeys([run.sbatch, (run.array or run).sbatch])
    paths = [folder / f"{submission['job']}_0_log.{kind}" for folder in folders for kind in ("out", "err")]
    paths.append(run.attempts / str(run.attempt_numbers()[-1]) / "srun.log")
    tails = [path.read_text(errors="replace").splitlines()[-lines:] for path in paths if path.is_file()]
    return [line for tail in tails for line in tail]


def age_s(moment: str) -> float:
    """Returns the seconds since a moment that `files.now` gave."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def first_line(text: str) -> str:
    """Returns a message in one line: a heading such as `3 problems:` with the first line below it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    end = next((index for index, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1])


def span(run: Run) -> tuple[int, int] | None:
    """Returns when work on the run, or on the elements of an array, began and ended, in ms since 1970.

    The waits before the first attempt and after the last one belong to neither. A run that is done ended
    with its done record; one that was killed, with the last sign of life of its ranks. None: it never began.
    """
    spans: list[tuple[str, str]] = []
    for member in run.elements() or [run]:
        done_time = (member.summary() or {}).get("time")
        records = [record for number in member.attempt_numbers() for record in ranks(member, number)]
        spans += [
            (record["start"], done_time or record.get("exit") or record["heartbeat"])
            for record in records
            if "start" in record
        ]
        if done_time and not records:
            spans.append((done_time, done_time))
    if not spans:
        return None
    starts, ends = zip(*spans, strict=True)
    start, end = (int(datetime.fromisoformat(time).timestamp() * 1000) for time in (min(starts), max(ends)))
    return start, max(start, end)


# ---------------------------------------------------------------- the state

TORN = "its submission was cut off, and it will fail: cancel it, and resume"


class RunState(StrEnum):
    """The state of a run. An array has the first of these that one of its elements has."""

    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    LOST = "lost"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    NEW = "new"
    DONE = "done"


_SLURM_STATES = {
    RunState.QUEUED: "PENDING CONFIGURING REQUEUED REQUEUE_HOLD REQUEUE_FED SUSPENDED SPECIAL_EXIT "
    "RESV_DEL_HOLD",
    RunState.RUNNING: "RUNNING COMPLETING STAGE_OUT SIGNALING STOPPED RESIZING",
    RunState.CANCELLED: "CANCELLED REVOKED",
    RunState.FAILED: "FAILED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE PREEMPTED",
}
STATE_OF_JOB = {job_state: state for state, names in _SLURM_STATES.items() for job_state in names.split()}
# What slurmstepd and srun write into a job's own output at its end: read where Slurm has forgotten the job.
CAUSES = {
    "out_of_memory": re.compile(r"oom[-_]kill|out of memory|OUT_OF_MEMORY", re.IGNORECASE),
    "timeout": re.compile(r"DUE TO TIME LIMIT"),
    "node_fail": re.compile(r"DUE TO NODE FAILURE"),
}


@dataclass(frozen=True)
class RunStatus:
    """The state of a run and what is known about it.

    Attributes:
        detail: why it is in this state.
        node: where it runs, in Slurm's short form.
        left: time until Slurm ends it.
        cause: Slurm's word for a failure, or for the lack of time in which a run stopped: timeout,
            out_of_memory, node_fail …
        unheard: why it is not known whether Slurm has it; empty: it is known.
    """

    state: RunState
    detail: str = ""
    node: str = ""
    left: str = ""
    cause: str = ""
    unheard: str = ""

    @property
    def alive(self) -> bool:
        """Whether it continues by itself, as far as can be known: what is alive is not started again."""
        return bool(self.unheard) or self.state in (RunState.RUNNING, RunState.QUEUED)


def status_of(run: Run) -> RunStatus:
    """Returns the status of one run."""
    return statuses([run])[run]


def statuses(runs: Sequence[Run]) -> dict[Run, RunStatus]:
    """Returns the status of each run; a cluster's queue is asked once for all of them."""
    members = {run: run.elements() for run in runs}
    single_runs = list(dict.fromkeys(member for run in runs for member in (members[run] or [run])))
    # Slurm is not asked about a run that has its done record: what it says would change nothing.
    newest_submissions = submissions.newest_of(run for run in single_runs if run.summary() is None)
    answers = job_states(newest_submissions)
    by_run = {run: _status(run, newest_submissions.get(run, {}), answers.get(run)) for run in single_runs}
    return {
        run: _array_status(run, [by_run[member] for member in members[run]]) if members[run] else by_run[run]
        for run in runs
    }


def _array_status(run: Run, members: Sequence[RunStatus]) -> RunStatus:
    """Returns e.g. `running`, with `3 done, 2 running, 1 failed`; a chain may wait for a person."""
    counts = Counter(member.state for member in members)
    state = next((state for state in RunState if counts[state]), RunState.NEW)
    unheard = next((member.unheard for member in members if member.unheard), "")
    detail = ", ".join(f"{counts[state]} {state}" for state in reversed(RunState) if counts[state])
    open_stop = read_json(run.folder / "waits.json")
    if open_stop and state == RunState.NEW:
        return RunStatus(RunState.STOPPED, f"{detail}; waits for a person: {open_stop['stop']}")
    return RunStatus(state, "; ".join(filter(None, [detail, unheard])), unheard=unheard)


def _status(run: Run, submission: Submission, answer: QueuedJob | NoAnswer | None) -> RunStatus:
    if run.summary() is not None:
        return RunStatus(RunState.DONE)
    if not run.attempt_numbers():
        return RunStatus(RunState.NEW, "not started")
    records, job_status = ranks(run), _status_by_slurm(answer)
    if submission.get("ended") and (job_status is None or job_status.alive):
        answer = job_status = None  # in an allocation, whose job continues without the run
    if job_status is not None and job_status.alive:
        return replace(job_status, detail=TORN) if submission.get("torn") else job_status
    if isinstance(answer, NoAnswer):
        return _unheard_status(run, records, answer.reason)
    if submission.get("job") and _is_done_after_all(run):
        return RunStatus(RunState.DONE)
    if failure := first_failure(records):
        return _failed_status(run, failure, job_status)
    if answer is None and (run_status := _status_without_queue(run, submission, records)):
        return run_status
    return _ended_status(run, records, job_status)


def _is_done_after_all(run: Run) -> bool:
    """Returns whether a run has its done record, asked once more after Slurm has said that its job ended."""
    # A network disk remembers for up to a minute that a file was missing, unless its folder is listed.
    for folder in (run.folder, run.done):
        with suppress(OSError):
            os.listdir(folder)
    return run.summary() is not None


def _status_without_queue(
    run: Run, submission: Submission, records: Sequence[Mapping[str, Any]]
) -> RunStatus | None:
    """Returns the status of a run of which no queue knows; None: it has begun, and nothing computes it."""
    if submission.get("job") and _status_by_job_output(run) is not None:
        return None
    if _lives(submission, records):
        if records:
            return RunStatus(RunState.RUNNING, "", records[0].get("node", ""))
        if submission.get("executor") == "slurm":
            return RunStatus(RunState.QUEUED, "is being submitted")
        return RunStatus(RunState.QUEUED, "waits for its turn") if run.array else RunStatus(RunState.RUNNING)
    never_began = submission.get("ended") and not submission.get("job") and not records
    if never_began and not run.cancelled.exists():
        return RunStatus(RunState.STOPPED, "before its turn came")
    return None


def _status_by_slurm(answer: QueuedJob | NoAnswer | None) -> RunStatus | None:
    """Translates what Slurm answered; None: it does not tell what became of the run."""
    if not isinstance(answer, QueuedJob) or answer.state not in STATE_OF_JOB:
        return None
    state, name = STATE_OF_JOB[answer.state], answer.state.lower()
    if state == RunState.FAILED:
        return RunStatus(state, name, answer.node, cause=name)
    detail = {"PENDING": answer.reason, "RUNNING": ""}.get(answer.state, name)
    if answer.reason == "DependencyNeverSatisfied":
        detail = "the run before it did not end well"
    return RunStatus(state, detail, answer.node, answer.left)


def _unheard_status(run: Run, records: Sequence[Mapping[str, Any]], reason: str) -> RunStatus:
    """Returns the status of a run whose job Slurm does not report.

    Unless it was cancelled, Slurm may have the job, and start it again whatever the folder tells.
    """
    is_beating, failure = beating(records), first_failure(records)
    if run.cancelled.exists() and not is_beating:
        return RunStatus(RunState.CANCELLED, reason)
    if failure:
        run_status = _failed_status(run, failure, None)
    elif all_stopped(records):
        run_status = RunStatus(RunState.STOPPED, why_stopped(run, records))
    elif records:
        heartbeat_text = "" if is_beating else last_seen(records)
        run_status = RunStatus(RunState.RUNNING, heartbeat_text, str(records[0].get("node", "")))
    else:
        run_status = RunStatus(RunState.QUEUED)
    return replace(run_status, detail="; ".join(filter(None, [reason, run_status.detail])), unheard=reason)


def _failed_status(run: Run, failure: Mapping[str, Any], job_status: RunStatus | None) -> RunStatus:
    cause = _cause(_status_by_job_output(run), job_status)
    message = f"rank {failure['rank']}: {first_line(failure['message'])}"
    detail = f"{cause}: {message}" if cause else message
    return RunStatus(RunState.FAILED, detail, failure.get("node", ""), cause=cause)


def _cause(job_report: RunStatus | None, job_status: RunStatus | None) -> str:
    """Returns Slurm's word where it says more than that the job failed, else that of the job's own output."""
    if job_status is not None and job_status.cause not in ("", "failed"):
        return job_status.cause
    return job_report.cause if job_report else ""


def _ended_status(run: Run, records: Sequence[dict[str, Any]], job_status: RunStatus | None) -> RunStatus:
    """Returns the status of a run that is not done, that nothing computes, and whose ranks did not fail."""
    if run.cancelled.exists() or (job_status and job_status.state == RunState.CANCELLED):
        detail = job_status.detail if job_status and job_status.detail != "cancelled" else ""
        return RunStatus(RunState.CANCELLED, detail)
    if all_stopped(records):
        reason = why_stopped(run, records)
        return RunStatus(RunState.STOPPED, reason, cause="timeout" if reason.startswith(TOO_SHORT) else "")
    job_report = _status_by_job_output(run)
    if job_status is not None:
        detail = job_report.detail if job_report and job_status.detail == "failed" else job_status.detail
        return RunStatus(job_status.state, detail, job_status.node, cause=_cause(job_report, job_status))
    return job_report or RunStatus(RunState.LOST, last_seen(records))


def _status_by_job_output(run: Run) -> RunStatus | None:
    """Returns what the job's own output says about its end: a rank that was killed leaves no record."""
    text = "\n".join(job_output(run, 200))
    death = DIED.search(text)
    cause = next((cause for cause, pattern in CAUSES.items() if pattern.search(text)), "")
    if not (death or cause):
        return None
    detail = f"rank {death['rank']} on {death['node']}: {death['how']}" if death else ""
    return RunStatus(RunState.FAILED, ": ".join(filter(None, [cause, detail])), cause=cause)


def _lives(submission: Submission, records: Sequence[Mapping[str, Any]]) -> bool:
    if submission.get("ended"):
        return False  # the process that watched the ranks has seen them end, even if they left no record
    if submission.get("pid") and not submission.get("job") and submission.get("host") == socket.gethostname():
        return watcher(submission) is not None
    return beating(records)


# ---------------------------------------------------------------- cancel


def cancel(run: Run) -> str:
    """Tells the run, or the living elements of an array, to save and stop; returns a line for the user.

    Raises:
        UserError: the run is not alive, runs on another machine, or is computed together with its array.
    """
    living = [member for member, status in statuses(run.elements() or [run]).items() if status.alive]
    if not living:
        raise UserError(f"{run.label!r} is not running: it is {status_of(run).state}")
    newest = submissions.newest_of(living)
    for member, submission in newest.items():
        if submission["executor"] == "local" and run.array:
            raise UserError(
                f"{member.label!r} computes in one process with its array; cancel {run.array.name}"
            )
        if submission["executor"] == "local" and submission["host"] != socket.gethostname():
            raise UserError(f"{run.label!r} runs on {submission['host']}; cancel it there")
    for member in living:
        write_atomic(member.cancelled, now() + "\n")
    jobs = {cluster: list(names.values()) for cluster, names in by_cluster(newest).items()}
    for cluster, names in jobs.items():
        try:
            commands.cancel(names, *cluster)
        except UserError as error:
            raise UserError(
                f"{error}\n{run.label!r} is marked as cancelled all the same: a job of it that starts later "
                "leaves at once"
            ) from None
    watchers = {process.pid: process for sent in newest.values() if (process := watcher(sent))}
    for process in watchers.values():
        process.send_signal(signal.SIGTERM)
    targets = [commands.jobs_text(names) for names in jobs.values()]
    targets += [f"process {pid}" for pid in watchers]
    verb = "is" if sum(map(len, jobs.values())) + len(watchers) <= 1 else "are"
    return f"{', '.join(targets) or run.label} {verb} told to save and stop"
