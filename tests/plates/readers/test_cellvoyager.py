"""CellVoyager and CQ3K: real metadata with made-up images, and made-up metadata too."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from cellvoyager_export import BTS, code, name_of, record, records, with_images, write_measurement
from coded_planes import decoded

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import NOT_IMAGED, Export, FieldKey, well_name
from hpc_isl.plates.readers import cellvoyager, detect
from hpc_isl.plates.readers.choice import Choice, chosen_part
from hpc_isl.plates.store import open_plate, read_box
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.stage import convert

A01 = FieldKey("A01", "1")
ALL = slice(None)


def stored(result: Export) -> dict[tuple[str, str, int, int], Any]:
    """(field, channel, plane, time) -> the code of the pixels there."""
    names = [channel.name for channel in result.plate.channels]
    return {
        (str(key), names[file.channel], file.plane, file.time): decoded(read_plane(file.path))
        for key, files in result.files.items()
        for file in files
    }


# ---------------------------------------------------------------- real metadata


SAMPLES = {
    "cellvoyager_cv7000_projection/CV7000_z_processed": (16, 24, 45, 135, 0.10833333333333334),
    "cellvoyager_cv8000_time_errors/CV8000_AF_Error": (8, 12, 60, 1860, 0.1625),
    "cellvoyager_cv7000_2x2/metadata_files": (8, 12, 4, 120, 0.1625),
    "cellvoyager_cv7000/hcs_1w1p1c1z1t": (8, 12, 1, 1, 0.1625),
    "cq3k_projection/hcs_2w1p1c1z1t_mip": (8, 12, 2, 2, 0.32283699215257772),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", SAMPLES)
def test_each_record_of_a_real_index_is_placed_as_stated(realdata: Path, tmp_path: Path, name: str) -> None:
    """Pixels, channel name, height, place, time, exposure and pixel size, each read here on its own."""
    rows, columns, fields, images, pixel_um = SAMPLES[name]
    size = None if images < 10 else (24, 32)
    folder = with_images(realdata / "vendor" / name, tmp_path / "m", size)
    result = detect.read(ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"}))
    plate = result.plate
    assert (len(plate.rows), len(plate.columns), len(plate.fields)) == (rows, columns, fields)
    assert plate.pixel_um == pixel_um
    by_path = {file.path.name: (key, file) for key, files in result.files.items() for file in files}
    assert len(by_path) == images
    settings = channels(folder)
    for facts, text in records(folder / "MeasurementData.mlf"):
        key, file = by_path[Path(text).name]
        field = next(field for field in plate.fields if field.key == key)
        assert (key.well, key.name) == (
            well_name(int(facts["Row"]) - 1, int(facts["Column"]) - 1), facts["FieldIndex"],
        )  # fmt: skip
        assert decoded(read_plane(file.path)) == code(facts)
        channel = plate.channels[file.channel]
        target, exposure = settings.get(facts["Ch"], (f"Ch{facts['Ch']}", None))
        assert (channel.name, channel.exposure_s) == (target, exposure)
        heights = field.details.get("z_um", {}).get(channel.name, field.z_um)
        assert heights[field.planes(channel.name).index(file.plane)] == float(facts["Z"])
        assert field.position_um is not None
        y, x = (
            (length - 1) / 2 * pixel_um + at
            for length, at in zip(field.shape[-2:], field.position_um, strict=True)
        )
        assert (y, x) == pytest.approx((-float(facts["Y"]), float(facts["X"])), abs=1e-3)
        assert field.details["time"] <= facts["Time"]
        assert field.details.get("projections", {}).get(channel.name, "") == facts.get("ZImageProcessing", "")
        assert file.time == 0


def channels(folder: Path) -> dict[str, tuple[str, float]]:
    """Channel -> name and exposure in seconds, as the `.mes` has them."""
    result = {}
    for path in folder.glob("*.mes"):
        for element in ElementTree.parse(path).getroot().iter(f"{BTS}Channel"):
            facts = {name.removeprefix(BTS): value for name, value in element.attrib.items()}
            result[facts["Ch"]] = (facts["Target"], float(facts["ExposureTime"]) / 1000)
    return result


@pytest.mark.realdata
def test_time_lines_of_a_well_each_do_not_swell_the_plate_and_errors_are_recorded(
    realdata: Path, tmp_path: Path
) -> None:
    """Four lines, a well and a channel each: one time, one channel per well, and 4 fields not at all."""
    folder = with_images(
        realdata / "vendor/cellvoyager_cv8000_time_errors/CV8000_AF_Error", tmp_path / "m", (24, 32)
    )
    recipe = ConvertRecipe.model_validate({"source": folder, "out": tmp_path / "P.zarr"})
    convert(recipe, Attempt(Run(tmp_path / "runs" / "convert" / "P")))
    index = open_plate(tmp_path / "P.zarr")
    assert {field.shape for field in index.plate.fields} == {(1, 4, 31, 24, 32)}
    for field in index.plate.fields:
        channel = "CDEF".index(field.key.well[0])
        mask = np.zeros((1, 4, 31), bool)
        mask[0, channel] = True
        assert np.array_equal(index.imaged(field.key), mask)
        plane = read_box(index.image(field.key), 0, 0, channel, [30], ALL, ALL)[0]
        assert decoded(plane) == (field.key.well, int(field.key.name), channel + 1, 31, channel + 1)
    assert [(str(key), kind) for key, _, kind in index.problems] == [
        (f"F06/{field}", NOT_IMAGED) for field in (5, 11, 14, 15)
    ]
    assert "AF Error at F06 No. 5" in index.problems[0].text


@pytest.mark.realdata
def test_a_real_export_of_pngs_converts_to_the_pixel(realdata: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = realdata / "vendor/cellvoyager_cv7000_png/png"
    result = cellvoyager.read(folder)
    assert (result.plate.pixel_um, result.plate.plane_um) == (0.1625, 1.0)
    for files in result.files.values():
        for file in files:
            np.testing.assert_array_equal(read_plane(file.path), np.asarray(Image.open(file.path)))


@pytest.mark.realdata
def test_blank_images_of_a_cv8000_are_found_and_shading_images_are_not_planes(realdata: Path) -> None:
    result = cellvoyager.read(realdata / "vendor/cellvoyager_cv8000")
    assert {field.shape for field in result.plate.fields} == {(1, 2, 4, 2000, 2000)}
    assert [(c.name, c.excitation_nm, c.emission_nm) for c in result.plate.channels] == [
        ("405", 405, 445),
        ("488", 488, 525),
    ]
    assert all(c.corrected.startswith("ShadingCorrectionSource SC_BP") for c in result.plate.channels)
    assert Counter(left.kind for left in result.left_out) == {"shading image": 6}
    assert sum(map(len, result.files.values())) == 96
    assert result.problems == ()


# ---------------------------------------------------------------- made-up measurements


def test_times_of_a_series_stay_together_and_wells_with_lines_of_their_own_begin_at_0(tmp_path: Path) -> None:
    series = [record(Column=c, TimePoint=t) for c in (1, 2) for t in (3, 4, 7)]
    short = [record(Column=3, TimePoint=t) for t in (4, 7)]
    alone = [record(Column=4, TimePoint=t, TimelineIndex=2) for t in (8, 9)]
    result = cellvoyager.read(write_measurement(tmp_path, [*series, *short, *alone]))
    times = {(key[0], key[3]): code[-1] for key, code in stored(result).items()}
    assert times == {
        **{(f"A0{c}/1", rank): t for c in (1, 2) for rank, t in enumerate((3, 4, 7))},
        ("A03/1", 1): 4, ("A03/1", 2): 7, ("A04/1", 0): 8, ("A04/1", 1): 9,
    }  # fmt: skip
    assert [kind for _, _, kind in result.problems] == [NOT_IMAGED]


def test_a_channel_in_several_actions_becomes_several_channels(tmp_path: Path) -> None:
    """Two stacks of one channel at other heights are no duplicates, and neither replaces the other."""
    images = [record(ActionIndex=a, ZIndex=z, Z=10 * a + z) for a in (1, 2) for z in (1, 2)]
    images += [record(Ch=2, ActionIndex=3)]
    result = cellvoyager.read(write_measurement(tmp_path, images))
    assert [c.name for c in result.plate.channels] == ["DAPI action 1", "DAPI action 2", "BF"]
    assert [c.fluorescent for c in result.plate.channels] == [True, True, False]
    assert result.plate.fields[0].details["z_um"]["DAPI action 2"] == [21.0, 22.0]
    assert result.problems == ()
    assert len(stored(result)) == 5


def test_lines_that_image_one_field_at_two_places_are_acquisitions(tmp_path: Path) -> None:
    images = [record(TimelineIndex=line, X=100.0 * line, TimePoint=line) for line in (1, 2)]
    result = cellvoyager.read(write_measurement(tmp_path, images))
    assert result.plate.acquisitions == {0: "time line 1", 1: "time line 2"}
    assert [str(field.key) for field in result.plate.fields] == ["A01/1", "A01/1x1"]


def test_of_a_channel_with_planes_and_a_projection_the_planes_are_stored(tmp_path: Path) -> None:
    stack = [record(ZIndex=z, Z=float(z)) for z in (1, 2)]
    projected = record(ActionIndex=2, ZImageProcessing="Maximum")
    result = cellvoyager.read(write_measurement(tmp_path, [*stack, projected, projected | {"Ch": 2}]))
    assert {(key[1], key[2]) for key in stored(result)} == {("DAPI", 0), ("DAPI", 1), ("BF", 0)}
    assert Counter(left.kind for left in result.left_out) == {"projection": 1}


def test_files_with_another_ending_are_found_and_counted(tmp_path: Path) -> None:
    import imagecodecs
    import tifffile

    images = [record(FieldIndex=f) for f in (1, 2)]
    write_measurement(tmp_path, images)
    for facts in images:
        path = tmp_path / name_of(facts)
        path.with_suffix(".PNG").write_bytes(imagecodecs.png_encode(tifffile.imread(path)))
        path.unlink()
    result = cellvoyager.read(tmp_path)
    assert (len(stored(result)), result.problems) == (2, ())
    assert "2 files named .tif in the index are .PNG files" in result.remarks


def test_a_channel_of_another_size_is_left_out_and_reported(tmp_path: Path) -> None:
    folder = write_measurement(tmp_path, [record(Ch=c, FieldIndex=f) for c in (1, 2) for f in (1, 2)])
    detail = folder / "MeasurementDetail.mrf"
    text = detail.read_text("utf-8-sig")
    at = text.rindex("<bts:MeasurementChannel")
    halved = re.sub(r'Pixels="(\d+)"', lambda m: f'Pixels="{int(m[1]) // 2}"', text[at:])
    detail.write_text(text[:at] + halved)
    result = cellvoyager.read(folder)
    assert [c.name for c in result.plate.channels] == ["DAPI"]
    assert Counter((left.kind, left.channel) for left in result.left_out) == {
        ("channel of another size", "BF"): 2
    }
    assert "channel 'BF' has 12 × 16 pixels, the others 24 × 32: it is left out" in result.remarks[0]


def test_errors_of_unknown_wells_or_fields_are_counted(tmp_path: Path) -> None:
    errors = [
        (record(Type="ERR", FieldIndex=2), "AF Error at A01 No. 2 (P)"),
        (record(Type="ERR", Row=14, FieldIndex=1), "AF Error at N01 No. 1 (P)"),
        ({"Type": "ERR", "Row": 1, "Column": 1}, "Camera Error"),
    ]
    result = cellvoyager.read(write_measurement(tmp_path, [record()], errors))
    assert [(str(key), kind) for key, _, kind in result.problems] == [("A01/2", NOT_IMAGED)]
    assert "the instrument reports errors: 2 × AF Error, 1 × Camera Error" in result.remarks


def test_an_error_is_of_the_acquisition_whose_time_line_it_names(tmp_path: Path) -> None:
    images = [
        record(TimelineIndex=line, X=100.0 * line, TimePoint=line, FieldIndex=field)
        for line, field in ((1, 1), (1, 2), (2, 1), (2, 3))
    ]
    errors = [
        (record(Type="ERR", FieldIndex=field, TimelineIndex=line), f"AF Error at A01 No. {field} (P)")
        for line, field in ((2, 2), (1, 3), (3, 1))
    ]
    result = cellvoyager.read(write_measurement(tmp_path, images, errors))
    assert [(str(key), kind) for key, _, kind in result.problems] == [
        ("A01/1x2", NOT_IMAGED),
        ("A01/3", NOT_IMAGED),
    ]
    assert "the instrument reports errors: 3 × AF Error" in result.remarks


def test_a_choice_of_channels_keeps_what_the_settings_state_of_them(tmp_path: Path) -> None:
    """The settings number channels, and do not name them: Ch2 says how BF was taken."""
    whole = cellvoyager.read(write_measurement(tmp_path, [record(Ch=c) for c in (1, 2)]))
    part = chosen_part(whole, Choice(channels=["BF"]))
    assert [channel.name for channel in part.plate.channels] == ["BF"]
    assert part.plate.details["channels"] == whole.plate.details["channels"] != {}


def test_without_settings_their_facts_are_unknown_and_that_is_reported(tmp_path: Path) -> None:
    folder = write_measurement(tmp_path, [record()])
    for name in ("MeasurementDetail.mrf", "a.mes"):
        (folder / name).unlink()
    result = cellvoyager.read(folder)
    assert result.plate.pixel_um is None is result.plate.fields[0].position_um
    assert result.plate.channels[0].name == "Ch1"
    assert len(result.remarks) == 2


def test_what_a_mac_adds_beside_the_settings_is_none_of_them(tmp_path: Path) -> None:
    folder = write_measurement(tmp_path, [record()])
    (folder / "a.mes").rename(folder / "b.mes")
    (folder / "._b.mes").write_bytes(b"\0\5\x16\7")
    assert [channel.name for channel in cellvoyager.read(folder).plate.channels] == ["DAPI"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    images = [record(FieldIndex=f, ZIndex=z) for f in (1, 2) for z in (1, 2)]
    folder = write_measurement(tmp_path, images)
    (folder / name_of(images[3])).unlink()
    [(key, text, kind)] = cellvoyager.read(folder).problems
    assert (str(key), text, kind) == ("A01/2", f"{name_of(images[3])} is missing", "missing")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"Row": "x"}, "Row is 'x'; a whole number is expected"),
        ({"Ch": ""}, "Ch is ''; a whole number is expected"),
        ({"Row": 33}, "row 33, column 1; at most 32 and 48"),
        ({"Row": 9}, "a plate of 8 × 12 wells, but there is well I01"),
    ],
)
def test_a_record_that_cannot_be_is_named(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    folder = write_measurement(tmp_path, [record()])
    index = folder / "MeasurementData.mlf"
    text = index.read_text()
    for name, value in facts.items():
        text = re.sub(rf'bts:{name}="[^"]*"', f'bts:{name}="{value}"', text)
    index.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as mistake:
        cellvoyager.read(folder)
    assert "MeasurementData.mlf" in str(mistake.value)


@pytest.mark.parametrize("name", ["../secret.tif", "/etc/passwd", "C:\\secret.tif"])
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_measurement(tmp_path / "m", [record()])
    index = folder / "MeasurementData.mlf"
    index.write_text(index.read_text().replace(name_of(record()), name))
    with pytest.raises(UserError, match="a file below"):
        cellvoyager.read(folder)


def test_several_measurements_are_not_one(tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        write_measurement(tmp_path / name, [record()])
    with pytest.raises(UserError, match=r"2 measurements \(m1/MeasurementData.mlf, m2/"):
        cellvoyager.read(tmp_path)
