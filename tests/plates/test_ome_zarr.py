"""Plates of other programs, used where they lie: of them is known what converting them would tell."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from other_plates import group, snapshot, whole, write_other

from hpc_isl.errors import UserError
from hpc_isl.plates import assemble, ome_zarr, planes
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.readers import ome_zarr as ome_zarr_reader
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import (
    Index,
    finalise,
    open_level,
    open_plate,
    read_box,
    rebuild_index,
    write_field,
    write_labels,
)
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import AdoptRecipe, CodecRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.adopt.stage import adopt, plan
from hpc_isl.stages.convert import stage as convert_stage
from hpc_isl.stages.inspect import validate
from hpc_isl.stages.set_metadata import metadata_edit

CHANNELS = (Channel("Brightfield", False), Channel("DAPI", color="0000FF"), Channel("GFP", color="00FF00"))


def ours(
    path: Path,
    wells: tuple[str, ...] = ("B02", "C11"),
    shape: tuple[int, ...] = (1, 3, 2, 301, 270),
    dtype: str = "uint16",
    stacked: bool = True,
) -> Index:
    """A plate as convert writes it; every pixel another, so that no exchange of axes escapes."""
    t, c, z, y, x = shape
    heights = (3.0, 5.0) if stacked and z == 2 else ()
    plate = Plate(
        path.stem, *layout(set(wells)), CHANNELS[:c],
        tuple(
            Field(FieldKey(well, str(number)), (t, c, z, y, x), dtype, (10.0, number * 50.0), heights)
            for well in wells for number in (0, 1)
        ),
        0.65, 2.0 if heights else None,
    )  # fmt: skip
    for seed, field in enumerate(plate.fields):
        pixels = np.random.default_rng(seed).gamma(2, 40, shape).astype(dtype)
        write_field(path, plate, field, pixels, measure(pixels), CodecRecipe(chunk=64))
    return finalise(path, plate, {})


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return ours(tmp_path_factory.mktemp("ours") / "P01.zarr")


def recipe(other: Path, *words: str) -> AdoptRecipe:
    found = load("adopt", None, [f"plate={other}", *words])
    assert isinstance(found, AdoptRecipe)
    return found


def adopted(other: Path, *words: str, cpus: int = 1) -> Index:
    """Adopts a plate into which nothing may be written, and opens it by its own name."""
    before = snapshot(other)
    run = Run(other.parent / "runs" / "adopt" / f"a{len(list(other.parent.glob('runs/adopt/*')))}")
    planned = plan(recipe(other, *words))
    assert not planned.makes[0].exists() or words or (planned.makes[0] / "index").exists()
    adopt(planned.recipe, Attempt(run, cpus=cpus))
    assert snapshot(other) == before
    return open_plate(planned.makes[0] if words and "index" in words[0] else other)


def assert_same(found: Index, expected: Index) -> None:
    """Names, sizes, statistics and all pixels of all levels are equal."""
    assert found.fingerprint == expected.fingerprint
    assert found.plate.channels == expected.plate.channels
    assert (found.plate.rows, found.plate.columns) == (expected.plate.rows, expected.plate.columns)
    for own, other in zip(found.plate.fields, expected.plate.fields, strict=True):
        assert (own.key, own.shape, own.dtype) == (other.key, other.shape, other.dtype)
        assert own.position_um == pytest.approx(other.position_um)
        assert own.z_um == other.z_um
        assert found.statistics[own.key] == replace(
            expected.statistics[own.key], histograms=found.statistics[own.key].histograms
        )
        assert found.levels(own.key) == expected.levels(own.key)
        for level in range(expected.levels(own.key)):
            np.testing.assert_array_equal(whole(found, own.key, level), whole(expected, own.key, level))
    keys = [field.key for field in expected.plate.fields]
    for channel in range(len(expected.plate.channels)):
        assert found.histogram(keys, channel) == expected.histogram(keys, channel)


LAYOUTS: dict[str, dict[str, Any]] = {
    "bioformats2raw": {"version": "0.4", "dtype": ">u2", "separator": "/", "padded": False},
    "ome-zarr-py 0.4": {"version": "0.4", "axes": "czyx"},
    "ome-zarr-py 0.5": {"version": "0.5", "axes": "czyx"},
    "0.5 in shards": {"version": "0.5", "axes": "tczyx", "shard": True},
    "dots": {"version": "0.4", "separator": "."},
    "another order": {"version": "0.4", "axes": "cxzy"},
    "full resolution alone": {"version": "0.4", "levels": 1},
    "nanometres": {"version": "0.5", "unit": "nanometer", "per_unit": 1e-3},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plate_of_another_program_is_known_as_if_it_had_been_converted(
    name: str, index: Index, tmp_path: Path
) -> None:
    other = write_other(index, tmp_path / "P01.zarr", **LAYOUTS[name])
    found = adopted(other)
    assert found.path == tmp_path / "P01.hpc_isl"
    assert found.adopted == other
    if name == "nanometres":
        assert found.plate.pixel_um == pytest.approx(0.65)
        assert found.plate.plane_um == pytest.approx(2)
        return
    assert_same(found, index)
    assert (found.plate.pixel_um, found.plate.plane_um) == (0.65, 2.0)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("yx", (1, 1, 1, 70, 90)),
        ("cyx", (1, 3, 1, 70, 90)),
        ("zyx", (1, 1, 2, 70, 90)),
        ("tyx", (3, 1, 1, 70, 90)),
        ("tzcyx", (2, 3, 2, 70, 90)),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_from_two_to_five(version: str, axes: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    expected = ours(tmp_path / "ours" / "P01.zarr", ("B02",), shape)
    assert_same(adopted(write_other(expected, tmp_path / "P01.zarr", version=version, axes=axes)), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32"])
def test_types_of_pixels(dtype: str, tmp_path: Path) -> None:
    expected = ours(tmp_path / "ours" / "P01.zarr", ("B02",), (1, 3, 2, 40, 50), dtype)
    big = np.dtype(dtype).newbyteorder(">").str
    assert_same(adopted(write_other(expected, tmp_path / "P01.zarr", dtype=big)), expected)


def test_processes_measure_what_one_does(index: Index, tmp_path: Path) -> None:
    assert_same(adopted(write_other(index, tmp_path / "P01.zarr"), cpus=2), index)


def test_a_missing_chunk_has_the_fill_value_and_in_a_plate_of_ours_it_is_an_error(
    index: Index, tmp_path: Path
) -> None:
    other = write_other(index, tmp_path / "P01.zarr", fill=7, version="0.5")
    shutil.rmtree(other / "B" / "02" / "0" / "0" / "c" / "0" / "1")  # t 0, c 1
    found = adopted(other)
    key = FieldKey("B02", "0")
    assert (whole(found, key)[0, 1] == 7).all()
    np.testing.assert_array_equal(whole(found, key)[0, 2], whole(index, key)[0, 2])
    assert found.statistics[key].planes[0, 1, 0].mean == 7
    copy = shutil.copytree(index.path, tmp_path / "copy.zarr")
    shutil.rmtree(copy / "B" / "02" / "0" / "0" / "c")
    with pytest.raises(UserError, match="cannot be read"):
        read_box(open_plate(copy).image(key), 0, 0, 1, [0], slice(0, 9), slice(0, 9))


def test_levels_that_are_no_halves_are_left_alone(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    for image in other.glob("*/*/[0-9]"):
        third = zarr.open_array(image / "0", mode="r")[..., ::3, ::3]
        shutil.rmtree(image / "1")
        zarr.create_array(image / "1", data=third, zarr_format=2)
    assert_same(adopted(other), index)


def test_wells_with_gaps_passes_and_several_images_of_a_field(tmp_path: Path) -> None:
    expected = ours(tmp_path / "ours" / "P01.zarr", ("B02", "D05"), (1, 2, 1, 40, 50))
    other = write_other(expected, tmp_path / "P01.zarr")
    shutil.rmtree(other / "D" / "05")  # listed, and not there
    shutil.copytree(other / "B" / "02" / "0", other / "B" / "02" / "0_registered")
    shutil.copytree(other / "B" / "02" / "0", other / "B" / "02" / "7")
    shutil.copytree(other / "B" / "02" / "1", other / "B" / "02" / "8")
    shutil.copytree(other / "B" / "02" / "1", other / "B" / "02" / "9")
    images = [("0", 0), ("1", 0), ("0_registered", 0), ("7", 4), ("8", 4), ("9", 4)]
    entries = [{"path": path, "acquisition": number} for path, number in images]
    group(other / "B" / "02", "0.4", {"well": {"images": entries}})
    found = adopted(other)
    keys = [str(field.key) for field in found.plate.fields]
    assert keys == ["B02/0", "B02/0registered", "B02/1", "B02/4x0", "B02/4x0registered", "B02/4x1"]
    assert found.plate.acquisitions == {0: "0", 4: "4"}
    np.testing.assert_array_equal(
        whole(found, FieldKey("B02", "1", 4)), whole(expected, FieldKey("B02", "1"))
    )
    assert any("1 well is listed and not there: D05" in text for text in plan(recipe(other)).messages)


def test_images_with_other_channels_are_not_imaged_in_those_that_they_lack(tmp_path: Path) -> None:
    expected = ours(tmp_path / "ours" / "P01.zarr", ("B02",), (1, 3, 1, 40, 50))
    other = write_other(expected, tmp_path / "P01.zarr")
    image = other / "B" / "02" / "1"
    content = json.loads((image / ".zattrs").read_text())
    content["omero"]["channels"] = [content["omero"]["channels"][n] for n in (2, 0)]
    group(image, "0.4", content)
    kept = zarr.open_array(image / "0", mode="r")[:, [2, 0]]
    shutil.rmtree(image / "0")
    zarr.create_array(image / "0", data=kept, zarr_format=2)
    found, key = adopted(other), FieldKey("B02", "1")
    assert found.plate.channels == expected.plate.channels
    assert found.imaged(key)[0].tolist() == [[True], [False], [True]]
    np.testing.assert_array_equal(whole(found, key)[0, [0, 2]], whole(expected, key)[0, [0, 2]])
    assert not whole(found, key)[0, 1].any()
    assert found.field(key).planes("DAPI") == ()


def test_sizes_without_a_unit_are_not_invented(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr", unit=None)
    messages = "\n".join(plan(recipe(other)).messages)
    assert "a scale of 0.65 and no unit: their size is taken as unknown" in messages
    assert "(4 images)" in messages
    found = adopted(other)
    assert (found.plate.pixel_um, found.plate.plane_um) == (None, None)
    assert {field.position_um for field in found.plate.fields} == {None}


@pytest.mark.parametrize(("unit", "um"), [("micrometre", 0.65), ("Å", 0.65e-4), ("inch", 0.65 * 25400)])
def test_units_are_those_that_vendors_write_too(unit: str, um: float, index: Index, tmp_path: Path) -> None:
    assert ome_zarr.read(write_other(index, tmp_path / "P", unit=unit)).plate.pixel_um == pytest.approx(um)


def test_channels_without_names_are_numbered(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    for image in other.glob("*/*/[0-9]"):
        content = json.loads((image / ".zattrs").read_text())
        del content["omero"]
        group(image, "0.4", content)
    found = adopted(other, "transmitted=[channel 0]")
    kinds = {channel.name: channel.fluorescent for channel in found.plate.channels}
    assert kinds == {"channel 0": False, "channel 1": True, "channel 2": True}
    with pytest.raises(UserError, match=r"transmitted: the plate has no channel 'BF'; .*'channel 0'"):
        plan(recipe(other, "transmitted=[BF]"))


@pytest.mark.parametrize("chunk", [64, 400])
def test_converting_such_a_plate_gives_the_same_plate(chunk: int, index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr", axes="cxzy", chunk=chunk)
    words = [f"source={other}", f"out={tmp_path}/new.zarr", "name=P01"]
    planned = convert_stage.plan(load("convert", None, words))
    convert_stage.convert(planned.recipe, Attempt(Run(tmp_path / "runs" / "convert" / "new")))
    found = open_plate(tmp_path / "new.zarr")
    assert found.adopted is None
    assert_same(found, index)
    assert "nothing to convert" in convert_stage.plan(load("convert", None, words)).messages[-1]
    with pytest.raises(UserError, match="has no layout that is known"):
        convert_stage.plan(load("convert", None, [f"source={index.path}", f"out={tmp_path}/x.zarr"]))


def test_an_image_of_many_planes_is_looked_at_as_often_as_one_of_few(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    export = ome_zarr_reader.read(other)
    field, looks = export.plate.fields[0], Counter[str]()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: (looks.update([name]), function(*given))[1])

    for module, name in ((assemble, "files_digest"), (planes, "files_digest"), (planes, "read_image")):
        counted(module, name)
    names, files = [channel.name for channel in export.plate.channels], export.files[field.key]
    pixels = assemble.assemble(field, files, names).pixels
    assert len(files) == 6
    assert looks == {"files_digest": 1, "read_image": 2}, "for the sizes, and for the pixels"
    array = zarr.open_array(files[0].path, mode="r+")
    array[0, 1, 0, 5, 6] = pixels[0, 1, 0, 5, 6] + 1
    again = assemble.assemble(field, files, names).pixels
    assert np.argwhere(again != pixels).tolist() == [[0, 1, 0, 5, 6]], "a later look sees what has changed"


# ---------------------------------------------------------------- where the index lies


def test_an_index_elsewhere_is_itself_the_plate_for_other_verbs(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "archive" / "P01.zarr")
    found = adopted(other, f"index={tmp_path}/mine")
    assert (found.path, found.adopted) == (tmp_path / "mine", other)
    assert_same(found, index)
    with pytest.raises(UserError, match=r"another program; measure it once.*adopt .*P01.zarr"):
        open_plate(other)


def test_plate_and_index_can_be_moved_together(index: Index, tmp_path: Path) -> None:
    adopted(write_other(index, tmp_path / "a" / "P01.zarr"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert_same(open_plate(tmp_path / "b" / "P01.zarr"), index)
    (tmp_path / "b" / "P01.zarr").rename(tmp_path / "b" / "Q.zarr")
    with pytest.raises(UserError, match=r"P01.zarr: this plate, whose index is .*P01.hpc_isl, is not there"):
        open_plate(tmp_path / "b" / "P01.hpc_isl")


def test_labels_lie_beside_the_plate_in_a_valid_plate_of_labels(index: Index, tmp_path: Path) -> None:
    from ome_zarr_models.v05 import HCS, Image, ImageLabel, Labels, Well
    from yaozarrs import validate_zarr_store

    other = write_other(index, tmp_path / "P01.zarr")
    found = adopted(other)
    before, image = snapshot(other), found.image(FieldKey("B02", "0"))
    drawn = np.zeros((301, 270), int)
    drawn[20:40, 30:60] = 3
    write_labels(image, "my nuclei", drawn, origin="human", boxes=[(0, 0, 301, 270)])
    assert snapshot(other) == before
    validate_zarr_store(str(found.path))
    assert isinstance(HCS.from_zarr(zarr.open_group(found.path, mode="r")), HCS)
    below = {Well: "", Image: "/*", Labels: "/*/labels", ImageLabel: "/*/labels/*"}
    for kind, pattern in below.items():
        folders = [path.parent for path in found.path.glob(f"?/*{pattern}/zarr.json")]
        assert folders
        for folder in folders:
            kind.from_zarr(zarr.open_group(folder, mode="r"))


# ---------------------------------------------------------------- what changed since


def test_only_what_changed_is_measured_again(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    found = adopted(other)
    key = FieldKey("C11", "1")
    write_labels(found.image(key), "drawn", np.ones((301, 270), int), origin="human", boxes=[(0, 0, 9, 9)])
    array = zarr.open_array(other / "C" / "11" / "1" / "0", mode="r+")
    array[0, 1, 0, 5, 6] = 999
    with pytest.raises(
        UserError, match=r"files, or their times, changed since the plate was adopted; .* adopt .*P01.zarr"
    ):
        _fresh(found, key)
    run = Run(tmp_path / "runs" / "adopt" / "again")
    adopt(recipe(other), Attempt(run))
    assert (run.summary() or {})["kept"] == 3
    again = open_plate(other)
    assert again.fingerprint != found.fingerprint
    assert again.statistics[key].planes[0, 1, 0].max == 999
    assert _fresh(again, key)[0, 1, 0, 5, 6] == 999
    assert [path.name for path in (again.image(key) / "labels").iterdir() if path.is_dir()] == ["drawn"]


def _images_say(other: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for path in other.glob("*/*/*/.zattrs"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def _swap_channels(content: dict[str, Any]) -> None:
    content["omero"]["channels"].reverse()


def test_names_of_channels_that_changed_are_taken_over_everywhere(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    before = adopted(other)
    _images_say(other, _swap_channels)
    after = adopted(other)
    names = [channel.name for channel in before.plate.channels]
    assert [channel.name for channel in after.plate.channels] == names[::-1]
    assert after.fingerprint != before.fingerprint
    assert rebuild_index(after.path).fingerprint == after.fingerprint
    assert validate(other, deep=True) == []


def test_a_correction_stays_where_names_of_channels_are_understood_in_another_way(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions differ in which names mean transmitted light; the plate says nothing new by that."""
    other = write_other(index, tmp_path / "P01.zarr")
    monkeypatch.setattr(ome_zarr, "is_transmitted", lambda name: False)
    adopted(other)
    metadata_edit(other, ["transmitted=[DAPI]"]).apply()
    monkeypatch.undo()
    assert {c.name for c in adopted(other).plate.channels if not c.fluorescent} == {"DAPI"}


def test_channels_called_bf_or_bright_field_are_label_free(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    names = iter(("BF", "Bright Field", "GFP"))
    labels = {channel.name: next(names) for channel in index.plate.channels}

    def rename(content: dict[str, Any]) -> None:
        for entry in content["omero"]["channels"]:
            entry["label"] = labels[entry["label"]]

    _images_say(other, rename)
    assert [c.fluorescent for c in ome_zarr.read(other).plate.channels] == [False, False, True]


def test_corrections_by_set_are_never_laid_over_a_plate_that_says_something_else(
    index: Index, tmp_path: Path
) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    adopted(other)
    metadata_edit(other, ["pixel_um=0.5"]).apply()
    assert adopted(other).plate.pixel_um == 0.5
    name = index.plate.channels[-1].name
    with pytest.raises(
        UserError, match=r"`set` has corrected what the plate said .* correct the plate by `set`"
    ):
        plan(recipe(other, f"transmitted=[{name}]"))
    _images_say(other, _swap_channels)
    with pytest.raises(UserError, match="`set` has corrected what the plate said"):
        plan(recipe(other))


def _fresh(index: Index, key: FieldKey) -> np.ndarray:
    """What another process reads: nothing is open yet."""
    from hpc_isl.plates.adopted import open_level as opened

    return np.asarray(opened(index.image(key), 0).read().result())


@pytest.mark.parametrize("how", ["touched", "removed", "added"])
def test_a_change_of_any_file_of_a_level_is_seen(how: str, index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    found, key = adopted(other), FieldKey("B02", "0")
    chunk = next(path for path in (other / "B" / "02" / "0" / "0").rglob("0") if path.is_file())
    if how == "touched":
        os.utime(chunk, ns=(1, 1))
    elif how == "removed":
        chunk.unlink()
    else:
        chunk.with_name("77").write_bytes(b"")
    with pytest.raises(UserError, match="files, or their times, changed since the plate was adopted"):
        _fresh(found, key)
    _fresh(found, FieldKey("B02", "1"))


def test_a_plate_that_says_something_else_of_itself_is_refused(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    adopted(other)
    content = json.loads((other / ".zattrs").read_text())
    content["plate"]["wells"].pop()
    group(other, "0.4", content)
    with pytest.raises(UserError, match="metadata changed since it was adopted; measure it anew"):
        open_plate(other)
    assert len(adopted(other).plate.fields) == 2


def test_a_killed_adoption_is_resumed(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    found = adopted(other)
    (found.path / "zarr.json").unlink()  # as it is before the last step
    (found.image(FieldKey("B02", "1")) / "zarr.json").unlink()
    with pytest.raises(UserError, match="another program; measure it once"):
        open_plate(other)
    run = Run(tmp_path / "runs" / "adopt" / "again")
    adopt(recipe(other), Attempt(run))
    assert (run.summary() or {})["kept"] == 3
    assert_same(open_plate(other), index)


# ---------------------------------------------------------------- mistakes


def _no_plate(other: Path) -> None:
    group(other, "0.4", {"multiscales": [{}]})


def _series(other: Path) -> None:
    group(other, "0.4", {"bioformats2raw.layout": 3})


def _torn(other: Path) -> None:
    (other / ".zattrs").write_text('{"plate": {')


def _wells(other: Path) -> None:
    group(other, "0.4", {"plate": {"wells": [{"path": 7}]}})


def _future(other: Path) -> None:
    group(other, "0.4", {"plate": {"version": "0.9", "wells": []}})


def _well(other: Path) -> None:
    group(other / "B" / "02", "0.4", {"well": {"images": "none"}})


def _axis(other: Path) -> None:
    _changed(other, lambda scales: scales["axes"][2].update(name="angle", type="angle"))


def _twice(other: Path) -> None:
    _changed(other, lambda scales: scales["axes"][3].update(name="x"))


def _no_array(other: Path) -> None:
    shutil.rmtree(other / "B" / "02" / "0" / "0")


def _no_datasets(other: Path) -> None:
    _changed(other, lambda scales: scales.pop("datasets"))


def _bits(other: Path) -> None:
    shutil.rmtree(other / "B" / "02" / "0" / "0")
    zarr.create_array(
        other / "B" / "02" / "0" / "0",
        shape=(1, 3, 2, 9, 9),
        dtype="uint64",
        zarr_format=2,
        chunks=(1, 1, 1, 9, 9),
    )


def _codec(other: Path) -> None:
    file = other / "B" / "02" / "0" / "0" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"compressor": {"id": "invented"}}))


def _changed(other: Path, change: Callable[[Any], object]) -> None:
    image = other / "B" / "02" / "0"
    content = json.loads((image / ".zattrs").read_text())
    change(content["multiscales"][0])
    group(image, "0.4", content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_plate, "is one image, and no plate"),
        (_series, r"holds 0 images of bioformats2raw, and .* puts none into a well; .* wells=FILE.csv"),
        (_torn, r"\.zattrs is damaged"),
        (_wells, "well '7' is no well name|its list of wells is damaged"),
        (_future, "is OME-Zarr 0.9; 0.1, 0.2"),
        (_well, "B/02: its list of images is damaged"),
        (_axis, r"B02/0: .*has an axis 'angle' of 2; t, c, z, y and x are read"),
        (_twice, "each axis once"),
        (_no_array, r"B02/0: .*there is no array"),
        (_no_datasets, r"B02/0: .*metadata are damaged: KeyError\('datasets'\)"),
        (_bits, "B02/0: .*holds uint64; integers up to 32 bits and floats"),
    ],
)
def test_what_cannot_be_read_is_named(
    damage: Callable[[Path], None], message: str, index: Index, tmp_path: Path
) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    damage(other)
    with pytest.raises(UserError, match=message):
        plan(recipe(other))
    assert not (tmp_path / "P01.hpc_isl").exists()


def test_images_that_cannot_be_read_are_left_out_on_request(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    _codec(other)
    _axis_of = other / "C" / "11" / "1" / ".zattrs"
    _axis_of.write_text("{}")
    with pytest.raises(UserError, match=r"1 image cannot be read(?s:.*)C11/1: .*has no multiscales"):
        plan(recipe(other))
    found = adopted(other, "on_error=skip")
    assert [str(field.key) for field in found.plate.fields] == ["B02/1", "C11/0"]
    reasons = {str(problem.key): problem.text for problem in found.problems}
    assert "invented" in reasons["B02/0"]
    assert "has no multiscales" in reasons["C11/1"]


def test_one_damaged_well_makes_no_other_unreadable(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    (other / "C" / "11" / ".zattrs").write_text('{"well": ')
    with pytest.raises(UserError, match=r"C/11/\.zattrs is damaged"):
        plan(recipe(other))
    found = adopted(other, "on_error=skip")
    assert {field.key.well for field in found.plate.fields} == {"B02"}
    assert [problem.key.well for problem in found.problems] == ["C11"]


def test_levels_of_another_type_are_not_taken_for_coarser_ones(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    for image in sorted(path.parent for path in other.glob("*/*/*/.zattrs")):
        level = zarr.open_array(image / "1", mode="r")
        scaled = level[:].astype("f8") / 65535
        shutil.rmtree(image / "1")
        zarr.create_array(image / "1", data=scaled, zarr_format=2, chunks=level.chunks)
    found, whole = adopted(other), adopted(write_other(index, tmp_path / "whole" / "P01.zarr"))
    for field in found.plate.fields:
        theirs, ours = (open_level(own.image(field.key), 1).read().result() for own in (found, whole))
        assert theirs.dtype == ours.dtype
        np.testing.assert_allclose(theirs, ours, atol=1)


def test_plates_that_are_called_by_dates_have_an_index_each(index: Index, tmp_path: Path) -> None:
    names = ("2026.11.28", "2026.11.29", "run.zarr")
    found = [adopted(write_other(index, tmp_path / name)).path.name for name in names]
    assert found == ["2026.11.28.hpc_isl", "2026.11.29.hpc_isl", "run.hpc_isl"]


def test_odd_entries_of_a_plate_that_nothing_needs_do_no_harm(index: Index, tmp_path: Path) -> None:
    other = write_other(index, tmp_path / "P01.zarr")
    content = json.loads((other / ".zattrs").read_text())
    content["plate"] |= {"acquisitions": [{"id": "a"}, 3], "rows": "AB"}
    group(other, "0.4", content)
    assert len(adopted(other).plate.fields) == len(index.plate.fields)


def test_what_is_no_plate_and_what_is_ours_is_not_adopted(index: Index, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such plate"):
        plan(recipe(tmp_path / "none.zarr"))
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(UserError, match=r"holds neither zarr\.json nor \.zattrs"):
        plan(recipe(tmp_path / "empty.zarr"))
    with pytest.raises(UserError, match="was written by convert: there is nothing to adopt"):
        plan(recipe(index.path))
    other = write_other(index, tmp_path / "P01.zarr")
    (tmp_path / "P01.hpc_isl").mkdir()
    (tmp_path / "P01.hpc_isl" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already and was not made by adopt"):
        plan(recipe(other))
    found = adopted(other, f"index={tmp_path}/mine")
    second = write_other(index, tmp_path / "second" / "P01.zarr")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file; a folder is made there"):
        plan(recipe(other, f"index={tmp_path}/file"))
    with pytest.raises(UserError, match=r"mine belongs to .*P01.zarr; choose another index"):
        plan(recipe(second, f"index={found.path}"))


def test_a_listing_of_nothing_is_no_other_plate(tmp_path: Path) -> None:
    assert not ome_zarr.is_other_plate(tmp_path)
