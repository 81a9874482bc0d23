"""Small plates, written as `convert` writes them."""

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
from hpc_isl.seeds import stream

MakePlate = Callable[..., Index]


def cells(shape: tuple[int, int, int, int, int], seed: int) -> np.ndarray[Any, Any]:
    """(t, c, z, y, x) uint16: bright spots on an uneven ground; a plane of its own for each z."""
    rng = stream(seed, "cells")
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    ground = 200 + 0.5 * y + 0.25 * x
    pixels = np.empty(shape, np.uint16)
    for place in np.ndindex(*shape[:3]):
        spots = np.zeros(shape[-2:])
        for cy, cx in rng.uniform(0, shape[-2:], (6, 2)):
            spots += 3000 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 30)
        pixels[place] = ground + spots + rng.normal(0, 10, shape[-2:])
    return pixels


def _places(
    shape: tuple[int, ...], existing: Mapping[int, tuple[int, ...]] | None
) -> list[tuple[int, int, int]] | None:
    """channel -> its planes, as places (time, channel, plane)."""
    times, channels, depth = shape[:3]
    return existing and [
        (t, c, z) for t in range(times) for c in range(channels) for z in existing.get(c, range(depth))
    ]


@pytest.fixture
def make_plate(tmp_path: Path) -> MakePlate:
    """make_plate(name, wells=…, fields=…, shape=…, channels=…, pixels={key: array}, …) -> Index."""

    def make(
        name: str = "P01",
        wells: tuple[str, ...] = ("B02", "B03", "C02"),
        fields: tuple[str, ...] = ("1",),
        shape: tuple[int, int, int, int, int] = (1, 2, 3, 96, 80),
        channels: tuple[Channel, ...] = (Channel("Phase", fluorescent=False), Channel("Hoechst")),
        pixels: Mapping[FieldKey, np.ndarray[Any, Any]] = {},
        existing: Mapping[int, tuple[int, ...]] | None = None,
        plate_map: Mapping[str, Mapping[str, str]] = {},
        acquisitions: tuple[int, ...] = (0,),
        levels: int | None = 3,
        pixel_um: float | None = 0.5,
        z_um: tuple[float, ...] = (),
        chunk: int = 32,
    ) -> Index:
        keys = [FieldKey(well, field, a) for well in wells for field in fields for a in acquisitions]
        arrays = {key: pixels.get(key, cells(shape, seed)) for seed, key in enumerate(keys)}
        rows, columns = layout(set(wells))
        plate = Plate(
            name=name, rows=rows, columns=columns, channels=channels, pixel_um=pixel_um,
            fields=tuple(Field(key, a.shape, a.dtype.name, z_um=z_um) for key, a in arrays.items()),
            acquisitions={a: str(a) for a in acquisitions},
        )  # fmt: skip
        path = tmp_path / f"{name}.zarr"
        for field in plate.fields:
            array = arrays[field.key]
            write_field(
                path,
                plate,
                field,
                array,
                measure(array, _places(array.shape, existing)),
                CodecRecipe(chunk=chunk),
                levels,
            )
        return finalise(path, plate, plate_map)

    return make
