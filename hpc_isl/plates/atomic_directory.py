"""Folders that appear complete or not at all, and files of a plate that change together.

A folder is written under another name beside it, then renamed. Of files that change together each is first
written beside the old one. The journal then records that all are complete; from that moment the change
counts, and the next process that opens the plate finishes it, with a rename per file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_isl.errors import AbortRun, UserError
from hpc_isl.files import only_writer, read_json
from hpc_isl.metadata_changes import LOCK

# What marks a name as unfinished; the whole name is `.NAME.partial-…`, and `write_atomic`'s for files.
MARK = ".partial"
OLD = ".replaced-"


@contextmanager
def atomic_directory(folder: Path, need: int, overwrite: bool = False) -> Iterator[Path]:
    """Yields a folder to write into; it becomes `folder` if the block succeeds, and is removed if it fails.

    Args:
        need: bytes that will be written at most, for the message of a full disk.
        overwrite: replace an existing folder.

    Raises:
        UserError: the folder exists, or see `translate_write_errors`.
    """
    partial = folder.with_name(f".{folder.name}{MARK}-{os.getpid()}-{secrets.token_hex(4)}")
    with translate_write_errors(folder, need):
        folder.parent.mkdir(parents=True, exist_ok=True)
        clean(folder)  # one process at a time writes a folder, so what is left over was killed
        if folder.exists() and not overwrite:
            raise UserError(f"{folder}: exists already")
        try:
            partial.mkdir()
            yield partial
            replaced = folder.with_name(f".{folder.name}{OLD}{os.getpid()}")
            if folder.exists():  # a folder cannot be renamed over one that holds files
                os.rename(folder, replaced)
            os.rename(partial, folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def reserved(folder: Path, lock: str, key: str, doing: str) -> Iterator[None]:
    """Makes a folder, and keeps other processes from writing into it by a lock, while the block lasts.

    Args:
        key: of the recipe that names the folder; `doing`: what is done, as in `converting to`.

    Raises:
        UserError: the folder cannot be written, or another process is doing the same.
    """
    try:
        with translate_write_errors(folder, 4096):
            (folder / lock).parent.mkdir(parents=True, exist_ok=True)
            stream = (folder / lock).open("a")
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be written: {error.strerror}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{key}: another process is {doing} {folder} now") from None
        except OSError:
            pass  # a file system without locks
        yield


@contextmanager
def translate_write_errors(folder: Path, need: int = 0) -> Iterator[None]:
    """Raises `AbortRun` for a full or read-only disk, and a `UserError` for a folder of another user.

    `need`: bytes that will be written at most; 0: not known.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _has_code(error, errno.ENOSPC, errno.EDQUOT):
            raise full(folder, need) from None
        if _has_code(error, errno.EROFS):
            raise AbortRun(f"{folder}: could not be written: {error}") from None
        if _has_code(error, errno.EACCES, errno.EPERM):
            raise UserError(f"{folder}: could not be written: {error}") from None
        raise


def _has_code(error: Exception, *codes: int) -> bool:
    if isinstance(error, OSError):
        return error.errno in codes
    # tensorstore hands on the system's error as text alone
    return isinstance(error, ValueError) and any(os.strerror(code) in str(error) for code in codes)


def clean(folder: Path) -> None:
    """Removes what killed processes left beside `folder`, and restores one that was being replaced."""
    for replaced in folder.parent.glob(f".{folder.name}{OLD}*"):
        if not folder.exists():
            os.rename(replaced, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    for partial in folder.parent.glob(f".{folder.name}{MARK}-*"):
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(plate: Path) -> int:
    """Removes the unfinished files and folders of a plate that nobody is writing; returns their number."""
    paths = leftovers(plate)
    for path in paths:
        if OLD in path.name:
            clean(path.with_name(path.name[1:].partition(OLD)[0]))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(paths)


def leftovers(plate: Path) -> list[Path]:
    """Returns unfinished files and folders of a plate, but for those of labels, which `clean` removes."""
    depths = ("", "*/", "*/*/")
    return [path for depth in depths for mark in (MARK, OLD) for path in plate.glob(f"{depth}.*{mark}*")]


def full(folder: Path, need: int) -> AbortRun:
    """Returns the error of a full disk; `need`: bytes that will be written at most, 0: not known."""
    needed = f"{need:,} bytes are needed and " if need else ""
    return AbortRun(
        f"{folder}: the disk is full: {needed}{free(folder) or 0:,} are free there "
        "(or your quota is used up); make room and start again, what is written is kept"
    )


def free(folder: Path) -> int | None:
    """Returns the free bytes where `folder` lies or will lie; None where a file system states none."""
    disk = shutil.disk_usage(_existing_ancestor(folder))
    return disk.free if disk.total else None


def unwritable(folder: Path) -> str:
    """Returns why `folder` cannot be written, as far as that is known before it is tried; else ""."""
    existing = _existing_ancestor(folder)
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return f"{folder} cannot be written: the disk of {existing} is read-only"
    if not existing.is_dir():
        return f"{folder} cannot be written: {existing} is a file"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{folder} cannot be written: you may not write to {existing}"
    return ""


def _existing_ancestor(folder: Path) -> Path:
    """Returns the folder itself, or the first above it that exists."""
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())


JOURNAL = "index/set.json"
UNFINISHED = f"index/.set.json{MARK}"
PATIENCE_S = 120.0
Content = Callable[[], bytes]


@contextmanager
def unused(plate: Path) -> Iterator[None]:
    """Keeps other runs from reading or writing the plate while the block lasts.

    Raises:
        UserError: a run uses it just now, or the plate may not be written.
    """
    with translate_write_errors(plate), only_writer(plate / LOCK) as acquired:
        if not acquired:
            raise UserError(
                f"{plate}: a run uses it just now, or another process changes it; wait for its end"
            )
        yield


def replace_together(plate: Path, files: Sequence[tuple[str, Content]]) -> None:
    """Writes the files (below the plate) anew; call it while the plate is `unused`.

    Raises:
        AbortRun: the disk is full or may not be written; the plate is as it was.
    """
    names = [name for name, _ in files]
    with translate_write_errors(plate):
        try:
            _write_journal(plate, names, complete=False)  # names what is to be removed after a kill
            with ThreadPoolExecutor(8) as pool:  # they wait for the disk together
                list(pool.map(lambda file: _write(_unfinished(plate / file[0]), file[1]()), files))
            _write_journal(plate, names, complete=True)  # from here on the change counts
        finally:  # after an error it undoes the change: the journal does not say that it is complete
            _finish(plate)


def finish_interrupted(plate: Path) -> None:
    """Finishes a change whose process was killed, or undoes one that was not complete.

    Raises:
        UserError: another process is changing the plate, or it may not be written from here.
    """
    if not (plate / JOURNAL).exists():
        return
    try:
        with only_writer(plate / LOCK, PATIENCE_S) as acquired:
            if not acquired:
                raise UserError(
                    f"{plate}: another process changes its metadata just now; try again in a while"
                )
            _finish(plate)  # reads the journal again: another process may have finished it meanwhile
    except OSError as error:
        raise UserError(
            f"{plate}: a change of its metadata was cut short, and cannot be brought to its end from here "
            f"({error.strerror}); open it where it can be written, as with `inspect`"
        ) from None


def version(plate: Path) -> tuple[int, int, bool] | None:
    """Returns what differs before, while and after the plate is changed; None: there is no plate."""
    with suppress(OSError):
        facts = (plate / "zarr.json").stat()
        return facts.st_ino, facts.st_mtime_ns, (plate / JOURNAL).exists()
    return None


def _finish(plate: Path) -> None:
    journal = read_json(plate / JOURNAL)
    if journal is None:
        return
    (plate / UNFINISHED).unlink(missing_ok=True)
    for name in journal["files"]:
        with suppress(FileNotFoundError):  # done before
            if journal["complete"]:
                os.replace(_unfinished(plate / name), plate / name)
            else:
                _unfinished(plate / name).unlink()
    (plate / JOURNAL).unlink()  # last, so that a kill before it leaves the rest to the next process


def _write_journal(plate: Path, files: Sequence[str], complete: bool) -> None:
    unfinished = plate / UNFINISHED
    _write(unfinished, json.dumps({"complete": complete, "files": files}).encode())
    os.replace(unfinished, plate / JOURNAL)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        # On the disk before the journal says so: a power cut must not leave a journal of empty files.
        os.fsync(stream.fileno())


def _unfinished(path: Path) -> Path:
    # A name that is known beforehand, so that the next process finds and removes what a kill left.
    return path.with_name(f".{path.name}.set")
