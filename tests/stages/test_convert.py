"""`convert`: pixel exact, whole or not at all, the same plate however often it is killed."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from mounts import read_only, small_disk

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_level, open_plate, read_box
from hpc_isl.recipes.load import digest, load
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.recipes.strict import parse, to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.field import recorded_problems
from hpc_isl.stages.convert.stage import convert, plan
from hpc_isl.stages.synthetic.stage import write as write_synthetic

REGEX = r"(?P<well>[A-H]\d\d)_s(?P<field>\d+)_w(?P<channel>\d)_z(?P<plane>\d+)\.tif"
PATTERN = {"regex": REGEX, "channels": {"1": "Phase", "2": "DAPI"}, "transmitted": ["Phase"], "pixel_um": 0.5}
SHAPE = (50, 70)
ALL = slice(None)


def plane_file(folder: Path, well: str, field: int, channel: int, plane: int) -> Path:
    return folder / f"{well}_s{field}_w{channel}_z{plane}.tif"


def write_export(
    folder: Path, wells: tuple[str, ...] = ("B02", "B03"), fields: int = 2, planes: int = 2
) -> Path:
    """An export of TIFF files, each with pixels of its own."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for well in wells:
        for field in range(1, fields + 1):
            for channel in (1, 2):
                for plane in range(planes):
                    pixels = rng.gamma(2, 100 * channel, SHAPE).astype("uint16")
                    tifffile.imwrite(plane_file(folder, well, field, channel, plane), pixels)
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "export")


def recipe(export: Path, **given: Any) -> ConvertRecipe:
    whole = {"source": export, "out": export.parent / "P01.zarr", "pattern": PATTERN, "codec": {"chunk": 32}}
    return parse(ConvertRecipe, whole | given, "the recipe")


def attempt(folder: Path, cpus: int = 1) -> Attempt:
    return Attempt(Run(folder / "runs" / "convert" / "P01"), cpus=cpus)


def run(what: ConvertRecipe, cpus: int = 1) -> Index:
    convert(what, attempt(what.out.parent, cpus))
    return open_plate(what.out)


def summary(what: ConvertRecipe) -> dict[str, Any]:
    found = attempt(what.out.parent).run.summary()
    assert found is not None
    return found


def stamps(plate: Path) -> dict[str, tuple[int, int]]:
    """Which files there are, and whether they were written anew."""
    facts = {str(p.relative_to(plate)): p.stat() for p in plate.rglob("*") if p.is_file()}
    return {name: (fact.st_ino, fact.st_mtime_ns) for name, fact in facts.items()}


def contents(plate: Path) -> dict[str, bytes]:
    return {str(p.relative_to(plate)): p.read_bytes() for p in plate.rglob("*") if p.is_file()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt(path: Path) -> None:
    """Damage that only decoding finds."""
    tifffile.imwrite(path, tifffile.imread(path), compression="zlib")
    content = bytearray(path.read_bytes())
    content[-200:-100] = bytes(100)
    path.write_bytes(content)


def assert_exact(index: Index, export: Path) -> None:
    """Every stored plane is tifffile's."""
    for field in index.plate.fields:
        for _, channel, plane in np.argwhere(index.imaged(field.key)).tolist():
            found = read_box(index.image(field.key), 0, 0, channel, [plane], ALL, ALL)[0]
            path = plane_file(export, field.key.well, int(field.key.name), channel + 1, plane)
            np.testing.assert_array_equal(found, tifffile.imread(path))


# ---------------------------------------------------------------- what is made


@pytest.mark.parametrize("cpus", [1, 2])
def test_every_pixel_is_the_files_and_the_plate_is_valid(
    export: Path, judge: Callable[[Path], None], cpus: int
) -> None:
    index = run(recipe(export), cpus)
    assert_exact(index, export)
    judge(index.path)
    assert [str(field.key) for field in index.plate.fields] == ["B02/1", "B02/2", "B03/1", "B03/2"]
    assert [(c.name, c.fluorescent) for c in index.plate.channels] == [("Phase", False), ("DAPI", True)]
    assert index.problems == ()
    output = summary(recipe(export))
    assert (output["fields"], output["skipped"], output["fingerprint"]) == (4, 0, index.fingerprint)
    assert output["made"] == {"plate": str(index.path)}
    assert f"inspect {index.path}" in output["next"][0]


def test_a_harmony_export_is_recognised_and_converted(tmp_path: Path, judge: Callable[[Path], None]) -> None:
    from hpc_isl.stages.synthetic.stage import write

    write(tmp_path / "export", wells=2, fields=1, size=64, planes=2)
    index = run(ConvertRecipe(source=tmp_path / "export", out=tmp_path / "P.zarr"))
    judge(index.path)
    assert len(index.plate.fields) == 2
    assert index.plate.pixel_um == pytest.approx(0.598, abs=1e-3)


def test_planes_that_a_channel_lacks_are_zeros_that_have_no_statistics(export: Path) -> None:
    for path in export.glob("*_w2_z1.tif"):
        path.unlink()
    index = run(recipe(export))
    for key, statistics in index.statistics.items():
        assert set(statistics.planes) == {(0, 0, 0), (0, 0, 1), (0, 1, 0)}
        assert index.field(key).details["planes"] == {"Phase": [0, 1], "DAPI": [0]}
        assert not read_box(index.image(key), 0, 0, 1, [1], ALL, ALL).any()


def test_fields_may_differ_in_shape_and_type(export: Path) -> None:
    for path in export.glob("B02_s2_*"):
        tifffile.imwrite(path, tifffile.imread(path)[:40, :40].clip(0, 255).astype("uint8"))
    index = run(recipe(export))
    assert index.field(FieldKey("B02", "2")).dtype == "uint8"
    assert index.field(FieldKey("B02", "2")).shape[-2:] == (40, 40)
    assert_exact(index, export)


def test_only_the_chosen_fields_are_converted(export: Path) -> None:
    index = run(recipe(export, fields=["b2/1", "B03"]))
    assert [str(field.key) for field in index.plate.fields] == ["B02/1", "B03/1", "B03/2"]
    with pytest.raises(UserError, match="no field or well 'B02/9'; did you mean 'B02/"):
        plan(recipe(export, fields=["B02/9"]))


def test_channels_and_planes_that_are_not_chosen_are_not_stored_and_the_plan_names_them(export: Path) -> None:
    what = recipe(export, channels=["DAPI"], planes=[1], fields="B03")
    text = "\n".join(plan(what).messages)
    assert "fields: 2 of 4 are chosen" in text
    assert "channels: Phase is left out" in text
    assert "planes: 0 is left out" in text
    index = run(what)
    assert [channel.name for channel in index.plate.channels] == ["DAPI"]
    assert [(str(field.key), field.shape) for field in index.plate.fields] == [
        ("B03/1", (1, 1, 1, *SHAPE)), ("B03/2", (1, 1, 1, *SHAPE))
    ]  # fmt: skip
    stored = read_box(index.image(FieldKey("B03", "2")), 0, 0, 0, [0], ALL, ALL)[0]
    np.testing.assert_array_equal(stored, tifffile.imread(plane_file(export, "B03", 2, 2, 1)))


def test_chosen_times_are_numbered_anew_and_fields_without_them_are_left_out(tmp_path: Path) -> None:
    export, rng = tmp_path / "export", np.random.default_rng(0)
    export.mkdir()
    for name in ("B02_t0", "B02_t1", "B02_t2", "B03_t0"):
        tifffile.imwrite(export / f"{name}.tif", rng.integers(0, 999, SHAPE).astype("uint16"))
    pattern = {"regex": r"(?P<well>[A-H]\d\d)_t(?P<time>\d)\.tif"}
    what = recipe(export, pattern=pattern, times=[2, 1], on_error="skip")
    text = "\n".join(plan(what).messages)
    assert "times: 0 is left out" in text
    assert "fields that have nothing of it are left out: 1 (B03/1)" in text
    index = run(what)
    [field] = index.plate.fields
    assert field.shape == (2, 1, 1, *SHAPE)
    for number, name in enumerate(["B02_t1", "B02_t2"]):
        stored = read_box(index.image(field.key), 0, number, 0, [0], ALL, ALL)[0]
        np.testing.assert_array_equal(stored, tifffile.imread(export / f"{name}.tif"))
    with pytest.raises(UserError, match="holds another plate"):
        plan(recipe(export, pattern=pattern, times=[1], on_error="skip"))


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"channels": ["DAPY"]}, r"channels: the export has no channel 'DAPY'; did you mean 'DAPI'\? There"),
        ({"times": [1]}, r"times: the export has no time 1; there are: '0'"),
        ({"planes": [0, 2]}, r"planes: the export has no plane 2; there are: '0', '1'"),
        ({"fields": ["C05"]}, r"fields: the export has no field or well 'C05'"),
        ({"planes": []}, r"planes: an empty list would leave out everything; null means all"),
    ],
)
def test_a_choice_that_the_export_does_not_have_is_refused_with_what_there_is(
    export: Path, given: dict[str, Any], answer: str
) -> None:
    with pytest.raises(UserError, match=answer):
        plan(recipe(export, **given))


def test_damage_to_planes_that_are_not_chosen_stops_nothing(export: Path) -> None:
    truncate(plane_file(export, "B02", 1, 1, 0))
    plane_file(export, "B02", 2, 1, 1).unlink()
    with pytest.raises(UserError, match="2 of 4 fields are damaged"):
        plan(recipe(export))
    index = run(recipe(export, channels=["DAPI"]))
    assert (len(index.plate.fields), index.problems) == (4, ())
    plane_file(export, "B03", 2, 2, 1).unlink()
    with pytest.raises(UserError, match="1 of 4 fields are damaged: 1 incomplete"):
        plan(recipe(export, channels=["DAPI"], out=export.parent / "P02.zarr"))


def test_heights_and_distance_of_planes_are_those_of_the_chosen_ones(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "export", wells=1, fields=1, size=64, planes=5)
    what = recipe(tmp_path / "export", pattern=None, planes=[0, 2, 4], channels=["Brightfield"])
    index = run(what)
    [field] = index.plate.fields
    assert (field.z_um, index.plate.plane_um) == ((-8.0, 0.0, 8.0), 8.0)
    assert field.planes("Brightfield") == (0, 1, 2)


def test_the_digest_of_a_conversion_without_a_choice_is_that_of_earlier_versions(export: Path) -> None:
    run(recipe(export))
    record = read_json(export.parent / "P01.zarr" / "index" / "conversion.json")
    assert record is not None
    assert record["digest"] == "d4ea3093a9a235a20a4bf6c361c6b032"
    assert digest(recipe(export)) == "dec6aacce815b03e"


def test_channels_of_8_and_16_bits_are_stored_in_16_without_loss(export: Path) -> None:
    for path in export.glob("*_w1_*.tif"):
        tifffile.imwrite(path, (tifffile.imread(path) // 8).astype("uint8"))
    index = run(recipe(export))
    assert {field.dtype for field in index.plate.fields} == {"uint16"}
    assert_exact(index, export)


def test_a_given_plate_map_overrides_that_of_the_export(export: Path) -> None:
    (export / "map.csv").write_text("well;dose;Treatment\nb2;1;DMSO\nB03;2;\n\n")
    index = run(recipe(export, plate_map=export / "map.csv"))
    assert index.plate_map == {
        "B02": {"dose": "1", "Treatment": "DMSO"},
        "B03": {"dose": "2", "Treatment": ""},
    }


# ---------------------------------------------------------------- the plan


def test_a_plan_describes_the_export_and_the_costs_and_writes_nothing(export: Path) -> None:
    before = sorted(export.parent.rglob("*"))
    made = plan(recipe(export))
    output = "\n".join(made.messages)
    assert "4 fields in 2 wells, 2 channels (Phase, DAPI), 2 planes, 50 × 70 pixels, 16 files" in output
    assert "4 fields to convert: 0.12 MB in, about" in output
    assert "pixel size unknown" not in output
    assert made.makes == (export.parent / "P01.zarr",)
    assert sorted(export.parent.rglob("*")) == before


def test_an_unknown_pixel_size_is_one_line_and_no_invention(export: Path) -> None:
    what = recipe(export, pattern=PATTERN | {"pixel_um": None})
    assert sum("pixel size unknown" in line for line in plan(what).messages) == 1
    assert run(what).plate.pixel_um is None


def test_paths_of_the_plan_are_absolute(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(export.parent)
    made = plan(recipe(Path("export"), out=Path("P01.zarr")))
    assert made.recipe.source == export
    assert made.recipe.out == export.parent / "P01.zarr"


def test_the_estimate_is_close_to_what_is_written(tmp_path: Path) -> None:
    from hpc_isl.stages.convert.survey import estimate, survey_export
    from hpc_isl.stages.synthetic.stage import write

    write(tmp_path / "export", wells=2, fields=1, size=256, planes=2)
    what = ConvertRecipe(source=tmp_path / "export", out=tmp_path / "P.zarr", levels=3)
    survey = survey_export(what)
    guess = estimate(survey.todo, survey.export.files, what.codec)
    index = run(what)
    files = [p for p in index.path.glob("[!.]*/*/*/*/c/**/*") if p.is_file()]
    finest = sum(p.stat().st_size for p in files if p.relative_to(index.path).parts[3] == "0")
    raw = sum(np.prod(field.shape) * 2 for field in index.plate.fields)
    assert guess.bytes_in == sum(p.stat().st_size for p in (tmp_path / "export" / "Images").glob("*.tif*"))
    assert guess.compressed == pytest.approx(finest / raw, rel=0.05)
    assert guess.bytes_out == pytest.approx(sum(p.stat().st_size for p in files), rel=0.1)


@pytest.mark.parametrize("name", ["P01", "P01.zar", "export/P01.zarr"])
def test_a_plate_that_is_no_zarr_or_inside_the_export_is_refused(export: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"out: .*(ends in \.zarr|inside the export)"):
        plan(recipe(export, out=export.parent / name))


def test_too_little_room_is_reported_before_anything_is_written(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_isl.stages.convert.survey.free", lambda folder: 1000)
    with pytest.raises(UserError, match=r"P01\.zarr: the disk is full: [\d,]+ bytes are needed"):
        plan(recipe(export))
    assert not (export.parent / "P01.zarr").exists()


def test_a_place_that_cannot_be_written_is_called_so_and_not_a_full_disk(
    export: Path, tmp_path: Path
) -> None:
    """A user sees that the place cannot be written and why: a warning of the plan, and the end of the job."""
    disk = tmp_path / "disk"
    with small_disk(disk, "80k"), read_only(disk):  # too small besides
        what = recipe(export, out=disk / "P01.zarr")
        assert "warning: from this machine out: " in plan(what).messages[-1]
        with pytest.raises(UserError, match=rf"P01\.zarr cannot be written: the disk of {disk} is read-only"):
            run(what)
    what = recipe(export, out=Path("/proc/P01.zarr"))
    assert "disk is full" not in "".join(plan(what).messages)
    with pytest.raises(UserError, match=r"/proc/P01\.zarr cannot be written"):
        convert(what, attempt(tmp_path))


# ---------------------------------------------------------------- again, stopped, killed


def test_a_second_run_does_nothing_and_reports_it(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = run(recipe(export))
    before = stamps(index.path)
    assert "nothing to convert" in "\n".join(plan(recipe(export)).messages)
    assert run(recipe(export)) == index
    assert stamps(index.path) == before
    assert "nothing to do" in capsys.readouterr().out
    assert summary(recipe(export))["fields"] == 4


def test_a_changed_plate_map_updates_a_finished_plate_without_touching_pixels(export: Path) -> None:
    index = run(recipe(export))
    before = stamps(index.path)
    (export / "map.csv").write_text("well,dose\nB02,1\n")
    changed = run(recipe(export, plate_map=export / "map.csv"))
    assert changed.plate_map == {"B02": {"dose": "1"}}
    assert changed.fingerprint == index.fingerprint
    rewritten = {name for name, stamp in stamps(index.path).items() if before.get(name) != stamp}
    assert not any("/c/" in name for name in rewritten)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_stop_takes_effect_between_fields_and_written_fields_are_kept(export: Path, cpus: int) -> None:
    what, stopped = recipe(export), attempt(export.parent, cpus)

    def progress(done: int, *rest: Any, **metrics: float) -> None:
        stopped.stopping.set()

    stopped.progress = progress  # type: ignore[method-assign]
    convert(what, stopped)
    if (what.out / "zarr.json").exists():  # two processes had all four under way
        assert cpus == 2
        return
    assert stopped.run.summary() is None
    kept = {name: stamp for name, stamp in stamps(what.out).items() if "/c/" in name}
    assert kept
    index = run(what)
    assert_exact(index, export)
    assert kept.items() <= stamps(what.out).items()


KILLED = """
import sys
from pathlib import Path
from hpc_isl.recipes.load import digest, load
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.stage import convert

if __name__ == "__main__":
    convert(load("convert", Path(sys.argv[2]), []), Attempt(Run(Path(sys.argv[1])), cpus=2))
"""


@pytest.mark.kill
@pytest.mark.timeout(300)
def test_killed_at_any_moment_and_started_again_the_plate_is_the_same(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", wells=("B02", "B03", "C04"), fields=3)
    expected = run(recipe(export, out=tmp_path / "whole.zarr"))
    out, script = tmp_path / "killed.zarr", tmp_path / "killed.py"
    script.write_text(KILLED)
    what = recipe(export, out=out)
    (tmp_path / "killed.yaml").write_text(to_yaml(what))
    command = [
        sys.executable,
        str(script),
        str(tmp_path / "runs" / "convert" / "x"),
        str(tmp_path / "killed.yaml"),
    ]
    rng, kills = random.Random(0), 0
    for count in (1, 3, 5, 8):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while process.poll() is None and images(out) < count:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if (out / "zarr.json").exists():
            break
        with pytest.raises(UserError, match="not finished"):
            open_plate(out)
        assert process.returncode == -signal.SIGKILL
    index = run(what)
    assert kills > 1
    assert index.fingerprint == expected.fingerprint
    ours, theirs = contents(out), contents(expected.path)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def images(plate: Path) -> int:
    return len(list(plate.glob("*/*/[!.]*/zarr.json")))


@pytest.mark.kill
@pytest.mark.timeout(120)
def test_a_converting_process_ended_from_outside_is_reported_and_its_field_is_redone(
    export: Path,
) -> None:
    what = recipe(export)
    ended = threading.Event()

    def end_one() -> None:
        import psutil

        while not ended.is_set():
            for child in psutil.Process().children(recursive=True):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    ended.set()
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=end_one, daemon=True)
    thread.start()
    with pytest.raises(RuntimeError, match="ended from outside"):
        convert(what, attempt(export.parent, 2))
    ended.set()
    thread.join()
    assert_exact(run(what), export)


def test_an_image_of_a_file_that_was_replaced_since_is_made_anew(export: Path) -> None:
    what = recipe(export)
    corrupt(plane_file(export, "B03", 2, 1, 0))
    with pytest.raises(UserError, match="B03/2"):
        run(what)
    before = stamps(what.out)
    path = plane_file(export, "B02", 1, 2, 1)
    tifffile.imwrite(path, tifffile.imread(path) + 1)
    tifffile.imwrite(plane_file(export, "B03", 2, 1, 0), np.ones(SHAPE, "uint16"))
    index = run(what)
    assert_exact(index, export)
    kept = {name for name, stamp in stamps(what.out).items() if before.get(name) == stamp and "/c/" in name}
    assert {name[:6] for name in kept} == {"B/02/2", "B/03/1"}


def test_two_conversions_to_one_plate_at_the_same_time_are_refused(export: Path) -> None:
    what = recipe(export)
    (what.out / "index").mkdir(parents=True)
    with (what.out / "index" / "conversion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is converting"):
            run(what)
    assert_exact(run(what), export)


def test_a_channel_that_the_files_call_by_a_number_needs_no_quotes(export: Path) -> None:
    """`pattern.channels={1: Hoechst}` names the channel that the files call 1."""
    words = [f"source={export}", f"out={export.parent}/P01.zarr", f"pattern.regex='{REGEX}'"]
    found = load("convert", None, [*words, "pattern.channels={1: Phase, 2: Hoechst}"])
    assert plan(found).messages[0].startswith("export: 4 fields in 2 wells, 2 channels (Phase, Hoechst)")


def test_ranks_beyond_the_first_leave_the_work_to_it(export: Path) -> None:
    convert(recipe(export), Attempt(Run(export.parent / "runs" / "convert" / "x"), rank=1, size=2))
    assert not recipe(export).out.exists()


@pytest.mark.parametrize(("cpus", "size"), [(1, "80k"), (2, "80k"), (1, "32k"), (1, "180k")])
def test_a_full_disk_is_a_user_error_and_the_conversion_resumes_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, size: str
) -> None:
    export, disk = write_export(tmp_path / "export"), tmp_path / "disk"
    with small_disk(disk, size):
        what = recipe(export, out=disk / "P01.zarr")
        monkeypatch.setattr("hpc_isl.stages.convert.survey.free", lambda folder: 10**9)
        with pytest.raises(UserError, match=r"disk/P01\.zarr.*: the disk is full: [\d,]+ bytes are needed"):
            run(what, cpus)
        with pytest.raises(UserError, match="not finished"):
            open_plate(what.out)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert_exact(run(what), export)


# ---------------------------------------------------------------- another plate


def test_a_plate_from_another_source_or_recipe_is_not_overwritten(export: Path, tmp_path: Path) -> None:
    index = run(recipe(export))
    other = write_export(tmp_path / "other", wells=("C05",))
    for what in (recipe(other), recipe(export, codec={"chunk": 64}), recipe(export, name="P02")):
        with pytest.raises(UserError, match=r"holds another plate, from .*export.*; choose another out$"):
            plan(what)
        with pytest.raises(UserError, match="choose another out"):
            run(what)
    assert open_plate(index.path) == index


def test_a_half_converted_plate_of_another_recipe_is_refused_with_the_way_out(export: Path) -> None:
    corrupt(plane_file(export, "B03", 2, 1, 0))
    with pytest.raises(UserError, match="B03/2"):
        run(recipe(export))
    with pytest.raises(UserError, match=r"a half-converted plate, from .* or by another recipe; choose"):
        plan(recipe(export, levels=2))
    assert "half converted" in "\n".join(plan(recipe(export, on_error="skip")).messages)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_folders_that_convert_did_not_make_are_not_touched(export: Path, kind: str) -> None:
    out = export.parent / "P01.zarr"
    thing = out / "precious" if kind == "folder" else out
    thing.parent.mkdir(exist_ok=True)
    thing.write_text("years of work")
    with pytest.raises(UserError, match="was not made by convert"):
        plan(recipe(export))
    assert thing.read_text() == "years of work"


# ---------------------------------------------------------------- damage


def damage(export: Path) -> None:
    truncate(plane_file(export, "B02", 1, 1, 0))
    plane_file(export, "B02", 2, 2, 0).write_bytes(b"")
    odd = plane_file(export, "B03", 1, 2, 1)
    tifffile.imwrite(odd, tifffile.imread(odd).astype("uint8"))


def test_damaged_fields_are_named_together_and_nothing_is_finished(export: Path) -> None:
    damage(export)
    with pytest.raises(UserError) as raised:
        run(recipe(export))
    output = str(raised.value)
    assert output.startswith("3 of 4 fields are damaged:")
    for name in ("B02_s1_w1_z0.tif", "B02_s2_w2_z0.tif", "B03_s1_w2_z1.tif", "on_error=skip"):
        assert name in output
    assert "3 of 4 fields are damaged: 2 damaged, 1 differing" in output
    assert not (recipe(export).out / "zarr.json").exists()


def test_a_damaged_file_that_only_decoding_finds_is_named_with_the_others(export: Path) -> None:
    corrupt(plane_file(export, "B03", 2, 1, 1))
    with pytest.raises(UserError, match=r"(?s)1 of 4 fields are damaged:.*B03/2: .*B03_s2_w1_z1\.tif"):
        run(recipe(export), cpus=2)


def test_pixels_that_are_no_number_are_named_and_left_out(export: Path) -> None:
    for path in export.glob("*.tif"):
        pixels = tifffile.imread(path).astype(np.float32)
        pixels[3, 4] = np.nan if path.name == "B03_s2_w1_z1.tif" else 1.0
        tifffile.imwrite(path, pixels)
    text = r"B03_s2_w1_z1\.tif: some of its pixels are NaN or infinite"
    with pytest.raises(UserError, match=rf"(?s)1 of 4 fields are damaged:.*{text}"):
        run(recipe(export))
    assert not run(recipe(export, on_error="skip")).imaged(FieldKey("B03", "2"))[0, 0, 1]


def test_channels_that_no_type_holds_together_are_named(export: Path) -> None:
    for path in export.glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path).astype("int32" if "_w1_" in path.name else "uint32"))
    with pytest.raises(UserError, match="its channels are int32, uint32, and no type of 32 bits holds"):
        run(recipe(export))


def test_fields_that_only_the_case_of_letters_tells_apart_are_named(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    for name in ("a", "A"):
        tifffile.imwrite(tmp_path / "export" / f"B02_{name}.tif", np.zeros(SHAPE, np.uint16))
    pattern = {"regex": r"(?P<well>\w\d+)_(?P<field>\w)\.tif"}
    with pytest.raises(UserError, match="fields B02/A and B02/a would share a folder: name one otherwise"):
        plan(recipe(tmp_path / "export", pattern=pattern))


def test_planes_that_equal_another_are_stored_and_remarked(export: Path, capsys: Any) -> None:
    """A dark plane equals another dark one by right, so that equal bytes prove no copy."""
    for plane in (0, 1):
        tifffile.imwrite(plane_file(export, "B03", 1, 2, plane), np.zeros(SHAPE, np.uint16))
    index = run(recipe(export))
    assert index.imaged(FieldKey("B03", "1")).all()
    output = capsys.readouterr().out
    assert "1 plane of 1 field, as B03/1, bit for bit like another plane of the field" in output


def test_a_plane_of_another_type_is_the_one_named(export: Path) -> None:
    """Of two planes either could be odd: those of the other fields tell; so of a channel with one plane."""
    odd = [plane_file(export, "B03", 2, 1, 0), plane_file(export, "B02", 1, 2, 0)]
    for path in odd:
        tifffile.imwrite(path, tifffile.imread(path).astype("uint8"))
    with pytest.raises(UserError) as error:
        run(recipe(export))
    for path in odd:
        assert f"{path.name} is uint8 of 50 × 70 pixels, other planes are uint16" in str(error.value)
    assert "2 of 4 fields are damaged" in str(error.value)


def test_damaged_planes_are_left_out_recorded_and_the_others_are_stored(
    export: Path, judge: Callable[[Path], None]
) -> None:
    damage(export)
    for plane in export.glob("B03_s2_*.tif"):
        truncate(plane)
    index = run(recipe(export, on_error="skip"))
    assert [str(field.key) for field in index.plate.fields] == ["B02/1", "B02/2", "B03/1"]
    assert {str(key) for key, _, _ in index.problems} == {"B02/1", "B02/2", "B03/1", "B03/2"}
    lost = {(key, c, z) for key, mask in masks(index).items() for _, c, z in np.argwhere(~mask).tolist()}
    assert lost == {("B02/1", 0, 0), ("B02/2", 1, 0), ("B03/1", 1, 1)}
    assert_exact(index, export)
    found = summary(recipe(export))
    assert (found["skipped"], found["incomplete"]) == (1, 3)
    table = Path(found["made"]["problems"]).read_text()
    assert "B03,1,0,differing," in table
    assert "B03_s1_w2_z1.tif" in table
    judge(index.path)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_plane_that_only_decoding_finds_damaged_is_left_out_too(export: Path, cpus: int) -> None:
    """Its place is not imaged: no statistic holds its zeros, and a run that goes on says so again."""
    corrupt(plane_file(export, "B03", 2, 1, 1))
    what = recipe(export, on_error="skip")
    index = run(what, cpus)
    assert not masks(index)["B03/2"][0, 0, 1]
    assert masks(index)["B03/2"].sum() == 3
    field = index.field(FieldKey("B03", "2"))
    assert field.details["planes"] == {"Phase": [0], "DAPI": [0, 1]}
    assert index.statistics[field.key].histograms[0].total == 50 * 70
    [(key, text, _)] = index.problems
    assert str(key) == "B03/2"
    assert "B03_s2_w1_z1.tif is damaged" in text
    (what.out / "zarr.json").unlink()  # killed before the plate was finished
    again = run(what)
    assert again == index
    (what.out / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"1 of 4 fields are damaged.*\n.*B03_s2_w1_z1\.tif is damaged"):
        run(recipe(export))


def test_a_file_that_changes_while_it_is_read_is_no_plane(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instrument may still be writing: nothing half-read is stored, and the field is named."""
    from hpc_isl.stages.convert import field

    path, whole = plane_file(export, "B03", 2, 1, 1), field.assemble

    def grown(*given: Any) -> Any:
        found = whole(*given)
        if given[0].key == FieldKey("B03", "2"):
            path.write_bytes(path.read_bytes() + b"more")
        return found

    monkeypatch.setattr(field, "assemble", grown)
    with pytest.raises(UserError, match=r"(?s)1 of 4 fields are damaged.*B03/2: its files changed while"):
        run(recipe(export))
    index = run(recipe(export, on_error="skip"))
    assert "B03/2" not in masks(index)


def test_planes_that_were_skipped_join_the_plate_when_their_files_are_repaired(export: Path) -> None:
    path = plane_file(export, "B02", 1, 1, 0)
    pixels = tifffile.imread(path)
    truncate(path)
    first = run(recipe(export, on_error="skip"))
    assert "nothing to convert" in "\n".join(plan(recipe(export, on_error="skip")).messages)
    tifffile.imwrite(path, pixels)
    index = run(recipe(export, on_error="skip"))
    assert masks(first)["B02/1"].sum() == 3
    assert all(mask.all() for mask in masks(index).values())
    assert index.problems == ()
    assert_exact(index, export)


def masks(index: Index) -> dict[str, Any]:
    """Field -> which of its planes (t, c, z) were imaged."""
    return {str(field.key): index.imaged(field.key) for field in index.plate.fields}


def test_killed_while_repaired_fields_join_the_plate_it_is_finished_by_the_next_run(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plane_file(export, "B02", 1, 1, 0)
    pixels = tifffile.imread(path)
    truncate(path)
    what = recipe(export, on_error="skip")
    run(what)
    tifffile.imwrite(path, pixels)

    def killed(*parts: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            "hpc_isl.plates.ngff.plate_group", killed
        )  # after the index, before the plate's own file
        with pytest.raises(KeyboardInterrupt):
            run(what)
    assert open_plate(what.out).problems
    index = run(what)
    assert index.problems == ()
    assert_exact(index, export)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_plate_of_damaged_fields_alone_is_a_user_error(export: Path, on_error: str) -> None:
    for path in export.glob("*.tif"):
        corrupt(path)
    with pytest.raises(UserError, match="B02/1"):
        run(recipe(export, on_error=on_error))
    assert not (recipe(export).out / "zarr.json").exists()


def test_hundreds_of_damaged_fields_fit_one_screen(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", wells=("B02", "B03", "B04"), fields=9, planes=1)
    for path in export.glob("*_w1_z0.tif"):
        path.write_bytes(b"")
    path = plane_file(export, "B02", 1, 1, 0)
    tifffile.imwrite(path, np.ones(SHAPE, "uint16"))
    with pytest.raises(UserError) as raised:
        plan(recipe(export))
    assert "and 6 more" in str(raised.value)
    assert len(str(raised.value).splitlines()) < 25


# ---------------------------------------------------------------- real exports


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "fields", "channels"),
    [("phenix_brightfield", 1, 6), ("phenix_phase", 1, 6), ("operetta_sonata/operetta_plate", 2, 1)],
)
def test_real_harmony_exports_convert_to_the_pixel(
    realdata: Path, tmp_path: Path, judge: Callable[[Path], None], name: str, fields: int, channels: int
) -> None:
    what = ConvertRecipe(source=realdata / "vendor" / name, out=tmp_path / "P.zarr")
    index = run(what)
    assert len(index.plate.fields) == fields
    assert len(index.plate.channels) == channels
    assert index.plate.pixel_um is not None
    from hpc_isl.plates.readers import detect

    compared = 0
    for key, files in detect.read(what).files.items():
        image = open_level(index.image(key), 0).read().result()
        for file in files:
            np.testing.assert_array_equal(image[file.channel, file.plane], tifffile.imread(file.path))
            compared += 1
    assert compared == fields * channels
    judge(index.path)


@pytest.mark.realdata
def test_the_planes_of_isl_google_convert_in_order(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "isl-google"
    pattern = {
        "regex": r"condition_(?P<image>\w+)/(?P<channel>phase|DAPI)_[A-Za-z]+_z?(?P<plane>\d*)\w*\.png",
        "channels": {"phase": "Phase", "DAPI": "DAPI"},
        "transmitted": ["Phase"],
    }
    index = run(
        ConvertRecipe.model_validate({"source": folder, "out": tmp_path / "P.zarr", "pattern": pattern})
    )
    (field,) = index.plate.fields
    image = open_level(index.image(field.key), 0).read().result()
    from PIL import Image

    for plane, number in enumerate((2, 4, 6, 8, 10)):
        path = folder / "condition_B_well_A4" / f"phase_contrast_z{number:02d}.png"
        np.testing.assert_array_equal(image[0, plane], np.asarray(Image.open(path)))
    assert {(c, z) for _, c, z in index.statistics[field.key].planes} == {*((0, z) for z in range(5)), (1, 0)}


@pytest.mark.realdata
def test_the_planes_of_sephace_convert_in_order_of_height(realdata: Path, tmp_path: Path) -> None:
    what = load(
        "convert", Path("patterns/sephace.yaml"), [f"source={realdata / 'sephace'}", f"out={tmp_path}/P.zarr"]
    )
    assert isinstance(what, ConvertRecipe)
    index = run(what)
    assert len(index.plate.fields) == 2
    for field, folder in zip(index.plate.fields, ("set1", "set2"), strict=True):
        heights = sorted(
            (float(path.stem.rpartition("-Z")[2]), path)
            for path in (realdata / "sephace" / folder).glob("*-Z*.tif")
        )
        channel = next(n for n, c in enumerate(index.plate.channels) if not c.fluorescent)
        image = open_level(index.image(field.key), 0).read().result()[channel]
        assert len(image) == len(heights) == 6
        for plane, (_, path) in zip(image, heights, strict=True):
            np.testing.assert_array_equal(plane, tifffile.imread(path))


# ---------------------------------------------------------------- channels of another size


def halved(export: Path, channel: int, edge: tuple[int, int] = (25, 35)) -> None:
    """Makes the planes of a channel smooth and half as large, as a camera with binning would take them."""
    for path in export.glob(f"*_w{channel}_*.tif"):
        ramp = np.add.outer(100.0 * np.arange(edge[0]), 10.0 * np.arange(edge[1]))
        tifffile.imwrite(path, ramp.astype("uint16"))


def test_a_channel_of_another_size_is_left_out_unless_resampling_is_asked_for(export: Path) -> None:
    halved(export, 1)
    text = "\n".join(plan(recipe(export)).messages)
    assert "channel 'Phase' has 25 × 35 pixels, the others 50 × 70: it is left out" in text
    assert "resample=true does it" in text
    what = recipe(export, resample=True)
    assert "it is resampled to these" in "\n".join(plan(what).messages)
    index = run(what)
    assert [channel.name for channel in index.plate.channels] == ["Phase", "DAPI"]
    for field in index.plate.fields:
        assert field.shape[-2:] == SHAPE
        phase, dapi = (read_box(index.image(field.key), 0, 0, c, [1], ALL, ALL)[0] for c in (0, 1))
        # Pixel p of the finer grid lies at (p - 0.5) / 2 of the coarser one.
        y, x = (np.clip((np.arange(n) - 0.5) / 2, 0, n // 2 - 1) for n in SHAPE)
        np.testing.assert_allclose(phase, np.add.outer(100 * y, 10 * x), atol=0.51)
        path = plane_file(export, field.key.well, int(field.key.name), 2, 1)
        np.testing.assert_array_equal(dapi, tifffile.imread(path))


def test_a_channel_that_shows_another_area_is_never_resampled(export: Path) -> None:
    halved(export, 1, (40, 35))
    text = "\n".join(plan(recipe(export, resample=True)).messages)
    assert (
        "channel 'Phase' has 40 × 35 pixels, the others 50 × 70: it is left out, for it shows another" in text
    )


def test_a_channel_of_another_size_in_a_harmony_export_is_resampled(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "export", wells=1, fields=1, size=64, planes=1)
    images = tmp_path / "export" / "Images"
    whole = {path.name: tifffile.imread(path) for path in images.glob("*ch2*.tiff")}
    for name, pixels in whole.items():
        tifffile.imwrite(images / name, pixels.reshape(32, 2, 32, 2).mean(axis=(1, 3)).astype("uint16"))
    index_file = images / "Index.idx.xml"
    parts = index_file.read_text(encoding="utf-8").split("<Image ")
    for number, part in enumerate(parts):
        if "<ChannelID>2<" in part:
            part = part.replace("<ImageSizeX>64", "<ImageSizeX>32").replace(
                "<ImageSizeY>64", "<ImageSizeY>32"
            )
            parts[number] = part.replace("5.980000E-07", "1.196000E-06")
    index_file.write_text("<Image ".join(parts), encoding="utf-8")
    left = run(recipe(tmp_path / "export", pattern=None))
    assert len(left.plate.channels) == 2
    index = run(recipe(tmp_path / "export", pattern=None, resample=True, out=tmp_path / "P02.zarr"))
    assert [channel.name for channel in index.plate.channels][1] == "HOECHST 33342"
    assert (index.plate.pixel_um, index.plate.fields[0].shape[-2:]) == (0.598, (64, 64))
    stored = read_box(index.image(index.plate.fields[0].key), 0, 0, 1, [0], ALL, ALL)[0]
    [pixels] = whole.values()
    assert np.corrcoef(stored.ravel(), pixels.ravel())[0, 1] > 0.9


def test_an_image_whose_record_is_no_mapping_is_converted_anew(tmp_path: Path) -> None:
    for record in (None, "text", ["inputs"]):
        (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"hpc_isl": record}}))
        assert recorded_problems(tmp_path, "digest") is None
