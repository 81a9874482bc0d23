"""When a run began and ended, as MLflow is told: by its attempts, not by submission and `sync`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from hpc_isl.cluster.run_folder.status import span
from hpc_isl.run import Attempt, Run


def at(clock: str) -> str:
    return f"2026-01-31T{clock}.000+00:00"


def ms(clock: str) -> int:
    return int(datetime.fromisoformat(at(clock)).timestamp() * 1000)


def record(run: Run, attempt: int, rank: int, start: str, beat: str, end: str | None = None) -> None:
    """What a rank leaves behind; without an end it was killed."""
    path = run.attempts / str(attempt) / f"rank-{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"rank": rank, "start": at(start), "heartbeat": at(beat)} | ({"exit": at(end)} if end else {})
    path.write_text(json.dumps(facts))


def done(run: Run, clock: str) -> None:
    run.done.mkdir(parents=True)
    (run.done / f"{run.stage}.json").write_text(json.dumps({"time": at(clock)}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "pretrain" / "S12")
    (run.attempts / "0").mkdir(parents=True)  # handed over, and in a queue
    return run


def test_a_run_that_waits_has_no_times(run: Run) -> None:
    """A user sees nothing of a queued run in MLflow, rather than a duration of its wait."""
    assert span(run) is None


def test_a_run_begins_with_its_first_rank_and_ends_with_its_done_record(run: Run) -> None:
    """A user sees the time from the first attempt's start to the end of the work; not later heartbeats."""
    record(run, 0, 0, "10:00:05", "10:00:50", "10:00:50")
    record(run, 0, 1, "10:00:03", "10:00:52", "10:00:52")
    done(run, "10:00:45")
    assert span(run) == (ms("10:00:03"), ms("10:00:45"))


def test_a_killed_run_ends_with_its_last_sign_of_life_and_a_resumed_one_with_its_last_attempt(
    run: Run,
) -> None:
    """A user sees when work stopped, also where nobody could write down the end."""
    record(run, 0, 0, "10:00:00", "10:07:00")
    assert span(run) == (ms("10:00:00"), ms("10:07:00"))
    record(run, 1, 0, "12:00:00", "12:01:00", "12:01:01")
    (run.attempts / "2").mkdir()  # asked for again, cancelled in the queue
    assert span(run) == (ms("10:00:00"), ms("12:01:01"))


def test_an_array_lasts_from_its_first_element_to_its_last(tmp_path: Path) -> None:
    """A user sees of a sweep the time in which its elements were worked on."""
    array = Run(tmp_path / "runs" / "sweep" / "nuc")
    array.folder.mkdir(parents=True)
    array.elements_file.write_text(json.dumps({"elements": ["count/a", "count/b", "count/c"]}))
    first, second, _waits = array.elements()
    assert span(array) is None
    record(first, 0, 0, "10:00:00", "10:00:30", "10:00:31")
    record(second, 0, 0, "10:00:20", "10:02:00", "10:02:01")
    assert span(array) == (ms("10:00:00"), ms("10:02:01"))


def test_figures_of_the_machine_count_their_seconds_from_the_start_of_the_work(run: Run) -> None:
    """A user sees the charts of CPU and memory begin at 0, however long the job had waited."""
    record(run, 0, 0, "10:00:00", "10:00:30", "10:00:31")
    with Attempt(run, number=1).recorded():
        assert run.began() == ms("10:00:00") / 1000
