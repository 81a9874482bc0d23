"""Segmentation as a stage: fields to labels, tables and records, the same however the work was done."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from made_up_screen import save_model, write_screen
from skimage.measure import regionprops_table

from hpc_isl.learning.model import load as load_model
from hpc_isl.learning.predict import predict
from hpc_isl.learning.samples import read
from hpc_isl.mistake import Mistake
from hpc_isl.objects.draft import in_raster_order, without_small
from hpc_isl.objects.flood import reference
from hpc_isl.plates.store import label_names, open_plate, read_box, read_labels, write_labels
from hpc_isl.recipe import load
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.inspect import validate
from hpc_isl.stages.segment import plan, segment
from hpc_isl.strict import to_yaml
from hpc_isl.tasks import Answer


class Here:
    """Tasks computed in this process, in an order of our choosing; `wrong` fail."""

    workers = 1

    def __init__(self, order=lambda tasks: tasks, threads=1, stop=None, wrong=()):
        self.order, self.threads, self.stop, self.wrong = order, threads, stop, wrong
        self.computed = []

    def run(self, call, tasks):
        def answer(task):
            if any(word in task.name for word in self.wrong):
                return Answer(task.name, problem="its process died 3 times")
            try:
                self.computed.append(task.name)
                return Answer(task.name, call(task.argument))
            except Mistake as mistake:
                return Answer(task.name, problem=str(mistake))

        with ThreadPoolExecutor(self.threads) as pool:
            for number, found in enumerate(pool.map(answer, self.order(list(tasks)))):
                if self.stop is not None and number == self.stop[0]:
                    self.stop[1].set()
                    return
                yield found

    @contextmanager
    def __call__(self, memory):
        self.memory = memory
        yield self


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a plate and models of random weights."""
    folder = tmp_path_factory.mktemp("segment")
    write_screen(folder / "S1.zarr")
    for kind in ("cells", "nuclei"):
        save_model(folder / "runs" / "finetune" / kind, kind=kind)
    return folder


def segmented(lab, tmp_path, *keys, pool=None, model="cells", name="all", copy=True):
    """The run, of a copy of the plate."""
    if copy:
        shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    model = f"model={lab}/runs/finetune/{model}"
    recipe = load("segment", None, [model, f"plates=[{tmp_path}/S1.zarr]", "labels=found", *keys])
    run = Run(tmp_path / "runs" / "segment" / name)
    planned = plan(recipe)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.recipe.write_text(to_yaml(planned.recipe))
    segment(planned.recipe, Attempt(run), pool or Here())
    return run


def hashes(run):
    """Content of all fields by name, and the bytes of the tables of plates."""
    records = [json.loads(path.read_text()) for path in sorted(run.folder.glob("fields/*/*.json"))]
    tables = {path.name: path.read_bytes() for path in run.folder.glob("tables/*.parquet")}
    return {(one["plate"], one["well"], one["field"]): one["hash"] for one in records}, tables


def shards(plate):
    """The bytes of every shard of labels, at all levels."""
    files = [path for path in plate.rglob("labels/**/c/**/*") if path.is_file()]
    return {path.relative_to(plate): path.read_bytes() for path in files}


def test_labels_are_the_flood_of_what_the_network_says_of_whole_fields(lab, tmp_path):
    segmented(lab, tmp_path)
    index = open_plate(tmp_path / "S1.zarr")
    network, contract = load_model(lab / "runs" / "finetune" / "cells" / "model")
    for field in index.plate.fields:
        distance, logit = predict(network, read(contract.view, index, field.key)[0])
        expected = without_small(reference(distance, logit > 0, contract.task.h), contract.task.min_area)
        found = read_labels(index.image(field.key), "found")
        assert found.max() > 20
        np.testing.assert_array_equal(found, in_raster_order(expected))
    assert validate(tmp_path / "S1.zarr") == []


def test_nuclei_are_the_components_of_the_mask(lab, tmp_path):
    segmented(lab, tmp_path, "min_area=0", model="nuclei")
    index = open_plate(tmp_path / "S1.zarr")
    network, contract = load_model(lab / "runs" / "finetune" / "nuclei" / "model")
    key = index.plate.fields[0].key
    mask = predict(network, read(contract.view, index, key)[0])[0] > 0
    np.testing.assert_array_equal(read_labels(index.image(key), "found") > 0, mask)


def test_one_row_for_each_object_as_scikit_image_measures_it(lab, tmp_path):
    run = segmented(lab, tmp_path)
    index = open_plate(tmp_path / "S1.zarr")
    objects = pd.read_parquet(run.folder / "objects")
    assert len(objects) == json.loads((run.done / "segment.json").read_text())["figures"]["objects"]
    key = index.plate.fields[1].key
    labels = read_labels(index.image(key), "found")
    stain = read_box(index.image(key), 0, 0, 1, [0], slice(None), slice(None))[0]
    expected = pd.DataFrame(
        regionprops_table(labels, stain, properties=("label", "area", "centroid", "intensity_mean"))
    )
    own = objects[(objects.well == key.well) & (objects.field == key.name)].set_index("label")
    np.testing.assert_array_equal(own.index, expected.label)
    np.testing.assert_allclose(own.area_um2, expected.area * 0.25)
    np.testing.assert_allclose(own.centroid_y_um, expected["centroid-0"] * 0.5)
    np.testing.assert_allclose(own.Hoechst_mean, expected.intensity_mean)


@pytest.mark.parametrize("threads", [1, 3])
def test_order_and_threads_change_nothing(lab, tmp_path, threads):
    plain = hashes(segmented(lab, tmp_path / "a"))
    other = Here(order=lambda tasks: tasks[::-1], threads=threads)
    assert hashes(segmented(lab, tmp_path / "b", pool=other)) == plain


def test_a_stopped_run_goes_on_where_it_stood(lab, tmp_path):
    plain = hashes(segmented(lab, tmp_path / "a"))
    stopping = threading.Event()
    shutil.copytree(lab / "S1.zarr", tmp_path / "b" / "S1.zarr")
    first, second = Here(stop=(2, stopping)), Here()
    run = segmented(lab, tmp_path / "b", pool=first, copy=False)
    assert run.summary() is None
    segmented(lab, tmp_path / "b", pool=second, copy=False)
    assert len(second.computed) < 4
    assert hashes(run) == plain


def test_a_field_without_its_table_or_labels_is_computed_again(lab, tmp_path):
    run = segmented(lab, tmp_path)
    plain = hashes(run)
    next(run.folder.glob("objects/*/B02-1.parquet")).unlink()
    shutil.rmtree(tmp_path / "S1.zarr" / "B" / "03" / "2" / "labels" / "found")
    again = Here()
    segmented(lab, tmp_path, pool=again, copy=False)
    assert {Path(name).stem for name in again.computed} == {"B02-1", "B03-2"}
    assert hashes(run) == plain


def test_a_damaged_field_is_listed_and_the_others_are_complete(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    for shard in (tmp_path / "S1.zarr" / "B" / "02" / "2" / "0").glob("c/**/*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:100])
    run = segmented(lab, tmp_path, copy=False)
    losses = pd.read_csv(run.folder / "losses.csv", dtype=str)
    assert losses[["well", "field"]].to_numpy().tolist() == [["B02", "2"]]
    assert "cannot be read" in losses.problem[0]
    assert run.summary()["figures"]["lost fields"] == 1
    table = pq.read_table(run.folder / "tables" / "S1.parquet").to_pandas()
    assert set(zip(table.well, table.field, strict=True)) == {("B02", "1"), ("B03", "1"), ("B03", "2")}


def test_a_run_of_nothing_but_losses_fails(lab, tmp_path):
    with pytest.raises(RuntimeError, match="no field could be segmented; the first: its process died"):
        segmented(lab, tmp_path, pool=Here(wrong=["S1"]))


def test_what_the_network_says_is_kept_as_a_plate(lab, tmp_path):
    run = segmented(lab, tmp_path, "write=[distance, mask]")
    kept = open_plate(run.folder / "maps" / "S1.zarr")
    assert [channel.name for channel in kept.plate.channels] == ["distance", "mask (logit)"]
    key = kept.plate.fields[0].key
    index = open_plate(tmp_path / "S1.zarr")
    network, contract = load_model(lab / "runs" / "finetune" / "cells" / "model")
    expected = predict(network, read(contract.view, index, key)[0])
    whole = slice(None)
    found = [read_box(kept.image(key), 0, 0, channel, [0], whole, whole)[0] for channel in (0, 1)]
    np.testing.assert_array_equal(np.stack(found), expected)
    assert label_names(index.image(key)) == []


def test_labels_that_people_drew_stay(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    index = open_plate(tmp_path / "S1.zarr")
    key = index.plate.fields[0].key
    drawn = np.zeros((96, 128), np.uint32)
    drawn[10:20, 10:20] = 7
    write_labels(index.image(key), "found", drawn, origin="human", boxes=[(0, 0, 96, 128)])
    segmented(lab, tmp_path, copy=False)
    np.testing.assert_array_equal(read_labels(index.image(key), "found"), drawn)
    assert label_names(index.image(key)) == ["found", "found predicted"]
    assert validate(tmp_path / "S1.zarr") == []


def test_labels_of_another_run_are_replaced_when_that_is_asked_for(lab, tmp_path):
    segmented(lab, tmp_path)
    with pytest.raises(Mistake, match=r"4 fields .* of another run of segment; .* overwrite=true"):
        segmented(lab, tmp_path, "h=5", name="other", copy=False)
    before = read_labels(tmp_path / "S1.zarr" / "B" / "02" / "1", "found")
    segmented(lab, tmp_path, "h=5", "overwrite=true", name="other", copy=False)
    assert read_labels(tmp_path / "S1.zarr" / "B" / "02" / "1", "found").max() < before.max()


def test_objects_in_two_overlapping_fields_count_once(lab, tmp_path):
    index = write_screen(tmp_path / "S1.zarr", wells=("B02",), fields=3, step=96)
    run = segmented(lab, tmp_path, copy=False)
    table = pq.read_table(run.folder / "tables" / "S1.parquet").to_pandas()
    again = table[table.duplicate_of.notna()]
    assert len(again) > 5
    places = {f.key.image: f.position_um[1] for f in index.plate.fields}
    x = table.centroid_x_um + table.field.map(places)
    where = {f"{w}/{f}:{n}": at for w, f, n, at in zip(table.well, table.field, table.label, x, strict=True)}
    distance = np.abs(x[again.index] - again.duplicate_of.map(where))
    assert np.median(distance) < 2
    kept = set(table[table.duplicate_of.isna()].apply(lambda r: f"{r.well}/{r.field}:{r.label}", axis=1))
    assert set(again.duplicate_of) <= kept
    wells = pd.read_csv(run.folder / "wells.csv")
    assert wells.objects.tolist() == [len(table) - len(again)]


def test_a_plate_of_finer_pixels_is_resampled_and_its_labels_are_of_full_size(lab, tmp_path):
    index = write_screen(tmp_path / "S1.zarr", wells=("B02",), fields=1, shape=(130, 150), pixel_um=0.4)
    segmented(lab, tmp_path, copy=False)
    labels = read_labels(index.image(index.plate.fields[0].key), "found")
    assert labels.shape == (130, 150)
    assert labels.max() > 5


def test_counts_are_held_against_the_stain(lab, tmp_path):
    run = segmented(lab, tmp_path, "truth={channel: Hoechst, min_area: 10}")
    wells = pd.read_csv(run.folder / "wells.csv")
    assert (wells.truth_objects > 20).all()
    assert (run.pictures / "counts.png").stat().st_size > 5000


def test_what_a_run_has_written_itself_is_no_truth(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    drawn = np.zeros((96, 128), np.uint32)
    drawn[10:20, 10:20], drawn[40:50, 10:20] = 1, 2
    image = tmp_path / "S1.zarr" / "B" / "02" / "1"
    write_labels(image, "found", drawn, origin="human", boxes=[(0, 0, 96, 128)])
    run = segmented(lab, tmp_path, "truth={labels: found}", copy=False)
    records = [json.loads(path.read_text()) for path in sorted(run.folder.glob("fields/*/*.json"))]
    assert [record.get("truth") for record in records] == [2, None, None, None]


def test_objects_are_assigned_to_the_cells_that_hold_them(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    segmented(lab, tmp_path, copy=False, name="cells")
    model = f"model={lab}/runs/finetune/nuclei"
    recipe = load("segment", None, [model, f"plates=[{tmp_path}/S1.zarr]", "labels=nuclei", "cells=found"])
    run = Run(tmp_path / "runs" / "segment" / "nuclei")
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(plan(recipe).recipe))
    segment(plan(recipe).recipe, Attempt(run), Here())
    objects = pd.read_parquet(run.folder / "objects")
    image = tmp_path / "S1.zarr" / "B" / "02" / "1"
    cells, nuclei = read_labels(image, "found"), read_labels(image, "nuclei")
    own = objects[(objects.well == "B02") & (objects.field == "1")].set_index("label").cell
    for label in list(own.index)[:20]:
        inside = np.bincount(cells[nuclei == label], minlength=1)
        inside[0] = 0
        assert own[label] == (inside.argmax() if inside.any() else 0)


def test_a_model_under_other_names_of_channels_says_what_there_is(lab, tmp_path):
    save_model(tmp_path / "runs" / "finetune" / "phase", channel="Phase")
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    keys = [f"model={tmp_path}/runs/finetune/phase", f"plates=[{tmp_path}/S1.zarr]", "labels=found"]
    with pytest.raises(Mistake, match="has no channel 'Phase'"):
        plan(load("segment", None, keys))
    with pytest.raises(Mistake, match="'Phse' is no channel of the model; did you mean 'Phase'"):
        plan(load("segment", None, [*keys, "channels={Phse: Brightfield}"]))
    assert plan(load("segment", None, [*keys, "channels={Phase: Brightfield}"])).inputs["S1"]


@pytest.mark.parametrize("keys", [(), ("predict={tile: 32, halo: 32, batch: 3}",)])
def test_a_field_too_large_for_memory_gives_the_same_objects(lab, tmp_path, keys):
    plain = hashes(segmented(lab, tmp_path / "a", *keys))
    blocks = segmented(lab, tmp_path / "b", *keys, "largest=1000", "block=40")
    assert hashes(blocks) == plain
    assert not list(blocks.folder.glob("scratch/*/*"))
    assert shards(tmp_path / "b" / "S1.zarr") == shards(tmp_path / "a" / "S1.zarr")
    assert validate(tmp_path / "b" / "S1.zarr") == []


def test_fields_computed_again_are_compared_with_what_is_there(lab, tmp_path):
    run = segmented(lab, tmp_path)
    asked = run.folder / "verify.json"
    asked.write_text('{"share": 1}')
    segmented(lab, tmp_path, copy=False)
    assert not asked.exists()
    asked.write_text('{"share": 1}')
    index = open_plate(tmp_path / "S1.zarr")
    image = index.image(index.plate.fields[2].key)
    spoilt, mark = read_labels(image, "found"), json.loads((run.folder / "fields/S1/B03-1.json").read_text())
    spoilt[0, 0] += 1
    write_labels(
        image, "found", spoilt, origin="segmented", boxes=[(0, 0, 96, 128)],
        fingerprint=mark["fingerprint"], overwrite=True,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="1 of 4 fields differ\nS1 B03/1: its labels or its table on disk"):
        segmented(lab, tmp_path, copy=False)
