"""Computed labels that a person corrected in place stay, whatever is run again, and are named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from field_files import records, spread
from made_up_screen import save_model, write_screen

from hpc_isl.errors import UserError
from hpc_isl.plates.label_groups import existing
from hpc_isl.plates.store import annotation, edited, label_names, open_plate, read_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.annotate.stage import annotate
from hpc_isl.stages.annotate.stage import plan as plan_annotate
from hpc_isl.stages.inspect import inspect, validate
from hpc_isl.stages.segment.checks import changed_labels
from hpc_isl.stages.segment.stage import plan, segment
from hpc_isl.tasks import Answer

EDITED = r"1 field \(B03/1\) has labels 'found' that were edited since they were written"


class Here:
    """Tasks computed in this process."""

    workers = 1

    def __call__(self, memory):
        return self

    def __enter__(self):
        self.computed = []
        return self

    def __exit__(self, *error):
        return None

    def run(self, call, tasks):
        for task in tasks:
            self.computed.append(task.name)
            try:
                yield Answer(task.name, call(task.argument))
            except UserError as mistake:
                yield Answer(task.name, problem=str(mistake))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    write_screen(folder / "S1.zarr")
    save_model(folder / "runs" / "finetune" / "cells")
    again(folder, "all")
    return folder


def recipe(folder, *keys):
    model = f"model={folder}/runs/finetune/cells"
    return load("segment", None, [model, f"plates=[{folder}/S1.zarr]", "labels=found", *keys])


def again(folder, name, *keys, number=0):
    """The run, begun or gone on with; names of the fields that were computed."""
    run, pool = Run(folder / "runs" / "segment" / name), Here()
    planned = plan(recipe(folder, *keys)).recipe
    run.folder.mkdir(parents=True, exist_ok=True)
    run.recipe.write_text(to_yaml(planned))
    segment(planned, Attempt(run, number), pool)
    return [Path(name).stem for name in pool.computed]


@pytest.fixture
def corrected(lab, tmp_path):
    """A copy of the folder, in which a person has corrected the labels of B03/1 in place; these labels.

    Each field has files of its own, as in a run that is not done, and of an earlier version.
    """
    shutil.copytree(lab, tmp_path / "lab", dirs_exist_ok=True)
    folder = tmp_path / "lab"
    for path in folder.rglob("recipe.yaml"):
        path.write_text(path.read_text().replace(str(lab), str(folder)))
    spread(folder / "runs" / "segment" / "all")
    image = open_plate(folder / "S1.zarr").image(open_plate(folder / "S1.zarr").plate.fields[2].key)
    array = zarr.open_array(str(image / "labels" / "found" / "0"), mode="r+")
    pixels = np.asarray(array[...])
    pixels[..., :30, :40] = 0
    pixels[..., 5:20, 5:20] = 9999
    array[...] = pixels
    return folder, image, read_labels(image, "found")


def strip(folder):
    """Labels and records as earlier versions wrote them."""
    for path in folder.rglob("S1.zarr/*/*/*/labels/found/zarr.json"):
        content = json.loads(path.read_text())
        for key in ("checksum", "files"):
            del content["attributes"]["hpc_isl"][key]
        path.write_text(json.dumps(content))
    for path in folder.glob("runs/segment/all/fields/*/*.json"):
        record = json.loads(path.read_text())
        del record["labels"]
        path.write_text(json.dumps(record))


def test_another_run_does_not_replace_them_whatever_its_keys_say(corrected):
    """It is refused before anything is computed, with the fields and what to do."""
    folder, image, mine = corrected
    with pytest.raises(UserError, match=EDITED):
        plan(recipe(folder, "h_maxima=5", "overwrite=true"))
    for keys in (("measure=[Brightfield]",), ("measure=[Brightfield]", "overwrite=true")):
        with pytest.raises(UserError, match=EDITED):
            again(folder, "more", *keys)
    np.testing.assert_array_equal(read_labels(image, "found"), mine)
    assert again(folder, "other", "h_maxima=5", "labels=others"), "another name will do"


def test_computed_ones_beside_a_persons_stay_too_when_they_are_edited(corrected):
    """Where people have the name, the computed labels have another, and may be corrected just as well."""
    folder, image, _ = corrected
    test_what_the_message_says_makes_them_a_persons_and_the_computed_ones_go_beside(corrected)
    [name] = {*label_names(image)} - {"found"}
    zarr.open_array(str(existing(image, name) / "0"), mode="r+")[..., :9, :9] = 4242
    with pytest.raises(UserError, match=rf"1 field \(B03/1\) has labels '{name}' that were edited"):
        again(folder, "third", "h_maxima=7", "overwrite=true")
    assert (read_labels(image, name)[:9, :9] == 4242).all()


def test_what_the_message_says_makes_them_a_persons_and_the_computed_ones_go_beside(corrected):
    """Exported and accepted they are human, and `segment` leaves human labels of its name alone."""
    folder, image, mine = corrected
    keys = {"plate": folder / "S1.zarr", "labels": "found"}
    lent = Attempt(Run(folder / "runs/annotate/a"))
    for more in ({"action": "export", "out": folder / "todo", "fields": ["B03/1"]},
                 {"action": "import", "source": folder / "todo", "accept": True}):  # fmt: skip
        annotate(plan_annotate(AnnotateRecipe(**keys, **more)).recipe, lent)
    assert annotation(image, "found")[0] == "human"
    assert len(again(folder, "other", "h_maxima=5", "overwrite=true")) == 4
    np.testing.assert_array_equal(read_labels(image, "found"), mine)
    assert len(label_names(image)) == 2


def test_the_run_itself_leaves_them_and_is_done_once_more(corrected):
    folder, image, mine = corrected
    assert again(folder, "all", number=1) == []
    np.testing.assert_array_equal(read_labels(image, "found"), mine)


@pytest.mark.parametrize("gone", ["fields/S1/B03-1.json", "objects/S1/B03-1.parquet"])
def test_a_field_that_would_be_computed_again_is_refused_with_its_name(corrected, gone):
    """A retry that has lost a record or a table would write the labels anew."""
    folder, image, mine = corrected
    (folder / "runs/segment/all" / gone).unlink()
    with pytest.raises(UserError, match=EDITED):
        again(folder, "all", number=1)
    np.testing.assert_array_equal(read_labels(image, "found"), mine)


def test_an_edit_while_the_run_computes_is_not_replaced(lab, tmp_path, monkeypatch):
    """The field is lost to the run, with the reason; the person's labels stay."""
    shutil.copytree(lab, tmp_path / "lab")
    folder = tmp_path / "lab"
    image = folder / "S1.zarr" / "B" / "03" / "1"
    import hpc_isl.stages.segment.field as field

    compute = field.measured

    def measured(segmenter, reader, task, predictions):
        if task.key.well == "B03" and task.key.name == "1":
            array = zarr.open_array(str(image / "labels" / "found" / "0"), mode="r+")
            array[..., :9, :9] = 4242
        return compute(segmenter, reader, task, predictions)

    monkeypatch.setattr(field, "measured", measured)
    assert len(again(folder, "other", "h_maxima=5", "overwrite=true")) == 4
    assert (read_labels(image, "found")[:9, :9] == 4242).all()
    record = records(folder / "runs/segment/other")["S1 B03-1"]
    assert "were edited since they were written" in record["problem"]


def test_verify_names_them_and_leaves_them(corrected):
    folder, image, mine = corrected
    asked = folder / "runs/segment/all/verify.json"
    asked.write_text('{"share": 1}')
    with pytest.raises(RuntimeError, match="1 of 4 fields differ\nS1 B03/1: its labels were edited"):
        again(folder, "all", number=1)
    assert again(folder, "all", number=2) == [], "its record stays, so it is not computed again"
    np.testing.assert_array_equal(read_labels(image, "found"), mine)


def test_status_and_inspect_name_them(corrected):
    folder, *_ = corrected
    messages = (
        "labels 'found' were edited (or damaged) since they were computed; they are not replaced: S1 B03/1"
    )
    assert changed_labels(Run(folder / "runs/segment/all")) == [messages]
    said = "\n".join(inspect(folder / "S1.zarr"))
    assert "edited      'found' since they were written, by a person or by damage: B03/1" in said
    call = [sys.executable, "-m", "hpc_isl.submit", "status", "all", "--root", str(folder / "runs")]
    printed = subprocess.run(call, capture_output=True, text=True, cwd=folder, check=True).stdout
    assert messages not in printed, "it never had an attempt that could write"
    attempt = folder / "runs/segment/all/attempts/0"
    attempt.mkdir(parents=True)
    printed = subprocess.run(call, capture_output=True, text=True, cwd=folder, check=True).stdout
    assert messages in printed


def test_validate_finds_edits_by_looking_deep_and_what_they_left_behind(corrected):
    folder, *_ = corrected
    assert validate(folder / "S1.zarr") == []
    differ = "B03/1: labels 'found' were edited or damaged since they were written"
    assert validate(folder / "S1.zarr", deep=True)[0].startswith(differ)


def test_a_shard_that_was_lost_is_named(corrected):
    """The labels' pixels are not those of their checksum: edited or damaged, nobody knows."""
    folder, *_ = corrected
    [shard] = [p for p in (folder / "S1.zarr/B/02/2/labels/found/0/c").rglob("*") if p.is_file()]
    shard.unlink()
    [problem] = validate(folder / "S1.zarr")
    assert problem.startswith("B02/2: labels 'found' were edited or damaged since they were written")
    assert changed_labels(Run(folder / "runs/segment/all"))[0].endswith("not replaced: S1 B02/2, S1 B03/1")


# ---------------------------------------------------------------- of earlier versions


def test_runs_and_labels_of_earlier_versions_go_on(lab, tmp_path):
    """They have no checksums: labels that come out the same get theirs, and nothing is refused."""
    shutil.copytree(lab, tmp_path / "lab")
    folder = tmp_path / "lab"
    spread(folder / "runs/segment/all")
    strip(folder)
    assert again(folder, "all", number=1) == []
    run = Run(folder / "runs/segment/all")
    run.recipe.write_text(run.recipe.read_text().replace(str(lab), str(folder)))
    assert changed_labels(run) == []
    spread(run.folder)
    (folder / "runs/segment/all/objects/S1/B03-1.parquet").unlink()
    assert again(folder, "all", number=2) == ["B03-1"]
    image = folder / "S1.zarr" / "B" / "03" / "1"
    assert edited(image, "found") is False
    with pytest.raises(UserError, match=r"3 fields .* have labels 'found' that have no checksum"):
        plan(recipe(folder, "h_maxima=5", "overwrite=true"))


def test_edits_of_labels_without_a_checksum_are_not_replaced_either(corrected):
    folder, image, mine = corrected
    strip(folder)
    [said] = changed_labels(Run(folder / "runs/segment/all"))
    assert said.endswith("not replaced: S1 B03/1")
    (folder / "runs/segment/all/objects/S1/B03-1.parquet").unlink()
    assert again(folder, "all", number=1) == ["B03-1"]
    record = records(folder / "runs/segment/all")["S1 B03-1"]
    assert "have no checksum" in record["problem"]
    np.testing.assert_array_equal(read_labels(image, "found"), mine)
