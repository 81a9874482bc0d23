"""The tutorial as a reader walks it: every command of its page, on a small plate and with few steps."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = (CHECKOUT / "docs" / "tutorial.md").read_text()
# What makes it short: words of the page, and what they are here.
SHORTER = {
    "hpc_isl.stages.synthetic ": "hpc_isl.stages.synthetic --wells 7 --fields 1 --size 128 ",
    " fields=[B02,B03,B04,B05,B06,B07,C02,C03,C04,C05,C06,C07,D02,D03,D04,D05,D06,D07]": "",
    "B02,2,a bubble": "C02,1,a bubble",
    "{steps: 100, batch: 8, micro_batch: 8, crop: 96}": "{steps: 2, batch: 2, micro_batch: 2, crop: 64}",
}
# Words behind the command of a verb.
FEWER_STEPS = """
H() {
  case $1 in
    pretrain) set -- "$@" data.level=0 train.steps=2 train.crop=64 train.batch=2 train.micro_batch=2 \
      train.evaluate_every=2 split.test_wells=[B03] split.validation_wells=[B02] data.workers=0 ;;
    sweep) set -- "$@" 'over={arm: [random, random+isl], n: [1], draw: [0]}' train.steps=1 train.crop=32 \
      train.batch=2 train.micro_batch=2 ;;
  esac
  case $1 in
    inspect | overview | table | report) ;;
    *) set -- "$@" site.tracking=none site.cpus=1 ;;
  esac
  python -m hpc_isl.submit "$@"
}
"""


@pytest.mark.journey
@pytest.mark.timeout(1800)
def test_every_command_of_the_tutorial_runs_in_turn(tmp_path: Path) -> None:
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```") / 2
    (tmp_path / "docs").symlink_to(CHECKOUT / "docs")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "MPLBACKEND": "agg"}
    env["HPC_ISL_RUNS"] = re.search(r"^export HPC_ISL_RUNS=(\S+)$", PAGE, re.MULTILINE)[1]

    def run(language: str, code: str) -> subprocess.CompletedProcess[str]:
        command = (
            ["bash", "-e", "-c", FEWER_STEPS + code] if language == "bash" else [sys.executable, "-c", code]
        )
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    shown = next(code for _, code in blocks if "--dry-run" in code)  # the page shows how it is refused
    for language, code in blocks:
        if code.startswith("alias"):
            continue
        for words, shorter in SHORTER.items():
            code = code.replace(words, shorter)
        done = run(language, code)
        if code == shown:
            assert done.returncode == 2
            refusal = re.sub(r"\s+", " ", done.stderr)
            quoted = re.sub(
                r"\s+",
                " ",
                re.search(r"^> (.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)[1].replace("\n> ", " "),
            )
            for part in quoted.split("…"):
                assert part.strip(" ’'.") in refusal
        else:
            assert done.returncode == 0, code + done.stdout + done.stderr
    tutorial = tmp_path / "tutorial"
    for name, wells in (("u2os.csv", 4), ("wells.csv", 7), ("wells2.csv", 7)):
        with (tutorial / name).open() as stream:
            assert len(list(csv.DictReader(stream))) == wells
    assert (tutorial / "doses.png").stat().st_size > 1000
    assert (tutorial / "runs" / "sweep" / "nuc" / "report" / "report.html").is_file()
