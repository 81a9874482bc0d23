"""The files of a run are gathered, one of objects and one of records for each plate; no object is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from field_files import records, spread
from made_up_screen import save_model, write_screen

from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.segment import gather
from hpc_isl.stages.segment.checks import changed_labels
from hpc_isl.stages.segment.gather import objects_of
from hpc_isl.stages.segment.inputs import segment_inputs
from hpc_isl.stages.segment.stage import _tasks, plan, segment
from hpc_isl.stages.shared.field_records import read_record, read_records
from hpc_isl.stages.table.stage import data_frame
from hpc_isl.tasks import Answer, Task


class Here:
    """Tasks computed in this process; those whose name holds a word of `wrong` fail."""

    workers = 1

    def __init__(self, wrong: Sequence[str] = ()) -> None:
        self.wrong = wrong
        self.computed: list[str] = []

    @contextmanager
    def __call__(self, memory: object) -> Iterator[Here]:
        yield self

    def run(self, call: Callable[[Any], Any], tasks: Sequence[Task]) -> Iterator[Answer]:
        for task in tasks:
            if any(word in task.name for word in self.wrong):
                yield Answer(task.name, problem="its process died 3 times")
                continue
            if call.__name__ == "segment_field":
                self.computed.append(f"{task.argument.name} {task.argument.key}")
            yield Answer(task.name, call(task.argument))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two plates whose fields overlap, and the run `all`, done, of both."""
    folder = tmp_path_factory.mktemp("gather")
    for name in ("S1", "S2"):
        write_screen(folder / f"{name}.zarr", wells=("B02", "B03"), fields=2, step=64)
    save_model(folder / "runs" / "finetune" / "cells")
    segmented(folder, ["S1", "S2"])
    return folder


@pytest.fixture
def folder(lab: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(lab, tmp_path)


def copied(lab: Path, to: Path) -> Path:
    shutil.copytree(lab, to, dirs_exist_ok=True)
    for path in [*to.rglob("recipe.yaml"), *to.rglob("plates.json")]:
        path.write_text(path.read_text().replace(str(lab), str(to)))
    return to


def segmented(folder: Path, plates: Sequence[str], *keys: str, pool: Here | None = None) -> list[str]:
    """Begins or resumes the run `all`, of these plates; returns the fields that were computed."""
    listed = ", ".join(f"{folder}/{name}.zarr" for name in plates)
    words = [f"model={folder}/runs/finetune/cells", f"plates=[{listed}]", "labels=found", *keys]
    run, pool = the_run(folder), pool or Here()
    planned = plan(load("segment", None, words)).recipe
    run.folder.mkdir(parents=True, exist_ok=True)
    run.recipe.write_text(to_yaml(planned))
    shutil.rmtree(run.done, ignore_errors=True)
    segment(planned, Attempt(run, number=len(list(run.folder.glob("attempts/*")))), pool)
    return pool.computed


def the_run(folder: Path) -> Run:
    return Run(folder / "runs" / "segment" / "all")


def tasks_of(folder: Path) -> Iterator[Any]:
    run = the_run(folder)
    recipe = load("segment", run.recipe, [])
    yield from (task for _, task in _tasks(segment_inputs(recipe), run.folder))


def left(folder: Path) -> dict[str, bytes]:
    """The bytes of all tables and records of the run, but for when each field ended and how long it took."""
    run = the_run(folder).folder
    tables = {path.name: path.read_bytes() for path in [*run.glob("tables/*"), run / "wells.csv"]}
    timeless = {name: record | {"seconds": 0, "ended": ""} for name, record in records(run).items()}
    lines = {name: json.dumps(record).encode() for name, record in timeless.items()}
    return {name: content.replace(bytes(folder), b"") for name, content in (tables | lines).items()}


def each_object_is_read_once(folder: Path) -> None:
    """By the ways in which a run is resumed, verified and followed: a field's record leads to its objects."""
    total = 0
    for task in tasks_of(folder):
        record = read_record(task.run, task.slug, task.key)
        assert record is not None
        assert record == read_records(task.run, task.slug)[task.file]
        objects = objects_of(task)
        labels = objects["label"].to_pylist()
        assert len(labels) == len({*labels}) == record["objects"]
        assert "duplicate_of" not in objects.column_names
        assert {*objects["field"].to_pylist()} == {task.key.name}
        total += len(labels)
    assert total > 100
    assert changed_labels(the_run(folder)) == []


# ---------------------------------------------------------------- what there is


def test_a_finished_run_has_a_file_of_objects_and_one_of_records_for_each_plate(lab: Path) -> None:
    run = the_run(lab).folder
    assert sorted(path.name for path in (run / "fields").rglob("*")) == ["S1.jsonl", "S2.jsonl"]
    assert sorted(path.name for path in (run / "tables").rglob("*")) == ["S1.parquet", "S2.parquet"]
    assert not (run / "objects").exists()
    assert not (run / "scratch").exists()
    lines = pd.read_json(run / "fields" / "S1.jsonl", lines=True, dtype={"field": str})
    assert lines[["well", "field"]].agg("/".join, axis=1).to_list() == ["B02/1", "B02/2", "B03/1", "B03/2"]
    each_object_is_read_once(lab)


def test_a_run_with_files_of_each_field_reads_the_same_and_is_gathered_when_it_is_resumed(
    folder: Path,
) -> None:
    """As earlier versions left it when it was done."""
    before, wells = left(folder), data_frame(the_run(folder))
    spread(the_run(folder).folder)
    each_object_is_read_once(folder)
    pd.testing.assert_frame_equal(data_frame(the_run(folder)), wells)
    assert segmented(folder, ["S1", "S2"]) == []
    assert left(folder) == before
    assert not list(the_run(folder).folder.glob("fields/*/*"))


# ---------------------------------------------------------------- stopped at any step


class Stopped(BaseException):
    """As if the process had been killed."""


class Steps:
    """The steps of a run's end that name or remove a file, as paths; before one of them it is stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, before: str = "") -> None:
        self.folder, self.before = folder, before
        self.has_begun = self.is_dead = False
        self.made: list[str] = []
        for owner, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))
        first = gather.gather_objects

        def begin(*args: Any) -> None:
            self.has_begun = True
            first(*args)

        monkeypatch.setattr(gather, "gather_objects", begin)

    def _counted(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            if self.has_begun and Path(args[-1]).is_relative_to(self.folder):
                self.made.append(f"{name} {Path(args[-1]).relative_to(self.folder)}")
                self.is_dead |= self.made[-1] == self.before
            if self.is_dead:
                raise Stopped
            return step(*args, **keys)

        return call


def begun(folder: Path, how: str) -> list[str]:
    """Brings the run to where it is about to be gathered, once it is resumed; returns its plates."""
    if how == "for the first time":
        spread(the_run(folder).folder)
        return ["S1", "S2"]
    # A gathered run is extended by a plate, and one of its fields is computed again.
    write_screen(folder / "S3.zarr", wells=("C02",), fields=1)
    shutil.rmtree(folder / "S1.zarr" / "B" / "03" / "2" / "labels" / "found")
    return ["S1", "S2", "S3"]


@pytest.mark.parametrize("how", ["for the first time", "once more"])
def test_stopped_before_any_step_each_object_is_there_once_and_it_ends_as_if_undisturbed(
    lab: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:  # fmt: skip
    plates = begun(copied(lab, undisturbed := tmp_path_factory.mktemp("undisturbed")), how)
    with monkeypatch.context() as patch:
        made = Steps(patch, undisturbed).made
        segmented(undisturbed, plates)
    assert [Path(step).suffix for step in made[:4]] == [".parquet", ".jsonl", ".parquet", ".jsonl"]
    assert made[-1].endswith("done/segment.json")
    assert sum(step.startswith("rename") for step in made) == 3
    # Pictures and the table of wells, between the two, are nothing of which another file knows.
    chosen = [step for step in made if re.search("/(tables|fields|objects|scratch|done)", step)]
    assert len(chosen) > 8
    begun(folder, how)
    for before in chosen:  # each time it resumes what was stopped a step earlier
        with monkeypatch.context() as patch:
            Steps(patch, folder, before)
            with pytest.raises(Stopped):
                segmented(folder, plates)
        each_object_is_read_once(folder)
        single = the_run(folder).folder / "objects"
        if how == "for the first time" and len(list(single.rglob("*.parquet"))):
            assert len(pd.read_parquet(single)) == len(pd.read_parquet(single.with_name("tables")))
        assert the_run(folder).summary() is None
    assert segmented(folder, plates) == []
    assert left(folder) == left(undisturbed)
    assert not (the_run(folder).folder / "scratch").exists()


def test_another_process_may_read_while_the_run_is_gathered(folder: Path) -> None:
    plates = begun(folder, "for the first time")
    stop = threading.Event()

    def read() -> int:
        times = 0
        while not stop.is_set() or not times:
            each_object_is_read_once(folder)
            times += 1
        return times

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        segmented(folder, plates)
        stop.set()
        assert reading.result(60) > 0


# ---------------------------------------------------------------- a gathered run once more


def test_a_gathered_run_is_extended_by_wells_and_plates(folder: Path, lab: Path) -> None:
    """Only what is new is computed, and it ends as if it had been one run."""
    shutil.rmtree(the_run(folder).folder)
    assert segmented(folder, ["S1"], "fields=[B03]") == ["S1 B03/1", "S1 B03/2"]
    assert segmented(folder, ["S1"]) == ["S1 B02/1", "S1 B02/2"]
    assert segmented(folder, ["S1", "S2"]) == [f"S2 {well}/{n}" for well in ("B02", "B03") for n in (1, 2)]
    assert left(folder) == left(lab)


def test_a_failed_field_of_a_gathered_run_is_computed_when_it_is_resumed(folder: Path, lab: Path) -> None:
    shutil.rmtree(the_run(folder).folder)
    segmented(folder, ["S1", "S2"], pool=Here(wrong=["S2/B03-1"]))
    assert records(the_run(folder).folder)["S2 B03-1"]["problem"] == "its process died 3 times"
    wells = data_frame(the_run(folder)).set_index(["plate", "well"])
    assert wells.fields["S2", "B03"] == wells.lost_fields["S2", "B03"] == 1
    assert segmented(folder, ["S1", "S2"]) == ["S2 B03/1"]
    assert left(folder) == left(lab)


def test_a_field_that_fails_when_it_is_computed_again_has_no_objects(folder: Path) -> None:
    """Those that were gathered before do not stay behind."""
    shutil.rmtree(folder / "S1.zarr" / "B" / "02" / "2" / "labels" / "found")
    segmented(folder, ["S1", "S2"], pool=Here(wrong=["S1/B02-2"]))
    table = pd.read_parquet(the_run(folder).folder / "tables" / "S1.parquet")
    assert {*zip(table.well, table.field, strict=True)} == {("B02", "1"), ("B03", "1"), ("B03", "2")}


def test_fields_of_a_gathered_run_are_verified_and_one_that_is_wrong_is_computed_again(
    folder: Path, lab: Path
) -> None:
    asked = the_run(folder).folder / "verify.json"
    asked.write_text('{"share": 1}')
    assert segmented(folder, ["S1", "S2"]) == []
    assert not asked.exists()
    path = the_run(folder).folder / "tables" / "S2.parquet"
    table = pd.read_parquet(path)
    table.loc[np.flatnonzero(table.well == "B03")[0], "area_um2"] += 1
    pq.write_table(pq.read_table(path).schema.empty_table().from_pandas(table, pq.read_schema(path)), path)
    asked.write_text('{"share": 1}')
    wrong = "1 of 8 fields differ\nS2 B03/1: its table on disk is another than was computed"
    with pytest.raises(RuntimeError, match=wrong):
        segmented(folder, ["S1", "S2"])
    assert segmented(folder, ["S1", "S2"]) == ["S2 B03/1"]
    assert left(folder) == left(lab)


def test_a_run_that_was_gathered_names_labels_that_were_edited(folder: Path) -> None:
    index = open_plate(folder / "S1.zarr")
    image = index.image(index.plate.fields[0].key)
    zarr.open_array(str(image / "labels" / "found" / "0"), mode="r+")[..., :9, :9] = 4242
    [said] = changed_labels(the_run(folder))
    assert said.endswith("they are not replaced: S1 B02/1")
