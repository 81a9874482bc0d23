"""This machine as a site: the ranks of a run are processes in the foreground, watched over."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc_isl.cluster.executors.supervise import Requests, Watch, start
from hpc_isl.cluster.run_folder.job import Ending, Job, interpreter, threads
from hpc_isl.cluster.run_folder.provenance import import_path
from hpc_isl.site import Site, cpus_here, gpus_here


def command(job: Job, site: Site, before: Sequence[str] = ()) -> list[str]:
    """What starts a rank, a shell's if the site needs one; `before` is what starts the shell."""
    python = [*shlex.split(interpreter(site)), "-u", "-m", "hpc_isl.cluster.rank.worker"]
    words = [*python, job.module, str(job.folder), str(job.attempt)]
    script = "\n".join(["set -e", *site.setup, 'exec "$@"'])
    return [*before, "bash", "-c", script, "rank", *words]


def environments(site: Site, gpus: Sequence[str] | None = None) -> list[dict[str, str]]:
    """One per rank: its place, its share of CPUs, the GPUs it may see (default: those of the site)."""
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
    requests: Requests,
    log: Callable[[str], None],
    tick: Callable[[], None],
    gpus: Sequence[str] | None = None,
) -> Ending:
    """The whole run, until its last rank has ended, whatever ends it; `tick` is called all along."""
    if site.nodes > 1:
        log(f"one machine: the processes of {site.nodes} nodes run here, {site.ranks} in all")
    places = environments(site, gpus)
    ranks = start(command(job, site), places, logs(job, len(places)), job.folder)
    limit_s = site.minutes * 60.0 if site.minutes else None
    return Watch(ranks, requests, log, limit_s).until_ended(tick)


def logs(job: Job, ranks: int) -> list[Path]:
    """Where the ranks write, one file each."""
    return [job.run.attempts / str(job.attempt) / f"rank-{rank}.log" for rank in range(ranks)]


def slots(site: Site) -> int:
    """How many runs compute on this machine at once; one that says neither CPUs nor GPUs takes it whole."""
    fits = [site.array] if site.array else []
    if site.cpus:
        fits.append(cpus_here() // (site.cpus * site.ranks))
    if site.gpus:
        fits.append(len(gpus_here()) // site.gpus)
    return max(1, min(fits, default=1))
