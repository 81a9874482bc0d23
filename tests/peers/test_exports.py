"""What is exported is what the libraries of other programs read, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpc_isl.plates.store import Index, write_labels
from hpc_isl.stages.export.labels import export_labels

ENVIRONMENTS = os.environ.get("HPC_ISL_PEERS", "")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not ENVIRONMENTS, reason="needs other programs: make peers"),
]


def checked(environment: str, script: str, *words: object) -> str:
    """What a script of this folder prints in another environment."""
    python = Path(ENVIRONMENTS).absolute() / environment / "bin" / "python"
    done = subprocess.run(
        [python, Path(__file__).with_name(script), *map(str, words)], capture_output=True, text=True,
        timeout=300, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_outlines_are_valid_geojson_and_hold_the_pixels_of_the_labels(
    tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    """Random labels have holes, pieces and corners that touch, far more than cells do."""
    index = write_stained_plate(tmp_path / "P01.zarr", wells=("B02",), size=64)
    labels = np.random.default_rng(0).integers(0, 4, (64, 64), np.uint32) * 5
    [field] = index.plate.fields
    write_labels(index.image(field.key), "random", labels, origin="human", boxes=[(0, 0, 64, 64)])
    export_labels(index.path, "random", tmp_path / "out")
    np.save(tmp_path / "labels.npy", labels)
    found = checked(
        "shapely", "check_geojson.py", tmp_path / "out" / "B02_1.geojson", tmp_path / "labels.npy"
    )
    assert found == "3\n"
