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

from hpc_isl.cluster import pool_meeting as meeting
from hpc_isl.cluster.pool_flow import DaskPool
from hpc_isl.cluster.pool_processes import Crew, settings
from hpc_isl.cluster.pool_share import Node, Share, lowered, node_here, shares
from hpc_isl.run import Attempt
from hpc_isl.site import Site
from hpc_isl.tasks import Pool, Pools

LOOPBACK = "127.0.0.1"
BEGIN_S = 600.0  # for the first worker process to start
LOOK_S = 0.05
LOST_S = 60.0  # a rank 0 that cannot be reached for so long is lost, or we are


def pools(attempt: Attempt, site: Site) -> Pools:
    """What rank 0 hands to its stage."""
    return lambda task_memory: _opened(attempt, node_here(site, attempt.cpus), task_memory)


def serve(attempt: Attempt, site: Site) -> None:
    """Another rank: its node's worker processes are there for rank 0 until that has left, or is lost."""
    answered = time.monotonic()
    with settings():
        for found in meeting.meetings(attempt):
            security = meeting.security_of(found.certificate, found.key)
            context = security.get_connection_args("client")["ssl_context"]
            host = meeting.reached(found, context)
            if host is not None:
                given = shares(node_here(site, attempt.cpus), found.task_memory)
                crew = Crew(given, f"tls://{host}:{found.port}", security)
                crew.wanted = partial(_stands, attempt, found, context)
                asyncio.run(_serve(crew))
                answered = time.monotonic()
            elif time.monotonic() - answered > LOST_S:
                print(f"rank 0 has not answered for {LOST_S:.0f} s", file=sys.stderr, flush=True)
                return


def _stands(attempt: Attempt, found: meeting.Meeting, context: ssl.SSLContext) -> bool:
    return meeting.stands(attempt, found) and meeting.reached(found, context) is not None


async def _serve(crew: Crew) -> None:
    crew.start()
    await crew.ended()
    await crew.close()


# ---------------------------------------------------------------- rank 0


@contextmanager
def _opened(attempt: Attempt, node: Node, task_memory: int) -> Iterator[Pool]:
    """A scheduler in this process, this node's worker processes, and those of other nodes as they come."""
    given = shares(node, task_memory)
    if said := lowered(node, task_memory):
        attempt.say(said)
    with ExitStack() as stack:
        stack.enter_context(settings())
        from distributed.security import Security

        security = Security.temporary()
        run = stack.enter_context(_loop())
        office = run(_open, given, security, attempt.size > 1)
        stack.callback(run, office.close)
        attempt.say(_dashboard(office.scheduler))
        if attempt.size > 1:
            stack.enter_context(meeting.published(attempt, office.meeting(task_memory)))
        pool = DaskPool(stack.enter_context(office.client()), office.scheduler, attempt, given[0].memory)
        _wait_for_first(pool, office.crew)
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


class _Office:
    """Scheduler and worker processes of rank 0."""

    def __init__(self, scheduler: Any, crew: Crew, security: Any) -> None:
        self.scheduler, self.crew, self.security = scheduler, crew, security

    @property
    def port(self) -> int:
        return int(self.scheduler.port)

    def meeting(self, task_memory: int) -> meeting.Meeting:
        security = self.security
        return meeting.Meeting(
            meeting.addresses(), self.port, security.tls_ca_file, security.tls_client_key, task_memory
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


async def _open(given: Sequence[Share], security: Any, reachable: bool) -> _Office:
    """The scheduler listens on loopback, or to other nodes too; the processes here use loopback."""
    from distributed import Scheduler

    scheduler = await Scheduler(
        host="0.0.0.0" if reachable else LOOPBACK,  # noqa: S104  (who has no certificate is sent away)
        port=0, protocol="tls", security=security, allowed_failures=0, dashboard_address=f"{LOOPBACK}:0",
    )  # fmt: skip
    crew = Crew(given, f"tls://{LOOPBACK}:{scheduler.port}", security, LOOPBACK)
    crew.start()
    return _Office(scheduler, crew, security)


def _dashboard(scheduler: Any) -> str:
    """Where the work can be watched: this machine's loopback alone, for it has no password."""
    port = scheduler.http_server.port
    node = socket.gethostname()
    tunnel = f"; from elsewhere first: ssh -L {port}:{LOOPBACK}:{port} {node}"
    return f"dashboard: http://{LOOPBACK}:{port}/status" + (tunnel if os.environ.get("SLURM_JOB_ID") else "")


def _wait_for_first(pool: DaskPool, crew: Crew) -> None:
    deadline = time.monotonic() + BEGIN_S
    while not pool.workers:
        if crew.gone or time.monotonic() > deadline:
            raise RuntimeError("no worker process could be started; the log says why")
        time.sleep(LOOK_S)
