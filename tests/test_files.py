"""Folders that a group may share, and records as they are read back."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hpc_isl.cluster.preflight.doctor import doctor
from hpc_isl.cluster.run_folder import status
from hpc_isl.errors import UserError
from hpc_isl.files import among_readers, make_folder, only_writer, read_json, write_atomic
from hpc_isl.run import Run
from hpc_isl.site import Site


def test_a_folder_that_cannot_have_its_group_leaves_no_parents_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no-such-group"):
        make_folder(tmp_path / "runs" / "pretrain" / "first", "no-such-group")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/record.json'"):
        write_atomic(tmp_path / "record.json", "{}")


@pytest.mark.parametrize("content", ["", "\0" * 12])
def test_a_record_that_a_power_cut_has_emptied_is_none(tmp_path: Path, content: str) -> None:
    """A heartbeat is not written durably: the next `status` meets what is left of it."""
    run = Run(tmp_path / "count" / "one")
    run.recipe.parent.mkdir(parents=True)
    run.recipe.write_text("{}")
    (run.attempts / str(run.next_attempt()) / "rank-0.json").write_text(content)
    assert status.status_of(run).state == "lost"


def test_a_record_is_read_again_where_it_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk knows a file by its number: one that another machine has replaced is stale."""
    path, read_text = tmp_path / "record.json", Path.read_text
    path.write_text('{"exit": "now"}')
    errors = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def read(self: Path) -> str:
        if errors:
            raise errors.pop()
        return read_text(self)

    monkeypatch.setattr(Path, "read_text", read)
    assert read_json(path) == {"exit": "now"}


def test_on_a_disk_without_locks_readers_go_on_and_writers_read_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for another process that holds the lock, for ever."""

    def none(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with among_readers(tmp_path / "lock") as may_read:
        assert may_read
    no_locks = r"its disk has no file locks \(Function not implemented\)"
    with pytest.raises(UserError, match=no_locks), only_writer(tmp_path / "lock"):
        pass
    lines: list[str] = []
    assert doctor(Site(tracking="none"), tmp_path / "runs", 1.0, lines.append) == 1
    assert "  FAIL  locks " in "\n".join(lines)
