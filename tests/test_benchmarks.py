"""The scripts of benchmarks/ run to their end, with tiny sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert re.search(r"segment --dry-run, 2 plates, 12 fields: \d+\.\d s", text)
    assert re.search(r"status, 5 runs: \d+\.\d+ s, \d+ MB, Slurm was asked 1 times", text)
