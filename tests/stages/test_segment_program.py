"""Another program segments whole plates: the labels, tables, records and resumption of a network's run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import field_files
import numpy as np
import pyarrow.parquet as pq
import pytest
from left_on_disk import differing, left_by
from made_up_screen import write_screen
from scipy.ndimage import label

from hpc_isl.api.models import load_model
from hpc_isl.api.plates import open_plate as open_plate_
from hpc_isl.errors import UserError
from hpc_isl.plates.store import Index, open_plate, read_box, read_labels, write_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.finetune.stage import finetune
from hpc_isl.stages.finetune.stage import plan as plan_finetune
from hpc_isl.stages.segment.inputs import segment_inputs
from hpc_isl.stages.segment.stage import plan, segment
from hpc_isl.tasks import Answer

if TYPE_CHECKING:
    from tests.conftest import CommandLine

SCRIPT = Path(__file__).parents[1] / "support" / "threshold_program.py"
TRAIN = [sys.executable, str(SCRIPT), "train", "{images}", "{labels}", "{model}", "{seed}"]
PREDICT = [sys.executable, str(SCRIPT), "predict", "{images}", "{model}", "{out}"]
LEVEL = 3000


class Here:
    """The pool of a test: every task in this process; what a task raises is its problem."""

    workers = 1

    def run(self, call: Callable[[Any], Any], tasks: Iterator[Any]) -> Iterator[Answer]:
        with ThreadPoolExecutor(1) as pool:
            for task in tasks:
                future = pool.submit(call, task.argument)
                error = future.exception()
                yield Answer(task.name, problem=str(error)) if error else Answer(task.name, future.result())

    @contextmanager
    def __call__(self, need: Any) -> Iterator[Here]:
        yield self


def stain(index: Index, key: Any) -> Any:
    return read_box(index.image(key), 0, 0, index.channel("Hoechst"), [0], slice(None), slice(None))[0]


def trained(root: Path, name: str, index: Index, *keys: str, predict: list[str] = PREDICT) -> Run:
    """A run of finetune in which the program has learnt from all fields of a plate."""
    for field in index.plate.fields:
        image, objects = index.image(field.key), label(stain(index, field.key) > LEVEL)[0].astype(np.uint32)
        box = (0, 0, *field.shape[-2:])
        write_labels(image, "drawn", objects, origin="human", boxes=[box], overwrite=True)
    programs = [{"name": "threshold", "train": TRAIN, "predict": predict, "memory_gb": 0.5}]
    words = [f"plates=[{index.path}]", "labels=drawn", "sources=[{channel: Hoechst}]", "train_on_all=true",
             f"programs={json.dumps(programs)}", "arm=threshold", "objects.kind=cells", *keys]  # fmt: skip
    run = Run(root / "runs" / "finetune" / name)
    recipe = plan_finetune(load("finetune", None, words)).recipe
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(recipe))
    finetune(recipe, Attempt(run))
    return run


def segmented(root: Path, name: str, *words: str, number: int = 0) -> Run:
    run = Run(root / "runs" / "segment" / name)
    recipe = plan(load("segment", None, list(words))).recipe
    run.folder.mkdir(parents=True, exist_ok=True)
    run.recipe.write_text(to_yaml(recipe))
    segment(recipe, Attempt(run, number), Here())
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    trained(folder, "own", write_screen(folder / "S0.zarr", wells=["B02"], fields=2))
    return folder


def records(run: Run) -> list[dict[str, Any]]:
    return list(field_files.records(run.folder).values())


def test_it_gives_the_labels_and_the_tables_of_a_plate(root: Path) -> None:
    index = write_screen(root / "S1.zarr", wells=["B02", "B03"], fields=2)
    run = segmented(
        root, "all", f"model={root}/runs/finetune/own", f"plates=[{root}/S1.zarr]", "labels=found"
    )
    rows = records(run)
    assert {row["device"] for row in rows} == {"program threshold"}
    objects = pq.read_table(run.folder / "tables" / "S1.parquet").to_pandas()
    for field, row in zip(index.plate.fields, rows, strict=True):
        truth, count = label(stain(index, field.key) > LEVEL)
        labels = read_labels(index.image(field.key), "found")
        # The threshold that was learnt lies between two counts of other fields: within noise of the true one.
        assert row["objects"] == labels.max() == pytest.approx(count, abs=2)
        assert ((labels > 0) == (truth > 0)).mean() > 0.999
        own = objects[(objects.well == field.key.well) & (objects.field == field.key.name)]
        areas = np.bincount(labels.ravel())[1:] * 0.25
        np.testing.assert_allclose(own.area_um2, areas)
    assert not (run.folder / "scratch").exists()
    assert run.summary()["figures"]["lost fields"] == 0  # type: ignore[index]
    # Notebooks call the same program.
    field = next(iter(open_plate_(root / "S1.zarr")))
    model = load_model(root / "runs" / "finetune" / "own")
    np.testing.assert_array_equal(
        model.segment(field), read_labels(index.image(index.plate.fields[0].key), "found")
    )
    assert repr(model).startswith("<Model program threshold: Hoechst")
    with pytest.raises(UserError, match="gives labels alone"):
        model.predict(np.zeros((1, 1, 8, 8)))


def test_finer_pixels_are_seen_as_the_model_saw_them_and_labels_are_of_full_resolution(root: Path) -> None:
    index = write_screen(root / "S2.zarr", wells=["B02"], fields=1, shape=(191, 255), pixel_um=0.25)
    segmented(root, "fine", f"model={root}/runs/finetune/own", f"plates=[{root}/S2.zarr]", "labels=found")
    labels = read_labels(index.image(index.plate.fields[0].key), "found")
    assert labels.shape == (191, 255)
    assert labels.max() > 3
    rows, columns = labels.shape[0] // 2 * 2, labels.shape[1] // 2 * 2
    # Each pixel of the model is four of the plate's.
    blocks = labels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_a_field_that_fails_is_named_and_nothing_of_it_is_kept(root: Path) -> None:
    """The program fails where it sees no cell, after it has written something."""
    script = root / "picky.py"
    script.write_text(
        "import sys, runpy, tifffile\nfrom pathlib import Path\n"
        "if tifffile.imread(Path(sys.argv[2]) / '00000.tif').max() < 1500:\n"
        "    (Path(sys.argv[4]) / '00000.tif').write_bytes(b'torn')\n    sys.exit('there is no cell')\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    trained(root, "picky", open_plate(root / "S0.zarr"), predict=[sys.executable, str(script), *PREDICT[2:]])
    index = write_screen(root / "S3.zarr", wells=["B02", "B03"], fields=1, empty=["B03"])
    words = (f"model={root}/runs/finetune/picky", f"plates=[{root}/S3.zarr]", "labels=found")
    run = segmented(root, "picky", *words, "empty_fields=segment")
    whole, failed = records(run)
    assert whole["objects"] > 0
    assert failed["problem"] == (
        "threshold: predict: failed with exit code 1; its last lines:\n  there is no cell"
    )
    assert "there is no cell" in (run.folder / "losses.csv").read_text()
    assert set(pq.read_table(run.folder / "tables" / "S3.parquet")["well"].to_pylist()) == {"B02"}
    assert not list(index.image(index.plate.fields[1].key).glob("labels/*found*"))
    assert not (run.folder / "scratch").exists()
    # Of an empty field the program need not be asked.
    assert all("problem" not in row for row in records(segmented(root, "zero", *words, "overwrite=true")))


def test_what_is_for_networks_alone_is_refused(root: Path) -> None:
    write_screen(root / "S4.zarr", wells=["B02"], fields=1)
    words = [f"model={root}/runs/finetune/own", f"plates=[{root}/S4.zarr]", "labels=found"]

    def refused(*more: str) -> str:
        with pytest.raises(UserError) as error:
            plan(load("segment", None, [*words, *more]))
        return str(error.value)

    assert "this model finds objects by another program" in refused("h_maxima=10")
    assert "outputs: mask cannot be kept" in refused("outputs=[mask]")
    assert "precision: is for networks, and this model is another program, threshold" in refused(
        "precision=bf16"
    )
    assert "predict: is for networks" in refused("predict={tile: 64}")
    assert "is not cut for another program, threshold: raise max_pixels_in_memory" in refused(
        "max_pixels_in_memory=1000"
    )
    planned = plan(load("segment", None, words))
    assert any("another program, " in line and "{images}" in line for line in planned.messages)
    assert not [line for line in planned.messages if "warning" in line]


def test_a_script_edited_since_it_was_scored_is_told(root: Path) -> None:
    script = root / "edited.py"
    script.write_text(SCRIPT.read_text())
    trained(root, "edited", open_plate(root / "S0.zarr"), predict=[sys.executable, str(script), *PREDICT[2:]])
    script.write_text(SCRIPT.read_text() + "\n")
    write_screen(root / "S5.zarr", wells=["B02"], fields=1)
    words = [f"model={root}/runs/finetune/edited", f"plates=[{root}/S5.zarr]", "labels=found"]
    messages = plan(load("segment", None, words)).messages
    assert (
        "warning: a file that the commands of threshold name is another than when it was scored" in messages
    )


def test_smaller_objects_are_dropped_where_that_is_asked_for(root: Path) -> None:
    write_screen(root / "S6.zarr", wells=["B02"], fields=1)
    words = [f"model={root}/runs/finetune/own", f"plates=[{root}/S6.zarr]"]
    every, kept = (
        records(segmented(root, name, *words, f"labels={name}", *more))[0]
        for name, more in (("every", ()), ("kept", ("min_area=100",)))
    )
    index = open_plate(root / "S6.zarr")
    areas = np.bincount(read_labels(index.image(index.plate.fields[0].key), "every").ravel())[1:]
    assert every["dropped"] == [0]
    assert (kept["objects"], kept["dropped"]) == ((areas >= 100).sum(), [int((areas < 100).sum())])


@pytest.mark.kill
def test_killed_and_resumed_it_ends_as_one_that_was_left_alone(
    root: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    """The rank is killed while the program runs: no process stays, no field is computed twice."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"import runpy, time\ntime.sleep(0.5)\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    trained(tmp_path, "own", open_plate(root / "S0.zarr"), predict=[sys.executable, str(slow), *PREDICT[2:]])
    index = write_screen(tmp_path / "S7.zarr", wells=["B02", "B03", "B04"], fields=2)
    shutil.copytree(tmp_path / "S7.zarr", tmp_path / "copy" / "S7.zarr")
    site = ("site.workers=1", "site.memory=4G", "site.tracking=none")

    def words(plate: str, name: str) -> tuple[str, ...]:
        return ("segment", "model=own", f"plates={plate}", "labels=found", "--name", name, *site)

    alone = command_line(*words("S7.zarr", "alone"))
    assert alone.returncode == 0, alone.stdout
    run = command_line.cwd / "runs" / "segment" / "killed"
    call = command_line.open(*words("copy/S7.zarr", "killed"))
    assert command_line.eventually(lambda: len(list(run.glob("fields/*/*.json"))) >= 2, 120)
    for process in command_line.left():
        process.kill()
    call.communicate(timeout=60)
    done = field_files.records(run)
    assert 2 <= len(done) < len(index.plate.fields)
    assert command_line.eventually(lambda: command_line.left() == [])
    assert command_line.eventually(lambda: " running" not in command_line("status", "killed").stdout)
    resumed = command_line("resume", "killed")
    assert resumed.returncode == 0, resumed.stdout
    assert {name: record for name, record in field_files.records(run).items() if name in done} == done
    first = left_by(command_line.cwd / "runs" / "segment" / "alone", [tmp_path / "S7.zarr"])
    second = left_by(run, [tmp_path / "copy" / "S7.zarr"])
    assert differing(first, second) == []
    assert not (run / "scratch").exists()


def test_another_model_of_the_same_program_makes_other_fingerprints(root: Path) -> None:
    write_screen(root / "S8.zarr", wells=["B02"], fields=1)
    words = [f"model={root}/runs/finetune/own", f"plates=[{root}/S8.zarr]", "labels=found"]

    def fingerprint() -> str:
        recipe = load("segment", None, words)
        assert isinstance(recipe, SegmentRecipe)
        [plate] = segment_inputs(recipe).plates
        return plate.labels_fingerprint(plate.keys[0])

    contract = root / "runs" / "finetune" / "own" / "model" / "contract.json"
    kept, first = contract.read_text(), fingerprint()
    assert fingerprint() == first
    try:
        for key, value in (("weights", "0" * 64), ("program_files", "0" * 32)):
            contract.write_text(json.dumps(json.loads(kept) | {key: value}))
            assert fingerprint() != first
    finally:
        contract.write_text(kept)
