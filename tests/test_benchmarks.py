"""The scripts of benchmarks/ that are prepared for other machines run to their end, with tiny sizes."""

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


def test_what_is_prepared_for_a_gpu_prints_every_figure():
    sizes = ("--crop", "32", "--batch", "4", "--micro", "2", "--steps", "2", "--edge", "96", "--fields", "6")
    text = printed("benchmarks/gpu.py", "--encoder", "tu-test_resnet", "--budget", "20", *sizes)
    assert text.count("loop ÷ bare network") == 2  # in bf16 and fp32
    assert re.search(r"of which \d+\.\d% waits for data", text)
    assert text.count("bare forward pass: ") == 4  # alone, two at once, and the ratio
    assert re.search(r"2 bare forward passes at once: \d+\.\d fields a minute", text)
    assert re.search(r"whole stage, 1 worker\(s\), \d+ CPUs: \d+\.\d fields a minute", text)
    assert re.search(r"whole stage, 2 worker\(s\), \d+ CPUs: \d+\.\d fields a minute", text)
    assert "ended, for its time is used up" not in text


def test_planning_is_measured_and_slurm_is_asked_once_for_all_runs():
    text = printed("benchmarks/planning.py", "--runs", "5", "--plates", "2", "--wells", "3", "--fields", "2")
    assert re.search(r"segment --dry-run, 2 plates, 12 fields: \d+\.\d s", text)
    assert re.search(r"status, 5 runs: \d+\.\d+ s, \d+ MB, Slurm was asked 1 times", text)
