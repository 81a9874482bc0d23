"""`status`: one line per run, attempt by attempt where one run is asked for, and what a run wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder import uses
from hpc_isl.cluster.run_folder.status import (
    FRESH_S,
    RunState,
    RunStatus,
    age_s,
    first_failure,
    first_line,
    job_output,
    ranks,
    statuses,
)
from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.metadata_changes import MetadataChange, changes_of
from hpc_isl.run import Run

History = dict[int, list[dict[str, Any]]]
"""Number of an attempt, in order -> the records of its ranks."""
Changes = Callable[[Path], Iterable[MetadataChange]]
HEAD = ("stage", "name", "state", "began", "attempt", "progress", "took", "left", "node", "")


def table(runs: Sequence[Run], elements: bool = False) -> list[str]:
    """Returns one line per run under a heading; `elements`: also one for each element of an array."""
    members = [member for run in runs for member in (run, *(run.elements() if elements else []))]
    run_status = statuses(members)
    changes = cache(changes_of)
    rows = [HEAD, *(_row(run, run_status[run], changes) for run in members)]
    last_column = len(HEAD) - 1
    widths = {
        column: max(len(row[column]) for row in rows)
        for column in range(len(HEAD))
        if column == last_column or any(row[column] for row in rows[1:])
    }
    return ["  ".join(row[c].ljust(width) for c, width in widths.items()).rstrip() for row in rows]


def _row(run: Run, run_status: RunStatus, changes: Changes) -> tuple[str, ...]:
    remark = "; ".join(filter(None, [run_status.detail, *uses.changed(run, changes)]))
    history = history_of(run)
    start_date = date_of(began(run, history))
    if run.elements_file.is_file():
        members = run.elements()
        done_count = sum(member.summary() is not None for member in members)
        share = f"{done_count}/{len(members)} {'steps' if run.stage == 'chain' else 'elements'}"
        return run.stage, run.name, run_status.state, start_date, "", share, "", "", "", remark
    attempt = str(max(history) + 1) if history else ""
    name = f"  {run.label}" if run.array else run.name
    node, time_left = (run_status.node, run_status.left) if run_status.alive else ("", "")
    # The main figures of a finished run; else how far it is, with the last metrics.
    figures_text = "  ".join(f"{key} {value}" for key, value in list(main_figures(run.summary()).items())[:2])
    progress = _newest_record(history).get("progress")
    figures_text = figures_text or (progress_text(progress) if progress else "-")
    took_s = duration(_run_duration_s(history))
    return (
        run.stage,
        name,
        run_status.state,
        start_date,
        attempt,
        figures_text,
        took_s,
        time_left,
        node,
        remark,
    )


def facts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns the table for programs, as plain JSON: times are ISO 8601 in UTC, an array has its elements."""
    run_status = statuses([member for run in runs for member in (run, *run.elements())])
    return [
        _facts(run, run_status[run])
        | {"elements": [_facts(member, run_status[member]) for member in run.elements()]}
        for run in runs
    ]


def _facts(run: Run, run_status: RunStatus) -> dict[str, Any]:
    history = history_of(run)
    records = history[max(history)] if history else []
    summary = run.summary() or {}
    ends = [str(record["exit"]) for record in records if record.get("exit")]
    return {
        "stage": run.stage, "name": run.label, "folder": str(run.folder), "state": run_status.state,
        "detail": run_status.detail, "cause": run_status.cause,
        "node": run_status.node, "left": run_status.left,
        "began": began(run, history), "ended": None if run_status.alive else max(ends, default=None),
        "took_s": None if run.elements() else round(_run_duration_s(history), 1),
        "attempts": len(history), "progress": _newest_record(history).get("progress"),
        "figures": summary.get("figures", {}), "made": summary.get("made", {}),
        "metadata_changed": uses.changed(run),
    }  # fmt: skip


def history_of(run: Run) -> History:
    """Returns the records of the ranks of each attempt, read once for all that a line says of a run."""
    return {number: ranks(run, number) for number in run.attempt_numbers()}


def _newest_record(history: History) -> dict[str, Any]:
    """Returns the record of the first rank of the newest attempt; empty where there is none."""
    records = history[max(history)] if history else []
    return records[0] if records else {}


def began(run: Run, history: History) -> str | None:
    """Returns when the run first began to compute, else when it was made; of an array when it was made."""
    first_attempt = history[min(history)] if history else []
    return str(first_attempt[0]["start"]) if first_attempt else (read_json(run.record) or {}).get("made")


def date_of(moment: str | None) -> str:
    """Returns `2026-11-28 14:03`, in the user's time zone."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""


def main_figures(summary: dict[str, Any] | None) -> dict[str, str]:
    """Returns the numbers and short texts of a done record, ready to print."""
    content = dict(summary or {})
    content |= content.pop("figures", {}) if isinstance(content.get("figures"), dict) else {}
    printable = {name: value for name, value in content.items() if isinstance(value, (int, float, str))}
    return {name: figure(value) for name, value in printable.items() if name not in ("attempt", "time")}


def progress_text(progress: dict[str, Any]) -> str:
    """Returns `120/300 steps  loss 0.12`."""
    text = f"{progress['done']}/{progress['total']} {progress['unit']}"
    return f"{text}  {figures(progress.get('metrics', {}))}".rstrip()


def figures(values: dict[str, Any]) -> str:
    """Returns `loss 0.123, pcc 0.91`."""
    return ", ".join(f"{name} {figure(value)}" for name, value in values.items())


def figure(value: Any) -> str:
    """Returns a number to four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def attempts(run: Run) -> list[str]:
    """Returns one line per attempt of a run: when, how long, on which nodes, how it ended."""
    lines = []
    for number in run.attempt_numbers():
        if not (records := ranks(run, number)):
            continue
        rank_0, failure = records[0], first_failure(records)
        nodes = ", ".join(dict.fromkeys(record["node"] for record in records))
        ending = first_line(failure["message"]) if failure else rank_0.get("outcome", "no word since")
        job = f", job {rank_0['job']}" if rank_0.get("job") else ""
        work_text = f"{rank_0['start'][:19]} UTC, {duration(_rank_duration_s(rank_0))} on {nodes}{job}"
        lines.append(f"attempt {number + 1}: {work_text}, {len(records)} ranks: {ending}")
    return lines


def took(run: Run) -> str:
    """Returns the time that the run was worked on, over all its attempts."""
    return duration(_run_duration_s(history_of(run)))


def _run_duration_s(history: History) -> float:
    return sum(_rank_duration_s(record) for records in history.values() for record in records[:1])


def _rank_duration_s(record: dict[str, Any]) -> float:
    """Returns how long a rank ran: to its end, to now while its heart beats, or to its last heartbeat."""
    end_age = age_s(record.get("exit") or record["heartbeat"])
    is_running = not record.get("exit") and end_age < FRESH_S
    return age_s(record["start"]) - (0 if is_running else end_age)


def duration(seconds: float) -> str:
    """Returns `45 s`, `3 min 12 s`, `5 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# ---------------------------------------------------------------- logs


def failure_text(run: Run) -> list[str]:
    """Returns the failing rank's message and where its traceback lies, or nothing."""
    failure = first_failure(ranks(run))
    if failure is None:
        return []
    log_file = run.attempts / str(run.attempt_numbers()[-1]) / f"rank-{failure['rank']}.log"
    lines = [f"rank {failure['rank']} of {failure['size']} on {failure['node']}: {failure['message']}"]
    return lines if failure["outcome"] == "mistake" else [*lines, f"traceback: {log_file}"]


def log_lines(run: Run, rank: int | None) -> Iterator[str]:
    """Yields the newest attempt's log: of `rank`, or the first failing rank's traceback, then rank 0's log.

    Of an array, it is that of the element that failed first in order.

    Raises:
        UserError: no element of an array failed.
    """
    if members := run.elements():
        failed_states = (RunState.FAILED, RunState.LOST)
        failed_members = [
            member for member, run_status in statuses(members).items() if run_status.state in failed_states
        ]
        if not failed_members:
            names = ", ".join(member.label for member in members[:4])
            raise UserError(
                f"{run.name!r} has {len(members)} runs, none of which failed; name one of them: {names} …"
            )
        run = failed_members[0]
    number = run.attempt_numbers()[-1] if run.attempt_numbers() else 0
    failure = first_failure(ranks(run))
    if rank is None and failure and failure["outcome"] == "failed":
        yield f"--- rank {failure['rank']} on {failure['node']} failed:"
        yield from str(failure["traceback"]).splitlines()
        yield "--- log of rank 0:"
    log_file = run.attempts / str(number) / f"rank-{rank or 0}.log"
    if log_file.is_file():
        yield from log_file.read_text(errors="replace").splitlines()
    else:
        yield f"rank {rank or 0} of attempt {number + 1} has no log yet ({log_file})"
    if failure is None and not run.summary():  # a job that died before it reached us speaks there
        yield from (f"job: {line}" for line in job_output(run, 30))
