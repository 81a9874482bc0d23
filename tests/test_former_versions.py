"""What an earlier version has left opens, resumes, reports and segments; its keys are refused by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from field_files import records
from former_version import unpack
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.learning.network.contract import CONTRACT, read_contract
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.load import (
    FORMER_KEYS,
    RECIPES,
    digest,
    former_keys,
    load,
    load_kept,
    present_keys,
)
from hpc_isl.run import Run

FIELD = FieldKey("B04", "1")
SEGMENT = (
    "segment", "model=cells", "plates=[plate.zarr]", "labels=found", "outputs=[labels, mask]", "h_maxima=4",
    "empty_fields=segment", "reference_labels={labels: cells}", "max_pixels_in_memory=1000000",
    "block_size=64",
    "--name", "objects", "site.cpus=1", "site.tracking=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("former"))


def submit(folder: Path, *words: str, code: int = 0) -> str:
    """Returns what a command prints that ends with this code."""
    command = [sys.executable, "-m", "hpc_isl.submit", *words]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == code, made.stdout + made.stderr
    return made.stdout + made.stderr


def record(folder: Path) -> dict[str, Any]:
    return next(own for name, own in records(folder).items() if name.endswith(" B04-1"))


def test_a_plate_opens_with_its_fingerprint(folder: Path) -> None:
    summary = read_json(next((folder / "runs" / "convert").glob("*/done/convert.json"))) or {}
    index = store.open_plate(folder / "plate.zarr")
    assert index.fingerprint == summary["fingerprint"]
    assert store.read_labels(index.image(FIELD), "cells").any()


def test_a_kept_recipe_has_the_digest_that_it_was_recorded_with(folder: Path) -> None:
    elements = Run(folder / "runs" / "sweep" / "cells").elements()
    assert len(elements) == 3
    for run in elements:
        inputs = (read_json(run.record) or {})["inputs"]
        contract = read_json(run.model / CONTRACT) or {}
        assert digest(load_kept(run.stage, run.recipe), inputs) == contract["digest"]


def test_a_segmentation_resumes_under_the_new_keys_to_the_same_labels(folder: Path) -> None:
    """Of four fields one is missing: it alone is computed, and equals what the earlier version computed."""
    run, whole = folder / "runs" / "segment" / "objects", folder / "whole"
    before = records(run)
    assert "resume objects" in submit(folder, *SEGMENT, code=2), "typed again it is the same run, not another"
    submit(folder, "resume", "objects")
    after = records(run)  # seconds that a field took are in its record
    assert {name.split()[1] for name in after if after[name] != before.get(name)} == {"B04-1"}
    assert record(run)["hash"] == record(whole)["hash"]
    assert record(run)["fingerprint"] == record(whole)["fingerprint"]


def test_a_training_resumes_from_its_checkpoint_to_the_same_weights(folder: Path) -> None:
    """To the bit where the CPU rounds as the recorded one did, else to those of the same training anew."""
    runs = folder / "runs" / "pretrain"
    before = torch.load(runs / "isl" / "checkpoints" / "step-00000002.pt", weights_only=True)["network"]
    shutil.copytree(runs / "isl", runs / "anew", ignore=shutil.ignore_patterns("step-*", "metrics.jsonl"))
    for name in ("isl", "anew"):
        submit(folder, "resume", name, "--wait")
    resumed, anew = (load_file(runs / name / "model" / "weights.safetensors") for name in ("isl", "anew"))
    learnt = max(float((resumed[name] - before[name]).abs().max()) for name in resumed)
    off = max(float((resumed[name] - anew[name]).abs().max()) for name in resumed)
    assert off < learnt / 1000, f"{off} from the same training anew, of {learnt} that two steps learn"
    recorded = (read_json(folder / "whole" / "isl-contract.json") or {})["weights"]
    if read_contract(runs / "anew" / "model").weights == recorded:
        assert read_contract(runs / "isl" / "model").weights == recorded


def test_a_sweep_reports_and_its_runs_are_listed(folder: Path) -> None:
    assert "random+isl" in submit(folder, "report", "cells")
    assert "objects" in submit(folder, "status")
    assert "h_maxima" not in (folder / "runs" / "sweep" / "cells" / "recipe.yaml").read_text()


def test_a_model_predicts(folder: Path) -> None:
    import hpc_isl

    model = hpc_isl.load_model(folder / "runs" / "sweep" / "cells")
    field = hpc_isl.open_plate(folder / "plate.zarr")["B04/1"]
    assert model.contract.task.h_maxima == 5
    assert np.isfinite(model.predict(field.read("Brightfield")[None, None])).all()


@pytest.mark.parametrize("stage", sorted(FORMER_KEYS))
def test_each_former_key_is_refused_with_its_new_name(stage: str) -> None:
    for old, new in FORMER_KEYS[stage].items():
        with pytest.raises(UserError, match=rf"{old}: is called {new} now"):
            load(stage, None, [f"{old}=1"])


@pytest.mark.parametrize("stage", sorted(FORMER_KEYS))
def test_the_table_names_keys_and_values_that_there_are(stage: str) -> None:
    kind = RECIPES[stage]
    for key in FORMER_KEYS[stage].values():
        head, _, rest = key.partition(".")
        owner = kind if not rest else type(kind.model_fields[head].default)
        assert (rest or head) in owner.model_fields


values = st.sampled_from(["zero", "segment", "watershed", "reference", 1, None, [1, 2]])
contents = st.dictionaries(
    st.sampled_from(["outputs", "empty_fields", "h_maxima", "fields", "reference_labels"]),
    values | st.dictionaries(st.sampled_from(["labels", "sigma"]), values),
)


@given(contents)
def test_a_recipe_is_the_same_after_the_way_there_and_back(content: dict[str, Any]) -> None:
    assert present_keys("segment", former_keys("segment", content)) == content


@pytest.mark.parametrize(
    ("words", "before"), [([], "e83cd3acb436930e"), (["measure=[DAPI]"], "90e4d90b2a26702b")]
)
def test_what_was_measured_before_counts_could_be_corrected_keeps_its_digest(
    words: list[str], before: str
) -> None:
    """`measure` was a list of channels then."""
    recipe = load("segment", None, ["plates=[P]", "model=M", *words])
    assert digest(recipe) == before
    kept = {"plates": ["P"], "model": "M", "measure": ["DAPI"] if words else None}
    assert present_keys("segment", kept)["measure"] == recipe.model_dump(mode="json")["measure"]
