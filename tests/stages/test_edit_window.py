"""The window of annotate edit, played through on a screen that nobody sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from screen import screen

from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index

B02, B03 = FieldKey("B02", "1"), FieldKey("B03", "1")
WINDOWS = find_spec("napari") and find_spec("PySide6")
pytestmark = pytest.mark.skipif(
    not WINDOWS and os.environ.get("HPC_ISL_NEEDS_NAPARI") != "1", reason="needs napari and PySide6"
)


def test_a_person_draws_goes_on_is_asked_and_closes(
    tmp_path: Path, write_stained_plate: Callable[..., Index]
) -> None:
    index = write_stained_plate(tmp_path / "P01.zarr", wells=("B02", "B03"), size=64)
    drafted = np.zeros((64, 64), np.uint32)
    drafted[5:15, 5:15] = 3
    store.write_labels(index.image(B02), "nuclei", drafted, origin="drafted", boxes=[(0, 0, 64, 64)])
    script, picture = Path(__file__).with_name("run_edit_window.py"), tmp_path / "window.png"
    with screen() as environment:
        played = subprocess.run(
            [sys.executable, script, index.path, picture], capture_output=True, text=True, timeout=300,
            env={
                **environment, "NAPARI_CONFIG": "", "PYTHONPATH": str(Path(__file__).parents[2]),
                "HOME": str(tmp_path),
            },
        )  # fmt: skip
    assert played.returncode == 0, played.stderr
    seen = json.loads(played.stdout.splitlines()[-1])
    assert seen["layers"] == ["Brightfield", "Hoechst", "nuclei", "annotation boxes"]
    assert seen["boxes"] == [[0, 0, 40, 40]]
    assert seen["question"] == "B02/1 has changes that are not saved."
    assert (seen["after cancel"], seen["after save"]) == ("B02/1", "B03/1")
    assert seen["limits"] == [700, 7000]
    assert not seen["undone"], "an undo reached into the field before"
    assert seen["line"] == "B03/1 is saved: 0 objects"
    assert "draw the annotation box" in seen["refused"]
    assert seen["stays open"]
    assert seen["closed"]

    drawn = store.read_labels(index.image(B02), "nuclei")
    assert np.argwhere(drawn == 9).tolist() == [[20, 30], [20, 31], [21, 30]]
    assert (drawn == 3).sum() == 100
    assert store.annotation(index.image(B02), "nuclei") == ("human", [(0, 0, 40, 40)])
    assert store.annotation(index.image(B03), "nuclei") == ("human", [(10, 10, 50, 50)])
    names = store.label_names(index.image(B02))
    assert len(names) == 2
    np.testing.assert_array_equal(store.read_labels(index.image(B02), names[1]), drafted)
    shown = np.asarray(Image.open(picture).convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50  # buttons, layers and an image, not one grey
