"""Changes of metadata: as if the plate had been converted so; all of it or nothing, whenever killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from eventually import eventually

from hpc_isl.errors import UserError
from hpc_isl.files import among_readers
from hpc_isl.metadata_changes import changes_of, metadata_changed
from hpc_isl.plates import atomic_directory, change_metadata, index_table
from hpc_isl.plates.plate import Channel, FieldKey, Plate
from hpc_isl.plates.store import annotation, open_plate, read_labels, rebuild_index, write_labels

B02 = FieldKey("B02", "1")
SHAPE = (1, 2, 3, 70, 90)
MakePlate = Callable[..., tuple[Any, Any]]
WRONG = (Channel("w1", color="00FF00"), Channel("w2", color="0000FF"))
RIGHT = (Channel("Phase", fluorescent=False), Channel("DAPI", color="0000FF"))
PLANES = {
    "planes": {"w1": [0, 1, 2], "w2": [0]},
    "z_um": {"w1": [0.0, 1.0, 2.0], "w2": [0.0]},
    "projections": {"w2": "Maximum"},
}


def named(details: Any) -> dict[str, Any]:
    return json.loads(json.dumps(details).replace("w1", "Phase").replace("w2", "DAPI"))


def mended(plate: Plate, pixel_um: float | None = 0.325) -> Plate:
    return replace(plate, pixel_um=pixel_um, channels=RIGHT)


def with_labels(index: Any) -> Any:
    """A person's labels on the first field."""
    pixels = np.zeros((70, 90), np.uint32)
    pixels[10:20, 10:30] = 7
    write_labels(index.image(B02), "my nuclei", pixels, origin="human", boxes=[(0, 0, 40, 40)])
    return index


def with_labels_of_ngio(index: Any) -> Any:
    from ngio import open_ome_zarr_container

    open_ome_zarr_container(str(index.image(B02))).derive_label("theirs")
    return index


def contents(plate: Path) -> dict[str, Any]:
    """Every file; the plate's own without the time at which it was changed."""
    found: dict[str, Any] = {
        str(p.relative_to(plate)): p.read_bytes() for p in plate.rglob("*") if p.is_file()
    }
    for name in (atomic_directory.LOCK, atomic_directory.UNFINISHED):
        found.pop(name, None)
    own = json.loads(found["zarr.json"])
    for one in own["attributes"]["hpc_isl"].get("changes", []):
        one.pop("time")
    return found | {"zarr.json": own}


@pytest.fixture
def wrong(make_plate: MakePlate, tmp_path: Path) -> Any:
    """A plate as converted with nanometres for micrometres, and with nothing said of its channels."""
    index, _ = make_plate(SHAPE, SHAPE, channels=WRONG, pixel_um=325.0, position_um=None)
    return with_labels(index)


# ---------------------------------------------------------------- what becomes of the plate


def test_it_is_then_as_if_it_had_been_converted_so(
    wrong: Any, make_plate: MakePlate, tmp_path: Path, judge: Callable[[Path], None]
) -> None:
    """All files hold what a conversion with the right values would have written, and one thing more: what
    was there before."""
    right, _ = make_plate(
        SHAPE, SHAPE, channels=RIGHT, pixel_um=0.325, position_um=None, path=tmp_path / "right" / "P01.zarr"
    )
    with_labels(right)
    index = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    assert index.plate == right.plate
    judge(index.path)
    ours, fresh = contents(index.path), contents(right.path)
    table = index_table.FILE
    assert pq.read_table(index.path / table).drop_columns([]).equals(pq.read_table(right.path / table))
    (kept,) = ours["zarr.json"]["attributes"]["hpc_isl"].pop("changes")
    assert kept["former"]["pixel_um"] == 325
    assert [channel["name"] for channel in kept["former"]["channels"]] == ["w1", "w2"]
    assert kept["user"] == "me"
    for name in ours.keys() - {table}:
        assert ours[name] == fresh[name], name


def test_labels_of_all_programs_are_placed_on_the_image_again(wrong: Any) -> None:
    from ngio import open_ome_zarr_container

    with_labels_of_ngio(wrong)
    index = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    container = open_ome_zarr_container(str(index.image(B02)))
    assert container.get_image().pixel_size.yx == (0.325, 0.325)
    for name in container.list_labels():
        for path in ("0", "1", "2"):
            size = container.get_label(name, path=path).pixel_size
            assert size.yx == pytest.approx((0.325 * 2 ** int(path),) * 2), name
    assert annotation(index.image(B02), "my nuclei") == ("human", [(0, 0, 40, 40)])
    assert read_labels(index.image(B02), "my nuclei").max() == 7


def test_facts_by_channel_follow_the_channels_names(make_plate: MakePlate) -> None:
    index, _ = make_plate(SHAPE, channels=WRONG, details={"channels": {"w1": {"Gain": "2"}}})
    field = replace(index.plate.fields[0], details=PLANES)
    plate = change_metadata.plate_of(replace(index.plate, fields=(field,)), index.plate, mended(index.plate))
    assert plate.fields[0].details == named(PLANES)
    assert plate.details == {"channels": {"Phase": {"Gain": "2"}}}


def test_the_centre_of_a_field_stays_where_the_stage_was(make_plate: MakePlate) -> None:
    index, _ = make_plate(SHAPE, channels=WRONG, pixel_um=0.5, position_um=(-120.5, 33.0))
    changed = change_metadata.change_metadata(index, mended(index.plate), "me")
    for before, after, length in zip((-120.5, 33.0), changed.field(B02).position_um, (70, 90), strict=True):
        assert before + (length - 1) / 2 * 0.5 == pytest.approx(after + (length - 1) / 2 * 0.325, abs=1e-4)


def test_a_plate_that_is_set_back_is_the_one_it_was(wrong: Any) -> None:
    """Runs of before are then whole again: the fingerprint is theirs."""
    before = contents(wrong.path)
    changed = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    assert changed.fingerprint != wrong.fingerprint
    back = change_metadata.change_metadata(changed, wrong.plate, "me")
    assert back.fingerprint == wrong.fingerprint
    after = contents(wrong.path)
    after["zarr.json"]["attributes"]["hpc_isl"].pop("changes")
    assert after == before


def test_each_of_its_values_changes_the_fingerprint(wrong: Any) -> None:
    seen = {wrong.fingerprint}
    for plate in (
        replace(wrong.plate, pixel_um=0.325),
        replace(wrong.plate, pixel_um=None),
        replace(wrong.plate, channels=(WRONG[0], RIGHT[1])),
        replace(wrong.plate, channels=(replace(WRONG[0], fluorescent=False), WRONG[1])),
    ):
        copy = wrong.path.with_name("copy.zarr")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(wrong.path, copy)
        seen.add(change_metadata.change_metadata(open_plate(copy), plate, "me").fingerprint)
    assert len(seen) == 5


def test_a_rebuilt_index_contains_the_change(wrong: Any) -> None:
    index = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    assert rebuild_index(index.path) == index


def test_a_channels_former_name_is_answered_with_the_present_one(wrong: Any) -> None:
    index = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    with pytest.raises(
        UserError, match=r"has no channel 'w2'; it is called 'DAPI' since .* metadata changed"
    ):
        index.channel("w2")


def test_what_was_computed_before_a_change_is_recognised(wrong: Any) -> None:
    index = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    (line,) = metadata_changed([index.path], [wrong.fingerprint, "of a model"])
    assert line.startswith("metadata of P01 changed: pixel_um: 325 -> 0.325; channel 'w1' -> 'Phase'")
    assert metadata_changed([index.path], [index.fingerprint]) == []
    assert metadata_changed([index.path], ["of another plate"]) == []
    assert changes_of(index.path) == index.changes


def test_a_channel_is_shown_in_the_colour_that_a_person_gave_it(wrong: Any) -> None:
    """What someone has set in a viewer is not ours to change."""
    path = wrong.image(B02) / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["ome"]["omero"]["channels"][0] |= {"color": "ABCDEF", "label": "my phase"}
    path.write_text(json.dumps(content))
    index = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    shown = json.loads((index.image(B02) / "zarr.json").read_text())["attributes"]["ome"]["omero"]["channels"]
    assert (shown[0]["color"], shown[0]["label"], shown[1]["label"]) == ("ABCDEF", "my phase", "DAPI")


def test_labels_without_a_position_prevent_the_change(wrong: Any) -> None:
    """Half of the labels on the new grid and half on the old one would be a mixture; they are named."""
    folder = wrong.image(B02) / "labels" / "odd"
    folder.mkdir()
    (folder / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    before = contents(wrong.path)
    with pytest.raises(UserError, match="labels/odd: these labels of another program do not say where"):
        change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    assert contents(wrong.path) == before


# ---------------------------------------------------------------- in use


def test_a_plate_that_is_used_is_not_changed(wrong: Any) -> None:
    before = contents(wrong.path)
    with (
        among_readers(wrong.path / atomic_directory.LOCK),
        pytest.raises(UserError, match="a run uses it just now"),
    ):
        change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    assert contents(wrong.path) == before
    change_metadata.change_metadata(wrong, mended(wrong.plate), "me")


def test_a_plate_opened_during_a_change_is_seen_as_before_or_after_it(wrong: Any) -> None:
    new = change_metadata.change_metadata(wrong, mended(wrong.plate), "me")
    old = change_metadata.change_metadata(new, wrong.plate, "me")
    both = {(("w1", "w2"), old.fingerprint), (("Phase", "DAPI"), new.fingerprint)}
    ended, seen = threading.Event(), []

    def look() -> None:
        while not ended.is_set():
            index = open_plate(wrong.path)
            seen.append((tuple(c.name for c in index.plate.channels), index.fingerprint))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(look)
        for plate in [mended(wrong.plate), wrong.plate] * 5:
            before = len(seen)
            assert eventually(lambda before=before: len(seen) > before + 2 or reader.done())
            change_metadata.change_metadata(open_plate(wrong.path), plate, "me")
        ended.set()
        reader.result()
    assert set(seen) == both


# ---------------------------------------------------------------- killed

KILLED = """
import os, shutil, signal, sys
from dataclasses import replace
from pathlib import Path
from hpc_isl.plates import change_metadata, ngff
from hpc_isl.plates.plate import Channel
from hpc_isl.plates.store import open_plate

plate, folder = map(Path, sys.argv[1:])
channels = (Channel("Phase", fluorescent=False), Channel("DAPI", color="0000FF"))

def mend(copy):
    index = open_plate(copy)
    change_metadata.change_metadata(index, replace(index.plate, pixel_um=0.325, channels=channels), "me")

def killed_at(step, call, copy):
    # Whether a process of its own was killed at its file operation of this number, or had fewer of them.
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [step]

    def look(event, arguments):
        writes = event == "open" and arguments[1] == "w"
        if writes or event in ("os.rename", "os.remove"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    call(copy)
    os._exit(0)

step = 1
while True:
    copy = folder / str(step) / "P01.zarr"
    shutil.copytree(plate, copy)
    if not killed_at(step, mend, copy):
        break
    if step % 3 == 0:
        killed_at(1 + step // 3 % 3, open_plate, copy)  # who brings it to its end is killed too
    step += 1
"""


def test_a_kill_between_any_two_steps_leaves_the_old_plate_or_the_new_one(wrong: Any, tmp_path: Path) -> None:
    """Killed before each of its steps in turn, the plate opens as it was, up to some step, and from there on
    as it was to become; what lies on disk then is one of the two to the byte, with nothing left over but what
    was to be the journal, which `validate` names and the next change overwrites."""
    with_labels_of_ngio(wrong)
    subprocess.run([sys.executable, "-c", KILLED, str(wrong.path), str(tmp_path / "killed")], check=True)
    copies = sorted((tmp_path / "killed").iterdir(), key=lambda folder: int(folder.name))
    old, new = contents(wrong.path), contents(copies[-1] / "P01.zarr")
    outcomes = []
    for copy in copies:
        open_plate(copy / "P01.zarr")
        found = contents(copy / "P01.zarr")
        assert found in (old, new), copy.name
        outcomes.append("new" if found == new else "old")
    files = 1 + 2 + 2 + 1  # the plate, two images, labels of two programs, the index
    before = outcomes.index("new")
    assert before > files + 2, "each is written, and the journal twice"
    assert len(outcomes) - before > files, "each takes its place"
    assert outcomes == ["old"] * before + ["new"] * (len(outcomes) - before)


def test_a_full_disk_leaves_the_plate_as_it_was(wrong: Any, tmp_path: Path) -> None:
    before = contents(wrong.path)

    def fails() -> bytes:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"), atomic_directory.unused(wrong.path):
        atomic_directory.replace_together(wrong.path, [("zarr.json", lambda: b"{}"), ("B/zarr.json", fails)])
    assert contents(wrong.path) == before
