"""Files that appear complete or not at all, with one writer each; folders that a group may share."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomic(path: Path, content: str | bytes, durable: bool = True, writer: str = "") -> None:
    """The file appears complete or not at all: temporary name in the same folder, then rename.

    Args:
        durable: also after a power cut; a heartbeat does without.
        writer: in the temporary name, where several may write, each in its turn: what one leaves behind that
            is killed, the next of its kind can tell from what others are just writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    prefix = f".{path.name}.{writer}." if writer else f".{path.name}."
    descriptor, temporary = tempfile.mkstemp(prefix=prefix, suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()


def share_with_group(group: str | None) -> None:
    """From here on this process writes files that a group may write too; see `make_folder`."""
    global _UMASK
    if group is not None:
        os.umask(0o002)
        _UMASK = 0o002


def make_folder(path: Path, group: str | None) -> None:
    """A new folder, of `group` where one is given; what is made in it later belongs to that group too.

    Raises:
        FileExistsError: there is something of this name.
    """
    above = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(parents=True)
    if group is None:
        return
    try:
        for folder in (path, *above):
            shutil.chown(folder, group=group)
            folder.chmod(0o2775)
    except (LookupError, PermissionError) as error:
        path.rmdir()
        raise UserError(f"site.group={group}: {error}; name a group that you belong to") from None


def identity(path: Path) -> object:
    """Equal for all paths that lead to one file or folder; of one that is not there, where its name leads."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same file or folder, also through links, automounters and bind mounts."""
    return str(one) == str(other) or identity(Path(one)) == identity(Path(other))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None


@contextmanager
def only_writer(lock: Path, wait_s: float = 0) -> Iterator[bool]:
    """Whether this process now is the only one to write; others wait or leave it."""
    with lock.open("a") as stream:
        yield _locked(stream.fileno(), fcntl.LOCK_EX, wait_s)


@contextmanager
def among_readers(lock: Path, wait_s: float = 0) -> Iterator[bool]:
    """Whether no `only_writer` of this lock begins while the block lasts; many may hold it together.

    True also where there is nothing to hold: the lock is not there and may not be made.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError:
        yield True
        return
    try:
        yield _locked(descriptor, fcntl.LOCK_SH, wait_s)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # a disk without locks
                return kind == fcntl.LOCK_SH
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        else:
            return True
