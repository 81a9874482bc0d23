"""What is submitted: a `Job` names a stage and a run folder; the worker finds all else in that folder."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.run import Attempt, Run, read_json

STAGES = {
    "convert": "hpc_isl.stages.convert",
    "annotate": "hpc_isl.stages.annotate",
    "pretrain": "hpc_isl.stages.pretrain",
}
ALONE = {"convert", "annotate"}  # one process, which starts others as it needs them
MISTAKE, FAILED, STOPPED = 2, 1, 3  # exit codes; 0 is done
ORPHAN_GRACE_S = 10.0  # to save in, after whoever watched over the run has died


def module_of(stage: str) -> str:
    """The name of the module of a stage."""
    if stage not in STAGES:
        raise Mistake(f"{stage!r} is not a stage; {nearest(stage, STAGES)}")
    return STAGES[stage]


def stage_module(stage: str) -> ModuleType:
    """The module of a stage: it offers `plan` and a function called as the stage."""
    return importlib.import_module(module_of(stage))


@dataclass(frozen=True)
class Job:
    """One run, callable in every rank of the job that computes it.

    Attributes:
        stage: name of the stage, a function of `module`.
        module: where the stage is found, as the table says at submission.
        folder: of the run.
        attempt: number of the job's first start; each requeue by Slurm counts one up.
    """

    stage: str
    module: str
    folder: Path
    attempt: int

    def __call__(self) -> None:
        """Runs the stage as this process's rank; leaves with `SystemExit` unless all is well."""
        attempt = self._attempt()
        attempt.folder.mkdir(parents=True, exist_ok=True)
        _redirect(attempt.log)
        _warn_through(attempt)
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            _private_caches()
        listener = Listener(attempt)
        with _forwarded(attempt):
            code = _run(self._stage, attempt)
        if code == 0 and attempt.stopping.is_set() and not attempt.run.summary():
            code = _leave_stopped(attempt, listener)
        if code:
            raise SystemExit(code)

    def _attempt(self) -> Attempt:
        from hpc_isl.cluster.local import place

        here = place()
        return Attempt(
            Run(self.folder), self.attempt + here.restarts, here.rank, here.size,
            here.local_rank, here.local_size, here.cpus,
        )  # fmt: skip

    def _stage(self, attempt: Attempt) -> None:
        """Imports the stage, reads its recipe from the run folder and runs it."""
        module = importlib.import_module(self.module)
        from hpc_isl.recipe import RECIPES
        from hpc_isl.strict import parse, read_yaml

        recipe = parse(RECIPES[self.stage], read_yaml(attempt.run.recipe), str(attempt.run.recipe))
        getattr(module, self.stage)(recipe, attempt)
        if attempt.rank == 0 and not attempt.stopping.is_set() and not attempt.run.summary():
            raise RuntimeError(f"the stage {self.stage} ended without its done record")
        _stay_for_rank_0(attempt)


def _run(stage: Callable[[Attempt], None], attempt: Attempt) -> int:
    """The stage inside its records; a mistake or failure becomes lines in the log and an exit code."""
    from hpc_isl.cluster.vitals import vitals

    try:
        with attempt.recorded(vitals if attempt.rank == 0 else None):
            stage(attempt)
    except Mistake as mistake:
        print(mistake, file=sys.stderr, flush=True)
        return MISTAKE
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        return FAILED
    return 0


def _stay_for_rank_0(attempt: Attempt) -> None:
    """`srun --wait` ends a job some time after its first rank has left: rank 0 leaves first."""
    if attempt.rank == 0 or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    while not (read_json(attempt.folder / "rank-0.json") or {}).get("exit"):
        time.sleep(0.5)


def _forwarded(attempt: Attempt) -> AbstractContextManager[None]:
    """On Slurm, rank 0 forwards the run as it goes if a server is there; a database waits for `sync`.

    A local run is forwarded by the process that watches over it.
    """
    from hpc_isl.cluster.forward import forwarding
    from hpc_isl.cluster.status import site_of

    if attempt.rank or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return nullcontext()
    site = site_of(attempt.run)
    return forwarding(attempt.run, site) if (site.tracking or "").startswith("http") else nullcontext()


# ---------------------------------------------------------------- signals


class Listener:
    """Turns signals, and the death of the process that watches over us, into `attempt.stopping`.

    A handler only keeps the signal's number; a thread looks at it, so that no lock is taken in a handler.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.signal: int | None = None
        self._parent = os.getppid()
        self._watcher = int(os.environ.get("HPC_ISL_WATCHER", 0))
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        threading.Thread(target=self._look, daemon=True, name="listener").start()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def _look(self) -> None:
        while self.signal is None and not self._orphaned():
            time.sleep(0.2)
        self.attempt.stopping.set()
        while not self._orphaned():
            time.sleep(0.2)
        time.sleep(ORPHAN_GRACE_S)
        os.killpg(0, signal.SIGKILL)

    def _orphaned(self) -> bool:
        return bool(self._watcher) and (os.getppid() != self._parent or not _lives(self._watcher))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _leave_stopped(attempt: Attempt, listener: Listener) -> int:
    """On Slurm, rank 0 requeues the job once all ranks have left the stage; a rank that left with
    an error code would end the others first."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return STOPPED
    if attempt.rank:
        return 0
    from hpc_isl.cluster.slurm import requeue

    reason = requeue(attempt, at_time_limit=listener.signal == signal.SIGUSR2)
    attempt.say(reason or "stopped at the time limit; Slurm will start it again")
    return STOPPED


# ---------------------------------------------------------------- the process


def _redirect(log: Path) -> None:
    """Output of this process, and of those that it starts, goes to the rank's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _warn_through(attempt: Attempt) -> None:
    """Warnings that the package itself raises are said; those of libraries stay in the log."""
    quiet, ours = warnings.showwarning, f"{Path(__file__).parents[1]}{os.sep}"

    def show(message: Any, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        if filename.startswith(ours):
            attempt.say(f"warning: {message}")
        else:
            quiet(message, category, filename, *rest, **more)

    warnings.showwarning = show


def _private_caches() -> None:
    """Caches of compiled code on a shared disk go stale; each job has its own, on the node."""
    folder = tempfile.mkdtemp(prefix="hpc_isl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for variable in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ.setdefault(variable, f"{folder}/{variable.lower()}")


def threads(cpus: int) -> Mapping[str, str]:
    """Environment that caps the thread pools of numerical libraries; they read it when imported."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
    names = [*(f"{library}_NUM_THREADS" for library in libraries), "BLOSC_NTHREADS"]
    return dict.fromkeys(names, str(cpus))
