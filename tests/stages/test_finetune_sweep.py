"""Sweeps of fine-tuning: which elements there are, which arm is best, and the way from sweep to page."""

import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import label_plate

from hpc_isl.cluster.run_folder import folders
from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.submit import sweep
from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import read_labels, write_labels
from hpc_isl.recipes.base import SweepRecipe
from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Run
from hpc_isl.site import Site
from hpc_isl.stages.finetune.inputs import as_planned, resolve_inputs
from hpc_isl.stages.finetune.stage import arrange, plan
from hpc_isl.stages.finetune.sweep import best

PLAIN = [
    "labels=nuclei", "sources=[{channel: Brightfield}]", "arm=random",
    "net={encoder: resnet18, weights: null}", "train={steps: 1, batch: 2, micro_batch: 2, crop: 32}",
    "split={test_wells: [B04, C04], validation_wells: []}",
]  # fmt: skip
WHOLE = [(0, 0, 64, 64)]


@pytest.fixture(scope="module")
def plate(tmp_path_factory, write_stained_plate):
    """Six fields with `nuclei`; `four` on four of them, three boxes on B02; `tests` on the two that test."""
    index = write_stained_plate(tmp_path_factory.mktemp("plates") / "P01.zarr", size=64)
    label_plate(index)
    for name, wells in (("four", ("B02", "B03", "C02", "C04")), ("tests", ("B04", "C04"))):
        for well in wells:
            image = index.image(FieldKey(well, "1"))
            three = [(0, 0, 20, 64), (20, 0, 40, 64), (40, 0, 64, 64)]
            boxes = three if well == "B02" else WHOLE
            write_labels(image, name, read_labels(image, "nuclei"), origin="human", boxes=boxes)
    return index


@pytest.fixture(scope="module")
def elements(plate):
    def make(*keys, **over):
        """name -> recipe; over: key -> values, one after the other."""
        base = [f"plates=[{plate.path}]", *PLAIN, *keys]
        return {
            f"{key}={value}": load("finetune", None, [*base, f"{key}={json.dumps(value)}"])
            for key, values in over.items() for value in values
        }  # fmt: skip

    return make


# ---------------------------------------------------------------- which elements there are


def test_the_last_element_learns_from_all_boxes_and_waits_for_all_others(elements, plate, tmp_path):
    found = arrange(elements(n=[1, 4, "all"]), tmp_path)
    assert list(found.elements) == ["n=1", "n=4", "n=all", "final"]
    assert found.last == "final"
    final = found.elements["final"]
    assert (final.arm, final.n, final.train_on_all) == ("best", "all", True)
    assert final.among == [tmp_path / "finetune" / name for name in ("n=1", "n=4", "n=all")]
    assert found.messages == ("final, the last element: the best arm learns from all 6 boxes",)
    assert len(resolve_inputs(final.model_copy(update={"arm": "random"})).learning) == 6


def test_impossible_numbers_of_boxes_and_untrained_arms_are_left_out_with_a_message(elements, tmp_path):
    arms = elements("n=1", arm=["random", "imagenet", "random+isl", "drafted"])
    found = arrange(arms | elements(n=[0, 4, 5, 9]), tmp_path)
    assert list(found.elements) == ["arm=random", "n=4", "final"]
    said = "\n".join(found.messages)
    assert "n=0 of arm random is left out: it knows nothing before an annotation" in said
    for n in (5, 9):
        assert f"n={n} is left out: there are 4 annotation boxes" in said
    assert "arm imagenet is left out: net.weights names no weights" in said
    assert "arm random+isl is left out: pretrained must name an ISL run" in said
    assert "arm drafted is left out: drafted must name a finetune run" in said
    with pytest.raises(UserError, match=r"no element can be computed\n  n=9 is left out"):
        arrange(elements(n=[9]), tmp_path)


def test_with_few_annotated_fields_each_is_left_out_in_turn(elements, tmp_path):
    found = arrange(elements("labels=four", n=[1, 3, 4, "all"]), tmp_path)
    names = [f"n={n},fold={fold}" for n in (1, 3, "all") for fold in range(4)]
    assert list(found.elements) == [*names, "final"]
    assert found.messages[0] == "4 annotated fields, fewer than 6: each is left out in turn, and tests"
    # Of six boxes three are of one field.
    where = "there are 3 annotation boxes, where the field with most boxes is left out"
    assert f"n=4 is left out: {where}" in found.messages
    tested = []
    for name in names[-4:]:
        setting = resolve_inputs(found.elements[name])
        assert len({box.field for box in setting.testing}) == 1
        assert {box.field for box in setting.learning}.isdisjoint(box.field for box in setting.testing)
        assert len(setting.learning) + len(setting.testing) == 6
        tested.append(setting.testing[0].key.well)
    assert sorted(tested) == ["B02", "B03", "C02", "C04"]


def test_annotated_test_fields_alone_are_enough_where_each_is_left_out(elements, tmp_path):
    """Where an ISL model is to be scored people annotate its test wells, and no others."""
    found = arrange(elements("labels=tests", n=[1]), tmp_path)
    assert list(found.elements) == ["n=1,fold=0", "n=1,fold=1", "final"]
    for name in ("n=1,fold=0", "n=1,fold=1"):
        assert "learns from 1 of 1 annotation boxes" in "\n".join(plan(found.elements[name]).messages)


def test_folds_that_are_given_are_not_folded_again(elements, tmp_path):
    found = arrange(elements("labels=four", "n=all", fold=[0, 2]), tmp_path)
    assert list(found.elements) == ["fold=0", "fold=2", "final"]


def test_one_annotated_field_alone_is_too_few(elements, plate, tmp_path):
    image = plate.image(FieldKey("B02", "1"))
    write_labels(image, "one", read_labels(image, "nuclei"), origin="human", boxes=WHOLE, overwrite=True)
    with pytest.raises(UserError, match="one annotated field alone cannot both train and test"):
        arrange(elements("labels=one", n=["all"]), tmp_path)


# ---------------------------------------------------------------- more annotations


def annotated(plate, name, *wells):
    for well in wells:
        image = plate.image(FieldKey(well, "1"))
        write_labels(image, name, read_labels(image, "nuclei"), origin="human", boxes=WHOLE, overwrite=True)


def test_messages_name_boxes_where_there_are_several(elements, plate, tmp_path):
    """Who annotates more and types the sweep again reads which boxes are new, and only those elements are
    others whose boxes are."""
    annotated(plate, "grown", "B02", "B03", "B04", "C02", "C03", "C04")
    order = RunRequest("finetune", SweepRecipe(stage="finetune", over={"n": ["all"]}), Site(), "nuc",
                  elements=elements("labels=grown", n=[1, "all"]))  # fmt: skip
    plans = {name: plan(recipe) for name, recipe in order.elements.items()}
    run = order.run(tmp_path)
    folders.make_array(run, order, plans, ())
    assert not sweep.compare(run, order, plans)
    first = next(iter(plans["n=1"].parts["boxes"]))
    assert first in plans["n=all"].parts["boxes"]
    well = next(well for well in ("B02", "B03", "C02", "C03") if f" {well}/1 " not in first)
    image = plate.image(FieldKey(well, "1"))
    two = [(0, 0, 32, 64), (32, 0, 64, 64)]
    write_labels(image, "grown", read_labels(image, "nuclei"), origin="human", boxes=two, overwrite=True)
    found = sweep.compare(run, order, {name: plan(recipe) for name, recipe in order.elements.items()})
    assert "n=all" in found.changed_names
    said = "\n".join(found.lines)
    assert f"boxes: 2 new: P01 {well}/1 [0, 0, 32, 64] 'grown'; P01 {well}/1 [32, 0, 64, 64] 'grown'" in said
    assert f"boxes: 1 gone: P01 {well}/1 [0, 0, 64, 64] 'grown'" in said
    assert "contents of" not in said


def test_a_run_learns_from_the_boxes_that_it_was_planned_with(elements, plate):
    """What is annotated while a run waits in the queue changes nothing for it; labels that were changed in
    one of its own boxes do, and it says which."""
    annotated(plate, "waiting", "B02", "B03", "B04", "C02", "C04")
    [recipe] = elements("labels=waiting", n=["all"]).values()
    planned = plan(recipe)
    annotated(plate, "waiting", "C03")
    assert len(resolve_inputs(recipe).learning) == 4
    setting = as_planned(recipe, resolve_inputs(recipe), planned.parts)
    for key, boxes in (("boxes", setting.learning), ("test boxes", setting.testing)):
        assert [box.name for box in boxes] == list(planned.parts[key])
    image = plate.image(FieldKey("B03", "1"))
    other = read_labels(image, "nuclei")
    other[:4] = 99
    write_labels(image, "waiting", other, origin="human", boxes=[(0, 0, 63, 64)], overwrite=True)
    with pytest.raises(
        UserError, match=r"P01 B03/1 \[0, 0, 64, 64\] 'waiting': these labels were changed since"
    ):
        as_planned(recipe, resolve_inputs(recipe), planned.parts)
    assert as_planned(recipe, resolve_inputs(recipe), {}) == resolve_inputs(recipe), (
        "planned by an earlier version"
    )


# ---------------------------------------------------------------- the best arm


@pytest.fixture
def done(elements, tmp_path):
    """done(name, *keys, iou=…, boxes=…, left_out=…) -> folder of a run; without a score it is not done."""

    def make(name, *keys, iou=None, boxes=1, left_out=None):
        recipe = load("finetune", None, [*base(elements), *keys])
        run = Run(tmp_path / "finetune" / name)
        run.folder.mkdir(parents=True)
        run.recipe.write_text(to_yaml(recipe))
        if iou is not None:
            run.done.mkdir()
            figures = {"boxes": boxes, "steps": 1} | ({} if math.isnan(iou) else {"iou": iou})
            (run.done / "finetune.json").write_text(json.dumps({"figures": figures}))
        if left_out is not None:
            content = {"pieces": [f"box {n}" for n in range(len(left_out))], "kept_scores": left_out}
            (run.folder / "left_out.json").write_text(json.dumps(content))
        return run.folder

    return make


def base(elements):
    """The keys that all elements of these tests have."""
    [recipe] = elements(n=["all"]).values()
    return [f"plates=[{recipe.plates[0]}]", *PLAIN]


def wanted(elements, among):
    [recipe] = elements(n=["all"]).values()
    return recipe.model_copy(update={"arm": "best", "among": among})


def test_the_best_has_the_greatest_mean_score_at_the_most_boxes(elements, done):
    among = [
        done("a0", "n=1", "arm=random", iou=0.99),
        done("a1", "n=all", "draw=0", "arm=random", iou=0.5, boxes=4),
        done("a2", "n=all", "draw=1", "arm=random", "train.seed=1", iou=0.9, boxes=3),
        done("b0", "n=1", "arm=imagenet", iou=0.1),
        done("b1", "n=all", "draw=0", "arm=imagenet", iou=0.65, boxes=4),
        done("b2", "n=all", "draw=1", "arm=imagenet", "train.seed=1", iou=0.6, boxes=3),
        done("zero", "n=0", "arm=random", iou=1.0, boxes=0),
    ]
    chosen = best(wanted(elements, among))
    assert (chosen.arm, chosen.n, chosen.draw, chosen.train_on_all) == ("random", "all", 0, True)
    assert chosen.among == among


def test_boxes_left_out_choose_before_test_fields(elements, done):
    among = [
        done("a", "n=all", "arm=random", iou=0.9, left_out=[0.5, 0.6, 0.5, 0.6]),
        done("b", "n=all", "arm=random+isl", iou=0.1, left_out=[0.7, 0.8, 0.7, 0.8]),
    ]
    assert best(wanted(elements, among)).arm == "random+isl"
    # Where a run has none, all are compared by test fields.
    among.append(done("c", "n=all", "arm=imagenet", iou=0.8))
    assert best(wanted(elements, among)).arm == "random"


def test_a_tie_is_won_by_the_arm_that_needs_least(elements, done):
    among = [
        done("a", "n=all", "arm=random+isl", iou=0.5, left_out=[0.7, 0.8, 0.6, 0.9]),
        done("b", "n=all", "arm=random", iou=0.5, left_out=[0.72, 0.7, 0.65, 0.85]),
        done("c", "n=all", "arm=imagenet", iou=0.5, left_out=[0.1, 0.1, 0.1, 0.1]),
    ]
    assert best(wanted(elements, among)).arm == "random"
    among[1:2] = [done("d", "n=all", "arm=random", "draw=1", iou=0.5, left_out=[0.6, 0.7, 0.5, 0.8])]
    assert best(wanted(elements, among)).arm == "random+isl", "another draw's pieces are no pairs"


def test_what_is_swept_beside_the_arm_makes_another_arm(elements, done):
    among = [
        done("a", "n=all", "optim.lr=0.1", iou=0.5), done("b", "n=all", "optim.lr=0.2", iou=0.7),
        done("c", "n=all", "optim.lr=0.3", iou=float("nan")),
    ]  # fmt: skip
    assert best(wanted(elements, among)).optim.lr == 0.2


def test_the_best_is_not_known_before_all_are_done_and_scored(elements, done):
    among = [done("a", "n=all", iou=0.5), done("lost", "n=1")]
    with pytest.raises(UserError, match=r"1 of 2 elements are not done \(lost\).*retry the sweep"):
        best(wanted(elements, among))
    with pytest.raises(UserError, match="no element has a score: no test field has labels"):
        best(wanted(elements, [done("b", "n=all", iou=float("nan"))]))
    with pytest.raises(UserError, match="arm=best: is for sweeps"):
        best(wanted(elements, []))


# ---------------------------------------------------------------- the journey

ISL = [
    "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst, plane: max}]", "data.workers=0",
    "split={test_wells: [B04, C04], validation_wells: []}", "predict.stain=false",
    "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}",
    "train={steps: 30, batch: 8, micro_batch: 8, crop: 64}", "optim.lr=0.006",
]  # fmt: skip
SWEEP = [
    "stage=finetune", "labels=nuclei", "optim.lr=0.006",
    "train={steps: 12, batch: 4, micro_batch: 4, crop: 64}", "pretrained=isl", "--name", "few",
]  # fmt: skip


def command_line(folder: Path, *words: str) -> str:
    """One call of the command line, to its end."""
    site = ["site.cpus=1", "site.tracking=none"] if words[0] != "report" else []
    call = subprocess.run(
        [sys.executable, "-m", "hpc_isl.submit", *words, *site], cwd=folder, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert call.returncode == 0, call.stdout
    return call.stdout


@pytest.mark.journey
@pytest.mark.timeout(900)
def test_from_a_sweep_to_its_report_and_to_a_larger_sweep(tmp_path, write_stained_plate):
    index = write_stained_plate(tmp_path / "P01.zarr")
    label_plate(index)
    plates = f"plates=[{index.path}]"
    command_line(tmp_path, "pretrain", plates, *ISL, "--name", "isl")
    over = "over={arm: [random, random+isl], n: [1], draw: [%s]}"
    told = command_line(tmp_path, "sweep", plates, *SWEEP, over % "0, 1")
    following = [shlex.split(line)[3:] for line in told.split("next: ")[1].splitlines()]
    assert following == [["report", "few"], ["segment", "model=few", plates]]
    assert "'nuclei_predicted'" in command_line(tmp_path, *following[1], "--dry-run")
    sweep = Run(tmp_path / "runs" / "sweep" / "few")
    names = [run.name for run in sweep.elements()]
    assert len(names) == 5
    assert names[-1] == "final"
    assert all(run.summary() for run in sweep.elements())
    first = Run(sweep.folder / "finetune" / "final").summary()
    assert first["figures"]["boxes"] == 6
    page = look_at_page(tmp_path, sweep, elements=4)

    command_line(tmp_path, "sweep", plates, *SWEEP, over % "0, 1, 2")
    assert len(sweep.elements()) == 7
    assert Run(sweep.folder / "finetune" / "final").summary()["time"] > first["time"]
    assert look_at_page(tmp_path, sweep, elements=6) != page


def look_at_page(folder: Path, sweep: Run, elements: int) -> str:
    command_line(folder, "report", "few")
    report = sweep.folder / "report"
    page = (report / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    assert "not drawn" not in text
    assert "cannot be read" not in text
    assert "missing from this report" not in text.lower()
    # One picture for each of the two test boxes.
    assert sorted(path.name for path in report.glob("panel-*.png")) == ["panel-0.png", "panel-1.png"]
    with (report / "scores_all.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["element"] for row in rows}) == elements
    assert len(rows) == 2 * elements
    assert all(np.isfinite(float(row["iou"])) for row in rows)
    return page
