"""The state of runs, read from their folders; the queue or the process list tells which still live."""

from __future__ import annotations

import re
import signal
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from hpc_isl.cluster.run_folder import records as rank_records
from hpc_isl.cluster.run_folder import submissions
from hpc_isl.cluster.run_folder.records import DIED, first_failure, first_line, ranks
from hpc_isl.cluster.run_folder.submissions import NoAnswer, Submission, by_cluster, job_states, watcher
from hpc_isl.cluster.slurm import queue
from hpc_isl.cluster.slurm.queue import QueuedJob
from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json, write_atomic
from hpc_isl.run import Run

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
        cause: Slurm's word for a failure: timeout, out_of_memory, node_fail …
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
    single = list(dict.fromkeys(member for run in runs for member in (members[run] or [run])))
    newest = submissions.newest_of(run for run in single if run.summary() is None)
    answers = job_states(newest)
    by_run = {run: _status(run, newest.get(run, {}), answers.get(run)) for run in single}
    return {
        run: _of_array(run, [by_run[member] for member in members[run]]) if members[run] else by_run[run]
        for run in runs
    }


def _of_array(run: Run, members: Sequence[RunStatus]) -> RunStatus:
    """Returns e.g. `running`, with `3 done, 2 running, 1 failed`; a chain may wait for a person."""
    counts = Counter(member.state for member in members)
    state = next((state for state in RunState if counts[state]), RunState.NEW)
    unheard = next((member.unheard for member in members if member.unheard), "")
    detail = ", ".join(f"{counts[state]} {state}" for state in reversed(RunState) if counts[state])
    waits = read_json(run.folder / "waits.json")
    if waits and state == RunState.NEW:
        return RunStatus(RunState.STOPPED, f"{detail}; waits for a person: {waits['stop']}")
    return RunStatus(state, "; ".join(filter(None, [detail, unheard])), unheard=unheard)


def _status(run: Run, submission: Submission, answer: QueuedJob | NoAnswer | None) -> RunStatus:
    if run.summary() is not None:
        return RunStatus(RunState.DONE)
    if not run.attempt_numbers():
        return RunStatus(RunState.NEW, "not started")
    records, queued = ranks(run), _of_job(answer)
    if queued is not None and queued.alive:
        return replace(queued, detail=TORN) if submission.get("torn") else queued
    if isinstance(answer, NoAnswer):
        return _unheard(run, records, answer.why)
    if failure := first_failure(records):
        return _failed(run, failure, queued)
    forgotten = answer is None and submission.get("job")
    reported = _reported_by_job(run) if forgotten else None
    if reported is None and answer is None and _lives(submission, records):
        if records:
            return RunStatus(RunState.RUNNING, "", records[0].get("node", ""))
        if submission.get("executor") == "slurm":
            return RunStatus(RunState.QUEUED, "is being submitted")
        return RunStatus(RunState.QUEUED, "waits for its turn") if run.array else RunStatus(RunState.RUNNING)
    if submission.get("ended") and not records and not run.cancelled.exists():
        return RunStatus(RunState.STOPPED, "before its turn came")
    return _ended(run, records, queued)


def _of_job(answer: QueuedJob | NoAnswer | None) -> RunStatus | None:
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


def _unheard(run: Run, records: Sequence[Mapping[str, Any]], why: str) -> RunStatus:
    """Returns the status of a run whose job Slurm does not report.

    Unless it was cancelled, Slurm may have the job, and start it again whatever the folder tells.
    """
    beating, failure = rank_records.beating(records), first_failure(records)
    if run.cancelled.exists() and not beating:
        return RunStatus(RunState.CANCELLED, why)
    if failure:
        status = _failed(run, failure, None)
    elif rank_records.all_stopped(records):
        status = RunStatus(RunState.STOPPED, rank_records.why_stopped(run, records))
    elif records:
        seen = "" if beating else rank_records.last_seen(records)
        status = RunStatus(RunState.RUNNING, seen, str(records[0].get("node", "")))
    else:
        status = RunStatus(RunState.QUEUED)
    return replace(status, detail="; ".join(filter(None, [why, status.detail])), unheard=why)


def _failed(run: Run, failure: Mapping[str, Any], queued: RunStatus | None) -> RunStatus:
    cause = _cause(_reported_by_job(run), queued)
    message = f"rank {failure['rank']}: {first_line(failure['message'])}"
    detail = f"{cause}: {message}" if cause else message
    return RunStatus(RunState.FAILED, detail, failure.get("node", ""), cause=cause)


def _cause(reported: RunStatus | None, queued: RunStatus | None) -> str:
    """Returns Slurm's word where it says more than that the job failed, else that of the job's own output."""
    if queued is not None and queued.cause not in ("", "failed"):
        return queued.cause
    return reported.cause if reported else ""


def _ended(run: Run, records: Sequence[dict[str, Any]], queued: RunStatus | None) -> RunStatus:
    """Returns the status of a run that is not done, that nothing computes, and whose ranks did not fail."""
    if run.cancelled.exists() or (queued and queued.state == RunState.CANCELLED):
        detail = queued.detail if queued and queued.detail != "cancelled" else ""
        return RunStatus(RunState.CANCELLED, detail)
    if rank_records.all_stopped(records):
        return RunStatus(RunState.STOPPED, rank_records.why_stopped(run, records))
    reported = _reported_by_job(run)
    if queued is not None:
        detail = reported.detail if reported and queued.detail == "failed" else queued.detail
        return RunStatus(queued.state, detail, queued.node, cause=_cause(reported, queued))
    return reported or RunStatus(RunState.LOST, rank_records.last_seen(records))


def _reported_by_job(run: Run) -> RunStatus | None:
    """Returns what the job's own output says about its end: a rank that was killed leaves no record."""
    text = "\n".join(rank_records.job_output(run, 200))
    died = DIED.search(text)
    cause = next((cause for cause, pattern in CAUSES.items() if pattern.search(text)), "")
    if not (died or cause):
        return None
    detail = f"rank {died['rank']} on {died['node']}: {died['how']}" if died else ""
    return RunStatus(RunState.FAILED, ": ".join(filter(None, [cause, detail])), cause=cause)


def _lives(submission: Submission, records: Sequence[Mapping[str, Any]]) -> bool:
    if submission.get("ended") and not submission.get("job"):
        return False  # the process that watched the ranks has seen them end, even if they left no record
    if submission.get("pid") and not submission.get("job") and submission.get("host") == socket.gethostname():
        return watcher(submission) is not None
    return rank_records.beating(records)


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
            queue.cancel(names, *cluster)
        except UserError as error:
            raise UserError(
                f"{error}\n{run.label!r} is marked as cancelled all the same: a job of it that starts later "
                "leaves at once"
            ) from None
    watchers = {process.pid: process for sent in newest.values() if (process := watcher(sent))}
    for process in watchers.values():
        process.send_signal(signal.SIGTERM)
    targets = [f"job {job}" for names in jobs.values() for job in names]
    targets += [f"process {pid}" for pid in watchers]
    return f"{', '.join(targets) or run.label} is told to save and stop"
