"""Two exports of one plate become one plate of two acquisitions, whose shifts are measured and applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moved_plates import PITCH, write_pass

from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.recipes.strict import parse
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.stage import convert
from hpc_isl.stages.synthetic.layout import BRIGHTFIELD, CELLMASK, HOECHST


def recipe(out: Path, *sources: Path, **given: Any) -> ConvertRecipe:
    whole = {"source": list(sources), "out": out, "codec": {"chunk": 64}} | given
    return parse(ConvertRecipe, whole, "the recipe")


def merged(folder: Path, *sources: Path, **given: Any) -> Index:
    what = recipe(folder / "P.zarr", *sources, **given)
    convert(what, Attempt(Run(folder / "runs" / "convert" / "P")))
    return open_plate(what.out)


def states(index: Index) -> dict[str, str]:
    assert index.registration is not None
    return {str(key): own.state for key, own in index.registration.shifts.items()}


def jitter(well: str, field: int) -> tuple[int, int]:
    """Where the fields of the second pass lie: all of them moved, and each a little for itself."""
    return 17 + field % 2, -9 + int(well[1:]) % 2


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A live pass, and a stained one with its fields numbered backwards, one of which is another well's."""
    folder = tmp_path_factory.mktemp("exports")
    live = write_pass(folder / "live", [BRIGHTFIELD], wells=3, fields=2, heights=(-4.0, 4.0))
    stained = write_pass(
        folder / "stained", [BRIGHTFIELD, HOECHST], wells=3, fields=2, heights=(-4.0, 4.0), move=jitter,
        reverse=True, stranger=("B04", 2), noise="second",
    )  # fmt: skip
    return live, stained


@pytest.fixture(scope="module")
def plate(exports: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Index:
    return merged(tmp_path_factory.mktemp("merged"), *exports)


def test_fields_are_matched_by_position_and_their_shifts_come_back(plate: Index) -> None:
    assert plate.plate.acquisitions == {0: "live", 1: "stained"}
    assert plate.registration is not None
    for well in ("B02", "B03", "B04"):
        for field in (1, 2):
            if (well, field) == ("B04", 2):
                continue
            found = plate.shift(FieldKey(well, str(field)), FieldKey(well, str(field), 1))
            assert found is not None
            assert np.abs(np.subtract(found, jitter(well, field))).max() <= 1
    assert plate.field(FieldKey("B02", "1", 1)).details["field_of_export"] == "2"


def test_a_field_that_shows_another_well_is_rejected(plate: Index) -> None:
    assert {key for key, state in states(plate).items() if state == "rejected"} == {"B04/1x2"}
    assert plate.shift(FieldKey("B04", "2"), FieldKey("B04", "2", 1)) is None


def test_bright_field_is_registered_against_stains_alone(exports: tuple[Path, Path], tmp_path: Path) -> None:
    stained = write_pass(
        tmp_path / "stained", [HOECHST, CELLMASK], wells=3, fields=2, move=lambda well, field: (-23, 31)
    )
    index = merged(tmp_path, exports[0], stained)
    assert set(states(index).values()) == {"measured"}
    for field in (field.key for field in index.plate.fields if field.key.acquisition == 0):
        found = index.shift(field, FieldKey(field.well, field.name, 1))
        assert found is not None
        assert np.abs(np.subtract(found, (-23, 31))).max() <= 1


def test_a_plate_that_is_turned_by_a_third_of_a_degree_is_modelled(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    def turned(well: str, field: int) -> tuple[int, int]:
        # About the middle well: the others rise and sink.
        return round((int(well[1:]) - 3) * PITCH * np.sin(np.deg2rad(0.3))), 5

    stained = write_pass(
        tmp_path / "stained", [BRIGHTFIELD], wells=3, fields=2, heights=(-4.0, 4.0), move=turned, degrees=0.3,
        noise="second",
    )  # fmt: skip
    index = merged(tmp_path, exports[0], stained)
    assert index.registration is not None
    model = index.registration.models[1]
    assert model is not None
    assert model["degrees"] == pytest.approx(0.3, abs=0.01)
    assert set(states(index).values()) == {"measured"}
    for own in index.registration.shifts.values():
        assert own.shift is not None
        assert np.abs(np.subtract(own.shift, turned(own.key.well, 1))).max() <= 1
