"""Runs whose folders are there are handed to whatever computes them: Slurm, an allocation, this machine."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

from hpc_isl.cluster import allocation, local, local_array, record, report, status
from hpc_isl.cluster.follow import View
from hpc_isl.cluster.forward import forwarding
from hpc_isl.cluster.jobs import Job, module_of
from hpc_isl.cluster.place import job_here
from hpc_isl.cluster.report import Caller
from hpc_isl.cluster.supervise import Requests
from hpc_isl.files import now, write_atomic
from hpc_isl.mistake import Mistake
from hpc_isl.run import Run
from hpc_isl.site import Site
from hpc_isl.strict import to_yaml


def hand_over(
    run: Run, members: Sequence[Run], site: Site, caller: Caller, after: Sequence[Run] = ()
) -> int | None:
    """Starts new attempts of `members` (of an array, or the run alone).

    Returns:
        The exit code of what was computed here; None: Slurm has it, and it goes on by itself.
    """
    if site.executor == "slurm":
        _to_slurm(run, members, site, caller, after)
        return None
    _wait_for(after, caller)
    if site.executor == "allocation":
        return _in_allocation(run, site, caller)
    return _array_here(run, members, site, caller) if run.elements() else _here(run, site, caller)


def _job(run: Run) -> Job:
    return Job(module_of(run.stage), run.folder, run.next_attempt())


def note_submission(run: Run, attempt: int, site: Site, **facts: object) -> None:
    """What this attempt was handed to; the run's site is from now on this one."""
    content = {
        "time": now(), "host": socket.gethostname(), "code": record.code_digest(),
        "executor": site.executor, "slurm_conf": site.slurm_conf and str(site.slurm_conf),
        "memory": site.memory, "limit": site.time, **facts,
    }  # fmt: skip
    write_atomic(run.attempts / str(attempt) / "submission.json", json.dumps(content, indent=1))
    write_atomic(run.site, to_yaml(site))


# ---------------------------------------------------------------- Slurm


def needs_slurm(site: Site) -> None:
    """A `Mistake` where there is no sbatch, or where the cluster can never give what the site asks for."""
    if site.executor != "slurm":
        return
    if shutil.which("sbatch") is None:
        raise Mistake(
            "this site needs Slurm, and there is no sbatch on this machine; type it on a login node"
        )
    from hpc_isl.cluster.slurm import limits

    limits.check(site)


def _to_slurm(run: Run, members: Sequence[Run], site: Site, caller: Caller, after: Sequence[Run]) -> None:
    from hpc_isl.cluster.slurm import sbatch

    first = run.next_attempt()
    jobs = [
        Job(module_of(one.stage), one.folder, first if one == run else one.next_attempt()) for one in members
    ]
    batch = sbatch.Batch(run, first, tuple(jobs), _jobs_of(after, site))
    with _uninterrupted():
        try:
            numbers = sbatch.submit(batch, site)
        except Mistake:  # refused: it is as if it had not been asked for
            _forget(run, first, jobs)
            raise
        for job, number in zip(jobs, numbers, strict=True):
            note_submission(job.run, job.attempt, site, job=number)
        if members != [run]:
            note_submission(run, first, site, jobs=sorted({number.split("_")[0] for number in numbers}))
    report.queued(run, numbers, caller)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C comes after the block: a job that Slurm has taken is also noted."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget(run: Run, first: int, jobs: Sequence[Job]) -> None:
    if first == 0:
        shutil.rmtree(run.folder, ignore_errors=True)
        return
    for folder in (run.attempts / str(first), *(job.run.attempts / str(job.attempt) for job in jobs)):
        shutil.rmtree(folder, ignore_errors=True)


def _jobs_of(after: Sequence[Run], site: Site) -> tuple[str, ...]:
    """Slurm's jobs of the runs before; an array is one job, whatever it has elements."""
    found = []
    for run in after:
        for member in run.elements() or [run]:
            asked = status.submission(member)
            if asked.get("slurm_conf") != (site.slurm_conf and str(site.slurm_conf)) or not asked.get("job"):
                raise Mistake(f"--after {run.label}: it does not run on this cluster; wait until it is done")
            found.append(str(asked["job"]))
    return tuple(dict.fromkeys(found))


# ---------------------------------------------------------------- here


def _here(run: Run, site: Site, caller: Caller) -> int:
    """In the foreground, while a process of its own forwards the metrics."""
    job, me = _job(run), psutil.Process()
    note_submission(run, job.attempt, site, pid=me.pid, pid_started=me.create_time())
    view = View(run, job.attempt)
    with forwarding(run, site):
        with Requests().listening() as requests:
            ending = local.compute(job, site, requests, view.say, view.tick)
        view.close()
        note_submission(run, job.attempt, site, ended=now())
    return report.ended(run, ending, caller)


def _array_here(run: Run, members: Sequence[Run], site: Site, caller: Caller) -> int:
    """As many elements at once as fit; the others wait for their turn."""
    me = psutil.Process()
    jobs = [_job(member) for member in members]
    run.next_attempt()
    for job in jobs:
        note_submission(job.run, job.attempt, site, pid=me.pid, pid_started=me.create_time())
    with forwarding(run, site):
        ending = local_array.compute_all(jobs, site, caller.say)
        for job in jobs:
            note_submission(job.run, job.attempt, site, ended=now())
    return report.ended_array(run, ending, caller)


def _in_allocation(run: Run, site: Site, caller: Caller) -> int:
    """Through srun, in the job of Slurm that we stand in."""
    job = _job(run)
    note_submission(run, job.attempt, site, job=job_here())
    view = View(run, job.attempt)
    with Requests().listening() as requests:
        ending = allocation.compute(job, site, requests, view.say, view.tick)
    view.close()
    return report.ended(run, ending, caller)


def _wait_for(after: Sequence[Run], caller: Caller) -> None:
    """Here there is no queue that waits for us."""
    if not after:
        return
    from hpc_isl.cluster import waiting

    for run in after:
        caller.say(f"waiting for {run.label!r}")
        waiting.until_ended(run)
        if status.state(run).word != "done":
            raise Mistake(f"--after {run.label}: it is {status.state(run).word}")
