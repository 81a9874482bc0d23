"""The pool that a stage such as segment is handed: rank 0 gives tasks out, the ranks of other nodes serve."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from hpc_isl.cluster.dask_pool import rendezvous
from hpc_isl.cluster.dask_pool.processes import WorkerGroup, settings
from hpc_isl.cluster.dask_pool.resources import Node, WorkerResources, lowered, node_here, worker_resources
from hpc_isl.cluster.dask_pool.scheduling import DaskPool
from hpc_isl.run import Attempt
from hpc_isl.site import Site
from hpc_isl.tasks import MemoryRequirement, Pool, Pools

LOOPBACK = "127.0.0.1"
BEGIN_S = 600.0  # for the first worker process to start
LOOK_S = 0.05
AGAIN_S = 0.5
LOST_S = 60.0  # a rank 0 that cannot be reached for so long is lost, or we are


def pools(attempt: Attempt, site: Site) -> Pools:
    """What rank 0 hands to its stage."""
    # Half of the time before a job's end is for what is under way, the other for leaving.
    return lambda need: _opened(attempt, node_here(site, attempt.cpus), need, site.signal_s / 2)


def serve(attempt: Attempt, site: Site) -> None:
    """Another rank: its node's worker processes are there for rank 0 until that has left, or is lost."""
    with settings():
        for found in rendezvous.scheduler_addresses(attempt):
            security = rendezvous.security_of(found.certificate, found.key)
            stands = partial(rendezvous.stands, attempt, found)
            context = security.get_connection_args("client")["ssl_context"]
            host = _reached(found, context, stands)
            if host is not None:
                given = worker_resources(node_here(site, attempt.cpus), found.need)
                crew = WorkerGroup(given, f"tls://{host}:{found.port}", security)
                crew.wanted = partial(_answers, found, context, stands)
                asyncio.run(_serve(crew, stands))
            elif stands():
                print(f"rank 0 has not answered for {LOST_S:.0f} s", file=sys.stderr, flush=True)
                return


def _reached(
    found: rendezvous.SchedulerAddress, context: ssl.SSLContext, stands: Callable[[], bool]
) -> str | None:
    """The host of rank 0, which may be too busy to answer at once; None: it is lost, or has left."""
    deadline = time.monotonic() + LOST_S
    while stands():
        host = rendezvous.reached(found, context)
        if host is not None or time.monotonic() > deadline:
            return host
        time.sleep(AGAIN_S)
    return None


def _answers(found: rendezvous.SchedulerAddress, context: ssl.SSLContext, stands: Callable[[], bool]) -> bool:
    return _reached(found, context, stands) is not None


async def _serve(crew: WorkerGroup, stands: Callable[[], bool]) -> None:
    """Until no process is left, or rank 0 has left: those that are just starting would look for it on."""
    crew.start()
    ended = asyncio.create_task(crew.ended())
    while not ended.done() and await asyncio.to_thread(stands):
        await asyncio.wait([ended], timeout=AGAIN_S)
    await crew.close()
    await ended


# ---------------------------------------------------------------- rank 0


@contextmanager
def _opened(attempt: Attempt, node: Node, need: MemoryRequirement, patience_s: float) -> Iterator[Pool]:
    """A scheduler in this process, this node's worker processes, and those of other nodes as they come."""
    given = worker_resources(node, need)
    if said := lowered(node, need):
        attempt.log(said)
    with ExitStack() as stack:
        stack.enter_context(settings())
        from distributed.security import Security

        security = Security.temporary()
        run = stack.enter_context(_loop())
        office = run(_open, given, security, attempt.size > 1)
        stack.callback(run, office.close)
        attempt.log(_dashboard(office.scheduler))
        if attempt.size > 1:
            stack.enter_context(rendezvous.published(attempt, office.address(need)))
        pool = DaskPool(stack.enter_context(office.client()), office.scheduler, attempt, patience_s)
        _wait_for_first(pool, office.crew, attempt)
        yield pool


@contextmanager
def _loop() -> Iterator[Callable[..., Any]]:
    """An event loop in a thread; what calls a coroutine function there and waits for what it returns."""
    from distributed.utils import LoopRunner, sync

    runner = LoopRunner(asynchronous=False)
    runner.start()
    try:
        yield lambda function, *arguments: sync(runner.loop, function, *arguments)
    finally:
        runner.stop()


class SchedulerHost:
    """Scheduler and worker processes of rank 0."""

    def __init__(self, scheduler: Any, crew: WorkerGroup, security: Any) -> None:
        self.scheduler, self.crew, self.security = scheduler, crew, security

    @property
    def port(self) -> int:
        return int(self.scheduler.port)

    def address(self, need: MemoryRequirement) -> rendezvous.SchedulerAddress:
        security = self.security
        return rendezvous.SchedulerAddress(
            rendezvous.addresses(), self.port, security.tls_ca_file, security.tls_client_key, need
        )

    def client(self) -> Any:
        from distributed import Client

        return Client(
            self.crew.scheduler, security=self.security, loop=self.scheduler.loop, set_as_default=False,
            direct_to_workers=False,
        )  # fmt: skip

    async def close(self) -> None:
        await self.crew.close()
        await self.scheduler.close()


async def _open(given: Sequence[WorkerResources], security: Any, reachable: bool) -> SchedulerHost:
    """The scheduler listens on loopback, or to other nodes too; the processes here use loopback."""
    from distributed import Scheduler

    scheduler = await Scheduler(
        host="0.0.0.0" if reachable else LOOPBACK,  # noqa: S104  (who has no certificate is sent away)
        port=0, protocol="tls", security=security, allowed_failures=0, dashboard_address=f"{LOOPBACK}:0",
    )  # fmt: skip
    crew = WorkerGroup(given, f"tls://{LOOPBACK}:{scheduler.port}", security, LOOPBACK)
    crew.start()
    return SchedulerHost(scheduler, crew, security)


def _dashboard(scheduler: Any) -> str:
    """Where the work can be watched: this machine's loopback alone, for it has no password."""
    port = scheduler.http_server.port
    node = socket.gethostname()
    tunnel = f"; from elsewhere first: ssh -L {port}:{LOOPBACK}:{port} {node}"
    return f"dashboard: http://{LOOPBACK}:{port}/status" + (tunnel if os.environ.get("SLURM_JOB_ID") else "")


def _wait_for_first(pool: DaskPool, crew: WorkerGroup, attempt: Attempt) -> None:
    deadline = time.monotonic() + BEGIN_S
    while not (pool.workers or attempt.stopping.is_set()):
        if (crew.gone and attempt.size == 1) or time.monotonic() > deadline:
            raise RuntimeError(
                f"no worker process could be started: {crew.failure or 'the log messages why'}"
            )
        time.sleep(LOOK_S)
