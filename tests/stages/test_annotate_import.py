"""Annotations of other programs come to the right fields, and nothing is passed over in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ngio
import numpy as np
import pytest
import roifile
import tifffile
import zarr
from made_up_screen import write_screen
from PIL import Image

from hpc_isl.errors import UserError
from hpc_isl.plates import store
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.recipes.plates import AnnotateRecipe, CodecRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.annotate.stage import annotate, plan
from hpc_isl.stages.inspect import inspect, validate

SHAPE = (96, 128)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screen(tmp_path_factory.mktemp("import") / "S1.zarr").path


@pytest.fixture
def plate(screen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(screen, tmp_path / "S1.zarr"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "masks"
    made.mkdir()
    return made


def cells(count: int = 6) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint16)
    for number in range(count):
        y, x = 5 + 30 * (number // 3), 6 + 40 * (number % 3)
        labels[y : y + 20, x : x + 25] = number + 1
    return labels


def as_rois(path: Path, labels: np.ndarray) -> None:
    rois = []
    for number in np.unique(labels[labels > 0]):
        ys, xs = np.nonzero(labels == number)
        x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        rois.append(roifile.ImagejRoi.frompoints(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)))
    roifile.roiwrite(path, rois, mode="w")


def run(tmp_path: Path, action: str, **keys: Any) -> dict[str, Any]:
    recipe = AnnotateRecipe.model_validate({"labels": "nuclei", "action": action, **keys})
    where = Run(tmp_path / "runs" / "annotate" / "a")
    annotate(plan(recipe).recipe, Attempt(where, cpus=2))
    return where.summary() or {}


def messages(action: str, **keys: Any) -> str:
    return "\n".join(
        plan(AnnotateRecipe.model_validate({"labels": "nuclei", "action": action, **keys})).messages
    )


def on_plate(plate: Path, well: str, field: str, name: str = "nuclei") -> np.ndarray:
    return store.read_labels(store.open_plate(plate).image(FieldKey(well, field)), name)


# ---------------------------------------------------------------- which objects


def two_classes() -> np.ndarray:
    """A mask of two classes, nuclei and debris, in 42 pieces."""
    mask = np.zeros(SHAPE, np.uint8)
    for number in range(42):
        y, x = 3 + 15 * (number // 7), 4 + 17 * (number % 7)
        mask[y : y + 9, x : x + 9] = 1 + number % 2
    return mask


def test_few_values_in_many_pieces_are_refused_until_objects_is_given(
    plate: Path, folder: Path, tmp_path: Path
) -> None:
    """A mask never becomes two objects, nor 42, unless the user says so; the refusal has both counts."""
    tifffile.imwrite(folder / "B02_1.tif", two_classes())
    keys = {"plate": plate, "source": folder}
    for call in (messages, lambda action, **more: run(tmp_path, action, **more)):
        with pytest.raises(
            UserError, match=r"holds 2 values in 42 pieces: .*pieces .*\(42\), .*values .*\(2\)"
        ):
            call("import", **keys)
    assert run(tmp_path, "import", **keys, objects="values")["objects"] == 2
    assert run(tmp_path, "import", **keys, objects="pieces", overwrite=True)["objects"] == 42
    found = on_plate(plate, "B02", "1")
    np.testing.assert_array_equal(found > 0, two_classes() > 0)
    assert found.max() == len(np.unique(found)) - 1 == 42


def test_a_one_bit_mask_needs_objects_too(plate: Path, folder: Path, tmp_path: Path) -> None:
    tifffile.imwrite(folder / "B02_1.tif", cells() > 0, photometric="minisblack")
    with pytest.raises(UserError, match="holds 1 values in 6 pieces"):
        messages("import", plate=plate, source=folder)
    assert run(tmp_path, "import", plate=plate, source=folder, objects="pieces")["objects"] == 6


def test_objects_that_a_brush_left_in_two_pieces_are_objects(
    plate: Path, folder: Path, tmp_path: Path
) -> None:
    drawn = cells()
    drawn[0, 0] = 1
    tifffile.imwrite(folder / "B02_1.tif", drawn)
    assert run(tmp_path, "import", plate=plate, source=folder)["objects"] == 6


# ---------------------------------------------------------------- which files


def test_files_that_cellpose_leaves_beside_its_images_are_told_from_annotations(
    plate: Path, folder: Path, tmp_path: Path
) -> None:
    """Its masks are brought in; the image, the pickle and the ROIs that lie there are named and left."""
    noise = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    tifffile.imwrite(folder / "B02_1.tif", noise)
    Image.fromarray(cells()).save(folder / "B02_1_cp_masks.png")
    np.save(folder / "B02_1_seg.npy", {"masks": cells()}, allow_pickle=True)
    as_rois(folder / "B02_1_rois.zip", cells())
    tifffile.imwrite(folder / "B02_1_flows_cp_masks.tif", noise)
    output = messages("import", plate=plate, source=folder)
    assert "3 files (B02_1.tif, B02_1_rois.zip, B02_1_seg.npy) left out: beside other annotations" in output
    assert "1 file (B02_1_flows_cp_masks.tif) left out: no field is told by the name" in output
    run(tmp_path, "import", plate=plate, source=folder)
    np.testing.assert_array_equal(on_plate(plate, "B02", "1"), cells())
    (folder / "B02_1_cp_masks.png").unlink()
    (folder / "B02_1_rois.zip").unlink()
    with pytest.raises(UserError, match=r"B02/1: .*B02_1_seg.npy holds objects of Python.*Save masks as PNG"):
        messages("import", plate=plate, source=folder)


def test_two_files_that_could_both_be_meant_are_named(plate: Path, folder: Path) -> None:
    Image.fromarray(cells()).save(folder / "B02_1.png")
    as_rois(folder / "B02_1.zip", cells())
    with pytest.raises(UserError, match=r"field B02/1 has 2 files, B02_1.png, B02_1.zip: leave one"):
        messages("import", plate=plate, source=folder)


def test_files_of_wells_that_are_not_on_the_plate_are_named_and_the_others_come_in(
    plate: Path, folder: Path, tmp_path: Path
) -> None:
    """A folder of masks is often about more than one plate, or more wells than were converted."""
    for name in ("B02_1", "B03_2", "C07_1", "H12_9"):
        tifffile.imwrite(folder / f"{name}.tif", cells())
    output = messages("import", plate=plate, source=folder)
    assert "2 files (C07_1.tif, H12_9.tif) left out: of wells that are not on the plate" in output
    assert run(tmp_path, "import", plate=plate, source=folder)["written"] == 2
    for name in ("B02_1", "B03_2"):
        (folder / f"{name}.tif").unlink()
    with pytest.raises(UserError, match=r"nothing for this plate; 2 files .*; it has 2 wells, B02 to B03"):
        messages("import", plate=plate, source=folder)


def test_fields_that_are_named_are_taken_alone(plate: Path, folder: Path, tmp_path: Path) -> None:
    """A field that the well has not might be a shifted number, so it is refused unless fields are named."""
    for name in ("B02_1", "B02_2", "B02_7"):
        tifffile.imwrite(folder / f"{name}.tif", cells())
    with pytest.raises(UserError, match=r"B02_7.tif: field '7' names 0 fields of well B02; .*fields=\[…\]"):
        messages("import", plate=plate, source=folder)
    keys = {"plate": plate, "source": folder, "fields": ["B02/2"]}
    assert "2 files (B02_1.tif, B02_7.tif) left out: of other fields than fields= names" in messages(
        "import", **keys
    )
    assert run(tmp_path, "import", **keys)["written"] == 1
    assert on_plate(plate, "B02", "2").any()


def test_one_file_may_be_named_with_its_field(plate: Path, folder: Path, tmp_path: Path) -> None:
    as_rois(folder / "RoiSet.zip", cells())
    keys = {"plate": plate, "source": folder / "RoiSet.zip"}
    with pytest.raises(UserError, match=r"no file is named after a field, as B03_1.tif, .*'RoiSet.zip'"):
        messages("import", **keys)
    run(tmp_path, "import", **keys, fields=["B03/2"])
    np.testing.assert_array_equal(on_plate(plate, "B03", "2"), cells())
    shutil.move(folder / "RoiSet.zip", folder / "B03_1_RoiSet.zip")
    run(tmp_path, "import", plate=plate, source=folder / "B03_1_RoiSet.zip")
    np.testing.assert_array_equal(on_plate(plate, "B03", "1"), cells())


def coco(path: Path, names: list[str]) -> None:
    flat = [[6, 5, 31, 5, 31, 25, 6, 25]]
    images = [{"id": n, "file_name": name, "height": 96, "width": 128} for n, name in enumerate(names)]
    notes = [{"id": n, "image_id": n, "segmentation": flat} for n in range(len(names))]
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": []}))


def test_a_coco_file_is_about_all_the_images_that_it_names(plate: Path, folder: Path, tmp_path: Path) -> None:
    """Given alone, or in a folder with the images, which are then no label images."""
    coco(folder / "instances.json", ["train/B02_1.jpg", "B02_2.image.tif", "B03_1.tif", "cat.jpg"])
    tifffile.imwrite(folder / "B03_1.tif", cells())
    output = messages("import", plate=plate, source=folder)
    assert "1 file (instances.json: cat.jpg) left out: no field is told by the name" in output
    assert "1 file (B03_1.tif) left out: beside other annotations of the same image" in output
    assert "labels 'nuclei' for 3 of 4 fields" in output
    assert run(tmp_path, "import", plate=plate, source=folder / "instances.json")["written"] == 3
    for well, field in (("B02", "1"), ("B02", "2"), ("B03", "1")):
        np.testing.assert_array_equal(on_plate(plate, well, field), np.where(cells() == 1, 1, 0))
    keys = {"regex": r"(?P<well>B\d\d)/(?P<field>\d)\.jpg", "labels": "others"}
    coco(folder / "instances.json", ["B02/1.jpg", "B02/2.jpg"])
    assert run(tmp_path, "import", plate=plate, source=folder, **keys)["written"] == 2


# ---------------------------------------------------------------- beside exported images


@pytest.fixture
def exported(plate: Path, tmp_path: Path) -> Path:
    for field in ("1", "2"):
        image = store.open_plate(plate).image(FieldKey("B02", field))
        store.write_labels(image, "nuclei", cells(4), origin="drafted", boxes=[(0, 0, *SHAPE)])
    run(tmp_path, "export", plate=plate, out=tmp_path / "todo", fields=["B02", "B03/1"])
    return tmp_path / "todo"


NAPARI = """
import sys, tifffile
from napari.layers.image._image_utils import guess_labels
print(*{guess_labels(tifffile.imread(path)) for path in sys.argv[1:]})
"""


def test_exported_labels_open_as_labels_in_napari(exported: Path) -> None:
    """As its own guess says, which it makes of the type of pixels."""
    paths = sorted(map(str, exported.glob("*.labels.tif")))
    assert {tifffile.imread(path).dtype.name for path in paths} == {"int32"}
    call = [sys.executable, "-c", NAPARI, *paths]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() == "labels"


def test_annotations_of_another_program_beside_an_exported_image_are_imported(
    plate: Path, exported: Path, tmp_path: Path
) -> None:
    """An afternoon in Cellpose or ImageJ is brought in, and the plan says which file each field is from."""
    Image.fromarray(cells(5)).save(exported / "B02_1.image_cp_masks.png")
    np.save(exported / "B02_1.image_seg.npy", {"masks": cells(5)}, allow_pickle=True)
    as_rois(exported / "B03_1_RoiSet.zip", cells(3))
    output = messages("import", plate=plate, source=exported)
    assert "2 label images are corrected, 1 are unchanged" in output
    assert "B02/1 is taken from B02_1.image_cp_masks.png" in output
    assert "B03/1 is taken from B03_1_RoiSet.zip" in output
    assert "1 file (B02_1.image_seg.npy) left out: beside other annotations" in output
    assert run(tmp_path, "import", plate=plate, source=exported)["written"] == 2
    np.testing.assert_array_equal(on_plate(plate, "B02", "1"), cells(5))
    np.testing.assert_array_equal(on_plate(plate, "B03", "1"), cells(3))
    index = store.open_plate(plate)
    origins = [store.annotation(index.image(FieldKey("B02", field)), "nuclei")[0] for field in ("1", "2")]
    assert origins == ["human", "drafted"]


def test_corrections_that_cannot_be_read_are_not_passed_over(plate: Path, exported: Path) -> None:
    """A pickle alone, or ROIs that tell no field, end the import with what to do; rc 0 would lose them."""
    pickled = exported / "B02_1.image_seg.npy"
    np.save(pickled, {"masks": cells(5)}, allow_pickle=True)
    with pytest.raises(UserError, match=r"B02/1: .*B02_1.image_seg.npy holds objects of Python"):
        messages("import", plate=plate, source=exported)
    tifffile.imwrite(exported / "B02_1.labels.tif", cells(5).astype(np.int32))
    output = messages("import", plate=plate, source=exported)
    assert "B02_1.image_seg.npy is left out, because B02_1.labels.tif was changed" in output
    as_rois(exported / "RoiSet.zip", cells(3))
    with pytest.raises(
        UserError,
        match=r"no field of the plate is told by the name of 1 file \(RoiSet.zip\).*fields=\[B03/1\]",
    ):
        messages("import", plate=plate, source=exported)


def test_two_corrections_of_one_field_are_refused(plate: Path, exported: Path) -> None:
    tifffile.imwrite(exported / "B02_1.labels.tif", cells(5).astype(np.int32))
    Image.fromarray(cells(3)).save(exported / "B02_1.image_cp_masks.png")
    with pytest.raises(UserError, match=r"B02_1.labels.tif and B02_1.image_cp_masks.png were both changed"):
        messages("import", plate=plate, source=exported)


def test_annotations_beside_exported_images_of_two_acquisitions_are_imported(tmp_path: Path) -> None:
    """Images of the second pass are exported as B02_1x1, and what Cellpose saves is named after them."""
    keys = [FieldKey("B02", "1"), FieldKey("B02", "1", 1)]
    plate = Plate(
        "P1", *layout({"B02"}), (Channel("DAPI"),),
        tuple(Field(key, (1, 1, 1, *SHAPE), "uint16") for key in keys), acquisitions={0: "live", 1: "fixed"},
    )  # fmt: skip
    path, out = tmp_path / "P1.zarr", tmp_path / "todo"
    for seed, field in enumerate(plate.fields):
        pixels = np.random.default_rng(seed).poisson(100, field.shape).astype(np.uint16)
        store.write_field(path, plate, field, pixels, measure(pixels), CodecRecipe())
    store.finalise(path, plate, {})
    run(tmp_path, "export", plate=path, out=out)
    Image.fromarray(cells(3)).save(out / "B02_1.image_cp_masks.png")
    Image.fromarray(cells(5)).save(out / "B02_1x1.image_cp_masks.png")
    run(tmp_path, "import", plate=path, source=out)
    index = store.open_plate(path)
    for key, labels in zip(keys, (cells(3), cells(5)), strict=True):
        np.testing.assert_array_equal(store.read_labels(index.image(key), "nuclei"), labels)


def test_other_files_in_an_exported_folder_are_named(plate: Path, exported: Path) -> None:
    tifffile.imwrite(exported / "B02_1.image_flows.tif", cells())
    tifffile.imwrite(exported / "Labels.tif", cells())
    output = messages("import", plate=plate, source=exported)
    assert "2 files (B02_1.image_flows.tif, Labels.tif) left out: no field is told by the name" in output


# ---------------------------------------------------------------- labels edited, and labels of others


def edit(plate: Path, well: str, field: str) -> np.ndarray:
    """A person corrects labels of the plate in place."""
    image = store.open_plate(plate).image(FieldKey(well, field))
    array = zarr.open_array(str(image / "labels" / "nuclei" / "0"), mode="r+")
    array[..., 70:80, 70:90] = 77
    return store.read_labels(image, "nuclei")


def test_labels_that_a_person_edited_in_the_plate_are_replaced_by_no_key(
    plate: Path, folder: Path, tmp_path: Path
) -> None:
    """Neither by an import nor by a draft; an export takes the edits along, and brings them back."""
    tifffile.imwrite(folder / "B02_1.tif", cells())
    run(tmp_path, "import", plate=plate, source=folder)
    mine = edit(plate, "B02", "1")
    tifffile.imwrite(folder / "B02_1.tif", cells(3))
    for keys, message in (
        ({"action": "import", "source": folder}, r"B02/1: .*'nuclei' were edited since they were written"),
        (
            {"action": "draft", "channel": "Hoechst", "fields": ["B02/1"]},
            "'nuclei' of 1 field, .* are a person's and stay",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path, **keys, plate=plate, overwrite=True)
    np.testing.assert_array_equal(on_plate(plate, "B02", "1"), mine)
    run(tmp_path, "export", plate=plate, out=tmp_path / "todo", fields=["B02/1"])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "todo" / "B02_1.labels.tif"), mine)
    assert run(tmp_path, "import", plate=plate, source=tmp_path / "todo", accept=True)["kept"] == 1
    labels = tmp_path / "todo" / "B02_1.labels.tif"
    tifffile.imwrite(labels, np.where(mine == 77, 78, mine).astype(np.int32))
    assert run(tmp_path, "import", plate=plate, source=tmp_path / "todo")["written"] == 1
    assert store.edited(store.open_plate(plate).image(FieldKey("B02", "1")), "nuclei") is False


def test_an_edit_after_the_export_is_not_replaced_either(plate: Path, exported: Path, tmp_path: Path) -> None:
    mine = edit(plate, "B02", "1")
    tifffile.imwrite(exported / "B02_1.labels.tif", cells(5).astype(np.int32))
    with pytest.raises(UserError, match="have changed since they were exported"):
        run(tmp_path, "import", plate=plate, source=exported)
    with pytest.raises(UserError, match="'nuclei' were edited since they were written"):
        run(tmp_path, "import", plate=plate, source=exported, overwrite=True)
    np.testing.assert_array_equal(on_plate(plate, "B02", "1"), mine)


def test_labels_of_another_program_pass_through_every_verb(plate: Path, tmp_path: Path) -> None:
    """One group that ngio made in a field ended `inspect`, `annotate` and `validate` for the whole plate."""
    index = store.open_plate(plate)
    image = index.image(FieldKey("B02", "1"))
    label = ngio.open_ome_zarr_container(str(image)).derive_label("nuclei")
    label.set_array(cells().reshape(label.shape))
    label.consolidate(mode="auto")
    assert "'nuclei' (other program), annotation boxes: 1; fields B02/1" in "\n".join(inspect(plate))
    assert validate(plate) == []
    run(tmp_path, "export", plate=plate, out=tmp_path / "todo", fields=["B02"])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "todo" / "B02_1.labels.tif"), cells())
    corrected = cells()
    corrected[50:55, 110:120] = 50
    tifffile.imwrite(tmp_path / "todo" / "B02_1.labels.tif", corrected.astype(np.int32))
    assert run(tmp_path, "import", plate=plate, source=tmp_path / "todo")["written"] == 1
    np.testing.assert_array_equal(on_plate(plate, "B02", "1"), corrected)
    assert store.annotation(image, "nuclei")[0] == "human"


def test_unreadable_labels_of_another_program_stop_nothing_else(plate: Path) -> None:
    image = store.open_plate(plate).image(FieldKey("B02", "1"))
    small = ngio.open_ome_zarr_container(str(image)).derive_label("small")
    shutil.rmtree(image / "labels" / "small" / "0")
    zarr.create_array(str(image / "labels" / "small" / "0"), shape=(1, 10, 10), dtype="uint32")
    assert "'small' (other program)" in "\n".join(inspect(plate))
    [problem] = validate(plate)
    assert "B02/1: " in problem
    assert "labels 'small' of shape (1, 10, 10) do not fit the image's (1, 96, 128)" in problem
    assert small is not None
