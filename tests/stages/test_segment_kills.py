"""Segmentation is killed at every turn, and ends with the labels and tables of one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from left_on_disk import Left, differing, left_by, read_every_array, unfinished
from made_up_screen import save_model, write_screen

from hpc_isl.stages.shared.field_records import read_records

if TYPE_CHECKING:
    from tests.conftest import CommandLine

WELLS = [f"{row}{column:02d}" for row in "BCDE" for column in range(2, 10)]
FIELDS, SHAPE = 3, (160, 192)
ALL = len(WELLS) * FIELDS
SITE = ("site.workers=2", "site.memory=4G", "site.tracking=none")


@dataclass(frozen=True)
class Lab:
    """A folder with a model, a plate, and the run `alone`, which was never disturbed.

    Attributes:
        finish_s: from its last field to its done record.
    """

    command_line: CommandLine
    alone: Left
    finish_s: float = 0

    def segment(self, plate: str, name: str) -> tuple[str, ...]:
        return ("segment", "model=cells", f"plates={plate}.zarr", "labels=found", "--name", name, *SITE)

    def run(self, name: str) -> Path:
        return self.command_line.cwd / "runs" / "segment" / name


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, open_command_line: Callable[[Path], CommandLine]) -> Lab:
    command_line = open_command_line(tmp_path_factory.mktemp("killed"))
    write_screen(command_line.cwd / "S1.zarr", WELLS, FIELDS, SHAPE)
    shutil.copytree(command_line.cwd / "S1.zarr", command_line.cwd / "copy" / "S1.zarr")
    save_model(command_line.cwd / "runs" / "finetune" / "cells")
    lab = Lab(command_line, {})
    call = command_line.open(*lab.segment("S1", "alone"))
    output, _ = call.communicate(timeout=400)
    assert call.returncode == 0, output
    run = lab.run("alone")
    # The first table of objects is written as soon as the last field is done.
    first = (run / "tables" / "S1.parquet").stat().st_mtime
    finish_s = (run / "done" / "segment.json").stat().st_mtime - first
    return Lab(command_line, left_by(run, [command_line.cwd / "S1.zarr"]), finish_s)


@dataclass
class Killer:
    """Ends processes of one run at moments of its choosing; counts those that were alive in mid-run."""

    command_line: CommandLine
    run: Path
    finish_s: float
    rng: random.Random = field(default_factory=lambda: random.Random(20))
    kills: list[str] = field(default_factory=list)
    call: subprocess.Popen[str] | None = None

    def begin(self, *words: str) -> None:
        self.call = self.command_line.open(*words)

    def end(self) -> tuple[int, str]:
        """Exit code and output of the call, once it has ended."""
        assert self.call is not None
        output, _ = self.call.communicate(timeout=400)
        return self.call.returncode, output

    # ---------------------------------------------------------------- who is there

    def rank(self) -> list[psutil.Process]:
        """The process that hands the fields out."""
        return self._children("hpc_isl.cluster.rank", self._command())

    def workers(self) -> list[psutil.Process]:
        """The processes that compute them, whether they are ready or still starting."""
        return self._children("spawn_main", self.rank())

    def _command(self) -> list[psutil.Process]:
        assert self.call is not None
        return [psutil.Process(self.call.pid)] if self.call.poll() is None else []

    @staticmethod
    def _children(word: str, parents: list[psutil.Process]) -> list[psutil.Process]:
        found = []
        for parent in parents:
            try:
                children = parent.children()
                found += [child for child in children if any(word in part for part in child.cmdline())]
            except psutil.Error:
                continue
        return found

    def records(self) -> int:
        return len(read_records(self.run, "S1"))

    def done(self) -> bool:
        return (self.run / "done" / "segment.json").exists()

    # ---------------------------------------------------------------- moments

    def wait(self, moment: str) -> None:
        """Until a random while after it has come, or the run has ended."""
        assert self.call is not None
        call, before = self.call, self.records()
        comes: Callable[[], object]
        comes, longest_s = {
            "field": (lambda: self.records() > before and self.workers(), 0.2),  # others are under way
            "start": (self.workers, 4.0),  # worker processes take seconds to start
            "finish": (lambda: self.records() == ALL, 0.8 * self.finish_s),
        }[moment]
        assert self.command_line.eventually(lambda: comes() or call.poll() is not None, 300)
        time.sleep(self.rng.uniform(0, longest_s))

    # ---------------------------------------------------------------- kills

    def kill(self, who: str) -> None:
        """All workers, the rank that hands fields out, the command that watches it; or several of them.

        Workers go all at once: of two, one would compute the whole plate while the other starts anew.
        """
        for name, found in {
            "workers": self.workers(),
            "rank": self.rank(),
            "command": self._command(),
        }.items():
            if name in who:
                for process in found:
                    self._kill(name, process)

    def _kill(self, name: str, process: psutil.Process) -> None:
        if self.done() or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        process.kill()
        self.kills.append(name)


# Of each attempt: who is killed, and when. A field whose process dies three times in one attempt is given
# up, so workers are killed twice in one at most.
ATTEMPTS = [
    [("field", "workers"), ("field", "rank")],
    [("start", "workers"), ("field", "workers"), ("start", "rank and command")],
    [("field", "workers"), ("field", "rank and command")],
    [("field", "workers"), ("start", "command")],
    [("start", "workers"), ("field", "rank")],
    [("field", "workers"), ("finish", "rank")],
    [("start", "workers"), ("finish", "rank")],
]


@pytest.mark.kill
@pytest.mark.timeout(900)
def test_killed_twenty_times_it_ends_with_the_same_labels_and_tables(lab: Lab) -> None:
    killer = Killer(lab.command_line, lab.run("killed"), lab.finish_s)
    words = lab.segment("copy/S1", "killed")
    for attempt in ATTEMPTS:
        killer.begin(*words)
        for moment, who in attempt:
            killer.wait(moment)
            killer.kill(who)
        code, output = killer.end()
        print(f"{killer.records()} fields, {len(killer.kills)} kills", time.strftime("%H:%M:%S"), flush=True)
        assert code != 0 or attempt[-1][0] == "finish", output
        assert lab.command_line.eventually(lambda: lab.command_line.left() == []), (
            "a killed run leaves no process behind"
        )
        assert lab.command_line.eventually(
            lambda: " running" not in lab.command_line("status", "killed").stdout
        )
        words = ("resume", "killed")
        if killer.done():
            break  # it was faster than its killer: the last kill came to nothing
    if not killer.done():
        killer.begin(*words)
        code, output = killer.end()
        assert code == 0, output
    assert killer.kills.count("workers") >= 12, killer.kills
    assert len(killer.kills) >= 20, killer.kills
    as_if_left_alone(lab, killer.run, lab.command_line.cwd / "copy" / "S1.zarr")


def as_if_left_alone(lab: Lab, run: Path, plate: Path) -> None:
    """The same labels and tables, nothing unfinished, nothing unreadable, no process."""
    assert differing(left_by(run, [plate]), lab.alone) == []
    assert not (run / "losses.csv").exists()
    assert json.loads((run / "done" / "segment.json").read_text())["figures"]["lost fields"] == 0
    assert unfinished(run, plate) == []
    assert read_every_array(plate) == read_every_array(lab.command_line.cwd / "S1.zarr")
    valid = lab.command_line("validate", "--deep", str(plate))
    assert valid.returncode == 0, valid.stdout
    assert lab.command_line.left() == []
