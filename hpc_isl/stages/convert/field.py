"""Fields through parallel processes: one of them reads, measures and writes a field, whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.assemble import assemble, inputs_digest
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.plate import Field, FieldKey, PlaneFile, Plate
from hpc_isl.plates.statistics import measure, repeated
from hpc_isl.plates.store import image_path, write_field
from hpc_isl.recipes.plates import CodecRecipe


@dataclass(frozen=True)
class FieldTask:
    """One field to convert; `plate` comes without its fields.

    Attributes:
        skip: planes that cannot be read are left out, and the others stored.
        types: dtype of each channel's planes all over the plate.
    """

    out: Path
    plate: Plate
    field: Field
    files: tuple[PlaneFile, ...]
    codec: CodecRecipe
    levels: int | None
    skip: bool = False
    types: Mapping[int, str] | None = None

    @property
    def image(self) -> Path:
        return image_path(self.out, self.plate, self.field.key)

    @property
    def inputs(self) -> str:
        """Digest of all that the image is made of."""
        return inputs_digest(self.field, self.files, self.codec.model_dump(), self.levels)


@dataclass(frozen=True)
class Outcome:
    """What became of a field.

    Attributes:
        kept: its image was there, made of the same files in the same way.
        lost: it could not be stored at all.
        problems: why it, or some of its planes, could not be stored.
        repeated: planes that equal another one of the field bit for bit.
    """

    key: FieldKey
    kept: bool = False
    lost: bool = False
    problems: tuple[str, ...] = ()
    repeated: int = 0


def convert_field(work: FieldTask) -> Outcome:
    """Converts one field, unless its image is there and was made of the same files in the same way.

    Raises:
        UserError: it cannot be written; that it cannot be read is told by the outcome.
    """
    key, inputs = work.field.key, work.inputs
    if (problems := converted(work.image, inputs)) is not None:
        return Outcome(key, kept=True, problems=problems)
    names = [channel.name for channel in work.plate.channels]
    try:
        found = assemble(work.field, work.files, names, work.skip, work.types)
    except UserError as error:
        return Outcome(key, lost=True, problems=(str(error),))
    if work.inputs != inputs:
        text = "its files changed while they were read: is the instrument, or a copy, still writing them?"
        return Outcome(key, lost=True, problems=(text,))
    write_field(
        work.out, work.plate, found.field, found.pixels, measure(found.pixels, found.places), work.codec,
        work.levels, inputs=inputs, problems=found.problems, overwrite=True,
    )  # fmt: skip
    return Outcome(key, problems=found.problems, repeated=repeated(found.pixels, found.places))


def converted(image: Path, inputs: str) -> tuple[str, ...] | None:
    """Why planes of an image that is made of these inputs are not there; None: it is not made of them."""
    try:
        ours = read_group(image)["hpc_isl"]
        return tuple(ours.get("problems", ())) if ours["inputs"] == inputs else None
    except (UserError, KeyError):
        return None


def convert_fields(works: list[FieldTask], processes: int, stopping: threading.Event) -> Iterator[Outcome]:
    """Outcomes as they come; none is begun after `stopping`.

    Processes are spawned, for a forked one would inherit threads that hold locks.
    """
    processes = min(processes, len(works))
    if processes < 2:
        yield from (convert_field(work) for work in _until(works, stopping))
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
    try:
        yield from _flow(pool, _until(works, stopping), 2 * processes, stopping)
    except BrokenProcessPool:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # the pool asks them with SIGTERM, which they ignore, and would wait for ever
        raise RuntimeError(
            "a converting process was ended from outside, perhaps for want of memory; "
            "what is written is kept: start again, with fewer cpus if it was memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _until(works: Iterable[FieldTask], stopping: threading.Event) -> Iterator[FieldTask]:
    for work in works:
        if stopping.is_set():
            return
        yield work


def _flow(
    pool: ProcessPoolExecutor, works: Iterator[FieldTask], ahead: int, stopping: threading.Event
) -> Iterator[Outcome]:
    """Keeps at most `ahead` fields under way and takes back those that wait at a stop, so that it is soon."""
    pending: set[Future[Outcome]] = set()
    while True:
        while len(pending) < ahead and (work := next(works, None)):
            pending.add(_submitted(pool, work))
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        if stopping.is_set():
            pending = {future for future in pending if not future.cancel()}
        yield from (future.result() for future in done)


def _submitted(pool: ProcessPoolExecutor, work: FieldTask) -> Future[Outcome]:
    try:
        return pool.submit(convert_field, work)
    except (ValueError, OSError) as error:  # the pool broke while it started another process
        raise BrokenProcessPool(str(error)) from None


def _begin() -> None:
    """A process heeds its parent alone: no signals of its own, one thread, and its end with the parent's."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["HPC_ISL_IO_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
