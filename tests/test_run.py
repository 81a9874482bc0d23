"""The run folder: attempts, records, metrics, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from eventually import eventually
from mounts import small_disk

from hpc_isl import run
from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.run import Attempt, Run


@pytest.fixture
def folder(tmp_path: Path) -> Run:
    return Run(tmp_path / "count" / "one")


def record(attempt: Attempt) -> dict[str, object]:
    return dict(json.loads(attempt.path.read_text()))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file.txt"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path], "no partial file is left"


def test_files_have_the_rights_that_the_users_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_attempts_are_numbered_so_that_no_two_get_the_same(folder: Run) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(folder.next_attempt())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8)) == folder.attempt_numbers()


def test_a_disk_that_is_full_to_the_end_hides_no_error(tmp_path: Path) -> None:
    attempt = Attempt(Run(tmp_path / "disk" / "count" / "one"))

    def fails() -> None:
        with attempt.recorded():
            with suppress(OSError):
                (tmp_path / "disk" / "filler").write_bytes(bytes(2**21))
            raise ArithmeticError("the first")

    with small_disk(tmp_path / "disk", "1m"), pytest.raises(ArithmeticError, match="the first"):
        fails()


def test_an_attempt_records_start_heartbeat_and_end(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEARTBEAT_S", 0.02)
    attempt = Attempt(folder, number=2, rank=1, size=3)
    with attempt.recorded():
        first = record(attempt)["heartbeat"]
        time.sleep(0.1)
        assert record(attempt)["heartbeat"] > first  # type: ignore[operator]
        assert "exit" not in record(attempt)
    found = record(attempt)
    assert (found["rank"], found["size"], found["attempt"], found["outcome"]) == (1, 3, 2, "done")
    assert found["exit"]


def test_an_error_in_system_metrics_does_not_end_the_heartbeat(
    folder: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without a heartbeat would be taken for lost. That the figures are missing is said once."""
    monkeypatch.setattr(run, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(run, "SYSTEM_METRICS_S", 0.0)
    asked: list[int] = []

    def system_metrics() -> dict[str, float]:
        asked.append(0)
        if len(asked) < 3:
            raise AttributeError("partially initialized module 'torch' has no attribute 'cuda'")
        return {"system/cpu_percent": 7.0}

    attempt = Attempt(folder)
    with attempt.recorded(system_metrics):
        first = record(attempt)["heartbeat"]
        assert eventually(lambda: list(folder.metric_lines()), 30), "later they are there again"
        assert eventually(lambda: record(attempt)["heartbeat"] > first, 30)  # type: ignore[operator]
    assert record(attempt)["outcome"] == "done"
    captured = capsys.readouterr()
    assert captured.out.count("no figures of the machine: AttributeError: partially") == 1
    assert captured.err == "", "no traceback"


def test_a_failure_and_a_user_error_have_different_outcomes(folder: Run) -> None:
    attempt = Attempt(folder)
    with pytest.raises(RuntimeError), attempt.recorded():
        raise RuntimeError("boom")
    assert record(attempt)["outcome"] == "failed"
    assert record(attempt)["message"] == "RuntimeError: boom"
    assert "Traceback" in str(record(attempt)["traceback"])
    with pytest.raises(UserError), attempt.recorded():
        raise UserError("well B03 is not there")
    assert record(attempt)["outcome"] == "mistake"
    assert record(attempt)["message"] == "well B03 is not there"


def test_a_run_that_ended_early_is_stopped_and_one_with_its_record_is_done(folder: Run) -> None:
    attempt = Attempt(folder)
    attempt.stopping.set()
    with attempt.recorded():
        pass
    assert record(attempt)["outcome"] == "stopped"
    with attempt.recorded():
        attempt.finish({"pcc": 0.9})
    assert record(attempt)["outcome"] == "done"
    assert (folder.summary() or {})["pcc"] == 0.9


def test_the_last_progress_is_in_the_record(folder: Run) -> None:
    attempt = Attempt(folder)
    with attempt.recorded():
        for step in range(1, 2001):
            attempt.progress(step, 2000, "steps", loss=0.5)
        progress = record(attempt)["progress"]
    assert progress == {"done": 2000, "total": 2000, "unit": "steps", "metrics": {"loss": 0.5}}


def test_rank_0_alone_logs_measures_and_finishes(folder: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        attempt = Attempt(folder, rank=rank, size=2)
        attempt.log(f"rank {rank}\nagain")
        attempt.metric(3, loss=rank)
        attempt.finish({"by": rank})
    output = capsys.readouterr().out.splitlines()
    assert [line[8:] for line in output] == ["  rank 0", "  again"]
    assert [line["values"] for line in folder.metric_lines()] == [{"loss": 0}]
    assert (folder.summary() or {})["by"] == 0


def test_a_torn_last_line_of_metrics_is_passed_over(folder: Run) -> None:
    attempt = Attempt(folder)
    attempt.metric(1, loss=0.5)
    with folder.metrics.open("a") as stream:
        stream.write('{"step": 2, "val')
    assert [line["step"] for line in folder.metric_lines()] == [1]
    resumed = Attempt(folder, number=1)
    with resumed.recorded():
        resumed.metric(2, loss=0.4)
    assert [line["step"] for line in folder.metric_lines()] == [1, 2]


def test_system_metrics_join_the_metrics(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc_isl.cluster.run_folder.job import system_metrics

    monkeypatch.setattr(run, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(run, "SYSTEM_METRICS_S", 0.05)
    with Attempt(folder).recorded(system_metrics):
        time.sleep(0.3)
    lines = list(folder.metric_lines())
    assert lines
    assert 0 < lines[0]["values"]["system/memory_gb"] < 1e5
    assert 0 <= lines[0]["values"]["system/cpu_percent"] <= 100
