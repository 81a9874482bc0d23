"""Fine-tuning as a stage: from a pretrained model and a few boxes to objects, scores and panels."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ngio
import numpy as np
import pytest
import timm
import torch
import zarr
from made_up_screen import write_screen
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import label
from skimage.measure import regionprops
from skimage.segmentation import clear_border

from hpc_isl.cluster.submit.planning import differences
from hpc_isl.errors import UserError
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import CONTRACT, read_contract
from hpc_isl.objects.matching import object_scores
from hpc_isl.plates.label_groups import LabelPixels
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import finalise, open_plate, read_box, read_labels, write_field, write_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.finetune import stain_threshold
from hpc_isl.stages.finetune.boxes import Box, draw, objects_of
from hpc_isl.stages.finetune.inputs import resolve_inputs
from hpc_isl.stages.finetune.scores import _row as box_row
from hpc_isl.stages.finetune.scores import count
from hpc_isl.stages.finetune.stage import finetune, plan
from hpc_isl.stages.pretrain.stage import pretrain
from hpc_isl.stages.shared.decoding import decode, rule_of
from hpc_isl.stages.shared.following import model_run
from hpc_isl.stages.shared.plate_views import PlateView

SCRIPT = Path(__file__).with_name("run_finetune.py")
SPLIT = "split={test_wells: [B04, C04], validation_wells: [C03]}"
NET = "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}"
SHORT = "train={steps: 2, batch: 4, micro_batch: 2, crop: 32, precision: fp32, crops_per_field: 2}"
ISL = [
    "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst, plane: max}]", SPLIT, SHORT,
    "data.workers=0", "predict.stain=false",
]  # fmt: skip
# Of B02 the upper half and a part of the lower one, of all other wells the whole field.
BOXES = {"B02": [(0, 0, 48, 96), (60, 10, 90, 70)]}
WHOLE = [(0, 0, 96, 96)]


def write_truth(index, names, spoilt=()):
    """Objects of the stain; in spoilt wells what lies outside of boxes is nonsense."""
    for field in index.plate.fields:
        well, image = field.key.well, index.image(field.key)
        stain = read_box(image, 0, 0, 1, [0, 1], slice(None), slice(None)).max(0)
        objects = label(stain > 3500)[0].astype(np.uint32)
        boxes = BOXES.get(well, WHOLE)
        if well in spoilt:
            drawn = np.zeros(objects.shape, bool)
            for y0, x0, y1, x1 in boxes:
                drawn[y0:y1, x0:x1] = True
            objects[~drawn] = 77
        for name, origin in names.items():
            write_labels(image, name, objects, origin=origin, boxes=boxes, overwrite=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_stained_plate):
    """A folder with a plate, weights of an encoder, two ISL runs and one on drafted labels."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finetune")
    index = write_stained_plate(folder / "P01.zarr")
    write_truth(index, {"nuclei": "human", "nuclei drafted": "drafted"})
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "test_resnet.safetensors")
    for name, weights in (("plain", "null"), ("file", folder / "test_resnet.safetensors")):
        keys = [f"plates=[{folder}/P01.zarr]", *ISL, NET, f"net.weights={weights}"]
        pretrain(load("pretrain", None, keys), Attempt(Run(folder / "runs" / "pretrain" / name)))
    run(folder, "drafted", "labels=nuclei drafted", "arm=random", plain=True)
    return folder


def recipe(folder, *keys, plain=False):
    starts = ["plain"] if plain else ["plain", "file"]
    given = [f"pretrained={json.dumps([str(folder / 'runs' / 'pretrain' / name) for name in starts])}"]
    if not plain:
        given.append(f"drafted={folder / 'runs' / 'finetune' / 'drafted'}")
    return load("finetune", None, [f"plates=[{folder}/P01.zarr]", "labels=nuclei", SHORT, *given, *keys])


def run(folder, name, *keys, plain=False, root=None) -> Run:
    """A finished run."""
    one = Attempt(Run((root or folder) / "runs" / "finetune" / name))
    finetune(plan(recipe(folder, *keys, plain=plain)).recipe, one)
    return one.run


def rows(run, name="scores.csv"):
    with (run.folder / name).open() as stream:
        return list(csv.DictReader(stream))


def same_weights(one: Run, two: Run) -> bool:
    first, second = (load_file(run.model / "weights.safetensors") for run in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in second)


# ---------------------------------------------------------------- finished runs


@pytest.mark.parametrize(
    ("arm", "keys"),
    [
        ("random", []),
        ("random+isl", []),
        ("imagenet", ["transfer={frozen: 1, layer_lr: 0.7, hold_norm: true}"]),
        ("imagenet+isl", ["transfer={hold_norm: true}"]),
        ("drafted", []),
        ("random+isl", ["objects.head=paper"]),
        ("random+isl", ["objects.head=stain"]),
        ("imagenet", ["objects.head=stain"]),
        ("random", ["objects.kind=cells"]),
        ("imagenet+isl", ["objects={kind: cells, scale: pixels, h_maxima: 1, alpha: 20}"]),
        ("random+isl", ["objects={kind: cells, head: paper, method: reference}"]),
    ],
)
def test_every_arm_and_head_ends_with_a_model_scores_and_panels(world, tmp_path, arm, keys):
    if "kind: cells" in str(keys) or "kind=cells" in str(keys):
        keys = [*keys, "drafted=null"]
    found = run(world, "a", f"arm={arm}", "n=2", *keys, root=tmp_path)
    summary = found.summary()
    assert (summary["arm"], summary["figures"]["images"], summary["figures"]["boxes"]) == (arm, 2, 2)
    assert [(row["well"], row["truth"], row["origin"], row["cell_line"]) for row in rows(found)] == [
        ("B04", "nuclei", "human", "HeLa"), ("C04", "nuclei", "human", "3T3"),
    ]  # fmt: skip
    boxes = rows(found, "boxes.csv")
    assert sum(int(box["objects"]) for box in boxes) == summary["figures"]["objects"] > 0
    network, contract = model.load(found.model)
    learnt = 0 if summary["figures"].get("start_kept") else 2
    assert (contract.task.arm, contract.task.boxes, contract.step) == (arm, learnt, learnt)
    assert (contract.net.weights is None) == (arm in ("random", "random+isl", "drafted"))
    assert not found.checkpoints.exists()
    assert summary["made"]["training curves"] == str(found.pictures / "training.png")
    with Image.open(found.pictures / "training.png") as picture:
        assert picture.size[0] > 400
    assert list(contract.reference) == ["Brightfield focus"]
    index = open_plate(world / "P01.zarr")
    listed = json.loads((found.folder / "panels.json").read_text())
    with np.load(found.folder / "panels.npz") as arrays:
        assert ("stain_0" in arrays) == arm.endswith("isl")
        for entry, row in zip(listed, rows(found), strict=True):
            key = FieldKey(entry["well"], entry["field"])
            truth = read_labels(index.image(key), "nuclei")
            ours = arrays[f"labels_{entry['key']}"]
            assert count(ours) == int(row["predicted"])
            assert object_scores(ours, truth)["mAP"] == pytest.approx(float(row["mAP"]), abs=1e-5)
            sources, _ = read(contract.view, index, key)
            assert np.array_equal(decode(Predictor(network)(sources), rule_of(contract.task))[0], ours)


def smallest(index, boxes):
    """Area in pixels of the smallest object that no edge of a box cuts, by scikit-image."""
    areas = []
    for box in boxes:
        y0, x0, y1, x1 = map(int, box["box"].split())
        inside = read_labels(index.image(FieldKey(box["well"], "1")), "nuclei")[y0:y1, x0:x1]
        areas += [each.area for each in regionprops(clear_border(inside)) or regionprops(inside)]
    return min(areas)


def test_objects_below_half_the_smallest_annotated_one_are_dropped(world, tmp_path, capsys):
    """A user gets no single pixels: the model drops what is smaller than half of anything that was drawn."""
    index = open_plate(world / "P01.zarr")
    for name, keys in (("one", ["n=1"]), ("all", ["n=all"])):
        found = run(world, name, "arm=random", *keys, root=tmp_path)
        expected = smallest(index, rows(found, "boxes.csv")) / 2
        task = read_contract(found.model).task
        assert (task.min_area, task.min_area_um2) == (math.ceil(expected), pytest.approx(expected * 0.36))
        assert f"less than {task.min_area} pixels ({task.min_area_um2:.3g} µm²)" in capsys.readouterr().out
        assert read_contract(found.model).model_hash()["task"]["min_area_um2"] == task.min_area_um2


def test_a_stray_pixel_is_not_the_smallest_object(world, tmp_path):
    shutil.copytree(world, tmp_path / "other")
    before = [objects_of(box) for box in resolve_inputs(recipe(tmp_path / "other", "arm=random")).learning]
    expected = next(own for own in before if own.box.key.well not in BOXES)
    box = expected.box
    image = box.index.image(box.key)
    labels = read_labels(image, "nuclei")
    y, x = np.argwhere(labels == 0)[len(labels)]
    labels[y, x] = labels.max() + 1
    write_labels(image, "nuclei", labels, origin="human", boxes=WHOLE, overwrite=True)
    found = objects_of(box)
    assert (found.count, found.smallest) == (expected.count + 1, expected.smallest)


@pytest.mark.parametrize("given", [0, 7])
def test_the_recipes_least_area_replaces_the_measured_one(world, tmp_path, given):
    found = run(world, "a", "arm=random", "n=1", f"objects.min_area={given}", root=tmp_path)
    task = read_contract(found.model).task
    assert (task.min_area, task.min_area_um2) == (given, None)


def test_a_contract_lists_the_wells_that_its_model_has_seen(world, tmp_path):
    contract = read_contract(run(world, "a", "arm=random+isl", "n=1", root=tmp_path).model)
    isl = read_contract(world / "runs" / "pretrain" / "plain" / "model")
    [box] = rows(Run(tmp_path / "runs" / "finetune" / "a"), "boxes.csv")
    assert contract.wells["train"] == {"P01": [f"{box['well']}/1"]}
    assert contract.wells["reference"] == contract.wells["stain"] == isl.wells["train"]
    assert contract.stains == isl.stains == {"Brightfield": False}
    plain = read_contract(run(world, "b", "arm=random", "n=1", root=tmp_path).model)
    assert plain.wells["stain"] == {}, "this arm knows nothing of the stain"
    assert plain.has_seen("train", "P01", FieldKey(box["well"], "1")) == (plain.wells["train"] != {})
    assert not plain.has_seen("train", "P02", FieldKey(box["well"], "1"))


def test_without_a_pretrained_model_drift_knows_every_well_that_was_learnt_from(world):
    """Validation wells teach in fine-tuning, so their images are not new; with train_on_all test wells do."""
    without = ("pretrained=[]", "drafted=null", "arm=random", "sources=[{channel: Brightfield}]", SPLIT)
    for more, drawn in (("train_on_all=false", {"C03"}), ("train_on_all=true", {"B04", "C03", "C04"})):
        inputs = resolve_inputs(recipe(world, *without, more))
        wells = inputs.wells("random")
        assert {f"{well}/1" for well in drawn} <= {*wells["train"]["P01"]} <= {*wells["reference"]["P01"]}
        assert any(inputs.reference().values())


@pytest.mark.parametrize("arm", ["random+isl", "drafted"])
def test_without_any_annotation_the_pretrained_model_is_scored(world, tmp_path, arm):
    found = run(world, "a", f"arm={arm}", "n=0", root=tmp_path)
    figures = found.summary()["figures"]
    assert (figures["boxes"], figures["objects"], figures["steps"], figures["images"]) == (0, 0, 0, 2)
    assert rows(found, "boxes.csv") == []
    assert found.model.exists() == (arm == "drafted")
    if arm == "drafted":
        assert same_weights(found, Run(world / "runs" / "finetune" / "drafted"))
    else:
        found.recipe.write_text("{}\n")  # as a submission writes it
        with pytest.raises(UserError, match=r"model=a: nothing was learnt \(n=0\), so it has no model"):
            model_run(found.folder)


def test_the_model_of_a_run_that_has_not_ended_is_not_there_yet(tmp_path):
    for name in ("nuc", "nuc/finetune/final", "segment/all"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "recipe.yaml").write_text("{}\n")
    Run(tmp_path / "nuc").elements_file.write_text('{"elements": ["finetune/final"]}')
    with pytest.raises(UserError, match=r"model=nuc/final: it has not ended, .* resume nuc$"):
        model_run(tmp_path / "nuc")
    assert model_run(tmp_path / "segment" / "all").name == "all", "what never trains is told otherwise"


def test_labels_outside_of_boxes_change_neither_weights_nor_scores(world, tmp_path):
    shutil.copytree(world / "P01.zarr", tmp_path / "P01.zarr")
    write_truth(open_plate(tmp_path / "P01.zarr"), {"nuclei": "human"}, spoilt=["B02"])
    keys = ["arm=random+isl", "fold=0", "test_wells_seen_in_pretraining=allow"]  # the first field, B02, tests
    learn = ["arm=random+isl"]
    for name, wanted in (("tests", keys), ("learns", learn)):
        plain = run(world, name, *wanted, root=tmp_path / "plain")
        spoilt = run(world, name, *wanted, f"plates=[{tmp_path}/P01.zarr]", root=tmp_path / "spoilt")
        assert len(rows(plain)) == 2
        assert rows(plain) == rows(spoilt)
        assert same_weights(plain, spoilt)


def test_reference_labels_are_scored_separately_and_the_first_gives_the_figures(world, tmp_path):
    found = run(world, "a", "arm=random", "n=1", "reference_labels=[nuclei drafted, nuclei]",
        "within=cell_line",
                root=tmp_path)  # fmt: skip
    assert [row["origin"] for row in rows(found)] == ["drafted", "drafted", "human", "human"]
    assert found.summary()["figures"]["images"] == 2
    [box] = rows(found, "boxes.csv")
    line = {"B": "HeLa", "C": "3T3"}[box["well"][0]]
    assert all((row["same"] == "within") == (row["cell_line"] == line) for row in rows(found))
    assert {entry["truth"] for entry in json.loads((found.folder / "panels.json").read_text())} == {
        "nuclei drafted"
    }


def test_a_plate_map_that_uses_our_names_changes_no_score(world):
    """The `origin` of a cell line is not who drew the labels, nor a `time` in hours that of the image."""
    setting = resolve_inputs(recipe(world, "arm=random", "n=1"))
    box = setting.testing[0]
    facts = {box.key.well: {"origin": "ATCC", "time": "24 h", "cell_line": "HeLa"}}
    mapped = replace(box, plate=replace(box.plate, index=replace(box.index, plate_map=facts)))
    row = box_row(recipe(world, "arm=random", "n=1"), setting, mapped, np.zeros((96, 96), np.uint32))
    assert (row["origin"], row["time"], row["cell_line"]) == ("human", 0, "HeLa")
    assert (row["origin (plate map)"], row["time (plate map)"]) == ("ATCC", "24 h")


def test_boxes_of_two_acquisitions_have_names_of_their_own_in_tables(tmp_path):
    """A report pairs test boxes by name: those of two passes over a field would be one."""
    keys = [FieldKey(well, "1", number) for well in ("B02", "B03") for number in (0, 2)]
    fields = tuple(Field(key, (1, 1, 1, 96, 96), "uint16") for key in keys)
    channels = (Channel("Brightfield", fluorescent=False),)
    plate = Plate("P01", *layout({"B02", "B03"}), channels, fields, pixel_um=0.5)
    for field in fields:
        pixels = np.random.default_rng(0).integers(0, 900, field.shape).astype(np.uint16)
        write_field(tmp_path / "P01.zarr", plate, field, pixels, measure(pixels), CodecRecipe())
    index = finalise(tmp_path / "P01.zarr", plate, {})
    for key in keys[:2] + keys[3:]:  # of B03 the second pass alone has labels
        objects = np.ones((96, 96), np.uint32)
        write_labels(index.image(key), "cells", objects, origin="human", boxes=WHOLE)
    base = [f"plates=[{tmp_path}/P01.zarr]", "labels=cells", "arm=random", NET, SHORT,
            "split={test_wells: [B03], validation_wells: []}"]  # fmt: skip

    def names(*more):
        boxes = resolve_inputs(load("finetune", None, [*base, *more]))
        return [sorted(box.field_name for box in part) for part in (boxes.learning, boxes.testing)]

    assert names("sources=[{channel: Brightfield}]") == [["1", "2x1"], ["1"]]
    assert names("sources=[{channel: Brightfield, acquisition: 2}]") == [["1"], ["1"]]


def test_with_train_on_all_every_box_trains_and_nothing_is_scored(world, tmp_path):
    wanted = recipe(world, "arm=random", "train_on_all=true")
    assert not any("nothing will be scored" in line for line in plan(wanted).messages)
    found = run(world, "a", "arm=random", "train_on_all=true", root=tmp_path)
    assert {box["well"] for box in rows(found, "boxes.csv")} == {"B02", "B03", "B04", "C02", "C03", "C04"}
    assert found.summary()["figures"]["images"] == 0
    assert not (found.folder / "scores.csv").exists()
    assert not (found.folder / "panels.json").exists()


# ---------------------------------------------------------------- who learns, who tests


def wells(boxes):
    return [box.key.well for box in boxes]


def test_test_wells_never_train(world):
    setting = resolve_inputs(recipe(world, "arm=random"))
    assert sorted(wells(setting.pool)) == ["B02", "B02", "B03", "C02", "C03"]
    assert sorted(wells(setting.testing)) == ["B04", "C04"]
    one = resolve_inputs(recipe(world, "arm=random", "train_where={cell_line: [3T3]}"))
    assert sorted(wells(one.learning)) == ["C02", "C03"]


@pytest.mark.parametrize("fold", range(6))
def test_a_field_left_out_tests_and_all_others_train(world, fold):
    setting = resolve_inputs(
        recipe(world, "arm=random", f"fold={fold}", "test_wells_seen_in_pretraining=allow")
    )
    [out] = set(wells(setting.testing))
    assert set(wells(setting.learning)) == {"B02", "B03", "B04", "C02", "C03", "C04"} - {out}
    assert len(setting.learning) + len(setting.testing) == 7


def test_of_a_field_with_many_boxes_each_reads_its_own_labels_alone(world, monkeypatch):
    """A scan of a whole well has hundreds of boxes: to read all of it for each would take hours."""
    reads = []
    read_all = LabelPixels.read
    monkeypatch.setattr(
        LabelPixels, "read", lambda pixels, *part: reads.append(part) or read_all(pixels, *part)
    )
    boxes = resolve_inputs(recipe(world, "arm=random")).learning
    small = next(box for box in boxes if box.corners == (60, 10, 90, 70))
    whole = read_labels(small.image, "nuclei")
    reads.clear()
    np.testing.assert_array_equal(small.drawn(level=0), whole[60:90, 10:70])
    assert reads == [(0, slice(60, 90, 1), slice(10, 70, 1))]
    np.testing.assert_array_equal(small.drawn(level=1), whole[::2, ::2][30:45, 5:35])


def test_boxes_are_nested_in_n_and_the_same_for_all_arms(world):
    def places(*keys):
        return [box.place for box in resolve_inputs(recipe(world, *keys)).learning]

    for number in (0, 1):
        for arm in ("random", "drafted"):
            every = places(f"arm={arm}", f"draw={number}")
            assert [places("n=1", f"draw={number}"), places("n=3", f"draw={number}")] == [
                every[:1],
                every[:3],
            ]
    assert len({places("n=1", f"draw={number}")[0] for number in range(8)}) > 1


def test_a_box_that_is_added_leaves_the_order_of_the_others(world):
    pool = list(resolve_inputs(recipe(world)).pool)
    added = replace(pool[0], corners=(50, 50, 60, 60))
    for number in range(5):
        with_it = [box for box in draw([added, *pool], "all", number) if box != added]
        assert with_it == draw(pool, "all", number) == draw(pool[::-1], "all", number)


@pytest.mark.parametrize(
    ("corners", "level", "expected"),
    [
        ((0, 0, 96, 96), 1, (0, 0, 48, 48)),
        ((3, 4, 21, 20), 1, (2, 2, 10, 10)),
        ((3, 4, 21, 20), 2, (1, 1, 5, 5)),
        ((5, 5, 7, 7), 2, (1, 1, 2, 2)),
        ((93, 93, 96, 96), 2, (23, 23, 24, 24)),
    ],
)
def test_boxes_at_lower_levels_lie_inside_of_the_field(world, corners, level, expected):
    index = open_plate(world / "P01.zarr")
    plate = PlateView(None, None, index)
    assert Box(plate, FieldKey("B02", "1"), 0, "nuclei", "human", corners).at(level) == expected


# ---------------------------------------------------------------- mistakes

ONE_CROP = "train={steps: 2, batch: 2, micro_batch: 1, crop: 32}"


def test_one_crop_at_a_time_is_enough_where_statistics_are_frozen(world):
    """A user may train on single small crops with statistics that are held, and without any training."""
    plan(recipe(world, "arm=random+isl", ONE_CROP, "transfer.hold_norm=true"))
    plan(recipe(world, "arm=random+isl", ONE_CROP, "n=0"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["labels=nuclie"], "labels 'nuclie': no field has them; did you mean 'nuclei'"),
        (["reference_labels=[nuclie]"], "labels 'nuclie': no field has them; did you mean 'nuclei'"),
        (["n=9"], "n=9: there are 5 annotation boxes to learn from; take n=all"),
        (["fold=6"], "fold=6: there are 6 annotated fields, folds from 0 on"),
        (["fold=1"], r"plain was trained on test fields \(B03/1\).*test_wells_seen_in_pretraining=allow"),
        (
            ["train_where={cell_line: [3t3]}"],
            "train_where.cell_line: no annotated well has '3t3'; did you mean '3T3'",
        ),
        (["arm=random", "n=0"], "n=0: the arm random knows nothing"),
        (["arm=imagenet", NET], "arm=imagenet: net.weights names no weights"),
        (["arm=drafted", "drafted=null"], "arm=drafted: drafted must name a finetune run"),
        (["arm=random+isl", "pretrained=[{file}]"], r"arm=random\+isl: pretrained must name an ISL run"),
        (["pretrained=[{plain}, {plain}]"], r"both start the arm random\+isl"),
        (["pretrained=[{drafted}]"], "this model segments; an ISL run, of pretrain, is needed"),
        (["drafted={plain}"], "a finetune run on drafted labels is needed"),
        (["pretrained=[/nowhere]"], "pretrained=/nowhere: .*holds no model"),
        (["arm=drafted", "objects.kind=cells"], "it segments nuclei, objects.kind is cells"),
        (["net={encoder: resnet18, weights: null}"], "one network for all arms"),
        (["predict={tile: 100}"], "predict.tile=100: a multiple of 32"),
        (["arm=best"], "arm=best: is for sweeps"),
        (["arm=random", ONE_CROP, "transfer.hold_norm=true"], "micro_batch=1, .*BatchNorm of net.encoder="),
        (["pretrained=[]", "drafted=null", "arm=random"], "sources: must be given"),
    ],
)  # fmt: skip
def test_errors_are_found_before_anything_is_submitted(world, keys, message):
    places = {name: world / "runs" / "pretrain" / name for name in ("plain", "file")}
    places["drafted"] = world / "runs" / "finetune" / "drafted"
    for name, path in places.items():
        keys = [key.replace("{" + name + "}", str(path)) for key in keys]
    with pytest.raises(UserError, match=message):
        plan(recipe(world, *keys))


def changed(world, folder, name, change):
    """A copy of an ISL run, whose contract was changed."""
    copy = folder / "runs" / "pretrain" / name
    shutil.copytree(world / "runs" / "pretrain" / name, copy)
    content = json.loads((copy / "model" / CONTRACT).read_text())
    change(content)
    (copy / "model" / CONTRACT).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(split="0" * 16), "trained with different splits"),
        (lambda c: c["view"]["normalize"].update(source="percentile"), "see different things"),
        (lambda c: c["view"].update(flat_field="vendor"), "see different things"),
        (lambda c: c["net"].update(decoder=[32, 16, 8]), "one network for all arms"),
    ],
    ids=["split", "normalisation", "flat field", "network"],
)
def test_models_that_cannot_be_compared_are_refused(world, tmp_path, change, message):
    other = changed(world, tmp_path, "file", change)
    with pytest.raises(UserError, match=message):
        plan(recipe(world, f"pretrained=[{world}/runs/pretrain/plain, {other}]"))


def test_a_model_that_sees_other_things_does_not_start_the_arm_drafted(world, tmp_path):
    shutil.copytree(world / "runs" / "finetune" / "drafted", tmp_path / "drafted")
    file = tmp_path / "drafted" / "model" / CONTRACT
    content = json.loads(file.read_text())
    content["view"]["sources"][0]["plane"] = 0
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="see different things"):
        plan(recipe(world, f"drafted={tmp_path}/drafted"))


def test_test_wells_that_a_model_has_seen_may_be_allowed_with_a_remark(world):
    said = plan(recipe(world, "arm=random+isl", "fold=1", "test_wells_seen_in_pretraining=allow")).messages
    assert any("plain was trained on test fields (B03/1), so scores flatter its arm" in line for line in said)


def test_a_plate_that_the_split_does_not_list_is_refused(world, tmp_path, write_stained_plate):
    write_truth(write_stained_plate(tmp_path / "P02.zarr"), {"nuclei": "human"})
    with pytest.raises(UserError, match="plate 'P02' is not in the split of the pretrained model"):
        plan(recipe(world, f"plates=[{world}/P01.zarr, {tmp_path}/P02.zarr]"))


def test_labels_on_test_fields_alone_are_enough_without_annotation(world, tmp_path):
    shutil.copytree(world / "P01.zarr", tmp_path / "P01.zarr")
    index = open_plate(tmp_path / "P01.zarr")
    for well in ("B04", "C04"):
        image = index.image(FieldKey(well, "1"))
        write_labels(image, "few", read_labels(image, "nuclei"), origin="human", boxes=WHOLE)
    few = [f"plates=[{tmp_path}/P01.zarr]", "labels=few"]
    assert any("scored on 2 boxes of 'few'" in line for line in plan(recipe(world, *few, "n=0")).messages)
    with pytest.raises(UserError, match="no field in the parts train, validation of the split has them"):
        plan(recipe(world, *few, "n=1"))


def test_boxes_at_times_without_a_source_neither_train_nor_test(tmp_path):
    """Labels cover all times of a field, whose bright-field may have begun late or not at all."""
    unlit = [("B03", 1), ("B04", 0), ("B05", 0), ("B05", 1)]
    index = write_screen(tmp_path / "S1.zarr", ("B02", "B03", "B04", "B05"), 1, times=2, unlit=unlit)
    for field in index.plate.fields:
        objects = np.ones((2, 96, 128), np.uint32)
        write_labels(index.image(field.key), "cells", objects, origin="human", boxes=[(0, 0, 96, 128)])
    base = [f"plates=[{tmp_path}/S1.zarr]", "labels=cells", "arm=random", NET, SHORT,
            "sources=[{channel: Brightfield}]"]  # fmt: skip
    planned = plan(load("finetune", None, [*base, "split={test_wells: [B04, B05], validation_wells: []}"]))
    assert any("are left out at times at which a source was not imaged: B03/1 of S1" in line
               for line in planned.messages)  # fmt: skip
    one = resolve_inputs(planned.recipe)
    assert sorted((box.key.well, box.time) for box in one.learning) == [("B02", 0), ("B02", 1), ("B03", 0)]
    assert [(box.key.well, box.time) for box in one.testing] == [("B04", 1)]
    only = load("finetune", None, [*base, "split={test_wells: [B02, B03, B04], validation_wells: []}"])
    with pytest.raises(UserError, match=r"'cells': of the fields in the parts .* none has all sources"):
        plan(only)


def test_other_labels_of_a_plate_do_not_make_a_run_another_one(world, tmp_path):
    shutil.copytree(world / "P01.zarr", tmp_path / "P01.zarr")
    wanted = recipe(world, f"plates=[{tmp_path}/P01.zarr]")
    before = plan(wanted).inputs
    index = open_plate(tmp_path / "P01.zarr")
    for well in ("B02", "B04"):
        image = index.image(FieldKey(well, "1"))
        labels = read_labels(image, "nuclei")
        write_labels(image, "else", labels, origin="drafted", boxes=WHOLE)
    assert plan(wanted).inputs == before
    labels[:20] = 0
    write_labels(image, "nuclei", labels, origin="human", boxes=WHOLE, overwrite=True)
    after = plan(wanted).inputs
    assert {name for name in before if before[name] != after[name]} == {"test boxes"}


def test_labels_that_ngio_made_are_learnt_from(world, tmp_path):
    """As if a person had drawn them in whole fields; who made them is told wherever they are named."""
    shutil.copytree(world / "P01.zarr", tmp_path / "P01.zarr")
    index = open_plate(tmp_path / "P01.zarr")
    for field in index.plate.fields:
        image = index.image(field.key)
        label = ngio.open_ome_zarr_container(str(image)).derive_label("theirs")
        planes = np.zeros(label.shape, np.uint32)
        planes[0] = read_labels(image, "nuclei")
        label.set_array(planes)
        label.consolidate(mode="auto")
    keys = [f"plates=[{tmp_path}/P01.zarr]", "labels=theirs"]
    assert any("boxes of 'theirs' (other program)" in line for line in plan(recipe(world, *keys)).messages)
    found = run(world, "a", "arm=random+isl", "n=2", *keys, root=tmp_path)
    assert {row["origin"] for row in rows(found)} == {"other program"}
    assert sum(int(box["objects"]) for box in rows(found, "boxes.csv")) > 0


def test_an_edit_in_place_changes_the_boxes_fingerprint_and_is_reported(world, tmp_path):
    """Though it leaves sizes and marks as they were: the run learns from what is there, and says so."""
    shutil.copytree(world / "P01.zarr", tmp_path / "P01.zarr")
    wanted = recipe(world, f"plates=[{tmp_path}/P01.zarr]")
    before = plan(wanted)
    assert not any("were edited" in line for line in before.messages)
    image = open_plate(tmp_path / "P01.zarr").image(FieldKey("B04", "1"))
    array = zarr.open_array(str(image / "labels" / "nuclei" / "0"), mode="r+")
    array[..., :20, :20] = 5000
    after = plan(wanted)
    assert {name for name in before.inputs if before.inputs[name] != after.inputs[name]} == {"test boxes"}
    [said] = [line for line in after.messages if "were edited" in line]
    assert said.startswith("labels of 1 image were edited (or damaged) since they were written")
    assert str(image) in said


def test_a_run_of_an_earlier_version_is_found_again(world, tmp_path):
    """It noted labels by names and sizes of files; the same command goes on with it all the same."""
    shutil.copytree(world / "P01.zarr", tmp_path / "P01.zarr")
    for path in tmp_path.rglob("labels/nuclei/zarr.json"):
        content = json.loads(path.read_text())
        for key in ("checksum", "files"):
            del content["attributes"]["hpc_isl"][key]
        path.write_text(json.dumps(content))
    planned = plan(recipe(world, f"plates=[{tmp_path}/P01.zarr]"))
    was = Run(tmp_path / "runs" / "finetune" / "a")
    was.folder.mkdir(parents=True)
    was.recipe.write_text(to_yaml(planned.recipe))
    was.record.write_text(json.dumps({"inputs": {**planned.inputs, **planned.former_fingerprints()}}))
    assert planned.inputs["boxes"] != planned.former_fingerprints()["boxes"]
    assert differences(was, planned) == []
    was.record.write_text(json.dumps({"inputs": {**planned.inputs, "boxes": "others"}}))
    assert len(differences(was, planned)) == 1


PLAN = """
import json, sys
from pathlib import Path
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.stages.finetune.stage import plan
from hpc_isl.recipes.strict import parse, read_yaml
plan(parse(FinetuneRecipe, read_yaml(Path(sys.argv[1])), "recipe"))
print(json.dumps(sorted(sys.modules)))
"""


def test_a_plan_imports_nothing_that_only_its_job_needs(world, tmp_path):
    """Encoders of timm are asked of their library; of those that a table knows nothing is."""
    net = {"encoder": "resnet18", "weights": None, "decoder": None, "channels_last": True}
    start = changed(world, tmp_path, "plain", lambda content: content.update(net=net))
    wanted = recipe(world, f"pretrained=[{start}]", "drafted=null", "arm=random+isl", "n=2")
    (tmp_path / "recipe.yaml").write_text(to_yaml(wanted))
    words = [sys.executable, "-c", PLAN, str(tmp_path / "recipe.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    heavy = {
        "torch",
        "timm",
        "segmentation_models_pytorch",
        "scipy",
        "skimage",
        "numba",
        "matplotlib",
        "zarr",
    }
    assert heavy & set(json.loads(done.stdout.splitlines()[-1])) == set()


# ---------------------------------------------------------------- stopped, shared


def test_a_run_asked_to_stop_saves_and_resumes_to_the_same_weights(world, tmp_path):
    keys = ["arm=random+isl", "n=2", "train.steps=4", "objects.kind=cells", "drafted=null"]
    wanted = plan(recipe(world, *keys)).recipe
    through = run(world, "a", *keys, root=tmp_path / "through")
    one = Attempt(Run(tmp_path / "runs" / "finetune" / "a"))
    told = one.metric

    def metric(step, **values):
        told(step, **values)
        if step == 1:
            one.stopping.set()

    one.metric = metric
    finetune(wanted, one)
    assert one.run.summary() is None
    assert (one.run.checkpoints / "step-00000002.pt").exists()
    again = Attempt(one.run, number=1)
    shown = again.progress

    def progress(done, total, unit, **values):
        shown(done, total, unit, **values)
        if unit == "test fields":
            again.stopping.set()

    again.progress = progress
    finetune(wanted, again)
    assert one.run.summary() is None
    assert not (one.run.folder / "scores.csv").exists()
    finetune(wanted, Attempt(one.run, number=2))
    assert same_weights(one.run, through)
    assert rows(one.run) == rows(through)


@pytest.mark.parametrize(("lr", "steps", "kept"), [("1e-9", 1, True), ("0.01", 40, False)])
def test_a_start_from_the_stain_is_kept_unless_training_is_shown_to_be_better(
    world, tmp_path, monkeypatch, lr, steps, kept
):
    """One step at a rate of nothing gains nothing; the stain's own threshold, moved, is soon learnt again."""
    calibrate = stain_threshold.calibrate
    moved = 0.0 if kept else 0.6
    monkeypatch.setattr(
        stain_threshold, "calibrate",
        lambda *given: (own := calibrate(*given)) and replace(own, centre=own.centre + moved),
    )  # fmt: skip
    keys = ["arm=random+isl", "n=2", "objects.head=stain", f"train.steps={steps}", f"optim.lr={lr}"]
    found = run(world, "a", *keys, root=tmp_path)
    evidence = json.loads((found.folder / "left_out.json").read_text())
    figures = found.summary()["figures"]
    gain = np.subtract(evidence["scores"], evidence["start_scores"])
    assert evidence["keeps_start"] == (gain.mean() <= gain.std(ddof=1) / math.sqrt(len(gain))) == kept
    assert figures["start_kept"] == kept
    assert figures["steps"] == (0 if kept else steps)
    assert figures["left_out"] == pytest.approx(
        np.mean(evidence["start_scores" if kept else "scores"]), abs=1e-5
    )
    network, contract = model.load(found.model)
    isl, _ = model.load(world / "runs" / "pretrain" / "plain" / "model")
    index = open_plate(world / "P01.zarr")
    sources, _ = read(contract.view, index, FieldKey("B04", "1"))
    start = contract.task.slope * (Predictor(isl)(sources) - contract.task.centre)
    same = np.allclose(Predictor(network)(sources), start, atol=1e-4 * np.abs(start).max())
    assert same == kept
    assert (found.folder / "unguarded.csv").exists() == kept
    if not kept:
        assert figures["unguarded_iou"] == figures["iou"]


def test_a_stain_of_raw_counts_is_no_start(world, tmp_path):
    """A threshold is sought where normalised stains lie; of counts there would be none."""
    shutil.copytree(world / "runs" / "pretrain" / "plain", tmp_path / "raw")
    path = tmp_path / "raw" / "model" / CONTRACT
    content = json.loads(path.read_text())
    content["view"]["normalize"]["target"] = "none"
    path.write_text(json.dumps(content))
    keys = ["arm=random+isl", "n=1", "drafted=null", f"pretrained=[{tmp_path / 'raw'}]"]
    with pytest.raises(UserError, match=r"objects\.head=stain: the pretrained model predicts raw counts"):
        plan(recipe(world, *keys, "objects.head=stain"))
    assert plan(recipe(world, *keys, "objects.head=same")).recipe.n == 1


def test_a_run_that_stops_while_a_part_is_left_out_goes_on_there_and_fits_the_same(world, tmp_path):
    keys = ["arm=random+isl", "n=2", "train.steps=10", "train.checkpoint_every=1", "objects.kind=cells",
            "drafted=null"]  # fmt: skip
    wanted = plan(recipe(world, *keys)).recipe
    through = run(world, "a", *keys, root=tmp_path / "through")
    evidence = json.loads((through.folder / "left_out.json").read_text())
    fitted = evidence["fit"]
    task = read_contract(through.model).task
    assert [task.h_maxima, task.mask_threshold, task.min_area] == [
        fitted[name] for name in ("h_maxima", "mask_threshold", "min_area")
    ]
    assert len(evidence["pieces"]) == len(evidence["scores"]) == fitted["pieces"] == 2
    # Too few objects for a probability: they get a score.
    assert task.confidence == ()
    assert 0 < evidence["confidence"]["objects"] < 200
    assert 0 <= evidence["confidence"]["found"] <= 1
    run_ = Run(tmp_path / "runs" / "finetune" / "a")
    for number, fold in enumerate((0, 1)):
        attempt = Attempt(run_, number=number)
        shown = attempt.progress

        def progress(done, total, unit, *, attempt=attempt, fold=fold, shown=shown, **values):
            shown(done, total, unit, **values)
            if (run_.checkpoints / f"fold-{fold}" / "step-00000001.pt").exists():
                attempt.stopping.set()

        attempt.progress = progress
        finetune(wanted, attempt)
        assert run_.summary() is None
        assert not (run_.folder / "left_out.json").exists()
    assert not list(run_.checkpoints.glob("step-*.pt")), "the network that is kept has not begun"
    finetune(wanted, Attempt(run_, number=2))
    assert same_weights(run_, through)
    assert json.loads((run_.folder / "left_out.json").read_text()) == evidence
    assert rows(run_) == rows(through)


@pytest.mark.journey
def test_two_processes_score_as_one(world, tmp_path):
    keys = ["arm=random+isl", "n=2", "train.steps=1", "objects.kind=cells", "drafted=null"]
    wanted = plan(recipe(world, *keys)).recipe
    two = Run(tmp_path / "runs" / "finetune" / "two")
    two.folder.mkdir(parents=True)
    two.recipe.write_text(to_yaml(wanted))
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(two.folder), str(rank), "2"], text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    one = run(world, "one", *keys, root=tmp_path)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (load_file(run.model / "weights.safetensors") for run in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)
    assert rows(two, "boxes.csv") == rows(one, "boxes.csv")
    own = ("plate", "well", "field", "box", "truth", "objects")
    assert [[row[c] for c in own] for row in rows(two)] == [[row[c] for c in own] for row in rows(one)]
    for alone, shared in zip(rows(one), rows(two), strict=True):
        assert float(shared["iou"]) == pytest.approx(float(alone["iou"]), abs=0.02)
    assert (two.folder / "panels.json").read_text() == (one.folder / "panels.json").read_text()
