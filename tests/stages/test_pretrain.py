"""Pretraining as a stage: from a plate to a model, scores, pictures, a virtual stain."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hpc_isl.errors import UserError
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.objects.scores import pcc
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import open_plate, read_box, write_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.pretrain.stage import plan, pretrain
from hpc_isl.stages.shared.pictures import round_length

SCRIPT = Path(__file__).with_name("run_pretrain.py")
SMALL = [
    "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst, plane: max}]",
    "split={test_wells: [B04, C04], validation_wells: [C03]}",
    "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}", "optim.lr=0.006",
    "train={steps: 80, batch: 8, micro_batch: 4, crop: 64, evaluate_every: 40, checkpoint_every: 25}",
    "data.workers=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def plate(tmp_path_factory, write_stained_plate):
    """A plate with labels on its test wells."""
    path = tmp_path_factory.mktemp("plates") / "P01.zarr"
    index = write_stained_plate(path)
    for well in ("B04", "C04"):
        image = index.image(FieldKey(well, "1"))
        bright = read_box(image, 0, 0, 1, [0], slice(None), slice(None))[0] > 3000
        labels = np.zeros(bright.shape, np.uint32)
        labels[bright], labels[:48][bright[:48]] = 1, 2
        write_labels(image, "nuclei", labels, origin="drafted", boxes=[(0, 0, 96, 96)])
    return index


@pytest.fixture(scope="module")
def recipe(plate):
    def make(*overrides) -> PretrainRecipe:
        return load("pretrain", None, [f"plates=[{plate.path}]", *SMALL, *overrides])

    return make


def attempt(folder, **place) -> Attempt:
    return Attempt(Run(folder / "runs" / "pretrain" / "a"), **place)


@pytest.fixture(scope="module")
def done(tmp_path_factory, recipe):
    """A finished run of one process."""
    torch.set_num_threads(1)
    one = attempt(tmp_path_factory.mktemp("done"))
    pretrain(recipe("labels=nuclei"), one)
    return one.run


def rows(run):
    with (run.folder / "scores.csv").open() as stream:
        return list(csv.DictReader(stream))


# ---------------------------------------------------------------- plan


def test_a_plan_reports_what_will_be_done_and_writes_nothing(recipe, plate, tmp_path, monkeypatch):
    monkeypatch.chdir(plate.path.parent)
    before = sorted(plate.path.parent.rglob("*"))
    found = plan(recipe("plates=[P*.zarr]"))
    said = "\n".join(found.messages)
    assert "train      3 fields in 3 wells" in said
    assert "80 steps of 8 crops of 64 × 64 pixels: 42.7 epochs of 15 crops" in said
    assert "micro-batches in a step: 2 of 4 crops; for 1 or 2 process(es)" in said
    assert "Brightfield focus → Hoechst max" in said
    assert found.recipe.plates == [plate.path]
    assert found.inputs == {"P01": plate.fingerprint}
    assert sorted(plate.path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plates=[/nowhere/*.zarr]", r"plates: nothing is called /nowhere/\*.zarr"),
        ("plates=[/nowhere/P01.zarr]", "/nowhere/P01.zarr"),
        ("targets.0.channel=Hoechts", "no channel 'Hoechts'; did you mean 'Hoechst'"),
        ("sources.0.plane=5", "B02/1 'Brightfield': plane 5; there are the planes 0, 1"),
        ("split={test: 1}", "no field is left to train on"),
        ("net.encoder=resnet81", "did you mean 'resnet18'"),
        ("net.weights=/nowhere/w.pth", "net.weights=/nowhere/w.pth: there is no such"),
        ("predict={tile: 100}", "predict.tile=100: a multiple of 32"),
        ("labels=nuclie", "labels='nuclie': on no test field; did you mean 'nuclei'"),
        ("data.foreground={threshold: 65000}", "no training field holds"),
        ("data.level=9", "level"),
        (
            "train={steps: 2, batch: 2, micro_batch: 1, crop: 32}",
            "micro_batch=1, .*BatchNorm of net.encoder=",
        ),
    ],
)
def test_errors_are_found_before_anything_is_submitted(recipe, override, message):
    with pytest.raises(UserError, match=message):
        plan(recipe(override))


def test_processes_that_cannot_share_a_step_are_refused_at_submission(recipe):
    found = plan(recipe())
    found.check_size(2)
    with pytest.raises(UserError, match="3 processes cannot share the 2 micro-batches"):
        found.check_size(3)


def test_epochs_become_steps(recipe):
    said = "\n".join(plan(recipe("train.steps=null", "train.epochs=3")).messages)
    assert "6 steps of 8 crops" in said  # 3 epochs × 3 fields × 5 crops / 8


# ---------------------------------------------------------------- a finished run


def test_the_network_learns_the_stain(done):
    found = done.summary()["figures"]
    assert found["pcc"] > 0.9
    assert found["images"] == 2
    assert found["objects"] == 4
    assert found["steps"] == 80


def test_scores_have_a_row_per_test_field_with_the_plate_maps_columns(done):
    found = rows(done)
    assert [(row["plate"], row["well"], row["cell_line"]) for row in found] == [
        ("P01", "B04", "HeLa"), ("P01", "C04", "3T3"),
    ]  # fmt: skip
    mean = np.mean([float(row["pcc"]) for row in found])
    assert done.summary()["figures"]["pcc"] == pytest.approx(mean, abs=1e-4)
    by_line = done.summary()["by"]["cell_line"]
    assert by_line["HeLa"]["pcc"] == pytest.approx(float(found[0]["pcc"]), abs=1e-4)
    assert all(float(row["pcc_objects"]) > 0 for row in found)


def test_the_model_alone_repeats_its_scores(done, plate):
    network, contract = model.load(done.model)
    sources, targets = read(contract.view, plate, FieldKey("B04", "1"))
    assert pcc(Predictor(network)(sources)[0], targets[0]) == pytest.approx(
        float(rows(done)[0]["pcc"]), abs=1e-4
    )


def test_the_model_carries_its_contract(done, plate):
    _, contract = model.load(done.model)
    assert contract.plates == {"P01": plate.fingerprint}
    assert contract.wells["train"] == {"P01": ["B02", "B03", "C02"]}
    assert contract.wells["test"] == {"P01": ["B04", "C04"]}
    assert contract.view.pixel_um == 0.6
    assert contract.view.targets[0].numbers[1] > 0
    assert (contract.step, contract.precision) == (80, "fp32")
    assert PretrainRecipe.model_validate(contract.recipe).train.steps == 80


def test_the_virtual_stain_is_a_plate_in_counts(done, plate):
    stain = open_plate(done.folder / "stain.zarr")
    key = FieldKey("B04", "1")
    assert stain.plate.wells == ("B04", "C04")
    assert [channel.name for channel in stain.plate.channels] == ["Hoechst (predicted)"]
    assert stain.field(key).dtype == "uint16"
    assert stain.plate_map["B04"] == {"cell_line": "HeLa"}
    whole = slice(None), slice(None)
    found = read_box(stain.image(key), 0, 0, 0, [0], *whole)[0]
    truth = read_box(plate.image(key), 0, 0, 1, [0, 1], *whole).max(0)
    assert pcc(found, truth) > 0.9
    assert np.percentile(found, 99) == pytest.approx(np.percentile(truth, 99), rel=0.3)


def test_metrics_record_loss_and_validation_by_step(done):
    lines = list(done.metric_lines())
    losses = {line["step"]: line["values"]["train/loss"] for line in lines if "train/loss" in line["values"]}
    assert list(losses) == list(range(1, 81))
    assert losses[80] < losses[1]
    validated = {line["step"]: line["values"] for line in lines if "validation/pcc" in line["values"]}
    assert list(validated) == [40, 80]
    assert validated[40]["validation/loss"] > validated[80]["validation/loss"] > 0


def test_pictures_are_drawn(done):
    for name in ("examples", "training"):
        with Image.open(done.pictures / f"{name}.png") as picture:
            assert picture.size[0] > 900
            assert np.asarray(picture.convert("L")).std() > 20


@pytest.mark.parametrize(("about", "length"), [(130.0, 100), (49.9, 20), (0.7, 0.5), (2.0, 2)])
def test_scale_bars_have_round_lengths(about, length):
    assert round_length(about) == pytest.approx(length)


# ---------------------------------------------------------------- other ways


def test_fields_of_several_times_plates_and_targets(tmp_path, write_stained_plate):
    for name in ("P01", "P02"):
        write_stained_plate(tmp_path / f"{name}.zarr", stains=("Hoechst", "CellMask"), times=2, size=64)
    one = attempt(tmp_path)
    pretrain(
        load("pretrain", None, [
            f"plates=[{tmp_path}/P01.zarr, {tmp_path}/P02.zarr]", *SMALL, "train.steps=2", "train.crop=32",
            "targets=[{channel: Hoechst, plane: max}, {channel: Hoechst, plane: 0}, {channel: CellMask}]",
            "data.normalize={target: standard, target_by: field}", "predict={tile: 32, halo: 32}",
        ]), one,
    )  # fmt: skip
    assert len(rows(one.run)) == 2 * 2 * 2 * 3
    stain = open_plate(one.run.folder / "stain" / "P02.zarr")
    assert stain.field(FieldKey("B04", "1")).shape == (2, 3, 1, 64, 64)
    assert stain.field(FieldKey("B04", "1")).dtype == "float32"
    names = [channel.name for channel in stain.plate.channels]
    assert names == ["Hoechst max (predicted)", "Hoechst 0 (predicted)", "CellMask (predicted)"]


def test_a_lower_level_of_the_pyramid_gives_a_stain_of_that_pixel_size(tmp_path, write_stained_plate):
    write_stained_plate(tmp_path / "P01.zarr", size=288)
    one = attempt(tmp_path)
    overrides = ["train.steps=2", "train.crop=32", "data.level=1"]
    pretrain(load("pretrain", None, [f"plates=[{tmp_path}/P01.zarr]", *SMALL, *overrides]), one)
    stain = open_plate(one.run.folder / "stain.zarr")
    assert stain.field(FieldKey("B04", "1")).shape[-2:] == (144, 144)
    assert stain.plate.pixel_um == pytest.approx(1.2)


def test_without_test_wells_a_model_is_made_without_a_score(recipe, tmp_path):
    one = attempt(tmp_path)
    pretrain(recipe("split={test: 0, validation: 0}", "train.steps=2"), one)
    summary = one.run.summary()
    assert summary["figures"] == {"steps": 2}
    assert set(summary["made"]) == {"model", "training curves"}


def test_another_recipe_in_the_same_run_folder_is_refused(recipe, tmp_path):
    one = attempt(tmp_path)
    pretrain(recipe("train.steps=2"), one)
    with pytest.raises(UserError, match="belongs to another recipe"):
        pretrain(recipe("train.steps=3"), attempt(tmp_path, number=1))


def test_a_nan_loss_names_fields_and_leaves_no_checkpoint(recipe, tmp_path):
    one = attempt(tmp_path)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in P01 [BC]0\d/1.*optim.lr"):
        pretrain(recipe("optim={lr: 1.0e+30, schedule: constant, clip_norm: null}"), one)
    assert not one.run.model.exists()
    assert one.run.summary() is None


# ---------------------------------------------------------------- stopped, killed, shared


@pytest.fixture
def start():
    """start(run, recipe, size) -> real processes; those that a failing test leaves are killed."""
    started = []

    def run_ranks(run: Run, recipe: PretrainRecipe, size: int = 1) -> list[subprocess.Popen]:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.recipe.write_text(to_yaml(recipe))
        for rank in range(size):
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(run.folder), str(rank), str(size)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            started.append(process)
        return started

    yield run_ranks
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_asked_to_stop_saves_and_resumes_to_the_same_weights(recipe, done, tmp_path):
    one = attempt(tmp_path)
    told = one.metric

    def metric(step, **values):
        told(step, **values)
        if step == 13:
            one.stopping.set()

    one.metric = metric
    pretrain(recipe("labels=nuclei"), one)
    assert one.run.summary() is None
    assert (one.run.checkpoints / "step-00000014.pt").exists()
    pretrain(recipe("labels=nuclei"), attempt(tmp_path, number=1))
    assert same_weights(one.run, done)


def test_a_run_asked_to_stop_while_it_scores_gives_no_half_result(recipe, tmp_path):
    one = attempt(tmp_path)
    told = one.progress

    def progress(step, total, unit, **values):
        told(step, total, unit, **values)
        if unit == "test fields":
            one.stopping.set()

    one.progress = progress
    pretrain(recipe("train.steps=2"), one)
    assert one.run.summary() is None
    assert not (one.run.folder / "scores.csv").exists()
    pretrain(recipe("train.steps=2"), attempt(tmp_path, number=1))
    assert len(rows(one.run)) == 2


@pytest.mark.kill
def test_killed_in_mid_epoch_and_resumed_gives_the_same_weights_to_the_bit(start, recipe, done, tmp_path):
    run = attempt(tmp_path).run
    [process] = start(run, recipe("labels=nuclei"))
    while len(list(run.metric_lines())) < 40 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    assert not run.done.exists()
    again = attempt(tmp_path, number=1)
    pretrain(recipe("labels=nuclei"), again)
    steps = [
        line["step"] for line in run.metric_lines() if line["attempt"] == 1 and "train/loss" in line["values"]
    ]
    assert 1 < steps[0] <= 80
    assert same_weights(run, done)
    assert rows(run) == rows(done)


@pytest.mark.journey
def test_two_processes_with_loading_processes_train_as_one(start, recipe, tmp_path):
    one, two = (attempt(tmp_path / name).run for name in ("one", "two"))
    processes = start(two, recipe("train.steps=10", "data.workers=1"), size=2)
    pretrain(recipe("train.steps=10"), Attempt(one))
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (
        [line["values"]["train/loss"] for line in run.metric_lines() if "train/loss" in line["values"]]
        for run in (one, two)
    )
    assert second[0] == pytest.approx(first[0], rel=1e-5)
    assert second == pytest.approx(first, rel=2e-2)
    assert [row["well"] for row in rows(two)] == ["B04", "C04"]
    for alone, shared in zip(rows(one), rows(two), strict=True):
        assert float(shared["pcc"]) == pytest.approx(float(alone["pcc"]), abs=0.05)


def same_weights(one: Run, two: Run) -> bool:
    first, second = (load_file(run.model / "weights.safetensors") for run in (one, two))
    return all(torch.equal(first[name], second[name]) for name in second)
