"""What is named to be typed next works as it stands, on the very plates that a stage has seen."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from hpc_isl.plates.store import write_labels
from hpc_isl.stages.shared.following import pretrain_line

TINY = ["net={encoder: tu-test_resnet, weights: null, decoder: [16, 8, 8, 4, 4]}", "data.workers=0"]
STEPS = ["train={steps: 2, batch: 2, micro_batch: 2, crop: 32}"]


def typed(folder: Path, *words: str) -> tuple[int, str]:
    """One call of the command line: its exit code and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "hpc_isl.submit", *words], cwd=folder, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def following(said: str) -> list[list[str]]:
    """The words of each line behind `next:`, without the program."""
    return [shlex.split(line)[3:] for line in said.split("next: ")[1].splitlines()]


def write_images(folder: Path) -> Path:
    """Three wells of a phase image and a stain in files of their own, with channels that no recipe knows."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for well in ("B02", "B03", "C02"):
        spots = gaussian_filter(rng.normal(0, 1, (64, 64)), 4)
        for channel, pixels in (("405", 3000 + 20000 * spots), ("phase", 9000 - 9000 * spots)):
            tifffile.imwrite(folder / f"{well}_{channel}.tif", pixels.clip(0).astype(np.uint16))
    return folder


@pytest.mark.journey
@pytest.mark.timeout(900)
def test_from_convert_to_segment_each_line_that_is_named_next_works(tmp_path: Path) -> None:
    """A user copies the line behind `next:` after each stage, and it is planned without a complaint."""
    source = write_images(tmp_path / "images")
    regex = "pattern.regex='(?P<well>...)_(?P<channel>.+)[.]tif'"
    quiet = ["site.tracking=none", "site.cpus=1"]
    convert = ["convert", f"source={source}", "out=P 1.zarr", regex, "pattern.transmitted=[phase]", *quiet]
    code, said = typed(tmp_path, *convert)
    assert code == 0, said
    inspect, pretrain = following(said)
    assert typed(tmp_path, *inspect)[0] == 0
    small = [*TINY, *STEPS, "predict.stain=false", "--name", "20261128", *quiet]
    code, said = typed(tmp_path, *pretrain, *small)
    assert code == 0, said
    assert "phase focus → 405 max" in said

    [draft] = following(said)
    code, said = typed(tmp_path, *draft, *quiet)
    assert code == 0, said
    [export] = following(said)
    code, said = typed(tmp_path, *export, *quiet)
    assert code == 0, said
    [bring] = following(said)
    code, said = typed(tmp_path, *bring, "accept=true", *quiet)
    assert code == 0, said

    again = ["pretrain", *pretrain[1:], *TINY, *STEPS, "predict.stain=false", "--name", "again", *quiet]
    [finetune] = following(typed(tmp_path, *again)[1])
    assert "labels=drafted" in finetune
    code, said = typed(tmp_path, *finetune, *STEPS, *quiet)
    assert code == 0, said
    [segment] = following(said)
    code, said = typed(tmp_path, *segment, "--dry-run")
    assert code == 0, said


def test_pretraining_is_named_with_the_plates_own_channels(
    write_stained_plate: Callable[..., Any], tmp_path: Path
) -> None:
    """The shipped recipe alone where it fits; else the plate's channels; nothing where none can be learnt."""
    plate = tmp_path / "own.zarr"
    own = write_stained_plate(plate, size=64)
    assert shlex.split(pretrain_line(own) or "")[1:] == [
        f"plates=[{plate}]", "sources=[{channel: Brightfield, plane: focus}]",
        "targets=[{channel: Hoechst, plane: max}]",
    ]  # fmt: skip
    odd = write_stained_plate(tmp_path / "odd.zarr", label_free=("007", "a, b: c"), stains=("it's",), size=64)
    words = shlex.split(pretrain_line(odd) or "")
    assert words[2] == "sources=[{channel: '007', plane: focus}, {channel: 'a, b: c', plane: focus}]"
    for name, kinds in (("stains", {"label_free": ()}), ("dark", {"stains": ()})):
        assert pretrain_line(write_stained_plate(tmp_path / f"{name}.zarr", size=64, **kinds)) is None


def test_a_sweep_is_named_where_there_are_annotated_fields_enough(
    write_stained_plate: Callable[..., Any], tmp_path: Path
) -> None:
    from hpc_isl.recipes.load import load
    from hpc_isl.stages.shared.following import after_pretraining
    from hpc_isl.stages.shared.plate_views import load_plate_views

    index = write_stained_plate(tmp_path / "P01.zarr", size=64)
    keys = ["sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst}]", "train.crop=32"]
    recipe: Any = load("pretrain", None, [f"plates=[{index.path}]", *keys])
    study, _ = load_plate_views(recipe)
    assert after_pretraining(study, "random+isl")[0].startswith("annotate draft ")
    for number, field in enumerate(index.plate.fields, 1):
        squares = np.zeros((64, 64), np.uint32)
        squares[8:24, 8:24] = 1
        write_labels(index.image(field.key), "cells", squares, origin="human", boxes=[(0, 0, 64, 64)])
        verbs = [line.split()[:2] for line in after_pretraining(study, "random+isl")]
        assert (["sweep", "sweep_cells.yaml"] in verbs) == (number == 6)
