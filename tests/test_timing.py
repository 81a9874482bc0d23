"""The arithmetic of how long a run takes; how well it holds is told in docs/performance.md."""

from __future__ import annotations

import time

import pytest

from hpc_isl.tasks import END, START, Clock, Workload, estimate

WORK = Workload({}, {"micro-batches": 200, "test": 10.0, "validation": 0.0})
TIMED = {START: [20.0, 1.0], "micro-batches": [50.0, 100.0], "test": [6.0, 3.0], END: [4.0, 1.0]}


def test_processes_share_units_but_not_the_start_and_the_end() -> None:
    for processes in (1, 2, 4):
        found = estimate(WORK, [("S1", TIMED)], processes)
        assert found is not None
        assert found.seconds == {
            START: 20, "micro-batches": 100 / processes, "test": 20 / processes, END: 4,
        }  # fmt: skip
        assert found.total == 24 + 120 / processes
        assert found.sources == ("S1",)


def test_several_timed_runs_are_weighted_by_their_units() -> None:
    more = {START: [40.0, 1.0], "micro-batches": [150.0, 100.0]}
    found = estimate(WORK, [("S2", more), ("S1", TIMED)], 1)
    assert found is not None
    assert found.seconds[START] == 30
    assert found.seconds["micro-batches"] == pytest.approx(200 * 200 / 200)
    assert found.seconds["test"] == 20, "timed in one of them"


@pytest.mark.parametrize("missing", [START, "micro-batches", "test"])
def test_a_phase_that_was_never_timed_gives_no_estimate(missing: str) -> None:
    assert estimate(WORK, [("S1", {k: v for k, v in TIMED.items() if k != missing})], 1) is None
    assert estimate(WORK, [], 1) is None


def test_a_phase_that_a_run_does_not_have_need_not_be_timed() -> None:
    assert estimate(Workload({}, {"test": 0.0}), [("S1", {START: [3.0, 1.0]})], 1) is not None


def test_a_clock_accounts_for_every_second_between_the_first_unit_and_the_last_tick() -> None:
    """The very first unit belongs to the start, and the first of each phase is left out where there are
    others: both are slower, for what is loaded and compiled."""
    clock = Clock()
    assert clock.lasted_s == 0
    clock.tick("steps", 2)
    first = time.monotonic()
    for _ in range(4):
        time.sleep(0.01)
        clock.tick("steps", 2)
    clock.tick("test", 5.0)
    clock.tick(END, 1)
    assert clock.lasted_s > 0
    timed = clock.timed()
    assert {phase: units for phase, (_, units) in timed.items()} == {START: 1, "steps": 6, "test": 5, END: 1}
    spent = sum(s for phase, (s, _) in timed.items() if phase != START) + clock.firsts["steps"][0]
    assert spent == pytest.approx(time.monotonic() - first, rel=0.5, abs=0.05)
