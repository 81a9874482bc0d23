"""Segmentation as a stage: fields to labels, tables and records, the same however the work was done."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from field_files import records, spread
from made_up_screen import save_model, write_screen
from mounts import bound, read_only, small_disk
from skimage.measure import regionprops_table

from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.submit.planning import plans
from hpc_isl.errors import AbortRun, UserError
from hpc_isl.learning.data.drift import reference_of
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.data.view import Role, View
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.model import load as load_model
from hpc_isl.objects.confidence import measures
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.watershed import reference
from hpc_isl.plates.plate import FieldKey, Problem
from hpc_isl.plates.store import (
    finalise,
    label_names,
    label_provenance,
    open_plate,
    read_box,
    read_labels,
    write_labels,
)
from hpc_isl.recipes.load import RECIPES, load
from hpc_isl.recipes.strict import parse, read_yaml, to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site
from hpc_isl.stages.inspect import validate
from hpc_isl.stages.segment.field import Verified, segment_field, verify_field
from hpc_isl.stages.segment.inputs import segment_inputs, unique_names
from hpc_isl.stages.segment.overlap import find_duplicates, wells_of
from hpc_isl.stages.segment.stage import _tasks, plan, segment
from hpc_isl.stages.table.stage import table
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
            except AbortRun:
                raise
            except UserError as mistake:
                return Answer(task.name, problem=str(mistake))

        with ThreadPoolExecutor(self.threads) as pool:
            # One thread computes a task when its answer is asked for: none runs ahead of an AbortRun.
            each = map if self.threads == 1 else pool.map
            for number, found in enumerate(each(answer, self.order(list(tasks)))):
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
    torch.set_num_threads(1)  # as the stage computes: sums in another order differ
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
    tables = {path.name: path.read_bytes() for path in run.folder.glob("tables/*.parquet")}
    own = records(run.folder).values()
    return {(one["plate"], one["well"], one["field"]): one["hash"] for one in own}, tables


def shards(plate):
    """The bytes of every shard of labels, at all levels."""
    files = [path for path in plate.rglob("labels/**/c/**/*") if path.is_file()]
    return {path.relative_to(plate): path.read_bytes() for path in files}


def test_labels_are_the_flood_of_what_the_network_says_of_whole_fields(lab, tmp_path):
    segmented(lab, tmp_path)
    index = open_plate(tmp_path / "S1.zarr")
    network, contract = load_model(lab / "runs" / "finetune" / "cells" / "model")
    for field in index.plate.fields:
        distance, logit = Predictor(network)(read(contract.view, index, field.key)[0])
        objects = reference(distance, logit > 0, contract.task.h_maxima)
        expected, _ = drop_small(objects, contract.task.min_area)
        found = read_labels(index.image(field.key), "found")
        assert found.max() > 20
        np.testing.assert_array_equal(found, expected)
    assert validate(tmp_path / "S1.zarr") == []


def test_nuclei_are_the_components_of_the_mask(lab, tmp_path):
    segmented(lab, tmp_path, "min_area=0", model="nuclei")
    index = open_plate(tmp_path / "S1.zarr")
    network, contract = load_model(lab / "runs" / "finetune" / "nuclei" / "model")
    key = index.plate.fields[0].key
    mask = Predictor(network)(read(contract.view, index, key)[0])[0] > 0
    np.testing.assert_array_equal(read_labels(index.image(key), "found") > 0, mask)


def test_one_row_for_each_object_as_scikit_image_measures_it(lab, tmp_path):
    run = segmented(lab, tmp_path)
    index = open_plate(tmp_path / "S1.zarr")
    objects = pd.read_parquet(run.folder / "tables")
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
    spread(run.folder)
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
    assert len(pd.read_csv(tmp_path / "runs/segment/all/losses.csv")) == 4


@pytest.mark.parametrize("keys", [(), ("max_pixels_in_memory=1000", "predict={tile: 32}", "block_size=64")])
def test_a_disk_that_fills_up_ends_the_run_which_goes_on_when_there_is_room(lab, tmp_path, keys):
    expected = hashes(segmented(lab, tmp_path, *keys, name="other"))
    shutil.rmtree(tmp_path / "S1.zarr")
    with small_disk(tmp_path / "disk", "20m"):
        shutil.copytree(lab / "S1.zarr", tmp_path / "disk" / "S1.zarr")
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(tmp_path / "disk").free - 40_000))
        pool = Here()
        with pytest.raises(AbortRun, match="the disk is full"):
            segmented(lab, tmp_path / "disk", *keys, pool=pool, copy=False)
        assert len(pool.computed) < 4, "the others would have met the same"
        filler.unlink()
        run = segmented(lab, tmp_path / "disk", *keys, copy=False)
        assert hashes(run) == expected


def test_plates_on_two_disks_are_one_run_also_when_one_disk_fills(lab, tmp_path):
    """Each plate's labels go to its own disk; what the full one holds up is done when there is room."""
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    with small_disk(tmp_path / "disk", "20m"):
        other = tmp_path / "disk" / "S2.zarr"
        write_screen(other, wells=["C02"])
        keys = (f"plates=[{tmp_path}/S1.zarr, {other}]",)
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(other).free - 40_000))
        with pytest.raises(AbortRun, match=r"disk/S2\.zarr.*the disk is full"):
            segmented(lab, tmp_path, *keys, copy=False)
        filler.unlink()
        run = segmented(lab, tmp_path, *keys, copy=False)
        apart = segmented(lab, tmp_path, "overwrite=true", name="apart", copy=False)
        alone = segmented(lab, tmp_path, "overwrite=true", f"plates=[{other}]", name="alone", copy=False)
        both = hashes(run)
        expected = [hashes(apart), hashes(alone)]
        assert both[0] == {**expected[0][0], **expected[1][0]}
        assert sorted(both[1]) == ["S1.parquet", "S2.parquet"]
        for plate in (tmp_path / "S1.zarr", other):
            assert validate(plate) == []
            assert not list(plate.rglob("*.part*"))


def test_a_plate_that_may_not_be_written_is_refused_unless_no_labels_are_kept(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    with read_only(tmp_path / "S1.zarr"):
        pool = Here()
        with pytest.raises(UserError, match=r"B/02/1 cannot be written, and labels go there: .*\[mask\]"):
            segmented(lab, tmp_path, copy=False, pool=pool)
        assert pool.computed == []
        assert segmented(lab, tmp_path, "outputs=[mask]", copy=False, name="mask").summary()
    segmented(lab, tmp_path, copy=False)
    with read_only(tmp_path / "S1.zarr"):
        assert segmented(lab, tmp_path, copy=False).summary(), "there is nothing left to write"


def test_what_no_field_can_do_without_ends_the_run_soon(lab, tmp_path, capsys):
    write_screen(tmp_path / "S1.zarr", wells=[f"B{column:02d}" for column in range(2, 12)])
    with pytest.raises(
        RuntimeError, match="the first 8 fields failed for one reason: precision=fp16 needs a GPU"
    ):
        segmented(lab, tmp_path, "precision=fp16", copy=False)
    assert capsys.readouterr().out.count("failed: S1 B0") == 8


def test_of_many_lost_fields_the_first_are_told(lab, tmp_path, capsys):
    write_screen(tmp_path / "S1.zarr", wells=[f"{row}{n:02d}" for row in "BC" for n in range(2, 10)])
    run = segmented(lab, tmp_path, pool=Here(wrong=["C0", "B02", "B03", "B04"]), copy=False)
    said = capsys.readouterr().out
    assert said.count("failed: S1 ") == 20
    assert "further fields failed; losses.csv will name all of them" in said
    assert len(pd.read_csv(run.folder / "losses.csv")) == 22


def test_what_the_network_says_is_kept_as_a_plate(lab, tmp_path):
    run = segmented(lab, tmp_path, "outputs=[distance, mask]")
    kept = open_plate(run.folder / "maps" / "S1.zarr")
    assert [channel.name for channel in kept.plate.channels] == ["distance", "mask (logit)"]
    key = kept.plate.fields[0].key
    index = open_plate(tmp_path / "S1.zarr")
    network, contract = load_model(lab / "runs" / "finetune" / "cells" / "model")
    expected = Predictor(network)(read(contract.view, index, key)[0])
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
    assert label_names(index.image(key)) == ["found", "found_predicted"]
    assert validate(tmp_path / "S1.zarr") == []


def test_computed_labels_that_people_corrected_stay_too(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    image = tmp_path / "S1.zarr" / "B" / "02" / "1"
    drawn = np.eye(96, 128, dtype=np.uint32)
    for name in ("found", "found_predicted"):
        write_labels(image, name, drawn, origin="human", boxes=[(0, 0, 96, 128)])
    said = "people have labels 'found', and 'found_predicted' where they corrected computed ones"
    with pytest.raises(UserError, match=said):
        segmented(lab, tmp_path, "overwrite=true", copy=False)
    np.testing.assert_array_equal(read_labels(image, "found_predicted"), drawn)


def test_a_run_that_goes_on_leaves_what_another_has_written_since(lab, tmp_path):
    first = segmented(lab, tmp_path)
    segmented(lab, tmp_path, "h_maxima=5", "overwrite=true", name="other", copy=False)
    before = shards(tmp_path / "S1.zarr")
    recipe = parse(RECIPES["segment"], read_yaml(first.recipe), "recipe")
    with pytest.raises(UserError, match="of another run of segment"):
        segment(recipe, Attempt(first, 1), Here())
    with pytest.raises(UserError, match="of another run of segment"):
        segment_field(works(first, recipe)[0])
    assert shards(tmp_path / "S1.zarr") == before


def works(run, recipe):
    """The fields of a run, as it hands them out."""
    return [task for _, task in _tasks(segment_inputs(recipe), run.folder)]


@pytest.mark.parametrize("change", ["h", "size"])
def test_another_rule_or_size_of_pixels_is_another_computation(lab, tmp_path, change):
    """The weights may be the same, and the pixels."""
    home = tmp_path / "lab"
    shutil.copytree(lab, home)
    segmented(home, tmp_path / "a")
    labels = tmp_path / "a" / "S1.zarr" / "B" / "02" / "1" / "labels"
    if change == "h":
        contract = home / "runs" / "finetune" / "cells" / "model" / "contract.json"
        contract.write_text(contract.read_text().replace('"h": 2.0', '"h": 3.0'))
    else:
        shutil.rmtree(home / "S1.zarr")
        write_screen(home / "S1.zarr", pixel_um=0.505)
        shutil.copytree(home / "S1.zarr", tmp_path / "b" / "S1.zarr")
        shutil.copytree(labels, tmp_path / "b" / "S1.zarr" / "B" / "02" / "1" / "labels")
    with pytest.raises(UserError, match="of another run of segment"):
        segmented(home, tmp_path / ("a" if change == "h" else "b"), name="again", copy=False)


def test_a_run_that_only_measures_more_has_the_same_labels(lab, tmp_path):
    """So it need not be told to replace them; its tables are its own."""
    first = segmented(lab, tmp_path)
    before = shards(tmp_path / "S1.zarr")
    more = segmented(lab, tmp_path, "measure=[Brightfield]", name="more", copy=False)
    assert shards(tmp_path / "S1.zarr") == before
    assert "Brightfield_mean" in pd.read_parquet(more.folder / "tables")
    assert "Hoechst_mean" in pd.read_parquet(first.folder / "tables")


def test_labels_of_another_run_are_replaced_when_that_is_asked_for(lab, tmp_path):
    segmented(lab, tmp_path)
    with pytest.raises(UserError, match=r"4 fields .* of another run of segment, .* overwrite=true"):
        segmented(lab, tmp_path, "h_maxima=5", name="other", copy=False)
    before = read_labels(tmp_path / "S1.zarr" / "B" / "02" / "1", "found")
    segmented(lab, tmp_path, "h_maxima=5", "overwrite=true", name="other", copy=False)
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
    run = segmented(lab, tmp_path, "reference_labels={channel: Hoechst, min_area: 10}")
    wells = pd.read_csv(run.folder / "wells.csv")
    assert (wells.truth_objects > 20).all()
    assert (run.pictures / "counts.png").stat().st_size > 5000


def test_where_a_stain_was_not_imaged_nothing_is_known_of_it(lab, tmp_path):
    write_screen(tmp_path / "S1.zarr", unstained=["B03"])
    run = segmented(lab, tmp_path, "reference_labels={channel: Hoechst, min_area: 10}", copy=False)
    unknown = [record.get("truth") is None for record in records(run.folder).values()]
    assert unknown == [False, False, True, True]
    objects = pd.read_parquet(run.folder / "tables")
    figures = objects.filter(like="Hoechst_")
    assert figures.shape[1] == 5
    assert figures[objects.well == "B03"].isna().all(axis=None)
    assert figures[objects.well == "B02"].notna().all(axis=None)
    wells = pd.read_csv(run.folder / "wells.csv").set_index("well")
    assert wells.truth_fields.to_dict() == pytest.approx({"B02": 2, "B03": np.nan}, nan_ok=True)
    assert np.isnan(wells.median_Hoechst_mean["B03"])


def unlike(tmp_path, *keys, name="all", plates=("S1", "S2")):
    """A run over plates that differ in the name of the stain, and in whether the size of a pixel is known."""
    if not (tmp_path / "S1.zarr").exists():
        write_screen(tmp_path / "S1.zarr")
        write_screen(tmp_path / "S2.zarr", wells=["C02"], pixel_um=None, stain="DAPI")
        save_model(tmp_path / "runs" / "finetune" / "anywhere", pixel_um=None)
    both = [str(tmp_path / f"{plate}.zarr") for plate in plates]
    given = [f"model={tmp_path}/runs/finetune/anywhere", f"plates={json.dumps(both)}", "labels=found"]
    recipe = plan(load("segment", None, [*given, *keys])).recipe
    run = Run(tmp_path / "runs" / "segment" / name)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.recipe.write_text(to_yaml(recipe))
    segment(recipe, Attempt(run), Here())
    return run


def test_objects_of_unlike_plates_are_one_table_in_which_nothing_is_dropped(tmp_path):
    """A user opens all objects of a run with `pd.read_parquet("tables")`, and finds every figure of every
    plate there; what a plate does not have, a channel or micrometres, is null in its rows alone."""
    run = unlike(tmp_path)
    objects = pd.read_parquet(run.folder / "tables")
    one, two = (objects[objects.plate == name] for name in ("S1", "S2"))
    assert len(one) > 20
    assert len(two) > 20
    for own, other in (("Hoechst_mean", "DAPI_mean"), ("area_um2", "area_px")):
        assert one[own].notna().all()
        assert one[other].isna().all()
        assert two[other].notna().all()
        assert two[own].isna().all()
    files = sorted((run.folder / "tables").rglob("*.parquet"))
    assert len({pq.read_schema(path).serialize().to_pybytes() for path in files}) == 1
    assert pq.read_table(files[-1])["Hoechst_mean"].null_count == len(pq.read_table(files[-1]))
    wells = pd.read_csv(run.folder / "wells.csv").set_index(["plate", "well"])
    assert wells.median_DAPI_mean.notna().to_dict() == {("S1", "B02"): 0, ("S1", "B03"): 0, ("S2", "C02"): 1}


def test_a_plate_has_the_same_columns_and_hashes_alone_as_beside_another(tmp_path):
    """A user who segments one plate gets the columns of that plate, and a hash that other plates of a run
    do not change; `--verify` finds both right."""
    alone = unlike(tmp_path, "outputs=[mask]", name="alone", plates=["S1"])
    both = unlike(tmp_path, "outputs=[mask]", name="both")
    assert not {"DAPI_mean", "area_px"} & set(pd.read_parquet(alone.folder / "tables").columns)
    own, of_both = hashes(alone)[0], hashes(both)[0]
    assert {key: of_both[key] for key in own} == own
    recipe = parse(RECIPES["segment"], read_yaml(both.recipe), "both")
    for plate, task in _tasks(segment_inputs(recipe), both.folder):
        assert verify_field(task) == Verified(), (plate.name, task.key)


def test_tables_of_an_earlier_version_get_the_columns_of_other_plates(tmp_path):
    """A user whose run began before its tables had one schema finds one when it is resumed."""
    run = unlike(tmp_path)
    spread(run.folder)
    for path in (run.folder / "objects" / "S2").glob("*.parquet"):
        old = pq.read_table(path)
        pq.write_table(old.select([name for name in old.column_names if old[name].null_count == 0]), path)
    shutil.rmtree(run.done)
    segment(parse(RECIPES["segment"], read_yaml(run.recipe), "again"), Attempt(run, number=1), pool := Here())
    assert pool.computed == []
    objects = pd.read_parquet(run.folder / "tables")
    assert objects[objects.plate == "S2"].DAPI_mean.notna().all()
    schemas = {pq.read_schema(path).serialize().to_pybytes() for path in run.folder.glob("tables/*")}
    assert len(schemas) == 1


def test_empty_fields_have_no_objects_unless_the_model_is_to_look(lab, tmp_path, capsys):
    write_screen(tmp_path / "S1.zarr", empty=["B03"])
    run = segmented(lab, tmp_path, copy=False)
    said = "2 fields show nothing that has any structure: no objects there (50.0% of all; "
    assert said in capsys.readouterr().out
    assert run.summary()["figures"]["empty fields"] == 2
    wells = pd.read_csv(run.folder / "wells.csv").set_index("well")
    assert wells.objects["B03"] == 0 < wells.objects["B02"]
    assert wells.empty_fields.to_dict() == {"B02": 0, "B03": 2}
    keys = ("max_pixels_in_memory=1000", "predict={tile: 32, halo: 32}")
    blocks = segmented(lab, tmp_path, *keys, "overwrite=true", name="blocks", copy=False)
    assert pd.read_csv(blocks.folder / "wells.csv").set_index("well").objects["B03"] == 0
    other = segmented(lab, tmp_path, "empty_fields=segment", "overwrite=true", name="look", copy=False)
    assert pd.read_csv(other.folder / "wells.csv").set_index("well").objects["B03"] > 10


def test_no_network_is_asked_about_empty_fields_unless_its_maps_are_kept(lab, tmp_path, monkeypatch):
    """And what is kept of them is the same to the bit either way."""
    write_screen(tmp_path / "S1.zarr", empty=["B03"])
    seen, predict = [], Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda *args: seen.append(0) or predict(*args))
    of_all = []
    for number, keys in ((2, []), (4, ["outputs=[labels, mask]", "overwrite=true"])):
        run = segmented(lab, tmp_path, *keys, name=f"{number}", copy=False)
        assert len(seen) == number
        seen.clear()
        of_all.append(hashes(run))
    assert of_all[0] == of_all[1]


def test_labels_that_are_drawn_in_a_part_of_a_field_are_no_count_of_it(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    drawn = np.zeros((96, 128), np.uint32)
    drawn[10:20, 10:20] = 1
    for field, box in ((1, (0, 0, 32, 32)), (2, (0, 0, 96, 128))):
        image = tmp_path / "S1.zarr" / "B" / "02" / str(field)
        write_labels(image, "drawn", drawn, origin="human", boxes=[box])
    run = segmented(lab, tmp_path, "reference_labels={labels: drawn}", copy=False)
    assert [record.get("truth") for record in records(run.folder).values()] == [None, [1], None, None]


@pytest.mark.parametrize(
    ("key", "messages"),
    [
        ("reference_labels={channel: Hoecst}", "no channel 'Hoecst'; did you mean 'Hoechst'"),
        ("reference_labels={labels: drawn}", "none of the 4 fields has labels 'drawn'"),
        ("cells=drawn", "4 of 4 fields have no labels 'drawn', S1 B02/1 among them"),
        ("max_pixels_in_memory=1000", "more than 1,000 pixels .* in which tiles, as in predict='{tile: 1024"),
        ("overlap=0", "overlap"),
        (
            "reference_labels=drawn",
            "reference_labels: has keys of its own .labels, channel.* as in "
            "reference_labels='{labels: …}'; got 'drawn'",
        ),
        ("fields=[]", r"fields=\[\] leaves none of its 4 fields"),
        (
            "outputs=[labels, stain]",
            "outputs: stain cannot be kept, because .*finetune/cells has none: a run of pretrain",
        ),
    ],
)
def test_what_can_never_work_is_refused_before_a_pixel_is_read(lab, key, messages):
    keys = [f"model={lab}/runs/finetune/cells", f"plates=[{lab}/S1.zarr]", "labels=found", key]
    with pytest.raises(UserError, match=messages):
        plan(load("segment", None, keys))


def test_maps_of_images_too_large_for_memory_are_refused_at_once(lab):
    keys = [
        f"model={lab}/runs/finetune/cells",
        f"plates=[{lab}/S1.zarr]",
        "predict={tile: 32}",
        "max_pixels_in_memory=1000",
    ]
    assert plan(load("segment", None, keys))
    with pytest.raises(UserError, match="becomes labels and features alone"):
        plan(load("segment", None, [*keys, "outputs=[labels, mask]"]))


def test_fields_that_convert_left_out_are_lost_to_their_wells(lab, tmp_path):
    left = [Problem(FieldKey("B03", "3"), why) for why in ("its files are missing", "and its sizes differ")]
    # The field itself is there, and segmented; the table leaves it out.
    left.append(Problem(FieldKey("B03", "1"), "one plane is missing"))
    write_screen(tmp_path / "S1.zarr", problems=left)
    run = segmented(lab, tmp_path, copy=False)
    losses = pd.read_csv(run.folder / "losses.csv", dtype=str)
    assert losses[["well", "field", "problem"]].to_numpy().tolist() == [
        ["B03", "3", "left out by convert: its files are missing; and its sizes differ"]
    ]
    assert run.summary()["figures"]["lost fields"] == 1
    wells = pd.read_csv(run.folder / "wells.csv").set_index("well")
    assert wells.fields.to_dict() == {"B02": 2, "B03": 1}
    assert wells.excluded_fields.to_dict() == {"B02": 0, "B03": 1}
    assert wells.lost_fields.to_dict() == {"B02": 0, "B03": 1}
    assert "lost" not in run.summary(), "there is nothing to retry"


def test_fields_without_a_source_are_left_out_counted_and_lost_to_their_wells(lab, tmp_path):
    write_screen(tmp_path / "S1.zarr", wells=("B02", "B03", "B04"), unlit=[("B03", 0)])
    model = f"model={lab}/runs/finetune/cells"
    messages = plan(load("segment", None, [model, f"plates=[{tmp_path}/S1.zarr]", "labels=found"])).messages
    assert "S1: 2 fields (B03/1, B03/2) are left out: no plane of a source ('Brightfield')" in messages
    run = segmented(lab, tmp_path, copy=False)
    losses = pd.read_csv(run.folder / "losses.csv", dtype=str)
    assert (
        losses[["well", "problem"]].to_numpy().tolist()
        == [["B03", "left out: a source of the model was not imaged"]] * 2
    )
    assert "lost" not in run.summary(), "there is nothing to retry"
    wells = pd.read_csv(run.folder / "wells.csv").set_index("well")
    assert wells.lost_fields.to_dict() == {"B02": 0, "B03": 2, "B04": 0}
    assert np.isnan(wells.objects["B03"]), "not 0"
    assert "found" not in label_names(open_plate(tmp_path / "S1.zarr").image(FieldKey("B03", "1")))


@pytest.mark.parametrize("large", [False, True])
def test_times_without_a_source_have_no_objects_and_no_counts(lab, tmp_path, large):
    """A series in which a channel ended early: the table says unknown at that time, and not 0."""
    write_screen(tmp_path / "S1.zarr", wells=("B02", "B03"), fields=1, times=2, unlit=[("B03", 1)])
    keys = ["predict={tile: 32}", "max_pixels_in_memory=1000"] if large else []
    run = segmented(lab, tmp_path, *keys, copy=False)
    known = {record["well"]: record.get("not_imaged") for record in records(run.folder).values()}
    assert known == {"B02": None, "B03": [1]}
    labels = read_labels(open_plate(tmp_path / "S1.zarr").image(FieldKey("B03", "1")), "found")
    assert [found.max() > 0 for found in labels] == [True, False]
    wells = pd.read_csv(run.folder / "wells.csv").set_index(["well", "time"])
    assert np.isnan(wells.objects["B03", 1])
    assert wells.objects.drop(("B03", 1)).min() > 0
    assert wells.lost_fields.to_dict() == {("B02", 0): 0, ("B02", 1): 0, ("B03", 0): 0, ("B03", 1): 1}


def test_a_series_whose_source_begins_late_on_all_fields_is_segmented_from_there(lab, tmp_path):
    wells = ("B02", "B03")
    write_screen(tmp_path / "S1.zarr", wells, 1, times=2, unlit=[(well, 0) for well in wells])
    keys = [f"model={lab}/runs/finetune/cells", f"plates=[{tmp_path}/S1.zarr]", "labels=found"]
    assert not [line for line in plan(load("segment", None, keys)).messages if "cannot be seen" in line]


def test_a_plate_map_that_was_corrected_reaches_the_tables(lab, tmp_path):
    run = segmented(lab, tmp_path)
    index = open_plate(tmp_path / "S1.zarr")
    finalise(index.path, index.plate, {"B02": {"treatment": "another"}})
    table(run)
    wells = pd.read_csv(run.folder / "wells.csv").set_index("well")
    assert wells.treatment.fillna("").to_dict() == {"B02": "another", "B03": ""}


def test_what_a_run_has_written_itself_is_no_truth(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    drawn = np.zeros((96, 128), np.uint32)
    drawn[10:20, 10:20], drawn[40:50, 10:20] = 1, 2
    image = tmp_path / "S1.zarr" / "B" / "02" / "1"
    write_labels(image, "found", drawn, origin="human", boxes=[(0, 0, 96, 128)])
    run = segmented(lab, tmp_path, "reference_labels={labels: found}", copy=False)
    assert [record.get("truth") for record in records(run.folder).values()] == [[2], None, None, None]
    again = Here()
    segmented(lab, tmp_path, "reference_labels={labels: found}", copy=False, pool=again)
    assert again.computed == [], "nor does it make what is done another computation"


def test_objects_are_assigned_to_the_cells_that_hold_them(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    segmented(lab, tmp_path, copy=False, name="cells")
    model = f"model={lab}/runs/finetune/nuclei"
    recipe = load("segment", None, [model, f"plates=[{tmp_path}/S1.zarr]", "labels=nuclei", "cells=found"])
    run = Run(tmp_path / "runs" / "segment" / "nuclei")
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(plan(recipe).recipe))
    segment(plan(recipe).recipe, Attempt(run), Here())
    objects = pd.read_parquet(run.folder / "tables")
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
    with pytest.raises(UserError, match="has no channel 'Phase'"):
        plan(load("segment", None, keys))
    with pytest.raises(UserError, match="'Phse' is no channel of the model; did you mean 'Phase'"):
        plan(load("segment", None, [*keys, "channels={Phse: Brightfield}"]))
    assert plan(load("segment", None, [*keys, "channels={Phase: Brightfield}"])).inputs["S1"]


def test_a_field_too_large_for_memory_gives_the_same_objects(lab, tmp_path):
    tiles = "predict={tile: 32, halo: 32, batch: 3}"
    plain = hashes(segmented(lab, tmp_path / "a", tiles))
    blocks = segmented(lab, tmp_path / "b", tiles, "max_pixels_in_memory=1000", "block_size=40")
    assert hashes(blocks) == plain
    assert not list(blocks.folder.glob("scratch/*/*"))
    assert shards(tmp_path / "b" / "S1.zarr") == shards(tmp_path / "a" / "S1.zarr")
    assert validate(tmp_path / "b" / "S1.zarr") == []


def confident(lab, tmp_path, like_training):
    """A model that knows the probability of its objects; its training images are the plate's, or not."""
    index = open_plate(lab / "S1.zarr")
    keys = [field.key for field in index.plate.fields]
    view = View((Role("Brightfield", 0),), (), level=0, pixel_um=0.5)
    reference = reference_of(view, [index], [keys])
    if not like_training:
        reference = {source: {**facts, "light": [100.0, 0.1]} for source, facts in reference.items()}
    runs = tmp_path / "runs" / "finetune"
    save_model(runs / "cells", confidence=(-1.0, 2.0, 0.5, -0.1), reference=reference)
    return tmp_path


@pytest.mark.parametrize("keys", [[], ["max_pixels_in_memory=1000", "block_size=40"]])
def test_each_object_has_the_probability_that_its_maps_give_it(lab, tmp_path, keys):
    """It is the same whether a field is held in memory or not."""
    shutil.copytree(lab / "S1.zarr", confident(lab, tmp_path, like_training=True) / "S1.zarr")
    run = segmented(tmp_path, tmp_path, "predict={tile: 32, halo: 32, batch: 3}", *keys, copy=False)
    objects = pd.read_parquet(run.folder / "tables")
    assert "score" not in objects
    index = open_plate(tmp_path / "S1.zarr")
    predictor = Predictor(*load_model(tmp_path / "runs/finetune/cells/model")[:1], tile=32, halo=32, batch=3)
    assert len(objects) > 40
    for (well, name), own in objects.groupby(["well", "field"]):
        key = FieldKey(well, name)
        view = View((Role("Brightfield", 0),), (), level=0, pixel_um=0.5)
        labels = read_labels(index.image(key), "found")
        values = measures(labels, predictor(read(view, index, key)[0]), 0.0)
        expected = 1 / (1 + np.exp(1 - values @ [2.0, 0.5, -0.1]))
        assert own.sort_values("label").confidence.to_numpy() == pytest.approx(expected, rel=1e-12)


def test_on_a_plate_unlike_the_training_images_objects_have_a_score(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", confident(lab, tmp_path, like_training=False) / "S1.zarr")
    objects = pd.read_parquet(segmented(tmp_path, tmp_path, copy=False).folder / "tables")
    assert "confidence" not in objects
    assert objects.score.between(0, 1).all()
    assert objects.score.nunique() > 40


def test_fields_computed_again_are_compared_with_what_is_there(lab, tmp_path):
    run = segmented(lab, tmp_path)
    asked = run.folder / "verify.json"
    asked.write_text('{"share": 1}')
    segmented(lab, tmp_path, copy=False)
    assert not asked.exists()
    asked.write_text('{"share": 1}')
    index = open_plate(tmp_path / "S1.zarr")
    image = index.image(index.plate.fields[2].key)
    spoilt, mark = read_labels(image, "found"), label_provenance(image, "found").fingerprint
    spoilt[0, 0] += 1
    write_labels(
        image, "found", spoilt, origin="segmented", boxes=[(0, 0, 96, 128)],
        fingerprint=mark, overwrite=True,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="1 of 4 fields differ\nS1 B03/1: its labels were edited"):
        segmented(lab, tmp_path, copy=False)
    assert not asked.exists()
    segmented(lab, tmp_path, copy=False)
    assert run.summary(), "what differs stays, and the run is done"
    np.testing.assert_array_equal(read_labels(image, "found"), spoilt)


def test_fields_of_another_kind_of_device_are_not_called_wrong(lab, tmp_path, capsys):
    run = segmented(lab, tmp_path)
    spread(run.folder)
    path = run.folder / "fields/S1/B03-1.json"
    record = json.loads(path.read_text())
    here = f"cpu {torch.backends.cpu.get_cpu_capability()} fp32"
    assert record["device"] == here
    path.write_text(json.dumps({**record, "device": "cuda bf16", "hash": "another"}))
    (run.folder / "verify.json").write_text('{"share": 1}')
    segmented(lab, tmp_path, copy=False)
    said = capsys.readouterr().out
    assert "1 of 4 fields could not be verified" in said
    assert f"S1 B03/1: computed on cuda bf16, and this is {here}" in said
    assert "3 fields computed again: labels and tables are the same" in said
    assert f"warning: fields were computed on unlike devices (3 on {here}, 1 on cuda bf16)" in said


def test_what_one_field_shows_apart_is_two_objects(tmp_path):
    """Though the field beside it shows them as one, which is the same as either."""
    index = write_screen(tmp_path / "S1.zarr", wells=("B02",), fields=2, shape=(64, 128), step=64)
    apart, one = np.zeros((2, 64, 128), np.uint32)
    apart[20:30, 80:90], apart[20:30, 90:100] = 1, 2
    one[20:30, 16:36] = 1
    keys = [field.key for field in index.plate.fields]
    for key, labels in zip(keys, (apart, one), strict=True):
        write_labels(
            index.image(key), "found", labels, origin="segmented", boxes=[(0, 0, 64, 128)], fingerprint="f"
        )
    [well] = wells_of(index, dict.fromkeys(keys, "f"), "found", 0.3)
    assert find_duplicates(well) == [("B02/2", 0, 1, "B02/1:1")]


def test_plates_of_one_name_are_told_apart():
    assert unique_names([("P", "one"), ("P", "two"), ("Q", "three")]) == ["one", "two", "Q"]
    same = [("P", "one"), ("P (1)", "two"), ("P", "one"), ("Q", "three")]
    assert unique_names(same) == ["one (1)", "P (1)", "one (2)", "Q"]
    assert unique_names([("P", "Q"), ("P", "R"), ("Q", "S")]) == ["Q (1)", "R", "Q (2)"]


def test_a_plate_that_is_given_twice_is_segmented_once(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S[1].zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "S[1].zarr")
    plates = f"plates=['{tmp_path}/S[1].zarr', {tmp_path}/*.zarr]"
    recipe = load("segment", None, [f"model={lab}/runs/finetune/cells", plates, "labels=found"])
    assert plan(recipe).recipe.plates == [tmp_path / "S[1].zarr"]


def test_two_elements_of_a_sweep_never_write_the_same_labels(lab):
    keys = [f"model={lab}/runs/finetune/cells", f"plates=[{lab}/S1.zarr]"]
    elements = {
        f"h_maxima={h}": load("segment", None, [*keys, "labels=found", f"h_maxima={h}"]) for h in (5, 10)
    }
    order = RunRequest("segment", elements["h_maxima=5"], Site(), elements=elements)
    with pytest.raises(
        UserError, match=r"'h_maxima=5' and 'h_maxima=10' would both write labels 'found' of .*S1\.zarr"
    ):
        plans(order)
    named = {
        f"h_maxima={h}": load("segment", None, [*keys, f"labels=h{h}", f"h_maxima={h}"]) for h in (5, 10)
    }
    assert len(plans(replace(order, elements=named))) == 2


def test_two_elements_of_a_sweep_never_write_the_same_labels_through_two_paths(lab, tmp_path):
    """Nor two plates of one recipe, where a mount shows the same folder once more."""
    (tmp_path / "link.zarr").symlink_to(lab / "S1.zarr")
    (tmp_path / "S1.zarr").mkdir()
    keys = [f"model={lab}/runs/finetune/cells", "labels=found"]

    def recipe(*plates):
        return load("segment", None, [*keys, f"plates=[{', '.join(map(str, plates))}]"])

    with bound(lab / "S1.zarr", tmp_path / "S1.zarr"):
        paths = (lab / "S1.zarr", tmp_path / "link.zarr", tmp_path / "S1.zarr")
        assert plan(recipe(*paths)).recipe.plates == [lab / "S1.zarr"]
        for one, other in ((paths[0], paths[1]), (paths[0], paths[2])):
            elements = {"a": recipe(one), "b": recipe(other)}
            with pytest.raises(UserError, match=r"'a' and 'b' would both write labels 'found' of B02/1"):
                plans(RunRequest("segment", elements["a"], Site(), elements=elements))


def test_what_another_run_is_just_writing_stays(lab, tmp_path):
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    labels = tmp_path / "S1.zarr" / "B" / "02" / "1" / "labels"
    others = [labels / ".zarr.json.nuclei.x.partial", labels / ".nuclei.partial-1-x"]
    own = [labels / ".zarr.json.found.x.partial", labels / ".found.partial-1-x"]
    for path in others + own:
        path.mkdir(parents=True)
    segmented(lab, tmp_path, copy=False)
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in own)
    own[1].mkdir()
    segmented(lab, tmp_path, "outputs=[mask]", copy=False, name="mask")
    assert own[1].exists(), "a run that keeps no labels has none to clean up"


def test_fields_are_told_in_plate_order(lab, tmp_path):
    write_screen(tmp_path / "S1.zarr", wells=["B02"], fields=11)
    run = segmented(lab, tmp_path, copy=False)
    table(run, tmp_path / "fields.csv", "field")
    expected = [str(number) for number in range(1, 12)]
    assert pd.read_csv(tmp_path / "fields.csv", dtype=str).field.to_list() == expected
    objects = pd.read_parquet(run.folder / "tables")
    assert list(dict.fromkeys(objects.field)) == expected


@pytest.mark.parametrize(
    ("model", "key", "messages"),
    [
        (
            "nuclei",
            "h_maxima=3",
            "h_maxima=3: parts cells by their distance map, and this model finds nuclei by the mask",
        ),
        (
            "nuclei",
            "outputs=[distance]",
            "outputs: distance cannot be kept, because .* a model of cells predicts",
        ),
        (
            "../segment/all",
            "h_maxima=3",
            "segment/all: a run of segment has no model; name one of finetune or pretrain",
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused(lab, model, key, messages):
    (lab / "runs/segment/all").mkdir(parents=True, exist_ok=True)
    keys = [f"model={lab}/runs/finetune/{model}", f"plates=[{lab}/S1.zarr]", "labels=found", key]
    with pytest.raises(UserError, match=messages):
        plan(load("segment", None, keys))


def test_a_plan_speaks_of_labels_only_where_they_are_kept(lab):
    keys = [f"model={lab}/runs/finetune/cells", f"plates=[{lab}/S1.zarr]", "labels=found"]
    assert "labels" in "".join(plan(load("segment", None, keys)).messages)
    assert "labels will be" not in "".join(plan(load("segment", None, [*keys, "outputs=[mask]"])).messages)
