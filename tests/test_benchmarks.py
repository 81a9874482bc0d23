"""The scripts of benchmarks/ that are prepared for other machines run to their end, with tiny sizes."""

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


FIGURES = {
    "step": (r"bf16, CPU(.|\n)*loop ÷ bare network(.|\n)*fp32, CPU(.|\n)*loop ÷ bare network: \d",),
    "waiting": (r"of which \d+\.\d% waits for data",),
    "segment": (
        r"whole stage, 1 worker\(s\), \d+ CPUs: \d+\.\d fields a minute",
        r"bare forward pass: \d+\.\d\d\n",
    ),
    "sharing": (r"2 bare forward passes at once: \d+\.\d fields", r"2 worker\(s\), \d+ CPUs: \d+\.\d fields"),
}


@pytest.mark.parametrize("part", FIGURES)
def test_what_is_prepared_for_a_gpu_prints_every_figure(part):
    sizes = ("--crop", "64", "--batch", "4", "--micro", "2", "--steps", "1", "--edge", "96", "--fields", "6")
    more = ("--encoder", "tu-test_resnet", "--budget", "4", "--parts", part)
    text = printed("benchmarks/gpu.py", *sizes, *more)
    for figure in FIGURES[part]:
        assert re.search(figure, text), text
    assert "ended, for its time is used up" not in text


def test_planning_is_measured_and_slurm_is_asked_once_for_all_runs():
    text = printed("benchmarks/planning.py", "--runs", "5", "--plates", "2", "--wells", "3", "--fields", "2")
    assert re.search(r"segment --dry-run, 2 plates, 12 fields: \d+\.\d s", text)
    assert re.search(r"status, 5 runs: \d+\.\d+ s, \d+ MB, Slurm was asked 1 times", text)
