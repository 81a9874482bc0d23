"""The watch over ranks, with ranks that are small programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_isl.cluster.executors.local import StopRequests, Watch, start
from hpc_isl.cluster.run_folder.job import Ending


def watched(tmp_path: Path, *programs: str, limit_s: float | None = None) -> tuple[Ending, list[str]]:
    """How the watch over these programs ends, begun once each has printed something."""
    ranks: list[subprocess.Popen[bytes]] = []
    logs = [tmp_path / f"rank-{number}.log" for number in range(len(programs))]
    for program, log in zip(programs, logs, strict=True):
        ranks += start([sys.executable, "-u", "-c", program], [os.environ], [log], tmp_path)
    while not all(log.stat().st_size for log in logs):
        time.sleep(0.05)
    said: list[str] = []
    return Watch(ranks, StopRequests(), said.append, limit_s).until_ended(lambda: None), said


WAITS = "import time; print(1); time.sleep(600)"
HEEDS = "import signal, time; signal.signal(15, lambda *a: exit(3)); print(1); time.sleep(600)"


def test_all_ranks_that_end_well_are_a_run_that_ended_well(tmp_path: Path) -> None:
    ending, _ = watched(tmp_path, "print(1)", "import time; print(1); time.sleep(0.3)")
    assert ending == Ending({0: 0, 1: 0})
    assert (tmp_path / "rank-0.log").read_text() == "1\n"


def test_the_first_to_crash_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    ending, _ = watched(tmp_path, WAITS, "print(1); raise SystemExit(5)")
    assert ending.crashed == 1
    assert ending.codes == {0: -9, 1: 5}


def test_the_time_limit_asks_before_anything_else(tmp_path: Path) -> None:
    ending, said = watched(tmp_path, HEEDS, HEEDS, limit_s=0.1)
    assert ending.codes == {0: 3, 1: 3}
    assert ending.stopped
    assert ending.crashed is None
    assert not ending.interrupted
    assert "time limit" in said[0]


def test_a_request_that_came_too_early_is_made_again(tmp_path: Path) -> None:
    deaf_at_first = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(2.5)"
    ending, _ = watched(tmp_path, f"{deaf_at_first}; {HEEDS}", limit_s=0.1)
    assert ending.codes == {0: 3}


def test_a_niceness_that_the_user_chose_is_kept(tmp_path: Path) -> None:
    """Also where the kernel shares CPUs out by session: the ranks stay in the user's."""
    program = "import os; print(os.getsid(0), os.getpgid(0) == os.getpid())"
    watched(tmp_path, program)
    assert (tmp_path / "rank-0.log").read_text().split() == [str(os.getsid(0)), "True"]


def test_signals_sent_twice_at_once_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = StopRequests()
    with requests.listening():
        os.kill(os.getpid(), 2)
        os.kill(os.getpid(), 15)
        assert requests.times == 1
        time.sleep(0.6)
        os.kill(os.getpid(), 2)
        assert requests.times == 2
    assert requests.interrupted
