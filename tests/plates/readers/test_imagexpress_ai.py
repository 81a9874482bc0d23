"""Runs of ImageXpress HCS.ai, real metadata and made-up ones."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from coded_planes import decoded
from hcsai_export import code, row, rows, with_images, write_run

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.readers import detect, imagexpress_ai
from hpc_isl.recipes.plates import ConvertRecipe

A01 = FieldKey("A01", "0")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "pixel_um", "fluorescent", "left_out"),
    [
        ("imagexpress_hcsai/hcs_1w1s1t1c1z_binning4x4", 1.294, True, {}),
        ("imagexpress_hcsai_labelfree/run_root", 1.6595, False, {"montage": 2}),
        ("imagexpress_hcsai_labelfree/run_root/experiment_montage", 1.6595, False, {}),
    ],
)
def test_each_row_of_a_real_index_is_placed_as_stated(
    realdata: Path, tmp_path: Path, name: str, pixel_um: float, fluorescent: bool, left_out: dict[str, int]
) -> None:
    """Pixels, channel name, height, place, time, exposure and pixel size, each read here on its own."""
    folder = with_images(realdata / "vendor" / name, tmp_path / "run")
    result = detect.read(ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"}))
    run = folder / "experiment" if (folder / "experiment").exists() else folder
    [jdce] = run.glob("*.jdce")
    protocol = json.loads(jdce.read_text())["ImageStack"]["AutoLeadAcquisitionProtocol"]
    assert result.plate.pixel_um == protocol["ObjectiveCalibration"]["PixelWidth"] == pixel_um
    assert (len(result.plate.rows), len(result.plate.columns)) == (8, 12)
    assert Counter(left.kind for left in result.left_out) == left_out
    assert result.problems == ()
    assert all(text.startswith("1 field differs from most") for text in result.remarks)  # montages
    [channel] = result.plate.channels
    assert (channel.name, channel.fluorescent) == (
        protocol["Wavelengths"][0]["EmissionFilter"]["Name"],
        fluorescent,
    )
    assert (channel.emission_nm, channel.excitation_nm) == (440.0 if fluorescent else None, None)
    by_path = {file.path: (key, file) for key, files in result.files.items() for file in files}
    there = list(rows(run))
    assert len(by_path) == len(there)
    for facts in there:
        key, file = by_path[run / facts["ImageSubFolderPath"] / facts["ImageFileName"]]
        field = next(field for field in result.plate.fields if field.key == key)
        plane = read_plane(file.path)
        assert decoded(plane) == code(facts)
        assert (key.well, int(key.name), *file.place) == (*code(facts)[:2], 0, 0, 0)
        assert field.shape == (1, 1, 1, int(facts["ImageSizeYPx"]), int(facts["ImageSizeXPx"]))
        assert field.z_um == (float(facts["PositionZUm"]),)
        assert channel.exposure_s == float(facts["ExposureTimeMs"]) / 1000
        assert field.position_um is not None
        assert [
            (length - 1) / 2 * pixel_um + at
            for length, at in zip(plane.shape, field.position_um, strict=True)
        ] == pytest.approx([float(facts["PositionYUm"]), float(facts["PositionXUm"])], abs=1e-3)
        assert datetime.fromisoformat(field.details["time"]).timestamp() == float(facts["TimeStampSec"])


def test_stacks_and_times_are_placed_as_they_count(tmp_path: Path) -> None:
    """The channels of one ZIndex differ in height, which is kept by channel."""
    images = [
        row(
            Row=3, Column=5, Field=f, Wavelength=w, ZIndex=z, Timepoint=t, TimeStampSec=1000 + 21600 * t,
            PositionZUm=20000 + 3 * z + 6.8 * w,
        )
        for f in (0, 3) for w in (0, 1) for z in (0, 1, 2) for t in (0, 1)
    ]  # fmt: skip
    result = imagexpress_ai.read(write_run(tmp_path / "run", images))
    assert {field.shape for field in result.plate.fields} == {(2, 2, 3, 24, 32)}
    assert {
        (key.well, int(key.name), file.channel, file.plane, file.time): decoded(read_plane(file.path))
        for key, own in result.files.items()
        for file in own
    } == {code(image): code(image) for image in images}
    first = result.plate.fields[0]
    assert first.details["z_um"] == {"DAPI": [20000, 20003, 20006], "TL": [20006.8, 20009.8, 20012.8]}
    assert first.details["seconds"] == [0, 21600]
    assert result.plate.plane_um == 3.0
    assert [(c.name, c.fluorescent) for c in result.plate.channels] == [("DAPI", True), ("TL", False)]


def test_the_index_counts_not_the_plan(tmp_path: Path) -> None:
    plan = {
        "ZDimensionParameters": {"Enabled": True, "NumberOfSlices": 11},
        "TimeSchedule": {"Enabled": True, "NumberOfTimepoints": 9, "Times": [{"Ms": 0}, {"Ms": 1}]},
    }
    result = imagexpress_ai.read(
        write_run(tmp_path, [row(ZIndex=z) for z in (0, 1)], PlateMap=plan, CollectionComplete=False)
    )
    assert result.plate.fields[0].shape[:3] == (1, 1, 2)
    assert result.remarks == (
        "the run was not completed",
        "11 planes were planned, the index has 2",
        "9 times were planned, the index has 1",
    )


def test_of_two_names_of_a_channel_the_one_that_is_kept_is_told(tmp_path: Path) -> None:
    result = imagexpress_ai.read(write_run(tmp_path, [row(ExcitationEmissionFilter="Cy5")]))
    kept = result.plate.channels[0].name
    assert f"wavelength 0 is {kept!r} in the .jdce, 'Cy5' in the CSV; {kept!r} is kept" in result.remarks


def test_missing_files_are_named_and_strangers_counted(tmp_path: Path) -> None:
    images = [row(ZIndex=z) for z in (0, 1)]
    write_run(tmp_path, images)
    lost = tmp_path / "timepoint0" / images[1]["ImageFileName"]
    lost.rename(tmp_path / "timepoint0" / "copy.tif")
    result = imagexpress_ai.read(tmp_path)
    [(key, text, kind)] = result.problems
    assert (key, kind) == (A01, "missing")
    assert f"timepoint0/{lost.name} is missing" in text
    assert [(left.path.name, left.kind) for left in result.left_out] == [("copy.tif", "not in the index")]


def test_a_channel_of_another_binning_is_left_out(tmp_path: Path) -> None:
    images = [row(Column=c) for c in (1, 2)] + [
        row(Column=c, Wavelength=1, ImageSizeXPx=16, ImageSizeYPx=12) for c in (1, 2, 3)
    ]
    images += [row(Column=c) for c in (3, 4)]
    result = imagexpress_ai.read(write_run(tmp_path, images))
    assert [channel.name for channel in result.plate.channels] == ["DAPI"]
    assert Counter(left.kind for left in result.left_out) == {"channel of another size": 3}
    assert "channel 'TL' has 12 × 16 pixels, the others 24 × 32: it is left out" in result.remarks[0]


def test_several_runs_are_a_question(tmp_path: Path) -> None:
    for name in ("experiment", "experiment_z_stack"):
        write_run(tmp_path / name, [row()])
    with pytest.raises(
        UserError, match=r"holds 2 runs \(experiment/P1\.jdce, experiment_z_stack/P1\.jdce\); give"
    ):
        imagexpress_ai.read(tmp_path)
    assert len(imagexpress_ai.read(tmp_path / "experiment").files) == 1


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"Row": 0}, "line 2: Row is '0'; a number from 1 is expected"),
        ({"ZIndex": "-1"}, "line 2: ZIndex is '-1'; a number from 0"),
        ({"Column": 49}, "row 1, column 49 is no well"),
        ({"Row": 9}, "a plate of 8 × 12 wells, but there is well I01"),
        ({"ImageStartXPx": 5}, "ImageStartXPx is 5: parts of files are not read"),
        ({"ImageFileName": "../../x.tif"}, "row 1 names '.*x.tif': a file below .* is expected"),
        (
            {"ImageSubFolderPath": "/etc", "ImageFileName": "passwd"},
            "none of the images that it names is there",
        ),
    ],
)
def test_an_index_that_cannot_be_is_named(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    write_run(tmp_path, [row()])
    (tmp_path / "image_metadata_1.csv").unlink()
    text = row() | facts
    lines = [",".join(text), ",".join(map(str, text.values()))]
    (tmp_path / "image_metadata_1.csv").write_text("\r\n".join(lines))
    with pytest.raises(UserError, match=said):
        imagexpress_ai.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no readable run"),
        ("[]", "no readable run"),
        ('{"ImageStack": {"AutoLeadAcquisitionProtocol": []}}', "its ImageStack is empty"),
        ('{"ImageStack": {"AutoLeadAcquisitionProtocol": {}}}', "names no ImageMetadataFiles"),
        (
            '{"ImageStack": {"AutoLeadAcquisitionProtocol": {}, "ImageMetadataFiles": ["../x.csv"]}}',
            "x.csv, which P1.jdce names, is not readable",
        ),
        ("[" * 100_000, "no readable run"),
    ],
)
def test_a_jdce_that_is_none_is_named(tmp_path: Path, content: str, said: str) -> None:
    write_run(tmp_path, [row()])
    (tmp_path / "P1.jdce").write_text(content)
    with pytest.raises(UserError, match=said):
        imagexpress_ai.read(tmp_path)


def test_an_index_may_write_endings_in_another_case(tmp_path: Path) -> None:
    """As on Windows, where names of files have no case."""
    folder = write_run(tmp_path / "run", [row(Field=0), row(Field=1)])
    for path in list(folder.rglob("*.tif")):
        path.rename(path.with_suffix(".TIF"))
    result = imagexpress_ai.read(folder)
    assert (result.problems, result.left_out) == ((), ())
    assert all(files for files in result.files.values())
