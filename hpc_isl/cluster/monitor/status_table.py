"""`status`: one line per run, attempt by attempt where one run is asked for, and what a run wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from hpc_isl.cluster.monitor.progress_view import figure, progress_text
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
from hpc_isl.run import Run

HEAD = ("stage", "name", "state", "began", "attempt", "progress", "took", "left", "node", "")


def table(runs: Sequence[Run], elements: bool = False) -> list[str]:
    """One line per run under a heading; `elements`: also one for each element of an array."""
    shown = [one for run in runs for one in (run, *(run.elements() if elements else []))]
    found = statuses(shown)
    rows = [HEAD, *(_row(run, found[run]) for run in shown)]
    kept = [c for c in range(len(HEAD)) if c == len(HEAD) - 1 or any(row[c] for row in rows[1:])]
    widths = {c: max(len(row[c]) for row in rows) for c in kept}
    return ["  ".join(row[c].ljust(widths[c]) for c in kept).rstrip() for row in rows]


def _row(run: Run, found: RunStatus) -> tuple[str, ...]:
    if run.elements_file.is_file():
        remark = "; ".join(filter(None, [found.detail, *uses.changed_of(run)]))
        return run.stage, run.name, found.state, date_of(began(run)), "", _share(run), "", "", "", remark
    numbers = run.attempt_numbers()
    attempt = str(numbers[-1] + 1) if numbers else ""
    name = f"  {run.label}" if run.array else run.name
    node, left = (found.node, found.left) if found.alive else ("", "")
    remark = "; ".join(filter(None, [found.detail, *uses.changed(run)]))
    when = date_of(began(run))
    return run.stage, name, found.state, when, attempt, _progress(run), took(run), left, node, remark


def facts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The same for programs, as plain JSON: times are ISO 8601 in UTC, an array holds its elements."""
    shown = [one for run in runs for one in (run, *run.elements())]
    found = statuses(shown)
    return [
        _facts(run, found[run]) | {"elements": [_facts(one, found[one]) for one in run.elements()]}
        for run in runs
    ]


def _facts(run: Run, found: RunStatus) -> dict[str, Any]:
    records = ranks(run)
    summary = run.summary() or {}
    return {
        "stage": run.stage, "name": run.label, "folder": str(run.folder), "state": found.state,
        "detail": found.detail, "cause": found.cause, "node": found.node, "left": found.left,
        "began": began(run), "ended": None if found.alive else _ended(records),
        "took_s": None if run.elements() else round(_took_s(run), 1),
        "attempts": len(run.attempt_numbers()), "progress": (records or [{}])[0].get("progress"),
        "figures": summary.get("figures", {}), "made": summary.get("made", {}),
        "metadata_changed": uses.changed_of(run),
    }  # fmt: skip


def began(run: Run) -> str | None:
    """When the run first began to compute, else when it was made; of an array when it was made."""
    firsts = [record["start"] for number in run.attempt_numbers()[:1] for record in ranks(run, number)[:1]]
    made = (read_json(run.record) or {}).get("made")
    return str(firsts[0]) if firsts else made


def _ended(records: Sequence[dict[str, Any]]) -> str | None:
    ends = [str(record["exit"]) for record in records if record.get("exit")]
    return max(ends, default=None)


def date_of(moment: str | None) -> str:
    """`2026-11-28 14:03`, where the user is."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""


def _share(run: Run) -> str:
    members = run.elements()
    done = sum(member.summary() is not None for member in members)
    return f"{done}/{len(members)} {'steps' if run.stage == 'chain' else 'elements'}"


def _progress(run: Run) -> str:
    """The main figures of a finished run; else how far it is, with the last metrics."""
    figures = "  ".join(f"{name} {value}" for name, value in list(main_figures(run.summary()).items())[:2])
    if figures:
        return figures
    progress = (ranks(run) or [{}])[0].get("progress")
    return progress_text(progress) if progress else "-"


def main_figures(summary: dict[str, Any] | None) -> dict[str, str]:
    """The numbers and short texts of a done record, ready to print."""
    content = dict(summary or {})
    content |= content.pop("figures", {}) if isinstance(content.get("figures"), dict) else {}
    plain = {name: value for name, value in content.items() if isinstance(value, (int, float, str))}
    return {name: figure(value) for name, value in plain.items() if name not in ("attempt", "time")}


def attempts(run: Run) -> list[str]:
    """One line per attempt of a run: when, how long, on which nodes, how it ended."""
    lines = []
    for number in run.attempt_numbers():
        records = ranks(run, number)
        if records:
            lines.append(f"attempt {number + 1}: {_attempt(records)}")
    return lines


def _attempt(records: Sequence[dict[str, Any]]) -> str:
    first, failure = records[0], first_failure(records)
    nodes = ", ".join(dict.fromkeys(record["node"] for record in records))
    ending = first_line(failure["message"]) if failure else first.get("outcome", "no word since")
    job = f", job {first['job']}" if first.get("job") else ""
    began, lasted = first["start"][:19], duration(_lasted_s(first))
    return f"{began} UTC, {lasted} on {nodes}{job}, {len(records)} ranks: {ending}"


def took(run: Run) -> str:
    """Time that the run was worked on, over all its attempts."""
    return duration(_took_s(run))


def _took_s(run: Run) -> float:
    firsts = (record for number in run.attempt_numbers() for record in ranks(run, number)[:1])
    return sum(map(_lasted_s, firsts))


def _lasted_s(record: dict[str, Any]) -> float:
    """Of a rank: to its end, to now while its heart beats (every few seconds only), to its last beat."""
    ended = age_s(record.get("exit") or record["heartbeat"])
    still = not record.get("exit") and ended < FRESH_S
    return age_s(record["start"]) - (0 if still else ended)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 12 s`, `5 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# ---------------------------------------------------------------- logs


def failure_text(run: Run) -> list[str]:
    """The failing rank's message and where its traceback lies, or nothing."""
    failure = first_failure(ranks(run))
    if failure is None:
        return []
    log = run.attempts / str(run.attempt_numbers()[-1]) / f"rank-{failure['rank']}.log"
    lines = [f"rank {failure['rank']} of {failure['size']} on {failure['node']}: {failure['message']}"]
    return lines if failure["outcome"] == "mistake" else [*lines, f"traceback: {log}"]


def log_lines(run: Run, rank: int | None) -> Iterator[str]:
    """The newest attempt's log: of `rank`, or the first failing rank's traceback and then rank 0's log."""
    run = _with_a_log(run)
    number = run.attempt_numbers()[-1] if run.attempt_numbers() else 0
    failure = first_failure(ranks(run))
    if rank is None and failure and failure["outcome"] == "failed":
        yield f"--- rank {failure['rank']} on {failure['node']} failed:"
        yield from str(failure["traceback"]).splitlines()
        yield "--- log of rank 0:"
    log = run.attempts / str(number) / f"rank-{rank or 0}.log"
    if log.is_file():
        yield from log.read_text(errors="replace").splitlines()
    else:
        yield f"rank {rank or 0} of attempt {number + 1} has no log yet ({log})"
    if failure is None and not run.summary():  # a job that died before it reached us speaks there
        yield from (f"job: {line}" for line in job_output(run, 30))


def _with_a_log(run: Run) -> Run:
    """The run itself; of an array, the element that failed first in order."""
    members = run.elements()
    if not members:
        return run
    failed = [
        member
        for member, found in statuses(members).items()
        if found.state in (RunState.FAILED, RunState.LOST)
    ]
    if not failed:
        names = ", ".join(member.label for member in members[:4])
        raise UserError(
            f"{run.name!r} has {len(members)} runs, none of which failed; name one of them: {names} …"
        )
    return failed[0]
