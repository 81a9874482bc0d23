"""How far wells lie from what a model was trained on, without a pixel read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from hpc_isl.learning.data.drift import FAR, NOTICEABLE, drift, reference_of
from hpc_isl.learning.data.rescale import renamed
from hpc_isl.learning.data.view import Role, View
from hpc_isl.plates.plate import Channel, FieldKey
from hpc_isl.plates.store import Index, read_box
from hpc_isl.seeds import stream

MakePlate = Callable[..., Index]
Array = np.ndarray[Any, Any]
VIEW = View(
    sources=(Role("Phase", 1), Role("Phase", "mean")), targets=(Role("Hoechst", "max"),), pixel_um=0.5
)
WELLS = ("B02", "B03", "B04", "C02", "C03", "C04")


def cells(seed: int, level: float = 3000, contrast: float = 400, sigma: float = 1.0) -> Array:
    """(t, c, z, y, x): a label-free image of that brightness, contrast and blur, and a stain."""
    rng = stream(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=(1, 2, 3, 96, 80)), (0, 0, 0, sigma, sigma))
    noise = rng.normal(size=texture.shape) * 0.02
    return np.clip(level + contrast * (texture / texture.std() + noise), 0, 65535).astype(np.uint16)


def plate(make_plate: MakePlate, name: str = "P01", first: int = 0, **changes: Any) -> Index:
    """Six wells of two fields; `changes`: well -> what is different there."""
    keys = [FieldKey(well, field) for well in WELLS for field in ("1", "2")]
    pixels = {k: cells(first + n, **changes.get(k.well, {})) for n, k in enumerate(keys)}
    return make_plate(name=name, wells=WELLS, fields=("1", "2"), pixels=pixels)


def keys_of(index: Index) -> list[FieldKey]:
    return [field.key for field in index.plate.fields]


def drifted(trained: Index, index: Index, view: View = VIEW) -> dict[str, dict[str, Any]]:
    """Well -> its row."""
    reference = reference_of(VIEW, [trained], [keys_of(trained)])
    return {row["well"]: row for row in drift(reference, view, index, keys_of(index))}


def test_wells_like_those_of_training_show_no_drift(make_plate: MakePlate) -> None:
    found = drifted(plate(make_plate), plate(make_plate, "P02", first=100))
    assert list(found) == list(WELLS)
    assert all(row["largest"] < NOTICEABLE and row["fields"] == 2 for row in found.values())


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"sigma": 4.0}, "Phase 1 focus"),
        ({"contrast": 100}, "Phase 1 contrast"),
        ({"contrast": 1500}, "Phase 1 contrast"),
    ],
)
def test_the_changed_fact_of_a_well_is_named(
    make_plate: MakePlate, change: dict[str, Any], where: str
) -> None:
    found = drifted(plate(make_plate), plate(make_plate, "P02", first=100, C03=change))
    far = [well for well, row in found.items() if row["largest"] > FAR]
    assert far == ["C03"]
    assert abs(found["C03"][where]) > FAR
    assert abs(found["C03"][found["C03"]["where"]]) == found["C03"]["largest"]


def test_more_light_at_equal_contrast_is_no_drift(make_plate: MakePlate) -> None:
    brighter = {"level": 9000, "contrast": 1200}
    found = drifted(plate(make_plate), plate(make_plate, "P02", **dict.fromkeys(WELLS, brighter)))
    assert all(row["largest"] < NOTICEABLE for row in found.values())


def test_a_dark_field_drifts_furthest(make_plate: MakePlate) -> None:
    found = drifted(plate(make_plate), plate(make_plate, "P02", B02={"level": 0, "contrast": 0}))
    assert np.isfinite(found["B02"]["largest"])
    assert found["B02"]["largest"] > 10 * FAR


def test_a_z_is_the_distance_of_medians_in_robust_deviations(make_plate: MakePlate) -> None:
    trained, other = plate(make_plate), plate(make_plate, "P02", first=100)

    def contrasts(index: Index, keys: list[FieldKey]) -> Array:
        planes = [
            read_box(index.image(k), 0, 0, 0, [1], slice(None), slice(None)).astype(float) for k in keys
        ]
        return np.log([plane.std() / plane.mean() for plane in planes])

    own = contrasts(trained, keys_of(trained))
    spread = max(stats.median_abs_deviation(own, scale="normal"), 0.05 * abs(np.median(own)))
    well = [FieldKey("B03", "1"), FieldKey("B03", "2")]
    expected = (np.median(contrasts(other, well)) - np.median(own)) / spread
    assert drifted(trained, other)["B03"]["Phase 1 contrast"] == pytest.approx(expected, abs=2e-3)


def test_sharpness_is_not_compared_between_pixels_of_different_size(make_plate: MakePlate) -> None:
    trained = plate(make_plate)
    fine = plate(make_plate, "P02", **{well: {"sigma": 2.0} for well in WELLS})
    half = replace(fine, plate=replace(fine.plate, pixel_um=0.25))
    rows = drifted(trained, half)
    assert not any("focus" in name for row in rows.values() for name in row)
    assert "Phase 1 focus" in drifted(trained, fine)["B02"]


def test_a_plate_with_other_names_is_compared_with_the_same_reference(make_plate: MakePlate) -> None:
    trained = plate(make_plate)
    reference = json.loads(json.dumps(reference_of(VIEW, [trained], [keys_of(trained)])))
    channels = tuple(replace(each, name=f"own {each.name}") for each in trained.plate.channels)
    there = replace(trained, plate=replace(trained.plate, channels=channels))
    view = renamed(VIEW, {"Phase": "own Phase"})
    assert drift(reference, view, there, keys_of(there)) == drift(reference, VIEW, trained, keys_of(trained))


def test_fields_without_a_source_are_left_out(make_plate: MakePlate) -> None:
    trained = plate(make_plate)
    reference = reference_of(VIEW, [trained], [keys_of(trained)])
    blind = make_plate(name="P02", channels=(Channel("DIC"), Channel("Hoechst")))
    assert drift(reference, VIEW, blind, keys_of(blind)) == []
    assert reference_of(VIEW, [blind], [keys_of(blind)]) == {}
    assert set(reference) == {"Phase 1", "Phase mean"}
