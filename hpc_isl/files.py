"""Files that appear complete or not at all, with one writer each; folders that a group may share."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError


def now() -> str:
    """Returns the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomic(path: Path, content: str | bytes, durable: bool = True, writer: str = "") -> None:
    """Writes a file that appears complete or not at all: temporary name in the same folder, then rename.

    Args:
        durable: also after a power cut; a heartbeat does without.
        writer: a part of the temporary name, where several write one after another: it tells what a killed
            writer of the same name left behind from what others are writing now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    prefix = f".{path.name}.{writer}." if writer else f".{path.name}."
    descriptor, temporary = tempfile.mkstemp(prefix=prefix, suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:  # rename alone may survive a power cut before the content does
                os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes files that their owner alone can read
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # that of a full disk names no file
            error.filename = str(path)
        raise


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields a name beside the path, for a library to write; it becomes `path` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_folder(out: Path) -> None:
    """Raises `UserError` where `out`, a folder to write, is a file or holds something already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out: {out} holds something already; name a new or an empty folder")


# The mask can only be read by setting it.
_UMASK = os.umask(0)
os.umask(_UMASK)


def share_with_group(group: str | None) -> None:
    """Lets the group, if any, write all files that this process writes from here on; see `make_folder`."""
    global _UMASK
    if group is not None:
        os.umask(0o002)
        _UMASK = 0o002


def make_folder(path: Path, group: str | None) -> None:
    """Makes a folder, of `group` where one is given; what is made in it later belongs to that group too.

    Raises:
        FileExistsError: something has this name.
    """
    new_parents = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(parents=True)
    if group is None:
        return
    try:
        for folder in (path, *new_parents):
            shutil.chown(folder, group=group)
            folder.chmod(0o2775)  # setgid: what is made inside belongs to the group too
    except (LookupError, PermissionError) as error:
        with suppress(OSError):  # what another process has put into a parent meanwhile stays
            for folder in (path, *new_parents):
                folder.rmdir()
        raise UserError(f"site.group={group}: {error}; name a group that you belong to") from None


def identity(path: Path) -> object:
    """Returns a value that is equal for all paths to one file or folder; if none exists, its real path."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def same_place(first: str | Path, second: str | Path) -> bool:
    """Returns whether two paths lead to one file or folder, also through links and (auto-, bind) mounts."""
    return str(first) == str(second) or identity(Path(first)) == identity(Path(second))


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None where there is no such file, or a power cut has emptied it."""
    try:
        try:
            text = path.read_text()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            text = path.read_text()  # on a network disk, it was replaced between its opening and its reading
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A file that is not durable, as with a heartbeat, may have lost its content, or have zero bytes for it.
    return dict(json.loads(text)) if text.strip("\0") else None


def csv_lines(path: Path, given: str) -> list[list[str]]:
    """Returns the lines of a CSV that a person wrote, with commas, semicolons or tabs; [] for a blank one.

    Args:
        given: what the path was given as, for messages: `exclude=FIELDS.csv`.

    Raises:
        UserError: there is no such file, or it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Excel writes semicolons where commas are decimal signs. The separator is what parts the header.
        tables = [csv_rows(text, delimiter=separator) for separator in ",;\t"]
    except FileNotFoundError:
        raise UserError(f"{given}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{given} is no readable CSV file in UTF-8: {error}") from None
    return max(tables, key=lambda rows: len(rows[0]) if rows else 0)


def csv_rows(text: str, **dialect: Any) -> list[list[str]]:
    """Returns a row for each line of a CSV; a row of several lines is followed by empty ones."""
    # Not `splitlines`, which ends lines at form feeds and more, and drops those within quotes.
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)
    rows: list[list[str]] = []
    for row in reader:
        rows.append(row)
        rows += [[]] * (reader.line_num - len(rows))
    return rows


@contextmanager
def only_writer(lock: Path, wait_s: float = 0) -> Iterator[bool]:
    """Yields whether this process holds the lock alone; waits for it up to `wait_s` seconds.

    Raises:
        UserError: the disk has no locks, so that a writer can never know that it is alone.
    """
    with lock.open("a") as stream:
        try:
            has_lock = _try_lock(stream.fileno(), fcntl.LOCK_EX, wait_s)
        except OSError as error:
            raise UserError(
                f"{lock.parent}: its disk has no file locks ({error.strerror}), by which two processes know "
                "of each other; use a folder on one that has, as Lustre where it is mounted with flock"
            ) from None
        yield has_lock


@contextmanager
def among_readers(lock: Path, wait_s: float = 0) -> Iterator[bool]:
    """Yields whether no `only_writer` of this lock begins while the block lasts; many may hold it at once."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError:  # it does not exist and may not be made: nobody can write here
        yield True
        return
    try:
        has_lock = True
        with suppress(OSError):  # a disk without locks: readers can do no harm
            has_lock = _try_lock(descriptor, fcntl.LOCK_SH, wait_s)
        yield has_lock
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        else:
            return True
