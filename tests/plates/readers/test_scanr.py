"""Runs of scanR, real metadata and made-up ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coded_planes import decoded
from scanr_export import Shot, planes, with_images, write_descriptor, write_index

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import detect, scanr
from hpc_isl.recipes.plates import ConvertRecipe

SHOTS = [
    Shot(well, field, channel, plane, time)
    for well in ("A03", "C07") for field in (1, 2) for channel in ("TRITC", "BF")
    for plane in (0, 1) for time in (0, 1)
]  # fmt: skip


def stored(result: Export) -> dict[tuple[str, int, str, int, int], object]:
    """(well, field, channel, plane, time) -> the code of the pixels there."""
    return {
        (key.well, int(key.name), result.plate.channels[file.channel].name, file.plane, file.time): decoded(
            read_plane(file.path)
        )
        for key, own in result.files.items()
        for file in own
    }


def written(shots: list[Shot]) -> dict[tuple[str, int, str, int, int], object]:
    return {(s.well, s.field, s.channel, s.plane, s.time): s.code for s in shots}


@pytest.mark.realdata
def test_each_plane_of_a_real_index_is_placed_as_stated(realdata: Path, tmp_path: Path) -> None:
    """Pixels, channel name, height, place, exposure and pixel size, each read here on its own."""
    folder = with_images(realdata / "vendor/scanr_ome/1w_1p_1c_1z_1t", tmp_path / "run")
    result = detect.read(ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"}))
    [facts] = planes(folder / "data" / "metadata.ome.xml")
    [field] = result.plate.fields
    [file] = result.files[field.key]
    assert (result.plate.name, len(result.plate.rows), len(result.plate.columns)) == ("run", 8, 12)
    assert (str(field.key), field.shape) == ("B02/1", (1, 1, 1, 2048, 2048))
    assert decoded(read_plane(file.path)) == ("B02", 1, 1, 0, 0)
    assert result.plate.pixel_um == float(facts["PhysicalSizeX"]) == 0.325
    [channel] = result.plate.channels
    assert (channel.name, channel.exposure_s) == (facts["channel"], float(facts["ExposureTime"]))
    assert field.z_um == (float(facts["PositionZ"]),)
    assert field.position_um is not None
    assert [at + 2047 / 2 * 0.325 for at in field.position_um] == pytest.approx(
        [float(facts["PositionY"]), float(facts["PositionX"])]
    )
    assert result.plate.details["objective"] == "UPLXAPO 20x, NA 0.80"
    assert result.remarks == ("positions state no unit and are taken for micrometres",)
    assert (result.problems, result.left_out) == ((), ())


@pytest.mark.parametrize("write", [write_index, write_descriptor])
def test_planes_are_placed_by_index_or_by_name(
    tmp_path: Path, write: Callable[[Path, list[Shot]], Path]
) -> None:
    shots = [Shot(s.well, s.field, "DAPI" if s.channel == "TRITC" else "BF", s.plane, s.time) for s in SHOTS]
    result = scanr.read(write(tmp_path / "run", shots))
    assert stored(result) == written(shots)
    assert {field.shape for field in result.plate.fields} == {(2, 2, 2, 24, 32)}
    lights = {channel.name: channel.fluorescent for channel in result.plate.channels}
    assert lights == {"DAPI": True, "BF": False}
    assert (len(result.plate.rows), len(result.plate.columns)) == (8, 12)
    assert result.problems == ()


def test_an_index_states_places_heights_and_times(tmp_path: Path) -> None:
    result = scanr.read(write_index(tmp_path / "run", SHOTS) / "data")
    first, second = result.plate.fields[:2]
    assert result.plate.name == "run"
    assert first.details["z_um"] == {"TRITC": [6000, 6003], "BF": [6001, 6004]}
    assert first.details["seconds"] == [0.5, 10.5]
    assert second.position_um == pytest.approx((4000 - 11.5 * 0.325, 2000 - 15.5 * 0.325))
    assert [channel.exposure_s for channel in result.plate.channels] == [0.1, 0.2]


def test_an_older_run_states_size_exposures_and_plate(tmp_path: Path) -> None:
    shots = [Shot("B02"), Shot("P24")]
    folder = tmp_path / "run"
    numbered = [Shot("B02")]
    result = scanr.read(write_descriptor(folder, numbered))
    assert (result.plate.name, result.plate.pixel_um) == ("Platte Ä", 0.645)
    [channel] = result.plate.channels
    assert (channel.name, channel.exposure_s) == ("DAPI", 0.04)
    [field] = result.plate.fields
    assert (field.dtype, field.shape) == ("int16", (1, 1, 1, 24, 32))
    [file] = result.files[field.key]
    assert read_plane(file.path).dtype == np.int16
    assert len(shots) == 2


def test_wells_without_names_need_a_format(tmp_path: Path) -> None:
    index = write_index(tmp_path / "a", [Shot("B02"), Shot("C07")], labels=False)
    with pytest.raises(
        UserError, match=r"well 14 \(without a name\) cannot be placed; .*patterns/scanr.yaml"
    ):
        scanr.read(index)
    older = write_descriptor(tmp_path / "b", [Shot("B02")], layout=(0, 0))
    with pytest.raises(UserError, match=r"well 14 \(without a name\) cannot be placed"):
        scanr.read(older)
    assert scanr.read(write_descriptor(tmp_path / "c", [Shot("B02")])).plate.wells == ("B02",)


def test_the_format_is_that_which_numbers_and_names_agree_on(tmp_path: Path) -> None:
    """B02 as well 26 has 24 columns: a plate of 384 wells."""
    folder = write_index(tmp_path, [Shot("B02")])
    index = folder / "data" / "metadata.ome.xml"
    index.write_text(index.read_text().replace("Well 14,", "Well 26,"))
    plate = scanr.read(folder).plate
    assert (plate.wells, len(plate.rows), len(plate.columns)) == (("B02",), 16, 24)


def test_a_missing_file_is_named_and_a_plane_without_record_was_not_imaged(tmp_path: Path) -> None:
    shots = [Shot(plane=z, channel=c) for z in (0, 1) for c in ("DAPI", "TRITC") if (z, c) != (1, "TRITC")]
    write_index(tmp_path, shots)
    (tmp_path / "data" / shots[0].name()).rename(tmp_path / "data" / "other.tif")
    result = scanr.read(tmp_path)
    assert [(str(key), kind) for key, _, kind in result.problems] == [("B02/1", "missing")]
    assert [(left.path.name, left.kind) for left in result.left_out] == [("other.tif", "not in the index")]
    [field] = result.plate.fields
    assert field.details["planes"] == {"DAPI": [0, 1], "TRITC": [0]}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('FileName="B2', 'FileName="../../B2', "a file below .* is expected"),
        ("Well 14, Position 1 (B2)", "B2", "a name as in 'Well 14, Position 1"),
        ("<Image", "<Picture", "not well-formed|names no image"),
        (
            '<UUID FileName="B2--W00014--P00001--Z00000--T00000--DAPI.tif">urn:uuid:0</UUID>',
            "",
            "names no files",
        ),
    ],
)
def test_an_index_that_cannot_be_is_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    write_index(tmp_path, [Shot()])
    index = tmp_path / "data" / "metadata.ome.xml"
    text = index.read_text()
    assert before in text
    index.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=said):
        scanr.read(tmp_path)


@pytest.mark.parametrize("write", [write_index, write_descriptor])
def test_a_folder_of_several_runs_is_refused(
    tmp_path: Path, write: Callable[[Path, list[Shot]], Path]
) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, [Shot()])
    with pytest.raises(UserError, match=r"holds 2 runs \(one/.*, two/.*\); give one as source"):
        detect.read(ConvertRecipe.model_validate({"source": tmp_path, "out": "x.zarr"}))


def test_other_ome_xml_is_not_of_scanr(tmp_path: Path) -> None:
    write_index(tmp_path, [Shot()])
    index = tmp_path / "data" / "metadata.ome.xml"
    index.write_text(index.read_text().replace("Olympus, scanR 3.3.0", "other"))
    with pytest.raises(UserError, match="no layout that is known"):
        detect.read(ConvertRecipe.model_validate({"source": tmp_path, "out": "x.zarr"}))


def test_an_index_may_write_endings_in_another_case(tmp_path: Path) -> None:
    """As on Windows, where names of files have no case."""
    folder = write_index(tmp_path / "run", SHOTS)
    for path in list(folder.rglob("*.tif")):
        path.rename(path.with_suffix(".TIF"))
    result = scanr.read(folder)
    assert (result.problems, result.left_out) == ((), ())
    assert all(files for files in result.files.values())
