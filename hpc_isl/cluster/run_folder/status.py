"""What has become of runs, read from their folders; the queue or the process list says who still lives."""

from __future__ import annotations

import re
import signal
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from hpc_isl.cluster.run_folder import submissions
from hpc_isl.cluster.run_folder.submissions import Silence, Submission, by_cluster, job_states, watcher
from hpc_isl.cluster.slurm import queue
from hpc_isl.cluster.slurm.commands import ClusterId
from hpc_isl.cluster.slurm.queue import Queued
from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json, write_atomic
from hpc_isl.run import Run

TORN = "its submission was cut off, and it will fail: cancel it, and resume"
REFUSAL = "requeue.txt"  # in the attempt's folder: why the job was not put back into the queue
FRESH_S = 60.0  # a heartbeat younger than this is a living rank, where nothing else can be asked


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
# How slurmstepd and srun tell, in a job's own output, what ended it: read where Slurm has forgotten the job.
TOLD = {
    "out_of_memory": re.compile(r"oom[-_]kill|out of memory|OUT_OF_MEMORY", re.IGNORECASE),
    "timeout": re.compile(r"DUE TO TIME LIMIT"),
    "node_fail": re.compile(r"DUE TO NODE FAILURE"),
}
DIED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<rank>\d+)\S*: (?P<how>.+)")


@dataclass(frozen=True)
class RunStatus:
    """What has become of a run.

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
        """Whether it goes on by itself, as far as can be known: what is alive is not started again."""
        return bool(self.unheard) or self.state in (RunState.RUNNING, RunState.QUEUED)


def status_of(run: Run) -> RunStatus:
    """What has become of the run."""
    return statuses([run])[run]


def statuses(runs: Sequence[Run]) -> dict[Run, RunStatus]:
    """What has become of each run; a cluster's queue is asked once for all of them."""
    members = {run: run.elements() for run in runs}
    single = list(dict.fromkeys(one for run in runs for one in (members[run] or [run])))
    asked = submissions.newest_of(run for run in single if run.summary() is None)
    said = job_states(asked)
    found = {run: _state(run, asked.get(run, {}), said.get(run)) for run in single}
    return {
        run: _together(run, [found[one] for one in members[run]]) if members[run] else found[run]
        for run in runs
    }


def _together(run: Run, parts: Sequence[RunStatus]) -> RunStatus:
    """The state of an array: `running`, with `3 done, 2 running, 1 failed`; a chain may wait for a person."""
    counts = Counter(part.state for part in parts)
    word = next((state for state in RunState if counts[state]), RunState.NEW)
    unheard = next((part.unheard for part in parts if part.unheard), "")
    detail = ", ".join(f"{counts[name]} {name}" for name in reversed(RunState) if counts[name])
    waits = read_json(run.folder / "waits.json")
    if waits and word == RunState.NEW:
        return RunStatus(RunState.STOPPED, f"{detail}; waits for a person: {waits['stop']}")
    return RunStatus(word, "; ".join(filter(None, [detail, unheard])), unheard=unheard)


# ---------------------------------------------------------------- what the scheduler says


def _queued(said: Queued | Silence | None) -> RunStatus | None:
    """Slurm's word, in ours; None where it has none, or none that tells what became of the run."""
    if not isinstance(said, Queued) or said.state not in STATE_OF_JOB:
        return None
    state = STATE_OF_JOB[said.state]
    if state == RunState.FAILED:
        return RunStatus(state, said.state.lower(), said.node, cause=said.state.lower())
    detail = said.reason if said.state == "PENDING" else "" if said.state == "RUNNING" else said.state.lower()
    if said.reason == "DependencyNeverSatisfied":
        detail = "the run before it did not end well"
    return RunStatus(state, detail, said.node, said.left)


# ---------------------------------------------------------------- what the folder says


def ranks(run: Run, number: int | None = None) -> list[dict[str, Any]]:
    """The records of an attempt's ranks (default: the newest attempt), by rank."""
    numbers = run.attempt_numbers() if number is None else [number]
    if not numbers:
        return []
    paths = (run.attempts / str(numbers[-1])).glob("rank-*.json")
    return sorted((record for path in paths if (record := read_json(path))), key=lambda r: int(r["rank"]))


def first_failure(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record of the rank that failed first: the others often only lost their partner."""
    failed = [record for record in records if record.get("outcome") in ("failed", "mistake")]
    return min(failed, key=lambda record: str(record["exit"]), default=None)


def _state(run: Run, asked: Submission, said: Queued | Silence | None) -> RunStatus:
    if run.summary() is not None:
        return RunStatus(RunState.DONE)
    if not run.attempt_numbers():
        return RunStatus(RunState.NEW, "not started")
    records, queued = ranks(run), _queued(said)
    if queued is not None and queued.alive:
        return replace(queued, detail=TORN) if asked.get("torn") else queued
    if isinstance(said, Silence):
        return _unheard(run, records, said.why)
    failure = first_failure(records)
    if failure:
        return _failed(run, failure, queued)
    told = _told(run) if said is None and asked.get("job") else None
    if told is None and said is None and _lives(asked, records):
        return _alive(run, asked, records)
    if asked.get("ended") and not records and not run.cancelled.exists():
        return RunStatus(RunState.STOPPED, "before its turn came")
    return _ended(run, records, queued)


def _unheard(run: Run, records: Sequence[Mapping[str, Any]], why: str) -> RunStatus:
    """The state of a run of whose job nothing is heard: unless someone has cancelled it, Slurm may have it,
    and start it again whatever the folder tells."""
    beating, failure = _beating(records), first_failure(records)
    if run.cancelled.exists() and not beating:
        return RunStatus(RunState.CANCELLED, why)
    if failure:
        found = _failed(run, failure, None)
    elif _all_stopped(records):
        found = RunStatus(RunState.STOPPED, _why_stopped(run, records))
    elif records:
        found = RunStatus(
            RunState.RUNNING, "" if beating else _last_seen(records), str(records[0].get("node", ""))
        )
    else:
        found = RunStatus(RunState.QUEUED)
    return replace(found, detail="; ".join(filter(None, [why, found.detail])), unheard=why)


def _all_stopped(records: Sequence[Mapping[str, Any]]) -> bool:
    return bool(records) and all(record.get("outcome") == "stopped" for record in records)


def _alive(run: Run, asked: Submission, records: Sequence[Mapping[str, Any]]) -> RunStatus:
    """The state of a run whose folder alone tells that it lives."""
    if records:
        return RunStatus(RunState.RUNNING, "", records[0].get("node", ""))
    if asked.get("executor") == "slurm":
        return RunStatus(RunState.QUEUED, "is being submitted")
    return RunStatus(RunState.QUEUED, "waits for its turn") if run.array else RunStatus(RunState.RUNNING)


def _failed(run: Run, failure: Mapping[str, Any], queued: RunStatus | None) -> RunStatus:
    """A rank has told why; a cause that Slurm knows comes first: the others often only lost their partner."""
    cause = _cause(_told(run), queued)
    message = f"rank {failure['rank']}: {first_line(failure['message'])}"
    detail = f"{cause}: {message}" if cause else message
    return RunStatus(RunState.FAILED, detail, failure.get("node", ""), cause=cause)


def _cause(told: RunStatus | None, queued: RunStatus | None) -> str:
    """Slurm's word where it is more than that the job failed, else what the job's own output tells."""
    if queued is not None and queued.cause not in ("", "failed"):
        return queued.cause
    return told.cause if told else ""


def _ended(run: Run, records: Sequence[dict[str, Any]], queued: RunStatus | None) -> RunStatus:
    """The state of a run that no one works on, that is not done, and whose ranks reported no failure."""
    if run.cancelled.exists() or (queued and queued.state == RunState.CANCELLED):
        return RunStatus(RunState.CANCELLED, queued.detail if queued and queued.detail != "cancelled" else "")
    if _all_stopped(records):
        return RunStatus(RunState.STOPPED, _why_stopped(run, records))
    told = _told(run)
    if queued is not None:
        detail = told.detail if told and queued.detail == "failed" else queued.detail
        return RunStatus(queued.state, detail, queued.node, cause=_cause(told, queued))
    if told is not None:
        return told
    return RunStatus(RunState.LOST, _last_seen(records))


def _last_seen(records: Sequence[Mapping[str, Any]]) -> str:
    seen = max((str(record.get("heartbeat")) for record in records), default=None)
    return f"last seen {seen[:19]} UTC" if seen else "it never reported"


def _why_stopped(run: Run, records: Sequence[Mapping[str, Any]]) -> str:
    """Why it was not started again, as rank 0 noted it, or the shell that was asked to do it."""
    refusal = run.attempts / str(run.attempt_numbers()[-1]) / REFUSAL
    said = refusal.read_text(errors="replace").strip() if refusal.is_file() else ""
    return f"not started again: {first_line(said)}" if said else str(records[0].get("reason", ""))


def _told(run: Run) -> RunStatus | None:
    """What the job's own output says of its end: a rank that was killed leaves no record."""
    text = "\n".join(job_output(run, 200))
    died = DIED.search(text)
    cause = next((cause for cause, pattern in TOLD.items() if pattern.search(text)), "")
    if not (died or cause):
        return None
    who = f"rank {died['rank']} on {died['node']}: {died['how']}" if died else cause
    return RunStatus(RunState.FAILED, f"{cause}: {who}" if died and cause else who, cause=cause)


def job_output(run: Run, lines: int) -> list[str]:
    """The last lines that the newest job of the run wrote itself, outside of the ranks' logs."""
    asked = submissions.newest(run)
    if not asked.get("job"):
        return []
    folders = dict.fromkeys([run.sbatch, (run.array or run).sbatch])  # an element may have gone on alone
    paths = [folder / f"{asked['job']}_0_log.{kind}" for folder in folders for kind in ("out", "err")]
    paths.append(run.attempts / str(run.attempt_numbers()[-1]) / "srun.log")
    found = [path.read_text(errors="replace").splitlines()[-lines:] for path in paths if path.is_file()]
    return [line for part in found for line in part]


def _lives(asked: Submission, records: Sequence[Mapping[str, Any]]) -> bool:
    if asked.get("ended") and not asked.get("job"):
        return False  # whoever watched over it here has seen its ranks end, even if they could not say so
    if asked.get("pid") and not asked.get("job") and asked.get("host") == socket.gethostname():
        return watcher(asked) is not None
    return _beating(records)


def _beating(records: Sequence[Mapping[str, Any]]) -> bool:
    return any(age_s(str(one["heartbeat"])) < FRESH_S for one in records if not one.get("exit"))


def age_s(moment: str) -> float:
    """Seconds since a moment that `files.now` gave."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def first_line(text: str) -> str:
    """What a message says in one line: a heading such as `3 problems:` with the first of what it heads."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    end = next((at for at, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1])


# ---------------------------------------------------------------- cancel


def cancel(run: Run) -> str:
    """Tells the run, or the living elements of an array, to save and stop; what was done, as a line."""
    found = statuses(run.elements() or [run])
    living = [one for one, each in found.items() if each.alive]
    if not living:
        raise UserError(f"{run.label!r} is not running: it is {status_of(run).state}")
    asked = submissions.newest_of(living)
    for one, content in asked.items():
        if content["executor"] == "local" and run.array:
            raise UserError(f"{one.label!r} computes in one process with its array; cancel {run.array.name}")
        if content["executor"] == "local" and content["host"] != socket.gethostname():
            raise UserError(f"{run.label!r} runs on {content['host']}; cancel it there")
    for one in living:
        write_atomic(one.cancelled, now() + "\n")
    jobs = {cluster: list(names.values()) for cluster, names in by_cluster(asked).items()}
    for cluster, names in jobs.items():
        _scancel(run, names, cluster)
    watchers = {each.pid: each for content in asked.values() if (each := watcher(content))}
    for process in watchers.values():
        process.send_signal(signal.SIGTERM)
    told = [f"job {job}" for names in jobs.values() for job in names] + [f"process {pid}" for pid in watchers]
    return f"{', '.join(told) or run.label} is told to save and stop"


def _scancel(run: Run, jobs: Sequence[str], cluster: ClusterId) -> None:
    try:
        queue.cancel(jobs, *cluster)
    except UserError as mistake:
        raise UserError(
            f"{mistake}\n{run.label!r} is marked as cancelled all the same: a job of it that starts later "
            "leaves at once"
        ) from None
