"""A job of Slurm that has begun, as a site: srun starts the ranks, we stand beside it in the foreground."""

from __future__ import annotations

import os
from collections.abc import Callable

from hpc_isl.cluster import local
from hpc_isl.cluster.jobs import Job, threads
from hpc_isl.cluster.record import import_path
from hpc_isl.cluster.supervise import Ending, Requests, Watch, start
from hpc_isl.site import Site


def compute(
    job: Job, site: Site, requests: Requests, say: Callable[[str], None], tick: Callable[[], None]
) -> Ending:
    """The whole run: until srun has ended, which ends all ranks when one of them fails."""
    cpus = site.cpus or 1
    environment = {
        **os.environ, **threads(cpus),
        "HPC_ISL_EXECUTOR": "slurm",
        "SRUN_CPUS_PER_TASK": str(cpus),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    srun = ["srun", "--kill-on-bad-exit=1", "--wait=60", f"--nodes={site.nodes}", f"--ntasks={site.ranks}"]
    log = job.run.attempts / str(job.attempt) / "srun.log"
    processes = start(local.command(job, site, srun), [environment], [log], job.folder)
    return Watch(processes, requests, say).until_ended(tick)
