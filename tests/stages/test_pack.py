"""A plate as one file: what it holds, who reads it, what is refused, and a kill at any moment."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from made_up_screen import write_screen

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.plate_home import beside
from hpc_isl.plates.store import (
    edited,
    label_names,
    open_level,
    open_plate,
    read_labels,
    write_labels,
)
from hpc_isl.stages.inspect import inspect, validate
from hpc_isl.stages.pack import COMMENT, pack, remove_original, unpack


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """A plate of two wells and four fields, one of which has labels."""
    index = write_screen(tmp_path / "P.zarr")
    image = index.image(index.plate.fields[0].key)
    write_labels(image, "my cells", drawn(index), origin="human", boxes=[(0, 0, 96, 128)])
    return index.path


def drawn(index, shift: int = 0) -> np.ndarray:
    labels = np.zeros(index.plate.fields[0].shape[-2:], np.uint32)
    labels[10 + shift : 20, 30:40], labels[50:60, 70:90] = 1, 2
    return labels


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_file_is_an_entry_uncompressed_groups_first_and_breadth_first(plate):
    made = pack(plate)
    with zipfile.ZipFile(made.path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        assert {name: archive.read(name) for name in names} == contents(plate)
        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
        assert json.loads(archive.comment) == COMMENT
    groups = [name for name in names if name.endswith("zarr.json")]
    assert names[: len(groups)] == groups
    assert groups[0] == "zarr.json"
    depths = [name.count("/") for name in groups]
    assert depths == sorted(depths)
    # In the file they lie as the directory lists them.
    assert [e.header_offset for e in entries] == sorted(e.header_offset for e in entries)


def test_a_packed_plate_is_valid_and_reads_like_the_folder(plate):
    packed = pack(plate).path
    assert validate(packed, deep=True) == validate(plate, deep=True) == []
    ours, theirs = open_plate(packed), open_plate(plate)
    assert ours.fingerprint == theirs.fingerprint
    for field in theirs.plate.fields:
        images = ours.image(field.key), theirs.image(field.key)
        for level in range(theirs.levels(field.key)):
            one, two = (open_level(image, level).read().result() for image in images)
            np.testing.assert_array_equal(one, two)
        assert label_names(images[0]) == label_names(images[1])
        assert ours.statistics[field.key].digest == theirs.statistics[field.key].digest
    key = theirs.plate.fields[0].key
    np.testing.assert_array_equal(read_labels(ours.image(key), "my cells"), drawn(theirs))
    assert edited(ours.image(key), "my cells") is False
    histograms = [index.histogram([key], 1).counts for index in (ours, theirs)]
    np.testing.assert_array_equal(*histograms)
    assert [line for line in inspect(packed) if str(packed) not in line] == [
        line for line in inspect(plate) if str(plate) not in line
    ]


def test_zarr_python_opens_a_packed_plate(plate):
    index = open_plate(plate)
    place = index.image(index.plate.fields[0].key).relative_to(plate)
    with zarr.storage.ZipStore(pack(plate).path, mode="r") as store:
        array = zarr.open_group(store, mode="r")[f"{place}/0"]
        expected = open_level(plate / place, 0).read().result()
        np.testing.assert_array_equal(array[...], expected)


def test_labels_made_of_a_packed_plate_lie_beside_it_and_unpacking_takes_them_along(plate):
    packed = pack(plate).path
    before = packed.read_bytes()
    index = open_plate(packed)
    first, second = (index.image(field.key) for field in index.plate.fields[:2])
    new = drawn(index, shift=3)
    write_labels(second, "found", new, origin="segmented", boxes=[(0, 0, 96, 128)], fingerprint="f")
    write_labels(first, "my cells", new, origin="human", boxes=[(0, 0, 96, 128)], overwrite=True)
    assert packed.read_bytes() == before
    assert label_names(second) == ["found"]
    np.testing.assert_array_equal(read_labels(second, "found"), new)
    np.testing.assert_array_equal(read_labels(first, "my cells"), new)
    assert beside(packed).is_dir()
    assert validate(packed) == []

    whole = unpack(packed, plate.with_name("Q.zarr")).path
    index = open_plate(whole)
    first, second = (index.image(field.key) for field in index.plate.fields[:2])
    np.testing.assert_array_equal(read_labels(second, "found"), new)
    np.testing.assert_array_equal(read_labels(first, "my cells"), new)
    assert validate(whole, deep=True) == []


def test_unpacking_gives_the_same_files(plate):
    packed, expected = pack(plate).path, contents(plate)
    remove_original(plate)
    assert not plate.exists()
    assert contents(unpack(packed).path) == expected


def test_what_exists_is_never_replaced(plate):
    packed = pack(plate).path
    content = packed.read_bytes()
    with pytest.raises(UserError, match=r"P\.ozx: exists already"):
        pack(plate)
    with pytest.raises(UserError, match=r"P\.zarr: exists already"):
        unpack(packed)
    assert packed.read_bytes() == content


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "a\\..\\outside", "C:/outside"]
)
def test_entries_that_lead_outside_are_refused_before_anything_is_written(tmp_path, name):
    path = tmp_path / "in" / "P.ozx"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", "{}")
        archive.writestr(name, "text")
    with pytest.raises(UserError, match="leads outside"):
        unpack(path)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["in", "P.ozx"]


def test_a_file_that_is_cut_short_is_named_without_a_traceback(plate, capsys):
    packed = pack(plate).path
    short = plate.with_name("short.ozx")
    short.write_bytes(packed.read_bytes()[:-500])
    for verb in ("inspect", "validate", "unpack"):
        run_command([verb, str(short)])
        printed = capsys.readouterr()
        assert "short.ozx" in printed.out + printed.err
        assert "Traceback" not in printed.out + printed.err
    assert not short.with_suffix(".zarr").exists()


def test_a_packed_plate_is_read_only_and_says_so(plate, capsys):
    packed = pack(plate).path
    before = packed.read_bytes()
    assert run_command(["set", str(packed), "pixel_um=0.3"]) == 2
    assert "a packed plate is only read" in capsys.readouterr().err
    assert packed.read_bytes() == before


def test_a_plate_that_a_run_uses_is_not_packed(plate):
    from hpc_isl.files import among_readers
    from hpc_isl.metadata_changes import LOCK

    with among_readers(plate / LOCK), pytest.raises(UserError, match="a run uses it just now"):
        pack(plate)
    assert not list(plate.parent.glob("*.ozx"))


def test_a_plate_that_changes_while_it_is_packed_is_not_packed(plate, monkeypatch):
    from hpc_isl.stages import pack as module

    def changed(path, folder, names):
        write(path, folder, names)
        shard = next(path for path in (folder / "B").rglob("*") if path.is_file() and "/c/" in str(path))
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")

    write = module._write
    monkeypatch.setattr(module, "_write", changed)
    with pytest.raises(UserError, match="changed while it was packed"):
        pack(plate)
    assert not list(plate.parent.glob("*ozx*"))


PACKING = """
import sys
from pathlib import Path
from hpc_isl.stages.pack import pack
print("begun", flush=True)
pack(Path(sys.argv[1]))
"""


def test_a_kill_at_any_moment_leaves_no_packed_plate_or_a_whole_one(plate):
    expected = contents(plate)
    target, killed = plate.with_suffix(".ozx"), 0
    for wait in (0.0, 0.02, 0.05, 0.1, 0.2):
        command = [sys.executable, "-c", PACKING, str(plate)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        if target.exists():
            with zipfile.ZipFile(target) as archive:
                assert {name: archive.read(name) for name in archive.namelist()} == expected
            target.unlink()
    assert killed
    assert pack(plate).path == target  # what kills left is out of the way
    assert sorted(path.name for path in plate.parent.iterdir()) == ["P.ozx", "P.zarr"]


def test_the_command_line_packs_removes_and_unpacks(plate, capsys):
    expected = contents(plate)
    assert run_command(["pack", str(plate), "--remove"]) == 0
    assert not plate.exists()
    assert run_command(["validate", str(plate.with_suffix(".ozx"))]) == 0
    assert run_command(["unpack", str(plate.with_suffix(".ozx")), f"out={plate.parent}/Q.zarr"]) == 0
    assert contents(plate.with_name("Q.zarr")) == expected
    shutil.rmtree(plate.with_name("Q.zarr"))
    assert "is removed" in capsys.readouterr().out
