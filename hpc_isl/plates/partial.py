"""Folders that appear complete or not at all: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_isl.mistake import Mistake


@contextmanager
def appears_whole(folder: Path, need: int, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends well, and goes when it does not.

    Args:
        need: bytes that will be written at most, for the message of a full disk.
        overwrite: replace a folder that is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    partial.chmod(0o777 & ~_umask())
    try:
        yield partial
        _rename(partial, folder, overwrite)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_full(error):
            raise full(folder, need) from None
        raise


def sweep(folder: Path) -> int:
    """Removes what killed processes left behind below `folder`; how many folders and files that were."""
    found = [path for path in folder.rglob(".*") if ".partial" in path.name]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def is_full(error: BaseException) -> bool:
    """Whether the disk (or the user's share of it) is full; tensorstore says so in words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT))


def full(folder: Path, need: int) -> Mistake:
    free = shutil.disk_usage(next(p for p in [folder, *folder.parents] if p.exists())).free
    return Mistake(
        f"{folder}: the disk is full: {need:,} bytes are needed there and {free:,} are free "
        "(or your quota is used up)"
    )


def _rename(partial: Path, folder: Path, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise Mistake(f"{folder}: is there already")
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-old-", dir=folder.parent))
        os.rename(folder, old / folder.name)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(partial, folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
