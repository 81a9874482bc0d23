"""Runs whose folders are there are handed to whatever computes them: Slurm, an allocation, this machine."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from hpc_isl.cluster.executors import allocation, local, local_array
from hpc_isl.cluster.executors.supervise import Requests
from hpc_isl.cluster.monitor import follow, messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.monitor.progress_view import View
from hpc_isl.cluster.rank.environment import job_here
from hpc_isl.cluster.run_folder import arrays, status, submissions
from hpc_isl.cluster.run_folder.job import Job
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.slurm import queue
from hpc_isl.cluster.tracking.forward import forwarding
from hpc_isl.errors import UserError
from hpc_isl.files import now, share_with_group
from hpc_isl.run import Run
from hpc_isl.site import Site

if TYPE_CHECKING:
    from hpc_isl.cluster.executors.slurm import Batch


def dispatch(
    run: Run, members: Sequence[Run], site: Site, console: Console, after: Sequence[Run] = ()
) -> int | None:
    """Starts new attempts of `members` (of an array, or the run alone).

    Returns:
        The exit code of what was computed here; None: Slurm has it, and it goes on by itself.
    """
    share_with_group(site.group)
    if site.executor == "slurm":
        _to_slurm(run, members, site, console, after)
        return None
    _wait_for(after, console)
    if site.executor == "allocation":
        return _in_allocation(run, site, console)
    return _array_here(run, members, site, console) if run.elements() else _here(run, site, console)


# ---------------------------------------------------------------- Slurm


def check_dispatch(site: Site, after: Sequence[Run]) -> None:
    """Before anything is made: a `UserError` where there is no sbatch, where the cluster can never give
    what the site asks for, or where what comes before runs elsewhere."""
    if site.executor != "slurm":
        return
    if shutil.which("sbatch") is None:
        raise UserError(
            "this site needs Slurm, and there is no sbatch on this machine; type it on a login node"
        )
    from hpc_isl.cluster.slurm import limits

    limits.check(site)
    _jobs_of(after, site)


def _to_slurm(run: Run, members: Sequence[Run], site: Site, console: Console, after: Sequence[Run]) -> None:
    from hpc_isl.cluster.executors import slurm

    superseded = _waiting(members[-1])
    batch = _batch(run, members, site, after)
    parts = slurm.parts(batch, site)
    facts = {job: each for part in parts for job, each in part.facts(batch, site)}

    def taken(part: slurm.Part, names: Sequence[str]) -> None:
        for job, name in zip(part.jobs, names, strict=True):
            submissions.note(job.run, job.attempt, site, job=name, **facts[job])

    with _uninterrupted():
        for job in batch.jobs:
            submissions.note(job.run, job.attempt, site, **_this_process(), **facts[job])
        try:
            if superseded.get("job"):
                queue.cancel([str(superseded["job"])], *submissions.cluster(superseded))
            names = slurm.submit(batch, site, parts, taken)
        except submissions.Unanswered:
            raise
        except UserError:  # refused: it is as if it had not been asked for
            _forget(run, batch.attempt, batch.jobs)
            raise
        if members != [run]:
            families = sorted({name.split("_")[0] for name in names})
            submissions.note(run, batch.attempt, site, jobs=families)
    messages.queued(run, names, console)


def _batch(run: Run, members: Sequence[Run], site: Site, after: Sequence[Run]) -> Batch:
    """The jobs of these members, each with a new attempt; the last element of an array waits for others."""
    from hpc_isl.cluster.executors import slurm

    waits, final = _jobs_of(after, site), members[-1] if arrays.is_final_element(members[-1]) else None
    beside = _jobs_of_others(final, members, site) if final else ()
    first = run.next_attempt()
    jobs = tuple(Job.of(member, first if member == run else None) for member in members)
    return slurm.Batch(run, first, jobs, waits, final is not None, beside)


def _jobs_of_others(final: Run, members: Sequence[Run], site: Site) -> tuple[str, ...]:
    """Returns the Slurm jobs on this cluster of living elements that were submitted before these."""
    earlier = [element for element in arrays.other_elements(final.array or final) if element not in members]
    living = [run for run, found in status.statuses(earlier).items() if found.alive]
    asked = submissions.newest_of(living).values()
    jobs = [str(submission["job"]) for submission in asked if submissions.is_on(submission, site)]
    return tuple(sorted({job.split("_")[0] for job in jobs}))


def _waiting(member: Run) -> dict[str, Any]:
    """What the last element was handed to, where it waits for elements that have ended: a new job waits for
    those that begin now."""
    waits = arrays.is_final_element(member) and status.status_of(member).alive
    return submissions.newest_of([member])[member] if waits else {}


def _this_process() -> dict[str, object]:
    me = psutil.Process()
    return {"pid": me.pid, "pid_started": me.create_time()}


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
    for folder in (run.attempts / str(first), *(job.run.attempts / str(job.attempt) for job in jobs)):
        shutil.rmtree(folder, ignore_errors=True)


def _jobs_of(after: Sequence[Run], site: Site) -> tuple[str, ...]:
    """Slurm's jobs of the runs before."""
    found = []
    for run, asked in submissions.newest_of(after).items():
        if not submissions.is_on(asked, site):
            raise UserError(f"--after {run.label}: it does not run on this cluster; wait until it is done")
        found.append(str(asked["job"]))
    return tuple(dict.fromkeys(found))


# ---------------------------------------------------------------- here


def _here(run: Run, site: Site, console: Console) -> int:
    """In the foreground, while a process of its own forwards the metrics."""
    job = Job.of(run)
    submissions.note(run, job.attempt, site, **_this_process())
    view = View(run, job.attempt)
    with forwarding(run, site):
        with Requests().listening() as requests:
            ending = local.compute(job, site, requests, view.log, view.tick)
        view.close()
        submissions.note(run, job.attempt, site, ended=now())
    return messages.ended(run, ending, console)


def _array_here(run: Run, members: Sequence[Run], site: Site, console: Console) -> int:
    """As many elements at once as fit; the others wait for their turn."""
    jobs = [Job.of(member) for member in members]
    final = next((job for job in jobs[-1:] if arrays.is_final_element(job.run)), None)
    run.next_attempt()
    for job in jobs:
        submissions.note(job.run, job.attempt, site, **_this_process())
    with forwarding(run, site):
        first = [job for job in jobs if job != final]
        interrupted = local_array.compute_all(first, site, console.log, final)
        for job in jobs:
            submissions.note(job.run, job.attempt, site, ended=now())
    return messages.ended_array(run, interrupted, console)


def _in_allocation(run: Run, site: Site, console: Console) -> int:
    """Through srun, in the job of Slurm that we stand in."""
    job = Job.of(run)
    submissions.note(run, job.attempt, site, job=job_here())
    view = View(run, job.attempt)
    with Requests().listening() as requests:
        ending = allocation.compute(job, site, requests, view.log, view.tick)
    view.close()
    return messages.ended(run, ending, console)


def _wait_for(after: Sequence[Run], console: Console) -> None:
    """Here there is no queue that waits for us."""
    for run in after:
        console.log(f"waiting for {run.label!r}")
        follow.until_ended(run)
        if status.status_of(run).state != RunState.DONE:
            raise UserError(f"--after {run.label}: it is {status.status_of(run).state}")
