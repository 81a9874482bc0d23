"""The records that the ranks of a run leave in its folder, and the output of its job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hpc_isl.cluster.run_folder import submissions
from hpc_isl.files import read_json
from hpc_isl.run import Run

FRESH_S = 60.0  # a younger heartbeat is that of a living rank, where nothing else can be asked
REFUSAL = "requeue.txt"  # in the attempt's folder: why the job was not put back into the queue
DIED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<rank>\d+)\S*: (?P<how>.+)")


def ranks(run: Run, number: int | None = None) -> list[dict[str, Any]]:
    """Returns the records of an attempt's ranks (default: of the newest attempt), by rank."""
    numbers = run.attempt_numbers() if number is None else [number]
    if not numbers:
        return []
    paths = (run.attempts / str(numbers[-1])).glob("rank-*.json")
    return sorted((record for path in paths if (record := read_json(path))), key=lambda r: int(r["rank"]))


def first_failure(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the record of the rank that failed first: the others often only lost their partner."""
    failed = [record for record in records if record.get("outcome") in ("failed", "mistake")]
    return min(failed, key=lambda record: str(record["exit"]), default=None)


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
    text = refusal.read_text(errors="replace").strip() if refusal.is_file() else ""
    return f"not started again: {first_line(text)}" if text else str(records[0].get("reason", ""))


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
    end = next((at for at, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1])


def span(run: Run) -> tuple[int, int] | None:
    """Returns when work on the run, or on the elements of an array, began and ended, in ms since 1970.

    The waits before the first attempt and after the last one belong to neither. A run that is done ended
    with its done record; one that was killed, with the last sign of life of its ranks. None: it never began.
    """
    spans: list[tuple[str, str]] = []
    for member in run.elements() or [run]:
        done = (member.summary() or {}).get("time")
        records = [record for number in member.attempt_numbers() for record in ranks(member, number)]
        spans += [
            (record["start"], done or record.get("exit") or record["heartbeat"])
            for record in records
            if "start" in record
        ]
        if done and not records:
            spans.append((done, done))
    if not spans:
        return None
    starts, ends = zip(*spans, strict=True)
    start, end = (int(datetime.fromisoformat(t).timestamp() * 1000) for t in (min(starts), max(ends)))
    return start, max(start, end)
