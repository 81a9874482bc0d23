"""Which reader a recipe gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_isl.mistake import Mistake
from hpc_isl.plates.readers import detect
from hpc_isl.recipes.plates import ConvertRecipe

PATTERN = {"regex": r"(?P<well>\w+)\.tif"}


def recipe(source: Path, **more: Any) -> ConvertRecipe:
    return ConvertRecipe.model_validate({"source": source, "out": "x.zarr", **more})


def test_a_harmony_export_is_recognised_and_may_be_renamed(tmp_path: Path, harmony_export: Any) -> None:
    harmony_export.write(tmp_path, [harmony_export.shot()])
    assert detect.read(recipe(tmp_path)).plate.name == "P 01"
    assert detect.read(recipe(tmp_path, name="mine")).plate.name == "mine"


def test_a_pattern_is_used_where_one_is_given(images: Callable[..., Path]) -> None:
    folder = images("A01.tif")
    for reader in ("auto", "pattern"):
        assert detect.read(recipe(folder, reader=reader, pattern=PATTERN)).plate.wells == ("A01",)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "There are: 'A01.tif'"),
        ({"reader": "harmony"}, "no Harmony index"),
        ({"reader": "pattern"}, "needs pattern.regex or pattern.table"),
    ],
)
def test_what_was_looked_for_is_said(images: Callable[..., Path], more: dict[str, str], said: str) -> None:
    with pytest.raises(Mistake) as mistake:
        detect.read(recipe(images("A01.tif"), **more))
    assert said in str(mistake.value)


def test_a_source_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="nowhere is not a folder"):
        detect.read(recipe(tmp_path / "nowhere"))
