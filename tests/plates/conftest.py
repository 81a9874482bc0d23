"""Plates made by hand for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe

CODEC = CodecRecipe(chunk=32)
MakePlate = Callable[..., tuple[Index, dict[FieldKey, np.ndarray]]]


def pixels_of(shape: tuple[int, ...], seed: int = 0, dtype: str = "uint16") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).gamma(2, 40, shape).astype(dtype)


def plate_of(*shapes: tuple[int, int, int, int, int], **facts: Any) -> Plate:
    """A plate with one field per shape, in wells B02, B03, … with two channels or as `channels` says."""
    keys = facts.pop("keys", None) or [FieldKey(f"B{at + 2:02d}", "1") for at in range(len(shapes))]
    rows, columns = layout({key.well for key in keys})
    dtype = facts.pop("dtype", "uint16")
    place = facts.pop("position_um", (-120.5, 33.0))
    z_um = facts.pop("z_um", (2.0, 6.0, 10.0))
    fields = tuple(
        Field(key, shape, dtype, place, z_um[: shape[2]], {"time": "2026-01-01T00:00:00"})
        for key, shape in zip(keys, shapes, strict=True)
    )
    named = (Channel("Brightfield", fluorescent=False), Channel('HOECHST "33342"', color="0000FF"))
    whole = {"pixel_um": 0.5, "plane_um": 4.0, "channels": named, "details": {"instrument": "Phenix"}}
    return Plate("P01", rows, columns, fields=fields, **(whole | facts))


@pytest.fixture
def make_plate(tmp_path: Path) -> MakePlate:
    """make_plate(shape, …, **facts of the plate) -> the finished plate's index, and its pixels by field.

    Without shapes there is one field, B02/1, of 2 channels and 3 planes.
    """

    def make(
        *shapes: tuple[int, int, int, int, int],
        path: Path = tmp_path / "P01.zarr",
        codec: CodecRecipe = CODEC,
        levels: int | None = 3,
        plate_map: Mapping[str, Mapping[str, str]] = {},
        **facts: Any,
    ) -> tuple[Index, dict[FieldKey, np.ndarray]]:
        plate = plate_of(*(shapes or ((1, 2, 3, 70, 90),)), **facts)
        pixels = {f.key: pixels_of(f.shape, seed, f.dtype) for seed, f in enumerate(plate.fields)}
        for field in plate.fields:
            array = pixels[field.key]
            write_field(path, plate, field, array, measure(array), codec, levels)
        return finalise(path, plate, plate_map), pixels

    return make
