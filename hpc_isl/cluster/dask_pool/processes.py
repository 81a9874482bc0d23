"""The worker processes of a pool on one node, each with a nanny of Dask that replaces it when it dies."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hpc_isl.cluster.dask_pool.resources import SHARING, WorkerResources
from hpc_isl.cluster.run_folder.job import threads
from hpc_isl.errors import AbortRun, UserError

BEGUN = {"executing", "long-running", "memory", "error"}  # of Dask's states of a task in a worker
CONNECT_S = 30
START_S = 300  # a worker process that imports from a slow shared disk
TRIES = 3  # starts of one worker process that may fail in a row
AGAIN_S = 1.0
CLOSE_S = 5.0  # tasks that go on beyond are ended with their process: they leave nothing half done
# A network takes the interpreter lock after each layer: with Python's default of 5 ms, a thread that writes
# beside it made it 14 times slower.
SWITCH_S = 1e-4
USABLE = 0.9  # of the memory of a GPU that several processes share, beside what CUDA keeps for each
FOLDER = "temporary-directory"
MEMORY = "memory"  # the resource of which each worker has its share, and each task takes its part
SETTINGS: Mapping[str, Any] = {
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.preload": [],
    "distributed.nanny.preload": [],
    "distributed.nanny.environ": {},
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.scheduler.preload": [],
    "distributed.scheduler.worker-ttl": "15 minutes",  # compiled code may hold the interpreter for long
    "distributed.scheduler.idle-timeout": None,
    "distributed.scheduler.no-workers-timeout": None,
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
    "distributed.comm.tls.min-version": 1.3,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.admin.event-loop-monitor-interval": "100 ms",
    "distributed.admin.tick.interval": "500 ms",
}


@contextmanager
def settings() -> Iterator[None]:
    """Configures Dask for pools, whatever a user's own configuration says; its files are temporary."""
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")
    import dask
    import distributed  # noqa: F401  (its defaults come first)

    with (
        tempfile.TemporaryDirectory(prefix="hpc_isl-pool-", ignore_cleanup_errors=True) as folder,
        dask.config.set({**SETTINGS, FOLDER: folder}),
    ):
        yield


@dataclass
class WorkerGroup:
    """The worker processes of this node, while a scheduler has work for them; lives in an event loop.

    Attributes:
        resources: what each process has.
        scheduler: its address.
        security: certificate and key of the run, as Dask takes them.
        host: address of this node on which they listen; None: the one on the route to the scheduler.
        is_wanted: returns whether the scheduler still exists; called before each start, in a thread.
        failure: why the last start that failed did.
    """

    resources: Sequence[WorkerResources]
    scheduler: str
    security: Any
    host: str | None = None
    is_wanted: Callable[[], bool] = lambda: True
    failure: str = ""
    _closing: bool = False
    _nannies: list[Any] = field(default_factory=list)
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Begins to start the processes; returns at once."""
        # Libraries read this when they are imported, which is before a nanny can tell its process.
        os.environ.update(threads(self.resources[0].cpus))
        self._keepers = [
            asyncio.create_task(self._keep(share, number)) for number, share in enumerate(self.resources)
        ]

    @property
    def gone(self) -> bool:
        """Whether no process is left, and none will be."""
        return all(keeper.done() for keeper in self._keepers)

    async def ended(self) -> None:
        """Returns when no process is left: the scheduler has gone, or none could be started."""
        await asyncio.gather(*self._keepers)

    async def close(self) -> None:
        """Ends all processes."""
        self._closing = True
        await asyncio.gather(*(_close(nanny) for nanny in self._nannies))
        await self.ended()

    async def _keep(self, share: WorkerResources, number: int) -> None:
        """Keeps one worker process running: starts another one when its nanny has given up."""
        failures = 0
        # `is_wanted` takes a while, in which this may have been closed.
        while failures < TRIES and await asyncio.to_thread(self.is_wanted) and not self._closing:
            nanny = self._nanny(share, number)
            self._nannies.append(nanny)
            try:
                await nanny
                failures = 0
                await nanny.finished()
            except Exception as error:
                failures += 1
                cause: BaseException = error
                while cause.__cause__ is not None:  # Dask wraps what was raised first
                    cause = cause.__cause__
                self.failure = f"{type(cause).__name__}: {cause}"
                print(f"a worker process did not start: {error!r}", file=sys.stderr, flush=True)
            finally:
                await _close(nanny)
                self._nannies.remove(nanny)
            if not self._closing:
                await asyncio.sleep(AGAIN_S)

    def _nanny(self, share: WorkerResources, number: int) -> Any:
        import dask
        from distributed import Nanny

        return Nanny(
            self.scheduler, nthreads=share.threads, memory_limit=0, resources={MEMORY: share.memory},
            env=dict(share.environment), security=self.security, host=self.host, protocol="tls",
            local_directory=dask.config.get(FOLDER), death_timeout=START_S, worker_class=worker,
            name=f"{os.uname().nodename}-{os.getpid()}-{number}", dashboard_address="127.0.0.1:0",
        )  # fmt: skip


async def _close(nanny: Any) -> None:
    process = nanny.process
    with suppress(Exception):
        await asyncio.wait_for(nanny.close(timeout=CLOSE_S), 2 * CLOSE_S)
    with suppress(Exception):  # its nanny would wait for a process that is just starting
        await process.process.kill()


# ---------------------------------------------------------------- in a worker process


def worker(*args: Any, **keywords: Any) -> Any:
    """Returns Dask's worker in its process, which ignores signals: its nanny alone ends it."""
    from distributed import Worker

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["HPC_ISL_IO_THREADS"] = "1"
    sys.setswitchinterval(SWITCH_S)
    gpu, sharing = os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get(SHARING, 1))
    if gpu:
        import torch

        # A process that continued on its CPU, after a GPU is lost, would compute results that are not
        # bit-identical, and no one would know: it does not start.
        if not torch.cuda.is_available():
            raise RuntimeError(f"GPU {gpu} is none to PyTorch {torch.__version__}; site.gpus=0 does without")
        if sharing > 1:
            torch.cuda.set_per_process_memory_fraction(USABLE / sharing)
    return Worker(*args, **keywords)


@dataclass(frozen=True)
class CallOutcome:
    """How a call in a worker process ended: with its value, pickled, or with a problem.

    Attributes:
        can_retry: another try may succeed; `blocked`: no other task would succeed either.
        worker: where it was tried.
    """

    value: bytes = b""
    problem: str = ""
    can_retry: bool = False
    blocked: bool = False
    worker: str = ""


def call_here(call: Callable[[Any], Any], argument: Any) -> CallOutcome:
    """Computes one task, in a thread of a worker process."""
    from distributed import get_worker

    try:
        return CallOutcome(pickle.dumps(call(argument)))  # here: what cannot be sent is this task's problem
    except UserError as error:
        return CallOutcome(problem=str(error), blocked=isinstance(error, AbortRun))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        # No later call in this process could use its GPU: another process can.
        if type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error):
            os._exit(1)
        message = f"{type(error).__name__}: {error}"
        return CallOutcome(problem=message, can_retry=True, worker=str(get_worker().address))


def pause(dask_worker: Any) -> list[Any]:
    """Keeps a worker process from beginning more tasks; returns those that it has begun or ended."""
    from distributed.core import Status

    dask_worker.status = Status.paused
    return [key for key, task in dask_worker.state.tasks.items() if task.state in BEGUN]
