"""What Slurm says about jobs: squeue is asked once for all of them, sacct for those that it has forgotten."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.cluster.slurm.commands import ask
from hpc_isl.errors import UserError

PATIENCE_S = 10.0  # a controller that is away is not waited for: the run folder holds much
FORGOTTEN = "Invalid job id specified"


@dataclass(frozen=True)
class QueuedJob:
    """State of a job, why it waits, where it runs, the time it has left, and in which folder it works."""

    state: str
    reason: str = ""
    node: str = ""
    left: str = ""
    folder: str = ""


def queue(
    jobs: Iterable[str], conf: Path | None = None, cluster: str | None = None
) -> Mapping[str, QueuedJob] | None:
    """Returns job (`17`, or `17_3` for an element) -> what Slurm says; None: Slurm does not answer.

    Without accounting, Slurm forgets a job some minutes after its end.
    """
    asked = set(jobs)
    if not asked:
        return {}
    families = sorted({job.split("_")[0] for job in asked})
    command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%L|%Z", "-j", ",".join(families)]
    code, out, errors = ask(command, conf, patience_s=PATIENCE_S, cluster=cluster)
    if code and FORGOTTEN not in errors:
        return None
    known = _parsed(out)
    if forgotten := sorted({job.split("_")[0] for job in asked - set(known)}):
        command = [
            "sacct",
            "-X",
            "-n",
            "-P",
            "--array",
            "-o",
            "JobID,State,Reason,NodeList,Timelimit,WorkDir",
        ]
        command += ["-j", ",".join(forgotten), *(["-M", cluster] if cluster else [])]
        code, out, _ = ask(command, conf, patience_s=PATIENCE_S)
        known = {**({} if code else _parsed(out)), **known}
    return {job: queued for job, queued in known.items() if job in asked}


def _parsed(answer: str) -> dict[str, QueuedJob]:
    """Reads lines of job|state|reason|nodes|time|folder; `CANCELLED by 1000` is the state CANCELLED."""
    rows = [line.split("|", 5) for line in answer.splitlines() if line.count("|") >= 5]
    plain = [(job, *map(_word, words), folder) for job, *words, folder in rows]
    return {job: QueuedJob(state.split()[0], *rest) for job, state, *rest in plain if state}


def _word(text: str) -> str:
    text = text.strip("() ")
    return "" if text in ("None", "None assigned", "INVALID", "UNLIMITED", "NOT_SET") else text


def script_of(folder: Path, label: str) -> Path | None:
    """Returns the script with this label that sbatch was given, or was to be; None: there is none yet."""
    for path in folder.glob(".submission_file_*.sh"):
        with suppress(OSError):
            if f"# {label}\n" in path.read_text():
                return path
    return None


def jobs_of_scripts(
    user: int, conf: Path | None = None, cluster: str | None = None
) -> Mapping[str, str] | None:
    """Returns script that sbatch was given -> job, of all jobs of a user; None: Slurm does not answer."""
    command = ["squeue", "-h", "-t", "all", "-u", str(user), "-o", "%F|%o"]
    code, out, _ = ask(command, conf, patience_s=PATIENCE_S, cluster=cluster)
    if code:
        return None
    rows = [line.split("|", 1) for line in out.splitlines() if "|" in line]
    return {script.rpartition("/")[2]: job for job, script in rows}


def hides_jobs_of_others(conf: Path | None = None, cluster: str | None = None) -> bool:
    """Returns whether users see their own jobs alone; root sees all."""
    _, out, _ = ask(["scontrol", "show", "config"], conf, patience_s=PATIENCE_S, cluster=cluster)
    private = re.search(r"^PrivateData\s*=\s*(.*)", out, re.MULTILINE)
    return bool(os.getuid() and private and re.search(r"\b(jobs|all)\b", private[1]))


def cancel(jobs: Iterable[str], conf: Path | None = None, cluster: str | None = None) -> None:
    """Tells Slurm to end the jobs: TERM first, so that they can save."""
    code, _, errors = ask(["scancel", *jobs], conf, cluster=cluster)
    if code:
        raise UserError(f"scancel {' '.join(jobs)}: {errors}")
