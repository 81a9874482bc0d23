"""A Slurm cluster as a site: submitit packs the job and writes the sbatch file; jobs are detached."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit

from hpc_isl.cluster.jobs import Job, threads
from hpc_isl.cluster.record import snapshot
from hpc_isl.mistake import Mistake
from hpc_isl.run import Attempt, Run, read_json
from hpc_isl.site import Site

# A job that is submitted from inside another would inherit what was meant for that one.
INHERITED = re.compile(r"(SLURM|SBATCH|SRUN|PMI|MASTER|SUBMITIT)\w*|HPC_ISL_(WATCHER|CPUS)")
KEPT = {"SLURM_CONF"}
OTHERS_LEAVE_S = 60.0
ANSWER_S = 30


def scrubbed() -> list[str]:
    """Names in the environment that sbatch must not see."""
    return sorted(name for name in os.environ if INHERITED.fullmatch(name) and name not in KEPT)


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's, but that it submits with a scrubbed environment and its text can be had without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return [*_scrubbing(), "sbatch", str(submission_file_path)]

    def text(self) -> str:
        """What sbatch would be given."""
        return str(self._make_submission_file_text(self._submitit_command_str, "0"))


def _scrubbing() -> list[str]:
    return ["env", *(part for name in scrubbed() for part in ("-u", name))]


def _executor(job: Job, site: Site) -> _Executor:
    run = Run(job.folder)
    # A requeued job is the same submitit job: submitit's own count of time-outs must not end it.
    executor = _Executor(run.sbatch, max_num_timeout=1000, python=site.python)
    given = {
        "partition": site.partition, "account": site.account, "qos": site.qos,
        "constraint": site.constraint, "mem": site.memory, "gpus_per_node": site.gpus or None,
    }  # fmt: skip
    cpus = site.cpus or 1
    flags = {key.replace("_", "-"): value for key, value in site.sbatch.items() if value is not False}
    executor.update_parameters(
        **{key: value for key, value in given.items() if value is not None},
        job_name=f"{job.stage}-{run.name}", nodes=site.nodes, ntasks_per_node=site.per_node,
        cpus_per_task=cpus, signal_delay_s=site.signal_s, time=site.minutes, wckey=None,
        additional_parameters={"chdir": str(job.folder), "requeue": True, **flags},
        srun_args=["--kill-on-bad-exit=1", "--wait=60"], setup=_setup(job, site, cpus),
    )  # fmt: skip
    return executor


def _setup(job: Job, site: Site, cpus: int) -> list[str]:
    """Shell lines before srun: the site's, then the code that was submitted and the CPUs of each rank."""
    path = os.pathsep.join(filter(None, [str(_code(job)), os.environ.get("PYTHONPATH")]))
    exports = {"PYTHONPATH": path, "SRUN_CPUS_PER_TASK": str(cpus), **threads(cpus)}
    return [*site.setup, *(f"export {name}={shlex.quote(value)}" for name, value in exports.items())]


def _code(job: Job) -> Path:
    return Run(job.folder).attempts / str(job.attempt) / "code"


def text(job: Job, site: Site) -> str:
    """The sbatch file of the job; writes nothing and needs no Slurm."""
    return _executor(job, site).text()


def start_time(job: Job, site: Site) -> str:
    """When Slurm says that the job would start; the reason where it would refuse it."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch on this machine"
    command = [*_scrubbing(), "sbatch", "--test-only"]
    try:
        done = subprocess.run(
            command, input=text(job, site), capture_output=True, text=True, timeout=ANSWER_S, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return f"Slurm did not answer within {ANSWER_S} s"
    return (done.stderr or done.stdout).strip().removeprefix("sbatch: ")


def submit(job: Job, site: Site) -> str:
    """Hands the job to Slurm; its job id."""
    snapshot(_code(job))
    try:
        submitted: Any = _executor(job, site).submit(job)
    except submitit.core.utils.FailedJobError as error:
        raise Mistake(f"sbatch refused the job: {error}") from None
    return str(submitted.job_id)


# ---------------------------------------------------------------- inside the job


def requeue(attempt: Attempt, at_time_limit: bool) -> str | None:
    """Puts the job back into the queue; or the reason why not.

    Only at the time limit (Slurm itself requeues what it preempts), only when the run was not
    cancelled, and only when this attempt brought something new.
    """
    if not at_time_limit:
        return "stopped by Slurm or by scancel"
    if (attempt.run.folder / "cancelled").exists():
        return "stopped: the run was cancelled"
    if not _advanced(attempt):
        return "stopped at the time limit without a new checkpoint: not started again; give it more time"
    _others_left(attempt)
    identity = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{identity}_{task}" if identity else os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    return f"stopped; Slurm refused to start it again: {done.stderr.strip()}" if done.returncode else None


def _advanced(attempt: Attempt) -> bool:
    """Whether this attempt left a checkpoint; for a stage that has none, whether it did anything."""
    record = read_json(attempt.path) or {}
    if attempt.run.checkpoints.is_dir():
        newest = max((path.stat().st_mtime for path in attempt.run.checkpoints.iterdir()), default=0.0)
        return newest > datetime.fromisoformat(record["start"]).timestamp()
    return bool(record.get("progress", {}).get("done"))


def _others_left(attempt: Attempt) -> None:
    """A barrier through the run folder: all other ranks have written their exit records."""
    deadline = time.monotonic() + OTHERS_LEAVE_S
    others = [attempt.folder / f"rank-{rank}.json" for rank in range(1, attempt.size)]
    while any(not (read_json(path) or {}).get("exit") for path in others):
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


# ---------------------------------------------------------------- the queue


@dataclass(frozen=True)
class Queued:
    """What Slurm says of a job."""

    state: str
    reason: str = ""


def queue(job: str) -> Queued | None:
    """Slurm's word on a job: from squeue, then scontrol, then sacct; None where it knows nothing."""
    for command, pattern in (
        (["squeue", "-h", "-j", job, "-o", "%T|%r"], r"(?P<state>[A-Z_]+)\|(?P<reason>.*)"),
        (["scontrol", "show", "job", "-o", job], r".*JobState=(?P<state>\S+) Reason=(?P<reason>\S+).*"),
        (["sacct", "-X", "-n", "-P", "-j", job, "-o", "State"], r"(?P<state>[A-Z_]+)(?P<reason>.*)"),
    ):
        found = re.match(pattern, _answer(command))
        if found:
            return Queued(found["state"], found["reason"])
    return None


def _answer(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cancel(job: str) -> None:
    """Tells Slurm to end the job: TERM first, so that it can save."""
    done = subprocess.run(["scancel", job], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Mistake(f"scancel {job}: {done.stderr.strip()}")
