"""Every recipe that is shipped loads, and those that train do so on a plate of their kind."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from hpc_isl.cluster.submit import sweep
from hpc_isl.errors import UserError
from hpc_isl.learning.network import model
from hpc_isl.plates.store import write_labels
from hpc_isl.recipes.load import digest, load, shipped, shipped_names
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import parse, to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site
from hpc_isl.stages.finetune import stage as finetune
from hpc_isl.stages.pretrain.stage import plan, pretrain

PLATES = {
    "pretrain.yaml": {"label_free": ("Brightfield",), "stains": ("HOECHST 33342",), "planes": 3},
    "paper/nuclei_pretrain.yaml": {
        "label_free": ("Brightfield", "Digital Phase Contrast"), "stains": ("DAPI",), "planes": 4,
    },
    "paper/cells_pretrain.yaml": {"label_free": ("DIC",), "stains": ("CellMask",), "planes": 5},
    "small_pretrain.yaml": {"label_free": ("phase",), "stains": ("nuclear",), "planes": 1},
}  # fmt: skip
SIZE = [
    "net.weights=null", "net.encoder=tu-test_resnet", "net.decoder=[16,8,8,4,4]", "train.crop=32",
    "train.steps=1",
    "train.epochs=null", "train.batch=4", "train.micro_batch=2", "train.precision=fp32", "data.workers=0",
]  # fmt: skip
# The plate of these tests has a plane every 2 µm at most, and few fields.
FIT = {
    "pretrain.yaml": ["sources.0.plane=0", "sources.1.plane=2"],
    "paper/nuclei_pretrain.yaml": ["split.test=0.2"],
    "paper/cells_pretrain.yaml": [],
    "small_pretrain.yaml": ["data.level=0"],
}


def test_all_pretrain_recipes_are_tried_here():
    assert {name for name in shipped_names() if name.endswith("pretrain.yaml")} == set(PLATES)


@pytest.mark.parametrize("name", PLATES)
def test_a_shipped_recipe_is_whole_but_for_its_plates(name, tmp_path):
    with pytest.raises(UserError, match="plates: must be given"):
        load("pretrain", Path(name), [])
    recipe = load("pretrain", Path(name), ["plates=[P01.zarr]"])
    again = parse(PretrainRecipe, yaml.safe_load(to_yaml(recipe)), "again")
    assert again == recipe
    assert digest(again) == digest(recipe)


@pytest.mark.parametrize("name", PLATES)
def test_a_shipped_recipe_trains_one_step_on_a_plate_of_its_kind(name, tmp_path, write_stained_plate):
    write_stained_plate(tmp_path / "P01.zarr", size=64, **PLATES[name])
    recipe = load("pretrain", Path(name), [f"plates=[{tmp_path}/P01.zarr]", *SIZE, *FIT[name]])
    attempt = Attempt(Run(tmp_path / "runs" / "pretrain" / "a"))
    pretrain(plan(recipe).recipe, attempt)
    assert attempt.run.summary()["figures"]["steps"] == 1
    _, contract = model.load(attempt.run.model)
    unit = contract.wells["train"]["P01"][0]
    assert ("/" in unit) == (recipe.split.by == "field")


def test_the_papers_recipe_is_the_papers():
    nuclei = load("pretrain", Path("paper/nuclei_pretrain.yaml"), ["plates=[x]"])
    assert (nuclei.optim.name, nuclei.optim.lr, nuclei.optim.betas) == ("adam", 0.1, (0.5, 0.999))
    of = nuclei.train
    assert (of.epochs, of.batch, of.micro_batch, of.crop, of.crops_per_field) == (1000, 10, 10, 512, 5)
    assert (nuclei.net.encoder, nuclei.net.weights, nuclei.loss.name) == ("densenet121", "imagenet", "l1")
    assert (nuclei.data.normalize.source, nuclei.data.normalize.target) == ("standard", "none")
    assert (nuclei.data.foreground.threshold, nuclei.data.foreground.fraction) == (5000, 0)
    cells = load("pretrain", Path("paper/cells_pretrain.yaml"), ["plates=[x]"])
    assert cells.optim == nuclei.optim
    assert cells.train == nuclei.train
    assert [(s.channel, s.plane) for s in cells.sources] == [("DIC", [0, 2, 4])]


# ---------------------------------------------------------------- fine-tuning and its sweeps

FINETUNE = [
    "finetune_nuclei.yaml",
    "finetune_cells.yaml",
    "paper/nuclei_finetune.yaml",
    "paper/cells_finetune.yaml",
]
SWEEPS = [
    "sweep_nuclei.yaml",
    "sweep_cells.yaml",
    "paper/sweep_nuclei.yaml",
    "paper/sweep_cells.yaml",
    "demo_sweep.yaml",
]
ONE_STEP = ["train.steps=1", "train.crop=32", "train.batch=2", "train.micro_batch=2", "train.precision=fp32"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, write_stained_plate):
    """An ISL run of one step, of random weights, and the plate with labels that it learnt from."""
    folder = tmp_path_factory.mktemp("pretrained")
    index = write_stained_plate(folder / "P01.zarr", size=64)
    squares = np.zeros((64, 64), np.uint32)
    squares[8:24, 8:24], squares[30:50, 30:50] = 1, 2
    for field in index.plate.fields:
        write_labels(index.image(field.key), "nuclei", squares, origin="human", boxes=[(0, 0, 64, 64)])
    keys = ["sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst}]", "predict.stain=false"]
    recipe = load("pretrain", None, [f"plates=[{folder}/P01.zarr]", *keys, *SIZE, "split.test=0.3"])
    attempt = Attempt(Run(folder / "runs" / "pretrain" / "S12"))
    pretrain(plan(recipe).recipe, attempt)
    return folder


def given(folder):
    return [f"plates=[{folder}/P01.zarr]", f"pretrained=[{folder}/runs/pretrain/S12]", "labels=nuclei"]


def test_all_recipes_are_tried_somewhere():
    others = {"annotate.yaml", "convert.yaml", "demo.yaml", "segment.yaml"}
    assert set(shipped_names()) == others | set(PLATES) | set(FINETUNE) | set(SWEEPS) | patterns()


def patterns():
    return {name for name in shipped_names() if name.startswith("patterns/")}


@pytest.mark.parametrize("name", FINETUNE)
def test_a_shipped_recipe_of_finetune_takes_one_step_and_scores(name, pretrained, tmp_path):
    recipe = load("finetune", Path(name), [*given(pretrained), *ONE_STEP, "arm=random+isl", "n=1"])
    attempt = Attempt(Run(tmp_path / "runs" / "finetune" / "a"))
    finetune.finetune(finetune.plan(recipe).recipe, attempt)
    figures = attempt.run.summary()["figures"]
    assert (figures["steps"], figures["boxes"], figures["objects"]) == (1, 1, 2)
    assert 0 <= figures["iou"] <= 1
    assert model.load(attempt.run.model)[1].task.kind in name


@pytest.mark.parametrize("name", SWEEPS)
def test_a_shipped_sweep_loads_and_ends_with_the_final_model(name, pretrained, tmp_path):
    keys = [*given(pretrained), *ONE_STEP] + (["over.arm=[random, random+isl]"] if "paper" in name else [])
    order = sweep.sweep_request(shipped(name), keys, Site(), None)
    made = finetune.arrange(order.elements, tmp_path)
    assert list(made.elements)[-1] == made.last == "final"
    arms = {each.arm for each in made.elements.values()}
    assert arms == {"random", "random+isl", "best"}
    for element in [each for each in made.elements.values() if each.n == 1][:2]:
        assert finetune.plan(element).recipe.n == 1


def test_the_papers_fine_tuning_is_the_papers():
    nuclei = load("finetune", Path("paper/nuclei_finetune.yaml"), ["plates=[x]", "labels=y"])
    cells = load("finetune", Path("paper/cells_finetune.yaml"), ["plates=[x]", "labels=y"])
    assert (nuclei.optim.name, nuclei.optim.lr) == ("adam", 0.01)
    assert (nuclei.objects.kind, nuclei.objects.head, nuclei.train.crop) == ("nuclei", "paper", 512)
    assert (cells.objects.kind, cells.objects.alpha, cells.objects.h_maxima, cells.objects.scale) == (
        "cells", 2000, 10, "object",
    )  # fmt: skip
    assert nuclei.objects.min_area == cells.objects.min_area == 0, "the paper drops nothing"
    sweeps = [yaml.safe_load(shipped(f"paper/sweep_{kind}.yaml").read_text()) for kind in ("nuclei", "cells")]
    assert [each["objects"]["min_area"] for each in sweeps] == [0, 0]
    sweeps = [each["over"] for each in sweeps]
    assert [each["n"] for each in sweeps] == [[1, 10, 50, 100, 200, 500], [1, 10, 50, 80]]
    assert all(each["arm"] == ["imagenet", "imagenet+isl"] for each in sweeps)
