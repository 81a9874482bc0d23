"""The run folder, which alone says what a run is: paths, attempts, heartbeats, metrics, done records."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json, write_atomic
from hpc_isl.tasks import Clock, Workload

HEARTBEAT_S = 5.0
PROGRESS_S = 0.5  # progress reaches the record at most this often
SYSTEM_METRICS_S = 10.0


@dataclass(frozen=True)
class Plan:
    """The work of a stage as it is known before anything is submitted; making a plan writes nothing.

    Attributes:
        recipe: with globs expanded and paths absolute; this is what is kept in the run folder.
        messages: lines for the user: what there is and what will be done, in fields, GB, hours.
        inputs: name -> fingerprint of the data that the stage will read.
        makes: the folders or files that will appear.
        claims: returns what no other run may write meanwhile: a path, and what in it, as `labels of B03/1`.
        check_size: raises a `UserError` for a number of processes that cannot share the work.
        former_fingerprints: returns `inputs` that earlier versions noted otherwise, as they did.
        parts: name of an input that consists of many -> the name of each part -> its own fingerprint.
        workload: from which the time is estimated; None: it is not.
        precision: key of the recipe, and its value, that say in which numbers a network computes.
    """

    recipe: Any
    messages: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    makes: tuple[Path, ...] = ()
    claims: Callable[[], Iterable[tuple[Path, str]]] = field(default=tuple, compare=False)
    check_size: Callable[[int], object] = field(default=lambda size: None, compare=False)
    former_fingerprints: Callable[[], Mapping[str, str]] = field(default=dict, compare=False)
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    workload: Workload | None = None
    precision: tuple[str, str] | None = None


class _PathBelow:
    """A path below the folder of a run."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: Run, kind: type[Run]) -> Path:
        return run.folder / self._name


@dataclass(frozen=True)
class Run:
    """One folder `runs/<stage>/<name>/`: everything about one execution."""

    folder: Path

    recipe = _PathBelow("recipe.yaml")
    site = _PathBelow("site.yaml")
    record = _PathBelow("record.json")
    sbatch = _PathBelow("sbatch")
    attempts = _PathBelow("attempts")
    checkpoints = _PathBelow("checkpoints")
    metrics = _PathBelow("metrics.jsonl")
    pictures = _PathBelow("pictures")
    model = _PathBelow("model")
    done = _PathBelow("done")
    elements_file = _PathBelow("elements.json")
    cancelled = _PathBelow("cancelled")  # marks a run that is not to be started again by itself
    removed_file = _PathBelow("removed.json")  # marks a run whose files were removed
    trial = _PathBelow("trial")  # marks a run that lasts only until the time of the whole is known

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stage(self) -> str:
        return self.folder.parent.name

    @property
    def removed(self) -> dict[str, Any] | None:
        """The time of the removal and who removed the run; None where it exists."""
        return read_json(self.removed_file)

    @property
    def array(self) -> Run | None:
        """The array of which this run is an element."""
        parent = Run(self.folder.parent.parent)
        return parent if parent.elements_file.is_file() else None

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return self.array.root if self.array else self.folder.parent.parent

    @property
    def label(self) -> str:
        """The name for people; an element has that of its array before its own: `seeds/seed=0`."""
        return f"{self.array.name}/{self.name}" if self.array else self.name

    def elements(self) -> list[Run]:
        """Returns the runs of an array, or of a chain, in order; none where this is a single run."""
        paths = (read_json(self.elements_file) or {}).get("elements", [])
        return [Run(Path(os.path.normpath(self.folder / path))) for path in paths]

    def summary(self) -> dict[str, Any] | None:
        """Returns the done record of the stage; None while the run is not done."""
        return read_json(self.done / f"{self.stage}.json")

    def attempt_numbers(self) -> list[int]:
        try:
            names = os.listdir(self.attempts)  # a glob takes three times as long, and `status` asks often
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def next_attempt(self) -> int:
        """Makes the folder of a new attempt, which nobody else then gets, and returns its number."""
        number = max(self.attempt_numbers(), default=-1) + 1
        # mkdir succeeds for one process alone, also on network disks.
        while True:
            try:
                (self.attempts / str(number)).mkdir(parents=True)
                return number
            except FileExistsError:  # another process has made it since they were listed
                number += 1

    def origin(self) -> float:
        """Returns when the run was made, in seconds since 1970."""
        try:
            return self.recipe.stat().st_mtime
        except OSError:
            return time.time()

    def began(self) -> float:
        """Returns when the first attempt began, in seconds since 1970: the zero of system metrics."""
        records = (
            read_json(self.attempts / str(number) / "rank-0.json") or {} for number in self.attempt_numbers()
        )
        starts = (datetime.fromisoformat(record["start"]) for record in records if "start" in record)
        return min((start.timestamp() for start in starts), default=time.time())

    def metric_lines(self) -> Iterator[dict[str, Any]]:
        """Yields the lines of metrics.jsonl."""
        try:
            lines = self.metrics.read_text().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with suppress(json.JSONDecodeError):  # torn by a kill
                yield json.loads(line)


@dataclass
class Attempt:
    """One start of a job, as one of its ranks sees it: all that a stage needs from the execution layer.

    Attributes:
        number: 0 for the first start of the run, counted up by each requeue or resume.
        rank, size: of this process among those of the job.
        local_rank, local_size: among those on this node.
        cpus: CPUs this process may use.
        clock: counts what the stage has done, from which the time of later runs is estimated.
    """

    run: Run
    number: int = 0
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    cpus: int = 1
    stopping: threading.Event = field(default_factory=threading.Event)
    clock: Clock = field(default_factory=Clock)
    _state: dict[str, Any] = field(default_factory=dict)
    _progress_s: float = 0.0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def folder(self) -> Path:
        return self.run.attempts / str(self.number)

    @property
    def path(self) -> Path:
        """The record of this rank: start, heartbeat, progress, exit, traceback."""
        return self.folder / f"rank-{self.rank}.json"

    @property
    def log_file(self) -> Path:
        return self.folder / f"rank-{self.rank}.log"

    def note(self, **facts: Any) -> None:
        """Adds facts to this rank's record, at once and atomically."""
        with self._lock:
            self._state |= facts
            write_atomic(self.path, json.dumps(self._state, indent=1), durable="exit" in facts)

    def progress(self, done: int, total: int, unit: str, kept: int = 0, /, **metrics: float) -> None:
        """Reports how far the stage is, for the bar and for `status`. Cheap: call it at every step.

        `kept`: how many of those done were done by earlier attempts.
        """
        with self._lock:
            progress = {"done": done, "total": total, "unit": unit, "metrics": metrics}
            self._state["progress"] = progress | ({"kept": kept} if kept else {})
            started = "start" in self._state
            if started and (done >= total or time.monotonic() - self._progress_s > PROGRESS_S):
                self._progress_s = time.monotonic()
                with suppress(OSError):  # the heartbeat writes it again
                    self.note()

    def log(self, text: str) -> None:
        """Prints lines for the log, and for a user who watches the run, stamped with the time."""
        if self.rank == 0:
            stamp = datetime.now().strftime("%H:%M:%S")
            print("\n".join(f"{stamp}  {line}" for line in text.splitlines()), flush=True)

    def metric(self, step: int, **values: float) -> None:
        """Appends one line to metrics.jsonl; rank 0 alone writes, the other ranks' calls do nothing."""
        if self.rank:
            return
        line = json.dumps({"step": step, "time": now(), "attempt": self.number, "values": values})
        self.run.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, self.run.metrics.open("a") as stream:
            stream.write(line + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the done record, the last of all: what was made, where, and the main figures."""
        if self.rank == 0:
            content = {**summary, "attempt": self.number, "time": now()}
            write_atomic(self.run.done / f"{self.run.stage}.json", json.dumps(content, indent=1))

    @contextmanager
    def recorded(
        self, system_metrics: Callable[[], Mapping[str, float]] | None = None, **facts: Any
    ) -> Iterator[Attempt]:
        """Writes start and exit records around the stage, and runs a heartbeat thread in between.

        The exit record holds `outcome` (done, stopped, mistake, failed) and the traceback, if any.

        Args:
            system_metrics: called every 10 s for figures of the machine, which join metrics.jsonl.
            facts: join the start record.
        """
        self.note(
            rank=self.rank, size=self.size, attempt=self.number, pid=os.getpid(),
            node=socket.gethostname(), start=now(), heartbeat=now(), **facts,
        )  # fmt: skip
        metrics = self.run.metrics
        if self.rank == 0 and metrics.exists() and not (b"\n" + metrics.read_bytes()).endswith(b"\n"):
            with metrics.open("a") as stream:  # a line torn by a kill would spoil the next one
                stream.write("\n")
        ended = threading.Event()
        beat = threading.Thread(
            target=self._beat, args=(ended, system_metrics), daemon=True, name="heartbeat"
        )
        beat.start()
        outcome: dict[str, Any] = {"outcome": "failed"}
        try:
            yield self
            outcome = {"outcome": "stopped" if self.stopping.is_set() and not self.run.summary() else "done"}
        except BaseException as error:
            outcome = _outcome(error)
            raise  # the worker turns it into the exit code
        finally:
            ended.set()
            beat.join()
            with suppress(OSError):  # a full disk; it would hide the error that ended the stage
                self.note(exit=now(), heartbeat=now(), **outcome)

    def _beat(self, ended: threading.Event, system_metrics: Callable[[], Mapping[str, float]] | None) -> None:
        origin = self.run.began()
        last_sample = time.monotonic() - SYSTEM_METRICS_S / 2  # short runs get a sample too
        complained = False
        while not ended.wait(HEARTBEAT_S):
            try:
                self.note(heartbeat=now())
                if system_metrics and time.monotonic() - last_sample >= SYSTEM_METRICS_S:
                    last_sample = time.monotonic()
                    self.metric(int(time.time() - origin), **system_metrics())
            except OSError:  # a full or slow disk: the next beat may succeed
                continue
            except Exception as error:  # without its heartbeat a run would be taken for lost
                if not complained:
                    self.log(f"no figures of the machine: {type(error).__name__}: {error}")
                complained = True


def _outcome(error: BaseException) -> dict[str, Any]:
    """Returns how an attempt ended: a `UserError` by its message, anything else by its type too."""
    is_user_error = isinstance(error, UserError)
    return {
        "outcome": "mistake" if is_user_error else "failed",
        "message": str(error) if is_user_error else f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exc(),
    }
