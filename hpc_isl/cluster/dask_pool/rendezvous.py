"""The nodes of a pooled job find rank 0: it publishes address and key in the attempt's folder."""

from __future__ import annotations

import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from hpc_isl.files import read_json
from hpc_isl.run import Attempt
from hpc_isl.tasks import MemoryRequirement

FILE = "scheduler.json"
LOOK_S = 0.5
SILENT_S = 90.0  # a rank 0 whose heartbeat stands still for so long is dead
COME_S = 900.0  # for rank 0 to write its first record
CONNECT_S = 5.0


@dataclass(frozen=True)
class SchedulerAddress:
    """What rank 0 publishes for the other ranks of a pool.

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
    named = []
    with suppress(OSError):
        named = [socket.gethostbyname(socket.gethostname())]
    listed = [
        link.address
        for links in psutil.net_if_addrs().values()
        for link in links
        if link.family == socket.AF_INET
    ]
    outside = tuple(host for host in dict.fromkeys(named + listed) if not host.startswith("127."))
    return outside or ("127.0.0.1",)


def reached(address: SchedulerAddress, context: ssl.SSLContext) -> str | None:
    """Returns the host that answers with the certificate: an IP address may be another machine's here."""
    for host in address.hosts:
        with (
            suppress(OSError),
            socket.create_connection((host, address.port), CONNECT_S) as plain,
            context.wrap_socket(plain),
        ):
            return host
    return None


def security_of(certificate: str, key: str) -> Any:
    """Returns Dask's security object: the same pair for all roles, and nothing unencrypted."""
    from distributed.security import Security

    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_cert": certificate for role in roles} | {f"tls_{role}_key": key for role in roles}
    return Security(require_encryption=True, tls_ca_file=certificate, **pairs)
