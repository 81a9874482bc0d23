"""Where this process stands in its job, as Slurm or whoever started it here says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpc_isl.errors import UserError
from hpc_isl.site import Site, cpus_here


@dataclass(frozen=True)
class RankEnv:
    """This process among those of its job; alone and outside of Slurm by default.

    Attributes:
        rank, size: of this process among all of the job.
        local_rank, local_size: among those on this node.
        cpus: that it may use.
        slurm: how Slurm calls the job (`17`, or `17_3` for an element of an array); None: no job of Slurm.
        restarts: how often Slurm has started the job again.
        end: when Slurm will end the job, in seconds since 1970; None: not known.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    cpus: int = 1
    slurm: str | None = None
    restarts: int = 0
    end: float | None = None


def rank_env() -> RankEnv:
    """From the environment. A local run may stand inside a Slurm job, whose words are not meant for it."""
    executor = os.environ.get("HPC_ISL_EXECUTOR")
    if executor == "slurm":
        return _in_slurm(os.environ)
    if executor == "allocation":  # whoever calls srun counts the attempts, also those after a requeue
        return replace(_in_slurm(os.environ), restarts=0)
    if executor == "local":
        rank, size = (int(os.environ[f"HPC_ISL_{name}"]) for name in ("RANK", "SIZE"))
        return RankEnv(rank, size, rank, size, int(os.environ["HPC_ISL_CPUS"]))
    return RankEnv(cpus=cpus_here())


def _in_slurm(said: Mapping[str, str]) -> RankEnv:
    def number(*names: str, default: int = 0) -> int:
        return next((int(said[name]) for name in names if said.get(name)), default)

    size = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
    nodes = number("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", default=1)
    return RankEnv(
        rank=number("SLURM_PROCID"),
        size=size,
        local_rank=number("SLURM_LOCALID"),
        local_size=max(1, size // nodes),
        cpus=number("SLURM_CPUS_PER_TASK", default=1),
        slurm=identity(said),
        restarts=number("SLURM_RESTART_COUNT"),
        end=float(number("SLURM_JOB_END_TIME")) or None,
    )


def identity(said: Mapping[str, str]) -> str:
    """How Slurm calls the job; in an array SLURM_JOB_ID is not its name."""
    array = said.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{said['SLURM_ARRAY_TASK_ID']}" if array else said["SLURM_JOB_ID"]


def job_here() -> str | None:
    """How Slurm calls the job in which this process stands, if any."""
    return identity(os.environ) if os.environ.get("SLURM_JOB_ID") else None


def in_allocation(site: Site, one_each: bool = False, one_node: bool = False) -> Site:
    """The site with the nodes, processes, CPUs and GPUs that Slurm has given to the job we stand in.

    Args:
        one_each: one process per node, which has the CPUs of all that Slurm would start there.
        one_node: on one node alone, without its GPUs.
    """
    said = os.environ
    if not said.get("SLURM_JOB_ID"):
        raise UserError(
            "a site with executor: allocation computes inside a job of Slurm: in a file that sbatch runs, as "
            "slurm/pretrain.sbatch, or after salloc. A run that ended there goes on when that file is handed "
            "to sbatch again, or here with --site NAME"
        )
    nodes = int(said.get("SLURM_JOB_NUM_NODES", 1))
    per_node = int(said.get("SLURM_NTASKS_PER_NODE", 0)) or int(said.get("SLURM_NTASKS", nodes)) // nodes
    processes = max(1, per_node)
    cpus = int(said.get("SLURM_CPUS_PER_TASK", 0)) or int(said.get("SLURM_CPUS_ON_NODE", 1)) // processes
    gpus = int(said.get("SLURM_GPUS_ON_NODE", 0))
    found = {"nodes": nodes, "processes": processes, "cpus": max(1, cpus), "gpus": gpus}
    if one_each:
        found |= {"processes": 1, "cpus": max(1, cpus) * processes}
    if one_node:
        found |= {"nodes": 1, "gpus": 0}
    return site.model_copy(update=found)
