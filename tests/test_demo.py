"""The demo as `make demo` walks it, on a plate and with a budget so small that it takes seconds."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from hpc_isl.recipes.load import load, shipped
from hpc_isl.recipes.pretrain import PretrainRecipe

CHECKOUT = Path(__file__).resolve().parents[1]
PLATE = "--wells 7 --fields 1 --size 128"
PRETRAIN = (
    "data.level=0 train.steps=2 train.crop=64 train.batch=2 train.micro_batch=2 train.evaluate_every=2 "
    "split.test_wells=[B03] split.validation_wells=[B02] data.workers=0"
)
SWEEP = (
    "'over={arm: [random, random+isl], n: [1], draw: [0]}' "
    "train.steps=1 train.crop=32 train.batch=2 train.micro_batch=2"
)
SITE = "site.tracking=none site.cpus=1"


@pytest.fixture
def make(tmp_path: Path) -> list[str]:
    """`make` in an empty folder, with this environment instead of one of its own."""
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    makefile = str(CHECKOUT / "Makefile")
    return [
        "make",
        "--no-print-directory",
        "-C",
        str(tmp_path),
        "-f",
        makefile,
        "-o",
        ".venv/.ready",
        f"BIN={Path(sys.executable).parent}",
    ]


def run_all(command: list[str]) -> str:
    """What a command prints; it and all that it starts end with the test."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "HPC_ISL_RUNS"))}
    process = subprocess.Popen(
        command, env=outside, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


@pytest.mark.journey
@pytest.mark.timeout(900)
def test_make_demo_goes_from_a_vendor_export_to_scores_and_pictures(make: list[str], tmp_path: Path) -> None:
    words = {"PLATE": PLATE, "PRETRAIN": PRETRAIN, "SWEEP": SWEEP, "SITE": SITE, "TAUGHT": ""}
    output = run_all([*make, "demo", *(f"{name}={value}" for name, value in words.items())])
    demo = tmp_path / "demo"
    run = demo / "runs" / "pretrain" / "demo"
    listed = re.findall(r"^ +(\S+) {2,}\S", output.split("What was made, below demo/:")[1], re.MULTILINE)
    assert len(listed) == 12
    inside = (demo, run, demo / "runs" / "sweep" / "nuclei", demo / "runs" / "segment" / "objects")
    assert all(any((folder / path).exists() for folder in inside) for path in listed)
    pcc = json.loads((run / "done" / "pretrain.json").read_text())["figures"]["pcc"]
    assert f"Mean PCC of held-out fields:  {round(pcc, 3)}\n" in output
    assert output.splitlines()[-1].endswith("-m hpc_isl.submit ui --root demo/runs")
    with (run / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["well"], row["treatment"]) for row in rows] == [("B03", "compound A")]
    assert int(rows[0]["objects"]) > 0  # the labels were imported
    for step in (
        "stages.synthetic",
        "submit convert",
        "submit annotate import",
        "submit inspect",
        "submit pretrain",
        "submit sweep",
        "submit report",
        "submit segment",
        "submit table",
    ):
        assert f"/python -m hpc_isl.{step} " in output  # each step is echoed as a user could type it


def test_the_recipe_of_the_demo_needs_no_download_and_holds_out_one_well_of_each_treatment() -> None:
    from hpc_isl.stages.synthetic.layout import lay_out

    recipe = load("pretrain", shipped("demo.yaml"), [])
    assert isinstance(recipe, PretrainRecipe)
    assert recipe.net.weights is None
    wells = {well.name: (well.treatment, well.dose_um) for well in lay_out(24)[0]}
    tested = [wells[name] for name in recipe.split.test_wells or []]
    assert set(tested) == set(wells.values())
    assert "E07" not in (recipe.split.test_wells or [])  # its second field is empty


def test_hooks_and_continuous_integration_name_no_address() -> None:
    hooks = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}
    for name in ("Makefile", ".ci/run", "requirements.txt", "requirements-test.txt", "requirements-uv.txt"):
        assert "://" not in (CHECKOUT / name).read_text(), name
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)
