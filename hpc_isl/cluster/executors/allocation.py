"""A job of Slurm that has begun, as a site: srun starts the ranks, we stand beside it in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpc_isl.cluster.executors import local
from hpc_isl.cluster.executors.supervise import Requests, Watch, start
from hpc_isl.cluster.rank import environment, requeue
from hpc_isl.cluster.run_folder import status
from hpc_isl.cluster.run_folder.job import FAILED, MISTAKE, STOPPED, Ending, Job, srun_flags, threads
from hpc_isl.cluster.run_folder.provenance import import_path
from hpc_isl.cluster.slurm.commands import step_environment
from hpc_isl.site import Site


def compute(
    job: Job, site: Site, requests: Requests, log: Callable[[str], None], tick: Callable[[], None]
) -> Ending:
    """The whole run: until srun has ended, which ends all ranks when one of them fails."""
    cpus = site.cpus or 1
    asked = job.run.attempts / str(job.attempt) / "requeue"
    variables = {
        **step_environment(), **threads(cpus),
        requeue.ASK: str(asked),
        "HPC_ISL_EXECUTOR": "allocation",
        "SRUN_CPUS_PER_TASK": str(cpus),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    srun = ["srun", *srun_flags(job.run.stage), f"--nodes={site.nodes}", f"--ntasks={site.ranks}"]
    log_file = job.run.attempts / str(job.attempt) / "srun.log"
    processes = start(local.command(job, site, srun), [variables], [log_file], job.folder)
    # srun hands USR1 on to the ranks; TERM it takes for itself, and kills them.
    watch = Watch(processes, requests, log, stops=signal.SIGUSR1, kills=signal.SIGTERM)
    ending = watch.until_ended(tick)
    if refused := requeue.outside(asked, environment.job_here() or ""):
        log(f"not started again: {refused}")
    return _of_the_ranks(job, site, log_file, ending)


def _of_the_ranks(job: Job, site: Site, log_file: Path, ending: Ending) -> Ending:
    """srun has one code for all ranks; their records, or its own words, say which of them it was."""
    records = status.ranks(job.run, job.attempt)
    failure = status.first_failure(records)
    died = status.DIED.search(log_file.read_text(errors="replace"))
    [code] = ending.codes.values()
    codes = dict.fromkeys(range(site.ranks), -(code - 128) if code > 128 else code)
    if failure is not None:
        own = (
            MISTAKE if failure["outcome"] == "mistake" else FAILED
        )  # those that were ended with it may say 3
        return replace(ending, codes=dict.fromkeys(codes, own), crashed=int(failure["rank"]))
    if ending.stopped or (records and all(record.get("outcome") == "stopped" for record in records)):
        return replace(ending, codes=dict.fromkeys(codes, STOPPED), crashed=None)
    crashed = ending.crashed
    return replace(ending, codes=codes, crashed=int(died["rank"]) if code and died else crashed)
