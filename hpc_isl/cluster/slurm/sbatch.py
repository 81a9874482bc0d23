"""A Slurm cluster as a site: submitit packs the jobs and writes the sbatch file; jobs are detached."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from hpc_isl.cluster.jobs import POOLED, Job, interpreter, srun_flags, threads
from hpc_isl.cluster.record import python_path, snapshot
from hpc_isl.cluster.slurm import limits, queue
from hpc_isl.cluster.slurm.ask import ask, environment
from hpc_isl.cluster.worker import work
from hpc_isl.mistake import Mistake
from hpc_isl.run import Run
from hpc_isl.site import Site


@dataclass(frozen=True)
class Batch:
    """What is submitted together: the job of one run, or the elements of an array.

    Attributes:
        run: in whose folder sbatch files, logs and the code lie: the run's own, or the array's.
        attempt: of that run; the code is kept below it.
        jobs: one, or one for each element.
        after: Slurm's jobs that must have ended well before these start.
        last: whether the last job waits until all others have ended, however they end.
        beside: Slurm's jobs that the last one waits for too.
    """

    run: Run
    attempt: int
    jobs: tuple[Job, ...]
    after: tuple[str, ...] = ()
    last: bool = False
    beside: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """Of its jobs: an array's own run is of none."""
        return self.jobs[0].run.stage

    @property
    def comment(self) -> str:
        """What tells Slurm's jobs of this attempt from all others."""
        return f"hpc_isl attempt {self.attempt}"

    @property
    def code(self) -> Path:
        return self.run.attempts / str(self.attempt) / "code"


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's, but that its text can be had without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self, elements: int) -> str:
        """What sbatch would be given for that many jobs."""
        if elements > 1:
            self.parameters["map_count"] = elements
        return str(self._make_submission_file_text(self._submitit_command_str, "0"))


def _executor(batch: Batch, site: Site, throttle: int, after: str | None) -> _Executor:
    # A requeued job is the same submitit job: submitit's own count of time-outs must not end it.
    executor = _Executor(batch.run.sbatch, max_num_timeout=1000, python=interpreter(site))
    given = {
        "partition": site.partition, "account": site.account, "qos": site.qos,
        "constraint": site.constraint, "mem": site.memory, "gpus_per_node": site.gpus or None,
        "mail_user": site.mail, "mail_type": "END,FAIL" if site.mail else None,
        "comment": batch.comment, "dependency": after,
    }  # fmt: skip
    cpus = site.cpus or 1
    executor.update_parameters(
        **{key: value for key, value in given.items() if value is not None},
        job_name=f"{batch.run.stage}-{batch.run.name}", nodes=site.nodes, ntasks_per_node=site.per_node,
        cpus_per_task=cpus, signal_delay_s=site.signal_s, time=site.minutes, wckey=None,
        array_parallelism=throttle, additional_parameters=_flags(batch, site, after),
        srun_args=srun_flags(batch.stage), setup=_setup(batch, site, cpus),
    )  # fmt: skip
    return executor


def _flags(batch: Batch, site: Site, after: str | None) -> dict[str, str | int | bool]:
    """Flags of sbatch that submitit has no word for; the site's own come last and win."""
    flags: dict[str, str | int | bool] = {"chdir": str(batch.run.folder), "requeue": True}
    if batch.stage in POOLED:  # it goes on when one of its nodes is lost
        flags["no-kill"] = True
    if after:  # what waits for a job that failed would wait for ever
        flags["kill-on-invalid-dep"] = "yes"
    if site.reservation:
        flags["reservation"] = site.reservation
    return {key: value for key, value in (flags | site.flags).items() if value is not False}


def _setup(batch: Batch, site: Site, cpus: int) -> list[str]:
    """Shell lines before srun: the site's, then the code that was submitted and the CPUs of each rank."""
    path = python_path(batch.code)
    exports = {"HPC_ISL_EXECUTOR": "slurm", "PYTHONPATH": path, "SRUN_CPUS_PER_TASK": str(cpus)}
    return [
        *site.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in {**exports, **threads(cpus)}.items()),
        *(_requeue_from_outside(batch) if site.container else []),
    ]


def _requeue_from_outside(batch: Batch) -> list[str]:
    """A container has no scontrol: the job asks for its requeue with a file, and this shell does it."""
    return [
        f'export HPC_ISL_REQUEUE={shlex.quote(str(batch.run.sbatch))}/"$SLURM_JOB_ID".requeue',
        """trap 'rm "$HPC_ISL_REQUEUE" 2>/dev/null && scontrol requeue "$SLURM_JOB_ID"' EXIT""",
    ]


# ---------------------------------------------------------------- before it is handed over


def text(batch: Batch, site: Site) -> str:
    """The sbatch file of the first part of the batch; writes nothing and needs no Slurm."""
    first = parts(batch, site)[0]
    executor = _executor(batch, site, first.throttle, _dependency(batch.after, first.beside))
    return executor.text(len(first.jobs))


def start_time(batch: Batch, site: Site) -> str:
    """When Slurm says that the job would start; the reason where it would refuse it."""
    _, out, errors = ask(["sbatch", "--test-only"], site.slurm_conf, given=text(batch, site))
    return (errors or out).removeprefix("sbatch: ")


@dataclass(frozen=True)
class Part:
    """Jobs of one call of sbatch; `waits`: numbers of the parts that must have ended before, and `beside`
    other jobs."""

    jobs: tuple[Job, ...]
    throttle: int
    waits: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()


def parts(batch: Batch, site: Site) -> list[Part]:
    """The batch in arrays of no more elements than the cluster takes, which share the throttle.

    Where there are more arrays than elements may run at once, one waits for another; and the last job for
    all of them, so that it can say what it misses.
    """
    jobs = batch.jobs[:-1] if batch.last else batch.jobs
    size = limits.max_array_size(site.slurm_conf) if len(jobs) > 1 else 1
    pieces = [jobs[first : first + size] for first in range(0, len(jobs), size)]
    throttle = site.array or len(jobs)
    lanes = min(len(pieces), throttle)
    shares = [throttle // lanes + (lane < throttle % lanes) for lane in range(lanes)]
    found = [
        Part(piece, shares[number % lanes], (number - lanes,) if number >= lanes else ())
        for number, piece in enumerate(pieces)
    ]
    last = Part(batch.jobs[-1:], 1, tuple(range(len(found))), batch.beside)
    return [*found, last] if batch.last else found


def _dependency(after: Sequence[str], before: Sequence[str]) -> str | None:
    """`afterok:7:8,afterany:9`."""
    conditions = [
        f"{word}:{':'.join(jobs)}" for word, jobs in (("afterok", after), ("afterany", before)) if jobs
    ]
    return ",".join(conditions) or None


# ---------------------------------------------------------------- handing over


def submit(batch: Batch, site: Site) -> list[str]:
    """Hands the jobs to Slurm, all or none; how it calls them, in their order."""
    snapshot(batch.code)
    names: list[list[str]] = []
    for part in parts(batch, site):
        before = [*(names[number][0].split("_")[0] for number in part.waits), *part.beside]
        executor = _executor(batch, site, part.throttle, _dependency(batch.after, before))
        try:
            names.append(_handed_over(executor, part.jobs, site.slurm_conf))
        except submitit.core.utils.FailedJobError as error:
            # A busy Slurm may have taken the job that it says it could not take.
            queue.cancel_all_of(str(batch.run.folder), batch.comment, site.slurm_conf)
            raise Mistake(f"sbatch refused the job: {error}") from None
    return [name for part_names in names for name in part_names]


def _handed_over(executor: _Executor, jobs: Sequence[Job], conf: Path | None) -> list[str]:
    with _environment(conf), redirect_stderr(io.StringIO()):  # submitit prints what it raises
        submitted: list[Any] = executor.map_array(work, jobs)
    return [str(one.job_id) for one in submitted]


@contextmanager
def _environment(conf: Path | None) -> Iterator[None]:
    """submitit calls sbatch with this process's environment: for that moment it is a clean one."""
    before, clean = dict(os.environ), environment(conf)
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
