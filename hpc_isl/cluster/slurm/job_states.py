"""What Slurm says of the runs that were handed to it, and whether a job of such a number is theirs at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_isl.cluster.run_folder import submissions
from hpc_isl.cluster.run_folder.submissions import Cluster, Submission
from hpc_isl.cluster.slurm import queue
from hpc_isl.cluster.slurm.queue import Queued
from hpc_isl.files import same_place
from hpc_isl.run import Run

HIDDEN = "Slurm shows its job to nobody but whoever submitted it"


@dataclass(frozen=True)
class Silence:
    """Nothing is heard of a job, which may be there all the same: the run's folder alone can tell."""

    why: str = "Slurm does not answer"


def job_states(asked: Mapping[Run, Submission]) -> dict[Run, Queued | Silence]:
    """Slurm's word on each run that was handed to it, where it has one."""
    said: dict[Run, Queued | Silence] = {
        run: Silence() for run, content in asked.items() if content.get("unheard")
    }
    for cluster, names in by_cluster(asked).items():
        answer = queue.queue(names.values(), *cluster)
        if answer is None:
            said |= dict.fromkeys(names, Silence())
            continue
        # Slurm counts its jobs anew now and then: one of that number that works elsewhere is another.
        known = {run: answer[name] for run, name in names.items() if name in answer}
        said |= {run: job for run, job in known.items() if _is_of(run, asked[run], job.folder)}
        others = [run for run in names if asked[run].get("user", os.getuid()) != os.getuid()]
        if (missing := set(others) - set(known)) and queue.hides_jobs_of_others(*cluster):
            said |= dict.fromkeys(missing, Silence(HIDDEN))
    return said


def by_cluster(asked: Mapping[Run, Submission]) -> dict[Cluster, dict[Run, str]]:
    """The jobs of those runs that Slurm has, by configuration and name of its cluster."""
    jobs: dict[Cluster, dict[Run, str]] = {}
    for run, content in asked.items():
        if content.get("job"):
            jobs.setdefault(submissions.cluster(content), {})[run] = str(content["job"])
    return jobs


def _is_of(run: Run, asked: Submission, folder: str) -> bool:
    """Whether a job that works in a folder is the one that was handed over.

    Slurm keeps the folder as sbatch was told it: that is compared, however the run is reached now, and if it
    was moved since. A copy of a run is another run.
    """
    if not folder or asked["executor"] == "allocation":
        return True
    if "workdir" not in asked:
        return any(same_place(folder, one.folder) for one in (run, run.array or run))
    return same_place(folder, asked["workdir"]) and not _is_copied(run, asked)


def _is_copied(run: Run, asked: Submission) -> bool:
    """Whether the folder from which it was handed over is still there, and is another than this."""
    return os.path.exists(asked["folder"]) and not same_place(asked["folder"], run.folder)
