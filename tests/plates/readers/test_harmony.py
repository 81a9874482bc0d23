"""Harmony exports, from a real instrument and bent ones."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import NOT_IMAGED, FieldKey, Problem
from hpc_isl.plates.readers import harmony
from hpc_isl.plates.readers.folder import list_folder

A01 = FieldKey("A01", "1")


def both(shot: Any, **facts: object) -> list[dict[str, str]]:
    return [shot(ChannelID=channel, **facts) for channel in (1, 2)]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("version", ["HarmonyV5", "HarmonyV6", "HarmonyV7"])
def test_every_version_gives_the_same_export(tmp_path: Path, harmony_export: Any, version: str) -> None:
    shots = [s for plane in (1, 2, 3) for s in both(harmony_export.shot, PlaneID=plane)]
    export = harmony.read(harmony_export.write(tmp_path, shots, version=version))
    plate = export.plate
    assert (plate.name, len(plate.rows), len(plate.columns)) == ("P 01", 8, 12)
    assert [(c.name, c.fluorescent) for c in plate.channels] == [
        ("Brightfield", False),
        ("HOECHST 33342", True),
    ]
    assert [(c.excitation_nm, c.emission_nm, c.exposure_s) for c in plate.channels] == [
        (740, None, 0.1),
        (405, 456, 0.02),
    ]
    assert (plate.pixel_um, plate.plane_um) == (0.5, 1.0)
    assert (plate.details["version"], plate.details["instrument"]) == (version, "Phenix")
    assert plate.details["objective"] == "20x/1"
    [field] = plate.fields
    assert (field.key, field.shape, field.dtype) == (A01, (1, 2, 3, 24, 32), "uint16")
    assert field.z_um == (1.0, 2.0, 3.0)
    assert export.problems == () == export.remarks
    json.dumps([plate.details, field.details, [c.flat_field for c in plate.channels]], allow_nan=False)


def test_pixels_are_found_in_the_files_that_the_index_names(tmp_path: Path, harmony_export: Any) -> None:
    shots = [s for plane in (3, 1, 2) for s in both(harmony_export.shot, PlaneID=plane)]
    export = harmony.read(harmony_export.write(tmp_path, shots))
    read = {(p.channel, p.plane): int(read_plane(p.path)[0, 0]) for p in export.files[A01]}
    written = {(int(s["ChannelID"]) - 1, int(s["PlaneID"]) - 1): number for number, s in enumerate(shots)}
    assert read == written


def test_position_is_that_of_the_first_pixel_with_y_down(tmp_path: Path, harmony_export: Any) -> None:
    """Two fields, one above the other, overlap as a mosaic placed by hand does."""
    upper = harmony_export.shot(PositionX="1E-04", PositionY="6E-06")
    lower = harmony_export.shot(FieldID=2, PositionX="1E-04", PositionY="-6E-06")
    plate = harmony.read(harmony_export.write(tmp_path, [upper, lower])).plate
    places = {field.key.name: field.position_um for field in plate.fields}
    # 24 × 32 pixels of 0.5 µm: the centre of the first pixel is 5.75 µm above, 7.75 µm left of the middle.
    assert places == {"1": (-6 - 5.75, 100 - 7.75), "2": (6 - 5.75, 100 - 7.75)}
    height_um = 24 * 0.5
    assert places["2"][0] - places["1"][0] == height_um, "the lower field begins where the upper one ends"


def test_flat_field_profile_becomes_numbers(tmp_path: Path, harmony_export: Any) -> None:
    channels = {1: harmony_export.channels[1] | {"ChannelName": "405ex, [570: 630]"}}
    export = harmony.read(harmony_export.write(tmp_path, [harmony_export.shot()], channels=channels))
    [channel] = export.plate.channels
    assert channel.name == "405ex, [570: 630]"
    assert channel.flat_field == {
        "Character": "NonFlat",
        "Mean": 443.5,
        "NonFlatness": {"Corrected": 0.04, "Random": None},
        "Profile": {
            "Coefficients": [[1.25], [-0.0365, -0.032]],
            "Dims": [24, 32],
            "Origin": [11.5, 15.5],
            "Scale": [0.04, 0.03],
            "Type": "Polynomial",
        },
        "Quality": 1.0,
    }


@pytest.mark.parametrize(
    "profile", ["{Background: [%s", "no profile %s", "{A: &amp;a [*a], Background: {B: *a}} %s"]
)
def test_an_unreadable_flat_field_is_left_out_and_reported(
    tmp_path: Path, harmony_export: Any, profile: str
) -> None:
    export = harmony.read(harmony_export.write(tmp_path, [harmony_export.shot()], profile=profile))
    assert export.plate.channels[0].flat_field is None
    assert "'Brightfield'" in export.remarks[0]


def test_channels_may_have_fewer_planes(tmp_path: Path, harmony_export: Any) -> None:
    """Bright-field at four heights, the stain at one, in every field: that is no fault."""
    shots = [
        shot
        for field in (1, 2)
        for shot in [
            *(harmony_export.shot(FieldID=field, PlaneID=plane) for plane in (1, 2, 3, 4)),
            harmony_export.shot(FieldID=field, ChannelID=2, PositionZ="-4E-06"),
        ]
    ]
    export = harmony.read(harmony_export.write(tmp_path, shots))
    field = export.plate.fields[0]
    assert export.problems == ()
    assert field.shape == (1, 2, 4, 24, 32)
    assert field.details["planes"] == {"Brightfield": [0, 1, 2, 3], "HOECHST 33342": [0]}
    assert field.planes("Brightfield") == (0, 1, 2, 3)
    assert field.planes("HOECHST 33342") == (0,)
    assert field.z_um == (1.0, 2.0, 3.0, 4.0)
    assert field.details["z_um"] == {"Brightfield": [1.0, 2.0, 3.0, 4.0], "HOECHST 33342": [-4.0]}
    assert len(export.files[A01]) == 5


def test_times_follow_the_time_point_and_its_fast_series(tmp_path: Path, harmony_export: Any) -> None:
    shots = [
        harmony_export.shot(
            TimepointID=time, URL=f"t{time}sk{time}fk{fast}.tiff", MeasurementTimeOffset=time * 60
        )
        for time in (10, 9)
        for fast in (2, 1)
    ]
    export = harmony.read(harmony_export.write(tmp_path, shots))
    assert export.problems == ()
    assert export.plate.fields[0].shape[0] == 4
    assert [p.path.name for p in export.files[A01]] == [
        "t9sk9fk1.tiff",
        "t9sk9fk2.tiff",
        "t10sk10fk1.tiff",
        "t10sk10fk2.tiff",
    ]
    assert export.plate.fields[0].details["seconds"] == [540, 540, 600, 600]


def test_channels_may_have_fewer_times(tmp_path: Path, harmony_export: Any) -> None:
    shots = [
        *(harmony_export.shot(TimepointID=time) for time in (0, 1, 2)),
        harmony_export.shot(ChannelID=2, TimepointID=1),
    ]
    export = harmony.read(harmony_export.write(tmp_path, shots))
    assert export.problems == ()
    assert export.plate.fields[0].details["times"] == {"Brightfield": [0, 1, 2], "HOECHST 33342": [1]}


def test_channels_of_one_name_stay_two(tmp_path: Path, harmony_export: Any) -> None:
    channels = dict.fromkeys((1, 2), harmony_export.channels[1])
    export = harmony.read(harmony_export.write(tmp_path, both(harmony_export.shot), channels=channels))
    assert [channel.name for channel in export.plate.channels] == ["Brightfield", "Brightfield 2"]


def test_the_height_of_the_found_focus_is_kept(tmp_path: Path, harmony_export: Any) -> None:
    shots = [harmony_export.shot(PositionZ="-5E-06", AbsPositionZ="0.134611905")]
    [field] = harmony.read(harmony_export.write(tmp_path, shots)).plate.fields
    assert field.details["focus_um"] == 134616.905


def test_an_index_without_sizes_takes_those_of_the_files(tmp_path: Path, harmony_export: Any) -> None:
    channels = {1: {"ChannelName": "Brightfield"}}
    export = harmony.read(harmony_export.write(tmp_path, [harmony_export.shot()], channels=channels))
    assert export.plate.fields[0].shape == (1, 1, 1, 24, 32)
    assert export.plate.pixel_um is None is export.plate.fields[0].position_um
    assert not export.plate.channels[0].fluorescent, "by its name, for want of anything else"


def test_assay_layout_becomes_the_plate_map(tmp_path: Path, harmony_export: Any) -> None:
    harmony_export.write(tmp_path, [harmony_export.shot()])
    (tmp_path / "Assaylayout").mkdir()
    wells = "".join(
        f"<Well><Row>{row}</Row><Col>{col}</Col><Value>{value}</Value></Well>"
        for row, col, value in [(1, 1, "DMSO"), (2, 3, "taxol &amp; co"), (2, 4, "")]
    )
    (tmp_path / "Assaylayout" / "a.xml").write_text(
        f"<AssayLayout xmlns='x'><Layer><Name>Compound</Name>{wells}</Layer></AssayLayout>"
    )
    (tmp_path / "Assaylayout" / "._a.xml").write_bytes(b"\0\5\x16\7")  # by a Mac
    assert harmony.read(tmp_path).plate_map == {
        "A01": {"Compound": "DMSO"},
        "B03": {"Compound": "taxol & co"},
    }


# ---------------------------------------------------------------- where exports lie


def test_the_folder_may_be_the_export_or_its_images(tmp_path: Path, harmony_export: Any) -> None:
    harmony_export.write(tmp_path / "P01", [harmony_export.shot()])
    for folder in (tmp_path / "P01", tmp_path / "P01" / "Images", tmp_path):
        assert harmony.recognise(list_folder(folder))
        assert harmony.read(folder).plate.name == "P 01"


def test_several_exports_are_not_one(tmp_path: Path, harmony_export: Any) -> None:
    for name in ("P01", "P02"):
        harmony_export.write(tmp_path / name, [harmony_export.shot()], plate={"PlateID": name})
    with pytest.raises(UserError, match="2 Harmony exports \\(P01, P02\\)"):
        harmony.read(tmp_path)


@pytest.mark.parametrize("below", ["", "images/", "r01c01/", "images/r01c01/"])
def test_archives_keep_images_below_the_index(tmp_path: Path, harmony_export: Any, below: str) -> None:
    shot = harmony_export.shot()
    harmony_export.write(tmp_path, [shot], version="HarmonyV7")
    home = tmp_path / "index" if below.startswith("images") else tmp_path / "archive"
    home.mkdir()
    (tmp_path / "Images" / "Index.idx.xml").rename(home / "Index.xml")
    base = tmp_path if below.startswith("images") else home
    (base / below).mkdir(parents=True, exist_ok=True)
    (tmp_path / "Images" / shot["URL"]).rename(base / below / shot["URL"])
    (tmp_path / "Images").rmdir()
    [plane] = harmony.read(tmp_path).files[A01]
    assert plane.path == base / below / shot["URL"]


def test_files_in_subfolders_with_windows_separators_are_found(tmp_path: Path, harmony_export: Any) -> None:
    shot = harmony_export.shot()
    harmony_export.write(tmp_path, [shot])
    images = tmp_path / "Images"
    (images / "r01c01").mkdir()
    (images / shot["URL"]).rename(images / "r01c01" / shot["URL"])
    text = harmony_export.index_text([shot | {"URL": f"r01c01\\{shot['URL']}"}])
    (images / "Index.idx.xml").write_text(text)
    export = harmony.read(tmp_path)
    assert export.problems == ()
    assert export.files[A01][0].path == images / "r01c01" / shot["URL"]


def test_a_folder_without_an_index_is_not_harmony(tmp_path: Path) -> None:
    (tmp_path / "Index.xml").write_text("<something/>")
    assert not harmony.recognise(list_folder(tmp_path))
    with pytest.raises(UserError, match=r"Images/Index\.idx\.xml"):
        harmony.read(tmp_path)


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    "name",
    ["../secret.tiff", "a/../../secret.tiff", "/etc/secret.tiff", "C:\\secret.tiff", "\\\\host\\secret.tiff",
     "http://host/secret.tiff", "file:///secret.tiff", "..\\secret.tiff"],
)  # fmt: skip
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, harmony_export: Any, name: str) -> None:
    good = harmony_export.shot()
    harmony_export.write(tmp_path, [good])
    text = harmony_export.index_text([good, harmony_export.shot(ChannelID=2, id="0101K1", URL=name)])
    (tmp_path / "Images" / "Index.idx.xml").write_text(text)
    with pytest.raises(UserError) as mistake:
        harmony.read(tmp_path)
    for part in ("Index.idx.xml", "0101K1", repr(name)):
        assert part in str(mistake.value)


@pytest.mark.parametrize("folder", [False, True])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, harmony_export: Any, folder: bool) -> None:
    good = harmony_export.shot()
    export = harmony_export.write(tmp_path / "export", [good, harmony_export.shot(ChannelID=2)])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.tiff").write_bytes(b"")
    link = export / "Images" / ("linked" if folder else "x.tiff")
    os.symlink(outside if folder else outside / "x.tiff", link)
    url = "linked/x.tiff" if folder else "x.tiff"
    text = harmony_export.index_text([good, harmony_export.shot(ChannelID=2, URL=url)])
    (export / "Images" / "Index.idx.xml").write_text(text)
    with pytest.raises(UserError, match="link that leads out"):
        harmony.read(export)


def test_missing_files_are_named_with_their_field(tmp_path: Path, harmony_export: Any) -> None:
    shots = [s for field in (1, 2) for s in both(harmony_export.shot, FieldID=field)]
    harmony_export.write(tmp_path, shots)
    (tmp_path / "Images" / shots[3]["URL"]).unlink()
    export = harmony.read(tmp_path)
    assert export.problems == (Problem(FieldKey("A01", "2"), f"{shots[3]['URL']} is missing", "missing"),)
    assert [p.channel for p in export.files[FieldKey("A01", "2")]] == [0]
    assert export.plate.fields[1].shape == (1, 2, 1, 24, 32)


def test_duplicate_entries_name_both_files(tmp_path: Path, harmony_export: Any) -> None:
    shots = [harmony_export.shot(), harmony_export.shot(URL="again.tiff")]
    export = harmony.read(harmony_export.write(tmp_path, shots))
    [(key, text, _)] = export.problems
    assert key == A01
    assert "given twice" in text
    assert shots[0]["URL"] in text
    assert "again.tiff" in text


def test_one_file_for_two_planes_is_named(tmp_path: Path, harmony_export: Any) -> None:
    shots = [harmony_export.shot(), harmony_export.shot(PlaneID=2, URL=harmony_export.shot()["URL"])]
    [(_, text, _)] = harmony.read(harmony_export.write(tmp_path, shots)).problems
    assert "is given for channel 'Brightfield' plane 0 and channel 'Brightfield' plane 1" in text


def test_a_field_that_was_cut_short_is_named(tmp_path: Path, harmony_export: Any) -> None:
    shots = [s for field in (1, 2, 3) for s in both(harmony_export.shot, FieldID=field)][:-1]
    [(key, text, kind)] = harmony.read(harmony_export.write(tmp_path, shots)).problems
    assert (key.name, kind) == ("3", NOT_IMAGED)
    assert "lacks channel 'HOECHST 33342' plane 0" in text


def test_a_failed_image_is_named(tmp_path: Path, harmony_export: Any) -> None:
    shots = [harmony_export.shot(State="Failed")]
    [(key, text, _)] = harmony.read(harmony_export.write(tmp_path, shots)).problems
    assert key == A01
    assert f"{shots[0]['URL']} (Failed)" in text


def test_an_image_without_file_is_named(tmp_path: Path, harmony_export: Any) -> None:
    good = harmony_export.shot()
    harmony_export.write(tmp_path, [good])
    text = harmony_export.index_text([good, harmony_export.shot(FieldID=2, URL="", id="0101K1F2P1R1")])
    (tmp_path / "Images" / "Index.idx.xml").write_text(text)
    [(key, text, kind)] = harmony.read(tmp_path).problems
    assert (key.name, kind) == ("2", NOT_IMAGED)
    assert text == "the instrument wrote no file for 0101K1F2P1R1"


def test_a_channel_of_another_size_is_left_out_and_reported(tmp_path: Path, harmony_export: Any) -> None:
    """One channel with other binning costs that channel, and not the plate."""
    channels = harmony_export.channels | {
        2: harmony_export.channels[2] | {"ImageSizeX": "16", "ImageSizeY": "12", "ImageResolutionX": "1E-06"}
    }
    export = harmony.read(harmony_export.write(tmp_path, both(harmony_export.shot), channels=channels))
    assert [channel.name for channel in export.plate.channels] == ["Brightfield"]
    assert (export.plate.pixel_um, export.problems) == (0.5, ())
    assert [left.kind for left in export.left_out] == ["channel of another size"]
    assert export.remarks == (
        "channel 'HOECHST 33342' has 12 × 16 pixels, the others 24 × 32: it is left out, for pixels are not "
        "resampled unasked; resample=true does it",
    )


@pytest.mark.parametrize(
    ("facts", "pixel_um", "said"),
    [
        ({"ImageResolutionX": "5E-07", "ImageResolutionY": "5.001E-07"}, 0.5, ""),
        ({"ImageResolutionX": "5E-07", "ImageResolutionY": "6E-07"}, None, "pixels are not square"),
        ({"ImageResolutionX": "", "ImageResolutionY": "6E-07"}, 0.6, ""),
    ],
)
def test_both_edges_of_a_pixel_are_read(
    tmp_path: Path, harmony_export: Any, facts: dict[str, str], pixel_um: float | None, said: str
) -> None:
    channels = {1: harmony_export.channels[1] | facts}
    export = harmony.read(harmony_export.write(tmp_path, [harmony_export.shot()], channels=channels))
    assert export.plate.pixel_um == pixel_um
    assert [remark.partition(":")[0] for remark in export.remarks] == ([said] if said else [])


def test_sizes_that_are_no_numbers_are_reported(tmp_path: Path, harmony_export: Any) -> None:
    channels = {1: harmony_export.channels[1] | {"ImageResolutionX": "0,5", "ImageSizeY": "many"}}
    export = harmony.read(harmony_export.write(tmp_path, [harmony_export.shot()], channels=channels))
    assert export.plate.pixel_um == 0.5, "as along y"
    assert export.remarks == (
        "the index states ImageSizeY 'many', which is no number: it is ignored",
        "the index states ImageResolutionX '0,5', which is no number: it is ignored",
    )


def test_units_are_read(tmp_path: Path, harmony_export: Any) -> None:
    """Columbus writes lengths in m, cm or nm, and says so."""
    path = harmony_export.write(tmp_path, [harmony_export.shot(PositionX="1E-04", PositionZ="3E-06")])
    index = path / "Images" / "Index.idx.xml"
    text = index.read_text("utf-8-sig")
    for old, new in (
        ("<PositionX>1E-04", '<PositionX Unit="cm">1E-02'),
        ("<PositionZ>3E-06", '<PositionZ Unit="nm">3000'),
        ("<ImageResolutionX>5E-07", '<ImageResolutionX Unit="µm">0.5'),
        ("<ImageResolutionY>5E-07", '<ImageResolutionY Unit="m">5E-07'),
        ("<ExposureTime>0.1", '<ExposureTime Unit="ms">100'),
        ("<MainExcitationWavelength>740", '<MainExcitationWavelength Unit="m">7.4E-07'),
    ):
        assert old in text
        text = text.replace(old, new)
    before = harmony.read(path).plate
    index.write_text(text)
    plate = harmony.read(path).plate
    assert (plate.pixel_um, plate.channels[0].exposure_s, plate.fields) == (0.5, 0.1, before.fields)
    assert plate.channels[0].excitation_nm == pytest.approx(740)


@pytest.mark.parametrize("name", ["ImageIndex.ColumbusIDX.xml", "Index.ref.xml", "INDEX.XML"])
def test_other_indices_are_read(tmp_path: Path, harmony_export: Any, name: str) -> None:
    harmony_export.write(tmp_path, [harmony_export.shot()])
    (tmp_path / "Images" / "Index.idx.xml").rename(tmp_path / "Images" / name)
    assert harmony.read(tmp_path).plate.name == "P 01"


def test_corrected_images_are_in_a_separate_folder(tmp_path: Path, harmony_export: Any) -> None:
    shot = harmony_export.shot()
    harmony_export.write(tmp_path, [shot])
    images = tmp_path / "Images"
    (images / "Index.idx.xml").rename(images / "Index.ref.xml")
    (images / "flex").mkdir()
    (images / shot["URL"]).rename(images / "flex" / shot["URL"])
    assert [file.path.parent.name for file in harmony.read(tmp_path).files[A01]] == ["flex"]


def test_stains_in_flex_are_corrected_and_transmitted_light_is_not(
    tmp_path: Path, harmony_export: Any
) -> None:
    """The export script of the vendor divides stains alone; its index, in the folder, states no profile."""
    shots = both(harmony_export.shot)
    raw = harmony.read(harmony_export.write(tmp_path / "raw", shots)).plate
    assert [channel.corrected for channel in raw.channels] == ["", ""]
    images = harmony_export.write(tmp_path / "export", shots) / "Images"
    (images / "Index.idx.xml").rename(images / "index.flex.xml")
    images.rename(tmp_path / "flex")
    made = harmony.read(tmp_path / "flex").plate
    assert [(channel.fluorescent, channel.corrected) for channel in made.channels] == [
        (False, ""), (True, "flat field, images in `flex`"),
    ]  # fmt: skip


def test_columbus_names_pages_of_files_and_colours_by_numbers(tmp_path: Path, harmony_export: Any) -> None:
    shots = [s for plane in (1, 2, 3) for s in both(harmony_export.shot, PlaneID=plane, URL="001001.tif")]
    harmony_export.write(tmp_path, shots)
    pixels = np.arange(6, dtype=np.uint16)[:, None, None] * np.ones((24, 32), np.uint16)
    images = tmp_path / "Images"
    tifffile.imwrite(images / "001001.tif", pixels, photometric="minisblack", metadata=None)
    text = (images / "Index.idx.xml").read_text("utf-8-sig")
    text = text.replace(harmony_export.space("HarmonyV5"), "http://www.perkinelmer.com/Columbus")
    text = text.replace(
        "<ChannelName>Brightfield", "<ChannelColor>4278255360</ChannelColor><ChannelName>Brightfield"
    )
    for number in range(6):
        text = text.replace("<URL>001001.tif", f'<URL BufferNo="{number}">001001.tif', 1)
    (images / "ImageIndex.ColumbusIDX.xml").write_text(text)
    (images / "Index.idx.xml").unlink()
    export = harmony.read(tmp_path)
    assert (export.plate.details["version"], export.plate.channels[0].color) == ("Columbus", "00FF00")
    assert export.problems == ()
    read = {(f.channel, f.plane): int(read_plane(f.path, f.page)[0, 0]) for f in export.files[A01]}
    assert read == {(c, z): 2 * z + c for c in (0, 1) for z in (0, 1, 2)}


def test_the_case_of_an_ending_does_not_matter(tmp_path: Path, harmony_export: Any) -> None:
    shot = harmony_export.shot()
    harmony_export.write(tmp_path, [shot])
    path = tmp_path / "Images" / shot["URL"]
    path.rename(path.with_suffix(".TIFF"))
    export = harmony.read(tmp_path)
    assert (len(export.files[A01]), export.problems) == (1, ())


def test_of_folders_for_each_well_some_may_be_missing(tmp_path: Path, harmony_export: Any) -> None:
    """The first 30 wells of the index were not copied: the others are read, and the first are named."""
    shots = [harmony_export.shot(Row=1 + w // 12, Col=1 + w % 12) for w in range(40)]
    harmony_export.write(tmp_path, shots)
    images = tmp_path / "Images"
    for shot in shots[30:]:
        folder = images / f"r{int(shot['Row']):02d}c{int(shot['Col']):02d}"
        folder.mkdir()
        (images / shot["URL"]).rename(folder / shot["URL"])
    for shot in shots[:30]:
        (images / shot["URL"]).unlink()
    export = harmony.read(tmp_path)
    assert sum(map(len, export.files.values())) == 10
    assert {kind for _, _, kind in export.problems} == {"missing"}
    assert len(export.problems) == 30


def test_a_channel_that_half_of_the_wells_have_is_no_damage(tmp_path: Path, harmony_export: Any) -> None:
    """By design each half of the wells has a stain of its own: one plate, and a remark for each."""
    shots = [
        harmony_export.shot(Col=col, ChannelID=1 + (col > 2), FieldID=f)
        for col in (1, 2, 3, 4)
        for f in (1, 2)
    ]
    export = harmony.read(harmony_export.write(tmp_path, shots))
    assert export.problems == ()
    assert export.remarks == (
        "channel 'Brightfield' was not imaged in 2 of 4 wells (A03, A04)",
        "channel 'HOECHST 33342' was not imaged in 2 of 4 wells (A01, A02)",
    )
    planes = {field.key.well: field.details["planes"] for field in export.plate.fields}
    assert planes["A01"] == {"Brightfield": [0]}
    assert planes["A04"] == {"HOECHST 33342": [0]}


def test_a_series_that_ended_early_is_no_damage(tmp_path: Path, harmony_export: Any) -> None:
    shots = [
        harmony_export.shot(Col=col, TimepointID=t, URL=f"c{col}t{t}.tiff")
        for col in (1, 2, 3)
        for t in range(4)
    ]
    export = harmony.read(harmony_export.write(tmp_path, shots[:-2]))
    assert export.problems == ()
    assert [field.shape[0] for field in export.plate.fields] == [4, 4, 2]
    assert export.remarks == ("1 of 3 fields end before the last time (A03/1)",)


def test_two_measurements_of_a_plate_are_two_acquisitions(tmp_path: Path, harmony_export: Any) -> None:
    """Live first, then stained: channels of one name are one, and each field keeps its own planes."""
    plate = {"PlateID": "P01", "Name": "P 01", "PlateRows": "8", "PlateColumns": "12"}
    live, stained = (
        {1: harmony_export.channels[1]},
        {1: harmony_export.channels[2], 2: harmony_export.channels[1]},
    )
    harmony_export.write(
        tmp_path / "P01-Measurement 2", both(harmony_export.shot), channels=stained,
        plate=plate | {"MeasurementStartTime": "2024-02-02T00:00:00"},
    )  # fmt: skip
    harmony_export.write(
        tmp_path / "P01-Measurement 9", [harmony_export.shot(PlaneID=p) for p in (1, 2)], channels=live,
        plate=plate | {"MeasurementStartTime": "2024-02-01T00:00:00"},
    )  # fmt: skip
    export = harmony.read(tmp_path)
    assert export.plate.acquisitions == {0: "2024-02-01T00:00:00", 1: "2024-02-02T00:00:00"}
    assert [channel.name for channel in export.plate.channels] == ["Brightfield", "HOECHST 33342"]
    first, second = export.plate.fields
    assert (str(first.key), first.shape, first.details["planes"]) == (
        "A01/1",
        (1, 2, 2, 24, 32),
        {"Brightfield": [0, 1]},
    )
    assert (str(second.key), second.shape[:3]) == ("A01/1x1", (1, 2, 1))
    read = {(f.channel, f.plane): int(read_plane(f.path)[0, 0]) for f in export.files[second.key]}
    assert read == {(1, 0): 0, (0, 0): 1}
    assert export.problems == ()


def test_measurements_with_pixels_of_two_sizes_are_not_one_plate(tmp_path: Path, harmony_export: Any) -> None:
    for name, metres in (("a", "5E-07"), ("b", "1E-06")):
        size = {"ImageResolutionX": metres, "ImageResolutionY": metres}
        plate = {"PlateID": "P", "PlateRows": "8", "PlateColumns": "12"}
        channels = {1: harmony_export.channels[1] | size}
        harmony_export.write(tmp_path / name, [harmony_export.shot()], channels=channels, plate=plate)
    with pytest.raises(UserError, match=r"a has pixels of 0.5 µm, b of 1 µm: give one as source"):
        harmony.read(tmp_path)


def test_a_number_that_nothing_needs_is_a_remark(tmp_path: Path, harmony_export: Any) -> None:
    channels = {1: harmony_export.channels[1] | {"ExposureTime": "long"}}
    shots = [harmony_export.shot(PositionX="left", FieldID=f) for f in (1, 2)]
    export = harmony.read(harmony_export.write(tmp_path, shots, channels=channels))
    assert export.plate.fields[0].position_um is None is export.plate.channels[0].exposure_s
    assert export.remarks == (
        "channel 'Brightfield': ExposureTime 'long' is no number and left unknown",
        "2 images state PositionX 'left', which is no number: left unknown",
    )


def test_an_image_that_failed_and_was_not_written_is_not_imaged(tmp_path: Path, harmony_export: Any) -> None:
    shots = [harmony_export.shot(FieldID=f) for f in (1, 2)]
    shots[1]["State"] = "AutofocusFailed"
    harmony_export.write(tmp_path, shots)
    (tmp_path / "Images" / shots[1]["URL"]).unlink()
    [(key, _, kind)] = harmony.read(tmp_path).problems
    assert (str(key), kind) == ("A01/2", NOT_IMAGED)


def test_wells_outside_the_plate_are_refused(tmp_path: Path, harmony_export: Any) -> None:
    harmony_export.write(tmp_path, [harmony_export.shot(Row=9)])
    with pytest.raises(UserError, match="row 9, column 1, but the plate has 8 rows and 12 columns"):
        harmony.read(tmp_path)


def test_a_plate_without_format_gets_the_smallest(tmp_path: Path, harmony_export: Any) -> None:
    plate = harmony.read(
        harmony_export.write(tmp_path, [harmony_export.shot(Col=13)], plate={"PlateID": "P"})
    ).plate
    assert (plate.name, len(plate.rows), len(plate.columns)) == ("P", 16, 24)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"Row": "A"}, "Row is 'A'; a whole number is expected"),
        ({"FieldID": ""}, "FieldID is ''; a whole number is expected"),
        ({"PlaneID": "1.5"}, "PlaneID is '1.5'; a whole number is expected"),
    ],
)
def test_numbers_that_are_none_name_the_image(
    tmp_path: Path, harmony_export: Any, facts: dict[str, str], said: str
) -> None:
    good = harmony_export.shot()
    harmony_export.write(tmp_path, [good])
    (tmp_path / "Images" / "Index.idx.xml").write_text(
        harmony_export.index_text([good | {"id": "here"} | facts])
    )
    with pytest.raises(UserError, match=f"image here: {said}"):
        harmony.read(tmp_path)


def test_a_plate_larger_than_any_is_refused(tmp_path: Path, harmony_export: Any) -> None:
    plate = {"Name": "P", "PlateRows": "100", "PlateColumns": "12"}
    with pytest.raises(UserError, match="100 rows and 12 columns; at most 32 and 48"):
        harmony.read(harmony_export.write(tmp_path, [harmony_export.shot()], plate=plate))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    place=st.integers(0, 10_000),
    cut=st.integers(0, 20),
    noise=st.text(max_size=5) | st.sampled_from(["-1", "1e99", "<b/>", "nan"]),
)
def test_a_bent_index_is_read_or_refused_and_nothing_else(
    tmp_path: Path, harmony_export: Any, place: int, cut: int, noise: str
) -> None:
    shots = [s for plane in (1, 2) for s in both(harmony_export.shot, PlaneID=plane)]
    harmony_export.write(tmp_path, shots)
    text = harmony_export.index_text(shots, "HarmonyV7")
    place %= len(text)
    bent = text[:place] + noise + text[place + cut :]
    (tmp_path / "Images" / "Index.idx.xml").write_text(bent, encoding="utf-8", errors="replace")
    with contextlib.suppress(UserError):
        export = harmony.read(tmp_path)
        assert set(export.files) == {field.key for field in export.plate.fields}


def test_an_index_of_nothing_is_refused(tmp_path: Path, harmony_export: Any) -> None:
    with pytest.raises(UserError, match="names no images"):
        harmony.read(harmony_export.write(tmp_path, []))


def test_an_export_without_any_of_its_files_is_refused(tmp_path: Path, harmony_export: Any) -> None:
    shot = harmony_export.shot()
    harmony_export.write(tmp_path, [shot])
    (tmp_path / "Images" / shot["URL"]).unlink()
    with pytest.raises(UserError, match="none of the images that it names is there"):
        harmony.read(tmp_path)


def test_a_truncated_index_is_refused(tmp_path: Path, harmony_export: Any) -> None:
    path = harmony_export.write(tmp_path, [harmony_export.shot()]) / "Images" / "Index.idx.xml"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"Index\.idx\.xml is not well-formed XML"):
        harmony.read(tmp_path)


def test_an_index_with_entities_is_refused(tmp_path: Path, harmony_export: Any) -> None:
    path = harmony_export.write(tmp_path, [harmony_export.shot()]) / "Images" / "Index.idx.xml"
    text = path.read_text(encoding="utf-8-sig").replace(
        "<EvaluationInputData", '<!DOCTYPE x [<!ENTITY a "aaaa">]><EvaluationInputData', 1
    )
    path.write_text(text.replace("P 01", "&a;&a;"))
    with pytest.raises(UserError, match=r"Index\.idx\.xml: holds a DTD or entities"):
        harmony.read(tmp_path)


def test_a_plate_of_many_images_is_read_whole(tmp_path: Path, harmony_export: Any) -> None:
    shots = [
        harmony_export.shot(
            Row=1 + well // 12, Col=1 + well % 12, FieldID=field, PlaneID=plane, ChannelID=channel
        )
        for well in range(96)
        for field in range(1, 10)
        for plane in range(1, 6)
        for channel in (1, 2)
    ]
    harmony_export.write(tmp_path, shots[:1])
    (tmp_path / "Images" / "Index.idx.xml").write_text(harmony_export.index_text(shots))
    for shot in shots[1:]:
        (tmp_path / "Images" / shot["URL"]).touch()
    export = harmony.read(tmp_path)
    assert len(export.plate.fields) == 96 * 9
    assert sum(map(len, export.files.values())) == len(shots) == 8640
    assert export.problems == ()


# ---------------------------------------------------------------- the real ones


@pytest.mark.realdata
def test_a_real_phenix_export_with_bright_field(realdata: Path) -> None:
    export = harmony.read(realdata / "vendor" / "phenix_brightfield")
    plate = export.plate
    assert [(c.name, c.fluorescent) for c in plate.channels] == [
        ("Alexa 647", True),
        ("Alexa 568", True),
        ("488 long", True),
        ("Alexa 488", True),
        ("HOECHST 33342", True),
        ("Brightfield", False),
    ]
    assert plate.pixel_um == pytest.approx(0.5979760809567617)
    assert (plate.name, len(plate.rows), len(plate.columns)) == ("BR00121482", 16, 24)
    hoechst = plate.channels[4].flat_field
    assert hoechst is not None
    assert hoechst["NonFlatness"]["Original"] == 0.77089328
    assert [len(row) for row in hoechst["Profile"]["Coefficients"]] == [1, 2, 3, 4, 5]
    [field] = plate.fields
    half = (1080 - 1) / 2 * 0.5979760809567617
    assert field.position_um == pytest.approx((-half, -half), abs=1e-3)
    assert field.details["z_um"]["HOECHST 33342"] == [-4.0]
    assert export.problems == ()
    for plane in export.files[field.key]:
        assert np.array_equal(read_plane(plane.path), tifffile.imread(plane.path))


@pytest.mark.realdata
def test_a_real_phenix_export_with_digital_phase_contrast(realdata: Path) -> None:
    export = harmony.read(realdata / "vendor" / "phenix_phase")
    label_free = [channel.name for channel in export.plate.channels if not channel.fluorescent]
    assert label_free == ["Digital Phase Contrast", "Brightfield high"]
    assert len(export.files[A01]) == 6
    assert export.problems == ()


@pytest.mark.realdata
def test_a_real_operetta_export_with_two_fields(realdata: Path) -> None:
    export = harmony.read(realdata / "vendor" / "operetta_sonata")
    first, second = export.plate.fields
    assert (str(first.key), str(second.key)) == ("C03/1", "C03/2")
    assert first.position_um is not None
    assert second.position_um is not None
    apart = np.subtract(second.position_um, first.position_um)
    assert apart == pytest.approx((0, 1080 * 1.1959521619135234), abs=0.1), "neighbours that touch"
    assert export.plate_map == {}, "the layout of this export is empty"
    assert export.plate.details["instrument"] == "Sonata"
