"""Labels come to a plate exactly as people drew them, or not at all; drafts find what is there."""

from __future__ import annotations

import csv
import shlex
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpc_isl.errors import UserError
from hpc_isl.objects.draft_labels import draft_labels, drop_small
from hpc_isl.objects.local_drafts import local_labels
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.load import digest, load, load_kept
from hpc_isl.recipes.plates import AnnotateRecipe, ConvertRecipe, PatternRecipe
from hpc_isl.recipes.strict import parse
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.annotate.stage import annotate, plan
from hpc_isl.stages.convert.stage import convert
from hpc_isl.stages.synthetic import stage as synthetic

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
    """Plan and do, as the command line does; the summary of the done record."""
    recipe = AnnotateRecipe.model_validate({"labels": "nuclei", **keys})
    where = Run(tmp_path / "runs" / "annotate" / "a")
    annotate(plan(recipe).recipe, Attempt(where, cpus=2))
    return where.summary() or {}


def truth(export: Path, key: FieldKey, kind: str = "nuclei") -> np.ndarray:
    return tifffile.imread(export / "truth" / kind / f"{key.well}_{key.name}.tiff")


def test_imported_labels_equal_their_files_and_cover_whole_fields(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    output = plan(
        AnnotateRecipe(action="import", plate=plate, labels="nuclei", source=export / "truth/nuclei")
    )
    assert "labels 'nuclei' for 4 of 4 fields" in output.messages[-1]
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
    with pytest.raises(UserError, match=r"(?s)3 problems.*B02/1.*B02/2.*B03/1.*under another name") as caught:
        run(tmp_path, **keys, source=cells)
    assert "overwrite" not in str(caught.value), "no one is told to destroy what a person drew"
    image = store.open_plate(plate).image(KEYS[0])
    np.testing.assert_array_equal(store.read_labels(image, "nuclei"), truth(export, KEYS[0]))
    assert run(tmp_path, **keys, source=cells, overwrite=True)["written"] == 3
    np.testing.assert_array_equal(store.read_labels(image, "nuclei"), truth(export, KEYS[0], "cells"))


def test_one_problem_is_reported_without_a_count(export: Path, plate: Path, tmp_path: Path) -> None:
    """A user with one field in the way reads what is wrong with it, not `1 problems:`."""
    keys = {"action": "import", "plate": plate}
    run(tmp_path, **keys, source=export / "truth" / "nuclei")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "B02_1.tiff").write_bytes((export / "truth/cells/B02_1.tiff").read_bytes())
    with pytest.raises(UserError, match=r"^B02/1: has other labels 'nuclei'"):
        run(tmp_path, **keys, source=tmp_path / "one")


class AfterOneField(threading.Event):
    """Set when it is asked for the second time."""

    def is_set(self) -> bool:
        before = super().is_set()
        self.set()
        return before


def test_a_stopped_import_is_resumed(export: Path, plate: Path, tmp_path: Path) -> None:
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


def test_boxes_of_a_table_are_kept_and_objects_outside_all_are_dropped_and_counted(
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


def test_all_errors_of_a_table_are_reported_together_and_nothing_is_written(
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
        {"path": good, "well": "B03", "field": "²"},
    ])  # fmt: skip
    with pytest.raises(UserError) as error:
        run(tmp_path, action="import", plate=plate, source=table)
    text = str(error.value)
    for line, expected in {
        3: "well H12 is not on the plate",
        4: "field '9' names 0 fields of well B02",
        5: "(0, 0, 500, 5)",
        6: "whole numbers of pixels",
        7: "no field names 2 fields of well B03",
        8: "field B02/1 has its labels from B02_1.tiff already",
        9: "field '²' names 0 fields of well B03",
    }.items():
        assert any(f"line {line}: " in one and expected in one for one in text.splitlines()), (line, text)
    assert store.label_names(store.open_plate(plate).image(KEYS[0])) == []


def test_damaged_and_foreign_label_images_are_named_together(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    whole = (export / "truth" / "nuclei" / "B02_1.tiff").read_bytes()
    (folder / "B02_1.tif").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(folder / "B02_2.tif", np.full((128, 128), np.float32(0.5)))
    tifffile.imwrite(folder / "B03_1.tif", np.zeros((64, 128), np.uint8))
    Image.new("RGBA", (127, 128)).save(folder / "B03_2.png")
    with pytest.raises(UserError) as error:
        run(tmp_path, action="import", plate=plate, source=folder)
    lines = str(error.value).splitlines()
    expected = {
        "B02_1.tif": "",
        "B02_2.tif": "not whole",
        "B03_1.tif": "(1, 64, 128)",
        "B03_2.png": "128, 127)",
    }
    for name, words in expected.items():
        assert any(name in line and words in line for line in lines), (name, lines)


def test_a_mask_is_not_taken_for_one_object(plate: Path, tmp_path: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    for corner in (10, 40, 70):
        mask[corner : corner + 9, corner : corner + 9] = 255
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks" / "B02_1.tif", mask)
    with pytest.raises(UserError, match="holds 1 values in 3 pieces: a mask"):
        run(tmp_path, action="import", plate=plate, source=tmp_path / "masks")


def test_files_that_match_nothing_are_reported(export: Path, plate: Path, tmp_path: Path) -> None:
    keys = {"action": "import", "plate": plate, "source": export / "truth" / "nuclei"}
    with pytest.raises(UserError, match=r"no file matches regex '\(\?P<well>X\)'"):
        run(tmp_path, **keys, regex="(?P<well>X)")
    recipe = AnnotateRecipe(**keys, labels="n", regex=r"(?P<well>B02)_(?P<field>1)\.tiff")
    assert any(
        "3 files (B02_2.tiff, B03_1.tiff, B03_2.tiff) left out: no field" in line
        for line in plan(recipe).messages
    )


def test_a_regex_beside_a_table_is_refused(plate: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv", [{"path": "a.tif", "well": "B02", "field": "1"}])
    recipe = AnnotateRecipe(action="import", plate=plate, labels="n", source=table, regex="(?P<well>X)")
    with pytest.raises(UserError, match="regex: changes nothing beside the table"):
        plan(recipe)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"action": "import"}, "annotate import: source must be given"),
        ({"action": "import", "source": "nowhere"}, "nowhere is not there"),
        ({"action": "draft"}, "annotate draft: channel must be given"),
        ({"action": "draft", "channel": "Hoechst 33342"}, "did you mean 'HOECHST 33342'"),
        ({"action": "draft", "channel": "Brightfield"}, "Brightfield is label-free"),
        ({"action": "draft", "channel": "HOECHST 33342", "fields": ["B09"]}, "'B09' is not on the plate"),
    ],
)
def test_errors_in_the_recipe_are_reported_before_anything_is_done(
    plate: Path, keys: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        plan(parse(AnnotateRecipe, {"plate": plate, "labels": "nuclei", **keys}, "the recipe"))


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


def test_each_method_of_drafting_names_itself_and_writes_its_labels(
    export: Path, plate: Path, tmp_path: Path
) -> None:
    keys = {"action": "draft", "plate": plate, "channel": "HOECHST 33342", "fields": ["B02/1"]}
    stain = nuclear_stain(plate)
    methods: dict[str, dict[str, Any]] = {
        "a threshold for each object": {},
        "threshold li": {"method": "threshold", "threshold": "li", "sigma": 2.0},
    }
    expected = {
        "a threshold for each object": local_labels(stain, min_area=50, split=True),
        "threshold li": draft_labels(stain, threshold="li", sigma=2.0, min_area=50, split=True),
    }
    for number, (how, more) in enumerate(methods.items()):
        name = f"drafted {number}"
        recipe = AnnotateRecipe.model_validate({"labels": name, **keys, **more})
        assert plan(recipe).messages[0] == f"drafted from HOECHST 33342 of 1 field, {how}"
        run(tmp_path, **keys, **more, labels=name)
        labels = store.read_labels(store.open_plate(plate).image(KEYS[0]), name)
        np.testing.assert_array_equal(labels, expected[how])


def test_recipes_kept_by_earlier_versions_mean_what_they_did(tmp_path: Path) -> None:
    """They hold the key `method` in recipes of every action; digests of imports stay what they were."""
    path = tmp_path / "recipe.yaml"
    for action, needed in (("draft", "channel: a"), ("import", "source: s"), ("export", "out: o")):
        path.write_text(f"action: {action}\nplate: P.zarr\nlabels: n\n{needed}\nmethod: threshold\n")
        kept = load("annotate", path, [])
        assert kept == load_kept("annotate", path)
        assert isinstance(kept, AnnotateRecipe)
        assert kept.method == "threshold"
        same = digest(kept) == digest(kept.model_copy(update={"method": "local"}))
        assert same == (action != "draft")


def nuclear_stain(plate: Path) -> np.ndarray:
    """Returns the nuclear stain of the first field (y, x)."""
    index = store.open_plate(plate)
    channel = index.channel("HOECHST 33342")
    return store.read_box(index.image(KEYS[0]), 0, 0, channel, (0,), slice(None), slice(None)).max(0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_draft_never_replaces_what_people_drew(
    export: Path, plate: Path, tmp_path: Path, overwrite: bool
) -> None:
    """A user who drafts where a person has drawn is told so on planning, and to take another name."""
    run(tmp_path, action="import", plate=plate, source=export / "truth" / "nuclei")
    keys = {"action": "draft", "plate": plate, "channel": "HOECHST 33342", "fields": ["B02/1"]}
    recipe = AnnotateRecipe.model_validate({**keys, "labels": "nuclei", "overwrite": overwrite})
    attempt = Attempt(Run(tmp_path / "runs" / "annotate" / "b"))
    for refused in (lambda: plan(recipe), lambda: annotate(recipe, attempt)):
        with pytest.raises(UserError, match=r"a person's.* draft under another name") as caught:
            refused()
        assert "overwrite" not in str(caught.value)
    image = store.open_plate(plate).image(KEYS[0])
    np.testing.assert_array_equal(store.read_labels(image, "nuclei"), truth(export, KEYS[0]))
    run(tmp_path, **keys, labels="drafted")
    run(tmp_path, **keys, labels="drafted", min_area=100, overwrite=True)


# ---------------------------------------------------------------- export and import of corrections

NAME = 'nuclei & "their" 007'


@pytest.fixture
def drafted(export: Path, plate: Path, tmp_path: Path) -> Path:
    """A plate with two drafted fields, and one that a person drew in two boxes."""
    run(tmp_path, action="draft", plate=plate, labels=NAME, channel="HOECHST 33342", fields=["B02"])
    path = str(export / "truth" / "nuclei" / "B03_1.tiff")
    boxes = [{"y0": 0, "x0": 0, "y1": 40, "x1": 50}, {"y0": 60, "x0": 60, "y1": 128, "x1": 128}]
    rows = [{"path": path, "well": "B03", "field": "1", **box} for box in boxes]
    table = write_table(tmp_path / "human.csv", rows)
    run(tmp_path, action="import", plate=plate, labels=NAME, source=table)
    return plate


def exported(tmp_path: Path, plate: Path, **keys: Any) -> Path:
    out = tmp_path / "to do"
    run(tmp_path, action="export", plate=plate, labels=NAME, out=out, **keys)
    return out


def bring(tmp_path: Path, plate: Path, out: Path, **keys: Any) -> dict[str, Any]:
    return run(tmp_path, action="import", plate=plate, labels=NAME, source=out, **keys)


def on_plate(plate: Path, key: FieldKey) -> tuple[np.ndarray, str, list[Any]]:
    image = store.open_plate(plate).image(key)
    return store.read_labels(image, NAME), *store.annotation(image, NAME)


def corrected(out: Path, key: FieldKey, dtype: str = "int32") -> np.ndarray:
    """A person draws one more object, and saves with another program."""
    path = out / f"{key.well}_{key.name}.labels.tif"
    labels = tifffile.imread(path).astype(dtype)
    labels[:9, 100:120] = 60000
    tifffile.imwrite(path, labels)
    return labels


def same(one: tuple[np.ndarray, str, list[Any]], other: tuple[np.ndarray, str, list[Any]]) -> bool:
    return np.array_equal(one[0], other[0]) and one[1:] == other[1:]


def test_labels_that_a_person_corrected_come_back_as_human_and_all_others_stay(
    drafted: Path, tmp_path: Path
) -> None:
    before = [on_plate(drafted, key) for key in KEYS[:3]]
    out = exported(tmp_path, drafted)
    drawn = corrected(out, KEYS[0])
    keys = {"action": "import", "plate": drafted, "labels": NAME, "source": out}
    output = plan(AnnotateRecipe.model_validate(keys)).messages
    assert "1 label images are corrected, 3 are unchanged" in output
    assert f"labels {NAME!r} for 1 of 4 fields of {drafted}" in output
    assert bring(tmp_path, drafted, out)["written"] == 1
    assert same(on_plate(drafted, KEYS[0]), (drawn, "human", before[0][2]))
    assert all(same(on_plate(drafted, key), was) for key, was in zip(KEYS[1:3], before[1:], strict=True))
    image = store.open_plate(drafted).image(KEYS[3])
    assert NAME not in store.label_names(image), "nobody drew there"
    assert bring(tmp_path, drafted, out)["kept"] == 1, "a second time changes nothing"


def test_annotation_boxes_are_exported_and_imported(drafted: Path, tmp_path: Path) -> None:
    was = on_plate(drafted, KEYS[2])
    out = exported(tmp_path, drafted, fields=["B03/1"])
    path = out / "B03_1.labels.tif"
    labels = tifffile.imread(path)
    labels[70:75, 70:75], labels[50:55, 20:30] = 50001, 50002
    tifffile.imwrite(path, labels)
    assert bring(tmp_path, drafted, out)["dropped"] == 1
    now = on_plate(drafted, KEYS[2])
    np.testing.assert_array_equal(now[0], np.where(labels == 50002, 0, labels))
    assert now[1:] == ("human", was[2])


def test_unchanged_labels_become_human_by_accept(drafted: Path, tmp_path: Path) -> None:
    out = exported(tmp_path, drafted, box=[10, 20, 110, 90])
    before = on_plate(drafted, KEYS[0])[0]
    bring(tmp_path, drafted, out)
    assert on_plate(drafted, KEYS[0])[1] == "drafted"
    assert bring(tmp_path, drafted, out, accept=True)["fields"] == 4
    labels, origin, boxes = on_plate(drafted, KEYS[0])
    assert (origin, boxes) == ("human", [(10, 20, 110, 90)])
    inside = np.unique(before[10:110, 20:90])
    np.testing.assert_array_equal(labels, np.where(np.isin(before, inside), before, 0))
    empty = on_plate(drafted, KEYS[3])
    assert not empty[0].any()
    assert empty[1:] == ("human", [(10, 20, 110, 90)])
    assert on_plate(drafted, KEYS[2])[2] == [(0, 0, 40, 50), (60, 60, 128, 128)], "as a person drew them"


def test_other_boxes_around_unchanged_labels_are_taken_over_and_do_not_make_them_human(
    drafted: Path, tmp_path: Path
) -> None:
    out = exported(tmp_path, drafted, fields=["B02/1"])
    table = (out / "boxes.csv").read_text()
    assert table.count("0,0,128,128") == 1
    (out / "boxes.csv").write_text(table.replace("0,0,128,128", "0,0,128,64"))
    bring(tmp_path, drafted, out)
    assert on_plate(drafted, KEYS[0])[1:] == ("drafted", [(0, 0, 128, 64)])


def test_labels_that_changed_on_the_plate_meanwhile_are_not_written_over(
    drafted: Path, tmp_path: Path
) -> None:
    out = exported(tmp_path, drafted)
    drawn = corrected(out, KEYS[0])
    draft_again = {"action": "draft", "channel": "HOECHST 33342", "fields": ["B02/1"], "method": "threshold"}
    run(tmp_path, plate=drafted, labels=NAME, overwrite=True, **draft_again)
    before = on_plate(drafted, KEYS[0])
    keys = {"action": "import", "plate": drafted, "labels": NAME, "source": out}
    for refused in (lambda: bring(tmp_path, drafted, out), lambda: plan(AnnotateRecipe.model_validate(keys))):
        with pytest.raises(UserError, match=r"have changed since they were exported; .* under another name"):
            refused()
    assert same(on_plate(drafted, KEYS[0]), before)
    bring(tmp_path, drafted, out, overwrite=True)
    np.testing.assert_array_equal(on_plate(drafted, KEYS[0])[0], drawn)


def test_exported_labels_can_be_imported_under_another_name(drafted: Path, tmp_path: Path) -> None:
    """README's way: drafts are exported, and what a person corrected becomes human labels of another name."""
    out = exported(tmp_path, drafted)
    before = [on_plate(drafted, key) for key in KEYS[:3]]
    drawn = corrected(out, KEYS[0])
    keys = {"action": "import", "plate": drafted, "source": out, "labels": "nuclei"}
    assert f"the folder holds labels {NAME!r}, which stay" in "\n".join(plan(AnnotateRecipe(**keys)).messages)
    assert run(tmp_path, **keys)["written"] == 1
    image = store.open_plate(drafted).image(KEYS[0])
    np.testing.assert_array_equal(store.read_labels(image, "nuclei"), drawn)
    assert store.annotation(image, "nuclei")[0] == "human"
    assert all(same(on_plate(drafted, key), was) for key, was in zip(KEYS[:3], before, strict=True))


def test_an_exported_folder_holds_what_a_person_needs(drafted: Path, tmp_path: Path) -> None:
    out = exported(tmp_path, drafted)
    stems = [f"{key.well}_{key.name}" for key in KEYS]
    images = {f"{stem}.{kind}.tif" for stem in stems for kind in ("image", "labels")}
    assert {path.name for path in out.iterdir()} == images | {"boxes.csv", "manifest.json", "README.txt"}
    index = store.open_plate(drafted)
    with tifffile.TiffFile(out / "B02_1.image.tif") as tiff:
        metadata = tiff.imagej_metadata or {}
        assert metadata["Labels"] == [channel.name for channel in index.plate.channels]
        pixels = tiff.asarray()
    for number in range(len(index.plate.channels)):
        stored = store.read_box(index.image(KEYS[0]), 0, 0, number, slice(0, 1), slice(None), slice(None))
        np.testing.assert_array_equal(pixels[number], stored[0])
    assert not tifffile.imread(out / "B03_2.labels.tif").any()
    command = next(
        line for line in (out / "README.txt").read_text().splitlines() if "annotate import" in line
    )
    words = shlex.split(command)
    assert words[3:6] == ["annotate", "import", str(out)]
    given = dict(word.split("=", 1) for word in words[6:])
    assert yaml.safe_load(given["labels"]) == NAME
    assert yaml.safe_load(given["plate"]) == str(drafted)


def test_a_stopped_export_leaves_no_folder(drafted: Path, tmp_path: Path) -> None:
    out = tmp_path / "to do"
    recipe = AnnotateRecipe(action="export", plate=drafted, labels=NAME, out=out)
    attempt = Attempt(Run(tmp_path / "runs" / "annotate" / "b"), stopping=AfterOneField())
    annotate(recipe, attempt)
    assert attempt.run.summary() is None
    assert not [path for path in tmp_path.iterdir() if "to do" in path.name]
    out.mkdir()
    assert exported(tmp_path, drafted) == out, "an empty folder will do"


def test_errors_about_an_export_are_reported_before_anything_is_done(drafted: Path, tmp_path: Path) -> None:
    out = exported(tmp_path, drafted)
    free, truth_folder = tmp_path / "free", tmp_path / "masks"
    truth_folder.mkdir()
    tifffile.imwrite(truth_folder / "B02_1.tif", np.zeros((128, 128), np.uint8))
    for keys, expected in [
        ({"action": "export"}, "annotate export: out must be given"),
        ({"action": "export", "out": out}, "holds something already; name a new or an empty folder"),
        ({"action": "export", "out": free, "box": [9, 0, 9, 5]}, r"box: \(9, 0, 9, 5\) .* is empty"),
        ({"action": "export", "out": free, "box": [0, 0, 500, 5]}, r"B02/1: box \(0, 0, 500, 5\)"),
        ({"action": "export", "out": free, "fields": ["H12"]}, "not on the plate"),
        ({"action": "import", "source": out, "regex": "(?P<well>X)"}, "says itself"),
        ({"action": "import", "source": truth_folder, "accept": True}, "not written by annotate export"),
    ]:
        with pytest.raises(UserError, match=expected):
            plan(parse(AnnotateRecipe, {"plate": drafted, "labels": NAME, **keys}, "the recipe"))
    assert not free.exists()
    (out / "manifest.json").write_text('{"written_by": "annotate export"}')
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        bring(tmp_path, drafted, out)
    (out / "manifest.json").unlink()
    assert bring(tmp_path, drafted, out / "boxes.csv", overwrite=True)["fields"] == 4, (
        "a table like any other"
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.sampled_from(["uint16", "int32", "uint32", "uint8"]))
def test_drawn_labels_are_imported_to_the_pixel(
    plate: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 250, (128, 128)).astype(dtype) if seed % 5 else np.zeros((128, 128), dtype)
    out = exported(folder, plate, fields=["B03/2"])
    was = tifffile.imread(out / "B03_2.labels.tif")
    tifffile.imwrite(out / "B03_2.labels.tif", drawn)
    bring(folder, plate, out, objects="values")
    if not np.array_equal(was, drawn):
        assert same(on_plate(plate, KEYS[3]), (drawn, "human", [(0, 0, 128, 128)]))


def test_touching_discs_are_split_only_when_asked() -> None:
    y, x = np.mgrid[:80, :80]
    stain = np.where(np.minimum(np.hypot(y - 40, x - 27), np.hypot(y - 40, x - 53)) < 15, 1000, 100)
    keys: dict[str, Any] = {"threshold": "otsu", "sigma": 1.0, "min_area": 50}
    assert draft_labels(stain, split=True, **keys).max() == 2
    assert draft_labels(stain, split=False, **keys).max() == 1
    assert not draft_labels(stain, split=True, **keys | {"min_area": 2000}).any()
    assert not draft_labels(stain, split=True, **keys | {"threshold": 2000.0}).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_raster_order_keeps_the_objects_and_numbers_them_by_their_first_pixel(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 6, (7, 9)) * 1000
    ordered, _ = drop_small(labels, 0)
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
