"""What is exported is what the libraries of other programs read, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_screen import save_model
from made_up_segmentation import MadeUp, made_up_segmentation

import hpc_isl
from hpc_isl.plates.store import Index, read_box, write_labels
from hpc_isl.stages.export.labels import export_labels
from hpc_isl.stages.table.stage import table

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
        timeout=300, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
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


@pytest.mark.parametrize("kind", ["cells", "nuclei"])
def test_onnx_and_bioimageio_find_the_objects_that_segment_finds(
    kind: str, tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    """Also where the field is no multiple of the stride; the package passes the test of bioimageio.core."""
    index = write_stained_plate(tmp_path / "P01.zarr", wells=("B02",), size=160)
    run = save_model(tmp_path / "runs" / "finetune" / kind, kind=kind, pixel_um=0.6)
    [field] = hpc_isl.open_plate(index.path)
    expected = hpc_isl.load_model(run.folder).segment(field)
    image = read_box(field.path, 0, 0, 0, [0], slice(None), slice(None))
    np.save(tmp_path / "image.npy", image)
    checked("bioimageio", "check_model.py", run.folder, tmp_path / "image.npy", tmp_path / "out")
    found = np.load(tmp_path / "out" / "found.npz")
    assert len(np.unique(expected)) > 5
    assert float(found["difference"]) < 1e-4
    np.testing.assert_array_equal(found["onnx"], expected)
    np.testing.assert_array_equal(found["bioimageio"], expected)
    assert found["odd"].shape == (131, 157)


@pytest.mark.parametrize("per", ["well", "object"])
def test_scanpy_reads_and_computes_with_a_table(per: str, tmp_path: Path) -> None:
    controls = {well: {"control": "negative"} for well in ("B02", "B03", "C02", "C03")}
    run = made_up_segmentation(tmp_path, [MadeUp(name, plate_map=controls) for name in ("P01", "P02")])
    table(run, tmp_path / "table.h5ad", per, [], names="anndata")
    table(run, tmp_path / "table.csv", per, [], normalise="none")
    rows = len((tmp_path / "table.csv").read_text().splitlines()) - 1
    found = json.loads(checked("scanpy", "check_h5ad.py", tmp_path / "table.h5ad"))
    assert found["rows"] == rows
    assert found["plates"] == ["P01", "P02"]
    assert found["units"] == ["", "counts", "um", "um2", *(["1/mm2"] if per == "well" else ["rad"])]
    assert found["components"] == [rows, 2]
