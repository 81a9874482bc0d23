"""Labels that other programs wrote or corrected inside a plate of ours are read as they mean them."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ngio
import numpy as np
import pytest
import zarr

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import (
    annotation,
    edited,
    fully_annotated,
    label_bands,
    label_names,
    label_provenance,
    labels_checksum,
    open_plate,
    read_box,
    read_label_box,
    read_labels,
    rebuild_index,
    stamp,
    write_labels,
)

MakePlate = Callable[..., tuple[Any, dict[FieldKey, np.ndarray]]]
B02 = FieldKey("B02", "1")
WHOLE = [(0, 0, 70, 90)]
EVERYWHERE = slice(None)


def squares(count: int = 12) -> np.ndarray:
    """(70, 90), objects 1 to `count`."""
    labels = np.zeros((70, 90), np.uint32)
    for number in range(count):
        y, x = 5 + 20 * (number // 4), 3 + 22 * (number % 4)
        labels[y : y + 9, x : x + 11] = number + 1
    return labels


def by_ngio(image: Path, name: str, planes: np.ndarray) -> None:
    """(z, y, x): `derive_label` takes over the depth of the image."""
    label = ngio.open_ome_zarr_container(str(image)).derive_label(name)
    label.set_array(planes.reshape(label.shape))
    label.consolidate(mode="auto")


def by_ome_zarr_py(image: Path, name: str, labels: np.ndarray, axes: str = "yx") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own import warns of a class that it still uses
        from ome_zarr import writer

        writer.write_labels(labels, zarr.open_group(str(image), mode="r+"), name, axes=axes)


def in_place(image: Path, name: str, change: Callable[[np.ndarray], None], level: str = "0") -> None:
    """A person corrects labels of a plate with a zarr-python program."""
    array = zarr.open_array(str(image / "labels" / name / level), mode="r+")
    pixels = np.asarray(array[...])
    change(pixels)
    array[...] = pixels


def shards(image: Path, name: str) -> list[Path]:
    return [path for path in (image / "labels" / name / "0" / "c").rglob("*") if path.is_file()]


@pytest.fixture
def image(make_plate: MakePlate) -> Path:
    index, _ = make_plate((1, 2, 3, 70, 90))
    return index.image(B02)


# ---------------------------------------------------------------- made elsewhere


def test_labels_of_ngio_and_ome_zarr_py_are_read_as_any_others(image: Path) -> None:
    """Their groups have nothing of ours, levels of other names and numbers, and chunks that are not there."""
    by_ngio(image, "ngio", np.stack([np.zeros((70, 90)), squares(), np.zeros((70, 90))]))
    by_ome_zarr_py(image, "ome", squares().astype(np.int32))
    for name in ("ngio", "ome"):
        np.testing.assert_array_equal(read_labels(image, name), squares())
        np.testing.assert_array_equal(read_labels(image, name, 1), squares()[::2, ::2])
        np.testing.assert_array_equal(np.concatenate(list(label_bands(image, name, 16))), squares())
        box = read_label_box(image, name, 0, slice(20, 50), slice(3, 77))
        np.testing.assert_array_equal(box, squares()[20:50, 3:77])
        assert annotation(image, name) == ("other program", WHOLE)
        assert fully_annotated(image, name)
        assert label_provenance(image, name) == ("", "")
        assert edited(image, name) is None
    assert labels_checksum(image, "ngio") == labels_checksum(image, "ome")
    assert label_names(image) == ["ngio", "ome"]


def test_ours_beside_them_are_written_and_both_stay_listed(image: Path) -> None:
    by_ngio(image, "ngio", np.stack([squares()] * 3))
    nested = image / "labels" / "deeper" / "0"
    shutil.copytree(image / "labels" / "ngio", nested)
    group = zarr.open_group(str(image / "labels"), mode="r+")
    group.attrs["ome"] = {**group.attrs["ome"], "labels": ["ngio", "deeper/0", "../../../elsewhere", "gone"]}
    zarr.create_group(str(image / "labels" / "no-labels"))
    write_labels(image, "ours", squares(), origin="human", boxes=WHOLE)
    assert label_names(image) == ["deeper/0", "ngio", "ours"]
    assert json.loads((image / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"] == [
        "deeper/0", "ngio", "ours"
    ]  # fmt: skip
    np.testing.assert_array_equal(read_labels(image, "deeper/0"), squares())


def test_objects_in_several_planes_are_projected_where_none_lies_over_another(image: Path) -> None:
    """Every object of every plane is there; where that would be a guess, the planes are named and refused."""
    upper, lower = np.where(squares() > 6, squares(), 0), np.where(squares() < 7, squares(), 0)
    by_ngio(image, "apart", np.stack([upper, lower, lower]))
    np.testing.assert_array_equal(read_labels(image, "apart"), squares())
    assert len(np.unique(read_labels(image, "apart"))) - 1 == 12
    by_ngio(image, "over", np.stack([squares(), squares() * 0, np.roll(squares(), 22, 1)]))
    with pytest.raises(UserError, match=r"labels/over: its 3 planes show different objects at 1,134 pixels"):
        read_labels(image, "over")


@pytest.mark.parametrize(
    ("labels", "axes", "messages"),
    [
        (np.zeros((70, 91), np.uint16), "yx", r"shape \(1, 70, 91\) do not fit the image's \(1, 70, 90\)"),
        (np.zeros((70, 90), np.float32), "yx", "holds float32; labels are whole numbers"),
        (np.full((70, 90), -1, np.int32), "yx", "holds values from -1 to -1"),
        (np.zeros((2, 70, 90), np.uint8), "tyx", r"shape \(2, 70, 90\) do not fit"),
        (np.zeros((2, 70, 90), np.uint8), "cyx", "has 2 channels; labels have none"),
    ],
)
def test_labels_that_cannot_be_ours_are_refused_in_words(
    image: Path, labels: np.ndarray, axes: str, messages: str
) -> None:
    by_ome_zarr_py(image, "theirs", labels.clip(0) if labels.dtype == np.int32 else labels, axes)
    if labels.dtype == np.int32:
        in_place(image, "theirs", lambda pixels: np.copyto(pixels, -1), "s0")
    with pytest.raises(UserError, match=messages):
        read_labels(image, "theirs")


def test_labels_of_every_time_are_read(make_plate: MakePlate) -> None:
    index, _ = make_plate((3, 2, 2, 70, 90))
    image = index.image(B02)
    times = np.stack([squares(number) for number in (2, 5, 12)])
    by_ngio(image, "ngio", np.stack([times, times], 1))
    by_ome_zarr_py(image, "ome", np.moveaxis(times[:, None], 0, 0), "tzyx")
    for name in ("ngio", "ome"):
        np.testing.assert_array_equal(read_labels(image, name), times)
        np.testing.assert_array_equal(read_label_box(image, name, 1, slice(0, 40), EVERYWHERE), times[1, :40])


def test_an_image_that_another_program_added_is_no_field_of_ours(make_plate: MakePlate) -> None:
    """The index is made anew from our images alone, and says nothing of the other."""
    index, _ = make_plate((1, 2, 3, 70, 90))
    ngio.open_ome_zarr_plate(str(index.path)).add_image("B", 2, "corrected")
    container = ngio.open_ome_zarr_container(str(index.image(B02)))
    container.derive_image(str(index.path / "B" / "02" / "corrected"), overwrite=True)
    assert rebuild_index(index.path).plate.fields == index.plate.fields


# ---------------------------------------------------------------- ours, corrected in place


def test_labels_whose_chunk_became_empty_are_read_as_the_person_left_them(image: Path) -> None:
    """zarr-python writes no empty chunk: what is missing is background, and the labels count as edited."""
    write_labels(image, "cells", squares(), origin="segmented", boxes=WHOLE, fingerprint="f")
    assert edited(image, "cells") is False
    in_place(image, "cells", lambda pixels: np.copyto(pixels, 0))
    assert not shards(image, "cells")
    assert not read_labels(image, "cells").any()
    assert edited(image, "cells") is True


def test_a_missing_chunk_whose_pixels_agree_with_the_checksum_is_no_edit(image: Path) -> None:
    write_labels(image, "none", squares(0), origin="human", boxes=WHOLE)
    in_place(image, "none", lambda pixels: None)
    assert not shards(image, "none")
    assert edited(image, "none") is False
    assert not read_labels(image, "none").any()


def test_a_missing_chunk_of_an_image_stays_an_error(image: Path) -> None:
    next(path for path in (image / "0" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(UserError, match="level 0 cannot be read"):
        read_box(image, 0, 0, 0, EVERYWHERE, EVERYWHERE, EVERYWHERE)


def test_an_edit_that_leaves_all_sizes_and_dates_is_seen(image: Path) -> None:
    """A checksum is of pixels: an object of another number may leave a file of equal size."""
    write_labels(image, "cells", squares(1), origin="human", boxes=WHOLE)
    before, pixels = stamp(image, "cells"), labels_checksum(image, "cells")
    [shard] = shards(image, "cells")
    content, times = shard.read_bytes(), (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    write_labels(image, "other", squares(1) * 256, origin="human", boxes=WHOLE)
    edit = shards(image, "other")[0].read_bytes()
    assert edit != content
    assert len(edit) == len(content)
    shard.write_bytes(edit)
    os.utime(shard, ns=times)
    assert edited(image, "cells") is True
    assert stamp(image, "cells") != before
    assert labels_checksum(image, "cells") == labels_checksum(image, "other") != pixels


def test_unchanged_pixels_that_another_program_rewrote_are_no_edit(image: Path) -> None:
    """Other bytes, the same pixels: nobody edited anything, and what depends on the labels stays."""
    write_labels(image, "cells", squares(), origin="human", boxes=WHOLE)
    before = stamp(image, "cells")
    level = image / "labels" / "cells" / "0"
    pixels = np.asarray(zarr.open_array(str(level), mode="r")[...])
    shutil.rmtree(level)
    zarr.save_array(str(level), pixels, zarr_format=3)
    assert edited(image, "cells") is False
    assert stamp(image, "cells") == before


def test_coarser_levels_follow_what_a_person_corrected(image: Path) -> None:
    """People correct full resolution; a model that looks at level 1 learns from the correction too."""
    write_labels(image, "cells", squares(), origin="human", boxes=WHOLE)

    def correct(pixels: np.ndarray) -> None:
        pixels[..., 50:60, 60:80] = 99

    in_place(image, "cells", correct)
    corrected = squares()
    corrected[50:60, 60:80] = 99
    for level in (0, 1, 2):
        step = 2**level
        coarse = corrected[::step, ::step]
        np.testing.assert_array_equal(read_labels(image, "cells", level), coarse)
        box = read_label_box(image, "cells", 0, slice(3, coarse.shape[0]), slice(2, 9), level)
        np.testing.assert_array_equal(box, coarse[3:, 2:9])


# ---------------------------------------------------------------- never replaced


def test_labels_that_a_person_edited_are_not_replaced_by_overwriting(image: Path) -> None:
    """Replacing them would destroy a person's work, whatever the keys say; new labels from just them may."""
    write_labels(image, "cells", squares(), origin="segmented", boxes=WHOLE, fingerprint="f")
    write_labels(image, "cells", squares(9), origin="segmented", boxes=WHOLE, fingerprint="f", overwrite=True)

    def correct(pixels: np.ndarray) -> None:
        pixels[..., 50:60, 60:80] = 99

    in_place(image, "cells", correct)
    mine = read_labels(image, "cells")
    keys: dict[str, Any] = {"origin": "segmented", "boxes": WHOLE, "overwrite": True}
    for made_from in (None, labels_checksum(image, "cells")[::-1]):
        with pytest.raises(UserError, match=r"'cells' were edited since they were written .* not replaced"):
            write_labels(image, "cells", squares(), **keys, made_from=made_from)
    np.testing.assert_array_equal(read_labels(image, "cells"), mine)
    assert sorted(path.name for path in (image / "labels").iterdir()) == ["cells", "zarr.json"]
    write_labels(image, "cells", mine, **keys)
    assert edited(image, "cells") is False, "the same pixels: nothing is lost"
    in_place(image, "cells", lambda pixels: np.copyto(pixels, pixels // 2))
    write_labels(image, "cells", squares(), **keys, made_from=labels_checksum(image, "cells"))


def test_labels_of_which_nobody_knows_are_not_replaced_either(image: Path) -> None:
    """Those of other programs and of earlier versions have no checksum."""
    by_ome_zarr_py(image, "theirs", squares())
    write_labels(image, "old", squares(), origin="segmented", boxes=WHOLE, fingerprint="f")
    path = image / "labels" / "old" / "zarr.json"
    content = json.loads(path.read_text())
    for key in ("checksum", "files"):
        del content["attributes"]["hpc_isl"][key]
    path.write_text(json.dumps(content))
    for name in ("theirs", "old"):
        with pytest.raises(UserError, match=r"have no checksum, .* not replaced"):
            write_labels(image, name, squares(3), origin="human", boxes=WHOLE, overwrite=True)
        np.testing.assert_array_equal(read_labels(image, name), squares())
    write_labels(image, "old", squares(), origin="segmented", boxes=WHOLE, overwrite=True)
    assert edited(image, "old") is False, "what is computed again and is the same gets its checksum"


def test_labels_that_cannot_be_read_are_not_replaced(image: Path) -> None:
    write_labels(image, "cells", squares(), origin="human", boxes=WHOLE)
    [shard] = shards(image, "cells")
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(UserError, match=r"labels/cells: its pixels cannot be read: .* move it away first"):
        write_labels(image, "cells", squares(3), origin="human", boxes=WHOLE, overwrite=True)
    (image / "labels" / "cells" / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"labels/cells: holds no zarr.json; move it away first"):
        write_labels(image, "cells", squares(3), origin="human", boxes=WHOLE, overwrite=True)


def test_labels_are_written_beside_others_whose_metadata_are_damaged(image: Path) -> None:
    labels = np.ones((70, 90), np.uint32)
    write_labels(image, "first", labels, origin="human", boxes=WHOLE)
    damaged = image / "labels" / "first" / "zarr.json"
    damaged.write_text("{")
    write_labels(image, "second of mine", labels, origin="human", boxes=WHOLE)
    assert np.array_equal(read_labels(image, "second of mine"), labels)
    listed = json.loads((image / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert "first" in listed, "what is damaged may be mended, and stays listed"
    assert len(listed) == 2


def test_open_plates_know_labels_by_what_they_hold(image: Path) -> None:
    by_ngio(image, "ngio", np.stack([squares()] * 3))
    assert open_plate(image.parents[2]).plate.fields
    with pytest.raises(UserError, match="has no labels 'ngi'; did you mean 'ngio'"):
        read_labels(image, "ngi")
