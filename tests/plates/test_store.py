"""Plates on disk: what is written is what is read, by us and by others, whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from mounts import read_only, small_disk
from skimage.transform import downscale_local_mean

from hpc_isl.errors import AbortRun, UserError
from hpc_isl.plates import atomic_directory, metadata
from hpc_isl.plates.plate import Field, FieldKey, Plate
from hpc_isl.plates.pyramid import _coarser, create_level, shards, write_shards
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import (
    annotation,
    image_path,
    label_names,
    open_level,
    open_plate,
    read_box,
    read_labels,
    write_field,
    write_labels,
)
from hpc_isl.recipes.plates import CodecRecipe

B02 = FieldKey("B02", "1")
EVERY_PLANE = slice(None)
TWO = [FieldKey("B02", "1"), FieldKey("B02", "1", 1)]
MakePlate = Callable[..., tuple[Any, dict[FieldKey, np.ndarray]]]
Judge = Callable[[Path], None]


def ome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "zarr.json").read_text())["attributes"]["ome"]


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.int64)
    labels[..., 5:30, 8:20] = 1
    labels[..., 40:60, 33:80] = 70_000
    return labels


# ---------------------------------------------------------------- judged by others


@pytest.mark.parametrize(
    ("shapes", "facts"),
    [
        pytest.param([(1, 2, 3, 70, 90)] * 2, {}, id="planes"),
        pytest.param([(1, 2, 1, 70, 90)], {"plane_um": None, "z_um": ()}, id="one plane"),
        pytest.param([(3, 2, 2, 70, 90)], {}, id="times"),
        pytest.param([(1, 2, 3, 70, 90), (1, 2, 3, 40, 64)], {}, id="fields differ"),
        pytest.param([(1, 2, 2, 70, 90)], {"pixel_um": None, "plane_um": None}, id="size unknown"),
        pytest.param([(1, 2, 2, 70, 90)], {"dtype": "uint8"}, id="uint8"),
        pytest.param([(1, 2, 2, 70, 90)], {"dtype": "float32"}, id="float32"),
        pytest.param(
            [(1, 2, 2, 70, 90)] * 2, {"keys": TWO, "acquisitions": {0: "live", 1: "fixed"}}, id="passes"
        ),
    ],
)
def test_validators_find_it_valid_and_readers_read_the_same_pixels(
    make_plate: MakePlate, judge: Judge, shapes: list[Any], facts: dict[str, Any]
) -> None:
    index, pixels = make_plate(*shapes, **facts)
    for key, array in pixels.items():
        image = index.image(key)
        write_labels(image, "cells", drawn(label_shape(array)), origin="human", boxes=[(0, 0, 30, 60)])
        write_labels(image, 'it\'s "new" / ../x', drawn(label_shape(array)), origin="drafted", boxes=[])
        np.testing.assert_array_equal(
            open_level(image, 0).read().result(), np.squeeze(array, 0) if len(array) == 1 else array
        )
    judge(index.path)


def label_shape(array: np.ndarray) -> tuple[int, ...]:
    return array.shape[-2:] if len(array) == 1 else (len(array), *array.shape[-2:])


def test_all_physical_rows_and_columns_are_listed_and_empty_wells_have_no_group(
    make_plate: MakePlate,
) -> None:
    index, _ = make_plate()
    plate = ome(index.path)["plate"]
    assert [row["name"] for row in plate["rows"]] == list("ABCDEFGH")
    assert [column["name"] for column in plate["columns"]] == [f"{c:02d}" for c in range(1, 13)]
    assert plate["wells"] == [{"path": "B/02", "rowIndex": 1, "columnIndex": 1}]
    assert plate["field_count"] == 1
    assert plate["name"] == "P01"
    assert sorted(path.name for path in index.path.iterdir()) == ["B", "index", "zarr.json"]


def test_each_level_states_the_centre_of_its_first_pixel(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    (multiscale,) = ome(index.image(B02))["multiscales"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == [None, *["micrometer"] * 3]
    for level, dataset in enumerate(multiscale["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        step = 0.5 * 2**level
        assert scale["scale"] == [1, 4, step, step]
        # the mean position of the level-0 pixels that make the first pixel of this level
        inside = 0.5 * np.arange(2**level).mean()
        assert translation["translation"] == [0, 2, -120.5 + inside, 33 + inside]


@pytest.mark.parametrize(
    ("z_um", "step", "unit"),
    [((0.0, 10.0, 20.0), 10, "micrometer"), ((0.0, 4.1, 8.0), 4, "micrometer"), ((0.0, 1.0, 9.0), 1, None)],
)
def test_a_stack_of_other_steps_than_the_plate_states_its_own(
    make_plate: MakePlate, z_um: tuple[float, ...], step: float, unit: str | None
) -> None:
    """As where a live pass of 4 µm and a stained one of 10 µm are one plate."""
    index, _ = make_plate(z_um=z_um)
    (multiscale,) = ome(index.image(B02))["multiscales"]
    assert multiscale["axes"][1].get("unit") == unit
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][1] == step


def test_an_unknown_pixel_size_gives_no_unit_and_no_position(make_plate: MakePlate) -> None:
    index, _ = make_plate(pixel_um=None, plane_um=None)
    (multiscale,) = ome(index.image(B02))["multiscales"]
    assert not any("unit" in axis for axis in multiscale["axes"])
    transformations = multiscale["datasets"][1]["coordinateTransformations"]
    assert [list(each.values())[1] for each in transformations] == [[1, 1, 2, 2], [0, 0, 0.5, 0.5]]


def test_channels_have_names_colours_and_a_window_of_their_counts(make_plate: MakePlate) -> None:
    index, pixels = make_plate()
    channels = ome(index.image(B02))["omero"]["channels"]
    assert [(c["label"], c["color"]) for c in channels] == [
        ("Brightfield", "FFFFFF"),
        ('HOECHST "33342"', "0000FF"),
    ]
    window = channels[1]["window"]
    assert (window["min"], window["max"]) == (0, 65535)
    assert 0 < window["start"] < np.median(pixels[B02][0, 1]) < window["end"] <= pixels[B02][0, 1].max()


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("name", ["lz4", "zstd", "none"])
def test_pixels_are_exact_with_every_compressor(make_plate: MakePlate, name: str) -> None:
    index, pixels = make_plate(codec=CodecRecipe(name=name, chunk=32))
    box = read_box(index.image(B02), 0, 0, 1, [2, 0], slice(11, 70), slice(31, 65))
    np.testing.assert_array_equal(box, pixels[B02][0, 1, [2, 0], 11:70, 31:65])
    box = read_box(index.image(B02), 0, 0, 0, slice(1, 3), slice(None), slice(None))
    np.testing.assert_array_equal(box, pixels[B02][0, 0, 1:3])


def test_a_box_is_read_at_its_time(make_plate: MakePlate) -> None:
    index, pixels = make_plate((3, 2, 2, 70, 90))
    box = read_box(index.image(B02), 0, 2, 1, [1], slice(3, 9), slice(4, 80))
    np.testing.assert_array_equal(box, pixels[B02][2, 1, [1], 3:9, 4:80])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(3, 2, 130, 64), (1, 2, 2, 4, 6), (1, 1, 67, 8), (1, 1, 2, 2)])
def test_a_level_is_the_mean_that_tensorstore_makes(dtype: type, shape: tuple[int, ...]) -> None:
    greatest = np.iinfo(dtype).max if dtype is not np.float32 else 1000
    for low in (0, greatest - 6):  # all remainders of four, and sums that a pixel cannot hold
        pixels = np.random.default_rng(0).integers(low, greatest, shape, endpoint=True).astype(dtype)
        halved = [1] * (len(shape) - 2) + [2, 2]
        expected = ts.downsample(ts.array(pixels), halved, "mean").read().result()
        coarse = _coarser(pixels, "mean")
        assert coarse.dtype == pixels.dtype
        np.testing.assert_array_equal(coarse, expected)


def test_levels_are_means_of_two_by_two_rounded_half_to_even(make_plate: MakePlate) -> None:
    index, _ = make_plate((1, 2, 2, 70, 90))
    for level in (1, 2):
        finer = open_level(index.image(B02), level - 1).read().result()
        coarse = open_level(index.image(B02), level).read().result()
        even = finer[..., : finer.shape[-2] // 2 * 2, : finer.shape[-1] // 2 * 2]
        expected = np.rint(downscale_local_mean(even.astype(float), (1, 1, 2, 2)))
        assert coarse.shape[-2:] == tuple(-(-edge // 2) for edge in finer.shape[-2:])
        np.testing.assert_array_equal(coarse[..., : expected.shape[-2], : expected.shape[-1]], expected)


@pytest.mark.parametrize(("edge", "levels"), [(64, 1), (256, 1), (257, 2), (1080, 4), (2160, 5)])
def test_the_pyramid_ends_where_the_longer_edge_is_at_most_256(edge: int, levels: int) -> None:
    from hpc_isl.plates.pyramid import count_levels

    assert count_levels((1, 1, 1, 10, edge), None) == levels
    assert -(-edge // 2 ** (levels - 1)) <= 256


def test_a_field_is_one_shard_per_level_and_time(make_plate: MakePlate) -> None:
    index, _ = make_plate((3, 2, 2, 70, 90), levels=2)
    for level in ("0", "1"):
        files = [p for p in (index.image(B02) / level).rglob("*") if p.is_file() and p.name != "zarr.json"]
        assert len(files) == 3


@pytest.mark.parametrize(
    ("shape", "shard"),
    [
        ((6, 4, 2160, 2160), (6, 4, 2304, 2304)),
        ((5, 6, 4, 1080, 1000), (1, 6, 4, 1280, 1024)),
        ((2, 1, 9000, 5000), (2, 1, 4096, 4096)),
        ((1, 1, 10, 10), (1, 1, 256, 256)),
    ],
)
def test_a_shard_is_a_field_up_to_4096_pixels(shape: tuple[int, ...], shard: tuple[int, ...]) -> None:
    assert shards(shape, 256) == (shard, (1,) * (len(shape) - 2) + (256, 256))


@pytest.mark.parametrize("box", [slice(0, 100), slice(64, 192), slice(100, 200)])
def test_a_part_of_a_shard_is_not_written(tmp_path: Path, box: slice) -> None:
    """Two processes that write a part of one shard each would lose one of them without a word."""
    axes = ("z", "y", "x")
    store = create_level(tmp_path, 0, (1, 200, 200), np.dtype(np.uint32), axes, CodecRecipe(chunk=64))
    inside = (slice(0, 1), slice(0, 200), box)
    with pytest.raises(ValueError, match=f"{box.start}:{box.stop} of 200 are no whole shards of 256"):
        write_shards(store, inside, np.ones((1, 200, box.stop - box.start), np.uint32))
    write_shards(store, (slice(0, 1), slice(0, 200), slice(0, 200)), np.ones((1, 200, 200), np.uint32))
    assert (store.read().result() == 1).all()


def test_an_image_of_several_shards_is_exact(make_plate: MakePlate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_isl.plates.pyramid.SHARD_EDGE", 64)
    index, pixels = make_plate((1, 2, 2, 150, 90), levels=2)
    shards_there = [p for p in (index.image(B02) / "0" / "c").rglob("*") if p.is_file()]
    assert len(shards_there) == 6
    np.testing.assert_array_equal(open_level(index.image(B02), 0).read().result(), pixels[B02][0])


def test_dark_pixels_are_stored_and_missing_ones_fail(tmp_path: Path, make_plate: MakePlate) -> None:
    index, _ = make_plate(codec=CodecRecipe(chunk=32))
    plate = replace(index.plate, fields=())
    field = replace(index.plate.fields[0], key=FieldKey("B03", "1"))
    dark = np.zeros(field.shape, "uint16")
    write_field(index.path, plate, field, dark, measure(dark), CodecRecipe(chunk=32))
    image = image_path(index.path, plate, field.key)
    assert not read_box(image, 0, 0, 0, EVERY_PLANE, slice(None), slice(None)).any()
    (shard,) = [p for p in (image / "0" / "c").rglob("*") if p.is_file()]
    shard.unlink()
    with pytest.raises(UserError, match="B/03/1: level 0 cannot be read"):
        read_box(image, 0, 0, 0, EVERY_PLANE, slice(None), slice(None))


def test_a_flipped_bit_in_a_shards_index_is_found(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    (shard,) = [p for p in (index.image(B02) / "0" / "c").rglob("*") if p.is_file()]
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="level 0 cannot be read"):
        read_box(index.image(B02), 0, 0, 0, [0], slice(None), slice(None))


def test_a_missing_level_is_named(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    with pytest.raises(UserError, match="level 7"):
        open_level(index.image(B02), 7)


# ---------------------------------------------------------------- whole or not at all


def test_pixels_that_contradict_the_field_are_refused(tmp_path: Path, make_plate: MakePlate) -> None:
    index, pixels = make_plate()
    wrong = pixels[B02].astype("uint8")
    with pytest.raises(UserError, match=r"B02/1: uint16 pixels .* not uint8"):
        write_field(index.path, index.plate, index.plate.fields[0], wrong, measure(wrong), CodecRecipe())


def test_an_existing_image_is_kept_without_overwrite(make_plate: MakePlate) -> None:
    index, pixels = make_plate()
    other = pixels[B02] + 1
    arguments = (
        index.path,
        index.plate,
        index.plate.fields[0],
        other,
        measure(other),
        CodecRecipe(chunk=32),
        3,
    )
    with pytest.raises(UserError, match="exists already"):
        write_field(*arguments)
    np.testing.assert_array_equal(
        read_box(index.image(B02), 0, 0, 0, [0], EVERY_PLANE, EVERY_PLANE)[0], pixels[B02][0, 0, 0]
    )
    write_field(*arguments, overwrite=True)
    np.testing.assert_array_equal(
        read_box(index.image(B02), 0, 0, 0, [0], EVERY_PLANE, EVERY_PLANE)[0], other[0, 0, 0]
    )
    assert not atomic_directory.leftovers(index.path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b"])
def test_a_field_whose_name_is_no_folder_name_is_refused(make_plate: MakePlate, name: str) -> None:
    index, pixels = make_plate()
    field = replace(index.plate.fields[0], key=FieldKey("B02", name))
    with pytest.raises(UserError, match="letters and digits"):
        write_field(index.path, index.plate, field, pixels[B02], measure(pixels[B02]), CodecRecipe())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "B" / "02" / "1"
    with pytest.raises(ZeroDivisionError), atomic_directory.atomic_directory(target, 10) as folder:
        (folder / "0").write_text(str(1 / 0))
    assert list(target.parent.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_replaced_folder_is_restored(tmp_path: Path) -> None:
    well = tmp_path / "B" / "02"
    (well / ".1.partial-77-abcd" / "0").mkdir(parents=True)
    (well / ".2.replaced-77").mkdir()
    (well / ".2.replaced-77" / "kept").touch()
    (well / ".zarr.json.x1.partial").touch()
    (tmp_path / ".zarr.json.x2.partial").touch()
    assert atomic_directory.remove_partial(tmp_path) == 4
    assert sorted(p.name for p in well.iterdir()) == ["2"]
    assert (well / "2" / "kept").exists()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk: root on Linux")
def test_a_full_disk_is_named_with_the_bytes_needed_and_nothing_half_written_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65535, (1, 1, 4, 600, 600)).astype("uint16")  # 2.9 MB that do not compress
    field = Field(B02, pixels.shape, "uint16")
    plate = Plate("P", tuple("ABCDEFGH"), ("01", "02"), (), (field,))
    path = tmp_path / "disk" / "P.zarr"
    with small_disk(tmp_path / "disk", "2m"):
        with pytest.raises(UserError, match=rf"{path}/B/02/1: the disk is full: 3,840,000 bytes are needed"):
            write_field(path, plate, field, pixels, measure(pixels), CodecRecipe())
        assert list((path / "B" / "02").iterdir()) == []


def test_a_disk_that_may_not_be_written_is_named(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    image, box = index.image(B02), (0, 0, 70, 90)
    with (
        read_only(index.path),
        pytest.raises(AbortRun, match=rf"{image}/labels/.* could not be written: .*Read-only"),
    ):
        write_labels(image, "cells", drawn((70, 90)), origin="human", boxes=[box])


# ---------------------------------------------------------------- labels


def test_labels_come_back_with_their_name_origin_and_boxes(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    image, labels = index.image(B02), drawn((70, 90))
    write_labels(image, 'cells "1"', labels, origin="human", boxes=[(0, 0, 35, 90), (40, 1, 70, 9)])
    assert label_names(image) == ['cells "1"']
    assert annotation(image, 'cells "1"') == ("human", [(0, 0, 35, 90), (40, 1, 70, 9)])
    found = read_labels(image, 'cells "1"')
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, labels)


def test_coarse_labels_are_labels_never_means(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    write_labels(index.image(B02), "cells", drawn((70, 90)), origin="human", boxes=[])
    for level in range(index.levels(B02)):
        found = read_labels(index.image(B02), "cells", level)
        assert found.shape == tuple(-(-edge // 2**level) for edge in (70, 90))
        assert set(np.unique(found)) == {0, 1, 70_000}


def test_labels_are_placed_on_the_image_through_its_whole_depth(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    write_labels(index.image(B02), "cells", drawn((70, 90)), origin="human", boxes=[])
    (image,) = ome(index.image(B02))["multiscales"]
    (labels,) = ome(index.image(B02) / "labels" / "cells")["multiscales"]
    for ours, theirs in zip(image["datasets"], labels["datasets"], strict=True):
        (scale, place), (label_scale, label_place) = (
            ours["coordinateTransformations"],
            theirs["coordinateTransformations"],
        )
        assert label_scale["scale"][1:] == scale["scale"][2:]
        assert label_place["translation"][1:] == place["translation"][2:]
        thickness, middle = label_scale["scale"][0], label_place["translation"][0]
        assert (middle - thickness / 2, middle + thickness / 2) == (0, 12)  # planes at 2, 6, 10 µm


def test_labels_are_replaced_only_with_overwrite_and_then_read_as_written(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    image, labels = index.image(B02), drawn((70, 90))
    write_labels(image, "cells", labels, origin="drafted", boxes=[])
    assert read_labels(image, "cells").max() == 70_000
    with pytest.raises(UserError, match="has labels 'cells' already"):
        write_labels(image, "cells", labels * 0, origin="human", boxes=[])
    write_labels(image, "cells", labels * 0, origin="human", boxes=[(0, 0, 70, 90)], overwrite=True)
    assert read_labels(image, "cells").max() == 0
    assert annotation(image, "cells")[0] == "human"
    assert [p.name for p in (image / "labels").glob(".*")] == []


@pytest.mark.parametrize("name", ["cells", "it's", "a/b", "../../x", "Ω", ".hidden", "x" * 300, "CELLS "])
def test_any_name_of_labels_stays_inside_and_is_shown_as_given(make_plate: MakePlate, name: str) -> None:
    index, _ = make_plate()
    image = index.image(B02)
    write_labels(image, name, drawn((70, 90)), origin="human", boxes=[])
    assert label_names(image) == [name]
    assert read_labels(image, name).any()
    (folder,) = [path for path in (image / "labels").iterdir() if path.is_dir()]
    assert folder.name.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    ("labels", "boxes", "message"),
    [
        (np.zeros((70, 91), int), [], r"shape \(70, 91\) do not fit the image's \(70, 90\)"),
        (np.zeros((70, 90), float), [], "float64; whole numbers"),
        (np.full((70, 90), -1), [], "from -1 to -1"),
        (np.zeros((70, 90), int), [(0, 0, 71, 90)], r"box \(0, 0, 71, 90\)"),
        (np.zeros((70, 90), int), [(5, 5, 5, 9)], r"box \(5, 5, 5, 9\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    make_plate: MakePlate, labels: np.ndarray, boxes: list[Any], message: str
) -> None:
    index, _ = make_plate()
    with pytest.raises(UserError, match=message):
        write_labels(index.image(B02), "cells", labels, origin="human", boxes=boxes)
    assert label_names(index.image(B02)) == []


def test_unknown_labels_are_answered_with_the_existing_ones(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    write_labels(index.image(B02), "nuclei", drawn((70, 90)), origin="human", boxes=[])
    with pytest.raises(UserError, match="did you mean 'nuclei'"):
        read_labels(index.image(B02), "nucleus")


def test_labels_that_another_adds_while_the_list_is_written_are_listed_too(
    make_plate: MakePlate, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = make_plate()
    image, update_group, others = index.image(B02), metadata.update_group, iter(["nuclei", "spots"])

    def another_comes_first(folder: Path, *arguments: Any, **words: Any) -> None:
        if folder.name == "labels" and (other := next(others, None)):
            write_labels(image, other, drawn((70, 90)), origin="human", boxes=[])
        update_group(folder, *arguments, **words)

    monkeypatch.setattr(metadata, "update_group", another_comes_first)
    write_labels(image, "cells", drawn((70, 90)), origin="human", boxes=[])
    assert ome(image / "labels")["labels"] == ["cells", "nuclei", "spots"] == label_names(image)


def test_the_labels_group_heals_after_a_kill_between_labels_and_list(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    image = index.image(B02)
    write_labels(image, "nuclei", drawn((70, 90)), origin="human", boxes=[])
    (image / "labels" / "zarr.json").unlink()
    assert label_names(image) == ["nuclei"]
    write_labels(image, "cells", drawn((70, 90)), origin="human", boxes=[])
    assert ome(image / "labels")["labels"] == ["cells", "nuclei"]


# ---------------------------------------------------------------- finishing


def test_a_plate_without_its_own_zarr_json_is_not_finished(make_plate: MakePlate) -> None:
    index, _ = make_plate()
    (index.path / "zarr.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        open_plate(index.path)


def test_a_folder_that_is_no_plate_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(UserError, match="no plate that convert has written"):
        open_plate(tmp_path)
    with pytest.raises(UserError, match="no such plate"):
        open_plate(tmp_path / "P02.zarr")
