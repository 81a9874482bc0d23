"""Where this process stands in its job, as Slurm or our own executor says, and how its machine is doing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import psutil

from hpc_isl.errors import UserError
from hpc_isl.site import Site, cpus_here


@dataclass(frozen=True)
class RankEnv:
    """This process among those of its job; alone and outside of Slurm by default.

    Attributes:
        rank, size: of this process among all of the job.
        local_rank, local_size: among those on this node.
        cpus: that it may use.
        slurm: Slurm's name of the job (`17`, or `17_3` for an element of an array); None: no job of Slurm.
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
    """Returns the place of this process, read from its environment."""
    executor = os.environ.get("HPC_ISL_EXECUTOR")
    if executor == "slurm":
        return _in_slurm(os.environ)
    if executor == "allocation":  # the process that calls srun counts the attempts, also after a requeue
        return replace(_in_slurm(os.environ), restarts=0)
    if executor == "local":  # perhaps inside a Slurm job, whose variables are not meant for it
        rank, size = (int(os.environ[f"HPC_ISL_{name}"]) for name in ("RANK", "SIZE"))
        return RankEnv(rank, size, rank, size, int(os.environ["HPC_ISL_CPUS"]))
    return RankEnv(cpus=cpus_here())


def _in_slurm(variables: Mapping[str, str]) -> RankEnv:
    def number(*names: str, default: int = 0) -> int:
        return next((int(variables[name]) for name in names if variables.get(name)), default)

    size = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
    nodes = number("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", default=1)
    return RankEnv(
        rank=number("SLURM_PROCID"),
        size=size,
        local_rank=number("SLURM_LOCALID"),
        local_size=max(1, size // nodes),
        cpus=number("SLURM_CPUS_PER_TASK", default=1),
        slurm=_job_name(variables),
        restarts=number("SLURM_RESTART_COUNT"),
        end=float(number("SLURM_JOB_END_TIME")) or None,
    )


def _job_name(variables: Mapping[str, str]) -> str:
    array = variables.get("SLURM_ARRAY_JOB_ID")  # in an array SLURM_JOB_ID is another number
    return f"{array}_{variables['SLURM_ARRAY_TASK_ID']}" if array else variables["SLURM_JOB_ID"]


def job_here() -> str | None:
    """Returns Slurm's name of the job in which this process stands, if any."""
    return _job_name(os.environ) if os.environ.get("SLURM_JOB_ID") else None


def in_allocation(site: Site, one_each: bool = False, one_node: bool = False) -> Site:
    """Returns the site with the nodes, processes, CPUs and GPUs that Slurm has given to this job.

    Args:
        one_each: one process per node, which has the CPUs of all that Slurm would start there.
        one_node: on one node alone, without its GPUs.

    Raises:
        UserError: this process stands in no job.
    """
    variables = os.environ
    if not variables.get("SLURM_JOB_ID"):
        raise UserError(
            "a site with executor: allocation computes inside a job of Slurm: in a file that sbatch runs, as "
            "slurm/pretrain.sbatch, or after salloc. A run that ended there is resumed when that file is "
            "given to sbatch again, or here with --site NAME"
        )
    nodes = int(variables.get("SLURM_JOB_NUM_NODES", 1))
    per_node = int(variables.get("SLURM_NTASKS_PER_NODE", 0))
    processes = max(1, per_node or int(variables.get("SLURM_NTASKS", nodes)) // nodes)
    cpus = int(variables.get("SLURM_CPUS_PER_TASK", 0))
    cpus = max(1, cpus or int(variables.get("SLURM_CPUS_ON_NODE", 1)) // processes)
    gpus = int(variables.get("SLURM_GPUS_ON_NODE", 0))
    if one_each:
        processes, cpus = 1, cpus * processes
    if one_node:
        nodes, gpus = 1, 0
    return site.model_copy(update={"nodes": nodes, "processes": processes, "cpus": cpus, "gpus": gpus})


def system_metrics() -> dict[str, float]:
    """Returns CPU and memory of this machine, and of its GPU once this process uses one. GB are 10⁹ bytes."""
    metrics = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_gb": psutil.virtual_memory().used / 1e9,
    }
    # Only where the stage has imported torch: importing it here would cost every stage.
    torch = sys.modules.get("torch")
    in_use = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    if torch is None or in_use is None or not in_use():  # in_use is None while the stage is importing it
        return metrics
    free, total = torch.cuda.mem_get_info()
    metrics["system/gpu_memory_gb"] = (total - free) / 1e9
    with contextlib.suppress(Exception):  # needs pynvml, which is not everywhere
        metrics["system/gpu_percent"] = float(torch.cuda.utilization())
    return metrics
