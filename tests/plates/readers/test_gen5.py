"""Exports of Gen5, made up: none was at hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from coded_planes import decoded
from gen5_export import Shot, write

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import detect, gen5
from hpc_isl.recipes.plates import ConvertRecipe


def stored(result: Export) -> dict[tuple[str, str, str, int, int], Any]:
    """(well, field, channel, plane, time) -> the code of the pixels there."""
    names = [channel.name for channel in result.plate.channels]
    return {
        (key.well, key.name, names[file.channel], file.plane, file.time): decoded(
            read_plane(file.path, file.page)
        )
        for key, own in result.files.items()
        for file in own
    }


def test_an_export_is_read_with_all_that_its_files_state(tmp_path: Path) -> None:
    shots = [
        Shot(well, number, channel, time=time)
        for well in ("A01", "P24")
        for number in (1, 12)
        for channel in ("Phase Contrast", "GFP")
        for time in (1, 3)
    ]
    for s in shots:
        write(tmp_path / f"{s.short}_01_{s.code[2]}_{s.number}_{s.channel}_{s.time:03}.tif", s)
    result = detect.read(ConvertRecipe.model_validate({"source": tmp_path, "out": "x.zarr"}))
    assert stored(result) == {
        (s.well, str(s.number), s.channel, 0, {1: 0, 3: 1}[s.time]): s.code for s in shots
    }
    plate = result.plate
    assert (plate.name, plate.pixel_um, len(plate.rows)) == ("Plate 1", 0.5, 16)
    assert [
        (c.name, c.fluorescent, c.excitation_nm, c.emission_nm, c.exposure_s) for c in plate.channels
    ] == [
        ("GFP", True, 469, 525, 0.05),
        ("Phase Contrast", False, None, None, 0.05),
    ]
    field = plate.fields[0]
    assert field.details["seconds"] == [1, 3]
    assert field.z_um == (3226.3,)
    assert field.position_um == pytest.approx((-291 - 23 / 2 * 0.5, 100 - 31 / 2 * 0.5))
    assert (result.problems, result.remarks, result.left_out) == ((), (), ())


@pytest.mark.parametrize("style", ["{s.short}_{s.number}Z{s.plane}_{s.channel}_1_001_.tif", None])
def test_stacks_are_known_by_name_or_by_what_the_file_states(tmp_path: Path, style: str | None) -> None:
    shots = [Shot(number=n, plane=z, planes=3) for n in (1, 2) for z in (1, 2, 3)]
    for s in shots:
        name = style.format(s=s) if style else f"{s.short}_0{s.plane}_1_{s.number}_{s.channel}_001.tif"
        write(tmp_path / name, s)
    result = gen5.read(tmp_path)
    assert stored(result) == {("A01", str(s.number), "DAPI", s.plane - 1, 0): s.code for s in shots}
    assert result.plate.fields[0].z_um == (3226.3, 3236.3, 3246.3)
    assert result.plate.plane_um == 10


def test_times_in_the_other_style_and_folders_for_each_well(tmp_path: Path) -> None:
    shots = [Shot(well, time=time) for well in ("P23", "P24") for time in (1, 2)]
    for s in shots:
        write(tmp_path / f"ID_{s.short} info" / f"{s.short}_1_Bright Field_1_{s.time:03}_02.tif", s)
    result = gen5.read(tmp_path)
    assert stored(result) == {(s.well, "1", "DAPI", 0, s.time - 1): s.code for s in shots}


def test_regions_are_fields_of_their_own(tmp_path: Path) -> None:
    for roi in (1, 2):
        write(tmp_path / f"A1ROI{roi}_02_1_3Z0_DAPI_001.tif", Shot(number=roi))
    assert [str(field.key) for field in gen5.read(tmp_path).plate.fields] == ["A01/3ROI1", "A01/3ROI2"]


def test_a_channel_in_two_read_steps_is_two_channels(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path / f"A1_0{step}_1_1_Bright Field_001.tif", Shot(channel="Bright Field", number=step))
    write(tmp_path / "A1_03_1_1_DAPI_001.tif", Shot())
    result = gen5.read(tmp_path)
    names = [channel.name for channel in result.plate.channels]
    assert names == ["Bright Field read 01", "Bright Field read 02", "DAPI"]
    assert {place: code[1] for place, code in stored(result).items()} == {
        ("A01", "1", "Bright Field read 01", 0, 0): 1,
        ("A01", "1", "Bright Field read 02", 0, 0): 2,
        ("A01", "1", "DAPI", 0, 0): 1,
    }


def test_what_was_made_of_planes_is_left_out_where_there_are_planes(tmp_path: Path) -> None:
    write(tmp_path / "A1_01_1_1_DAPI_001.tif", Shot())
    write(tmp_path / "A1_-1_1_1_Stitched[DAPI 377,447]_001.tif", Shot(how="Stitched"))
    write(tmp_path / "A1_-1_1_1_Stitched[GFP 469,525]_001.tif", Shot(how="Stitched", channel="GFP"))
    result = gen5.read(tmp_path)
    assert [channel.name for channel in result.plate.channels] == ["DAPI", "GFP"]
    assert Counter((left.kind, left.channel) for left in result.left_out) == {("stitched", "DAPI"): 1}
    assert result.plate.fields[0].details["projections"] == {"GFP": "Stitched"}


def test_pages_are_channels_as_each_states(tmp_path: Path) -> None:
    shots = [Shot(channel=channel) for channel in ("GFP", "DAPI")]
    write(tmp_path / "A1_01_1_1_Merged_001.tif", *shots)
    assert stored(gen5.read(tmp_path)) == {("A01", "1", s.channel, 0, 0): s.code for s in shots}


def test_a_file_of_another_well_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    for well in ("A01", "A02", "A03"):
        facts = {"Well": "B7"} if well == "A02" else {}
        write(tmp_path / f"{well}_01_1_1_DAPI_001.tif", Shot(well, facts=facts))
    (tmp_path / "A03_01_1_1_DAPI_001.tif").write_bytes(b"")
    (tmp_path / "picture.png").write_bytes(b"")
    result = gen5.read(tmp_path)
    assert {(str(key), kind) for key, _, kind in result.problems} == {
        ("A02/1", "misplaced"),
        ("A03/1", "damaged"),
    }
    assert [(left.path.name, left.kind) for left in result.left_out] == [("picture.png", "unknown name")]


def test_endings_may_be_in_upper_case(tmp_path: Path) -> None:
    write(tmp_path / "A1_01_1_1_DAPI_001.TIF", Shot())
    write(tmp_path / "A2_1_DAPI_1_001_.TIFF", Shot("A02"))
    result = detect.read(ConvertRecipe.model_validate({"source": tmp_path, "out": "x.zarr"}))
    assert (result.plate.wells, result.left_out) == (("A01", "A02"), ())


def test_a_first_file_that_is_damaged_hides_no_layout(tmp_path: Path) -> None:
    for well in ("A01", "A02"):
        write(tmp_path / f"{well}_01_1_1_DAPI_001.tif", Shot(well))
    (tmp_path / "A01_01_1_1_DAPI_001.tif").write_bytes(b"")
    result = detect.read(ConvertRecipe.model_validate({"source": tmp_path, "out": "x.zarr"}))
    assert [(str(key), kind) for key, _, kind in result.problems] == [("A01/1", "damaged")]


def test_a_damaged_file_adds_no_channel_where_files_call_theirs_otherwise(tmp_path: Path) -> None:
    for well in ("A01", "A02"):
        write(tmp_path / f"{well}_01_1_1_Dapi_001.tif", Shot(well))
    (tmp_path / "A02_01_1_1_Dapi_001.tif").write_bytes(b"")
    result = gen5.read(tmp_path)
    assert [channel.name for channel in result.plate.channels] == ["DAPI"]
    assert [(str(key), kind) for key, _, kind in result.problems] == [("A02/1", "damaged")]


def test_several_plates_and_names_without_metadata(tmp_path: Path) -> None:
    write(tmp_path / "A1_01_1_1_DAPI_001.tif", Shot())
    write(tmp_path / "A2_01_1_1_DAPI_001.tif", Shot("A02", facts={"Plate": "Plate 2"}))
    with pytest.raises(UserError, match=r"holds several plates \(Plate 1, Plate 2\); give one"):
        gen5.read(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path / "A1_01_1_1_Bright Field_001.tif", Shot(), described=False)
    with pytest.raises(UserError, match="no layout that is known"):
        detect.read(ConvertRecipe.model_validate({"source": tmp_path, "out": "x.zarr"}))
    [channel] = gen5.read(tmp_path).plate.channels
    assert (channel.name, channel.fluorescent) == ("Bright Field", False)
