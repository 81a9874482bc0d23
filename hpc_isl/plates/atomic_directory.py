"""Folders that appear complete or not at all: written beside their place, then renamed."""

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
    """A folder to write into that becomes `folder` when the block ends well, and goes when it does not.

    One process at a time writes a folder, so what an earlier one left behind is removed first.

    Args:
        need: bytes that will be written at most, for the message of a full disk.
        overwrite: replace a folder that is there.
    """
    partial = folder.with_name(f".{folder.name}{MARK}-{os.getpid()}-{secrets.token_hex(4)}")
    with translate_write_errors(folder, need):
        folder.parent.mkdir(parents=True, exist_ok=True)
        clean(folder)
        if folder.exists() and not overwrite:
            raise UserError(f"{folder}: is there already")
        try:
            partial.mkdir()
            yield partial
            _rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def translate_write_errors(folder: Path, need: int = 0) -> Iterator[None]:
    """A full or read-only disk is `AbortRun`, a folder that is another's a `UserError`.

    `need`: bytes that will be written at most; 0: not known.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _messages(error, errno.ENOSPC, errno.EDQUOT):
            raise full(folder, need) from None
        if _messages(error, errno.EROFS):
            raise AbortRun(f"{folder}: could not be written: {error}") from None
        if _messages(error, errno.EACCES, errno.EPERM):
            raise UserError(f"{folder}: could not be written: {error}") from None
        raise


def clean(folder: Path) -> None:
    """Removes what killed processes left beside `folder`; one that was being replaced comes back."""
    for old in folder.parent.glob(f".{folder.name}{OLD}*"):
        if not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)
    for partial in folder.parent.glob(f".{folder.name}{MARK}-*"):
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(plate: Path) -> int:
    """Removes the unfinished files and folders of a plate that nobody is writing; how many there were."""
    found = leftovers(plate)
    for path in found:
        if OLD in path.name:
            clean(path.with_name(path.name[1:].partition(OLD)[0]))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def leftovers(plate: Path) -> list[Path]:
    """Unfinished files and folders of a plate, down to its images; those of labels are removed by `clean`."""
    depths = ("", "*/", "*/*/")
    return [path for depth in depths for mark in (MARK, OLD) for path in plate.glob(f"{depth}.*{mark}*")]


def _messages(error: Exception, *codes: int) -> bool:
    """Whether the system said one of these; tensorstore hands that on in words alone."""
    if isinstance(error, OSError):
        return error.errno in codes
    return isinstance(error, ValueError) and any(os.strerror(code) in str(error) for code in codes)


def full(folder: Path, need: int) -> AbortRun:
    """The message of a full disk."""
    needed = f"{need:,} bytes are needed and " if need else ""
    return AbortRun(
        f"{folder}: the disk is full: {needed}{free(folder) or 0:,} are free there "
        "(or your quota is used up); make room and start again, what is written is kept"
    )


def free(folder: Path) -> int | None:
    """Free bytes where `folder` lies or will lie; None: its file system does not say, as /proc does not."""
    disk = shutil.disk_usage(_existing(folder))
    return disk.free if disk.total else None


def unwritable(folder: Path) -> str:
    """Why `folder` cannot be written, as far as that is known before it is tried; empty: it may be."""
    there = _existing(folder)
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"{folder} cannot be written: the disk of {there} is read-only"
    if not there.is_dir():
        return f"{folder} cannot be written: {there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{folder} cannot be written: you may not write to {there}"
    return ""


def _existing(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())


def _rename(partial: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(partial, folder)
        return
    old = folder.with_name(f".{folder.name}{OLD}{os.getpid()}")
    os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
