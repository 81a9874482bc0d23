"""The record in a plate folder of which conversion writes it, made before any field, and its lock."""

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

RECORD = "index/conversion.json"
LOCK = "index/conversion.lock"
State = Literal["new", "unfinished", "finished"]


def state_of(out: Path, digest: str) -> State:
    """Returns how far the plate of this digest is at `out`.

    Raises:
        UserError: `out` holds something else.
    """
    if not out.exists():
        return "new"
    record = read_json(out / RECORD) if out.is_dir() else None
    if record is None:
        # A conversion that was killed before its record leaves nothing but these.
        ours = {out / "index", out / LOCK}
        foreign = any(path not in ours and MARK not in path.name for path in out.rglob("*"))
        if out.is_dir() and not foreign:
            return "new"
        raise UserError(f"out: {out} exists already and was not made by convert; choose another out")
    finished = (out / "zarr.json").exists()  # written last
    if record["digest"] != digest:
        what = "another plate" if finished else "a half-converted plate"
        raise UserError(
            f"out: {out} holds {what}, from {record['source']} or by another recipe; choose another out"
        )
    return "finished" if finished else "unfinished"


def recorded_digest(out: Path) -> str | None:
    """Returns the digest of the plate that was begun at `out`; None: convert has begun none."""
    return (read_json(out / RECORD) or {}).get("digest") if out.is_dir() else None


@contextmanager
def locked(out: Path, digest: str, source: Path) -> Iterator[None]:
    """Reserves `out` for this process, until it ends, and records which conversion writes it."""
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
