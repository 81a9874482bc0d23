"""A job: what is submitted, where a rank stands in it, and how it goes back into Slurm's queue.

A `Job` names a stage's module, a run folder and an attempt; the folder holds all else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil

from hpc_isl.cluster.run_folder.status import REFUSAL, TOO_SHORT
from hpc_isl.cluster.slurm.commands import ask
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site, cpus_here
from hpc_isl.stages.stage_table import is_pooled, stage_named

MISTAKE, FAILED, STOPPED = 2, 1, 3  # exit codes; 0 is done
OTHERS_LEAVE_S = 60.0
REQUEUE_S = 60.0
ASK = "HPC_ISL_REQUEUE"  # names the file with which the starter of the ranks is asked to requeue the job


@dataclass(frozen=True)
class Job:
    """One run, to be computed by all ranks of a job together.

    Attributes:
        module: where the stage is found, as the table says at submission.
        folder: of the run.
        attempt: number of the job's first start; each requeue by Slurm counts one up.
    """

    module: str
    folder: Path
    attempt: int

    @property
    def run(self) -> Run:
        return Run(self.folder)

    @property
    def attempt_folder(self) -> Path:
        return self.run.attempts / str(self.attempt)

    @classmethod
    def of(cls, run: Run, attempt: int | None = None) -> Job:
        """Returns the job that computes `run`, as the given attempt or as a new one."""
        number = run.next_attempt() if attempt is None else attempt
        return cls(stage_named(run.stage).module, run.folder, number)


@dataclass(frozen=True)
class Ending:
    """How the ranks of a job ended.

    Attributes:
        codes: rank -> exit code; a negative one is the signal that ended the rank.
        crashed: the rank that failed first; None: none did.
        interrupted: whether Ctrl-C asked for the stop.
        stopped, killed: whether the ranks were asked to stop, or were killed.
    """

    codes: Mapping[int, int]
    crashed: int | None = None
    interrupted: bool = False
    stopped: bool = False
    killed: bool = False


def interpreter(site: Site) -> str:
    """Returns the command that starts Python in a job, as a shell reads it; by default this Python.

    A container sees the home folder, the folder that it starts in and what the site binds.
    """
    if site.container is None:
        return site.python or shlex.quote(sys.executable)
    command = ["apptainer", "exec", *(["--nv"] if site.visible_gpus else [])]
    command += [part for folder in site.binds for part in ("--bind", folder)]
    return f"{shlex.join([*command, str(site.container)])} {site.python or 'python'}"


def srun_flags(stage: str) -> list[str]:
    """Returns how srun starts ranks: all end with one that fails, unless the stage is pooled."""
    # --export=ALL: in a job that was submitted with --export=NONE, srun would start them without environment.
    if is_pooled(stage):
        return ["--export=ALL", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"]
    return ["--export=ALL", "--kill-on-bad-exit=1", "--wait=60"]


def threads(cpus: int) -> Mapping[str, str]:
    """Returns variables that cap the thread pools of numerical libraries; they read it when imported."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
    names = [*(f"{library}_NUM_THREADS" for library in libraries), "BLOSC_NTHREADS"]
    return dict.fromkeys(names, str(cpus))


# ---------------------------------------------------------------- where this process stands


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
        return _slurm_rank_env(os.environ)
    if executor == "allocation":  # the process that calls srun counts the attempts, also after a requeue
        return replace(_slurm_rank_env(os.environ), restarts=0)
    if executor == "local":  # perhaps inside a Slurm job, whose variables are not meant for it
        rank, size = (int(os.environ[f"HPC_ISL_{name}"]) for name in ("RANK", "SIZE"))
        return RankEnv(rank, size, rank, size, int(os.environ["HPC_ISL_CPUS"]))
    return RankEnv(cpus=cpus_here())


def _slurm_rank_env(variables: Mapping[str, str]) -> RankEnv:
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


# ---------------------------------------------------------------- back into the queue


def requeue(attempt: Attempt, job: str, at_time_limit: bool) -> str | None:
    """Puts the job back into the queue, or returns the reason why not.

    Only at the time limit, or when preempted with time to save (without, Slurm requeues by itself); only
    when neither run nor job was cancelled, and when this attempt brought something new.

    Args:
        at_time_limit: as far as this rank knows; another may know more, and so does Slurm.
    """
    records = [attempt.folder / f"rank-{rank}.json" for rank in range(1, attempt.size)]
    # A barrier through the run folder: all other ranks have written their exit records.
    deadline = time.monotonic() + OTHERS_LEAVE_S
    while any(not (read_json(path) or {}).get("exit") for path in records) and time.monotonic() < deadline:
        time.sleep(0.5)
    to_continue = _slurm_continues_later(job)
    if to_continue is None:
        to_continue = at_time_limit or any((read_json(path) or {}).get("overdue") for path in records)
    if not to_continue:
        return "stopped by Slurm or by scancel"
    if attempt.run.cancelled.exists():
        return "stopped: the run was cancelled"
    if not _has_advanced(attempt):
        product = "checkpoint" if attempt.run.checkpoints.is_dir() else "result"
        return f"{TOO_SHORT}{product}: not started again; give it more time"
    code, _, errors = ask(["scontrol", "requeue", job], patience_s=REQUEUE_S)
    if code and (requeue_file := os.environ.get(ASK)):
        write_atomic(Path(requeue_file), f"{attempt.folder / REFUSAL}\n")
        return None
    return f"stopped; not started again: {errors}" if code else None


def _slurm_continues_later(job: str) -> bool | None:
    """Returns whether Slurm says that the job is to continue later; None: it lets it run, or does not answer.

    It is to continue where its limit has passed, and where Slurm gives time to save before it takes the
    nodes away: a job that ends within that time has just ended for Slurm. What scancel ended is not.
    """
    _, out, _ = ask(["scontrol", "show", "job", "-o", job])
    if re.search(r"JobState=RUNNING .*PreemptTime=(\d{4}-\S+)", out) or " Reason=TimeLimit " in out:
        return True
    return False if re.search(r"JobState=(COMPLETING|CANCELLED)", out) else None


def requeue_from_outside(requeue_file: Path, job: str) -> str:
    """Requeues the job where its ranks asked for it with `requeue_file`, or returns the reason why not.

    Ranks have no scontrol in a container, or on a node where it is not on their PATH.
    """
    if not requeue_file.is_file():
        return ""
    refusal = Path(requeue_file.read_text().strip())
    requeue_file.unlink()
    code, _, errors = ask(["scontrol", "requeue", job], patience_s=REQUEUE_S)
    if code:
        write_atomic(refusal, f"{errors}\n")
    return errors if code else ""


def _has_advanced(attempt: Attempt) -> bool:
    """Returns whether this attempt left a checkpoint; for a stage that has none, whether it did anything."""
    record = read_json(attempt.path) or {}
    if attempt.run.checkpoints.is_dir():
        newest = max((path.stat().st_mtime for path in attempt.run.checkpoints.iterdir()), default=0.0)
        return newest > datetime.fromisoformat(record["start"]).timestamp()
    progress = record.get("progress", {})
    return bool(progress.get("done", 0) > progress.get("kept", 0))
