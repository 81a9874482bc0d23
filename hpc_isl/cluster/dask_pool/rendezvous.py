"""Where the nodes of a pooled job meet: rank 0 tells address and key in the attempt's folder."""

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
from pathlib import Path
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
    """What rank 0 tells the other ranks of a pool.

    Attributes:
        hosts: addresses under which the node of rank 0 may be reached.
        certificate, key: PEM, of this pool alone: who has them may join, and runs what it is told.
        need: what the processes are to hold.
    """

    hosts: tuple[str, ...]
    port: int
    certificate: str
    key: str
    need: MemoryRequirement


@contextmanager
def published(attempt: Attempt, meeting: SchedulerAddress) -> Iterator[None]:
    """The meeting lies in the attempt's folder, for its owner alone to read."""
    path = attempt.folder / FILE
    _write_private(path, json.dumps(asdict(meeting)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    """Complete or not at all, and never readable by others, not for a moment."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    os.replace(temporary, path)


def scheduler_addresses(attempt: Attempt) -> Iterator[SchedulerAddress]:
    """What rank 0 has published, again and again until it has left: whoever lost its pool finds it again."""
    living = _Living(attempt)
    while living.now():
        if content := read_json(attempt.folder / FILE):
            yield SchedulerAddress(**{**content, "need": MemoryRequirement(**content["need"])})
        time.sleep(LOOK_S)


def stands(attempt: Attempt, meeting: SchedulerAddress) -> bool:
    """Whether rank 0 has not ended this meeting."""
    return (read_json(attempt.folder / FILE) or {}).get("key") == meeting.key


class _Living:
    """Whether rank 0 works: its record says that it has left, or its heartbeat stands still.

    The clocks of two nodes may differ: a heartbeat is compared with the one before, not with the time.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.path = attempt.folder / "rank-0.json"
        self.heartbeat: object = None
        self.last = time.monotonic()

    def now(self) -> bool:
        record = read_json(self.path) or {}
        if record.get("exit"):
            return False
        if record.get("heartbeat") != self.heartbeat:
            self.heartbeat, self.last = record.get("heartbeat"), time.monotonic()
        return time.monotonic() - self.last < (SILENT_S if self.heartbeat else COME_S)


def addresses() -> tuple[str, ...]:
    """IPv4 addresses under which other nodes may reach this one: the one its name has, then the rest."""
    named = []
    with suppress(OSError):
        named = [socket.gethostbyname(socket.gethostname())]
    listed = [
        link.address
        for links in psutil.net_if_addrs().values()
        for link in links
        if link.family == socket.AF_INET
    ]
    found = tuple(host for host in dict.fromkeys(named + listed) if not host.startswith("127."))
    return found or ("127.0.0.1",)


def reached(meeting: SchedulerAddress, context: ssl.SSLContext) -> str | None:
    """The host that answers with the certificate of the meeting: an address may be another machine's here."""
    for host in meeting.hosts:
        with (
            suppress(OSError),
            socket.create_connection((host, meeting.port), CONNECT_S) as plain,
            context.wrap_socket(plain),
        ):
            return host
    return None


def security_of(certificate: str, key: str) -> Any:
    """As Dask takes it: the same pair for all roles, and nothing unencrypted."""
    from distributed.security import Security

    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_cert": certificate for role in roles} | {f"tls_{role}_key": key for role in roles}
    return Security(require_encryption=True, tls_ca_file=certificate, **pairs)
