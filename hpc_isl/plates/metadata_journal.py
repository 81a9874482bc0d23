"""Several files of a plate that change together: all of them or none, whenever a process is killed.

Each file is first written under another name beside it. The journal then records that all are complete; from
that moment the change counts, and the next process that opens the plate finishes it, with a rename per file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.files import only_writer, read_json
from hpc_isl.metadata_changes import LOCK
from hpc_isl.plates.atomic_directory import MARK, translate_write_errors

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
    with translate_write_errors(plate), only_writer(plate / LOCK) as mine:
        if not mine:
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
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda file: _write(_unfinished(plate / file[0]), file[1]()), files))
            _write_journal(plate, names, complete=True)  # from here on the change counts
        finally:
            _finish(plate)


def finish_interrupted(plate: Path) -> None:
    """Finishes a change whose process was killed, or undoes one that was not complete.

    Raises:
        UserError: another process is changing the plate, or it may not be written from here.
    """
    if not (plate / JOURNAL).exists():
        return
    try:
        with only_writer(plate / LOCK, PATIENCE_S) as mine:
            if not mine:
                raise UserError(
                    f"{plate}: another process changes its metadata just now; try again in a while"
                )
            _finish(plate)
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
    (plate / JOURNAL).unlink()


def _write_journal(plate: Path, files: Sequence[str], complete: bool) -> None:
    unfinished = plate / UNFINISHED
    _write(unfinished, json.dumps({"complete": complete, "files": files}).encode())
    os.replace(unfinished, plate / JOURNAL)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _unfinished(path: Path) -> Path:
    # A name that is known beforehand, so that the next process finds and removes what a kill left.
    return path.with_name(f".{path.name}.set")
