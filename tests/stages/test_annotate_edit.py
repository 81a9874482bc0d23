"""A session of annotate edit, without its window: what a person saves is in the plate, nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
import zarr
from other_plates import snapshot, write_other
from used_plates import computed

from hpc_isl.cli import main
from hpc_isl.cluster.run_folder import uses
from hpc_isl.errors import UserError
from hpc_isl.plate_home import beside
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_names, read_labels, write_labels
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Run
from hpc_isl.stages import pack
from hpc_isl.stages.adopt import stage as adopt
from hpc_isl.stages.annotate.edit import EditSession
from hpc_isl.stages.annotate.stage import plan
from hpc_isl.stages.inspect import inspect, validate

B02, B03 = FieldKey("B02", "1"), FieldKey("B03", "1")
SIZE = 64
WHOLE = (0, 0, SIZE, SIZE)


@pytest.fixture
def index(tmp_path: Path, write_stained_plate: Callable[..., Index]) -> Index:
    """Two fields; nuclei are drafted in the first."""
    made = write_stained_plate(tmp_path / "P01.zarr", wells=("B02", "B03"), size=SIZE)
    write_labels(made.image(B02), "nuclei", squares(1, 2), origin="drafted", boxes=[WHOLE])
    return made


def squares(*places: int) -> np.ndarray:
    """Object k is a square at the k-th place."""
    labels = np.zeros((SIZE, SIZE), np.uint32)
    for number, place in enumerate(places, 1):
        labels[10 * place : 10 * place + 6, 10 * place : 10 * place + 6] = number
    return labels


def begin(index: Index, refuse: Callable[[], None] = lambda: None, **keys: object) -> EditSession:
    recipe = AnnotateRecipe.model_validate(
        {"action": "edit", "plate": index.path, "labels": "nuclei", **keys}
    )
    return EditSession.of_recipe(recipe, refuse)


def test_a_field_opens_with_its_planes_its_labels_and_their_boxes(index: Index) -> None:
    with begin(index, box=(8, 8, 40, 40)) as session:
        assert (
            session.described()[1]
            == "labels 'nuclei': on 0 a person's, on 1 a program's or drafted, on 1 none"
        )
        opened = session.open(B02)
        assert {name: pixels.shape for name, pixels in opened.images.items()} == {
            "Brightfield": (SIZE, SIZE), "Hoechst": (SIZE, SIZE),
        }  # fmt: skip
        stain = store.read_box(index.image(B02), 0, 0, 1, [0, 1], slice(None), slice(None)).max(0)
        np.testing.assert_array_equal(opened.images["Hoechst"], stain)
        np.testing.assert_array_equal(opened.labels, squares(1, 2))
        assert (opened.origin, opened.boxes) == ("drafted", ((8, 8, 40, 40),))
        empty = session.open(B03)
        assert (empty.origin, empty.boxes, empty.labels.max()) == ("", ((8, 8, 40, 40),), 0)
        low, high = session.limits("Hoechst") or (0, 0)
        assert 500 < low < high < 12000


def test_what_is_saved_is_a_persons_and_what_was_there_stays_under_a_dated_name(index: Index) -> None:
    with begin(index) as session:
        session.open(B02)
        assert session.save(squares(1, 2), [WHOLE]) is None  # nothing was changed
        assert label_names(index.image(B02)) == ["nuclei"]
        first = session.save(squares(1, 2, 3), [WHOLE])
        second = session.save(squares(1, 3), [WHOLE])
    assert first is not None
    assert second is not None
    assert (first.objects, second.objects, second.backup_name) == (3, 2, "")  # once for each session
    assert store.annotation(index.image(B02), "nuclei") == ("human", [WHOLE])
    np.testing.assert_array_equal(read_labels(index.image(B02), "nuclei"), squares(1, 3))
    assert store.annotation(index.image(B02), first.backup_name) == ("drafted", [WHOLE])
    np.testing.assert_array_equal(read_labels(index.image(B02), first.backup_name), squares(1, 2))
    lines = [line for line in inspect(index.path) if line.startswith("labels")]
    assert [line for line in lines if f"{first.backup_name!r} (drafted)" in line]
    assert first.backup_name.startswith("nuclei before 20")
    assert validate(index.path, deep=True) == []


def test_labels_that_are_right_as_they_are_can_become_a_persons(index: Index) -> None:
    with begin(index) as session:
        session.open(B02)
        saved = session.save(squares(1, 2), [WHOLE], accept=True)
    assert saved is not None
    assert store.annotation(index.image(B02), "nuclei")[0] == "human"


def test_each_session_keeps_what_it_found(index: Index) -> None:
    kept = []
    for labels in (squares(1), squares(2), squares(3)):
        with begin(index) as session:
            session.open(B02)
            saved = session.save(labels, [WHOLE])
            assert saved is not None
            kept.append(saved.backup_name)
    assert len(set(kept)) == 3  # also within one second
    found = [read_labels(index.image(B02), name) for name in kept]
    np.testing.assert_array_equal(found, [squares(1, 2), squares(1), squares(2)])


def test_labels_that_others_wrote_meanwhile_are_kept_and_reported(index: Index) -> None:
    with begin(index) as session:
        session.open(B02)
        session.save(squares(1), [WHOLE])
        others = zarr.open_array(str(index.image(B02) / "labels" / "nuclei" / "0"), mode="r+")
        others[..., 50:60, 50:60] = 7  # in place, as another viewer does
        saved = session.save(squares(2), [WHOLE])
    assert saved is not None
    assert saved.changed_meanwhile
    assert read_labels(index.image(B02), saved.backup_name)[55, 55] == 7
    np.testing.assert_array_equal(read_labels(index.image(B02), "nuclei"), squares(2))


def test_objects_that_touch_no_box_are_left_out_and_counted(index: Index) -> None:
    with begin(index) as session:
        session.open(B03)
        saved = session.save(squares(1, 2, 4), [(0, 0, 22, 22)])
        assert not session.is_changed(squares(1, 2, 4), [(0, 0, 22, 22)])
        assert session.is_changed(squares(1, 2, 4), [(0, 0, 22, 23)])
        with pytest.raises(UserError, match="annotation box"):
            session.save(squares(1), [])
    assert saved is not None
    assert (saved.objects, saved.dropped, saved.backup_name) == (2, 1, "")
    np.testing.assert_array_equal(read_labels(index.image(B03), "nuclei"), squares(1, 2))


def edit_elsewhere(path: Path, opened: object, done: object) -> None:
    with begin(store.open_plate(path)) as session:
        session.open(B02)
        opened.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


def test_a_second_editor_of_a_field_is_refused_until_the_first_has_left_it(index: Index) -> None:
    spawn = multiprocessing.get_context("spawn")
    opened, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=edit_elsewhere, args=(index.path, opened, done))
    other.start()
    try:
        assert opened.wait(60)
        with begin(index) as session:
            session.open(B03)
            with pytest.raises(
                UserError, match=r"another process is editing 'nuclei' of B02/1 of .*P01.zarr now"
            ):
                session.open(B02)
            assert session.current is not None
            assert session.current.key == B03  # and B03 is still locked
            with begin(index) as third, pytest.raises(UserError, match="B03/1"):
                third.open(B03)
            with begin(index, labels="cells") as third:  # other labels of the field are nobody's yet
                third.open(B02)
            done.set()
            other.join(60)
            session.open(B02)
            with begin(index) as third:
                third.open(B03)
    finally:
        done.set()
        other.join(60)


def test_fields_of_several_times_have_labels_of_each(
    tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    index = write_stained_plate(tmp_path / "T.zarr", wells=("B02",), size=SIZE, times=2)
    with begin(index) as session:
        opened = session.open(B02)
        assert opened.images["Hoechst"].shape == opened.labels.shape == (2, SIZE, SIZE)
        session.save(np.stack([squares(1), squares(2)]), [WHOLE])
    np.testing.assert_array_equal(read_labels(index.image(B02), "nuclei"), [squares(1), squares(2)])


def test_labels_of_a_packed_plate_are_saved_beside_it(index: Index) -> None:
    packed = pack.pack(index.path, None).path
    pack.remove_original(index.path)
    content = packed.read_bytes()
    with begin(store.open_plate(packed)) as session:
        session.open(B02)
        saved = session.save(squares(3), [WHOLE])
    assert saved is not None
    assert packed.read_bytes() == content
    image = store.open_plate(packed).image(B02)
    np.testing.assert_array_equal(read_labels(image, "nuclei"), squares(3))
    np.testing.assert_array_equal(read_labels(image, saved.backup_name), squares(1, 2))
    assert (beside(packed) / "B" / "02" / "1" / "labels" / "nuclei").is_dir()
    restored = store.open_plate(pack.unpack(packed, None).path)
    assert label_names(restored.image(B02)) == ["nuclei", saved.backup_name]


def test_labels_of_an_adopted_plate_are_saved_beside_it_and_nothing_into_it(
    index: Index, tmp_path: Path
) -> None:
    other = write_other(index, tmp_path / "theirs" / "P01.zarr", version="0.4")
    computed(adopt, tmp_path / "theirs", "P01", f"plate={other}")
    before = snapshot(other)
    with begin(index, plate=other) as session:
        first = session.keys[0]
        np.testing.assert_array_equal(
            session.open(first).images["Hoechst"],
            store.read_box(index.image(B02), 0, 0, 1, [0, 1], slice(None), slice(None)).max(0),
        )
        assert session.save(squares(3), [WHOLE]) is not None
    assert snapshot(other) == before
    image = store.open_plate(other).image(first)
    assert image.is_relative_to(beside(other))
    np.testing.assert_array_equal(read_labels(image, "nuclei"), squares(3))


def test_a_box_outside_of_a_field_or_an_unknown_field_is_told(index: Index) -> None:
    with pytest.raises(UserError, match=r"B02/1: box \(0, 0, 65, 9\) .* leaves the 64 × 64 pixels"):
        begin(index, box=(0, 0, 65, 9))
    with pytest.raises(UserError, match="D07"):
        begin(index, fields=["D07"])
    with pytest.raises(UserError, match="opens a window, and is no run"):
        plan(AnnotateRecipe(action="edit", plate=index.path, labels="nuclei"))


# ---------------------------------------------------------------- runs that write labels


def living_run(root: Path, stage: str, **recipe: object) -> Run:
    """A run whose watcher is alive, as this very process is."""
    run, me = Run(root / stage / "R1"), psutil.Process()
    (run.folder / "attempts" / "1").mkdir(parents=True)
    run.recipe.write_text(yaml.safe_dump({key: str(value) for key, value in recipe.items()}))
    watched = {
        "executor": "local",
        "host": socket.gethostname(),
        "pid": me.pid,
        "pid_started": me.create_time(),
    }
    (run.folder / "attempts" / "1" / "submission.json").write_text(json.dumps(watched))
    return run


@pytest.mark.parametrize(
    ("stage", "recipe", "refused"),
    [
        ("segment", {"labels": "nuclei"}, True),
        ("segment", {}, True),  # named after the labels that its model learnt from
        ("segment", {"labels": "cells"}, False),
        ("annotate", {"action": "import", "labels": "nuclei"}, True),
        ("annotate", {"action": "export", "labels": "nuclei"}, False),
        ("pretrain", {}, False),
    ],
)
def test_labels_that_a_living_run_may_write_are_refused(
    stage: str, recipe: dict[str, str], refused: bool, index: Index, tmp_path: Path
) -> None:
    key = "plate" if stage == "annotate" else "plates"
    living_run(tmp_path / "runs", stage, **{key: index.path}, **recipe)
    words = ["annotate", "edit", f"plate={index.path}", "labels=nuclei", f"site.runs={tmp_path / 'runs'}"]
    assert main.run_command([*words, "--dry-run"]) == (2 if refused else 0)


def test_a_run_may_begin_while_a_field_is_open_and_the_next_field_is_refused(
    index: Index, tmp_path: Path
) -> None:
    def refuse() -> None:
        uses.refuse_label_writers(index.path, "nuclei", runs)

    runs: list[Run] = []
    with begin(index, refuse) as session:
        session.open(B02)
        runs.append(living_run(tmp_path / "runs", "segment", plates=index.path, labels="nuclei"))
        with pytest.raises(UserError, match=r"may be written by segment 'R1' \(running\)"):
            session.open(B03)
        assert session.save(squares(3), [WHOLE]) is not None  # what is drawn is not lost


# ---------------------------------------------------------------- the command


def test_without_a_screen_the_other_way_is_named(
    index: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert main.run_command(["annotate", "edit", f"plate={index.path}", "labels=nuclei"]) == 2
    printed = capsys.readouterr()
    assert "2 of 2 fields" in printed.out
    assert "no screen here" in printed.err
    assert "annotate export plate=… labels=… out=todo/" in printed.err
    assert main.run_command(["annotate", "edit", f"plate={index.path}", "labels=nuclei", "--name", "E1"]) == 2
    assert "is no run" in capsys.readouterr().err


def test_without_qt_the_other_way_is_named(
    index: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setitem(sys.modules, "napari", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "hpc_isl.stages.annotate.edit_window", raising=False)
    assert main.run_command(["annotate", "edit", f"plate={index.path}", "labels=nuclei"]) == 2
    printed = capsys.readouterr().err
    assert "pip install 'hpc-isl[napari]'" in printed
    assert "annotate import todo/" in printed
