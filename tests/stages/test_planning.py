"""Planning, which happens while somebody waits: it imports what it needs and no more."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

# What trains, fits, draws or tracks; the library that reads plates is tensorstore.
LATER = (
    "torch", "torchvision", "timm", "segmentation_models_pytorch", "mlflow", "scipy", "skimage", "zarr",
    "pandas", "matplotlib", "dask", "numba", "pyarrow.compute",
)  # fmt: skip
SCRIPT = """
import json, sys
from pathlib import Path
from hpc_isl.stages.stage_table import stage_named
from hpc_isl.recipes.load import RECIPES
from hpc_isl.recipes.strict import parse, read_yaml
stage, path = sys.argv[1], Path(sys.argv[2])
plan = stage_named(stage).load().plan(parse(RECIPES[stage], read_yaml(path), str(path)))
print(json.dumps({"messages": plan.messages, "modules": sorted(sys.modules)}))
"""


@pytest.fixture
def recipes(tmp_path, write_stained_plate):
    """Stage -> a recipe that can be planned."""
    plate = tmp_path / "P01.zarr"
    write_stained_plate(plate, size=64)
    (tmp_path / "export").mkdir()
    tifffile.imwrite(tmp_path / "export" / "B02_w1.tif", np.arange(64 * 64, dtype="uint16").reshape(64, 64))
    regex = r"(?P<well>[A-H]\d\d)_w(?P<channel>\d)\.tif"
    pattern = {"regex": regex, "channels": {"1": "DAPI"}, "pixel_um": 0.5}
    return {
        "convert": {
            "source": str(tmp_path / "export"), "out": str(tmp_path / "new.zarr"), "pattern": pattern,
        },
        "annotate": {"action": "draft", "plate": str(plate), "channel": "Hoechst", "labels": "nuclei"},
        "pretrain": {
            "plates": [str(plate)], "sources": [{"channel": "Brightfield"}],
            "targets": [{"channel": "Hoechst", "plane": "max"}],
            "net": {"encoder": "resnet18", "weights": None},
            "train": {"steps": 2, "batch": 4, "micro_batch": 4, "crop": 32},
        },
    }  # fmt: skip


def planned(folder: Path, stage: str, recipe: dict) -> dict:
    """What a plan in a process of its own says, and the modules that it has imported."""
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, stage, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", ["convert", "annotate", "pretrain"])
def test_a_plan_imports_nothing_that_only_its_job_needs(recipes, tmp_path, stage):
    found = planned(tmp_path, stage, recipes[stage])
    assert found["messages"]
    assert set(LATER) & set(found["modules"]) == set()


def test_an_encoder_that_the_table_does_not_name_is_asked_of_its_library(recipes, tmp_path):
    recipe = recipes["pretrain"] | {"net": {"encoder": "tu-test_efficientnet", "weights": None}}
    found = planned(tmp_path, "pretrain", recipe)
    assert any("tu-test_efficientnet" in line for line in found["messages"])
    assert "timm" in found["modules"]


def test_the_plan_says_that_stains_are_exchanged_in_the_permuted_control(recipes, tmp_path):
    found = planned(tmp_path, "pretrain", recipes["pretrain"] | {"control": "permuted"})
    training = int(found["messages"][0].removeprefix("train").split()[0])
    said = f"control=permuted: each of {training} training fields learns the stain of another one"
    assert said in found["messages"]
    plain = planned(tmp_path, "pretrain", recipes["pretrain"])
    assert not any("control" in line for line in plain["messages"])
