"""One rank of a job: finds its place, runs the stage inside the run folder's records, leaves with a code."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil

from hpc_isl import site
from hpc_isl.cluster.dask_pool import pool
from hpc_isl.cluster.run_folder import provenance, submissions, uses
from hpc_isl.cluster.run_folder.job import (
    FAILED,
    MISTAKE,
    STOPPED,
    Job,
    RankEnv,
    rank_env,
    requeue,
    system_metrics,
)
from hpc_isl.cluster.run_folder.submissions import superseded
from hpc_isl.cluster.tracking.forward import forwarding
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, share_with_group, write_atomic
from hpc_isl.recipes.load import load_kept
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.stage_table import is_pooled
from hpc_isl.tasks import END, Clock

ORPHAN_GRACE_S = 10.0  # to save in, after the process that watched over the run has died


def main() -> None:
    """Runs `python -m hpc_isl.cluster.rank MODULE RUN_FOLDER ATTEMPT`, in each rank."""
    module, folder, attempt = sys.argv[1:]
    work(Job(module, Path(folder), int(attempt)))


def work(job: Job) -> None:
    """Runs the job's stage as this process's rank; leaves with `SystemExit` unless all is well."""
    env = rank_env()
    attempt = Attempt(
        job.run, job.attempt + env.restarts, env.rank, env.size,
        env.local_rank, env.local_size, env.cpus, clock=Clock(psutil.Process().create_time()),
    )  # fmt: skip
    run_site = site.saved_site(job.run.site)
    share_with_group(run_site.group)
    attempt.folder.mkdir(parents=True, exist_ok=True)
    _redirect_output(attempt)
    if env.slurm:
        if superseded(job.run, job.attempt, env.slurm):
            raise SystemExit(f"the run was started again as another job: job {env.slurm} leaves it alone")
        if job.run.cancelled.exists():
            raise SystemExit(f"the run was cancelled: job {env.slurm} leaves it alone")
        _prepare_node(attempt, env.slurm)
    listener = Listener(attempt, deadline(env, run_site))
    # On Slurm, rank 0 forwards the run as it goes if a server is there; a database waits for `sync`. A local
    # run is forwarded by the process that watches over it.
    forwards = env.slurm and run_site.server and attempt.rank == 0
    with forwarding(attempt.run, run_site) if forwards else nullcontext():
        code = _run(job, attempt, env, run_site, listener)
    if code == 0 and attempt.stopping.is_set() and not attempt.run.summary():
        code = _leave_stopped(attempt, env, listener)
    if code:
        raise SystemExit(code)


def _run(job: Job, attempt: Attempt, env: RankEnv, run_site: site.Site, listener: Listener) -> int:
    """Runs the stage inside its records; an error becomes lines in the log and an exit code."""
    try:
        facts = {"job": env.slurm, "slurm_conf": os.environ.get("SLURM_CONF")} if env.slurm else {}
        with attempt.recorded(system_metrics if attempt.rank == 0 else None, **facts):
            _stage(job, attempt, run_site)
            # `srun --wait` ends a job some time after its first rank has left: rank 0 leaves first. Those of
            # a pooled stage leave when they have lost rank 0, and srun lets them.
            if attempt.rank and env.slurm and not is_pooled(attempt.run.stage):
                while not (read_json(attempt.folder / "rank-0.json") or {}).get("exit"):
                    time.sleep(0.5)
            if listener.overdue:  # Slurm may have signalled this rank alone so far
                attempt.note(overdue=True)
    except UserError as mistake:
        print(mistake, file=sys.stderr, flush=True)
        return MISTAKE
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        return FAILED
    return 0


def _stage(job: Job, attempt: Attempt, run_site: site.Site) -> None:
    """Imports the stage, reads its recipe from the run folder and runs it.

    A pooled stage is run by rank 0 with the worker processes of all ranks; the others only provide theirs.
    """
    module, run = importlib.import_module(job.module), job.run
    _plan_deferred(module, attempt)
    recipe = load_kept(run.stage, run.recipe)
    compute = getattr(module, "trial" if run.trial.exists() else run.stage)
    with uses.in_use(recipe):
        uses.refuse_changed(run)
        if not is_pooled(run.stage):
            compute(recipe, attempt)
        elif attempt.rank == 0:
            compute(recipe, attempt, pool.pools(attempt, run_site))
        else:
            pool.serve(attempt, run_site)
    if attempt.rank == 0:
        if run.summary():
            attempt.clock.tick(END, 1)
        submissions.note_timing(attempt, run_site)
        if not (attempt.stopping.is_set() or run.trial.exists() or run.summary()):
            raise RuntimeError(f"the stage {run.stage} ended without its done record")


def _plan_deferred(module: ModuleType, attempt: Attempt) -> None:
    """Plans a run that was submitted before its inputs existed: rank 0 plans, the other ranks wait for it.

    Raises:
        UserError: what the stage says about its inputs; in the other ranks, that rank 0 has ended.
    """
    run = attempt.run
    if attempt.rank == 0 and not provenance.is_planned(run):
        record: dict[str, Any] = read_json(run.record) or {}
        recipe = load_kept(run.stage, run.recipe)
        with provenance.standing_in(Path(record["cwd"])):
            plan: Plan = module.plan(recipe)
        plan.check_size(attempt.size)
        for line in plan.messages:
            attempt.log(line)
        write_atomic(run.recipe, to_yaml(plan.recipe))
        write_atomic(run.record, json.dumps(record | provenance.planned(plan) | {"planned": True}, indent=1))
    while not provenance.is_planned(run):
        if (read_json(attempt.folder / "rank-0.json") or {}).get("exit"):
            raise UserError("rank 0 could not plan this run; its log says why")
        time.sleep(0.5)


# ---------------------------------------------------------------- being told to stop


def deadline(env: RankEnv, run_site: site.Site) -> float | None:
    """Returns when a job of Slurm begins to save even without a signal, in seconds since 1970."""
    if not env.slurm:
        return None
    end = env.end or (time.time() + 60 * run_site.minutes if run_site.minutes else None)
    return end - run_site.signal_s if end else None


class Listener:
    """Turns signals, the deadline, and the death of the watching process into `attempt.stopping`.

    A handler only keeps the signals' numbers; a thread looks at it, so that no lock is taken in a handler.
    """

    def __init__(self, attempt: Attempt, deadline: float | None = None) -> None:
        self.attempt = attempt
        self.deadline = deadline
        self.signals: set[int] = set()
        self._parent = os.getppid()
        self._watcher = int(os.environ.get("HPC_ISL_WATCHER", 0))
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        threading.Thread(target=self._look, daemon=True, name="listener").start()

    @property
    def overdue(self) -> bool:
        """Whether the job's time is over: a reason to start it again, which TERM (scancel) is not.

        When the limit comes sooner than was said, Slurm sends USR2 and TERM in either order.
        """
        return signal.SIGUSR2 in self.signals or (self.deadline is not None and time.time() > self.deadline)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signals.add(number)

    def _look(self) -> None:
        while not self.signals and not self.overdue and not self._is_orphaned():
            time.sleep(0.2)
        self.attempt.stopping.set()
        while not self._is_orphaned():
            time.sleep(0.2)
        time.sleep(ORPHAN_GRACE_S)
        os.killpg(0, signal.SIGKILL)

    def _is_orphaned(self) -> bool:
        watched = bool(self._watcher)
        return watched and (os.getppid() != self._parent or not psutil.pid_exists(self._watcher))


def _leave_stopped(attempt: Attempt, env: RankEnv, listener: Listener) -> int:
    """Requeues the job once all ranks have left the stage; returns the exit code."""
    if not env.slurm:
        return STOPPED
    if attempt.rank:  # with an error code it would end the others before rank 0 has requeued
        return 0
    reason = requeue(attempt, env.slurm, at_time_limit=listener.overdue)
    if reason:
        with suppress(OSError):
            attempt.note(reason=reason)
    attempt.log(reason or "stopped at the time limit; Slurm is to start it again")
    return STOPPED


# ---------------------------------------------------------------- the process


def _redirect_output(attempt: Attempt) -> None:
    """Sends output of this process and its children to the rank's log, and warnings of ours to the user."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(attempt.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    show_default, package = warnings.showwarning, f"{Path(__file__).parents[1]}{os.sep}"

    def show(message: Any, category: type[Warning], filename: str, *arguments: Any, **options: Any) -> None:
        if filename.startswith(package):
            attempt.log(f"warning: {message}")
        else:  # those of libraries stay in the log
            show_default(message, category, filename, *arguments, **options)

    warnings.showwarning = show


def _prepare_node(attempt: Attempt, job: str) -> None:
    """Gives a job of Slurm caches of its own on the node, and removes what a killed one has left."""
    # Caches of compiled code on a shared disk go stale.
    folder = tempfile.mkdtemp(prefix="hpc_isl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for variable in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ.setdefault(variable, f"{folder}/{variable.lower()}")
    if submitit_folder := os.environ.get("SUBMITIT_FOLDER"):
        # submitit refuses to write a result where a killed process has left half of one
        for path in Path(submitit_folder).glob(f"{job}_{attempt.rank}_*.save_tmp"):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
