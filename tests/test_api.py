"""The public API: every example of docs/api.md, and its agreement with what the stages compute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from former_version import unpack

import hpc_isl
from hpc_isl.errors import UserError

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = unpack(tmp_path_factory.mktemp("api"))
    command = [sys.executable, "-m", "hpc_isl.submit", "resume", "isl"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def plate(folder: Path) -> Any:
    return hpc_isl.open_plate(folder / "plate.zarr")


def test_every_example_of_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "runs" / "segment" / "objects").rename(folder / "half-objects")
    (folder / "whole").rename(folder / "runs" / "segment" / "objects")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) > 4
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["labels"].dtype == np.uint32
    assert set(names["wells"].well) == set(names["plate"].wells)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "[name for name in ('torch', 'zarr', 'pandas', 'dask', 'numpy') if name in sys.modules]"
    code = f"import hpc_isl, sys; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_all_public_names_are_there() -> None:
    assert {name for name in hpc_isl.__all__ if getattr(hpc_isl, name)} == set(hpc_isl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'open_plates'"):
        hpc_isl.open_plates  # noqa: B018


def test_a_plate_is_its_fields_in_order(plate: Any) -> None:
    fields = list(plate)
    assert [f"{field.well}/{field.name}" for field in fields] == [str(field._key) for field in plate.fields]
    assert len(plate) == len(fields) == 4
    assert plate["B02"][0].path == plate["b2/1"].path


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (lambda p: p["B22"], r"has no well 'B22'; did you mean 'B02'\? There are: 'B02'"),
        (lambda p: p["B02/7"], r"has no field 'B02/7'; did you mean 'B02/1'\? There are: 'B02/1'"),
        (lambda p: p["B02/1"].read("Brightfeld"), "did you mean 'Brightfield'"),
        (lambda p: p["B02/1"].read("Brightfield", plane="maximum"), "plane 'maximum': a number, max,"),
        (lambda p: p["B02/1"].read("Brightfield", level=9), "levels 0 to .*, not level 9 at time 0"),
        (lambda p: p["B02/1"].read("Brightfield", box=(8, 1, 8, 9)), r"box \(8, 1, 8, 9\) .* is empty"),
        (lambda p: p["B02/1"].read("Brightfield", box=(0, 0, 9999, 9)), "leaves the .* pixels of level 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_what_would_be_right(plate: Any, mistake: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        mistake(plate)


def test_a_plate_is_asked_by_names(plate: Any) -> None:
    with pytest.raises(TypeError, match=r"plate\[0\]: a name such as 'B03'"):
        plate[0]


def test_pixels_are_those_of_the_store(plate: Any) -> None:
    field = plate["B02/1"]
    lazy = field.to_dask()
    assert lazy.shape == field.shape
    whole = field.read("HOECHST 33342", plane=0)
    np.testing.assert_array_equal(lazy[0, 1, 0].compute(), whole)
    np.testing.assert_array_equal(
        field.read("HOECHST 33342", plane=0, box=(10, 20, 30, 50)), whole[10:30, 20:50]
    )
    np.testing.assert_array_equal(field.read("HOECHST 33342", plane="focus+0um"), whole)
    named = field.to_xarray()
    np.testing.assert_array_equal(named.sel(c="HOECHST 33342")[0, 0], whole)
    np.testing.assert_allclose(np.diff(named.x), plate.pixel_um)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"channel": "Hoechst"}, "no channel 'Hoechst'; there are: 'Brightfield', 'HOECHST 33342'"),
        ({"channel": "Brightfield", "plane": 7}, "there are the planes 0"),
        ({"channel": "Brightfield", "level": 9}, "not level 9"),
        ({"channel": "Brightfield", "time": 1}, "not level 0 at time 1"),
    ],
)
def test_what_is_not_there_is_named(plate: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plate["B02/1"].read(**words)


def test_a_model_segments_as_the_verb_does(folder: Path, plate: Any) -> None:
    words = (
        "segment",
        "model=cells",
        "plates=[plate.zarr]",
        "labels=again",
        "site.cpus=1",
        "site.tracking=none",
    )
    subprocess.run(
        [sys.executable, "-m", "hpc_isl.submit", *words], cwd=folder, check=True, capture_output=True
    )
    model = hpc_isl.load_model(folder / "runs" / "sweep" / "cells")
    fields = list(hpc_isl.open_plate(folder / "plate.zarr"))
    assert any(field.labels("again").any() for field in fields)
    for field in fields:
        np.testing.assert_array_equal(model.segment(field), field.labels("again"))
