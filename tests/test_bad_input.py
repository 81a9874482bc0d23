"""What bad input gets: one screen naming file, well or key and what would be right; nothing half-made."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from hpc_isl.plates.store import open_plate
from hpc_isl.stages.synthetic import stage as synthetic

if TYPE_CHECKING:
    from tests.conftest import CommandLine

pytestmark = pytest.mark.journey
SCREEN = 40
ENTITY = '<!DOCTYPE x [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;">]>'


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vendor") / "export"
    synthetic.write(folder, wells=4, fields=1, size=96, planes=2, empty=False)
    return folder


@pytest.fixture
def export(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "export"))


def refused(command_line: CommandLine, *words: str) -> str:
    """Returns the output of a refused call, after checks that it was refused as a user error."""
    done = command_line(*words)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert len(done.stdout.splitlines()) <= SCREEN
    return done.stdout


def planes(export: Path) -> list[Path]:
    return sorted((export / "Images").glob("*.tiff"))


def in_index(export: Path, change: Callable[[str], str]) -> None:
    path = export / "Images" / "Index.idx.xml"
    before = path.read_text(encoding="utf-8-sig")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def well_of(file: Path) -> str:
    row, column = map(int, re.match(r"r(\d+)c(\d+)", file.name).groups())  # type: ignore[union-attr]
    return f"{'ABCDEFGH'[row - 1]}{column:02d}"


def truncated(export: Path) -> list[str]:
    file = planes(export)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return [file.name, well_of(file)]


def missing(export: Path) -> list[str]:
    file = planes(export)[0]
    file.unlink()
    return [file.name, well_of(file)]


def of_another_shape(export: Path) -> list[str]:
    file = planes(export)[0]
    tifffile.imwrite(file, np.ones((50, 60), np.uint16))
    return [file.name, well_of(file), "50"]


def of_another_type(export: Path) -> list[str]:
    file = planes(export)[0]
    tifffile.imwrite(file, np.ones((96, 96), np.uint8))
    return [file.name, well_of(file), "uint8"]


def twice_in_the_index(export: Path) -> list[str]:
    first, second = (file.name for file in planes(export)[:2])
    in_index(export, lambda text: text.replace(first, second))
    return [second]


@pytest.mark.parametrize("harm", [truncated, missing, of_another_shape, of_another_type, twice_in_the_index])
def test_a_damaged_field_is_named_and_no_plate_is_made(
    command_line: CommandLine, export: Path, harm: Callable[[Path], list[str]]
) -> None:
    named = harm(export)
    output = refused(command_line, "convert", f"source={export}", "out=P.zarr")
    for word in named:
        assert word in output
    assert "on_error" in output
    assert not (command_line.cwd / "P.zarr" / "zarr.json").exists()


@pytest.mark.parametrize("harm", [truncated, missing, of_another_shape, of_another_type])
def test_damaged_fields_can_be_skipped_and_are_recorded(
    command_line: CommandLine, export: Path, harm: Callable[[Path], list[str]]
) -> None:
    harm(export)
    done = command_line("convert", f"source={export}", "out=P.zarr", "on_error=skip")
    assert done.returncode == 0, done.stdout
    index = open_plate(command_line.cwd / "P.zarr")
    assert len(index.plate.fields) == 4
    assert [sum(not mask for mask in index.imaged(field.key).ravel()) for field in index.plate.fields] == [
        1,
        0,
        0,
        0,
    ]
    assert len(index.problems) == 1


def test_all_damaged_fields_are_reported_together(command_line: CommandLine, export: Path) -> None:
    wells = {}
    for file in planes(export):
        wells.setdefault(well_of(file), file)
    two = [wells[well] for well in sorted(wells)[:2]]
    for file in two:
        file.write_bytes(file.read_bytes()[:300])
    output = refused(command_line, "convert", f"source={export}", "out=P.zarr")
    assert all(file.name in output for file in two)


@pytest.mark.parametrize("url", ["../../secret.tiff", "/etc/hostname", "https://example.org/a.tiff"])
def test_an_index_that_names_a_file_outside_its_folder_is_refused(
    command_line: CommandLine, export: Path, url: str
) -> None:
    name = planes(export)[0].name
    in_index(export, lambda text: text.replace(name, url))
    output = refused(command_line, "convert", f"source={export}", "out=P.zarr")
    assert url in output
    assert "Index.idx.xml" in output


def test_xml_entities_are_refused(command_line: CommandLine, export: Path) -> None:
    in_index(export, lambda text: text.replace("?>", f"?>{ENTITY}", 1))
    output = refused(command_line, "convert", f"source={export}", "out=P.zarr")
    assert "Index.idx.xml" in output
    assert "entit" in output.lower()


@pytest.fixture(scope="session")
def plates(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the converted plate P.zarr."""
    from hpc_isl.recipes.plates import ConvertRecipe
    from hpc_isl.run import Attempt, Run
    from hpc_isl.stages.convert import stage as convert

    folder = tmp_path_factory.mktemp("plates")
    recipe = ConvertRecipe(source=pristine, out=folder / "P.zarr")
    convert.convert(recipe, Attempt(Run(folder / "runs" / "convert" / "P")))
    return folder


def test_a_plate_already_there_is_not_overwritten(
    command_line: CommandLine, plates: Path, tmp_path: Path
) -> None:
    synthetic.write(tmp_path / "other", wells=2, fields=1, size=96, planes=1, seed=1)
    before = open_plate(plates / "P.zarr").fingerprint
    output = refused(command_line, "convert", f"source={tmp_path / 'other'}", f"out={plates / 'P.zarr'}")
    assert "P.zarr" in output
    assert open_plate(plates / "P.zarr").fingerprint == before


TINY = (
    "sources=[{channel: Brightfield, plane: 0}]", "targets=[{channel: HOECHST 33342, plane: 0}]",
    "net.encoder=resnet18", "net.weights=null", "net.decoder=[16, 16, 8, 8, 8]",
    "train.crop=64", "train.batch=2", "train.micro_batch=2", "train.steps=2", "data.workers=0",
)  # fmt: skip


def test_a_channel_that_does_not_exist_is_answered_with_those_that_do(
    command_line: CommandLine, plates: Path
) -> None:
    output = refused(
        command_line,
        "pretrain",
        f"plates={plates / 'P.zarr'}",
        *TINY,
        "targets=[{channel: Hoechst, plane: 0}]",
    )
    assert "'Hoechst'" in output
    assert "'HOECHST 33342'" in output
    assert "'CellMask" in output


def test_a_key_that_does_not_exist_is_answered_with_the_nearest(
    command_line: CommandLine, plates: Path
) -> None:
    output = refused(command_line, "pretrain", f"plates={plates / 'P.zarr'}", *TINY, "train.step=3")
    assert "train.step" in output
    assert "did you mean 'steps'" in output


def test_an_empty_training_split_is_refused(command_line: CommandLine, plates: Path) -> None:
    wells = sorted(open_plate(plates / "P.zarr").plate.wells)
    output = refused(
        command_line,
        "pretrain",
        f"plates={plates / 'P.zarr'}",
        *TINY,
        f"split.test_wells=[{', '.join(wells)}]",
    )
    assert "train" in output
    assert "split" in output


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_no_checkpoint(
    command_line: CommandLine, plates: Path
) -> None:
    output = refused(
        command_line, "pretrain", f"plates={plates / 'P.zarr'}", *TINY, "--name", "hot", "train.steps=20",
        "optim.name=sgd", "optim.lr=1e30", "optim.clip_norm=null", "optim.schedule=constant",
        "data.normalize.target=none", "loss.name=mse",
    )  # fmt: skip
    assert "step" in output
    assert "optim.lr" in output
    assert not list((command_line.cwd / "runs" / "pretrain" / "hot" / "checkpoints").glob("*.pt"))
    assert not (command_line.cwd / "runs" / "pretrain" / "hot" / "done" / "pretrain.json").exists()


def test_weights_that_cannot_be_fetched_are_refused_at_once_with_the_way_out(
    command_line: CommandLine, plates: Path
) -> None:
    command_line.environment["HF_HUB_OFFLINE"] = "1"
    output = refused(
        command_line, "pretrain", f"plates={plates / 'P.zarr'}", *TINY, "net.weights=imagenet", "--dry-run"
    )
    assert "net.weights=" in output
    assert ".safetensors" in output
