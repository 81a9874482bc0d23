"""Runs on this machine: real processes, real signals, real kills."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import CommandLine


HERE = Path(__file__).parent
QUIET = "site.tracking=none"
LONG = ("steps=1000", "pause_s=0.2", QUIET)  # minutes, which no test waits for


def lines(command_line: CommandLine, name: str) -> list[dict[str, object]]:
    return [
        json.loads(line) for line in (command_line.folder(name) / "metrics.jsonl").read_text().splitlines()
    ]


def test_two_processes_are_one_run(command_line: CommandLine) -> None:
    done = command_line("count", "site.processes=2", QUIET, "--name", "two")
    assert done.returncode == 0, done.stdout
    records = [
        json.loads((command_line.folder("two") / f"attempts/0/rank-{r}.json").read_text()) for r in (0, 1)
    ]
    assert [(r["rank"], r["size"], r["outcome"]) for r in records] == [(0, 2, "done"), (1, 2, "done")]
    assert [line["step"] for line in lines(command_line, "two")] == [0, 1, 2], "rank 0 alone writes metrics"
    assert "counts to 3" in done.stdout.splitlines()[0], "first what will be done"
    assert "counted  3" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: "), "last what to type next"


def test_names_with_spaces_and_quotes_are_safe(command_line: CommandLine) -> None:
    name = """a "b' $HOME;c"""
    assert command_line("count", QUIET, "--name", name).returncode == 0
    assert (command_line.folder(name) / "done" / "count.json").is_file()
    assert name in command_line("status").stdout


def test_what_a_rank_says_is_shown_and_its_noise_is_not(command_line: CommandLine) -> None:
    done = command_line("count", "word=heed", QUIET)
    assert "heed" in done.stdout
    assert "submitit" not in done.stdout


def test_one_crashed_rank_ends_the_run_in_seconds(command_line: CommandLine) -> None:
    started = time.monotonic()
    done = command_line("count", *LONG, "crash_rank=1", "site.processes=3", "--name", "crash")
    assert time.monotonic() - started < 100, "200 s of counting were left"
    assert done.returncode == 1
    assert "failed in rank 1 of 3: RuntimeError: boom" in done.stdout
    assert "Traceback" not in done.stdout
    log = next(line.split()[-1] for line in done.stdout.splitlines() if "traceback" in line)
    assert 'raise RuntimeError("boom")' in Path(log).read_text()
    assert command_line.left() == []


@pytest.mark.kill
def test_a_killed_rank_ends_the_run_and_is_named(command_line: CommandLine) -> None:
    done = command_line("count", *LONG, "kill_rank=1", "site.processes=2")
    assert done.returncode == 1
    assert "rank 1 of 2: it was killed (SIGKILL)" in done.stdout
    assert command_line.left() == []


def test_a_mistake_found_in_the_job_is_one_message(command_line: CommandLine) -> None:
    done = command_line("count", "mistaken=true", "site.processes=2", QUIET)
    assert done.returncode == 2
    assert "well B03: the data are wrong" in done.stdout
    assert "Traceback" not in done.stdout


def test_no_process_outlives_a_run(command_line: CommandLine) -> None:
    assert command_line("count", "child=true", QUIET).returncode == 0
    assert command_line.left() == []


def test_ctrl_c_saves_and_resume_continues(command_line: CommandLine) -> None:
    call = command_line.open("count", *LONG, "site.processes=2", "--name", "ctrl")
    assert command_line.eventually(lambda: (command_line.folder("ctrl") / "metrics.jsonl").exists())
    os.killpg(call.pid, signal.SIGINT)
    output, _ = call.communicate(timeout=90)
    assert call.returncode == 130, output
    assert "next: python -m hpc_isl.submit resume ctrl" in output
    assert command_line.left() == []
    assert "stopped" in command_line("status").stdout

    resumed = command_line.open("resume", "ctrl")
    assert command_line.eventually(lambda: "from " in _log(command_line, "ctrl", 1))
    saved = int(_log(command_line, "ctrl", 1).split("from ")[1].split()[0])
    assert 0 < saved < 1000
    command_line("cancel", "ctrl")
    resumed.communicate(timeout=90)
    assert resumed.returncode == 3
    assert "cancelled" in command_line("status").stdout


def _log(command_line: CommandLine, name: str, attempt: int) -> str:
    log = command_line.folder(name) / "attempts" / str(attempt) / "rank-0.log"
    return log.read_text() if log.exists() else ""


def test_a_second_ctrl_c_kills_what_does_not_stop(command_line: CommandLine) -> None:
    call = command_line.open("count", *LONG, "deaf=true", "child=true", "--name", "deaf")
    assert command_line.eventually(lambda: (command_line.folder("deaf") / "metrics.jsonl").exists())
    os.killpg(call.pid, signal.SIGINT)
    time.sleep(1)
    assert call.poll() is None, "the first is a request"
    os.killpg(call.pid, signal.SIGINT)
    output, _ = call.communicate(timeout=90)
    assert call.returncode == 130
    assert "was killed" in output
    assert command_line.left() == []


@pytest.mark.kill
def test_no_orphan_is_left_when_the_command_line_is_killed(command_line: CommandLine) -> None:
    heeding = command_line.open("count", *LONG, "site.processes=2", "--name", "heeding")
    deaf = command_line.open("count", *LONG, "deaf=true", "child=true", "--name", "deaf")
    for name in ("heeding", "deaf"):
        assert command_line.eventually(
            lambda name=name: (command_line.folder(name) / "metrics.jsonl").exists()
        )
    for call in (heeding, deaf):
        call.kill()
        call.communicate()
    assert command_line.eventually(lambda: (command_line.folder("heeding") / "checkpoints").exists())
    assert command_line.eventually(lambda: command_line.left() == [], 90)
    table = command_line("status").stdout
    assert "deaf     lost" in table
    assert "heeding  stopped" in table, "it had time to save"


def test_nodes_fold_into_one_machine_with_a_notice(command_line: CommandLine) -> None:
    done = command_line("count", "site.nodes=2", QUIET, "--name", "folded")
    assert "the processes of 2 nodes run here, 2 in all" in done.stdout
    assert (command_line.folder("folded") / "attempts/0/rank-1.json").is_file()


def test_a_running_run_is_seen_followed_and_cancelled_from_elsewhere(
    command_line: CommandLine, tmp_path: Path
) -> None:
    call = command_line.open("count", *LONG, "--name", "far")
    assert command_line.eventually(lambda: (command_line.folder("far") / "metrics.jsonl").exists())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = str(command_line.cwd / "runs")
    assert "running" in command_line("status", "--root", root, cwd=elsewhere).stdout
    again = command_line("count", *LONG, "--name", "far")
    assert again.returncode == 2
    assert "is running already" in again.stdout
    assert "from 0" in command_line("logs", str(command_line.folder("far")), cwd=elsewhere).stdout
    assert "told to save" in command_line("cancel", "far", "--root", root, cwd=elsewhere).stdout
    call.communicate(timeout=90)
    assert call.returncode == 3
    assert "cancelled" in command_line("status", "--root", root, cwd=elsewhere).stdout


def test_logs_show_the_failing_ranks_traceback_first(command_line: CommandLine) -> None:
    command_line("count", "crash_rank=1", "site.processes=2", QUIET, "--name", "crash")
    shown = command_line("logs", "crash").stdout.splitlines()
    assert shown[0] == f"--- rank 1 on {socket.gethostname()} failed:"
    assert any("boom" in line for line in shown[:20])
    assert "from 0" in command_line("logs", "crash", "--rank", "0").stdout


def test_a_terminal_sees_a_bar_and_the_log_above_it(command_line: CommandLine) -> None:
    terminal, inside = pty.openpty()
    words = ["count", "steps=30", "pause_s=0.05", "word=heed", QUIET]
    call = subprocess.Popen(
        [sys.executable, str(HERE / "command_line.py"), *words],
        cwd=command_line.cwd, env=command_line.environment,
        stdin=subprocess.DEVNULL, stdout=inside, stderr=inside,
    )  # fmt: skip
    os.close(inside)
    shown = b""
    with suppress(OSError):  # how a terminal says that no one writes any more
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert call.wait() == 0
    assert b"heed" in shown
    assert re.search(rb"\d+/30 \[.* steps/s, loss 0\.\d+", shown)


def test_a_reader_that_leaves_does_not_end_the_run(command_line: CommandLine) -> None:
    call = command_line.open("count", "steps=30", "pause_s=0.05", QUIET, "--name", "unread")
    assert call.stdout is not None
    call.stdout.readline()
    call.stdout.close()
    assert call.wait(90) == 0
    assert (command_line.folder("unread") / "done" / "count.json").is_file()


def test_ctrl_c_while_following_leaves_the_run_alone(command_line: CommandLine) -> None:
    run = command_line.open("count", *LONG, "--name", "on")
    assert command_line.eventually(lambda: (command_line.folder("on") / "metrics.jsonl").exists())
    reader = command_line.open("logs", "on", "-f")
    assert reader.stdout is not None
    assert any("from 0" in line for line in reader.stdout)
    os.killpg(reader.pid, signal.SIGINT)
    output, _ = reader.communicate(timeout=90)
    assert reader.returncode == 130
    assert "'on' continues" in output
    assert run.poll() is None
    command_line("cancel", "on")
    run.communicate(timeout=90)
    assert run.returncode == 3


def test_setup_lines_and_another_python_come_before_the_rank(command_line: CommandLine) -> None:
    done = command_line("count", QUIET, "site.setup=[export HPC_ISL_GREETING=hello]", "--name", "setup")
    assert done.returncode == 0, done.stdout
    broken = command_line("count", QUIET, "site.setup=[echo no such module; exit 7]")
    assert broken.returncode == 1
    assert "ended with code 7 before it could report" in broken.stdout
