"""What a run of segment tells a person: small objects, names of labels, drift, what the model was taught."""

import csv
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from field_files import spread
from made_up_screen import save_model, write_screen
from PIL import Image

from hpc_isl.errors import UserError
from hpc_isl.learning.data.drift import FACTS, reference_of
from hpc_isl.learning.network.contract import CONTRACT, Contract, read_contract
from hpc_isl.plates.store import label_names, open_plate, read_labels, write_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.segment.stage import plan, segment
from hpc_isl.stages.table.stage import table
from hpc_isl.tasks import Answer

WHOLE = [(0, 0, 96, 128)]


class Here:
    """The pool of a test: every task in this process."""

    workers = 1

    def run(self, call, tasks):
        yield from (Answer(task.name, call(task.argument)) for task in tasks)

    @contextmanager
    def __call__(self, need):
        yield self


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two plates, and models of random weights that know wells of the first."""
    folder = tmp_path_factory.mktemp("said")
    index = write_screen(folder / "S1.zarr", wells=["B02", "B03", "B04"], fields=1)
    write_screen(folder / "S2.zarr", wells=["B02", "B03"], fields=1)
    for kind in ("cells", "nuclei"):
        know(save_model(folder / "runs" / "finetune" / kind, kind=kind), index)
    return folder


def know(run, index, **wells):
    """The model's contract tells what it was taught with, and what its reference was made of: B02."""
    contract = read_contract(run.model)
    keys = [field.key for field in index.plate.fields]
    changes = {
        "wells": {"train": {"S1": ["B02/1"]}, "reference": {"S1": ["B02"]}, "stain": {}} | wells,
        "reference": reference_of(contract.view, [index], [keys]),
        "stains": {"Brightfield": False},
    }
    rewrite(run, **changes)


def rewrite(run, **changes):
    path = run.model / CONTRACT
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def planned(lab, *keys, model="cells", plates=None):
    words = [f"model={lab}/runs/finetune/{model}", f"plates=[{plates or lab / 'S1.zarr'}]"]
    return plan(load("segment", None, [*words, *keys]))


def computed(lab, tmp_path, *keys, model="cells", name="all", plate="S1", attempt=None):
    """The run, of a copy of the plate."""
    if not (tmp_path / f"{plate}.zarr").exists():
        shutil.copytree(lab / f"{plate}.zarr", tmp_path / f"{plate}.zarr")
    recipe = planned(lab, *keys, model=model, plates=tmp_path / f"{plate}.zarr").recipe
    run = Run(tmp_path / "runs" / "segment" / name)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.recipe.write_text(to_yaml(recipe))
    segment(recipe, attempt or Attempt(run), Here())
    return run


def wells(run):
    return pd.read_csv(run.folder / "wells.csv").set_index("well")


# ---------------------------------------------------------------- small objects


@pytest.mark.parametrize(
    "tiles", [[], ["max_pixels_in_memory=1000", "predict={tile: 32, halo: 32}", "block_size=64"]]
)
def test_small_objects_are_dropped_and_their_number_is_a_column(lab, tmp_path, tiles):
    """A user finds in each table how many objects were too small to count, and can count them after all."""
    all_of_them = computed(lab, tmp_path / "all", "labels=found", "min_area=0", *tiles)
    run = computed(lab, tmp_path, "labels=found", *tiles)  # the model's: 6 pixels
    small = pd.read_parquet(all_of_them.folder / "tables").area_um2 < 6 * 0.25
    assert small.any()
    assert wells(run).dropped_objects.sum() == small.sum()
    assert wells(run).objects.sum() == (~small).sum()
    assert (wells(all_of_them).dropped_objects == 0).all()
    table(run, tmp_path / "fields.csv", "field")
    assert pd.read_csv(tmp_path / "fields.csv").dropped_objects.sum() == small.sum()


def test_what_is_small_is_known_in_micrometres_whatever_the_pixels(lab, tmp_path):
    """A plate of finer pixels drops the same objects; `min_area` of the recipe is in the model's pixels."""
    task = read_contract(lab / "runs/finetune/cells/model").task
    home = tmp_path / "home"
    shutil.copytree(lab, home)
    run = Run(home / "runs" / "finetune" / "cells")
    rewrite(run, task=vars(task) | {"min_area": 60, "min_area_um2": 15.0})
    assert any("objects of less than 15 µm² are dropped" in line for line in planned(home).messages)
    index = write_screen(home / "fine.zarr", wells=["B02"], fields=1, shape=(130, 150), pixel_um=0.4)
    computed(home, tmp_path, "labels=found", plate="fine")
    areas = np.bincount(read_labels(tmp_path / "fine.zarr" / "B" / "02" / "1", "found").ravel())[1:]
    assert areas.min() * index.plate.pixel_um**2 >= 15.0
    computed(home, tmp_path, "labels=found", "min_area=1", "overwrite=true", plate="fine", name="one")
    areas = np.bincount(read_labels(tmp_path / "fine.zarr" / "B" / "02" / "1", "found").ravel())[1:]
    assert areas.min() * index.plate.pixel_um**2 < 15.0


def test_models_of_earlier_versions_keep_their_hash(lab):
    """Labels that were written before are still those of the same model: nothing is computed again."""
    content = json.loads((lab / "runs/finetune/cells/model" / CONTRACT).read_text())
    known = Contract.from_dict(content).model_hash()
    for key in ("stains", "wells", "reference"):
        content[key] = {}
    del content["task"]["min_area_um2"]
    assert Contract.from_dict(content).model_hash() == known
    assert set(known["task"]) == {
        "kind", "head", "from_stain", "span", "slope", "scale", "h", "min_area", "method",
    }  # fmt: skip


# ---------------------------------------------------------------- tables and pictures


def test_confluence_is_told_of_cells_alone(lab, tmp_path):
    """How much ground cells cover is their confluence; of nuclei there is neither figure nor picture."""
    cells = computed(lab, tmp_path, "labels=found", name="cells")
    nuclei = computed(lab, tmp_path, "labels=others", name="nuclei", model="nuclei")
    assert "confluence" in wells(cells)
    assert (cells.pictures / "plates-confluence.png").exists()
    assert "confluence" not in wells(nuclei)
    assert not (nuclei.pictures / "plates-confluence.png").exists()
    with pytest.raises(UserError, match="heatmap=confluence: no such column"):
        table(nuclei, heat_maps=["confluence"])


def draw_truth(folder, name="drawn", only=("B02", "B03", "B04")):
    """Sixteen squares on each field, drawn by a person."""
    squares = np.zeros((96, 128), np.uint32)
    for number in range(16):
        y, x = divmod(number, 4)
        squares[y * 20 + 4 : y * 20 + 14, x * 24 + 4 : x * 24 + 14] = number + 1
    index = open_plate(folder / "S1.zarr")
    for field in index.plate.fields:
        if field.key.well in only:
            write_labels(index.image(field.key), name, squares, origin="human", boxes=WHOLE)
    return squares


def test_counts_say_which_wells_the_model_was_taught_with(lab, tmp_path, capsys):
    """A reader of the picture never takes wells that the model learnt from for a test of how it counts."""
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    draw_truth(tmp_path)
    run = computed(lab, tmp_path, "labels=found", "reference_labels={labels: drawn}")
    assert wells(run).training_fields.to_dict() == {"B02": 1, "B03": 0, "B04": 0}
    page = (run.pictures / "plates.html").read_text()
    assert "2 wells; Hollow: 1 well that the model learnt from, left out of the figures." in page

    home = tmp_path / "home"
    shutil.copytree(lab, home)
    every = {"S1": ["B02", "B03", "B04"]}
    know(Run(home / "runs" / "finetune" / "cells"), open_plate(home / "S1.zarr"), train=every)
    run = computed(home, tmp_path, "labels=others", "reference_labels={labels: drawn}", name="taught")
    assert "this does not show how well it counts in others" in (run.pictures / "plates.html").read_text()
    know(Run(home / "runs" / "finetune" / "cells"), open_plate(home / "S1.zarr"), train={}, stain=every)
    keys = ["labels=third", "reference_labels={channel: Hoechst, min_area: 10}"]
    run = computed(home, tmp_path, *keys, name="stain")
    assert wells(run).training_fields.sum() == 3, "ISL has seen the stain that they are counted by"


def test_a_run_that_goes_on_shows_the_objects_that_are_there(lab, tmp_path):
    """The bar of a resumed run begins with the objects of the fields that are done, not with none."""
    shown = []

    class Watched(Attempt):
        def progress(self, done, total, unit, kept=0, /, **metrics):
            shown.append((done, metrics))
            super().progress(done, total, unit, kept, **metrics)

    run = computed(lab, tmp_path, "labels=found")
    spread(run.folder)
    next(run.folder.glob("fields/*/B03-1.json")).unlink()
    objects = int(wells(run).drop("B03").objects.sum())
    computed(lab, tmp_path, "labels=found", attempt=Watched(run, 1))
    assert shown[0][0] == 2
    assert shown[0][1]["objects"] == objects > 0


# ---------------------------------------------------------------- one name


def test_all_labels_of_a_run_have_one_name_where_people_drew_some(lab, tmp_path):
    """Where a person drew some fields of a plate, the computed labels of all have one other name."""
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    drawn = draw_truth(tmp_path, name="cells", only=["B03"])
    said = "\n".join(planned(lab, plates=tmp_path / "S1.zarr").messages)
    assert "all that this run computes are called 'cells_predicted'" in said
    run = computed(lab, tmp_path)
    index = open_plate(tmp_path / "S1.zarr")
    names = [label_names(index.image(field.key)) for field in index.plate.fields]
    assert names == [["cells_predicted"], ["cells", "cells_predicted"], ["cells_predicted"]]
    np.testing.assert_array_equal(read_labels(index.image(index.plate.fields[1].key), "cells"), drawn)
    again = planned(lab, plates=tmp_path / "S1.zarr").recipe
    assert to_yaml(again) == run.recipe.read_text(), "the same command is the same run"
    only = planned(lab, "fields=[B02]", plates=tmp_path / "S1.zarr").recipe
    assert only.labels == "cells_predicted", "and so on other fields of the plate"


def test_a_run_of_an_earlier_version_keeps_the_names_that_it_has_begun_with(lab, tmp_path):
    """Its recipe asks for a name that a person has on one field: labels there have a name of their own."""
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    draw_truth(tmp_path, name="cells", only=["B03"])
    words = [f"model={lab}/runs/finetune/cells", f"plates=[{tmp_path}/S1.zarr]"]
    recipe = load("segment", None, words)
    run = Run(tmp_path / "runs" / "segment" / "old")
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(recipe))
    segment(recipe, Attempt(run), Here())
    index = open_plate(tmp_path / "S1.zarr")
    names = [label_names(index.image(field.key)) for field in index.plate.fields]
    assert names == [["cells"], ["cells", "cells predicted"], ["cells"]]


# ---------------------------------------------------------------- channels of another kind


def test_a_label_free_model_that_is_fed_a_stain_says_so(lab, tmp_path):
    """A user who maps a stain to a label-free channel of the model is warned before anything is computed."""
    messages = planned(lab, "labels=found", "channels={Brightfield: Hoechst}").messages
    [line] = [line for line in messages if line.startswith("warning: 'Hoechst'")]
    assert "is a stain, and the model learnt from a label-free image, 'Brightfield'" in line
    assert not any("is a stain" in line for line in planned(lab, "labels=found").messages)
    home = tmp_path / "home"
    shutil.copytree(lab, home)
    run = Run(home / "runs" / "finetune" / "cells")
    rewrite(run, stains={"Brightfield": True})
    other = "is a label-free image, and the model learnt from a stain"
    assert any(other in line for line in planned(home).messages)
    rewrite(run, stains={})  # of an earlier version
    assert not any("warning: 'Brightfield'" in line for line in planned(home).messages)
    assert any("'Hoechst'" in line for line in planned(home, "channels={Brightfield: Hoechst}").messages)


# ---------------------------------------------------------------- drift


def test_wells_that_the_model_was_trained_on_are_never_called_unlike_them(lab, tmp_path, capsys):
    """A warning names wells that are new to the model and what is unlike in them; a picture shows them."""
    write_screen(tmp_path / "S1.zarr", wells=["B02", "B03", "B04"], fields=1, faint=["B02", "B04"])
    run = computed(lab, tmp_path, "labels=found")
    said = capsys.readouterr().out
    assert "warning: in 1 of 2 wells the images are unlike those that the model was trained on" in said
    assert "(worst: S1 B04:" in said
    assert any(words in said for words in FACTS.values())
    assert "look at pictures/drift.png" in said
    with (run.folder / "drift.csv").open() as stream:
        rows = {row["well"]: row for row in csv.DictReader(stream)}
    assert {well: row["in_training"] for well, row in rows.items()} == {"B02": "yes", "B03": "", "B04": ""}
    assert float(rows["B02"]["largest"]) > 6, "it is in the table all the same"
    assert "wells unlike the training images" in run.summary()["made"]
    with Image.open(run.pictures / "drift.png") as picture:
        assert picture.width > 1.5 * picture.height, "an ordinary well beside the one that is far"


def test_a_far_well_whose_source_begins_late_has_no_picture_and_ends_no_run(lab, tmp_path, capsys):
    """The picture shows the first time, which such a well lacks: the warning and the table name it."""
    wells = ["B02", "B03", "B04"]
    write_screen(tmp_path / "S1.zarr", wells=wells, fields=1, times=2, faint=["B04"], unlit=[("B04", 0)])
    run = computed(lab, tmp_path, "labels=found")
    said = capsys.readouterr().out
    assert "(worst: S1 B04:" in said
    assert "look at these wells" in said
    assert run.summary() is not None
    assert not (run.pictures / "drift.png").exists()


def test_without_wells_that_are_far_there_is_neither_warning_nor_picture(lab, tmp_path, capsys):
    run = computed(lab, tmp_path, "labels=found")
    assert "unlike" not in capsys.readouterr().out
    assert not (run.pictures / "drift.png").exists()


def test_the_columns_of_drift_are_explained(lab, tmp_path):
    """docs/tables.md has each fact that drift.csv compares, in the words of the warning."""
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    for fact, words in FACTS.items():
        assert f"| `{fact}` | {words}" in page
