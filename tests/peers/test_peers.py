"""Plates that ngio, ome-zarr-py and iohub write give the figures that the same pixels give, converted by us.

`make peers` installs each in an environment of its own and runs these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from other_plates import snapshot, whole
from used_plates import assert_same_results, computed, use

from hpc_isl.plates.store import Index, open_plate
from hpc_isl.stages.adopt import stage as adopt
from hpc_isl.stages.inspect import validate

ENVIRONMENTS = os.environ.get("HPC_ISL_PEERS", "")
PROGRAMS = ("ngio", "ome-zarr", "iohub")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not ENVIRONMENTS, reason="needs other programs: make peers"),
]


def written(index: Index, program: str, version: str, out: Path) -> Path:
    """The plate as another program writes it."""
    source, plate = out.with_suffix(".npz"), index.plate
    facts = {
        "name": plate.name, "channels": [channel.name for channel in plate.channels],
        "colors": [channel.color for channel in plate.channels], "pixel_um": plate.pixel_um,
    }  # fmt: skip
    pixels = {str(field.key): whole(index, field.key) for field in plate.fields}
    np.savez(source, facts=json.dumps(facts), **pixels)
    python = Path(ENVIRONMENTS).absolute() / program / "bin" / "python"
    script = Path(__file__).with_name("write_plate.py")
    done = subprocess.run(
        [python, script, program, version, source, out], capture_output=True, text=True, timeout=300,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_plate_of_another_program_gives_the_figures_of_a_converted_one(
    program: str, version: str, tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    index = write_stained_plate(tmp_path / "ours" / "P01.zarr", size=64)
    other = written(index, program, version, tmp_path / "P01.zarr")
    before = snapshot(other)
    lines = [f"{well},{facts['cell_line']}" for well, facts in index.plate_map.items()]
    (tmp_path / "map.csv").write_text("\n".join(["well,cell_line", *lines]))
    computed(adopt, tmp_path, "P01", f"plate={other}", f"plate_map={tmp_path}/map.csv")
    found = open_plate(other)
    assert found.plate.pixel_um == index.plate.pixel_um
    for field in index.plate.fields:
        assert found.statistics[field.key].planes == index.statistics[field.key].planes
    results = [use(plate, tmp_path / "model") for plate in (index.path, other)]
    assert_same_results(results[1], results[0])
    assert snapshot(other) == before
    assert [line for line in validate(found.path, deep=True) if "P01.zarr: OME-Zarr" not in line] == []
