"""This machine as a site: submitit packs the job, its ranks run in the foreground, watched over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.local.local import LocalJob

from hpc_isl.cluster.follow import View
from hpc_isl.cluster.jobs import Job, threads
from hpc_isl.cluster.record import import_path
from hpc_isl.cluster.supervise import Ending, Requests, Watch, start
from hpc_isl.run import Run
from hpc_isl.site import Site, gpus_here


@dataclass(frozen=True)
class Place:
    """Where this process stands in its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    cpus: int = 1
    restarts: int = 0


def place() -> Place:
    """From the environment that submitit or Slurm gives a rank; outside of a job, rank 0 of 1."""
    if not os.environ.get("SUBMITIT_EXECUTOR"):
        return Place(cpus=cpus_here())
    here = submitit.JobEnvironment()
    local_size = max(1, here.num_tasks // here.num_nodes)
    # A local run may stand inside a Slurm job, whose words are then not meant for it.
    slurm = os.environ if here.cluster == "slurm" else {}
    cpus = slurm.get("SLURM_CPUS_PER_TASK") or os.environ.get("HPC_ISL_CPUS") or cpus_here() // local_size
    restarts = int(slurm.get("SLURM_RESTART_COUNT") or 0)
    return Place(here.global_rank, here.num_tasks, here.local_rank, local_size, max(1, int(cpus)), restarts)


def cpus_here() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


class _Prepared(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's local executor up to the packed job: its own controller knows neither a crashed rank
    nor Ctrl-C, ends jobs after minutes, and overwrites CUDA_VISIBLE_DEVICES."""

    job_id = "0"

    def _submit_command(self, command: str) -> LocalJob[Any]:
        return LocalJob(folder=self.folder, job_id=self.job_id, tasks=list(range(self._num_tasks())))


def pack(job: Job, site: Site) -> list[str]:
    """Packs the job into its run folder; the command that a rank runs, a shell's if the site needs one."""
    folder = Run(job.folder).attempts / str(job.attempt) / "submitit"
    executor = _Prepared(folder, python=site.python)
    executor.job_id = str(job.attempt)
    executor.update_parameters(tasks_per_node=site.ranks, timeout_min=site.minutes or 60 * 24 * 365)
    executor.submit(job)
    command: str = executor._submitit_command_str
    return ["bash", "-c", "\n".join(["set -e", *site.setup, f"exec {command}"])]


def environments(job: Job, site: Site) -> list[dict[str, str]]:
    """One per rank: its place as submitit says it, its share of CPUs, the visible GPUs."""
    cpus = site.cpus or max(1, cpus_here() // site.ranks)
    common = {
        **os.environ, **threads(cpus),
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": str(job.attempt),
        "SUBMITIT_LOCAL_NTASKS": str(site.ranks),
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "HPC_ISL_CPUS": str(cpus),
        "HPC_ISL_WATCHER": str(os.getpid()),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    if site.gpus is not None:
        common["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_here()[: site.gpus])
    names = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID")
    return [common | dict.fromkeys(names, str(rank)) for rank in range(site.ranks)]


def compute(job: Job, site: Site) -> Ending:
    """The whole run in the foreground: until its last rank has ended, whatever ends it."""
    attempt = Run(job.folder).attempts / str(job.attempt)
    view = View(Run(job.folder), job.attempt)
    if site.nodes > 1:
        view.say(f"one machine: the processes of {site.nodes} nodes run here, {site.ranks} in all")
    command, places = pack(job, site), environments(job, site)
    logs = [attempt / f"rank-{rank}.log" for rank in range(site.ranks)]
    limit_s = site.minutes * 60.0 if site.minutes else None
    with Requests().listening() as requests:
        ranks = start(command, places, logs, job.folder)
        ending = Watch(ranks, requests, view.say, limit_s).until_ended(view.tick)
    view.close()
    return ending
