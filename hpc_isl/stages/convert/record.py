"""Whose conversion a plate folder holds: a record made before any field, and a lock while it grows."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hpc_isl import __version__
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.plates.atomic_directory import MARK, translate_write_errors
from hpc_isl.plates.store import Index, open_plate

RECORD = "index/conversion.json"
LOCK = "index/conversion.lock"
State = Literal["new", "unfinished", "finished"]


def state(out: Path, digest: str) -> State:
    """What lies at `out`.

    Raises:
        UserError: something else than the plate of this digest; how to go on is said.
    """
    if not out.exists():
        return "new"
    record = read_json(out / RECORD) if out.is_dir() else None
    if record is None:
        if out.is_dir() and not _strangers(out):
            return "new"
        raise UserError(f"out: {out} is there already and was not made by convert; choose another out")
    finished = (out / "zarr.json").exists()
    if record["digest"] != digest:
        what = "another plate" if finished else "a half-converted plate"
        raise UserError(
            f"out: {out} holds {what}, from {record['source']} or by another recipe; choose another out"
        )
    return "finished" if finished else "unfinished"


def recorded(out: Path) -> str | None:
    """The digest of the plate that was begun at `out`; None: convert has begun none."""
    return ((read_json(out / RECORD) or {}) if out.is_dir() else {}).get("digest")


def finished_plate(out: Path) -> Index | None:
    """The plate at `out` that convert has finished; None: there is none."""
    return open_plate(out) if recorded(out) and (out / "zarr.json").exists() else None


@contextmanager
def held(out: Path, digest: str, source: Path) -> Iterator[None]:
    """`out` is this process's alone, and says whose conversion it is; the lock ends with the process."""
    try:
        with translate_write_errors(out, 4096):
            (out / LOCK).parent.mkdir(parents=True, exist_ok=True)
            lock = (out / LOCK).open("w")
    except OSError as error:
        raise UserError(f"out: {out} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"out: another process is converting to {out} now") from None
        except OSError:
            pass  # a file system without locks
        record = {"digest": digest, "source": str(source), "hpc_isl": __version__}
        with translate_write_errors(out, 4096):
            write_atomic(out / RECORD, json.dumps(record, indent=1))
        yield


def _strangers(out: Path) -> bool:
    """Whether there is anything that a conversion killed before its record would not leave."""
    ours = {out / "index", out / LOCK}
    return any(path not in ours and MARK not in path.name for path in out.rglob("*"))
