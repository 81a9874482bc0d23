"""Follows a run through its folder: what rank 0 says, line by line, above a bar of its progress."""

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

from hpc_isl.files import read_json
from hpc_isl.run import Run

SAID = re.compile(r"\d\d:\d\d:\d\d  ")  # how Attempt.say begins a line; all else in a log is of libraries
QUIET_S = 30.0  # between lines of progress where there is no terminal to draw a bar on


@dataclass
class Tail:
    """The complete lines that were added to a file since the last look."""

    path: Path
    _offset: int = 0
    _rest: bytes = b""

    def lines(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                new = stream.read()
        except FileNotFoundError:
            return
        self._offset += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)

    def last(self) -> Iterator[str]:
        """What remains when no more will come: also a line without its end."""
        yield from self.lines()
        if self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""


@dataclass
class View:
    """What whoever waits for a run sees of one attempt; `tick` is called a few times a second."""

    run: Run
    attempt: int
    rank: int = 0
    everything: bool = False
    """every line of the log, not only what is said"""
    _tail: Tail = field(init=False)
    _bar: Any = None
    _shown: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._tail = Tail(self.run.attempts / str(self.attempt) / f"rank-{self.rank}.log")
        self._shown = time.monotonic(), 0.0

    def tick(self) -> None:
        for line in self._tail.lines():
            if self.everything or SAID.match(line):
                self.log(line)
        progress = (read_json(self.run.attempts / str(self.attempt) / "rank-0.json") or {}).get("progress")
        if progress and sys.stderr.isatty():
            self._draw(progress)
        elif progress:
            self._print(progress)

    def log(self, line: str) -> None:
        with suppress(BrokenPipeError):  # no one reads any more; the run goes on
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
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

    def _print(self, progress: dict[str, Any]) -> None:
        share = progress["done"] / max(1, progress["total"])
        when, last = self._shown
        if time.monotonic() - when > QUIET_S and share != last:
            self._shown = time.monotonic(), share
            self.log(progress_text(progress))


def progress_text(progress: dict[str, Any]) -> str:
    """`120/300 steps  loss 0.12`."""
    text = f"{progress['done']}/{progress['total']} {progress['unit']}"
    return f"{text}  {figures(progress.get('metrics', {}))}".rstrip()


def figures(values: dict[str, Any]) -> str:
    """`loss 0.123, pcc 0.91`: numbers to three digits."""
    return ", ".join(f"{name} {figure(value)}" for name, value in values.items())


def figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
