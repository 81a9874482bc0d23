"""A whole screen in one command, some files damaged: what failed is named, all else is as it should be."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from left_on_disk import Left, differing, left_by, unfinished
from made_up_screen import save_model, write_screen

if TYPE_CHECKING:
    from tests.conftest import CommandLine

PLATES = [f"P{number:02d}" for number in range(1, 21)]
WELLS, FIELDS, SHAPE = ("B02", "B03", "C02"), 4, (64, 80)
ALL = len(PLATES) * len(WELLS) * FIELDS
SITE = ("site.workers=2", "site.memory=4G", "site.tracking=none")


def truncated(shard: Path) -> None:
    """As a disk that was full when the file was copied leaves it."""
    os.truncate(shard, shard.stat().st_size // 2)


def overwritten(shard: Path) -> None:
    """As blocks of another file leave it."""
    shard.write_bytes(b"\xa5" * shard.stat().st_size)


def missing(shard: Path) -> None:
    shard.unlink()


DAMAGE = {("P03", "B03", "2"): truncated, ("P07", "B02", "1"): overwritten, ("P20", "C02", "4"): missing}


def shard_of(folder: Path, place: tuple[str, str, str]) -> Path:
    """The one file that holds the pixels of a field."""
    plate, well, field = place
    [shard] = [
        path
        for path in (folder / f"{plate}.zarr" / well[0] / well[1:] / field / "0" / "c").rglob("*")
        if path.is_file()
    ]
    return shard


class Screen:
    """A user's folder with a model, the plates in `whole/`, and the same in `damaged/`."""

    def __init__(self, command_line: CommandLine) -> None:
        self.command_line = command_line
        for plate in PLATES:
            write_screen(command_line.cwd / "whole" / f"{plate}.zarr", WELLS, FIELDS, SHAPE)
        shutil.copytree(command_line.cwd / "whole", command_line.cwd / "damaged")
        save_model(command_line.cwd / "runs" / "finetune" / "cells")
        for place, damage in DAMAGE.items():
            damage(shard_of(command_line.cwd / "damaged", place))
        self.said = {name: self._segment(name) for name in ("whole", "damaged")}

    def _segment(self, name: str) -> str:
        """All plates of a folder in one command; what it printed."""
        words = ("model=cells", f"plates={name}/P*.zarr", "labels=found", "--name", name, *SITE)
        call = self.command_line.open("segment", *words)
        output, _ = call.communicate(timeout=500)
        assert call.returncode == 0, output
        return output

    def run(self, name: str) -> Path:
        return self.command_line.cwd / "runs" / "segment" / name

    def left(self, name: str) -> Left:
        return left_by(self.run(name), [self.command_line.cwd / name / f"{plate}.zarr" for plate in PLATES])


@pytest.fixture(scope="module")
def screen(
    tmp_path_factory: pytest.TempPathFactory, open_command_line: Callable[[Path], CommandLine]
) -> Screen:
    return Screen(open_command_line(tmp_path_factory.mktemp("screen")))


pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]


def test_damaged_fields_are_named_with_a_reason_and_no_others(screen: Screen) -> None:
    with (screen.run("damaged") / "losses.csv").open() as stream:
        losses = list(csv.DictReader(stream))
    assert {(row["plate"], row["well"], row["field"]) for row in losses} == set(DAMAGE)
    assert len(losses) == len(DAMAGE)
    for row in losses:
        assert "cannot be read" in row["problem"], row
        assert f"{row['plate']}.zarr/{row['well'][0]}/{row['well'][1:]}/{row['field']}" in row["problem"]
    assert not (screen.run("whole") / "losses.csv").exists()


def test_the_command_ends_with_what_was_lost(screen: Screen) -> None:
    for plate, well, field in DAMAGE:
        assert f"failed: {plate} {well}/{field}: " in screen.said["damaged"]
    end = screen.said["damaged"].partition("is done, after")[2].splitlines()
    assert f"  lost fields  {len(DAMAGE)}" in end
    assert f"  fields       {ALL - len(DAMAGE)}" in end
    assert any(line.split()[:1] == ["losses"] and line.endswith("losses.csv") for line in end), end


def test_all_other_fields_are_those_of_a_screen_without_damage(screen: Screen) -> None:
    whole, damaged = screen.left("whole"), screen.left("damaged")
    lost = {
        name
        for plate, well, field in DAMAGE
        for name in (f"record {plate} {well}-{field}", f"labels {plate} {well[0]}/{well[1:]}/{field}")
    }
    touched = {f"{plate}.parquet" for plate, _, _ in DAMAGE} | {"wells.csv"}
    assert set(differing(whole, damaged)) == lost | touched
    assert sum(name.startswith("labels") for name in damaged) == ALL - len(DAMAGE)
    for plate in sorted({plate for plate, _, _ in DAMAGE}):
        own, theirs = (
            pq.read_table(screen.run(n) / "tables" / f"{plate}.parquet") for n in ("damaged", "whole")
        )
        for p, well, field in DAMAGE:
            theirs = theirs.filter(
                pc.invert(pc.and_(pc.equal(theirs["well"], well), pc.equal(theirs["field"], field)))
                if p == plate
                else pc.equal(theirs["plate"], plate)
            )
        assert own.equals(theirs)
    assert unfinished(screen.run("damaged"), screen.command_line.cwd / "damaged") == []


def test_there_is_a_table_for_each_plate_and_one_of_all_wells(screen: Screen) -> None:
    run = screen.run("damaged")
    assert sorted(path.stem for path in (run / "tables").glob("*.parquet")) == PLATES
    with (run / "wells.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["plate"], row["well"]) for row in rows] == [(p, well) for p in PLATES for well in WELLS]
    objects = {plate: pq.read_metadata(run / "tables" / f"{plate}.parquet").num_rows for plate in PLATES}
    assert {p: sum(int(r["objects"]) for r in rows if r["plate"] == p) for p in PLATES} == objects
    figures = json.loads((run / "done" / "segment.json").read_text())["figures"]
    assert figures["objects"] == sum(objects.values())


def test_table_adds_up_plates(screen: Screen) -> None:
    done = screen.command_line("table", "damaged", "out=plates.csv", "per=plate")
    assert done.returncode == 0, done.stdout
    assert f"20 plates, 60 wells, {ALL} fields, {len(DAMAGE)} of them failed" in done.stdout
    with (screen.command_line.cwd / "plates.csv").open() as stream:
        rows = {row["plate"]: row for row in csv.DictReader(stream)}
    assert list(rows) == PLATES
    wells = pq.read_table(screen.run("damaged") / "tables" / "P03.parquet")
    assert int(rows["P03"]["objects"]) == wells.num_rows
