"""Folders of images that are read by their names, or by a table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metamorph_stack import write_stk

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Export, FieldKey, LeftOut
from hpc_isl.plates.readers import pattern
from hpc_isl.plates.readers.folder import left_out_by_name
from hpc_isl.plates.readers.pattern_names import natural
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import ConvertRecipe, PatternRecipe

Images = Callable[..., Path]
REGEX = r"(?P<well>\w+?)_s(?P<field>[^_]+)_w(?P<channel>\w+?)(_z(?P<plane>[^_]+))?(_t(?P<time>\w+))?\.tif"


def read(folder: Path, **recipe: Any) -> Export:
    return pattern.read(folder, PatternRecipe.model_validate({"regex": REGEX, **recipe}))


def table(folder: Path, *lines: str) -> dict[str, Any]:
    path = folder.parent / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return {"regex": None, "table": path}


def order(export: Export, key: FieldKey) -> list[tuple[str, int, int]]:
    return [(plane.path.name, plane.channel, plane.plane) for plane in export.files[key]]


# ---------------------------------------------------------------- what is kept


def test_names_become_wells_fields_and_channels(images: Images) -> None:
    folder = images("b3_s1_w2.tif", "b3_s1_w1.tif", "B03_s2_w1.tif", "B03_s2_w2.tif", "notes.tif")
    export = read(folder, channels={"2": "DAPI", "1": "BF"}, transmitted=["BF"], pixel_um=0.5)
    plate = export.plate
    assert [(c.name, c.fluorescent) for c in plate.channels] == [("DAPI", True), ("BF", False)]
    assert [str(field.key) for field in plate.fields] == ["B03/2", "B03/1"]
    assert {field.shape for field in plate.fields} == {(1, 2, 1, 24, 32)}
    assert (plate.name, plate.pixel_um, plate.plane_um, len(plate.columns)) == ("export", 0.5, None, 12)
    assert export.problems == ()
    assert export.remarks == ()
    assert export.left_out == (LeftOut(folder / "notes.tif", "image of no pattern"),)
    json.dumps([field.details for field in plate.fields])


@pytest.mark.parametrize(
    ("names", "regex"),
    [
        (["r02c03.tif", "r04c05.tif"], r"r(?P<row>\d+)c(?P<column>\d+)\.tif"),
        (["B-3.tif", "d-05.tif"], r"(?P<row>[A-Za-z]+)-(?P<column>\d+)\.tif"),
        (["2/C.tif", "4/E.tif"], r"(?P<row>\d+)/(?P<column>\w)\.tif"),
        (["W00015.tif", "W00041.tif"], r"W(?P<well>\d+)\.tif"),
    ],
)
def test_wells_are_given_by_row_and_column_or_by_number(images: Images, names: list[str], regex: str) -> None:
    export = read(images(*names), regex=regex, wells_on_plate=96)
    assert [(well, export.files[FieldKey(well, "1")][0].path.name) for well in export.plate.wells] == [
        ("B03", Path(names[0]).name),
        ("D05", Path(names[1]).name),
    ]


@pytest.mark.parametrize(
    ("wells_on_plate", "number", "well"),
    [
        (6, 6, "B03"),
        (96, 1, "A01"),
        (96, 13, "B01"),
        (384, 25, "B01"),
        (384, 384, "P24"),
        (1536, 1536, "AF48"),
    ],
)
def test_running_numbers_count_along_the_rows(
    images: Images, wells_on_plate: int, number: int, well: str
) -> None:
    export = read(images(f"{number}.tif"), regex=r"(?P<well>\d+)\.tif", wells_on_plate=wells_on_plate)
    assert export.plate.wells == (well,)


@pytest.mark.parametrize(
    ("name", "regex", "said"),
    [
        (
            "r0c3",
            r"r(?P<row>\d+)c(?P<column>\d+)\.tif",
            "row '0' is neither a number from 1 to 32 nor letters",
        ),
        ("r1c49", r"r(?P<row>\d+)c(?P<column>\d+)\.tif", "column '49' is neither a number from 1 to 48"),
        ("AGc1", r"(?P<row>\w+)c(?P<column>\d+)\.tif", "row 'AG' is neither"),
        ("c1", r"(?P<row>\w*)c(?P<column>\d+)\.tif", "row '' is neither"),
        ("0", r"(?P<well>\d+)\.tif", "0.tif: well '0' is a running number: give pattern.wells_on_plate"),
    ],
)
def test_rows_columns_and_numbers_that_are_none_are_named(
    images: Images, name: str, regex: str, said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read(images(f"{name}.tif"), regex=regex)


@pytest.mark.parametrize("number", [0, 97])
def test_running_numbers_beyond_the_plate_are_named(images: Images, number: int) -> None:
    with pytest.raises(
        UserError, match=rf"well '{number}' is no number from 1 to 96, the wells on the plate"
    ):
        read(images(f"{number}.tif"), regex=r"(?P<well>\d+)\.tif", wells_on_plate=96)


def test_numbers_beside_names_are_refused(images: Images) -> None:
    with pytest.raises(
        UserError, match=r"some wells are numbers \(7\), some are names \(A01\): write all as"
    ):
        read(images("7.tif", "A01.tif"), regex=r"(?P<well>\w+)\.tif", wells_on_plate=96)


def test_a_table_may_tell_row_and_column(images: Images) -> None:
    folder = images("x.tif", "y.tif", "z.tif")
    export = read(folder, **table(folder, "path,row,column", "x.tif,2,3", "y.tif,D,05"))
    assert export.plate.wells == ("B03", "D05")
    assert export.left_out == (LeftOut(folder / "z.tif", "image not in the table"),)
    with pytest.raises(UserError, match="path and well, or path, row and column, are needed"):
        read(folder, **table(folder, "path,row", "x.tif,2"))


def test_several_patterns_make_one_plate(images: Images) -> None:
    """The first that matches counts: the second would take the stains for bright-field."""
    folder = images("stain/B03_s1_w1.tif", "B03_BF_z1.tif", "B03_BF_z2.tif")
    regex = [
        r"stain/(?P<well>\w+?)_s(?P<field>\d+)_w(?P<channel>\d)\.tif",
        r"(?:.*/)?(?P<well>[A-P]\d\d)_(?P<channel>[a-zA-Z]+)\d*(?:_z(?P<plane>\d+))?.*\.tif",
    ]
    export = read(folder, regex=regex, channels={"1": "DAPI", "BF": "BF"}, transmitted=["BF"])
    [key] = export.files
    assert order(export, key) == [("B03_s1_w1.tif", 0, 0), ("B03_BF_z1.tif", 1, 0), ("B03_BF_z2.tif", 1, 1)]
    with pytest.raises(UserError, match="either all of its expressions have the group image, or none"):
        read(folder, regex=[regex[0], r"(?P<image>.*)\.tif"])


def test_more_than_half_left_out_is_a_stop_that_counts(images: Images) -> None:
    regex = r"(?P<well>\w\d\d)_s(?P<field>\d)_w(?P<channel>\d)\.tif"
    kept = ["B03_s1_w1.tif", "B04_s1_w1.tif"]
    others = ["B03_s1_w1_thumb.tif", "B04_s1_w1_thumb.TIF", "new/B03_s2_w2.png"]
    folder = images(*kept, *others)
    with pytest.raises(UserError) as mistake:
        read(folder, regex=regex)
    assert str(mistake.value).splitlines() == [
        f"{folder}: pattern.regex matches 2 images and leaves out 3, more than half; widen it, add another, "
        "or list in pattern.ignore what is no plane:",
        "2 thumbnail, e.g. B03_s1_w1_thumb.tif; by channel: 2 w1; by well: 1 B03, 1 B04",
        "1 image of no pattern, e.g. new/B03_s2_w2.png; by channel: 1 w2; by well: 1 B03",
    ]
    (folder / others[2]).unlink()
    assert len(read(folder, regex=regex).left_out) == 2
    export = read(images(*others), regex=regex, ignore=".*thumb.*")
    assert [(left.kind, left.well) for left in export.left_out] == [
        ("thumbnail", "B03"), ("thumbnail", "B04"), ("image of no pattern", "B03"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"pattern.ignore '\(' is no regular expression"):
        read(folder, regex=regex, ignore="(")


def test_what_names_tell_of_files_left_out() -> None:
    told = [
        left_out_by_name(Path("/x"), name, "other")
        for name in (
            "r02c31f01p01-ch1sk1.tiff", "SC_BP445C01.tif", "P_AF48_T0001F001L01A01Z01C02.tif", "B3_MIP.tif",
            "Projection_C04_w1091EB8A5-272A-466D-B8A0-7547C6BA392B.tif",
        )
    ]  # fmt: skip
    assert [(left.kind, left.well, left.channel) for left in told] == [
        ("other", "B31", "ch1"),
        ("shading image", "", "C01"),
        ("other", "AF48", "C02"),
        ("projection", "B03", ""),
        ("other", "C04", "w1"),
    ]


@pytest.mark.parametrize(
    ("said", "in_order"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["+4", "-4", "0"], ["-4", "0", "+4"]),
        (["1341.95", "999.5", "-3.0"], ["-3.0", "999.5", "1341.95"]),
        (["008", "10", "9"], ["008", "9", "10"]),
    ],
)
def test_planes_are_ordered_by_number(images: Images, said: list[str], in_order: list[str]) -> None:
    export = read(images(*(f"A01_s1_w1_z{plane}.tif" for plane in said)))
    assert [name for name, _, _ in order(export, FieldKey("A01", "1"))] == [
        f"A01_s1_w1_z{plane}.tif" for plane in in_order
    ]


def test_heights_are_kept_and_counted_within_a_field(images: Images) -> None:
    names = [
        f"A01_s{field}_w1_z{height}.tif"
        for field, z in ((1, 10.0), (2, 10.5))
        for height in (z, z + 2, z + 4)
    ]
    export = read(images(*names))
    assert [field.z_um for field in export.plate.fields] == [(10.0, 12.0, 14.0), (10.5, 12.5, 14.5)]
    assert export.plate.plane_um == 2.0
    assert export.problems == ()
    assert "micrometres" in export.remarks[0]


def test_numbers_become_heights_only_with_a_distance(images: Images) -> None:
    folder = images(*(f"A01_s1_w1_z{plane}.tif" for plane in (2, 4, 8)))
    assert read(folder).plate.fields[0].z_um == ()
    far = read(folder, plane_um=1.5).plate
    assert far.fields[0].z_um == (0.0, 1.5, 4.5)
    assert far.fields[0].details["plane_numbers"] == [2, 4, 8]
    assert far.plane_um is None, "uneven"


def test_a_channel_with_one_plane_has_it_where_others_do(images: Images) -> None:
    names = [f"A01_s{field}_w1_z{plane}.tif" for field in (1, 2) for plane in (1, 2, 3)]
    export = read(images(*names, "A01_s1_w2_z3.tif", "A01_s2_w2_z3.tif", "A01_s1_w3.tif", "A01_s2_w3.tif"))
    field = export.plate.fields[0]
    assert field.shape == (1, 3, 3, 24, 32)
    assert field.details["planes"] == {"1": [0, 1, 2], "2": [2], "3": [0]}
    assert export.problems == ()


def test_times_are_in_natural_order(images: Images) -> None:
    export = read(images("A01_s1_w1_t10.tif", "A01_s1_w1_t9.tif", "A01_s1_w1_t1.tif"))
    assert export.plate.fields[0].shape[0] == 3
    assert [p.path.name[-7:] for p in export.files[FieldKey("A01", "1")]] == ["_t1.tif", "_t9.tif", "t10.tif"]


def test_acquisitions_have_planes_and_times_of_their_own(images: Images) -> None:
    folder = images(
        "live/A01_z1_t1.tif",
        "live/A01_z5_t1.tif",
        "live/A01_z5_t2.tif",
        "live/A01_z1_t2.tif",
        "stain/A01_z3_t7.tif",
    )
    export = read(folder, regex=r"(?P<acquisition>\w+)/(?P<well>\w+)_z(?P<plane>\d)_t(?P<time>\d)\.tif")
    assert export.plate.acquisitions == {0: "live", 1: "stain"}
    shapes = {str(field.key): field.shape[:3] for field in export.plate.fields}
    assert shapes == {"A01/1": (2, 1, 2), "A01/1x1": (1, 1, 1)}
    assert (export.problems, export.remarks) == ((), ())


def test_images_become_wells_in_natural_order(images: Images) -> None:
    folder = images(*(f"{line}_{c}.tif" for line in ("HeLa_10", "HeLa_9", "BMDM") for c in ("phase", "dapi")))
    export = read(folder, regex=r"(?P<image>.+)_(?P<channel>phase|dapi)\.tif")
    assert export.plate_map == {
        "A01": {"image": "BMDM"},
        "A02": {"image": "HeLa_9"},
        "A03": {"image": "HeLa_10"},
    }
    assert export.plate.wells == ("A01", "A02", "A03")


def test_many_images_take_a_larger_plate(images: Images) -> None:
    export = read(images(*(f"i{number}.tif" for number in range(100))), regex=r"(?P<image>\w+)\.tif")
    assert (len(export.plate.rows), len(export.plate.columns)) == (16, 24)
    assert export.plate_map["A24"] == {"image": "i23"}
    assert export.plate_map["B01"] == {"image": "i24"}


def test_more_images_than_wells_are_refused(images: Images) -> None:
    folder = images(*(f"i{number}.tif" for number in range(7)))
    with pytest.raises(UserError, match="7 images do not fit a plate of 6 wells"):
        read(folder, regex=r"(?P<image>\w+)\.tif", wells_on_plate=6)


def test_fields_with_other_names_are_numbered(images: Images) -> None:
    export = read(images("A01_spos-10_w1.tif", "A01_spos-9_w1.tif", "B01_spos-10_w1.tif"))
    names = {str(field.key): field.details["name"] for field in export.plate.fields}
    assert names == {"A01/1": "pos-9", "A01/2": "pos-10", "B01/2": "pos-10"}


def test_a_field_that_reads_as_an_acquisition_is_numbered(images: Images) -> None:
    export = read(images("A01_s1x2_w1.tif"))
    assert [str(field.key) for field in export.plate.fields] == ["A01/1"]


def test_a_file_of_several_pages_holds_a_plane_per_page(images: Images) -> None:
    folder = images("A01_s1_w1.tif", shape=(5, 24, 32))
    tifffile.imwrite(folder / "A01_s1_w2.tif", np.zeros((24, 32), np.uint16))
    export = read(folder)
    assert export.plate.fields[0].shape == (1, 2, 5, 24, 32)
    assert [(p.plane, p.page) for p in export.files[FieldKey("A01", "1")] if p.channel == 0] == [
        (page, page) for page in range(5)
    ]
    assert export.plate.fields[0].details["planes"] == {"1": [0, 1, 2, 3, 4], "2": [0]}


def test_channels_and_times_within_a_file_are_channels_and_times(tmp_path: Path) -> None:
    """Of a multi-channel or a time-lapse TIFF each plane becomes what the file says, never a height."""
    pixels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4, 1, 1) * np.ones((12, 16), np.uint16)
    metadata = {"axes": "TZCYX", "Channel": {"Name": ["DAPI", "BF", "GFP", "Cy5"]}}
    tifffile.imwrite(tmp_path / "A01.ome.tif", pixels, photometric="minisblack", metadata=metadata)
    export = read(tmp_path, regex=r"(?P<well>\w+)\.ome\.tif", transmitted=["BF"])
    assert export.plate.fields[0].shape == (2, 4, 3, 12, 16)
    names = [channel.name for channel in export.plate.channels]
    assert sorted(names) == ["BF", "Cy5", "DAPI", "GFP"]
    assert not export.plate.channels[names.index("BF")].fluorescent
    order = [["DAPI", "BF", "GFP", "Cy5"].index(name) for name in names]
    for plane in export.files[FieldKey("A01", "1")]:
        stored = read_plane(plane.path, plane.page)
        assert stored[0, 0] == pixels[plane.time, plane.plane, order[plane.channel], 0, 0]


def test_channels_of_one_name_within_a_file_are_channels_of_their_own(tmp_path: Path) -> None:
    pixels = np.arange(3, dtype=np.uint16).reshape(3, 1, 1) * np.ones((12, 16), np.uint16)
    metadata = {"axes": "CYX", "Channel": {"Name": ["EGFP", "DAPI", "EGFP"]}}
    tifffile.imwrite(tmp_path / "A01.ome.tif", pixels, photometric="minisblack", metadata=metadata)
    export = read(tmp_path, regex=r"(?P<well>\w+)\.ome\.tif")
    names = [channel.name for channel in export.plate.channels]
    assert {names[file.channel]: file.page for file in export.files[FieldKey("A01", "1")]} == {
        "EGFP": 0, "DAPI": 1, "EGFP 2": 2,
    }  # fmt: skip
    assert export.problems == ()
    assert export.remarks == ("1 file: several channels are called 'EGFP': one of them is 'EGFP 2' here",)


def test_a_metamorph_stack_is_read_with_all_its_planes_and_quantities(tmp_path: Path) -> None:
    pixels = np.arange(5, dtype=np.uint16)[:, None, None] * np.ones((12, 16), np.uint16)
    write_stk(tmp_path / "A01.stk", pixels, [2.0] * 5, [0] * 5, pixel_um=0.5, places=[(100.0, 40.0)] * 5)
    plate = read(tmp_path, regex=r"(?P<well>\w+)\.stk").plate
    [field] = plate.fields
    assert (field.shape, field.z_um) == ((1, 1, 5, 12, 16), (0.0, 2.0, 4.0, 6.0, 8.0))
    assert (plate.pixel_um, plate.plane_um, plate.channels[0].name) == (0.5, 2.0, "DAPI")
    assert field.position_um == (40.0 - 2.75, 100.0 - 3.75)


def test_the_recipe_counts_before_the_files_and_a_contradiction_is_remarked(tmp_path: Path) -> None:
    write_stk(tmp_path / "A01.stk", np.zeros((2, 12, 16), np.uint16), [2.0] * 2, [0] * 2, pixel_um=0.5)
    export = read(tmp_path, regex=r"(?P<well>\w+)\.stk", pixel_um=0.6, channels={"x": "Hoechst"})
    assert export.plate.pixel_um == 0.6
    assert [channel.name for channel in export.plate.channels] == ["Hoechst"]
    assert export.remarks == ("pattern.pixel_um is 0.6 µm, but the files state 0.5 µm; the recipe's is kept",)


def test_files_of_different_pixel_sizes_leave_it_unknown(tmp_path: Path) -> None:
    for well, size in (("A01", 0.5), ("A02", 0.65)):
        write_stk(tmp_path / f"{well}.stk", np.zeros((2, 12, 16), np.uint16), [2.0] * 2, [0] * 2, size)
    export = read(tmp_path, regex=r"(?P<well>\w+)\.stk")
    assert export.plate.pixel_um is None
    assert export.remarks == ("files state different pixel sizes (0.5, 0.65 µm); the size is left unknown",)


@pytest.mark.parametrize(("axis", "group"), [("T", "time"), ("C", "channel"), ("Z", "plane")])
def test_a_name_that_states_one_of_what_the_file_holds_several_of_contradicts(
    images: Images, axis: str, group: str
) -> None:
    folder, three = images("A01_2.tif"), np.zeros((3, 24, 32), np.uint16)
    tifffile.imwrite(folder / "A02_2.tif", three, metadata={"axes": f"{axis}YX"}, photometric="minisblack")
    [(key, text, _)] = read(folder, regex=rf"(?P<well>\w+)_(?P<{group}>\d)\.tif").problems
    assert str(key) == "A02/1"
    assert text.endswith(f", but is said to be {group} 2")


def test_names_without_channel_are_one_channel(images: Images) -> None:
    folder = images("A01.tif")
    regex = r"(?P<well>\w+)\.tif"
    assert [c.name for c in read(folder, regex=regex).plate.channels] == ["channel"]
    assert [c.name for c in read(folder, regex=regex, channels={"": "DIC"}).plate.channels] == ["DIC"]
    assert [c.name for c in read(folder, regex=regex, channels={"x": "DIC"}).plate.channels] == ["DIC"]


def test_png_files_are_read_too(images: Images) -> None:
    export = read(images("A01_w1.png", dtype="uint8"), regex=r"(?P<well>\w+?)_w(?P<channel>\d)\.png")
    [field] = export.plate.fields
    assert (field.shape, field.dtype) == ((1, 1, 1, 24, 32), "uint8")


def test_hidden_files_are_not_seen(images: Images) -> None:
    export = read(images("A01_s1_w1.tif", "._A01_s1_w1.tif", ".snapshot/A01_s1_w1.tif"))
    assert export.remarks == () == export.problems


names = st.text("abcXYZ019", min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    wells=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 11)), min_size=1, max_size=3),
    fields=st.sets(st.from_regex(r"[A-Za-z1-9]{1,3}", fullmatch=True), min_size=1, max_size=2),
    channels=st.sets(names, min_size=1, max_size=2),
    planes=st.sets(st.integers(-20, 20), min_size=1, max_size=3),
    times=st.sets(st.integers(0, 12), min_size=1, max_size=2),
)
def test_what_names_say_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    wells: set[tuple[int, int]],
    fields: set[str],
    channels: set[str],
    planes: set[int],
    times: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("plate")
    written: dict[str, tuple[str, str, str, int, int]] = {}
    for row, column in wells:
        for field in fields:
            for channel in channels:
                for plane in planes:
                    for time in times:
                        name = f"{'ABCDEFGH'[row]}{column + 1}_s{field}_w{channel}_z{plane}_t{time}.tif"
                        written[name] = (f"{'ABCDEFGH'[row]}{column + 1:02d}", field, channel, plane, time)
                        tifffile.imwrite(folder / name, np.zeros((2, 2), np.uint8))
    export = read(folder)
    names = [channel.name for channel in export.plate.channels]
    result = {
        plane.path.name: (
            key.well,
            key.name,
            names[plane.channel],
            sorted(planes)[plane.plane],
            sorted(times)[plane.time],
        )
        for key, stack in export.files.items()
        for plane in stack
    }
    renamed = {field.key.name: field.details.get("name", field.key.name) for field in export.plate.fields}
    assert {name: (w, renamed[f], *rest) for name, (w, f, *rest) in result.items()} == written
    assert export.problems == ()


@given(st.lists(st.integers(0, 10**30), max_size=5), st.text("ab-", max_size=3))
def test_natural_order_is_that_of_the_numbers(numbers: list[int], word: str) -> None:
    said = [f"{word}{number}" for number in numbers]
    assert sorted(said, key=natural) == [f"{word}{number}" for number in sorted(numbers)]


# ---------------------------------------------------------------- what is wrong


def test_no_match_shows_the_expression_and_three_names(images: Images) -> None:
    folder = images("one.tif", "two.tif", "a/three.tif", "z.tif")
    with pytest.raises(UserError) as mistake:
        read(folder)
    for part in (repr(REGEX), "'a/three.tif', 'one.tif', 'two.tif'", "whole path"):
        assert part in str(mistake.value)


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("regex", "said"),
    [
        (r"(?P<wel>\w+)", "group 'wel'; did you mean 'well'"),
        (r"(?P<channel>\w+)", "one of the groups well and image"),
        (r"(?P<well>\w+)(?P<image>\w+)", "one of the groups well and image"),
        (r"(?P<well>", "is no regular expression"),
    ],
)
def test_an_expression_that_cannot_work_is_explained(images: Images, regex: str, said: str) -> None:
    with pytest.raises(UserError) as mistake:
        read(images("A01.tif"), regex=regex)
    assert said in str(mistake.value)


@pytest.mark.parametrize(
    ("name", "recipe", "said"),
    [
        ("x_s1_w1.tif", {}, "x_s1_w1.tif: well 'x' is no well name"),
        ("A01_s1_w1_zmid.tif", {}, "A01_s1_w1_zmid.tif: plane 'mid' is no number"),
        (
            "A01_s1_w2.tif",
            {"channels": {"w2": "DAPI"}},
            "A01_s1_w2.tif: channel '2' is not in pattern.channels",
        ),
        ("A01_s1_w1.tif", {"transmitted": ["BF"]}, "pattern.transmitted: no channel 'BF'"),
        (
            "P01_s1_w1.tif",
            {"wells_on_plate": 96},
            "P01_s1_w1.tif: wells up to P01 do not fit a plate of 96 wells",
        ),
    ],
)
def test_what_names_cannot_mean_is_explained(
    images: Images, name: str, recipe: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as mistake:
        read(images(name), **recipe)
    assert said in str(mistake.value)


def test_two_files_for_one_plane_name_both(images: Images) -> None:
    export = read(images("A1_s1_w1.tif", "A01_s1_w1.tif"))
    [(key, text, _)] = export.problems
    assert key == FieldKey("A01", "1")
    assert "A1_s1_w1.tif" in text
    assert "A01_s1_w1.tif" in text
    assert export.files[key] == (), "nothing tells which of them is right"


def test_two_files_of_one_name_are_distinguished_by_their_folders(images: Images) -> None:
    export = read(images("z1/A01_s1_w1.tif", "z2/A01_s1_w1.tif"), regex=r"z\d/(?P<well>\w+?)_.*\.tif")
    assert "z1/A01_s1_w1.tif and z2/A01_s1_w1.tif" in export.problems[0][1]


def test_a_lost_file_is_noticed_by_its_neighbours(images: Images) -> None:
    names = [f"A01_s{field}_w{channel}.tif" for field in (1, 2, 3) for channel in (1, 2)]
    [(key, text, _)] = read(images(*names[:-1])).problems
    assert str(key) == "A01/3"
    assert text == "lacks channel '2' plane 0, which most fields have"


def test_a_stain_of_few_fields_is_no_fault_of_the_others(images: Images) -> None:
    names = [f"A01_s{field}_w1.tif" for field in range(1, 6)]
    export = read(images(*names, "A01_s1_w2.tif"))
    assert export.problems == ()
    assert export.plate.fields[1].planes("2") == ()


def test_damaged_files_are_all_named(images: Images) -> None:
    folder = images(*(f"A01_s{field}_w1.tif" for field in (1, 2, 3)))
    for field in (1, 3):
        path = folder / f"A01_s{field}_w1.tif"
        path.write_bytes(path.read_bytes()[:-100])
    export = read(folder)
    assert [(str(key), "is truncated" in text) for key, text, _ in export.problems] == [
        ("A01/1", True),
        ("A01/3", True),
    ]
    assert export.files[FieldKey("A01", "1")] == ()
    assert export.plate.fields[0].shape == (1, 1, 1, 24, 32)


def test_a_damaged_file_adds_neither_a_channel_nor_a_time_to_the_others(tmp_path: Path) -> None:
    """Channels and times are those that the files state, and this one states nothing."""
    metadata = {"axes": "TCYX", "Channel": {"Name": ["GFP", "DAPI"]}}
    for well in ("A01", "A02", "A03"):
        pixels = np.zeros((3, 2, 12, 16), np.uint16)
        tifffile.imwrite(tmp_path / f"{well}.ome.tif", pixels, photometric="minisblack", metadata=metadata)
    damaged = tmp_path / "A02.ome.tif"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    export = read(tmp_path, regex=r"(?P<well>\w+)\.ome\.tif")
    assert [channel.name for channel in export.plate.channels] == ["DAPI", "GFP"]
    assert {field.shape[:3] for field in export.plate.fields} == {(3, 2, 1)}
    [(key, text, kind)] = export.problems
    assert (str(key), kind, text.count("A02.ome.tif")) == ("A02/1", "damaged", 1)
    assert export.remarks == ()


def test_a_well_of_one_time_begins_with_the_series_of_the_others(tmp_path: Path) -> None:
    for well, times in (("A01", 3), ("A02", 1)):
        pixels = np.zeros((times, 12, 16), np.uint16)
        tifffile.imwrite(tmp_path / f"{well}.tif", pixels, imagej=True, metadata={"axes": "TYX"})
    export = read(tmp_path, regex=r"(?P<well>\w+)\.tif")
    assert [field.shape[0] for field in export.plate.fields] == [3, 1]
    assert export.problems == ()


def test_a_folder_without_any_usable_file_is_refused(images: Images) -> None:
    folder = images("A01_s1_w1.tif")
    (folder / "A01_s1_w1.tif").write_bytes(b"")
    with pytest.raises(UserError, match=r"no file can be used; .*A01_s1_w1\.tif is empty"):
        read(folder)


def test_planes_that_differ_in_shape_or_type_are_named_and_not_stored(images: Images) -> None:
    folder = images(*(f"A01_s{s}_w{w}.tif" for s in (1, 2, 3) for w in (1, 2)))
    tifffile.imwrite(folder / "A01_s1_w2.tif", np.zeros((24, 30), np.uint16))
    tifffile.imwrite(folder / "A01_s2_w1.tif", np.zeros((24, 32), np.uint8))
    export = read(folder)
    assert [(str(key), text, kind) for key, text, kind in export.problems] == [
        (
            "A01/1",
            "A01_s1_w2.tif is uint16 of 24 × 30 pixels, other planes are uint16 of 24 × 32 pixels",
            "differing",
        ),
        (
            "A01/2",
            "A01_s2_w1.tif is uint8 of 24 × 32 pixels, other planes are uint16 of 24 × 32 pixels",
            "differing",
        ),
    ]
    assert {str(key): len(own) for key, own in export.files.items()} == {"A01/1": 1, "A01/2": 1, "A01/3": 2}
    assert {field.shape[-2:] for field in export.plate.fields} == {(24, 32)}


def test_channels_may_differ_in_type(images: Images) -> None:
    folder = images(*(f"A01_s{s}_w{w}.tif" for s in (1, 2) for w in (1, 2)))
    for s in (1, 2):
        tifffile.imwrite(folder / f"A01_s{s}_w1.tif", np.zeros((24, 32), np.uint8))
    export = read(folder)
    assert (export.problems, export.remarks) == ((), ())


def test_a_channel_of_another_size_is_left_out(images: Images) -> None:
    folder = images(*(f"A0{n}_s1_w{w}.tif" for n in (1, 2) for w in (1, 2, 3)))
    for n in (1, 2):
        tifffile.imwrite(folder / f"A0{n}_s1_w2.tif", np.zeros((12, 16), np.uint16))
    export = read(folder, channels={"1": "BF", "2": "DAPI", "3": "FITC"})
    assert [channel.name for channel in export.plate.channels] == ["BF", "FITC"]
    assert [(left.path.name, left.kind, left.well, left.channel) for left in export.left_out] == [
        (f"A0{n}_s1_w2.tif", "channel of another size", f"A0{n}", "DAPI") for n in (1, 2)
    ]
    assert export.problems == ()
    assert export.remarks == (
        "channel 'DAPI' has 12 × 16 pixels, the others 24 × 32: it is left out, for pixels are not resampled "
        "unasked; resample=true does it",
    )


@pytest.mark.parametrize("resample", [False, True])
def test_a_channel_that_is_left_out_tells_no_size(tmp_path: Path, resample: bool) -> None:
    """Neither of pixels, which would be unknown, nor of images, to which others would be resampled."""
    sizes = [("1", (12, 16), 1.0), ("0", (20, 20), 0.7), ("2", (24, 32), 0.5), ("3", (24, 32), 0.5)]
    for channel, size, um in sizes:
        tifffile.imwrite(
            tmp_path / f"A01_w{channel}.tif", np.zeros(size, np.uint16), imagej=True,
            resolution=(1 / um, 1 / um), metadata={"unit": "um"},
        )  # fmt: skip
    regex = r"(?P<well>\w+)_w(?P<channel>\d)\.tif"
    export = pattern.read(tmp_path, PatternRecipe.model_validate({"regex": regex}), resample)
    assert export.plate.pixel_um == 0.5
    assert len(export.files[FieldKey("A01", "1")]) == (3 if resample else 2)
    assert export.problems == ()


def test_fields_that_differ_as_a_whole_are_remarked(images: Images) -> None:
    folder = images(*(f"A0{n}_s1_w1.tif" for n in (1, 2, 3)))
    tifffile.imwrite(folder / "A02_s1_w1.tif", np.zeros((12, 32), np.uint8))
    export = read(folder)
    assert export.problems == ()
    assert export.remarks == ("1 field differs from most: uint8 of 12 × 32 pixels, A02/1",)


def test_pages_and_a_stated_plane_contradict(images: Images) -> None:
    folder = images("A01_s1_w1_z3.tif", shape=(5, 24, 32))
    tifffile.imwrite(folder / "A01_s2_w1_z3.tif", np.zeros((24, 32), np.uint16))
    [(key, text, _)] = read(folder).problems
    assert str(key) == "A01/1"
    assert text == "A01_s1_w1_z3.tif has 5 pages, but is said to be plane 3"


def test_links_within_the_folder_are_files_and_links_in_a_circle_are_none(images: Images) -> None:
    folder = images("A01_s1_w1.tif")
    os.symlink(folder / "A01_s1_w1.tif", folder / "A02_s1_w1.tif")
    os.symlink(folder / "A03_s1_w1.tif", folder / "A03_s1_w1.tif")
    os.symlink(folder, folder / "again")
    assert read(folder).plate.wells == ("A01", "A02")


def test_a_matching_link_that_leads_out_is_refused(images: Images, tmp_path: Path) -> None:
    folder = images("A01_s1_w1.tif")
    (tmp_path / "secret").write_bytes(b"x")
    os.symlink(tmp_path / "secret", folder / "A01_s2_w1.tif")
    with pytest.raises(UserError, match=r"A01_s2_w1\.tif is a link that leads out"):
        read(folder)


# ---------------------------------------------------------------- tables


def test_a_table_assigns_files_to_wells_and_channels(images: Images) -> None:
    folder = images("x/1.tif", "x/2.tif", "x/3.tif")
    lines = ["path,well,field,channel,plane,time,acquisition"]
    lines += [f"x/{number}.tif,b3,1,DAPI,{10 - number},," for number in (1, 2, 3)]
    export = read(folder, **table(folder, *lines))
    assert [name for name, _, _ in order(export, FieldKey("B03", "1"))] == ["3.tif", "2.tif", "1.tif"]
    assert export.problems == ()


def test_a_table_of_paths_and_wells_is_enough(images: Images) -> None:
    folder = images("1.tif", "2.tif")
    export = read(folder, **table(folder, "\ufeffpath, well", "1.tif,A01", "2.tif,A02"))
    assert export.plate.wells == ("A01", "A02")


def test_a_file_for_two_wells_is_stored_in_neither(images: Images) -> None:
    folder = images("1.tif", "2.tif")
    export = read(folder, **table(folder, "path,well", "1.tif,A01", "1.tif,A02", "2.tif,A03"))
    text = "1.tif is given for the fields A01/1, A02/1"
    assert [(str(key), *rest) for key, *rest in export.problems] == [
        ("A01/1", text, "duplicate"), ("A02/1", text, "duplicate"),
    ]  # fmt: skip
    assert [len(files) for files in export.files.values()] == [0, 0, 1]


def test_a_line_that_a_table_repeats_counts_once(images: Images) -> None:
    folder = images("1.tif", "2.tif")
    export = read(folder, **table(folder, "path,well", "1.tif,A01", "1.tif,A01", "2.tif,A02"))
    assert export.problems == ()
    assert [len(files) for files in export.files.values()] == [1, 1]


def test_files_that_a_table_names_in_vain_are_problems(images: Images) -> None:
    folder = images("1.tif")
    export = read(folder, **table(folder, "path,well,field", "1.tif,A01,1", "2.tif,A01,2"))
    assert [(str(key), *rest) for key, *rest in export.problems] == [("A01/2", "2.tif is missing", "missing")]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,wel", "1.tif,A01"], "unknown column 'wel'; did you mean 'well'"),
        (["path,well,dose", "1.tif,A01,3"], "unknown column 'dose'"),
        (["path;well", "1.tif;A01"], "unknown column 'path;well'"),
        (["path", "1.tif"], "path and well, or path, row and column, are needed"),
        (["path,well,well", "1.tif,A01,A01"], "each once"),
        (["path,well"], "no rows"),
        (["path,well", "1.tif"], "line 2: 2 cells"),
        (["path,well", "1.tif,A01,x"], "line 2: 2 cells"),
        (["path,well", "1.tif,"], "line 2: path and well must be given"),
        (["path,well", "../1.tif,A01"], "line 2 names '../1.tif'"),
        (["path,well", "/etc/passwd,A01"], "line 2 names '/etc/passwd'"),
        (["path,well", "1.tif,Q99"], "line 2: wells up to Q99"),
    ],
)
def test_a_table_that_is_wrong_names_line_and_column(images: Images, lines: list[str], said: str) -> None:
    folder = images("1.tif")
    with pytest.raises(UserError) as mistake:
        read(folder, **table(folder, *lines))
    assert "table.csv" in str(mistake.value)
    assert said in str(mistake.value)


def test_a_table_that_is_not_text_is_refused(images: Images) -> None:
    folder = images("1.tif")
    recipe = table(folder, "")
    recipe["table"].write_bytes(b"path,well\n\xff\xfe\x00,A01\n")
    with pytest.raises(UserError, match="not readable as CSV"):
        read(folder, **recipe)
    recipe["table"].unlink()
    with pytest.raises(UserError, match="there is no such file"):
        read(folder, **recipe)


# ---------------------------------------------------------------- the shipped patterns


def shipped(name: str, folder: Path, *more: str) -> Export:
    recipe = load("convert", Path(f"patterns/{name}.yaml"), [f"source={folder}", "out=x.zarr", *more])
    assert isinstance(recipe, ConvertRecipe)
    assert recipe.pattern is not None
    return pattern.read(folder, recipe.pattern)


@pytest.mark.realdata
def test_the_google_field_has_its_planes_in_order(realdata: Path) -> None:
    export = shipped("isl_google", realdata / "isl-google")
    key = FieldKey("A04", "1")
    assert order(export, key) == [
        *((f"phase_contrast_z{z:02d}.png", 0, plane) for plane, z in enumerate((2, 4, 6, 8, 10))),
        ("DAPI_CONFOCAL_maxproject.png", 1, 0),
    ]
    [field] = export.plate.fields
    assert (field.shape, field.dtype) == ((1, 2, 5, 1024, 1024), "uint16")
    assert [(c.name, c.fluorescent) for c in export.plate.channels] == [
        ("Phase contrast", False),
        ("DAPI", True),
    ]
    assert export.problems == () == export.remarks
    assert read_plane(export.files[key][0].path).shape == (1024, 1024)


def test_the_google_study_is_read_as_published(images: Images) -> None:
    lab = "lab-Finkbeiner,condition-kevan_0_8,acquisition_date,year-2015,month-9,day-28,well-A4"
    end = "is_mask-false,kind,value-ORIGINAL.png"
    stain = f"{lab},depth_computation,value-MAXPROJECT,channel,value"
    folder = images(
        *(f"{lab},z_depth-{z},channel,value-PHASE_CONTRAST,{end}" for z in (0, 10, 9)),
        *(f"{stain}-{name}_CONFOCAL,{end}" for name in ("DAPI", "MAP2", "NEURITE")),
        f"{stain}-DAPI_CONFOCAL,statistic,value-MEDIAN,kind,value-PREDICTED.png",
    )
    export = shipped("isl_google_public", folder)
    assert [channel.name for channel in export.plate.channels] == ["Phase contrast", "DAPI", "MAP2"]
    assert export.plate.fields[0].details["plane_numbers"] == [0, 9, 10]
    assert len(export.files[FieldKey("A04", "1")]) == 5


@pytest.mark.parametrize(
    ("name", "names", "more", "result"),
    [
        (
            "harmony_names",
            ["r02c03f01p01-ch1sk1fk1fl1.tiff", "r02c03f01p02-ch1sk1fk1fl1.tiff"],
            [],
            {("B03/01", 0, 0, 0), ("B03/01", 0, 0, 1)},
        ),
        (
            "cq1",
            ["Image/W15F001T0001Z01C1.tif", "Image/W15F001T0002Z01C2.tif"],
            ["pattern.wells_on_plate=96"],
            {("B03/001", 0, 0, 0), ("B03/001", 1, 1, 0)},
        ),
        (
            "cellvoyager",
            ["P_B03_T0001F001L01A01Z01C01.TIF", "P_AF48_T0001F001L01A01Z01C02.png"],
            [],
            {("B03/001", 0, 0, 0), ("AF48/001", 0, 1, 0)},
        ),
        (
            "imagexpress",
            ["P_B03_s1_w1.TIF", "P_B03_s1_w10.TIF"],
            [],
            {("B03/1", 0, 0, 0), ("B03/1", 0, 1, 0)},
        ),
        (
            "incucyte",
            ["Phase/X_B2_1_00d06h00m.tif", "Green/X_B2_1_00d06h00m.tif", "Phase/X_B2_1_10d06h00m.tif"],
            [],
            {("B02/1", 0, 0, 0), ("B02/1", 0, 1, 0), ("B02/1", 1, 1, 0)},
        ),
    ],
)
def test_shipped_patterns_read_the_names_that_are_known(
    images: Images, name: str, names: list[str], more: list[str], result: set[tuple[str, int, int, int]]
) -> None:
    export = shipped(name, images(*names), *more)
    assert {(str(key), *file.place) for key, own in export.files.items() for file in own} == result
    assert export.left_out == ()


@pytest.mark.realdata
def test_sephace_has_its_planes_in_order_of_height(realdata: Path) -> None:
    export = shipped("sephace", realdata / "sephace")
    assert export.plate_map == {"A01": {"image": "set1"}, "A02": {"image": "set2"}}
    first = export.plate.fields[0]
    assert first.z_um == (1327.60, 1341.95, 1351.60, 1352.25, 1362.00, 1376.80)
    assert first.details["planes"] == {"Brightfield": [0, 1, 2, 3, 4, 5], "DAPI": [0]}
    for stack in export.files.values():
        heights = [float(p.path.stem.split("-Z")[1]) for p in stack if p.channel == 0]
        assert heights == sorted(heights)
        assert [p.path.name for p in stack if p.channel == 1] == ["fl.tif"]
    assert export.problems == ()


@pytest.mark.realdata
def test_images_without_wells_are_read(realdata: Path) -> None:
    regex = r"(?P<image>.+)_(?P<channel>phase|nuclear)\.tif"
    export = read(realdata / "phase_nuclear", regex=regex, transmitted=["phase"])
    assert len(export.plate.wells) == len(export.plate.fields) == 20
    assert {field.key.name for field in export.plate.fields} == {"1"}
    assert sorted(row["image"] for row in export.plate_map.values())[:3] == ["3T3_2", "3T3_3", "3T3_t1"]
    assert not any("labels" in str(plane.path) for stack in export.files.values() for plane in stack)
    assert export.problems == ()


@pytest.mark.realdata
def test_imagexpress_stacks_are_read_without_projections(realdata: Path) -> None:
    export = shipped(
        "imagexpress_stack",
        realdata / "vendor" / "imagexpress_htd",
        "pattern.channels={'1': DAPI, '2': FITC, '3': Texas Red}",
    )
    assert [str(field.key) for field in export.plate.fields] == ["B02/1", "B02/2", "B03/1", "B03/2"]
    assert {field.shape for field in export.plate.fields} == {(1, 3, 2, 256, 256)}
    assert not any("ZStep_0" in str(plane.path) for stack in export.files.values() for plane in stack)
    assert export.problems == ()


@pytest.mark.realdata
def test_metaxpress_stacks_are_read_without_thumbnails(realdata: Path) -> None:
    folder = realdata / "vendor" / "metaxpress_database" / "2023-02-21" / "1334"
    stacks = shipped("imagexpress_stack", folder)
    assert {field.shape for field in stacks.plate.fields} == {(1, 3, 10, 512, 512)}
    assert stacks.plate.fields[0].details["planes"] == {"1": list(range(10)), "2": list(range(10)), "4": [0]}
    assert stacks.problems == ()
    assert not any("thumb" in plane.path.name for stack in stacks.files.values() for plane in stack)
    with pytest.raises(UserError, match="matches 6 images and leaves out 42, more than half"):
        shipped("imagexpress", folder)


@pytest.mark.realdata
def test_imagexpress_without_stacks_is_read(realdata: Path) -> None:
    export = shipped("imagexpress", realdata / "bbbc039" / "images")
    assert len(export.plate.fields) == 14
    assert export.problems == ()


@pytest.mark.realdata
def test_cellvoyager_is_read_without_shading_images(realdata: Path) -> None:
    export = shipped("cellvoyager", realdata / "vendor" / "cellvoyager_cv8000")
    assert export.plate.wells == ("D08", "E03", "F08")
    assert {field.shape for field in export.plate.fields} == {(1, 2, 4, 2000, 2000)}
    assert export.problems == ()
