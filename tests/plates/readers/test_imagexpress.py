"""Exports and databases of MetaXpress, real ones and made-up ones."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from coded_planes import decoded
from metaxpress_export import Shot, htd, write, xml

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Export, FieldKey
from hpc_isl.plates.readers import detect, imagexpress
from hpc_isl.plates.readers.folder import list_folder
from hpc_isl.recipes.plates import ConvertRecipe

GUID = "17654C10-92F1-4DFD-98AA-6A01BBD77557"
B02 = FieldKey("B02", "1")


def export(folder: Path, *written: tuple[str, Shot], **plan: Any) -> Export:
    """What is read of an export with an HTD: (path, what is taken there)."""
    for path, shot in written:
        write(folder / path, shot)
    wells = sorted({shot.well for _, shot in written})
    (folder / "P1.HTD").write_bytes(htd(wells, **plan))
    return imagexpress.read(folder)


def stored(result: Export) -> dict[tuple[str, str, str, int, int], Any]:
    """(well, field, channel, plane, time) -> the code of the pixels there."""
    names = [channel.name for channel in result.plate.channels]
    return {
        (key.well, key.name, names[file.channel], file.plane, file.time): decoded(read_plane(file.path))
        for key, files in result.files.items()
        for file in files
    }


def code(shot: Shot) -> tuple[str, int, int, int, int]:
    return shot.well, shot.site, shot.wave, shot.step, shot.time


def kinds(result: Export) -> Counter[str]:
    return Counter(left.kind for left in result.left_out)


# ---------------------------------------------------------------- what was done to images


@pytest.mark.parametrize(
    ("facts", "corrected"),
    [
        ({}, ""),
        ({"ShadingCorrection": "Off", "ReferenceSubtraction": "None"}, ""),
        ({"ShadingCorrection": "On", "ReferenceSubtraction": "None"}, "ShadingCorrection On"),
        (
            {"ShadingCorrection": "Flat DAPI", "ReferenceSubtraction": "Dark"},
            "ShadingCorrection Flat DAPI, ReferenceSubtraction Dark",
        ),
    ],
)
def test_whether_images_were_corrected_as_they_were_taken_is_kept(
    tmp_path: Path, facts: dict[str, str], corrected: str
) -> None:
    shots = [Shot("B02", wave=1, facts=facts), Shot("B02", wave=2)]
    result = export(
        tmp_path, *((f"TimePoint_1/ZStep_1/P1_B02_s1_w{shot.wave}.TIF", shot) for shot in shots), waves=2
    )
    assert [channel.corrected for channel in result.plate.channels] == [corrected, ""]


def test_a_channel_of_which_some_files_alone_are_corrected_is_remarked(tmp_path: Path) -> None:
    shots = [Shot("B02", site, facts={"ShadingCorrection": how}) for site, how in ((1, "On"), (2, "Off"))]
    result = export(tmp_path, *((f"TimePoint_1/ZStep_1/P1_B02_s{shot.site}.TIF", shot) for shot in shots))
    assert result.plate.channels[0].corrected == "ShadingCorrection On"
    assert [text for text in result.remarks if "1 of 2 files are corrected (ShadingCorrection On)" in text]


# ---------------------------------------------------------------- layouts


def test_an_export_is_read_with_all_that_its_files_state(tmp_path: Path) -> None:
    shots = [
        Shot(well, site, wave, step, time)
        for well in ("B02", "C11") for site in (1, 2) for wave in (1, 3)
        for step in (1, 2, 10) for time in (1, 2)
    ]  # fmt: skip
    result = export(
        tmp_path,
        *((f"TimePoint_{s.time}/ZStep_{s.step}/P1_{s.well}_s{s.site}_w{s.wave}.TIF", s) for s in shots),
        waves=3, times=2,
    )  # fmt: skip
    steps = {1: 0, 2: 1, 10: 2}
    names = {1: "DAPI", 3: "TL20"}
    assert stored(result) == {
        (s.well, str(s.site), names[s.wave], steps[s.step], s.time - 1): (
            s.well,
            s.site,
            s.wave,
            s.step,
            s.time,
        )
        for s in shots
    }
    plate = result.plate
    assert (plate.name, len(plate.rows), len(plate.columns), plate.pixel_um) == ("P1", 8, 12, 1.3672)
    assert [(c.name, c.fluorescent, c.exposure_s, c.emission_nm) for c in plate.channels] == [
        ("DAPI", True, 0.01, 450),
        ("TL20", False, 0.03, None),
    ]
    field = plate.fields[0]
    assert field.z_um == (9003.01, 9006.02, 9030.1)
    assert field.position_um == (19885 - 11.5 * 1.3672, 20300 - 15.5 * 1.3672)
    assert field.details["time"] == "2024-07-09T13:01:01.101"
    assert field.details["seconds"] == [0.0, 60.0]
    assert plate.details["description"] == "two lines; of text"
    assert result.problems == ()
    assert result.remarks == ("the HTD names 'FITC', of which there are no files",)


@pytest.mark.parametrize(
    ("name", "shot"),
    [
        ("P1_B02.TIF", Shot("B02")),
        ("P1_B02_s1.tif", Shot("B02")),
        ("P1_B02_w1.tiff", Shot("B02")),
        (f"P1_B02_s1{GUID}.tif", Shot("B02")),
        (f"P1_B02_s12{GUID.lower()}.tif", Shot("B02", 12)),
        (f"P1_B02_s3_w11{GUID}.tif", Shot("B02", 3, 11)),
        (f"P1_B02_w7{GUID}.tif", Shot("B02", 1, 7)),
        ("P1_AF48_s1_w1.TIF", Shot("AF48")),
        ("my_plate_A01_x_B02_s2_w1.TIF", Shot("B02", 2)),
        ("2024-01-31/1697/TimePoint_1/P1_B02_s1_w1.TIF", Shot("B02")),
        ("2024-01-31/1697/ZStep_1/P1_B02_s1_w1.TIF", Shot("B02")),
    ],
)
def test_names_are_understood(tmp_path: Path, name: str, shot: Shot) -> None:
    """A GUID may begin with digits: site 1 and 17654C10-… are not site 117654."""
    write(tmp_path / name, shot)
    assert imagexpress.recognise(list_folder(tmp_path))
    [(where, code)] = stored(imagexpress.read(tmp_path)).items()
    assert (where[0], int(where[1])) == (shot.well, shot.site)
    assert code == (shot.well, shot.site, shot.wave, 1, 1)


def test_thumbnails_are_not_planes_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "P1_B02_s1_w1.tif", Shot("B02"))
    for name in (f"P1_B02_s1_w1_thumb{GUID}.tif", "P1_B02_s1_w1_thumb.tif"):
        write(tmp_path / name, Shot("B02"))
    result = imagexpress.read(tmp_path)
    assert (len(stored(result)), kinds(result)) == (1, {"thumbnail": 2})


def test_measurements_of_one_plate_are_its_acquisitions(tmp_path: Path) -> None:
    for number, folder in enumerate(("2024-01-30/1600", "2024-01-31/1697"), 1):
        write(tmp_path / folder / "TimePoint_1" / "P1_B02_s1_w1.TIF", Shot("B02", time=number))
    result = imagexpress.read(tmp_path)
    assert result.plate.acquisitions == {0: "2024-01-30/1600", 1: "2024-01-31/1697"}
    codes = {str(key): decoded(read_plane(files[0].path))[-1] for key, files in result.files.items()}
    assert codes == {"B02/1": 1, "B02/1x1": 2}


# ---------------------------------------------------------------- copies and projections


def test_a_channel_that_was_copied_into_every_step_is_stored_once(tmp_path: Path) -> None:
    stack = [(f"ZStep_{step}/P1_B02_s1_w1.TIF", Shot("B02", wave=1, step=step)) for step in (1, 2, 3)]
    flat = [(f"ZStep_{step}/P1_B02_s1_w3.TIF", Shot("B02", wave=3, step=1)) for step in (0, 1, 2, 3)]
    result = export(tmp_path, *stack, ("ZStep_0/P1_B02_s1_w1.TIF", Shot("B02", projection="Maximum")), *flat)
    assert [code for _, code in sorted(stored(result).items())] == [
        ("B02", 1, 1, 1, 1), ("B02", 1, 1, 2, 1), ("B02", 1, 1, 3, 1), ("B02", 1, 3, 1, 1),
    ]  # fmt: skip
    assert kinds(result) == {"copy": 3, "projection": 1}
    assert {left.path.parent.name for left in result.left_out if left.kind == "copy"} == {
        "ZStep_0",
        "ZStep_2",
        "ZStep_3",
    }
    field = result.plate.fields[0]
    assert field.details["planes"] == {"DAPI": [0, 1, 2], "TL20": [0]}
    assert (field.planes("TL20"), field.details["z_um"]["TL20"]) == ((0,), [9003.01])


def test_a_channel_of_the_first_time_only_is_missing_at_the_others(tmp_path: Path) -> None:
    moving = [(f"TimePoint_{t}/P1_B02_s1_w1.TIF", Shot("B02", time=t)) for t in (1, 2, 3)]
    still = [(f"TimePoint_{t}/P1_B02_s1_w2.TIF", Shot("B02", wave=2, time=1)) for t in (1, 2, 3)]
    result = export(tmp_path, *moving, *still, waves=2, times=3, z=False)
    assert kinds(result) == {"copy": 2}
    assert result.plate.fields[0].details["times"] == {"DAPI": [0, 1, 2], "FITC": [0]}
    assert result.problems == ()


def test_a_channel_of_which_there_is_a_projection_alone_is_kept_as_that(tmp_path: Path) -> None:
    stack = [(f"ZStep_{step}/P1_B02_s1_w1.TIF", Shot("B02", step=step)) for step in (1, 2)]
    projected = Shot("B02", wave=2, step=2, projection="Best Focus")
    result = export(
        tmp_path, *stack, *((f"ZStep_{n}/P1_B02_s1_w2.TIF", projected) for n in (0, 1, 2)), waves=2
    )
    assert stored(result)["B02", "1", "FITC", 0, 0] == ("B02", 1, 2, 0, 1)
    assert kinds(result) == {"copy": 2}
    assert result.plate.fields[0].details["projections"] == {"FITC": "Best Focus"}


def test_equal_pixels_alone_are_no_copies(tmp_path: Path) -> None:
    """Dark planes are equal by right: what was taken at another height or time is stored."""
    for step in (1, 2, 3):
        shot = Shot("B02", step=step)
        path = write(tmp_path / f"ZStep_{step}/P1_B02_s1_w1.TIF", shot)
        tifffile.imwrite(path, np.zeros((24, 32), np.uint16), description=xml(shot), metadata=None)
    result = imagexpress.read(tmp_path)
    assert (len(result.files[B02]), kinds(result)) == (3, {})


def test_planes_of_one_height_and_time_but_two_guids_are_two(tmp_path: Path) -> None:
    for step in (1, 2):
        shot = Shot("B02", step=1, facts={"plane-guid": f"{{{step:032x}}}"})
        write(tmp_path / f"ZStep_{step}/P1_B02_s1_w1.TIF", shot)
    assert len(imagexpress.read(tmp_path).files[B02]) == 2


@pytest.mark.parametrize("z", [True, False])
def test_of_files_that_state_nothing_the_htd_decides_whether_they_are_copies(tmp_path: Path, z: bool) -> None:
    for step in (1, 2, 3):
        write(tmp_path / f"ZStep_{step}/P1_B02_s1_w1.TIF", Shot("B02", step=step), described=False)
    (tmp_path / "P1.HTD").write_bytes(htd(["B02"], z=z))
    result = imagexpress.read(tmp_path)
    assert (len(result.files[B02]), kinds(result)["copy"]) == ((3, 0) if z else (1, 2))
    assert result.plate.pixel_um is None is result.plate.fields[0].position_um


def test_projections_of_files_that_state_nothing_are_known_by_their_folder(tmp_path: Path) -> None:
    for name in (
        "P1_B02_s1_w1.tif",
        "ZStep_1/P1_B02_s1_w1.tif",
        "ZStep_2/P1_B02_s1_w1.tif",
        "P1_B02_s1_w2.tif",
    ):
        write(tmp_path / name, Shot("B02", wave=int(name[-5])), described=False)
    result = imagexpress.read(tmp_path)
    assert kinds(result) == {"projection": 1}
    assert result.plate.fields[0].details["planes"] == {"w1": [0, 1], "w2": [0]}


# ---------------------------------------------------------------- what is wrong


def test_a_lost_file_is_named_and_a_well_without_a_channel_is_a_remark(tmp_path: Path) -> None:
    shots = [Shot(well, site, wave) for well in ("B02", "B03") for site in (1, 2) for wave in (1, 2)]
    kept = [s for s in shots if (s.well, s.wave) != ("B03", 2) and s != Shot("B02", 2, 2)]
    result = export(tmp_path, *((f"P1_{s.well}_s{s.site}_w{s.wave}.TIF", s) for s in kept), waves=2)
    [(key, text, kind)] = result.problems
    assert (str(key), kind) == ("B02/2", "incomplete")
    assert "lacks channel 'FITC' plane 0" in text
    assert "channel 'FITC' was not imaged in 1 of 2 wells (B03)" in result.remarks


def test_a_channel_with_another_binning_is_left_out_and_a_plane_of_another_size_is_named(
    tmp_path: Path,
) -> None:
    shots = {f"P1_B0{n}_w{w}.TIF": Shot(f"B0{n}", wave=w) for n in (2, 3, 4) for w in (1, 2, 3)}
    for name, shot in shots.items():
        write(tmp_path / name, shot)
    binned = {"spatial-calibration-x": 2.7344, "spatial-calibration-y": 2.7344}
    for name, shot in shots.items():
        if shot.wave == 2:
            small = Shot(shot.well, wave=2, facts=binned)
            tifffile.imwrite(
                tmp_path / name, np.zeros((12, 16), "uint16"), description=xml(small), metadata=None
            )
    odd = "P1_B03_w3.TIF"
    tifffile.imwrite(tmp_path / odd, np.zeros((24, 30), "uint16"), description=xml(shots[odd]), metadata=None)
    (tmp_path / "P1.HTD").write_bytes(htd(["B02", "B03", "B04"], waves=3))
    result = imagexpress.read(tmp_path)
    assert [channel.name for channel in result.plate.channels] == ["DAPI", "TL20"]
    assert result.plate.pixel_um == 1.3672
    assert kinds(result) == {"channel of another size": 3}
    assert "channel 'FITC' has 12 × 16 pixels, the others 24 × 32: it is left out" in result.remarks[0]
    [(key, text, kind)] = result.problems
    assert (str(key), kind) == ("B03/1", "differing")
    assert text == f"{odd} is uint16 of 24 × 30 pixels, other planes are uint16 of 24 × 32 pixels"


def test_a_first_file_that_is_damaged_hides_no_layout(tmp_path: Path) -> None:
    for site in (1, 2):
        write(tmp_path / f"P1_B02_s{site}_w1.TIF", Shot("B02", site))
    (tmp_path / "P1_B02_s1_w1.TIF").write_bytes(b"")
    assert imagexpress.recognise(list_folder(tmp_path))


def test_a_site_may_be_written_with_a_zero(tmp_path: Path) -> None:
    """The stage label of _s02 says Site 2."""
    write(tmp_path / "P1_B02_s02_w1.TIF", Shot("B02", 2))
    result = imagexpress.read(tmp_path)
    assert (len(result.files), result.problems) == (1, ())


def test_damaged_and_misplaced_files_are_named(tmp_path: Path) -> None:
    for site in (1, 2, 3):
        write(tmp_path / f"P1_B02_s{site}_w1.TIF", Shot("B02", site))
    write(tmp_path / "P1_B02_s4_w1.TIF", Shot("C05", 4))
    path = tmp_path / "P1_B02_s2_w1.TIF"
    path.write_bytes(path.read_bytes()[:900])
    problems = {(str(key), kind): text for key, text, kind in imagexpress.read(tmp_path).problems}
    assert problems.keys() == {("B02/2", "damaged"), ("B02/4", "misplaced")}
    assert problems["B02/4", "misplaced"] == "P1_B02_s4_w1.TIF says that it is 'C05 : Site 4'"


def test_two_files_for_one_plane_are_named_and_neither_is_stored(tmp_path: Path) -> None:
    for letter in "AB":
        write(tmp_path / f"P1_B02_s1_w1{letter * 8}{GUID[8:]}.tif", Shot("B02", time=ord(letter) - 60))
    [(_, text, kind)] = imagexpress.read(tmp_path).problems
    assert kind == "duplicate"
    assert "is given twice" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no line HTSInfoFile"),
        (htd(["B02"]).replace(b'"XWells", 12', b'"XWells", many'), "XWells is 'many'; a whole number"),
        (htd(["B02"]).replace(b'"XWells", 12', b'"XWells", 99'), "8 rows and 99 columns"),
        (
            htd(["B02"]).replace(b'"XWells", 12', b'"XWells", 1'),
            "a plate of 8 × 1 wells, but there is well B02",
        ),
        (b'"HTSInfoFile", "' + b"x" * 200_000 + b'"', "cannot be understood"),
    ],
)
def test_an_htd_that_is_damaged_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    write(tmp_path / "P1_B02_s1_w1.TIF", Shot("B02"))
    (tmp_path / "P1.HTD").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)) as mistake:
        imagexpress.read(tmp_path)
    assert "P1.HTD" in str(mistake.value)


def test_several_plates_are_not_one(tmp_path: Path) -> None:
    for plate in ("P1", "P2"):
        write(tmp_path / f"{plate}_B02_s1_w1.TIF", Shot("B02"))
    with pytest.raises(UserError, match=r"several plates \(P1, P2\); give one as source"):
        imagexpress.read(tmp_path)
    for plate in ("P1", "P2"):
        (tmp_path / f"{plate}.HTD").write_bytes(htd(["B02"]))
    with pytest.raises(UserError, match=r"2 exports \(P1.HTD, P2.HTD\)"):
        imagexpress.read(tmp_path)


# ---------------------------------------------------------------- real exports


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "shape", "counts", "planes"),
    [
        ("imagexpress_htd", (1, 3, 2, 256, 256), {"copy": 16, "projection": 4}, 16),
        ("metaxpress_database", (1, 4, 10, 512, 512), {"thumbnail": 48, "projection": 4}, 44),
    ],
)
def test_real_exports_are_read_as_their_files_say(
    realdata: Path, name: str, shape: tuple[int, ...], counts: dict[str, int], planes: int
) -> None:
    """Every quantity is the file's own, as tifffile reads it, and each file is stored or accounted for."""
    folder = (realdata / "vendor" / name).resolve()
    recipe = ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"})
    result = detect.read(recipe)
    assert result.problems == ()
    assert {field.shape for field in result.plate.fields} == {shape}
    assert kinds(result) == counts
    names = [channel.name.removesuffix(f" {n}") for n, channel in enumerate(result.plate.channels, 1)]
    used = set()
    for field in result.plate.fields:
        for file in result.files[field.key]:
            with tifffile.TiffFile(file.path) as tiff:
                facts = (tiff.metaseries_metadata or {})["PlaneInfo"]
            used.add(file.path)
            assert facts["stage-label"] == f"{field.key.well} : Site {field.key.name}"
            assert facts["_IllumSetting_"] == names[file.channel]
            channel = result.plate.channels[file.channel]
            at = field.planes(channel.name).index(file.plane)
            assert field.details["z_um"][channel.name][at] == facts["z-position"]
            assert facts["spatial-calibration-x"] == result.plate.pixel_um
            assert f"{1000 * (channel.exposure_s or 0):g} ms" == facts["Exposure Time"]
            assert field.position_um is not None
            half = (shape[-1] - 1) / 2 * facts["spatial-calibration-x"]
            assert field.position_um[1] + half == pytest.approx(facts["stage-position-x"], abs=1e-3)
            assert field.position_um[0] + half == pytest.approx(facts["stage-position-y"], abs=1e-3)
            if "Z Step" in facts and file.channel < 2:
                assert facts["Z Step"] == file.plane + 1
    images = {path for path in folder.rglob("*") if path.suffix.lower() == ".tif"}
    assert used | {left.path for left in result.left_out} == images
    assert len(used) == planes


@pytest.mark.realdata
def test_copies_of_a_real_export_are_equal_to_what_is_stored(realdata: Path) -> None:
    result = imagexpress.read(realdata / "vendor" / "imagexpress_htd")
    pixels = {
        file.path.name: read_plane(file.path)
        for files in result.files.values()
        for file in files
        if file.channel
    }
    copies = [left.path for left in result.left_out if left.kind == "copy"]
    assert len(copies) == 16
    for path in copies:
        np.testing.assert_array_equal(read_plane(path), pixels[path.name])


@pytest.mark.realdata
def test_names_without_metadata_are_read_when_the_reader_is_named(realdata: Path) -> None:
    result = imagexpress.read(realdata / "bbbc039" / "images")
    assert len(result.plate.fields) == 14
    assert result.plate.pixel_um is None
    assert result.problems == ()
