"""The scripts of benchmarks/ run to their end, with tiny sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def printed(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_planning_is_measured_and_slurm_is_asked_once_for_all_runs():
    text = printed("benchmarks/planning.py", "--runs", "5", "--plates", "2", "--wells", "3", "--fields", "2")
    for what in (
        "segment --dry-run, 2 plates",
        "until fields are handed out, 2 plates",
        "status, 5 runs, done",
    ):
        assert re.search(rf"{what} +\d+\.\d\d +\d+\.\d\d +\d+\n", text)
    assert re.findall(r"Slurm was asked (\d) times", text) == ["1", "0"], (
        "of runs that are done it is not asked"
    )


@pytest.mark.journey
def test_no_file_of_a_run_that_is_done_is_of_one_field():
    """However many fields a plate has, it is one file when it is packed, and two of its run."""
    text = printed("benchmarks/files.py")
    added = {line[:43].strip(): line[43:].split() for line in text.splitlines()[1:]}
    assert added["the run"][1:3] == ["2.0", "0.0"]
    assert added["packed plates and the run"][1:3] == ["3.0", "0.0"]
    assert added["the run, with files of each field"][1:3] == ["1.0", "2.0"]


def test_each_part_of_the_script_for_gpus_keeps_to_its_share_of_the_time():
    """What is not done by then is ended, and says so; the parts after it have their own share."""
    text = printed("benchmarks/gpu.py", "--small", "--minutes", "0.7")
    for part in ("pretrain bf16", "pretrain fp32", "bare network"):
        assert re.search(rf"^{part}[,:] .*(ms a field|s a step|ended after its \d+ s)", text, re.MULTILINE), (
            text
        )
    for part, workers in (("one worker", 1), ("two workers", 2)):
        assert f"segment, {workers} worker processes: " in text or f"{part}: ended after its " in text
    assert "failed" not in text
