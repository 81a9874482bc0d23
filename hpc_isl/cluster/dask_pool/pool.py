"""The pool that a stage such as segment gets: rank 0 schedules tasks, the ranks of other nodes serve.

These find rank 0 through the attempt's folder, where it publishes its address and key.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psutil

from hpc_isl.cluster.dask_pool.processes import WorkerGroup, settings
from hpc_isl.cluster.dask_pool.resources import Node, WorkerResources, lowered, node_here, worker_resources
from hpc_isl.cluster.dask_pool.scheduling import DaskPool
from hpc_isl.files import read_json
from hpc_isl.run import Attempt
from hpc_isl.site import Site
from hpc_isl.tasks import MemoryRequirement, Pool, Pools

LOOPBACK = "127.0.0.1"
BEGIN_S = 600.0  # for the first worker process to start
STARTED_S = 0.05  # between looks for the first worker process
AGAIN_S = 0.5
LOST_S = 60.0  # a rank 0 that cannot be reached for so long is lost, or we are
FILE = "scheduler.json"  # in the attempt's folder: the address and key that rank 0 publishes
LOOK_S = 0.5
SILENT_S = 90.0  # a rank 0 whose heartbeat stands still for so long is dead
COME_S = 900.0  # for rank 0 to write its first record
CONNECT_S = 5.0


def pools(attempt: Attempt, site: Site) -> Pools:
    """Returns what rank 0 passes to its stage."""
    # Half of the time before a job's end is for what is under way, the other for leaving.
    return lambda need: _open_pool(attempt, node_here(site, attempt.cpus), need, site.signal_s / 2)


def serve(attempt: Attempt, site: Site) -> None:
    """Runs the worker processes of another rank's node until rank 0 has left, or is lost."""
    with settings():
        for address in scheduler_addresses(attempt):
            security = security_of(address.certificate, address.key)
            context = security.get_connection_args("client")["ssl_context"]
            still_stands = partial(stands, attempt, address)
            reach = partial(_reachable_host, address, context, still_stands)
            host = reach()
            if host is not None:
                resources = worker_resources(node_here(site, attempt.cpus), address.need)
                group = WorkerGroup(resources, f"tls://{host}:{address.port}", security)
                group.is_wanted = lambda: reach() is not None  # noqa: B023  (asked within this turn)
                asyncio.run(_serve(group, still_stands))
            elif still_stands():
                print(f"rank 0 has not answered for {LOST_S:.0f} s", file=sys.stderr, flush=True)
                return


def _reachable_host(address: SchedulerAddress, context: Any, stands: Callable[[], bool]) -> str | None:
    """Returns the host of rank 0, which may be too busy to answer at once; None: it is lost, or has left."""
    deadline = time.monotonic() + LOST_S
    while stands():
        host = reached(address, context)
        if host is not None or time.monotonic() > deadline:
            return host
        time.sleep(AGAIN_S)
    return None


async def _serve(group: WorkerGroup, stands: Callable[[], bool]) -> None:
    """Returns when no process is left, or rank 0 has left."""
    group.start()
    ended_task = asyncio.create_task(group.ended())
    while not ended_task.done() and await asyncio.to_thread(stands):
        await asyncio.wait([ended_task], timeout=AGAIN_S)
    await group.close()  # processes that are just starting would look for rank 0 on and on
    await ended_task


# ---------------------------------------------------------------- rank 0


@contextmanager
def _open_pool(attempt: Attempt, node: Node, need: MemoryRequirement, patience_s: float) -> Iterator[Pool]:
    """Opens a scheduler here, this node's worker processes, and those of other nodes as they come."""
    resources = worker_resources(node, need)
    if message := lowered(node, need):
        attempt.log(message)
    with ExitStack() as stack:
        stack.enter_context(settings())
        from distributed import Client
        from distributed.security import Security

        security = Security.temporary()
        run = stack.enter_context(_event_loop())
        scheduler, group = run(_start_scheduler, resources, security, attempt.size > 1)

        async def close() -> None:
            await group.close()
            await scheduler.close()

        stack.callback(run, close)
        # On this machine's loopback alone: the dashboard has no password.
        port = scheduler.http_server.port
        tunnel = f"; from elsewhere first: ssh -L {port}:{LOOPBACK}:{port} {socket.gethostname()}"
        tunnel = tunnel if os.environ.get("SLURM_JOB_ID") else ""
        attempt.log(f"dashboard: http://{LOOPBACK}:{port}/status{tunnel}")
        if attempt.size > 1:
            hosts, pair = addresses(), (security.tls_ca_file, security.tls_client_key)
            address = SchedulerAddress(hosts, int(scheduler.port), *pair, need)
            stack.enter_context(published(attempt, address))
        client = stack.enter_context(
            Client(
                group.scheduler, security=security, loop=scheduler.loop, set_as_default=False,
                direct_to_workers=False,
            )
        )  # fmt: skip
        pool = DaskPool(client, scheduler, attempt, patience_s)
        deadline = time.monotonic() + BEGIN_S
        while not (pool.workers or attempt.stopping.is_set()):
            if (group.gone and attempt.size == 1) or time.monotonic() > deadline:
                reason = group.failure or "the log messages why"
                raise RuntimeError(f"no worker process could be started: {reason}")
            time.sleep(STARTED_S)
        yield pool


@contextmanager
def _event_loop() -> Iterator[Callable[..., Any]]:
    """Runs an event loop in a thread; yields what calls coroutine functions there and waits for them."""
    from distributed.utils import LoopRunner, sync

    runner = LoopRunner(asynchronous=False)
    runner.start()
    try:
        yield lambda function, *arguments: sync(runner.loop, function, *arguments)
    finally:
        runner.stop()


async def _start_scheduler(
    resources: Sequence[WorkerResources], security: Any, reachable: bool
) -> tuple[Any, WorkerGroup]:
    """Starts the scheduler, on loopback or for other nodes too, and worker processes, which use loopback."""
    from distributed import Scheduler

    # allowed_failures=0: Dask gives a task up when its process dies; DaskPool tries it again, alone.
    scheduler = await Scheduler(
        host="0.0.0.0" if reachable else LOOPBACK,  # noqa: S104  (a connection needs the certificate)
        port=0, protocol="tls", security=security, allowed_failures=0, dashboard_address=f"{LOOPBACK}:0",
    )  # fmt: skip
    group = WorkerGroup(resources, f"tls://{LOOPBACK}:{scheduler.port}", security, LOOPBACK)
    group.start()
    return scheduler, group


# ---------------------------------------------------------------- how other nodes find rank 0


@dataclass(frozen=True)
class SchedulerAddress:
    """The address of rank 0, which it publishes for the other ranks of a pool.

    Attributes:
        hosts: addresses under which the node of rank 0 may be reached.
        certificate, key: PEM, of this pool alone: who has them may join.
        need: what the processes are to hold.
    """

    hosts: tuple[str, ...]
    port: int
    certificate: str
    key: str
    need: MemoryRequirement


@contextmanager
def published(attempt: Attempt, address: SchedulerAddress) -> Iterator[None]:
    """Keeps the address in the attempt's folder while the block lasts, for its owner alone to read."""
    path = attempt.folder / FILE
    # mkstemp: complete or not at all, and never readable by others, not for a moment.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(json.dumps(asdict(address)))
    os.replace(temporary, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def scheduler_addresses(attempt: Attempt) -> Iterator[SchedulerAddress]:
    """Yields what rank 0 has published, again and again until it has left: a rank may lose its pool."""
    rank_0 = _RankZero(attempt)
    while rank_0.works():
        if content := read_json(attempt.folder / FILE):
            yield SchedulerAddress(**{**content, "need": MemoryRequirement(**content["need"])})
        time.sleep(LOOK_S)


def stands(attempt: Attempt, address: SchedulerAddress) -> bool:
    """Returns whether rank 0 still publishes this address."""
    return (read_json(attempt.folder / FILE) or {}).get("key") == address.key


class _RankZero:
    """Rank 0 as another rank sees it, through its record."""

    def __init__(self, attempt: Attempt) -> None:
        self.path = attempt.folder / "rank-0.json"
        self.heartbeat: object = None
        self.last = time.monotonic()

    def works(self) -> bool:
        """Returns whether it has not left, and its heartbeat moves."""
        record = read_json(self.path) or {}
        if record.get("exit"):
            return False
        # Compared with the one before, not with the time: the clocks of two nodes may differ.
        if record.get("heartbeat") != self.heartbeat:
            self.heartbeat, self.last = record.get("heartbeat"), time.monotonic()
        return time.monotonic() - self.last < (SILENT_S if self.heartbeat else COME_S)


def addresses() -> tuple[str, ...]:
    """Returns IPv4 addresses under which other nodes may reach this one: that of its name first."""
    by_name = []
    with suppress(OSError):
        by_name = [socket.gethostbyname(socket.gethostname())]
    by_link = [
        link.address
        for links in psutil.net_if_addrs().values()
        for link in links
        if link.family == socket.AF_INET
    ]
    outside = tuple(host for host in dict.fromkeys(by_name + by_link) if not host.startswith("127."))
    return outside or (LOOPBACK,)


def reached(address: SchedulerAddress, context: ssl.SSLContext) -> str | None:
    """Returns the host that answers with the certificate: an IP address may be another machine's here."""
    for host in address.hosts:
        with (
            suppress(OSError),
            socket.create_connection((host, address.port), CONNECT_S) as connection,
            context.wrap_socket(connection),
        ):
            return host
    return None


def security_of(certificate: str, key: str) -> Any:
    """Returns Dask's security object: the same pair for all roles, and nothing unencrypted."""
    from distributed.security import Security

    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_cert": certificate for role in roles} | {f"tls_{role}_key": key for role in roles}
    return Security(require_encryption=True, tls_ca_file=certificate, **pairs)
