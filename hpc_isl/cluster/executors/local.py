"""The ranks of a run, watched over in the foreground: processes of this machine, or srun in an allocation."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from hpc_isl.cluster.executors.supervise import StopRequests, Watch, start
from hpc_isl.cluster.rank import environment, requeue
from hpc_isl.cluster.run_folder import records
from hpc_isl.cluster.run_folder.job import (
    FAILED,
    MISTAKE,
    STOPPED,
    Ending,
    Job,
    interpreter,
    srun_flags,
    threads,
)
from hpc_isl.cluster.run_folder.provenance import import_path
from hpc_isl.cluster.slurm.commands import step_environment
from hpc_isl.site import Site, cpus_here, gpus_here


def command(job: Job, site: Site, before: Sequence[str] = ()) -> list[str]:
    """Returns the command of a rank, in a shell that runs the site's setup; `before` starts that shell."""
    python = [*shlex.split(interpreter(site)), "-u", "-m", "hpc_isl.cluster.rank.worker"]
    script = "\n".join(["set -e", *site.setup, 'exec "$@"'])
    return [*before, "bash", "-c", script, "rank", *python, job.module, str(job.folder), str(job.attempt)]


def environments(site: Site, gpus: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Returns one environment per rank: rank, share of the CPUs, visible GPUs (default: the site's)."""
    cpus = site.cpus or max(1, cpus_here() // site.ranks)
    common = {
        **os.environ, **threads(cpus),
        "HPC_ISL_EXECUTOR": "local",
        "HPC_ISL_SIZE": str(site.ranks),
        "HPC_ISL_CPUS": str(cpus),
        "HPC_ISL_WATCHER": str(os.getpid()),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    if gpus is None and site.gpus is not None:
        gpus = gpus_here()[: site.gpus]
    if gpus is not None:
        common["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return [common | {"HPC_ISL_RANK": str(rank)} for rank in range(site.ranks)]


def compute(
    job: Job,
    site: Site,
    requests: StopRequests,
    log: Callable[[str], None],
    tick: Callable[[], None],
    gpus: Sequence[str] | None = None,
) -> Ending:
    """Computes the whole run, until its last rank has ended; `tick` is called a few times a second."""
    if site.nodes > 1:
        log(f"one machine: the processes of {site.nodes} nodes run here, {site.ranks} in all")
    places = environments(site, gpus)
    logs = [job.attempt_folder / f"rank-{rank}.log" for rank in range(len(places))]
    limit_s = site.minutes * 60.0 if site.minutes else None
    ranks = start(command(job, site), places, logs, job.folder)
    return Watch(ranks, requests, log, limit_s).until_ended(tick)


def slots(site: Site) -> int:
    """Returns how many runs compute on this machine at once; a site without CPUs and GPUs takes it whole."""
    fits = [site.array] if site.array else []
    if site.cpus:
        fits.append(cpus_here() // (site.cpus * site.ranks))
    if site.gpus:
        fits.append(len(gpus_here()) // site.gpus)
    return max(1, min(fits, default=1))


# ---------------------------------------------------------------- in a job of Slurm that has begun


def compute_in_allocation(
    job: Job, site: Site, requests: StopRequests, log: Callable[[str], None], tick: Callable[[], None]
) -> Ending:
    """Computes the whole run through srun, which ends all ranks when one of them fails."""
    cpus = site.cpus or 1
    asked, log_file = job.attempt_folder / "requeue", job.attempt_folder / "srun.log"
    variables = {
        **step_environment(), **threads(cpus),
        requeue.ASK: str(asked),
        "HPC_ISL_EXECUTOR": "allocation",
        "SRUN_CPUS_PER_TASK": str(cpus),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    srun = ["srun", *srun_flags(job.run.stage), f"--nodes={site.nodes}", f"--ntasks={site.ranks}"]
    processes = start(command(job, site, srun), [variables], [log_file], job.folder)
    # srun passes USR1 on to the ranks; TERM it takes for itself, and kills them.
    watch = Watch(processes, requests, log, stops=signal.SIGUSR1, kills=signal.SIGTERM)
    ending = watch.until_ended(tick)
    if refused := requeue.requeue_from_outside(asked, environment.job_here() or ""):
        log(f"not started again: {refused}")
    # srun has one code for all ranks; their records, or its own output, tell which of them it was.
    [code] = ending.codes.values()
    by_rank = records.ranks(job.run, job.attempt)
    failure = records.first_failure(by_rank)
    died = records.DIED.search(log_file.read_text(errors="replace"))
    if failure is not None:  # ranks that were ended with it may have code 3
        code = MISTAKE if failure["outcome"] == "mistake" else FAILED
        return replace(ending, codes=dict.fromkeys(range(site.ranks), code), crashed=int(failure["rank"]))
    if ending.stopped or records.all_stopped(by_rank):
        return replace(ending, codes=dict.fromkeys(range(site.ranks), STOPPED), crashed=None)
    codes = dict.fromkeys(range(site.ranks), 128 - code if code > 128 else code)
    return replace(ending, codes=codes, crashed=int(died["rank"]) if code and died else ending.crashed)
