"""Inside a job that was told to stop: it goes back into Slurm's queue, and only if that leads anywhere."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from pathlib import Path

from hpc_isl.cluster.run_folder.status import REFUSAL
from hpc_isl.cluster.slurm.commands import ask
from hpc_isl.files import read_json, write_atomic
from hpc_isl.run import Attempt

OTHERS_LEAVE_S = 60.0
REQUEUE_S = 60.0
ASK = "HPC_ISL_REQUEUE"  # names the file with which the starter of the ranks is asked to requeue the job


def requeue(attempt: Attempt, job: str, at_time_limit: bool) -> str | None:
    """Puts the job back into the queue, or returns the reason why not.

    Only at the time limit, or when preempted with time to save (without, Slurm requeues by itself); only
    when neither run nor job was cancelled, and when this attempt brought something new.

    Args:
        at_time_limit: as far as this rank knows; another may know more, and so does Slurm.
    """
    others = [attempt.folder / f"rank-{rank}.json" for rank in range(1, attempt.size)]
    # A barrier through the run folder: all other ranks have written their exit records.
    deadline = time.monotonic() + OTHERS_LEAVE_S
    while any(not (read_json(path) or {}).get("exit") for path in others) and time.monotonic() < deadline:
        time.sleep(0.5)
    wanted = _slurm_wants_it(job)
    if wanted is None:
        wanted = at_time_limit or any((read_json(path) or {}).get("overdue") for path in others)
    if not wanted:
        return "stopped by Slurm or by scancel"
    if attempt.run.cancelled.exists():
        return "stopped: the run was cancelled"
    if not _advanced(attempt):
        what = "checkpoint" if attempt.run.checkpoints.is_dir() else "result"
        return f"stopped at the time limit without a new {what}: not started again; give it more time"
    code, _, errors = ask(["scontrol", "requeue", job], patience_s=REQUEUE_S)
    if code and (asked := os.environ.get(ASK)):
        write_atomic(Path(asked), f"{attempt.folder / REFUSAL}\n")
        return None
    return f"stopped; not started again: {errors}" if code else None


def _slurm_wants_it(job: str) -> bool | None:
    """Returns whether Slurm says that the job is to continue later; None: it lets it run, or does not answer.

    It is to continue where its limit has passed, and where Slurm gives time to save before it takes the
    nodes away: a job that ends within that time has just ended for Slurm. What scancel ended is not.
    """
    _, out, _ = ask(["scontrol", "show", "job", "-o", job])
    if re.search(r"JobState=RUNNING .*PreemptTime=(\d{4}-\S+)", out) or " Reason=TimeLimit " in out:
        return True
    return False if re.search(r"JobState=(COMPLETING|CANCELLED)", out) else None


def requeue_from_outside(asked: Path, job: str) -> str:
    """Requeues the job where its ranks asked for it with the file `asked`, or returns the reason why not.

    Ranks in a container have no scontrol, nor have those of a node on whose PATH it does not lie.
    """
    if not asked.is_file():
        return ""
    refusal = Path(asked.read_text().strip())
    asked.unlink()
    code, _, errors = ask(["scontrol", "requeue", job], patience_s=REQUEUE_S)
    if code:
        write_atomic(refusal, f"{errors}\n")
    return errors if code else ""


def _advanced(attempt: Attempt) -> bool:
    """Returns whether this attempt left a checkpoint; for a stage that has none, whether it did anything."""
    record = read_json(attempt.path) or {}
    if attempt.run.checkpoints.is_dir():
        newest = max((path.stat().st_mtime for path in attempt.run.checkpoints.iterdir()), default=0.0)
        return newest > datetime.fromisoformat(record["start"]).timestamp()
    progress = record.get("progress", {})
    return bool(progress.get("done", 0) > progress.get("kept", 0))
