"""Images of bioformats2raw side by side become a plate by OME-XML or by a table, and by nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_plates import snapshot, whole, write_series

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.adopt.stage import adopt, plan
from hpc_isl.stages.convert import stage as converting
from hpc_isl.stages.inspect import inspect

KEYS = [FieldKey(well, name) for well in ("B02", "C11") for name in ("0", "1")]
XML = "OME/METADATA.ome.xml"


@pytest.fixture
def index(make_plate: Callable[..., Any], tmp_path: Path) -> Index:
    return make_plate(*[(1, 2, 3, 70, 90)] * 4, path=tmp_path / "ours" / "P01.zarr", keys=KEYS)[0]


def adopted(other: Path, *words: str) -> Index:
    before = snapshot(other)
    planned = plan(load("adopt", None, [f"plate={other}", *words]))
    adopt(planned.recipe, Attempt(Run(other.parent / "runs" / "adopt" / "P01")))
    assert snapshot(other) == before
    return open_plate(other)


def table(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows))
    return f"wells={path}"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [True, False])
def test_ome_xml_puts_images_into_wells(index: Index, tmp_path: Path, version: str, listed: bool) -> None:
    found = adopted(write_series(index, tmp_path / "P01.zarr", version, listed=listed))
    assert (found.plate.name, found.plate.rows, found.plate.columns) == (
        "P01", index.plate.rows, index.plate.columns,
    )  # fmt: skip
    assert [field.key for field in found.plate.fields] == KEYS
    for key in KEYS:
        np.testing.assert_array_equal(whole(found, key), whole(index, key))
        assert found.statistics[key].planes == index.statistics[key].planes
    assert found.plate.pixel_um == index.plate.pixel_um


def test_such_images_are_described_and_converted(index: Index, tmp_path: Path) -> None:
    other = write_series(index, tmp_path / "P01.zarr")
    assert f"adopt {other}" in "\n".join(inspect(other))
    recipe = ConvertRecipe.model_validate({"source": other, "out": tmp_path / "new.zarr"})
    converting.convert(recipe, Attempt(Run(tmp_path / "runs" / "convert" / "new")))
    new = open_plate(tmp_path / "new.zarr")
    for key in KEYS:
        np.testing.assert_array_equal(whole(new, key), whole(index, key))


def test_a_table_puts_images_into_wells_by_folder_or_by_name(index: Index, tmp_path: Path) -> None:
    other = write_series(index, tmp_path / "P01.zarr", wells=False)
    with pytest.raises(UserError, match=r"wells=FILE\.csv with columns image \(0, 1, … or the name"):
        plan(load("adopt", None, [f"plate={other}"]))
    given = table(tmp_path / "w.csv", "image,well,field", "3,b2,a", "scan 2,B2,b", "0,D12,")
    messages = plan(load("adopt", None, [f"plate={other}", given])).messages
    assert "images that belong to no well are left out: 1" in messages
    found = adopted(other, given)
    assert [str(field.key) for field in found.plate.fields] == ["B02/a", "B02/b", "D12/0"]
    for field, key in zip(found.plate.fields, (KEYS[0], KEYS[1], KEYS[3]), strict=True):
        np.testing.assert_array_equal(whole(found, field.key), whole(index, key))


def test_a_changed_description_is_noticed(index: Index, tmp_path: Path) -> None:
    other = write_series(index, tmp_path / "P01.zarr")
    adopted(other)
    text = (other / XML).read_text()
    (other / XML).write_text(text.replace('Row="1"', 'Row="3"'))
    with pytest.raises(UserError, match="its metadata changed since it was adopted; measure it anew"):
        open_plate(other)
    assert {field.key.well for field in adopted(other).plate.fields} == {"D02", "C11"}


def test_passes_are_those_of_the_samples(index: Index, tmp_path: Path) -> None:
    other = write_series(index, tmp_path / "P01.zarr")
    references = "".join(f'<WellSampleRef ID="WellSample:0:{number}"/>' for number in (0, 2))
    passes = (
        f'<PlateAcquisition ID="A:0"/><PlateAcquisition ID="A:1" Name="late">{references}</PlateAcquisition>'
    )
    text = (other / XML).read_text()
    (other / XML).write_text(text.replace("</Plate>", f"{passes}</Plate>"))
    found = adopted(other)
    assert [str(field.key) for field in found.plate.fields] == ["B02/0", "B02/1x0", "C11/0", "C11/1x0"]
    assert found.plate.acquisitions == {0: "A:0", 1: "late"}
    np.testing.assert_array_equal(whole(found, FieldKey("C11", "0", 1)), whole(index, KEYS[3]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["image,field", "0,1"], "has no column 'well'"),
        (["image,well", "9,B02"], r"line 2: there is no image '9'"),
        (["image,well", "0,Q"], "well 'Q' is no well name"),
        (["image,well,field", "0,B02,1/2"], "field '1/2'; letters and digits"),
        (["image,well,field", "0,B02,1", "1,B02,1"], "field B02/1 is listed twice"),
        (["image,well", "0,B02", "0,B03"], "image 0 is listed twice"),
        (["image,well"], "lists no image"),
    ],
)
def test_a_table_that_cannot_be_is_named(index: Index, tmp_path: Path, rows: list[str], said: str) -> None:
    other = write_series(index, tmp_path / "P01.zarr", wells=False)
    with pytest.raises(UserError, match=said):
        plan(load("adopt", None, [f"plate={other}", table(tmp_path / "w.csv", *rows)]))


def _entities(text: str) -> str:
    return text.replace("<OME ", '<!DOCTYPE x [<!ENTITY y "z">]><OME ')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-20], "not well-formed"),
        (_entities, "holds a DTD or entities"),
        (lambda text: text.replace('Row="1"', 'Row="-1"'), "Well: Row is '-1'; a whole number"),
        (lambda text: text.replace('Row="1"', 'Row="99"'), "row 99, column 1 .from 0. is no well"),
        (
            lambda text: text.replace('<ImageRef ID="Image:0"', '<ImageRef ID="Image:7"'),
            "names image 'Image:7'",
        ),
        (
            lambda text: text.replace('<ImageRef ID="Image:0"', '<ImageRef ID="Image:1"'),
            "image 1 is listed twice",
        ),
        (lambda text: text.replace("<Image ID", "<Plate/><Image ID", 1), "describes several plates"),
    ],
)
def test_ome_xml_that_cannot_be_is_named(
    index: Index, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    other = write_series(index, tmp_path / "P01.zarr")
    text = (other / XML).read_text()
    assert change(text) != text
    (other / XML).write_text(change(text))
    with pytest.raises(UserError, match=said):
        plan(load("adopt", None, [f"plate={other}"]))


def test_images_that_are_missing_and_lists_that_lead_elsewhere_are_named(
    index: Index, tmp_path: Path
) -> None:
    other = write_series(index, tmp_path / "P01.zarr")
    shutil.rmtree(other / "2")
    with pytest.raises(UserError, match="1 image cannot be read, beside 3 fields"):
        plan(load("adopt", None, [f"plate={other}"]))
    (other / "OME" / ".zattrs").write_text(json.dumps({"series": ["0", "../../elsewhere", "2", "3"]}))
    with pytest.raises(UserError, match="lists series that lie elsewhere"):
        plan(load("adopt", None, [f"plate={other}"]))


def test_a_table_beside_stated_wells_is_for_images_alone(index: Index, tmp_path: Path) -> None:
    from other_plates import write_other

    other = write_other(index, tmp_path / "plate.zarr")
    with pytest.raises(UserError, match="states its own wells; leave it out"):
        plan(load("adopt", None, [f"plate={other}", table(tmp_path / "w.csv", "image,well", "0,B02")]))
