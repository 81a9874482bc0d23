"""Labels come to a plate exactly as people drew them, or not at all; drafts find what is there."""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpc_isl.mistake import Mistake
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe, ConvertRecipe, PatternRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages import synthetic
from hpc_isl.stages.annotate import annotate, plan
from hpc_isl.stages.annotate_draft import draft, in_raster_order
from hpc_isl.stages.convert import convert

KEYS = [FieldKey("B02", "1"), FieldKey("B02", "2"), FieldKey("B03", "1"), FieldKey("B03", "2")]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotate") / "export"
    synthetic.write(folder, wells=2, fields=2, size=128, planes=1, seed=1)
    return folder


@pytest.fixture
def plate(export: Path, tmp_path: Path) -> Path:
    recipe = ConvertRecipe(source=export, out=tmp_path / "plate.zarr")
    convert(recipe, Attempt(Run(tmp_path / "runs" / "convert" / "c")))
    return recipe.out


def run(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    """Plan and do, as the door does; the summary of the done record."""
    recipe = AnnotateRecipe.model_validate({"labels": "nuclei", **keys})
    where = Run(tmp_path / "runs" / "annotate" / "a")
    annotate(plan(recipe).recipe, Attempt(where, cpus=2))
    return where.summary() or {}


def truth(export: Path, key: FieldKey, kind: str = "nuclei") -> np.ndarray:
    return tifffile.imread(export / "truth" / kind / f"{key.well}_{key.name}.tiff")


def test_imported_labels_equal_their_files_and_cover_whole_fields(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    said = plan(AnnotateRecipe(action="import", plate=plate, labels="nuclei", source=export / "truth/nuclei"))
    assert "labels 'nuclei' for 4 of 4 fields" in said.says[-1]
    summary = run(tmp_path, action="import", plate=plate, source=export / "truth" / "nuclei")
    index = store.open_plate(plate)
    for key in KEYS:
        np.testing.assert_array_equal(store.read_labels(index.image(key), "nuclei"), truth(export, key))
        assert store.annotation(index.image(key), "nuclei") == ("human", [(0, 0, 128, 128)])
    counted = sum(len(np.unique(truth(export, key))) - 1 for key in KEYS)
    assert (summary["written"], summary["objects"], summary["boxes"]) == (4, counted, 4)


def test_a_second_import_keeps_what_is_equal_and_refuses_what_differs(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    keys = {"action": "import", "plate": plate}
    run(tmp_path, **keys, source=export / "truth" / "nuclei")
    assert run(tmp_path, **keys, source=export / "truth" / "nuclei")["kept"] == 4
    cells = export / "truth" / "cells"
    with pytest.raises(Mistake, match=r"(?s)3 problems.*B02/1.*B02/2.*B03/1.*overwrite=true"):
        run(tmp_path, **keys, source=cells)
    image = store.open_plate(plate).image(KEYS[0])
    np.testing.assert_array_equal(store.read_labels(image, "nuclei"), truth(export, KEYS[0]))
    assert run(tmp_path, **keys, source=cells, overwrite=True)["written"] == 3
    np.testing.assert_array_equal(store.read_labels(image, "nuclei"), truth(export, KEYS[0], "cells"))


class AfterOneField(threading.Event):
    """Set when it is asked for the second time."""

    def is_set(self) -> bool:
        before = super().is_set()
        self.set()
        return before


def test_a_stopped_import_goes_on_where_it_was(export: Path, plate: Path, tmp_path: Path) -> None:
    recipe = AnnotateRecipe(action="import", plate=plate, labels="nuclei", source=export / "truth" / "nuclei")
    attempt = Attempt(Run(tmp_path / "runs" / "annotate" / "a"), stopping=AfterOneField())
    annotate(recipe, attempt)
    assert attempt.run.summary() is None
    summary = run(tmp_path, action="import", plate=plate, source=export / "truth" / "nuclei")
    assert (summary["kept"], summary["written"]) == (1, 3)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "well", "field", "y0", "x0", "y1", "x1"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_boxes_of_a_table_are_kept_and_what_lies_outside_all_is_dropped_and_counted(
    plate: Path, tmp_path: Path
) -> None:
    labels = np.zeros((128, 128), np.uint16)
    labels[10:20, 10:20], labels[25:40, 28:50], labels[100:110, 100:110], labels[60:70, 5:9] = 7, 65535, 3, 9
    Image.fromarray(labels).save(tmp_path / "drawn.png")
    boxes: list[dict[str, object]] = [
        {"y0": 0, "x0": 0, "y1": 32, "x1": 32},
        {"y0": 96, "x0": 96, "y1": 128, "x1": 128},
    ]
    rows = [{"path": "drawn.png", "well": "b3", "field": "01", **box} for box in boxes]
    summary = run(tmp_path, action="import", plate=plate, source=write_table(tmp_path / "t.csv", rows))
    image = store.open_plate(plate).image(FieldKey("B03", "1"))
    kept = store.read_labels(image, "nuclei")
    np.testing.assert_array_equal(kept, np.where(labels == 9, 0, labels))  # cut objects stay whole
    assert store.annotation(image, "nuclei")[1] == [(0, 0, 32, 32), (96, 96, 128, 128)]
    assert (summary["objects"], summary["boxes"], summary["dropped"]) == (3, 2, 1)


def test_everything_that_is_wrong_with_a_table_is_said_at_once_and_nothing_written(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    good = str(export / "truth" / "nuclei" / "B02_1.tiff")
    table = write_table(tmp_path / "t.csv", [
        {"path": good, "well": "B02", "field": "1"},
        {"path": good, "well": "H12", "field": "1"},
        {"path": good, "well": "B02", "field": "9"},
        {"path": good, "well": "B03", "field": "1", "y0": 0, "x0": 0, "y1": 500, "x1": 5},
        {"path": good, "well": "B03", "field": "2", "y0": "a"},
        {"path": good, "well": "B03"},
        {"path": good, "well": "B02", "field": "01"},
    ])  # fmt: skip
    with pytest.raises(Mistake) as error:
        run(tmp_path, action="import", plate=plate, source=table)
    text = str(error.value)
    for line, said in {
        3: "well H12 is not on the plate",
        4: "field '9' names 0 fields of well B02",
        5: "(0, 0, 500, 5)",
        6: "whole numbers of pixels",
        7: "no field names 2 fields of well B03",
        8: "field B02/1 has its labels from B02_1.tiff already",
    }.items():
        assert any(f"line {line}: " in one and said in one for one in text.splitlines()), (line, text)
    assert store.label_names(store.open_plate(plate).image(KEYS[0])) == []


def test_damaged_and_foreign_label_images_are_named_together(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    whole = (export / "truth" / "nuclei" / "B02_1.tiff").read_bytes()
    (folder / "B02_1.tif").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(folder / "B02_2.tif", np.zeros((128, 128), np.float32))
    tifffile.imwrite(folder / "B03_1.tif", np.zeros((64, 128), np.uint8))
    Image.new("RGBA", (128, 128)).save(folder / "B03_2.png")
    with pytest.raises(Mistake) as error:
        run(tmp_path, action="import", plate=plate, source=folder)
    lines = str(error.value).splitlines()
    said = {"B02_1.tif": "", "B02_2.tif": "float32", "B03_1.tif": "(1, 64, 128)", "B03_2.png": "alpha"}
    for name, words in said.items():
        assert any(name in line and words in line for line in lines), (name, lines)


def test_a_mask_is_not_taken_for_one_object(plate: Path, tmp_path: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    for corner in (10, 40, 70):
        mask[corner : corner + 9, corner : corner + 9] = 255
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks" / "B02_1.tif", mask)
    with pytest.raises(Mistake, match="one value, 255, in 3 pieces: a mask"):
        run(tmp_path, action="import", plate=plate, source=tmp_path / "masks")


def test_files_that_match_nothing_are_said(export: Path, plate: Path, tmp_path: Path) -> None:
    keys = {"action": "import", "plate": plate, "source": export / "truth" / "nuclei"}
    with pytest.raises(Mistake, match=r"no file matches regex '\(\?P<well>X\)'"):
        run(tmp_path, **keys, regex="(?P<well>X)")
    recipe = AnnotateRecipe(**keys, labels="n", regex=r"(?P<well>B02)_(?P<field>1)\.tiff")
    assert any("3 images do not match regex" in line for line in plan(recipe).says)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"action": "import"}, "annotate import: source must be given"),
        ({"action": "import", "source": "nowhere"}, "nowhere is not there"),
        ({"action": "import", "source": ".", "channel": "HOECHST 33342"}, "channel means nothing here"),
        ({"action": "draft"}, "annotate draft: channel must be given"),
        ({"action": "draft", "channel": "Hoechst 33342"}, "did you mean 'HOECHST 33342'"),
        ({"action": "draft", "channel": "Brightfield"}, "Brightfield is label-free"),
        ({"action": "draft", "channel": "HOECHST 33342", "fields": ["B09"]}, "'B09' is not on the plate"),
    ],
)
def test_mistakes_in_the_recipe_are_found_before_anything_is_done(
    plate: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(Mistake, match=said.replace("(", r"\(")):
        plan(AnnotateRecipe.model_validate({"plate": plate, "labels": "nuclei", **keys}))


def test_a_draft_finds_the_true_nuclei_and_none_in_an_empty_field(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    keys = {"action": "draft", "plate": plate, "channel": "HOECHST 33342"}
    assert run(tmp_path, **keys, fields=["B02/1"])["written"] == 1
    assert run(tmp_path, **keys)["kept"] == 1  # the draft is a function of pixels and recipe
    index = store.open_plate(plate)
    for key in KEYS[:3]:
        true = truth(export, key)
        large = np.where(np.bincount(true.ravel())[true] >= 50, true, 0)  # no slivers at the border
        assert f1(large, store.read_labels(index.image(key), "nuclei")) > 0.85
    assert store.annotation(index.image(KEYS[0]), "nuclei")[0] == "drafted"
    assert not store.read_labels(index.image(KEYS[3]), "nuclei").any()


def test_a_draft_does_not_replace_what_people_drew_unless_it_is_told_to(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    run(tmp_path, action="import", plate=plate, source=export / "truth" / "nuclei")
    keys = {"action": "draft", "plate": plate, "channel": "HOECHST 33342", "fields": ["B02/1"]}
    with pytest.raises(Mistake, match=r"has other labels 'nuclei' already \(human\)"):
        run(tmp_path, **keys)
    run(tmp_path, **keys, overwrite=True)


def test_touching_discs_are_split_only_when_asked() -> None:
    y, x = np.mgrid[:80, :80]
    stain = np.where(np.minimum(np.hypot(y - 40, x - 27), np.hypot(y - 40, x - 53)) < 15, 1000, 100)
    keys: dict[str, Any] = {"threshold": "otsu", "sigma": 1.0, "min_area": 50}
    assert draft(stain, split=True, **keys).max() == 2
    assert draft(stain, split=False, **keys).max() == 1
    assert not draft(stain, split=True, **keys | {"min_area": 2000}).any()
    assert not draft(stain, split=True, **keys | {"threshold": 2000.0}).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_raster_order_keeps_the_objects_and_numbers_them_by_their_first_pixel(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 6, (7, 9)) * 1000
    ordered = in_raster_order(labels)
    pairs = set(zip(labels.ravel().tolist(), ordered.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(labels))
    seen = list(dict.fromkeys(ordered[ordered > 0].tolist()))
    assert seen == list(range(1, len(seen) + 1))
    np.testing.assert_array_equal(ordered == 0, labels == 0)


@pytest.mark.realdata
def test_drafts_agree_with_the_nuclei_that_people_drew(
    realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BBBC039, U2OS, Hoechst: images and masks by the same names."""
    pattern = PatternRecipe(
        regex=r"IXMtest_(?P<well>\w\d\d)_s(?P<field>\d)_w1.*\.tif", channels={"": "Hoechst"}
    )
    folder, out = realdata / "bbbc039", tmp_path / "u2os.zarr"
    convert(
        ConvertRecipe(source=folder / "images", out=out, reader="pattern", pattern=pattern),
        Attempt(Run(tmp_path / "runs" / "convert" / "c"), cpus=2),
    )
    regex = r"IXMtest_(?P<well>\w\d\d)_s(?P<field>\d)_w1.*\.tif"
    run(tmp_path, action="import", plate=out, source=folder / "labels", regex=regex, labels="people")
    index = store.open_plate(out)
    run(tmp_path, action="draft", plate=out, channel=index.plate.channels[0].name, labels="drafted")
    scores = [
        f1(*(store.read_labels(index.image(field.key), name) for name in ("people", "drafted")))
        for field in index.plate.fields
    ]
    with capsys.disabled():
        print(f"\nF1 at IoU 0.5 of drafted nuclei: {np.mean(scores):.3f} (least {min(scores):.3f})")
    assert len(scores) == 14
    assert np.mean(scores) > 0.85
    assert min(scores) > 0.75


def f1(true: np.ndarray, found: np.ndarray) -> float:
    """Of objects that share more than half of their union, which makes a match unique."""
    trues, true = np.unique(true, return_inverse=True)
    founds, found = np.unique(found, return_inverse=True)
    shared = np.zeros((len(trues), len(founds)))
    np.add.at(shared, (true.ravel(), found.ravel()), 1)
    union = shared.sum(1, keepdims=True) + shared.sum(0) - shared
    hits = (shared / union > 0.5)[trues > 0][:, founds > 0].sum()
    return float(2 * hits / max((trues > 0).sum() + (founds > 0).sum(), 1))
