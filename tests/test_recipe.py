"""Recipes: shipped ones are legal, digests say what is computed and not where."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpc_isl.errors import UserError
from hpc_isl.recipes.load import RECIPES, digest, load, shipped, shipped_names
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import override, parse, read_yaml, to_yaml

PLATE = ["plates=[P1.zarr]", "sources=[{channel: BF}]", "targets=[{channel: DAPI, plane: max}]"]


def pretrain(*words: str) -> PretrainRecipe:
    recipe = load("pretrain", None, [*PLATE, *words])
    assert isinstance(recipe, PretrainRecipe)
    return recipe


INPUTS = {
    "convert": ["source=export", "out=P1.zarr"],
    "adopt": ["plate=P1.zarr"],
    "annotate": ["action=draft", "plate=P1.zarr", "labels=nuclei", "channel=DAPI"],
    "pretrain": PLATE,
    "finetune": ["plates=[P1.zarr]", "labels=nuclei"],
    "segment": ["model=nuc", "plates=[P1.zarr]"],
}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipes_are_legal_once_their_inputs_are_given(name: str) -> None:
    content = read_yaml(shipped(name))
    swept = {key: content.pop(key) for key in ("stage", "over") if key in content}
    keys = {stage: set(kind.model_fields) for stage, kind in RECIPES.items()}
    stage = (
        Path(name).stem
        if Path(name).stem in RECIPES
        else max(keys, key=lambda s: len(keys[s] & set(content)))
    )
    words = [word for word in INPUTS[stage] if word.split("=")[0] not in content]
    assert parse(RECIPES[swept.get("stage", stage)], override(content, words), name)


def test_a_recipe_survives_its_run_folder() -> None:
    recipe = pretrain("train.steps=7", "split.hold_out={cell_line: [HeLa]}")
    assert parse(PretrainRecipe, yaml.safe_load(to_yaml(recipe)), "x") == recipe


def test_one_plate_need_not_be_a_list() -> None:
    assert pretrain("plates=P1.zarr").plates == [Path("P1.zarr")]


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "segment"])
def test_plates_that_are_null_are_refused_by_that_name(stage: str) -> None:
    with pytest.raises(UserError, match="plates: Input should be a valid list; got None"):
        load(stage, None, [*INPUTS[stage], "plates=null"])


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("train.epochs=3", "give either steps or epochs"),
        ("train.micro_batch=15", "does not divide batch"),
        ("train.crop=100", "not a multiple of 32"),
        ("sources=[{channel: BF, plane: focsu}]", "a plane is a number"),
        ("sources=[]", "sources is empty"),
        ("split.test=1.5", "less than or equal to 1"),
        ("data.normalize.source=standart", "'standard'"),
        ("optim.lr=.nan", "finite"),
    ],
)
def test_values_that_cannot_be_are_refused(word: str, messages: str) -> None:
    with pytest.raises(UserError, match=messages):
        pretrain(*(["train.steps=9"] if "epochs" in word else []), word)


def test_a_recipe_file_that_is_not_there_is_named_with_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean 'pretrain\.yaml'"):
        load("pretrain", Path("pretrian.yaml"), [])


def test_a_digest_follows_what_is_computed_and_not_where_it_lies() -> None:
    here, there = pretrain("plates=[/here/P1.zarr]"), pretrain("plates=[/there/P1.zarr]")
    assert digest(here, {"P1": "abc"}) == digest(there, {"P1": "abc"})
    assert digest(here, {"P1": "abc"}) != digest(here, {"P1": "abd"})
    assert digest(here) != digest(pretrain("train.seed=1"))


def test_sites_are_no_recipes() -> None:
    assert not [name for name in shipped_names() if name.startswith("sites")]


@pytest.mark.parametrize(
    ("stage", "given", "meant"),
    [
        ("pretrain", "train.lr=1", "'optim.lr'"),
        ("pretrain", "optim.steps=1", "'train.steps'"),
        ("pretrain", "train.step=1", "'steps'"),
        ("pretrain", "weight_decay=1", "'optim.weight_decay'"),
        ("finetune", "train.kind=cells", "'objects.kind'"),
        ("segment", "predict.workers=1", None),
    ],
)
def test_a_key_in_the_wrong_place_is_answered_with_the_right_one(
    stage: str, given: str, meant: str | None
) -> None:
    """A user who types train.lr reads that it is optim.lr: the nearest key of the whole recipe."""
    with pytest.raises(UserError) as said:
        load(stage, None, [given])
    line = next(line for line in str(said.value).splitlines() if "no such key" in line)
    assert (f"did you mean {meant}?" in line) == (meant is not None)
