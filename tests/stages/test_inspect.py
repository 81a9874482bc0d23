"""`inspect` tells what a plate holds; `validate` finds what was broken on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, Problem, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field, write_labels
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.stages.inspect import inspect, validate

KEY = FieldKey("B02", "1")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    rows, columns = layout({"B02", "C05"})
    keys = [KEY, FieldKey("C05", "1")]
    shape = (1, 2, 2, 70, 90)
    plate = Plate(
        "P01", rows, columns, (Channel("Phase", False), Channel("DAPI")),
        tuple(Field(key, shape, "uint16") for key in keys), 0.5, None, details={"instrument": "Phenix"},
    )  # fmt: skip
    path = tmp_path / "P01.zarr"
    for seed, field in enumerate(plate.fields):
        pixels = np.random.default_rng(seed).gamma(2, 40, shape).astype("uint16")
        write_field(path, plate, field, pixels, measure(pixels), CodecRecipe(chunk=32), 2)
    found = finalise(
        path, plate, {"B02": {"dose": "1"}}, [Problem(FieldKey("C05", "2"), "x.tif is truncated")]
    )
    write_labels(found.image(KEY), "my cells", np.ones((70, 90), int), origin="human", boxes=[(0, 0, 9, 9)])
    return found


def test_a_plate_is_described_in_a_persons_words(index: Index) -> None:
    output = "\n".join(inspect(index.path))
    for part in (
        f"P01, fingerprint {index.fingerprint}",
        "2 of 96, B02 to C05",
        "70 × 90 uint16, channels 2, planes 2, times 1 (fields: 2)",
        "pixel 0.5 µm, distance of planes unknown, levels 2",
        "Phase  label-free",
        "DAPI   fluorescent",
        "empty in DAPI: B02/1, C05/1",
        "'my cells' (human), annotation boxes: 1; fields B02/1",
        "dose: 1 (1)",
        "C05/2: x.tif is truncated",
        "Phenix",
    ):
        assert part in output


def test_a_missing_plate_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such plate"):
        inspect(tmp_path / "none.zarr")
    assert validate(tmp_path / "none.zarr") == [f"{tmp_path / 'none.zarr'}: there is no such plate"]


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_plate_has_no_problems(index: Index, deep: bool) -> None:
    assert validate(index.path, deep) == []


def shard(index: Index, level: int) -> Path:
    return next(p for p in (index.image(KEY) / str(level) / "c").rglob("*") if p.is_file())


def remove_shard(index: Index) -> None:
    shard(index, 1).unlink()


def remove_level(index: Index) -> None:
    shutil.rmtree(index.image(KEY) / "1")


def remove_image(index: Index) -> None:
    shutil.rmtree(index.image(KEY))


def change_record(index: Index) -> None:
    path = index.image(KEY) / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["hpc_isl"]["statistics"]["digest"] = "0" * 32
    path.write_text(json.dumps(content))


def leave_partial(index: Index) -> None:
    (index.path / "B" / "02" / ".2.partial-1-abc").mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove_shard, "B02/1: level 1: shard 0/0/0/0 is missing"),
        (remove_level, "not valid OME-Zarr"),
        (remove_image, "not valid OME-Zarr"),
        (change_record, "B02/1: the index differs"),
        (leave_partial, "left by a killed process"),
    ],
)
def test_each_damage_is_named(index: Index, harm: Callable[[Index], None], message: str) -> None:
    harm(index)
    assert any(message in problem for problem in validate(index.path)), validate(index.path)


def test_deep_validation_finds_changed_pixels(index: Index) -> None:
    pixels = np.random.default_rng(9).gamma(2, 40, (1, 2, 2, 70, 90)).astype("uint16")
    content = (index.image(KEY) / "zarr.json").read_bytes()
    write_field(
        index.path,
        index.plate,
        index.field(KEY),
        pixels,
        measure(pixels),
        CodecRecipe(chunk=32),
        2,
        overwrite=True,
    )
    (index.image(KEY) / "zarr.json").write_bytes(content)
    assert validate(index.path) == []
    assert validate(index.path, deep=True) == [
        "B02/1: its pixels are not those that were converted: the digest differs"
    ]


def test_deep_validation_finds_a_shard_that_does_not_decode(index: Index) -> None:
    path = shard(index, 1)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    (problem,) = validate(index.path, deep=True)
    assert problem.startswith("B02/1: level 1 cannot be decoded")
