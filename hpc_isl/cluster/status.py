"""What has become of runs, read from their folders; the queue or the process list says who still lives."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from hpc_isl.cluster.follow import figure, progress_text
from hpc_isl.mistake import Mistake
from hpc_isl.run import Run, now, read_json, write_atomic
from hpc_isl.site import Site
from hpc_isl.strict import parse, read_yaml

FRESH_S = 60.0  # a heartbeat younger than this is a living rank, where nothing else can be asked
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"}
FAILED = {"FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}


# ---------------------------------------------------------------- state


@dataclass(frozen=True)
class State:
    """One word, and why: done, running, queued, stopped, cancelled, failed, lost or new."""

    word: str
    detail: str = ""

    @property
    def alive(self) -> bool:
        return self.word in ("running", "queued")


def submission(run: Run) -> dict[str, Any]:
    """The record of the newest submission: executor, host, process or job id."""
    for number in reversed(run.attempt_numbers()):
        content = read_json(run.attempts / str(number) / "submission.json")
        if content:
            return content
    return {}


def site_of(run: Run) -> Site:
    """The site that the run was made for."""
    return parse(Site, read_yaml(run.site), str(run.site))


def ranks(run: Run, number: int | None = None) -> list[dict[str, Any]]:
    """The records of an attempt's ranks (default: the newest attempt), by rank."""
    numbers = run.attempt_numbers() if number is None else [number]
    if not numbers:
        return []
    paths = (run.attempts / str(numbers[-1])).glob("rank-*.json")
    return sorted((record for path in paths if (record := read_json(path))), key=lambda r: int(r["rank"]))


def first_failure(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the rank that failed first: the others often only lost their partner."""
    failed = [record for record in records if record.get("outcome") in ("failed", "mistake")]
    return min(failed, key=lambda record: str(record["exit"]), default=None)


def state(run: Run) -> State:
    """What has become of the run."""
    if run.summary() is not None:
        return State("done")
    if not run.attempt_numbers():
        return State("new", "not started")
    records, asked = ranks(run), submission(run)
    queued = _queued(asked)
    if queued is not None and queued.alive:
        return queued
    failure = first_failure(records)
    if failure:
        return State("failed", f"rank {failure['rank']}: {first_line(failure['message'])}")
    if _lives(asked, records):
        return State("running")
    return _ended(run, records, queued)


def _ended(run: Run, records: list[dict[str, Any]], queued: State | None) -> State:
    """The state of a run that no one works on, that is not done, and whose ranks reported no failure."""
    if cancelled(run).exists():
        return State("cancelled")
    if records and all(record.get("outcome") == "stopped" for record in records):
        return State("stopped")
    if queued is not None:
        return queued
    seen = max((str(record.get("heartbeat")) for record in records), default=None)
    return State("lost", f"last seen {seen[:19]} UTC" if seen else "it never reported")


def _queued(asked: dict[str, Any]) -> State | None:
    """Slurm's word, in ours; None for a run of this machine, or where Slurm knows nothing."""
    if asked.get("executor") != "slurm":
        return None
    from hpc_isl.cluster.slurm import queue

    said = queue(str(asked["job"]))
    if said is None:
        return None
    kinds = {"queued": QUEUED, "running": RUNNING, "cancelled": {"CANCELLED"}, "failed": FAILED}
    for word, names in kinds.items():
        if said.state in names:
            plain = said.state in ("PENDING", "RUNNING")
            return State(word, said.reason.strip("() ").replace("None", "") if plain else said.state.lower())
    return None


def _lives(asked: dict[str, Any], records: list[dict[str, Any]]) -> bool:
    if asked.get("executor") == "local" and asked.get("host") == socket.gethostname():
        return watcher(asked) is not None
    beats = [str(record["heartbeat"]) for record in records if not record.get("exit")]
    return any(_age_s(beat) < FRESH_S for beat in beats)


def watcher(asked: dict[str, Any]) -> psutil.Process | None:
    """The living process that watches over a local run; a later one with the same id is not it."""
    with suppress(psutil.Error, KeyError):  # no key: it has said that it ended
        process = psutil.Process(asked["pid"])
        started = abs(process.create_time() - asked["pid_started"]) < 1
        if started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _age_s(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


# ---------------------------------------------------------------- the table


def table(runs: list[Run]) -> list[str]:
    """One line per run, under a heading."""
    rows = [("stage", "name", "state", "progress", "took", "")]
    rows += [_row(run) for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join([*map(str.ljust, row[:5], widths), row[5]]).rstrip() for row in rows]


def _row(run: Run) -> tuple[str, str, str, str, str, str]:
    found = state(run)
    progress = (ranks(run) or [{}])[0].get("progress")
    figures = "  ".join(f"{name} {value}" for name, value in list(main_figures(run.summary()).items())[:2])
    shown = figures or (progress_text(progress) if progress else "-")
    return run.stage, run.name, found.word, shown, took(run), found.detail


def main_figures(summary: dict[str, Any] | None) -> dict[str, str]:
    """The numbers and short texts of a done record, ready to print."""
    content = dict(summary or {})
    content |= content.pop("figures", {}) if isinstance(content.get("figures"), dict) else {}
    plain = {name: value for name, value in content.items() if isinstance(value, (int, float, str))}
    return {name: figure(value) for name, value in plain.items() if name not in ("attempt", "time")}


def took(run: Run) -> str:
    """Time that the run was worked on, over all its attempts."""
    total = 0.0
    for number in run.attempt_numbers():
        for record in ranks(run, number)[:1]:
            end = record.get("exit") or record["heartbeat"]
            total += _age_s(record["start"]) - _age_s(end)
    return duration(total)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 12 s`, `5 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# ---------------------------------------------------------------- logs and cancel


def failure_text(run: Run) -> list[str]:
    """The failing rank's message and where its traceback lies, or nothing."""
    records = ranks(run)
    failure = first_failure(records)
    if failure is None:
        return []
    log = run.attempts / str(run.attempt_numbers()[-1]) / f"rank-{failure['rank']}.log"
    lines = [f"rank {failure['rank']} of {failure['size']} on {failure['node']}: {failure['message']}"]
    return lines if failure["outcome"] == "mistake" else [*lines, f"traceback: {log}"]


def log_lines(run: Run, rank: int | None) -> Iterator[str]:
    """The newest attempt's log: of `rank`, or the first failing rank's traceback and then rank 0's log."""
    number = run.attempt_numbers()[-1] if run.attempt_numbers() else 0
    failure = first_failure(ranks(run))
    if rank is None and failure and failure["outcome"] == "failed":
        yield f"--- rank {failure['rank']} failed:"
        yield from str(failure["traceback"]).splitlines()
        yield "--- log of rank 0:"
    log = run.attempts / str(number) / f"rank-{rank or 0}.log"
    if log.is_file():
        yield from log.read_text(errors="replace").splitlines()
        return
    yield f"rank {rank or 0} of attempt {number} has no log yet ({log})"
    for path in sorted(run.sbatch.glob("*_log.*")):  # a job that died before it reached us speaks there
        yield from (f"{path.name}: {line}" for line in path.read_text(errors="replace").splitlines()[-30:])


def cancelled(run: Run) -> Path:
    """The mark of a run that was cancelled: it is not started again by itself."""
    return run.folder / "cancelled"


def cancel(run: Run) -> str:
    """Tells the run to save and stop; what was done, as a line."""
    found, asked = state(run), submission(run)
    if not found.alive:
        raise Mistake(f"{run.name!r} is not running: it is {found.word}")
    if asked["executor"] == "local" and asked["host"] != socket.gethostname():
        raise Mistake(f"{run.name!r} runs on {asked['host']}; cancel it there")
    write_atomic(cancelled(run), now() + "\n")
    if asked["executor"] == "slurm":
        from hpc_isl.cluster import slurm

        slurm.cancel(str(asked["job"]))
        return f"job {asked['job']} is told to save and stop"
    process = watcher(asked)
    if process is not None:
        process.send_signal(signal.SIGTERM)
    return f"process {asked['pid']} is told to save and stop"
