"""The ranks that train together: this process's rank and device, and the few collective operations."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.learning.training.precision import repeat_on
from hpc_isl.run import Attempt

T = TypeVar("T")
POLL_S = 0.05


@dataclass(frozen=True)
class World:
    """This process among those of the job; by default it is the only one.

    Attributes:
        rank, size: of this process among all, over all nodes.
        local_rank: among those on this node.
        device: that holds its network.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum over ranks, written into `tensor` on each of them."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Returns every rank's value, in the order of ranks, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Returns rank 0's value, on each rank; the other ranks' values are ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        self.all_reduce(torch.zeros(1))  # on the CPU, by gloo, which needs no device


@contextmanager
def open_world(attempt: Attempt, timeout_s: float = 600.0) -> Iterator[World]:
    """Opens the world of an attempt: limits threads, chooses the device, joins the process group.

    The group communicates by gloo, on GPUs by nccl. Ranks find each other through the run folder: rank 0
    listens on a free port and publishes the address in `attempts/<n>/rendezvous.json`, with a nonce that
    tells it from a file that an earlier process left.

    Raises:
        UserError: ranks that did not join within `timeout_s`, or more ranks on a node than GPUs.
    """
    cap_threads(attempt.cpus)
    device = _device(attempt.local_rank, attempt.local_size)
    if attempt.size == 1:
        yield World(device=device)
        return
    store = _rendezvous(attempt, timeout_s)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store, rank=attempt.rank, world_size=attempt.size, timeout=timedelta(seconds=timeout_s),
    )  # fmt: skip
    world = World(attempt.rank, attempt.size, attempt.local_rank, device)
    yield world
    # Not in a finally: a failing rank must not wait here for those it leaves in the middle of a step.
    world.barrier()
    dist.destroy_process_group()


def cap_threads(cpus: int) -> None:
    """Limits torch's thread pools to the CPUs of this process; by default they take all of the node."""
    torch.set_num_threads(max(1, cpus))
    with suppress(RuntimeError):  # it can be set only once in a process
        torch.set_num_interop_threads(1)


def _device(local_rank: int, local_size: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return torch.device("cpu")
    if 1 < count < local_size:
        raise UserError(f"{local_size} processes on a node that shows {count} GPUs: ask for one GPU for each")
    # A scheduler that binds GPUs shows each rank its own GPU alone: a count of 1.
    device = torch.device("cuda", local_rank % count)
    torch.cuda.set_device(device)
    repeat_on(device)
    return device


# ---------------------------------------------------------------- rendezvous


def _rendezvous(attempt: Attempt, timeout_s: float) -> Store:
    """Returns the store that all ranks of the attempt share, once all have joined."""
    path = attempt.folder / "rendezvous.json"
    deadline = time.monotonic() + timeout_s
    one_node = attempt.local_size == attempt.size
    if attempt.rank == 0:
        store, nonce = _listen(path, one_node, attempt.size, timeout_s)
    else:
        store, nonce, via = _find(path, attempt.size, deadline)
        store.set(f"{nonce}/{attempt.rank}", via)
    missing = list(range(attempt.size))
    while True:
        missing = [rank for rank in missing if not store.check([f"{nonce}/{rank}"])]
        if not missing:
            break
        if time.monotonic() >= deadline:
            raise UserError(
                f"after {timeout_s:.0f} s only {attempt.size - len(missing)} of {attempt.size} processes "
                f"have come; missing ranks: {missing}; their logs are in {attempt.folder}"
            )
        time.sleep(POLL_S)
    if not one_node:
        _use_interface(store, nonce, attempt)
    return PrefixStore(f"{nonce}/group", store)


def _listen(path: Path, one_node: bool, size: int, timeout_s: float) -> tuple[TCPStore, str]:
    """Opens the store on a free port (on loopback if all ranks are here) and publishes its address."""
    listener = socket.create_server(("127.0.0.1" if one_node else "", 0))
    port = listener.getsockname()[1]
    # The store takes over the listening socket: no other process can take the port meanwhile.
    store = TCPStore(
        "127.0.0.1", port, world_size=None, is_master=True, wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s), master_listen_fd=listener.detach(),
    )  # fmt: skip
    nonce = secrets.token_hex(8)
    store.set(nonce, str(size))
    store.set(f"{nonce}/0", "")
    published = {
        "hosts": ["127.0.0.1"] if one_node else _addresses(),
        "port": port,
        "nonce": nonce,
        "node": socket.gethostname(),
    }
    write_atomic(path, json.dumps(published))
    return store, nonce


def _addresses() -> list[str]:
    """Returns IPv4 addresses that may reach this node: the one that its name resolves to first."""
    named_addresses = []
    with suppress(OSError):
        named_addresses = [socket.gethostbyname(socket.gethostname())]
    interface_addresses = [
        link.address
        for links in psutil.net_if_addrs().values()
        for link in links
        if link.family == socket.AF_INET
    ]
    return [
        host for host in dict.fromkeys(named_addresses + interface_addresses) if not host.startswith("127.")
    ] or ["127.0.0.1"]


def _find(path: Path, size: int, deadline: float) -> tuple[TCPStore, str, str]:
    """Returns the store that rank 0 published, its nonce, and the address under which it answered."""
    failure = "no address was published"
    while time.monotonic() < deadline:
        published = read_json(path) or {"hosts": []}
        for host in published["hosts"]:
            with suppress(OSError, RuntimeError):
                # A plain connection fails within seconds where TCPStore would wait for its own timeout.
                socket.create_connection((host, published["port"]), timeout=3).close()
                store = TCPStore(host, published["port"], is_master=False, timeout=timedelta(seconds=30))
                if store.check([published["nonce"]]):
                    return store, published["nonce"], host
            failure = (
                f"{published['hosts']} port {published['port']} of node {published['node']} did not answer"
            )
        time.sleep(POLL_S)
    raise UserError(f"rank 0 was not found among {size} processes: {failure} ({path})")


def _use_interface(store: Store, nonce: str, attempt: Attempt) -> None:
    """Names the network interface for gloo, which would look it up by host name, often a loopback address."""
    ranks = range(1, attempt.size) if attempt.rank == 0 else [attempt.rank]
    routes = [store.get(f"{nonce}/{rank}").decode() for rank in ranks]
    host = next((route for route in routes if not route.startswith("127.")), routes[0])
    attempt.log(f"processes meet at {host}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends no packet; the system chooses this node's address on the route
        own_address = str(probe.getsockname()[0])
    for name, links in psutil.net_if_addrs().items():
        if any(link.address == own_address for link in links):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
