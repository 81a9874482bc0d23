"""Runs whose folders exist are handed to what computes them: Slurm, an allocation, this machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from hpc_isl.cluster.executors import local, local_array
from hpc_isl.cluster.executors.local import StopRequests
from hpc_isl.cluster.monitor import follow, messages
from hpc_isl.cluster.monitor.follow import View
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import folders, status, submissions
from hpc_isl.cluster.run_folder.job import Job, job_here
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.slurm import commands
from hpc_isl.cluster.tracking.forward import forwarding
from hpc_isl.errors import UserError
from hpc_isl.files import now, share_with_group
from hpc_isl.run import Run
from hpc_isl.site import Site

if TYPE_CHECKING:
    from hpc_isl.cluster.executors.slurm import Batch, Part


def dispatch(
    run: Run, members: Sequence[Run], site: Site, console: Console, after: Sequence[Run] = ()
) -> int | None:
    """Starts new attempts of `members` (of an array, or the run alone).

    Returns:
        The exit code of what was computed here; None: Slurm has it, and it continues by itself.
    """
    share_with_group(site.group)
    if site.executor == "slurm":
        _submit_to_slurm(run, members, site, console, after)
        return None
    for earlier_run in after:  # there is no queue here that would wait
        console.log(f"waiting for {earlier_run.label!r}")
        follow.until_ended(earlier_run)
        if (state := status.status_of(earlier_run).state) != RunState.DONE:
            raise UserError(f"--after {earlier_run.label}: it is {state}")
    if site.executor == "local" and run.elements():
        return _run_array_here(run, members, site, console)
    return _run_here(run, site, console)


def _run_here(run: Run, site: Site, console: Console) -> int:
    """Computes one run in the foreground, through srun where this process stands in a job of Slurm."""
    job = Job.of(run)
    if site.executor == "allocation":
        submissions.note(run, job.attempt, site, job=job_here())
        view = View(run, job.attempt)
        with StopRequests().listening() as requests:
            ending = local.compute_in_allocation(job, site, requests, view.log, view.tick)
        view.close()
        records = status.ranks(run, job.attempt)
        # A job that goes back into the queue starts the run again; in any other, the run has ended before it.
        if not status.all_stopped(records) or status.why_stopped(run, records):
            submissions.note(run, job.attempt, site, job=job_here(), ended=now())
        return messages.ended(run, ending, console)
    submissions.note(run, job.attempt, site, **_process_identity())
    view = View(run, job.attempt)
    with forwarding(run, site):  # in a process of its own
        with StopRequests().listening() as requests:
            ending = local.compute(job, site, requests, view.log, view.tick)
        view.close()
        submissions.note(run, job.attempt, site, ended=now())
    return messages.ended(run, ending, console)


def _run_array_here(run: Run, members: Sequence[Run], site: Site, console: Console) -> int:
    """Computes as many elements at once as fit; the others wait for their turn."""
    jobs = [Job.of(member) for member in members]
    final = next((job for job in jobs[-1:] if folders.is_final_element(job.run)), None)
    run.next_attempt()
    for job in jobs:
        submissions.note(job.run, job.attempt, site, **_process_identity())
    with forwarding(run, site):
        other_jobs = [job for job in jobs if job != final]
        interrupted = local_array.compute_all(other_jobs, site, console.log, final)
        for job in jobs:
            submissions.note(job.run, job.attempt, site, ended=now())
    return messages.ended_array(run, interrupted, console)


def _process_identity() -> dict[str, object]:
    process = psutil.Process()
    return {"pid": process.pid, "pid_started": process.create_time()}


# ---------------------------------------------------------------- Slurm


def check_dispatch(site: Site, after: Sequence[Run]) -> None:
    """Checks, before anything is made, that the site can compute.

    Raises:
        UserError: there is no sbatch, the cluster can never give what the site asks for, or a run that must
            be done before runs elsewhere.
    """
    if site.executor != "slurm":
        return
    if shutil.which("sbatch") is None:
        raise UserError(
            "this site needs Slurm, and there is no sbatch on this machine; type it on a login node"
        )
    from hpc_isl.cluster.slurm import limits

    limits.check(site)
    _jobs_of(after, site)


def _submit_to_slurm(
    run: Run, members: Sequence[Run], site: Site, console: Console, after: Sequence[Run]
) -> None:
    from hpc_isl.cluster.executors import slurm

    final = members[-1] if folders.is_final_element(members[-1]) else None
    # The final element may still wait for elements that have ended: its new job waits for the present ones.
    replaces_job = final is not None and status.status_of(final).alive
    superseded = submissions.newest_of([final])[final] if final and replaces_job else {}
    batch = _batch(run, members, final, site, after)
    parts = slurm.parts(batch, site)
    facts = {job: job_facts for part in parts for job, job_facts in part.facts(batch, site)}

    def note_jobs(part: Part, names: Sequence[str]) -> None:
        for job, name in zip(part.jobs, names, strict=True):
            submissions.note(job.run, job.attempt, site, job=name, **facts[job])

    with commands.uninterrupted():
        # Before sbatch is called: if this process is killed in between, they are searched in Slurm's queue.
        for job in batch.jobs:
            submissions.note(job.run, job.attempt, site, **_process_identity(), **facts[job])
        try:
            if superseded.get("job"):
                commands.cancel([str(superseded["job"])], *submissions.cluster(superseded))
            names = slurm.submit(batch, site, parts, note_jobs)
        except submissions.Unanswered:
            raise
        except UserError:  # refused: no trace of these attempts is left
            for folder in (run.attempts / str(batch.attempt), *(job.attempt_folder for job in batch.jobs)):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if members != [run]:
            families = sorted({name.split("_")[0] for name in names})
            submissions.note(run, batch.attempt, site, jobs=families)
        # Before a Ctrl-C that came meanwhile: its user would take the run for stopped.
        messages.queued(run, names, console)


def _batch(run: Run, members: Sequence[Run], final: Run | None, site: Site, after: Sequence[Run]) -> Batch:
    """Returns the jobs of these members, each with a new attempt."""
    from hpc_isl.cluster.executors import slurm

    jobs_before, jobs_beside = _jobs_of(after, site), set[str]()
    if final:  # it also waits for living elements that were submitted before
        earlier = [member for member in folders.other_elements(final.array or final) if member not in members]
        living = [member for member, run_status in status.statuses(earlier).items() if run_status.alive]
        newest = submissions.newest_of(living).values()
        jobs_beside = {
            str(submission["job"]).split("_")[0]
            for submission in newest
            if submissions.is_on(submission, site)
        }
    attempt = run.next_attempt()
    jobs = tuple(Job.of(member, attempt if member == run else None) for member in members)
    return slurm.Batch(run, attempt, jobs, jobs_before, final is not None, tuple(sorted(jobs_beside)))


def _jobs_of(after: Sequence[Run], site: Site) -> tuple[str, ...]:
    """Returns Slurm's jobs of the runs before."""
    jobs = []
    for run, submission in submissions.newest_of(after).items():
        if not submissions.is_on(submission, site):
            raise UserError(f"--after {run.label}: it does not run on this cluster; wait until it is done")
        jobs.append(str(submission["job"]))
    return tuple(dict.fromkeys(jobs))
