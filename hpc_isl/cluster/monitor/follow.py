"""Follows a run through its folder: what rank 0 logs, line by line, above a bar of its progress."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hpc_isl.cluster.monitor import messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.monitor.status_table import figures, progress_text
from hpc_isl.cluster.run_folder import status
from hpc_isl.files import read_json
from hpc_isl.run import Run

LOGGED = re.compile(r"\d\d:\d\d:\d\d  ")  # how Attempt.log begins a line; all else is output of libraries
QUIET_S = 30.0  # between lines of progress where there is no terminal to draw a bar on
LOOK_S = 0.5
ASK_S = 5.0  # between questions to the queue


@dataclass
class Tail:
    """The complete lines that were added to a file since the last look."""

    path: Path
    _offset: int = 0
    # Bytes after the last line end: a rank may be writing that line just now.
    _rest: bytes = b""

    def lines(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                added = stream.read()
        except FileNotFoundError:
            return
        self._offset += len(added)
        *complete_lines, self._rest = (self._rest + added).split(b"\n")
        yield from (line.decode(errors="replace") for line in complete_lines)

    def last(self) -> Iterator[str]:
        """Yields what remains when no more will come: also a line without its end."""
        yield from self.lines()
        if self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""


@dataclass
class View:
    """One attempt as a person who waits for it sees it; `tick` is called a few times a second.

    Attributes:
        all_lines: shows every line of the log, not only those of the stage.
    """

    run: Run
    attempt: int
    rank: int = 0
    all_lines: bool = False
    _tail: Tail = field(init=False)
    _bar: Any = None
    _last_progress: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._tail = Tail(self.run.attempts / str(self.attempt) / f"rank-{self.rank}.log")
        self._last_progress = time.monotonic(), 0.0

    def tick(self) -> None:
        """Shows the new lines and the progress."""
        for line in self._tail.lines():
            if self.all_lines or LOGGED.match(line):
                self.log(line)
        progress = (read_json(self.run.attempts / str(self.attempt) / "rank-0.json") or {}).get("progress")
        if progress and sys.stderr.isatty():
            self._draw(progress)
        elif progress:
            share = progress["done"] / max(1, progress["total"])
            shown_time, shown_share = self._last_progress
            if time.monotonic() - shown_time > QUIET_S and share != shown_share:
                self._last_progress = time.monotonic(), share
                self.log(progress_text(progress))

    def log(self, line: str) -> None:
        """Prints a line above the bar."""
        with suppress(BrokenPipeError):  # no one reads any more; the run continues
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Shows what is left and removes the bar."""
        self.tick()
        if self._bar is not None:
            self._bar.close()

    def _draw(self, progress: dict[str, Any]) -> None:
        bar, unit = self._bar, f" {progress['unit']}"
        if bar is None or (bar.total, bar.unit) != (progress["total"], unit):
            if bar is not None:
                bar.close()
            size = shutil.get_terminal_size()  # tqdm's own draws nothing where a terminal has no size
            bar = self._bar = tqdm(
                total=progress["total"], initial=progress["done"], unit=unit,
                leave=False, ncols=size.columns, nrows=size.lines, file=sys.stderr,
            )  # fmt: skip
        bar.set_postfix_str(figures(progress.get("metrics", {})), refresh=False)
        if progress["done"] != bar.n:
            bar.update(progress["done"] - bar.n)


# ---------------------------------------------------------------- until the end


def follow(run: Run, console: Console, rank: int = 0, everything: bool = False) -> int:
    """Shows the run's log until it has ended; Ctrl-C leaves it running. Returns the exit code."""
    try:
        if run.elements():
            _follow_array(run, console)
        else:
            _follow_run(run, rank, everything)
    except KeyboardInterrupt:
        console.log(f"{run.label!r} continues; to end it: {console.command('cancel', run)}")
        return messages.INTERRUPTED
    return messages.waited(run, console)


def _follow_run(run: Run, rank: int, everything: bool) -> None:
    view = View(run, run.attempt_numbers()[-1], rank, everything)
    asked_time, alive = -1e9, True
    while alive:
        if run.attempt_numbers()[-1] != view.attempt:  # Slurm has started it again
            view.close()
            view = View(run, run.attempt_numbers()[-1], rank, everything)
        view.tick()
        if time.monotonic() - asked_time > ASK_S:
            asked_time, alive = time.monotonic(), status.status_of(run).alive
        time.sleep(LOOK_S)
    view.close()


def _follow_array(run: Run, console: Console) -> None:
    shown_detail = ""
    while True:
        run_status = status.status_of(run)
        if run_status.detail != shown_detail:
            console.log(f"{run.name}: {run_status.detail}")
            shown_detail = run_status.detail
        if not run_status.alive:
            return
        time.sleep(ASK_S)


def until_ended(run: Run) -> None:
    """Returns when nothing computes the run any more."""
    while status.status_of(run).alive:
        time.sleep(ASK_S)
