"""The index: equal to what the images state, quick to open, and rebuilt when it is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from large_plate import large_plate

from hpc_isl.errors import UserError
from hpc_isl.plates import index_table
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, Problem, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, open_plate, rebuild_index, write_field
from hpc_isl.recipes.plates import CodecRecipe

B02, B03 = FieldKey("B02", "1"), FieldKey("B03", "1")
SHAPE = (1, 2, 3, 70, 90)
MakePlate = Callable[..., tuple[Any, dict[FieldKey, np.ndarray]]]


def test_the_index_holds_what_was_measured(make_plate: MakePlate) -> None:
    index, pixels = make_plate(SHAPE, SHAPE, plate_map={"B02": {"dose": "1"}})
    for key, array in pixels.items():
        assert index.statistics[key] == measure(array)
    assert len(index.statistics) == 2
    assert index.plate_map == {"B02": {"dose": "1"}}
    assert [field.key for field in index.plate.fields] == [B02, B03]
    assert index.field(B03).position_um == (-120.5, 33)
    assert index.levels(B03) == 3


def test_the_plate_is_read_back_as_it_was_described(make_plate: MakePlate) -> None:
    flat = {"Profile": {"Coefficients": [[1.0], [0.1, 0.2]]}}
    channels = (
        Channel("Phase", False, "FFFFFF", None, None, 0.01, flat),
        Channel("DAPI", True, "0000FF", 375, 456),
    )
    index, _ = make_plate(SHAPE, channels=channels, details={"objective": {"NA": 0.4}})
    assert index.plate.channels == channels
    assert index.plate.details == {"objective": {"NA": 0.4}}
    assert (index.plate.pixel_um, index.plate.plane_um) == (0.5, 4.0)
    assert index.field(B02).z_um == (2.0, 6.0, 10.0)
    assert index.field(B02).details == {"time": "2026-01-01T00:00:00"}


def test_a_rebuilt_index_is_equal_and_a_missing_one_is_rebuilt_on_opening(make_plate: MakePlate) -> None:
    index, _ = make_plate(SHAPE, (1, 2, 1, 30, 40))
    assert rebuild_index(index.path) == index
    content = (index.path / index_table.FILE).read_bytes()
    (index.path / index_table.FILE).unlink()
    assert open_plate(index.path) == index
    assert (index.path / index_table.FILE).read_bytes() == content
    (index.path / index_table.FILE).write_bytes(content[:100])
    assert open_plate(index.path) == index


def test_histograms_of_fields_merge_and_only_those_asked_for(make_plate: MakePlate) -> None:
    index, pixels = make_plate(SHAPE, SHAPE, SHAPE)
    both = measure(pixels[B02]).histograms[1] + measure(pixels[B03]).histograms[1]
    assert index.histogram([B02, B03], 1) == both
    assert index.histogram([B03], 1) == index.statistics[B03].histograms[1]


def test_fields_of_two_types_share_no_histogram(tmp_path: Path, make_plate: MakePlate) -> None:
    index, pixels = make_plate(SHAPE, SHAPE)
    field = replace(index.field(B03), dtype="uint8")
    small = pixels[B03].astype("uint8")
    write_field(
        index.path, index.plate, field, small, measure(small), CodecRecipe(chunk=32), 3, overwrite=True
    )
    index = finalise(index.path, index.plate, {})
    assert index.field(B03).dtype == "uint8"
    with pytest.raises(UserError, match=r"\['uint16', 'uint8'\]"):
        index.histogram([B02, B03], 0)
    assert index.histogram([B03], 0) == measure(small).histograms[0]


def test_planes_that_were_not_imaged_have_no_statistics(make_plate: MakePlate, tmp_path: Path) -> None:
    index, pixels = make_plate(SHAPE)
    places = {(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1)}
    statistics = measure(pixels[B02], places)
    path = tmp_path / "P02.zarr"
    write_field(path, index.plate, index.field(B02), pixels[B02], statistics, CodecRecipe(chunk=32))
    assert set(finalise(path, index.plate, {}).statistics[B02].planes) == places


def test_a_channel_that_no_field_has_pixels_of_is_named(make_plate: MakePlate, tmp_path: Path) -> None:
    index, pixels = make_plate(SHAPE)
    statistics = measure(pixels[B02], {(0, 0, 0)})
    path = tmp_path / "P02.zarr"
    write_field(path, index.plate, index.field(B02), pixels[B02], statistics, CodecRecipe(chunk=32))
    with pytest.raises(UserError, match="channel 1 holds no pixels"):
        finalise(path, index.plate, {}).histogram([B02], 1)


def test_unknown_names_are_answered_with_the_existing_ones(make_plate: MakePlate) -> None:
    index, _ = make_plate(SHAPE)
    assert index.channel("Brightfield") == 0
    with pytest.raises(UserError, match="no channel 'Brightfeld'; did you mean 'Brightfield'"):
        index.channel("Brightfeld")
    with pytest.raises(UserError, match="no field B02/2; did you mean 'B02/1'"):
        index.field(FieldKey("B02", "2"))
    with pytest.raises(UserError, match="no field"):
        index.levels(FieldKey("C02", "1"))


def test_fields_are_in_plate_order_and_numbers_sort_as_numbers(make_plate: MakePlate) -> None:
    keys = [FieldKey("C02", "1"), FieldKey("B10", "1"), FieldKey("B02", "10"), FieldKey("B02", "2")]
    index, _ = make_plate(*[(1, 2, 1, 20, 20)] * 4, keys=keys)
    assert [str(field.key) for field in index.plate.fields] == ["B02/2", "B02/10", "B10/1", "C02/1"]


def test_the_fingerprint_depends_on_pixels_channels_and_positions_alone(
    tmp_path: Path, make_plate: MakePlate
) -> None:
    first, _ = make_plate(SHAPE, SHAPE)
    same = [
        make_plate(SHAPE, SHAPE, path=tmp_path / "other" / "name.zarr")[0],
        make_plate(
            SHAPE, SHAPE, path=tmp_path / "a.zarr", codec=CodecRecipe(name="zstd", chunk=64), levels=1
        )[0],
        make_plate(SHAPE, SHAPE, path=tmp_path / "b.zarr", plate_map={"B02": {"dose": "3"}})[0],
    ]
    assert {index.fingerprint for index in same} == {first.fingerprint}
    shutil.copytree(first.path, tmp_path / "moved.zarr")
    assert open_plate(tmp_path / "moved.zarr").fingerprint == first.fingerprint
    others = [
        make_plate(SHAPE, path=tmp_path / "c.zarr")[0],
        make_plate(SHAPE, SHAPE, path=tmp_path / "d.zarr", position_um=(0.0, 0.0))[0],
        make_plate(SHAPE, SHAPE, path=tmp_path / "e.zarr", channels=(Channel("A"), Channel("B")))[0],
        make_plate((1, 2, 3, 70, 91), SHAPE, path=tmp_path / "f.zarr")[0],
    ]
    assert len({first.fingerprint, *(index.fingerprint for index in others)}) == 5


def test_a_blurred_field_is_flagged_beside_its_neighbours_and_dropped_by_no_one(
    make_plate: MakePlate,
) -> None:
    from scipy.ndimage import gaussian_filter

    index, _ = make_plate(*[(1, 2, 1, 64, 64)] * 9)
    spots = [gaussian_filter(np.random.default_rng(seed).random((64, 64)), 1.5) for seed in range(9)]
    spots[4] = gaussian_filter(spots[4], 3)
    for field, sharp in zip(index.plate.fields, spots, strict=True):
        array = np.repeat((sharp * 5000)[None, None, None], 2, axis=1).astype("uint16")
        write_field(
            index.path, index.plate, field, array, measure(array), CodecRecipe(chunk=32), overwrite=True
        )
    index = finalise(index.path, index.plate, {})
    flagged = {key: result.flags for key, result in index.statistics.items() if result.flags}
    assert flagged == {index.plate.fields[4].key: ("out of focus:0", "out of focus:1")}
    assert len(index.plate.fields) == 9


def test_no_field_at_all_is_no_plate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no field was written"):
        finalise(tmp_path / "P.zarr", Plate("P", ("A",), ("01",), (), ()), {})


def test_the_table_opens_in_pandas_with_a_column_for_each_fact(make_plate: MakePlate) -> None:
    index, pixels = make_plate(SHAPE, SHAPE)
    table = pq.read_table(index.path / index_table.FILE).to_pandas()
    assert list(table["well"]) == ["B02", "B03"]
    assert table["mean"][1][0] == pytest.approx(pixels[B03][0, 0, 0].mean())
    assert {"p999", "focus", "digest", "position_um", "histogram_0", "histogram_1"} <= set(table.columns)


# ---------------------------------------------------------------- speed


def test_a_plate_of_3456_fields_opens_from_two_files_without_heavy_libraries(tmp_path: Path) -> None:
    path = tmp_path / "large.zarr"
    large_plate(path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom hpc_isl.plates.store import open_plate\n"
        "print(len(open_plate(Path(sys.argv[1])).plate.fields))\n"
        "assert 'pandas' not in sys.modules and 'yaozarrs' not in sys.modules"
    )
    (path / "index" / "zarr.json").unlink()  # only zarr.json and the table are there to be read
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 3456


def test_the_index_knows_exactly_which_planes_were_imaged(tmp_path: Path) -> None:
    """Any set of planes, not only whole channels, planes or times; what is elsewhere is no count."""
    index = ragged(tmp_path / "P.zarr")
    mask = index.imaged(B02)
    assert mask.shape == (2, 2, 2)
    assert np.argwhere(~mask).tolist() == [[1, 1, 1]]
    assert (index.planes(B02, 1, 0), index.planes(B02, 1, 1)) == ([0, 1], [0])
    assert index.statistics[B02].histograms[1].total == 3 * 30 * 40
    assert np.array_equal(rebuild_index(index.path).imaged(B02), mask)


def test_a_plate_that_was_converted_before_opens_with_the_same_fingerprint(tmp_path: Path) -> None:
    """The fingerprint is that of version 0.1 at commit 4526d8e, whose records of problems had no kind."""
    index = ragged(tmp_path / "P.zarr")
    assert index.fingerprint == "dc71f8f4365b59ea"
    group = index.path / "zarr.json"
    content = json.loads(group.read_text())
    content["attributes"]["hpc_isl"]["problems"] = [["C03", "1", 0, "x.tif is truncated"]]
    group.write_text(json.dumps(content))
    again = open_plate(index.path)
    assert again.problems == (Problem(FieldKey("C03", "1"), "x.tif is truncated"),)
    assert (again.fingerprint, again.plate) == (index.fingerprint, index.plate)


def ragged(path: Path) -> Index:
    """A field of which the last plane of the last channel and time was not imaged."""
    shape = (2, 2, 2, 30, 40)
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    pixels[1, 1, 1] = 0
    details = {"planes": {"Phase": [0, 1], "DAPI": [0, 1]}, "time": "2026-01-01"}
    field = Field(B02, shape, "uint16", (1.5, -2.0), (0.0, 2.0), details)
    plate = Plate(
        "P",
        *layout({"B02"}),
        (Channel("Phase", False), Channel("DAPI")),
        (field,),
        pixel_um=0.5,
        plane_um=2.0,
    )
    imaged = [place for place in np.ndindex(2, 2, 2) if place != (1, 1, 1)]
    write_field(path, plate, field, pixels, measure(pixels, imaged), CodecRecipe(chunk=32))
    return finalise(path, plate, {})
