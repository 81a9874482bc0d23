"""The worker processes of a pool on one node: each has a nanny of Dask, which replaces it when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hpc_isl.cluster.dask_pool.resources import SHARING, WorkerResources
from hpc_isl.cluster.run_folder.job import threads

CONNECT_S = 30
START_S = 300  # a worker process that imports from a slow shared disk
TRIES = 3  # starts of one worker process that may fail in a row
AGAIN_S = 1.0
CLOSE_S = 5.0  # tasks that go on beyond are ended with their process: they leave nothing half done
# A network asks for the interpreter after each layer: at Python's 5 ms a thread that writes beside it was
# seen to make it 14 times slower.
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
    """Dask as pools mean it, whatever a user's own configuration of Dask says; files go into a folder of
    this process."""
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
        shares: what each of them has.
        scheduler: its address.
        security: certificate and key of the run, as Dask takes them.
        host: address of this node on which they listen; None: the one on the route to the scheduler.
        wanted: whether the scheduler is still there; asked before each start, in a thread.
        failure: why the last process that did not start did not.
    """

    shares: Sequence[WorkerResources]
    scheduler: str
    security: Any
    host: str | None = None
    wanted: Callable[[], bool] = lambda: True
    failure: str = ""
    _closing: bool = False
    _nannies: list[Any] = field(default_factory=list)
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Begins to start them; returns at once."""
        # Libraries read this when they are imported, which is before a nanny can tell its process.
        os.environ.update(threads(self.shares[0].cpus))
        self._keepers = [
            asyncio.create_task(self._keep(share, number)) for number, share in enumerate(self.shares)
        ]

    @property
    def gone(self) -> bool:
        """Whether no process is left, nor will be."""
        return all(keeper.done() for keeper in self._keepers)

    async def ended(self) -> None:
        """Returns when no process is left: the scheduler has gone, or none could be started."""
        await asyncio.gather(*self._keepers)

    async def close(self) -> None:
        """Ends all of them."""
        self._closing = True
        await asyncio.gather(*(_close(nanny) for nanny in self._nannies))
        await self.ended()

    async def _keep(self, share: WorkerResources, number: int) -> None:
        """One worker process, and another when its nanny too has given it up."""
        failures = 0
        # The question takes a while, in which this may have been closed.
        while failures < TRIES and await asyncio.to_thread(self.wanted) and not self._closing:
            nanny = self._nanny(share, number)
            self._nannies.append(nanny)
            try:
                await nanny
                failures = 0
                await nanny.finished()
            except Exception as error:
                failures += 1
                self.failure = _reason(error)
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


def _reason(error: BaseException) -> str:
    """What was raised first: Dask wraps it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


async def _close(nanny: Any) -> None:
    process = nanny.process
    with suppress(Exception):
        await asyncio.wait_for(nanny.close(timeout=CLOSE_S), 2 * CLOSE_S)
    with suppress(Exception):  # one that is just starting heeds no one, and its nanny would wait for it
        await process.process.kill()


def worker(*args: Any, **words: Any) -> Any:
    """The worker of Dask in its process, which heeds its nanny alone: it has no signals of its own."""
    from distributed import Worker

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["HPC_ISL_IO_THREADS"] = "1"
    sys.setswitchinterval(SWITCH_S)
    _take_gpu()
    return Worker(*args, **words)


def _take_gpu() -> None:
    """The GPU that this process was given, or its part of one; without it the process does not start.

    One that went on with its CPU, after a GPU is lost, would compute other last bits, and no one would know.
    """
    gpu, sharing = os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get(SHARING, 1))
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"GPU {gpu} is none to PyTorch {torch.__version__}; site.gpus=0 does without")
    if sharing > 1:
        torch.cuda.set_per_process_memory_fraction(USABLE / sharing)
