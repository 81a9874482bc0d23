"""Runs of IN Cell Analyzer, made up: none was at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from coded_planes import Code, decoded
from incell_export import WAVES, Shot, write_run

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import detect, incell
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import ConvertRecipe

SHOTS = [
    Shot(well, field, wave, plane, time)
    for well in ("A03", "C07") for field in (0, 1) for wave in (0, 1) for plane in (0, 1) for time in (0, 1)
]  # fmt: skip
NAMES = {"UV - DAPI": 0, "TL-Brightfield - Cy3": 1, "FITC": 2}


def stored(result: Export, names: Mapping[str, int] = NAMES) -> dict[Code, Code]:
    """(well, field, wave, plane, time) by the plate -> those by the pixels."""
    channels = [names[channel.name] for channel in result.plate.channels]
    return {
        (key.well, int(key.name) - 1, channels[file.channel], file.plane, file.time): decoded(
            read_plane(file.path, file.page)
        )
        for key, own in result.files.items()
        for file in own
    }


def test_a_run_is_read_with_all_that_its_index_states(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SHOTS)
    (folder / "A - 03(fld 1)_thumb.png").touch()
    result = detect.read(ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"}))
    assert stored(result) == {shot.code: shot.code for shot in SHOTS}
    plate = result.plate
    assert (plate.name, plate.pixel_um, plate.plane_um) == ("P 1", 0.325, 2.5)
    assert (len(plate.rows), len(plate.columns)) == (8, 12)
    named = [(c.name, c.fluorescent, c.excitation_nm, c.emission_nm, c.exposure_s) for c in plate.channels]
    assert named == [
        ("UV - DAPI", True, 350, 455, 0.05), ("TL-Brightfield - Cy3", False, None, None, 0.1),
    ]  # fmt: skip
    second = plate.fields[1]
    assert (str(second.key), second.shape, second.dtype) == ("A03/2", (2, 2, 2, 24, 32), "uint16")
    assert second.position_um == pytest.approx((50 - 11.5 * 0.325, 100 - 15.5 * 0.325))
    assert second.z_um == (7000, 7002.5)
    assert second.details["seconds"] == [0, 2.636]
    assert plate.acquisitions == {0: "2010-11-17T20:23:53"}
    assert plate.details["software"] == "IN Cell Analyzer 2000 3.0.0.5"
    assert [(left.path.name, left.kind) for left in result.left_out] == [
        ("A - 03(fld 1)_thumb.png", "thumbnail")
    ]
    assert (result.problems, result.remarks) == ((), ())


@pytest.mark.parametrize(("places", "at"), [("plate", (50, 9100)), ("plan", (50, 100)), ("well", (50, 100))])
def test_fields_lie_where_images_or_the_plan_state(
    tmp_path: Path, places: str, at: tuple[float, float]
) -> None:
    result = incell.read(write_run(tmp_path, [Shot("A02"), Shot("A02", field=1)], places=places))
    assert result.plate.fields[1].position_um == pytest.approx((at[0] - 11.5 * 0.325, at[1] - 15.5 * 0.325))
    assert [remark for remark in result.remarks if "no unit" in remark] == (
        ["positions of the plan state no unit and are taken for micrometres"] if places == "plan" else []
    )


def test_the_size_of_binned_pixels_is_unknown_and_said(tmp_path: Path) -> None:
    result = incell.read(write_run(tmp_path, [Shot()], binning="2 X 2"))
    assert result.plate.pixel_um is None
    [remark] = result.remarks
    assert "pixel_um=0.325 or pixel_um=0.65" in remark


def test_images_that_were_corrected_are_said_to_be(tmp_path: Path) -> None:
    camera = {'<Camera name="CoolSnap">': '<Camera apply_ffc="true" name="CoolSnap">'}
    for changes, said in ((camera, "flat field (apply_ffc)"), ({}, "")):
        result = incell.read(write_run(tmp_path / (said or "raw"), [Shot()], changes=changes))
        assert [channel.corrected for channel in result.plate.channels] == [said]


def test_a_file_that_is_named_for_several_planes_is_one_plane(tmp_path: Path) -> None:
    """As MetaXpress lists a channel of one plane once for each plane of the others."""
    shots = [Shot(wave=0, plane=z, file="t1_B02_s1_w1_z1.tif") for z in (0, 1, 2)]
    shots += [Shot(wave=2, plane=z) for z in (0, 1, 2)]
    result = incell.read(write_run(tmp_path, shots))
    [field] = result.plate.fields
    assert field.details["planes"] == {"UV - DAPI": [0], "FITC": [0, 1, 2]}
    assert result.remarks == ("entries of the index that name another plane's file, which is stored once: 2",)
    assert result.problems == ()


def test_a_missing_file_is_named_and_a_plane_without_entry_was_not_imaged(tmp_path: Path) -> None:
    shots = [Shot(plane=z, wave=w) for z in (0, 1) for w in (0, 1) if (z, w) != (1, 1)]
    write_run(tmp_path, shots)
    (tmp_path / shots[0].name).rename(tmp_path / "other.tif")
    result = incell.read(tmp_path)
    assert [(str(key), kind) for key, _, kind in result.problems] == [("B02/1", "missing")]
    assert [(left.path.name, left.kind) for left in result.left_out] == [("other.tif", "not in the index")]
    [field] = result.plate.fields
    assert field.details["planes"] == {"UV - DAPI": [0, 1], "TL-Brightfield - Cy3": [0]}


def test_an_index_in_a_folder_below_names_files_beside_it(tmp_path: Path) -> None:
    write_run(tmp_path / "export" / "run", [Shot("P24")], rows=16, columns=24)
    result = incell.read(tmp_path / "export")
    assert stored(result) == {Shot("P24").code: Shot("P24").code}
    assert (len(result.plate.rows), len(result.plate.columns)) == (16, 24)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('filename="B - 02', 'filename="../../B - 02', "a file below .* is expected"),
        (
            f'filename="{Shot().name}"',
            'filename=""',
            "an image of B02 has no file name.*patterns/incell.yaml",
        ),
        ('z 1 time 1 - 0ms).tif"', 'z 1.im"', "files .im of IN Cell Analyzer 1000 are not read"),
        ("<Image ", "<Picture ", "not well-formed"),
        ('<Row number="2"/>', '<Row number="200"/>', "row 200, column 2 is no well"),
        ('<Row number="2"/>', "", "Row: number is ''; a whole number is expected"),
        ('field_index="0"', 'field_index="-1"', "field_index is '-1'; a whole number is expected"),
        ('rows="8"', 'rows="1"', "a plate of 1 × 12 wells, but there is well B02"),
        ("<ImageStack>", '<!DOCTYPE x [<!ENTITY y "z">]><ImageStack>', "holds a DTD or entities"),
    ],
)
def test_an_index_that_cannot_be_is_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    write_run(tmp_path, [Shot()], changes={before: after})
    with pytest.raises(UserError, match=said):
        incell.read(tmp_path)


def test_several_runs_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [Shot()])
    (tmp_path / "a" / "second.xdce").write_bytes((tmp_path / "a" / "P 1.xdce").read_bytes())
    with pytest.raises(UserError, match=r"holds 2 runs .*give one as source"):
        incell.read(tmp_path / "a")
    with pytest.raises(UserError, match="names no image"):
        incell.read(write_run(tmp_path / "b", []))
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"no \.xdce"):
        incell.read(tmp_path / "c")


def test_without_an_index_names_place_the_images(tmp_path: Path) -> None:
    """In both styles of names; the shipped pattern is what the message advises."""
    folder = write_run(tmp_path / "old", SHOTS)
    (folder / "P 1.xdce").unlink()
    with pytest.raises(UserError, match=r"IN Cell Analyzer without their index.*patterns/incell\.yaml"):
        detect.read(ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"}))
    recent = tmp_path / "new"
    recent.mkdir()
    for shot in SHOTS:
        waves = f"c{shot.wave + 1}_x{WAVES[shot.wave][0]}_m{WAVES[shot.wave][1]}"
        name = (
            f"{shot.well[0]}_{shot.well[1:]}_f{shot.field + 1}_{waves}_z{shot.plane + 1}_t{shot.time + 1}.tif"
        )
        os.link(folder / shot.name, recent / name)
    for source, names in (
        (folder, NAMES), (recent, {"xUV_mDAPI": 0, "xTL-Brightfield_mCy3": 1}),
    ):  # fmt: skip
        recipe = load("convert", Path("patterns/incell.yaml"), [f"source={source}", "out=x.zarr"])
        assert isinstance(recipe, ConvertRecipe)
        assert stored(detect.read(recipe), names) == {shot.code: shot.code for shot in SHOTS}


def test_an_index_may_write_endings_in_another_case(tmp_path: Path) -> None:
    """As on Windows, where names of files have no case."""
    folder = write_run(tmp_path / "run", SHOTS)
    for path in list(folder.rglob("*.tif")):
        path.rename(path.with_suffix(".TIF"))
    result = incell.read(folder)
    assert (result.problems, result.left_out) == ((), ())
    assert all(files for files in result.files.values())
