"""Every recipe that is shipped for pretraining loads, and trains on a plate of its kind."""

from pathlib import Path

import pytest
import yaml

from hpc_isl.learning import model
from hpc_isl.mistake import Mistake
from hpc_isl.recipe import digest, load, shipped_names
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.pretrain import plan, pretrain
from hpc_isl.strict import parse, to_yaml

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
    with pytest.raises(Mistake, match="plates: must be given"):
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
