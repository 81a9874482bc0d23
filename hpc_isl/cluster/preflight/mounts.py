"""The file system on which a folder lies: shared with other machines, of this machine, or in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

# sqlite's locks are not to be trusted on these: a database there can be damaged.
NETWORK = {
    "nfs", "nfs3", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "cifs", "smb2", "smb3", "smbfs", "9p",
    "ceph", "glusterfs", "panfs", "wekafs", "afs", "orangefs", "pvfs2", "virtiofs", "autofs", "quobyte",
}  # fmt: skip
MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


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


def mount_of(path: Path, known: Iterable[Mount] | None = None) -> Mount:
    """Returns the mount on which the path lies, or would lie once it is made."""
    folder = os.path.realpath(path)
    found = Mount("/", "unknown")
    for mount in mounts() if known is None else known:
        inside = folder == mount.point or folder.startswith(mount.point.rstrip("/") + "/")
        # Of two on one point, the later hides the earlier.
        if inside and len(mount.point) >= len(found.point):
            found = mount
    return found


def temporary(path: Path) -> bool:
    """Returns whether it lies in a machine's own folders of temporary files."""
    folder = os.path.realpath(path)
    places = {os.path.realpath(place) for place in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir())}  # noqa: S108
    return any(folder == place or folder.startswith(place + "/") for place in places)


def existing(path: Path) -> Path:
    """Returns the path, or the nearest existing folder above it."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_gb(path: Path) -> float:
    """Returns the GB of 10⁹ bytes that the user may still write there."""
    return shutil.disk_usage(existing(path)).free / 1e9
