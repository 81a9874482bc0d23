"""`set`: planned first, refused while a run uses the plate; what was computed before says so ever after."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import tifffile
from made_up_screen import CHANNELS, save_model, write_screen

from hpc_isl.cluster.run_folder.uses import in_use
from hpc_isl.errors import UserError
from hpc_isl.files import among_readers
from hpc_isl.learning.network.contract import CONTRACT
from hpc_isl.metadata_changes import LOCK
from hpc_isl.plates.change_metadata import change_metadata
from hpc_isl.plates.plate import Channel
from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.load import load
from hpc_isl.stages.set_metadata import metadata_edit

if TYPE_CHECKING:
    from tests.conftest import CommandLine

SITE = ("site.workers=1", "site.memory=4G", "site.tracking=none")


@pytest.fixture
def lab(command_line: CommandLine) -> CommandLine:
    """A folder with a plate S1 whose pixels are said to be twice as large as they are, and a model."""
    write_screen(command_line.cwd / "S1.zarr", ["B02"], 1, pixel_um=1.0)
    save_model(command_line.cwd / "runs" / "finetune" / "cells", pixel_um=1.0)
    return command_line


def segment(name: str, *more: str) -> tuple[str, ...]:
    return ("segment", "model=cells", "plates=S1.zarr", "labels=found", "--name", name, *SITE, *more)


def draft(name: str, *more: str) -> tuple[str, ...]:
    return ("annotate", "draft", "plate=S1.zarr", "labels=drafted", "channel=Hoechst", "--name", name, *more)


def left(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- words


def test_assignments_give_the_new_metadata(tmp_path: Path) -> None:
    index = write_screen(tmp_path / "S1.zarr")
    words = ["pixel_um=0.325", "channels.Hoechst=DNA = 405", "transmitted=[Hoechst]"]
    asked = metadata_edit(index.path, words)
    assert asked.plate.pixel_um == 0.325
    first, second = asked.plate.channels
    assert first == Channel("Brightfield", fluorescent=True)
    assert second == replace(CHANNELS[1], name="DNA = 405", fluorescent=False, color="FFFFFF")
    assert asked.lines == (
        "pixel_um: 0.5 -> 0.325", "channel 'Brightfield' is fluorescent",
        "channel 'Hoechst' -> 'DNA = 405'", "channel 'DNA = 405' is label-free",
    )  # fmt: skip
    swapped = metadata_edit(index.path, ["channels={Brightfield: Hoechst, Hoechst: Brightfield}"])
    assert [channel.name for channel in swapped.plate.channels] == ["Hoechst", "Brightfield"]
    assert [c.name for c in metadata_edit(index.path, ["channels.Hoechst=405"]).plate.channels][1] == "405"
    assert metadata_edit(index.path, ["pixel_um=null"]).plate.pixel_um is None
    assert metadata_edit(index.path, ["pixel_um=0.5"]).lines == ()


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("pixel_um=325", "325 µm is no edge of a pixel (0.01 to 50 µm are): 325 nm are 0.325 µm"),
        ("pixel_um=0.000325", "0.000325 mm are 0.325 µm"),
        ("pixel_um=-1", "greater than 0"),
        ("pixels=3", "did you mean 'pixel_um'?"),
        ("channels.Hoecsht=DNA", "no channel 'Hoecsht'; did you mean 'Hoechst'?"),
        ("channels.Hoechst=Brightfield", "that would make two channels 'Brightfield'"),
        ("channels.Hoechst=' '", "a channel without a name"),
        ("transmitted=[Hoecsht]", "no channel 'Hoecsht'; did you mean 'Hoechst'?"),
        ("transmitted={a: b}", "a list of channels is expected"),
        ("pixel_um", "set takes key=value"),
    ],
)
def test_impossible_assignments_are_refused(tmp_path: Path, word: str, messages: str) -> None:
    index = write_screen(tmp_path / "S1.zarr")
    with pytest.raises(UserError) as caught:
        metadata_edit(index.path, [word])
    assert messages in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("convert", ["source=a", "out=b.zarr", "pattern.regex=(?P<well>...)", "pattern.pixel_um=325"]),
        ("segment", ["model=a", "plates=b.zarr", "labels=c", "pixel_um=325"]),
    ],
)
def test_nanometres_are_no_micrometres_wherever_a_pixel_is_spoken_of(stage: str, keys: list[str]) -> None:
    """Who types 325 nm as 325 is told so before anything is computed, with the number that was meant."""
    with pytest.raises(UserError, match=r"325 nm are 0\.325 µm"):
        load(stage, None, keys)


# ---------------------------------------------------------------- the plan


def test_set_describes_the_change_before_it_is_made(lab: CommandLine) -> None:
    """A person reads what changes, how much is written and which runs rest on it; a dry run ends there."""
    assert lab(*draft("D1")).returncode == 0
    assert lab(*segment("before")).returncode == 0
    before = left(lab.cwd)
    output = lab("set", "S1.zarr", "pixel_um=0.5", "channels.Hoechst=DNA", "--dry-run")
    assert output.returncode == 0, output.stdout
    for line in (
        "pixel_um: 1 -> 0.5", "channel 'Hoechst' -> 'DNA'", "1 image and 2 labels",
        "computed before (figures in micrometres are wrong): 2 runs, reported so",
        "  annotate D1", "  segment before",
    ):  # fmt: skip
        assert line in output.stdout
    assert left(lab.cwd) == before
    output = lab("set", "S1.zarr", "channels.Hoechst=DNA", "--dry-run")
    assert "figures stay right, names differ" in output.stdout
    assert "it has these values already" in lab("set", "S1.zarr", "pixel_um=1").stdout
    assert "it has these values already" in lab("set", "S1.zarr", "transmitted=Brightfield").stdout


def test_a_field_that_is_wider_than_a_well_is_doubted(tmp_path: Path) -> None:
    index = write_screen(tmp_path / "S1.zarr", ["B02"], 1, shape=(64, 256))
    asked = metadata_edit(index.path, ["pixel_um=40"])
    assert "make a field 10.2 mm wide, and the wells of a plate of 96 are 9 mm apart" in str(
        asked.described()
    )
    assert "mm" not in str(metadata_edit(index.path, ["pixel_um=0.65"]).described())


# ---------------------------------------------------------------- in use


def test_it_is_refused_while_a_run_that_is_known_here_uses_the_plate(lab: CommandLine) -> None:
    """Queued or running, under whatever path of the plate: the run is named, and nothing is changed."""
    assert lab(*draft("D1")).returncode == 0
    run, before = lab.cwd / "runs" / "annotate" / "D1", left(lab.cwd / "S1.zarr")
    (run / "done" / "annotate.json").unlink()
    me = psutil.Process()
    watched = {"executor": "local", "host": socket.gethostname(), "pid": me.pid}
    (run / "attempts" / "1").mkdir()
    submission = run / "attempts" / "1" / "submission.json"
    submission.write_text(json.dumps({**watched, "pid_started": me.create_time()}))
    (lab.cwd / "link.zarr").symlink_to("S1.zarr")
    for path in ("S1.zarr", "link.zarr"):
        refused = lab("set", path, "pixel_um=0.5")
        assert refused.returncode == 2
        assert "is used by annotate 'D1' (running)" in refused.stdout
    assert left(lab.cwd / "S1.zarr") == before


def test_set_is_refused_while_a_run_of_another_user_uses_the_plate(lab: CommandLine) -> None:
    """Their folder of runs is not known here; the plate itself tells."""
    with among_readers(lab.cwd / "S1.zarr" / LOCK):
        refused = lab("set", "S1.zarr", "pixel_um=0.5")
    assert refused.returncode == 2
    assert "a run uses it just now" in refused.stdout
    assert lab("set", "S1.zarr", "pixel_um=0.5").returncode == 0


def test_a_running_conversion_locks_its_plate_too(lab: CommandLine) -> None:
    """A finished plate may be taking in further fields, which bear the names that it has now."""
    keys = ["source=export", f"out={lab.cwd / 'S1.zarr'}"]
    index = open_plate(lab.cwd / "S1.zarr")
    with in_use(load("convert", None, keys)), pytest.raises(UserError, match="a run uses it just now"):
        change_metadata(index, replace(index.plate, pixel_um=0.5), "me")


def test_a_run_holds_its_plates_as_long_as_it_computes(lab: CommandLine) -> None:
    call = lab.open(*segment("long"))
    held = lab.eventually(lambda: (lab.cwd / "S1.zarr" / LOCK).exists())
    refused = lab("set", "S1.zarr", "pixel_um=0.5")
    output, _ = call.communicate(timeout=300)
    assert held
    assert call.returncode == 0, output
    assert refused.returncode == 2, refused.stdout
    assert lab("set", "S1.zarr", "pixel_um=0.5").returncode == 0


# ---------------------------------------------------------------- what was computed before


def test_earlier_runs_report_the_change_and_are_never_mixed_with_later_ones(lab: CommandLine) -> None:
    """Metadata changed, says everything that touches such a run: `status`, its table, the same command
    again, `resume`, and the next segmentation that meets its labels."""
    assert lab(*draft("D1")).returncode == 0
    assert lab(*segment("before")).returncode == 0
    assert lab("set", "S1.zarr", "pixel_um=0.5").returncode == 0
    since = "metadata of S1 changed: pixel_um: 1 -> 0.5"
    assert sum(since in line for line in lab("status").stdout.splitlines()) == 2
    assert since in lab("table", "before").stdout
    again = lab(*draft("D1")).stdout
    assert "from other inputs; choose another --name" in again
    assert "metadata of S1 changed since: pixel_um: 1 -> 0.5" in again
    assert "contents of" not in again
    done = lab.cwd / "runs" / "annotate" / "D1" / "done" / "annotate.json"
    done.rename(done.with_name("kept"))
    refused = lab("resume", "D1")
    assert refused.returncode == 2
    assert since in refused.stdout
    done.with_name("kept").rename(done)
    met = lab(*segment("after"))
    assert "labels 'found' that were computed before its metadata changed (pixel_um: 1 -> 0.5)" in met.stdout
    assert lab(*segment("after", "overwrite=true")).returncode == 0
    assert since not in "".join(line for line in lab("status").stdout.splitlines() if "after" in line)
    assert lab("set", "S1.zarr", "pixel_um=1").returncode == 0
    assert "nothing to do: this run is finished" in lab(*draft("D1")).stdout


def test_a_job_that_was_queued_before_does_not_start_on_other_metadata(lab: CommandLine) -> None:
    """It was planned from what the plate said then: it ends at once and says why."""
    assert lab(*draft("D1")).returncode == 0
    run = lab.cwd / "runs" / "annotate" / "D1"
    (run / "done" / "annotate.json").unlink()
    index = open_plate(lab.cwd / "S1.zarr")
    change_metadata(index, replace(index.plate, pixel_um=0.5), "me")
    words = [
        sys.executable,
        "-m",
        "hpc_isl.cluster.rank",
        "hpc_isl.stages.annotate.stage",
        str(run),
        "1",
    ]
    done = subprocess.run(words, cwd=run, env=lab.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "metadata of S1 changed: pixel_um: 1 -> 0.5" in (run / "attempts" / "1" / "rank-0.log").read_text()


def test_a_model_trained_at_a_wrong_pixel_size_reports_it(lab: CommandLine) -> None:
    """The network never saw a micrometre, but its contract holds the size that the plate stated."""
    index = open_plate(lab.cwd / "S1.zarr")
    path = lab.cwd / "runs" / "finetune" / "cells" / "model" / CONTRACT
    trained = {"plates": {"S1": index.fingerprint}, "recipe": {"plates": [str(index.path)]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | trained))
    assert lab("set", "S1.zarr", "pixel_um=0.5").returncode == 0
    refused = lab(*segment("after"))
    assert refused.returncode == 2
    assert "model=cells: metadata of S1 changed: pixel_um: 1 -> 0.5, after this model was" in refused.stdout
    assert "or say what pixels it was trained at: pixel_um=0.5\n" in refused.stdout
    assert lab(*segment("after", "pixel_um=0.5")).returncode == 0


# ---------------------------------------------------------------- convert


def write_export(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for well in ("B02", "B03"):
        for channel in (1, 2):
            tifffile.imwrite(folder / f"{well}_w{channel}.tif", rng.gamma(2, 90, (40, 50)).astype("uint16"))
    return folder


REGEX = r"pattern.regex='(?P<well>[A-H]\d\d)_w(?P<channel>\d)\.tif'"


def convert(export: Path, *more: str) -> tuple[str, ...]:
    words = ("convert", f"source={export}", "out=P.zarr", REGEX, "codec.chunk=32", "on_error=skip")
    return (*words, "site.tracking=none", *more)


def test_a_plan_names_the_label_free_channels(command_line: CommandLine) -> None:
    """A forgotten `pattern.transmitted` shows before a plate is made of it."""
    export = write_export(command_line.cwd / "export")
    named = ("pattern.channels={'1': Phase, '2': DAPI}", "--dry-run")
    silent = command_line(*convert(export, *named))
    assert "label-free: none; stains: Phase, DAPI" in silent.stdout
    assert "pattern.transmitted=[Phase] says that they are label-free" in silent.stdout
    output = command_line(*convert(export, *named, "pattern.transmitted=[Phase]"))
    assert "label-free: Phase; stains: DAPI" in output.stdout
    assert "warning" not in output.stdout


def test_a_plate_that_was_set_is_no_other_plate_to_convert(command_line: CommandLine) -> None:
    """The same export with the values that were meant leads to `set`, not to converting again; a plate that
    was set takes in repaired fields as it is now called."""
    export = write_export(command_line.cwd / "export")
    whole = (export / "B03_w2.tif").read_bytes()
    (export / "B03_w2.tif").write_bytes(whole[:100])
    assert command_line(*convert(export, "pattern.pixel_um=0.65", "--name", "one")).returncode == 0
    meant = (
        "pattern.pixel_um=0.325",
        "pattern.channels={'1': Phase, '2': DNA}",
        "pattern.transmitted=[Phase]",
    )
    other = command_line(*convert(export, *meant))
    assert other.returncode == 2
    assert "another plate" not in other.stdout
    call = shlex.split(other.stdout.splitlines()[-1].split("to change them: ")[1])
    assert call[3:5] == ["set", str(command_line.cwd / "P.zarr")]
    done = command_line(*call[3:])
    assert done.returncode == 0, done.stdout
    assert [channel.fluorescent for channel in open_plate(command_line.cwd / "P.zarr").plate.channels] == [
        False,
        True,
    ]
    (export / "B03_w2.tif").write_bytes(whole)
    for words in (meant, ("pattern.pixel_um=0.65",)):
        again = command_line(*convert(export, *words))
        assert again.returncode == 0, again.stdout
        index = open_plate(command_line.cwd / "P.zarr")
        assert len(index.plate.fields) == 2
        assert [channel.name for channel in index.plate.channels] == ["Phase", "DNA"]
        assert index.plate.pixel_um == 0.325
        assert len(index.changes) == 1
    assert command_line("validate", "P.zarr", "--deep").stdout == "valid\n"


# ---------------------------------------------------------------- what a network sees and learns


@pytest.mark.parametrize(
    ("sources", "targets", "messages"),
    [
        ("[{channel: Hoechst, plane: 0}]", "[{channel: Hoechst, plane: 0}]", "the network would copy it"),
        ("[{channel: Brightfield, plane: [0, 1]}]", "[{channel: Brightfield, plane: 1}]", "would copy it"),
    ],
)
def test_a_source_channel_is_not_also_a_target(
    command_line: CommandLine,
    write_stained_plate: Callable[..., Any],
    sources: str,
    targets: str,
    messages: str,
) -> None:
    write_stained_plate(command_line.cwd / "P.zarr")
    done = command_line(
        "pretrain", "plates=[P.zarr]", f"sources={sources}", f"targets={targets}", "--dry-run"
    )
    assert done.returncode == 2, done.stdout
    assert messages in done.stdout


def test_a_plan_names_stains_that_are_seen_and_label_free_channels_that_are_predicted(
    command_line: CommandLine, write_stained_plate: Callable[..., Any]
) -> None:
    write_stained_plate(command_line.cwd / "P.zarr", stains=("Hoechst", "Actin"))
    common = (
        "pretrain",
        "plates=[P.zarr]",
        "net.weights=null",
        "train.crop=64",
        "train.steps=1",
        "--dry-run",
    )
    for sources, targets, messages in (
        ("Hoechst", "Hoechst", "'Hoechst' is both seen and predicted"),
        ("Actin", "Hoechst", "the source 'Actin' is a stain"),
        ("Actin", "Brightfield", "the target 'Brightfield' is label-free"),
    ):
        roles = (f"sources=[{{channel: {sources}, plane: 0}}]", f"targets=[{{channel: {targets}, plane: 1}}]")
        done = command_line(*common, *roles)
        assert done.returncode == 0, done.stdout
        assert f"warning: {messages}" in done.stdout
    plain = command_line(*common, "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst}]")
    assert "warning" not in plain.stdout
