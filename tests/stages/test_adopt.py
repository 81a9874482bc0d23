"""Every verb takes a plate of another program, and finds what it finds on the same pixels, converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from mounts import read_only
from ngio import open_ome_zarr_plate
from ome_zarr_models.v05 import ImageLabel
from other_plates import group, snapshot, write_other, write_series
from used_plates import assert_same_results, computed, use

import hpc_isl
from hpc_isl.errors import UserError
from hpc_isl.plates.label_groups import label_folder
from hpc_isl.plates.store import Index, label_names, open_plate, read_labels, write_labels
from hpc_isl.recipes.load import load
from hpc_isl.stages.adopt import stage as adopt
from hpc_isl.stages.inspect import inspect, validate
from hpc_isl.stages.set_metadata import metadata_edit


@pytest.fixture
def pair(tmp_path: Path, write_stained_plate: Callable[..., Index]) -> tuple[Path, Path]:
    """The folder of a converted plate, and that of the same plate by another program, adopted."""
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", size=64)
    other = write_other(index, tmp_path / "theirs" / "P01.zarr", version="0.4", dtype=">u2", first=1)
    wells = [f"{well},{facts['cell_line']}" for well, facts in index.plate_map.items()]
    (tmp_path / "map.csv").write_text("\n".join(["well,cell_line", *wells]))
    computed(adopt, tmp_path / "theirs", "P01", f"plate={other}", f"plate_map={tmp_path}/map.csv")
    return tmp_path / "ours", tmp_path / "theirs"


def test_verbs_find_on_an_adopted_plate_what_they_find_on_a_converted_one(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    before = snapshot(pair[1] / "P01.zarr")
    ours, theirs = (use(folder / "P01.zarr", tmp_path / "model") for folder in pair)
    assert snapshot(pair[1] / "P01.zarr") == before
    assert "cell_line" in ours.wells
    assert_same_results(theirs, ours)


@pytest.mark.parametrize(("version", "wells"), [("0.4", True), ("0.5", False)])
def test_images_of_bioformats2raw_give_the_figures_of_a_converted_plate(
    version: str, wells: bool, tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    """Their wells are stated by OME-XML, or by a table."""
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", size=64, field="0")
    other = write_series(index, tmp_path / "theirs" / "P01.zarr", version, wells)
    table = [f"{n},{f.key.well},{f.key.name}" for n, f in enumerate(reversed(index.plate.fields))]
    (tmp_path / "wells.csv").write_text("\n".join(["image,well,field", *table]))
    cells = [f"{well},{facts['cell_line']}" for well, facts in index.plate_map.items()]
    (tmp_path / "map.csv").write_text("\n".join(["well,cell_line", *cells]))
    before = snapshot(other)
    words = [f"plate={other}", f"plate_map={tmp_path}/map.csv"]
    computed(adopt, tmp_path / "theirs", "P01", *words, *([] if wells else [f"wells={tmp_path}/wells.csv"]))
    ours, theirs = (use(path, tmp_path / "model") for path in (index.path, other))
    assert_same_results(theirs, ours)
    assert snapshot(other) == before
    assert validate(other, deep=True) == []


def test_set_corrects_what_is_known_of_an_adopted_plate_and_leaves_the_plate(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    before, words = snapshot(pair[1] / "P01.zarr"), ["pixel_um=0.325", "channels.Hoechst=DAPI"]
    changed = [metadata_edit(folder / "P01.zarr", words).apply() for folder in pair]
    assert changed[1].plate.pixel_um == 0.325
    assert changed[0].plate.channels == changed[1].plate.channels
    assert snapshot(pair[1] / "P01.zarr") == before
    assert validate(pair[1] / "P01.zarr", deep=True) == []
    computed(adopt, tmp_path / "theirs", "again", f"plate={pair[1]}/P01.zarr")
    again = open_plate(pair[1] / "P01.zarr")
    assert (again.fingerprint, again.plate.pixel_um) == (changed[1].fingerprint, 0.325)
    assert again.plate_map == changed[0].plate_map


def test_a_plate_that_was_not_adopted_is_described_and_checked(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(pair[1] / "P01.zarr", tmp_path / "Q.zarr")
    text = "\n".join(inspect(other))
    parts = (
        "OME-Zarr 0.4 of another program",
        "6 of 96",
        "64 × 64 uint16, channels 2",
        "Brightfield, Hoechst",
    )
    for part in parts:
        assert part in text
    assert "a crop of 256² pixels decodes 1 bytes for each that it uses" in text
    assert f"adopt {other}" in text
    assert validate(other, deep=True) == []
    chunk = next(path for path in (other / "B" / "02" / "1" / "0").rglob("0") if path.is_file())
    chunk.write_bytes(b"damaged")
    assert any("B02/1: level 0 cannot be decoded" in problem for problem in validate(other))
    assert not (tmp_path / "Q.hpc_isl").exists()


def test_an_adopted_plate_is_described_checked_and_its_changes_are_named(pair: tuple[Path, Path]) -> None:
    other = pair[1] / "P01.zarr"
    text = "\n".join(inspect(other))
    assert f"pixels in   {other}, where they lie; labels are written to {pair[1] / 'P01.hpc_isl'}" in text
    assert "changed" not in text
    assert validate(other, deep=True) == []
    chunk = next(path for path in (other / "B" / "02" / "1" / "0").rglob("0") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert any(line.startswith("changed") and "B02/1" in line for line in inspect(other))
    assert any(
        "B02/1: " in problem and "files, or their times, changed" in problem for problem in validate(other)
    )


def test_a_notebook_reads_an_adopted_plate_as_a_converted_one(pair: tuple[Path, Path]) -> None:
    for ours, theirs in zip(*(hpc_isl.open_plate(folder / "P01.zarr") for folder in pair), strict=True):
        np.testing.assert_array_equal(ours.read("Hoechst"), theirs.read("Hoechst"))
        np.testing.assert_array_equal(ours.to_dask().compute(), theirs.to_dask().compute())
        np.testing.assert_allclose(ours.to_xarray()["x"], theirs.to_xarray()["x"])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_that_the_plate_holds_are_read_and_never_replaced(
    version: str, tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", size=64)
    other = write_other(index, tmp_path / "P01.zarr", version=version)
    first = index.plate.fields[0].key.well
    labels = other / first[0] / first[1:] / "0" / "labels"
    drawn = np.zeros((1, 64, 64), np.int64)
    drawn[0, 5:20, 5:20] = 4
    zarr.create_array(labels / "theirs" / "0", data=drawn, zarr_format=2 if version == "0.4" else 3)
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    scales = {"axes": axes, "datasets": [{"path": "0"}]}
    group(labels / "theirs", version, {"multiscales": [scales]})
    group(labels, version, {"labels": ["theirs"]})
    computed(adopt, tmp_path, "P01", f"plate={other}")
    before = snapshot(other)
    image = open_plate(other).image(index.plate.fields[0].key).parent / "0"
    assert label_names(image) == ["theirs"]
    np.testing.assert_array_equal(read_labels(image, "theirs"), drawn[0])
    with pytest.raises(UserError, match="has labels 'theirs' already"):
        write_labels(image, "theirs", drawn[0], origin="human", boxes=[])
    with pytest.raises(UserError, match="a person may have edited them"):
        write_labels(image, "theirs", drawn[0] * 2, origin="human", boxes=[], overwrite=True)
    write_labels(image, "ours", drawn[0], origin="human", boxes=[])
    assert label_names(image) == ["ours", "theirs"]
    assert snapshot(other) == before


# ---------------------------------------------------------------- labels inside


def without_labels(files: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {name: facts for name, facts in files.items() if "/labels/" not in name}


def test_labels_go_into_the_plate_on_request_and_nothing_else_does(
    tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    """Every verb finds what it finds on a converted plate; other programs see the labels."""
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", size=64)
    other = write_other(index, tmp_path / "theirs" / "P01.zarr", version="0.5", first=1)
    before = snapshot(other)
    wells = [f"{well},{facts['cell_line']}" for well, facts in index.plate_map.items()]
    (tmp_path / "map.csv").write_text("\n".join(["well,cell_line", *wells]))
    words = [f"plate={other}", f"plate_map={tmp_path}/map.csv"]
    computed(adopt, tmp_path / "theirs", "P01", *words, "labels=inside")
    assert snapshot(other) == before
    ours, theirs = (use(path, tmp_path / "model") for path in (index.path, other))
    assert_same_results(theirs, ours)
    assert without_labels(snapshot(other)) == before
    assert not list((tmp_path / "theirs" / "P01.hpc_isl").glob("*/*/*/labels"))
    first = index.plate.fields[0].key.well
    inside = other / first[0] / first[1:] / "1" / "labels"
    listed = json.loads((inside / "zarr.json").read_text())["attributes"]["ome"]
    assert listed.keys() == {"version", "labels"}
    assert listed["version"] == "0.5"
    assert {"drafted", "drawn", "found"} <= set(listed["labels"])
    np.testing.assert_array_equal(
        zarr.open_array(inside / "drawn" / "0", mode="r")[0], ours.labels[f"{first}/1 drawn"]
    )
    assert validate(other, deep=True) == []  # as yaozarrs judges it, too
    ImageLabel.from_zarr(zarr.open_group(inside / "found", mode="r"))
    read = open_ome_zarr_plate(str(other)).get_images(max_workers=1)[f"{first[0]}/{first[1:]}/1"]
    assert set(read.list_labels()) == set(listed["labels"])
    found = read.get_label("found").get_as_numpy()
    np.testing.assert_array_equal(found[..., 0, :, :], ours.labels[f"{first}/1 found"])
    assert "labels are written into its images" in "\n".join(inspect(other))
    # Adopted again without saying so, they stay inside; else they stay readable.
    computed(adopt, tmp_path / "theirs", "again", f"plate={other}")
    image = open_plate(other).image(index.plate.fields[0].key)
    write_labels(image, "more", ours.labels[f"{first}/1 drawn"], origin="human", boxes=[])
    assert (inside / "more" / "zarr.json").is_file()
    computed(adopt, tmp_path / "theirs", "beside", f"plate={other}", "labels=beside")
    write_labels(image, "here", ours.labels[f"{first}/1 drawn"], origin="human", boxes=[])
    assert not (inside / "here").exists()
    assert {"drawn", "here", "more"} <= set(label_names(image))


def test_labels_inside_get_the_levels_of_the_image_and_join_the_list_of_others(
    tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", size=300)
    other = write_other(index, tmp_path / "P01.zarr", version="0.5", levels=1)
    labels = other / "B" / "02" / "0" / "labels"
    group(labels, "0.5", {"labels": ["deeper/theirs", "lost"], "note": "mine"})
    content = json.loads((labels / "zarr.json").read_text())
    content["attributes"]["theirs"] = {"a": 1}
    (labels / "zarr.json").write_text(json.dumps(content))
    zarr.create_array(labels / "deeper" / "theirs" / "0", data=np.ones((1, 300, 300), np.int32))
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    scales = {"name": "theirs", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group(labels / "deeper", "0.5", {})
    group(labels / "deeper" / "theirs", "0.5", {"multiscales": [scales], "image-label": {}})
    computed(adopt, tmp_path, "P01", f"plate={other}", "labels=inside")
    image = open_plate(other).image(index.plate.fields[0].key).parent / "0"
    drawn = np.zeros((300, 300), np.uint16)
    drawn[5:20, 5:20] = 4
    write_labels(image, "mine µ", drawn, origin="human", boxes=[])
    found = json.loads((labels / "zarr.json").read_text())["attributes"]
    own = label_folder(image, "mine µ")
    assert found["theirs"] == {"a": 1}
    assert found["ome"]["labels"] == ["deeper/theirs", "lost", own.name]
    assert found["ome"]["note"] == "mine"
    assert own == labels / own.name
    assert sorted(path.name for path in own.iterdir()) == ["0", "zarr.json"]  # as many levels as the image
    assert label_names(image) == ["deeper/theirs", "mine µ"]
    np.testing.assert_array_equal(read_labels(image, "mine µ"), drawn)
    with pytest.raises(UserError, match="a person may have edited them"):
        write_labels(image, "deeper/theirs", drawn, origin="human", boxes=[], overwrite=True)
    assert validate(other) == [problem for problem in validate(other) if "lost" in problem]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": "0.4"}, r"labels: inside: .* is OME-Zarr 0\.4, and labels are written as 0\.5"),
        ({"version": "0.5", "read_only": True}, "labels: inside: .* the disk of .* is read-only"),
        ({"version": "0.5", "uneven": True}, "levels of B02/0 do not halve the one before"),
    ],
)
def test_labels_inside_are_refused_where_they_cannot_be(
    options: dict[str, Any], said: str, tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", wells=("B02",), size=300)
    other = write_other(index, tmp_path / "P01.zarr", version=options["version"])
    if options.get("uneven"):
        image = other / "B" / "02" / "0" / "1"
        pixels = zarr.open_array(image, mode="r")[..., ::2, ::2]
        shutil.rmtree(image)
        zarr.create_array(image, data=pixels)
    with (
        read_only(other) if options.get("read_only") else nullcontext(),
        pytest.raises(UserError, match=said),
    ):
        adopt.plan(load("adopt", None, [f"plate={other}", "labels=inside"]))
    assert not (tmp_path / "P01.hpc_isl").exists()
