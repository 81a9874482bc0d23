"""Facts about a machine and its disks, for others: python -m hpc_isl.cluster.preflight.probe FOLDER …"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import hpc_isl
from hpc_isl.cluster.dask_pool import pool
from hpc_isl.cluster.run_folder.provenance import code_digest
from hpc_isl.files import read_json, write_atomic

PACKAGES = (
    "torch", "torchvision", "numpy", "zarr", "tensorstore", "dask", "mlflow", "submitit", "scikit-image",
)  # fmt: skip
ANSWER_S = 5.0
MEET_S = 60.0
# sqlite's locks are not to be trusted on these: a database there can be damaged.
NETWORK = {
    "nfs", "nfs3", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "cifs", "smb2", "smb3", "smbfs", "9p",
    "ceph", "glusterfs", "panfs", "wekafs", "afs", "orangefs", "pvfs2", "virtiofs", "autofs", "quobyte",
}  # fmt: skip
MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass(frozen=True)
class Facts:
    """Facts about one machine. GB are 10⁹ bytes; a default means not known.

    Attributes:
        packages: name -> version; empty where it is not installed.
        gpus: names of those that a process here sees.
        runs_gb, temporary_gb: free where the runs lie, and where this machine keeps temporary files.
        wrote: by its own clock, when it wrote to the shared folder.
        ahead_s: of its clock before that of the folder's file system.
        reached: the address under which it reached the first machine; empty: under none.
        tracking: why the tracking server cannot be reached; empty: it can.
    """

    rank: int = 0
    host: str = ""
    python: str = ""
    version: str = ""
    code: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    cpus: int = 0
    memory_gb: float = 0.0
    runs_gb: float = 0.0
    temporary: str = ""
    temporary_gb: float = 0.0
    wrote: float = 0.0
    ahead_s: float = 0.0
    reached: str | None = None
    tried: str = ""
    tracking: str | None = None


def facts(folder: Path, rank: int = 0, tracking: str | None = None) -> Facts:
    """Returns the facts about this machine; `folder` lies where the runs lie."""
    wrote, ahead = _clock(folder, rank)
    return Facts(
        rank=rank,
        # Slurm's name of a node is the one that a user meets in squeue.
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        python=sys.version.split()[0],
        version=hpc_isl.__version__,
        code=code_digest(),
        packages={name: _version(name) for name in PACKAGES},
        gpus=tuple(gpus()),
        cpus=len(os.sched_getaffinity(0)),
        memory_gb=psutil.virtual_memory().total / 1e9,
        runs_gb=free_gb(folder),
        temporary=tempfile.gettempdir(),
        temporary_gb=free_gb(Path(tempfile.gettempdir())),
        wrote=wrote,
        ahead_s=ahead,
        tracking=unreachable(tracking) if tracking else None,
    )


def _version(package: str) -> str:
    """Returns the version without importing the package, which takes long on a shared file system."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _clock(folder: Path, rank: int) -> tuple[float, float]:
    """Returns when a file was written by this clock, and how far that is ahead of the file system's clock."""
    path = folder / f".clock-{rank}"
    before = time.time()
    path.write_bytes(b"1")
    after = time.time()
    modified = path.stat().st_mtime
    path.unlink()
    # Anything within the time that the writing took is no difference.
    return after, max(0.0, before - modified) - max(0.0, modified - after)


def gpus() -> list[str]:
    """Returns the names of the GPUs that a process here may use, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = _nvidia_smi() or [path.name for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    if visible is None:
        return names
    visible_ids = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return names[: len(visible_ids)]


def _nvidia_smi() -> list[str]:
    """Reads `GPU 0: NVIDIA A100-SXM4-80GB (UUID: …)` as NVIDIA A100-SXM4-80GB; of a GPU in parts, these."""
    try:
        process = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.strip() for line in process.stdout.splitlines() if "UUID" in line]
    parts = [line.split("Device")[0].strip() for line in lines if line.startswith("MIG")]
    return parts or [line.split(": ", 1)[1].split(" (UUID")[0] for line in lines if ": " in line]


def unreachable(uri: str) -> str:
    """Returns why an MLflow server does not answer; empty: it does, or it is no server."""
    if not uri.startswith(("http://", "https://")):
        return ""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_S).close()  # noqa: S310 (http alone)
    except urllib.error.HTTPError:
        return ""  # a refusal is an answer
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


# ---------------------------------------------------------------- file systems


@dataclass(frozen=True)
class Mount:
    """A file system and where it is mounted."""

    point: str
    kind: str

    @property
    def network(self) -> bool:
        """Whether several machines may see it."""
        return self.kind in NETWORK or self.kind.startswith("fuse.")

    @property
    def memory(self) -> bool:
        """Whether it is lost with the machine's power."""
        return self.kind in MEMORY


def mounts() -> list[Mount]:
    """Returns all mounts of this machine, in the order in which they were mounted."""
    return [Mount(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def mount_of(path: Path, candidates: Iterable[Mount] | None = None) -> Mount:
    """Returns the mount on which the path lies, or would lie once it is made."""
    folder = os.path.realpath(path)
    nearest = Mount("/", "unknown")
    for mount in mounts() if candidates is None else candidates:
        inside = folder == mount.point or folder.startswith(mount.point.rstrip("/") + "/")
        # Of two on one point, the later hides the earlier.
        if inside and len(mount.point) >= len(nearest.point):
            nearest = mount
    return nearest


def temporary(path: Path) -> bool:
    """Returns whether it lies in a machine's own folders of temporary files."""
    folder = os.path.realpath(path)
    roots = {os.path.realpath(root) for root in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir())}  # noqa: S108
    return any(folder == root or folder.startswith(root + "/") for root in roots)


def existing(path: Path) -> Path:
    """Returns the path, or the nearest existing folder above it."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_gb(path: Path) -> float:
    """Returns the GB of 10⁹ bytes that the user may still write there."""
    return shutil.disk_usage(existing(path)).free / 1e9


# ---------------------------------------------------------------- from node to node


def listen(folder: Path, size: int) -> None:
    """Opens a port on the first machine, publishes it, and answers until all others have reported."""
    nonce = secrets.token_hex(8)
    with socket.create_server(("", 0), backlog=size) as server:
        server.settimeout(1.0)
        address = {"hosts": pool.addresses(), "port": server.getsockname()[1], "nonce": nonce}
        write_atomic(folder / "port.json", json.dumps(address))
        deadline = time.monotonic() + MEET_S
        reports = [folder / f"node-{rank}.json" for rank in range(1, size)]
        while time.monotonic() < deadline and not all(path.exists() for path in reports):
            with suppress(OSError):
                client, _ = server.accept()
                with client:
                    client.sendall(nonce.encode())


def reach(folder: Path) -> tuple[str, str]:
    """Returns the address under which the first machine answered, or empty; and what was tried."""
    deadline = time.monotonic() + MEET_S
    address = None
    while address is None and time.monotonic() < deadline:
        os.listdir(folder)  # makes a network file system look again
        address = read_json(folder / "port.json")
        time.sleep(0.1)
    if address is None:
        return "", "no address was published within a minute"
    tried = f"{', '.join(address['hosts'])} port {address['port']}"
    return next((host for host in address["hosts"] if _answers(host, address)), ""), tried


def _answers(host: str, address: Mapping[str, Any]) -> bool:
    """Returns whether it is the one that published the address: others may listen there too."""
    try:
        with socket.create_connection((host, address["port"]), ANSWER_S) as connection:
            connection.settimeout(ANSWER_S)
            return connection.recv(64) == str(address["nonce"]).encode()
    except OSError:
        return False


# ---------------------------------------------------------------- through the folder


def read(path: Path) -> Facts | None:
    """Returns what another machine wrote, with any version of this package; None: nothing yet."""
    content = read_json(path)
    if content is None:
        return None
    fact_names = {fact.name for fact in fields(Facts)}
    return Facts(**{key: value for key, value in content.items() if key in fact_names})


def main(folder: Path, tracking: str | None, rank: int, size: int) -> None:
    """Writes the facts of one rank into the folder; the first then waits for the others to connect."""
    own_facts = facts(folder, rank, tracking)
    content = asdict(own_facts)
    if size > 1 and rank > 0:
        content["reached"], content["tried"] = reach(folder)
    write_atomic(folder / f"node-{rank}.json", json.dumps(content))
    if size > 1 and rank == 0:
        listen(folder, size)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else None,
        int(os.environ.get("SLURM_PROCID", "0")),
        int(os.environ.get("SLURM_NTASKS", "1")),
    )
