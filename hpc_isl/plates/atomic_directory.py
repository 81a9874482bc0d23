"""Folders that appear complete or not at all: written under another name beside it, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_isl.errors import AbortRun, UserError

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
            old = folder.with_name(f".{folder.name}{OLD}{os.getpid()}")
            if folder.exists():  # a folder cannot be renamed over one that holds files
                os.rename(folder, old)
            os.rename(partial, folder)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


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
        if _is_any(error, errno.ENOSPC, errno.EDQUOT):
            raise full(folder, need) from None
        if _is_any(error, errno.EROFS):
            raise AbortRun(f"{folder}: could not be written: {error}") from None
        if _is_any(error, errno.EACCES, errno.EPERM):
            raise UserError(f"{folder}: could not be written: {error}") from None
        raise


def _is_any(error: Exception, *codes: int) -> bool:
    if isinstance(error, OSError):
        return error.errno in codes
    # tensorstore hands on the system's error as text alone
    return isinstance(error, ValueError) and any(os.strerror(code) in str(error) for code in codes)


def clean(folder: Path) -> None:
    """Removes what killed processes left beside `folder`, and restores one that was being replaced."""
    for old in folder.parent.glob(f".{folder.name}{OLD}*"):
        if not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)
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
    disk = shutil.disk_usage(_existing(folder))
    return disk.free if disk.total else None


def unwritable(folder: Path) -> str:
    """Returns why `folder` cannot be written, as far as that is known before it is tried; else ""."""
    existing = _existing(folder)
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return f"{folder} cannot be written: the disk of {existing} is read-only"
    if not existing.is_dir():
        return f"{folder} cannot be written: {existing} is a file"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{folder} cannot be written: you may not write to {existing}"
    return ""


def _existing(folder: Path) -> Path:
    """Returns the folder itself, or the first above it that exists."""
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())
