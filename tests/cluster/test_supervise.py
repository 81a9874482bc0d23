"""The watch over ranks, with ranks that are small programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_isl.cluster.supervise import Ending, Requests, Watch, start


def watched(tmp_path: Path, *programs: str, limit_s: float | None = None) -> tuple[Ending, list[str]]:
    ranks: list[subprocess.Popen[bytes]] = []
    for number, program in enumerate(programs):
        logs = [tmp_path / f"rank-{number}.log"]
        ranks += start([sys.executable, "-c", program], [os.environ], logs, tmp_path)
    said: list[str] = []
    return Watch(ranks, Requests(), said.append, limit_s).until_ended(lambda: None), said


def test_all_ranks_that_end_well_are_a_run_that_ended_well(tmp_path: Path) -> None:
    ending, _ = watched(tmp_path, "print(1)", "import time; time.sleep(0.3)")
    assert ending == Ending({0: 0, 1: 0})
    assert (tmp_path / "rank-0.log").read_text() == "1\n"


def test_the_first_to_crash_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    ending, _ = watched(tmp_path, "import time; time.sleep(60)", "raise SystemExit(5)")
    assert time.monotonic() - started < 10
    assert ending.crashed == 1
    assert ending.codes == {0: -9, 1: 5}


def test_the_time_limit_asks_before_anything_else(tmp_path: Path) -> None:
    heeds = "import signal, time; signal.signal(15, lambda *a: exit(3)); time.sleep(60)"
    ending, said = watched(tmp_path, heeds, heeds, limit_s=1)
    assert ending.codes == {0: 3, 1: 3}
    assert ending.stopped
    assert ending.crashed is None
    assert not ending.interrupted
    assert "time limit" in said[0]


def test_a_request_that_came_too_early_is_made_again(tmp_path: Path) -> None:
    starting = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(2.5)"
    late = f"{starting}; signal.signal(15, lambda *a: exit(3)); time.sleep(60)"
    ending, _ = watched(tmp_path, late, limit_s=0.1)
    assert ending.codes == {0: 3}


def test_signals_sent_twice_at_once_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests()
    with requests.listening():
        os.kill(os.getpid(), 2)
        os.kill(os.getpid(), 15)
        assert requests.times == 1
        time.sleep(0.6)
        os.kill(os.getpid(), 2)
        assert requests.times == 2
    assert requests.interrupted
