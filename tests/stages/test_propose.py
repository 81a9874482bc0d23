"""Which fields to annotate next: as k-centre greedy has it, and never a field that tests or is annotated."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from math import inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import zscore

from hpc_isl.cli.main import action_as_keys
from hpc_isl.errors import UserError
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.objects.scores import pcc
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, open_plate, rebuild_index, write_field, write_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import AnnotateRecipe, CodecRecipe
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.annotate.candidates import pool_of
from hpc_isl.stages.annotate.embeddings import QUANTILES, SCALES, by_network, image_statistics, read_field
from hpc_isl.stages.annotate.ranking import distances, medoid, ranked, scaled_residuals, standardised
from hpc_isl.stages.annotate.stage import annotate, plan
from hpc_isl.stages.pretrain.stage import pretrain

WELLS = ("B02", "B03", "B04", "B05", "C02", "C03", "C04", "C05", "D02", "D03")
TEST = ("B04", "C04")
LEFT = [well for well in WELLS if well not in TEST]
ISL = [
    "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst, plane: max}]",
    "split={test_wells: [B04, C04], validation_wells: [C03]}", "data.workers=0", "predict.stain=false",
    "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}",
    "train={steps: 2, batch: 4, micro_batch: 2, crop: 32, precision: fp32, crops_per_field: 2}",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, write_stained_plate: Callable[..., Any]) -> Path:
    """A folder with a plate and an ISL run that holds out two of its wells."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("propose")
    write_stained_plate(folder / "P01.zarr", wells=WELLS)
    trained = load("pretrain", None, [f"plates=[{folder}/P01.zarr]", *ISL])
    assert isinstance(trained, PretrainRecipe)
    pretrain(trained, Attempt(isl(folder)))
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return Path(shutil.copytree(world, tmp_path / "world"))


def isl(folder: Path) -> Run:
    return Run(folder / "runs" / "pretrain" / "S12")


def recipe(folder: Path, *keys: str) -> AnnotateRecipe:
    words = ["action=propose", f"plate={folder}/P01.zarr", "labels=cells", *keys]
    found = load("annotate", None, words)
    assert isinstance(found, AnnotateRecipe)
    return found


def with_model(folder: Path, *keys: str) -> AnnotateRecipe:
    return recipe(folder, f"model={isl(folder).folder}", *keys)


def proposed(asked: AnnotateRecipe, folder: Path, **attempt: Any) -> Run:
    """A run from its plan to its end."""
    run = Run(folder / "runs" / "annotate" / "p")
    annotate(plan(asked).recipe, Attempt(run, **attempt))
    return run


def rows(run: Run) -> list[dict[str, str]]:
    with (run.folder / "proposed.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def wells(run: Run) -> list[str]:
    return [row["well"] for row in rows(run)]


def annotated(index: Index, name: str, *names: str, origin: str = "human") -> None:
    squares = np.zeros((96, 96), np.uint32)
    squares[10:30, 10:30] = 1
    for well in names:
        image = index.image(FieldKey(well, "1"))
        write_labels(image, name, squares, origin=origin, boxes=[(0, 0, 96, 96)])


# ---------------------------------------------------------------- k-centre greedy


def brute_force(
    points: list[list[float]],
    annotated: list[int],
    n: int,
    strata: list[int],
    residuals: list[float],
    weight: float,
) -> list[int]:
    """The definition, with all distances computed anew for each choice."""

    def distance(a: int, b: int) -> float:
        squares = sum((x - y) ** 2 for x, y in zip(points[a], points[b], strict=True))
        return sqrt(squares) / sqrt(len(points[a]))

    everything = range(len(points))
    chosen: list[int] = []
    if not annotated:
        sums = [float(np.sum([distance(a, b) for b in everything])) for a in everything]
        chosen.append(sums.index(min(sums)))
    known = {*annotated, *chosen}
    unit = max((min(distance(a, b) for b in known) for a in everything if a not in known), default=0) or 1
    while len(chosen) < n:
        known = {*annotated, *chosen}
        left = [number for number in everything if number not in known]
        fields_in = {stratum: sum(strata[k] == stratum for k in known) for stratum in strata}
        if any(fields_in[strata[number]] == 0 for number in left):
            left = [number for number in left if fields_in[strata[number]] == 0]
        best, best_score = -1, -inf
        for number in left:
            gap = min(distance(number, other) for other in known)
            score = (1 - weight) * gap / unit + weight * residuals[number]
            if score > best_score:
                best, best_score = number, score
        chosen.append(best)
    return chosen


@st.composite
def plates(draw: st.DrawFn) -> tuple[Any, ...]:
    """Few fields on a grid of whole numbers, so that ties are frequent and distances exact."""
    count, dimensions = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    points = draw(
        st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=dimensions, max_size=dimensions),
            min_size=count, max_size=count,
        )
    )  # fmt: skip
    taken = draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    n = draw(st.integers(1, count - len(taken)))
    strata = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    residuals = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=count, max_size=count))
    return points, sorted(taken), n, strata, residuals, draw(st.sampled_from([0.0, 0.25, 1.0]))


@settings(max_examples=300, deadline=None)
@given(plates())
def test_the_choice_is_that_of_the_definition_computed_anew_at_each_step(plate: tuple[Any, ...]) -> None:
    points, taken, n, strata, residuals, weight = plate
    picks = ranked(np.array(points), taken, n, strata, np.array(residuals), weight)
    assert [pick.number for pick in picks] == brute_force(points, taken, n, strata, residuals, weight)
    known = list(taken)
    for pick in picks:
        if known:
            gaps = distances(np.array(points), np.array(points)[known])[pick.number]
            assert pick.distance == gaps.min() == gaps[known.index(pick.nearest)]
        assert pick.opens == (strata[pick.number] not in {strata[number] for number in known})
        known.append(pick.number)


@settings(max_examples=100, deadline=None)
@given(plates())
def test_no_field_is_further_from_a_centre_than_twice_the_least_possible(plate: tuple[Any, ...]) -> None:
    """Gonzalez's bound, against the best of all choices of as many fields."""
    points, taken, n, *_ = plate
    table = distances(np.array(points), np.array(points))

    def radius(centres: list[int]) -> float:
        return float(table[:, centres].min(1).max())

    others = [number for number in range(len(points)) if number not in taken]
    best = min(radius([*taken, *choice]) for choice in combinations(others, n))
    ours = radius([*taken, *(pick.number for pick in ranked(np.array(points), taken, n))])
    assert ours <= 2 * best + 1e-9


def test_a_field_of_its_own_kind_comes_before_more_of_the_usual_ones() -> None:
    points = np.array([[0.0], [0.1], [0.2], [9.0], [0.3]])
    assert medoid(points) == 2
    assert [pick.number for pick in ranked(points, [], 3)] == [2, 3, 0]
    assert [pick.number for pick in ranked(points, [3], 1)] == [0], "what is annotated is known already"


def test_no_stratum_gets_a_second_field_while_another_has_none() -> None:
    points, strata = np.array([[0.0], [10.0], [20.0], [1.0], [2.0]]), ["a", "a", "a", "b", "c"]
    assert [strata[pick.number] for pick in ranked(points, [0], 3, strata)] == ["c", "b", "a"]
    assert [strata[pick.number] for pick in ranked(points, [0], 3)] == ["a", "a", "c"]


# ---------------------------------------------------------------- features


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_features_are_z_scores_over_fields(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(5, 3, (count, 4))
    assert np.allclose(standardised(values), zscore(values), atol=1e-4)
    assert np.array_equal(standardised(values), standardised(values * 8 - 1024))


def test_constant_features_and_those_of_missing_channels_move_no_field() -> None:
    values = np.array([[3.0, 1.0, 7.1], [3.0, np.nan, 7.1 + 1e-9], [3.0, 3.0, 7.1]])
    assert np.array_equal(standardised(values), [[0, -1, 0], [0, 0, 0], [0, 1, 0]])


def test_residuals_are_scaled_and_a_field_without_a_stain_is_taken_for_the_median() -> None:
    nan = float("nan")
    assert scaled_residuals(np.array([0.2, nan, 0.6, 0.3])).tolist() == pytest.approx([0, 0.25, 1, 0.25])
    assert scaled_residuals(np.array([nan, nan])).tolist() == [0, 0]
    assert scaled_residuals(np.array([0.5, 0.5])).tolist() == [0, 0]


def test_statistics_of_a_ramp_are_its_quantiles_and_its_slope_at_each_scale() -> None:
    ramp = np.repeat(np.arange(64)[:, None] * 3, 64, 1).astype(np.uint16)
    found = image_statistics(ramp)
    assert found[: len(QUANTILES)] == pytest.approx(np.quantile(ramp, np.array(QUANTILES) / 100))
    assert np.expm1(found[len(QUANTILES) :]) == pytest.approx([3.0 * 2**scale for scale in range(SCALES)])
    assert np.isnan(image_statistics(None)).all()
    assert len(image_statistics(None)) == len(image_statistics(np.zeros((1, 1)))) == len(found)


def test_the_embedding_is_mean_and_deviation_of_the_encoders_deepest_maps(world: Path) -> None:
    index, asked = open_plate(world / "P01.zarr"), with_model(world)
    view = pool_of(asked, index).view
    assert view is not None
    key = FieldKey("B03", "1")
    network, _ = model.load(isl(world).model)
    sources, targets = view.read(key)
    with torch.inference_mode():
        deepest: Any = network.get_submodule("encoder")(torch.from_numpy(sources)[None])[-1][0]
    found = by_network(isl(world).model, view, 1, with_residual=True)(key)
    maps = deepest.flatten(1).double().numpy()
    assert found.features == pytest.approx(np.concatenate([maps.mean(1), maps.std(1)]), rel=1e-4, abs=1e-5)
    assert found.residual == pytest.approx(1 - pcc(Predictor(network)(sources)[0], targets[0]), abs=1e-6)
    ours, stains = read_field(view, key)
    assert np.array_equal(ours, sources)
    assert stains is not None
    assert np.array_equal(stains, targets)
    assert np.isnan(by_network(isl(world).model, view, 1, with_residual=False)(key).residual)


def test_where_a_model_predicts_in_tiles_their_maps_count_together(copy: Path) -> None:
    path = isl(copy).model / "contract.json"
    content = json.loads(path.read_text())
    content["predict"] |= {"tile": 32, "halo": 0, "batch": 4}
    path.write_text(json.dumps(content))
    view = pool_of(with_model(copy), open_plate(copy / "P01.zarr")).view
    assert view is not None
    key = FieldKey("B03", "1")
    network, _ = model.load(isl(copy).model)
    encoder: Any = network.get_submodule("encoder")
    sources = torch.from_numpy(view.read(key)[0])
    tiles = [sources[None, :, y : y + 32, x : x + 32] for y in (0, 32, 64) for x in (0, 32, 64)]
    with torch.inference_mode():
        maps = np.concatenate([encoder(tile)[-1][0].flatten(1).double().numpy() for tile in tiles], 1)
    found = by_network(isl(copy).model, view, 1, with_residual=False)(key)
    assert found.features == pytest.approx(np.concatenate([maps.mean(1), maps.std(1)]), rel=1e-4, abs=1e-5)


# ---------------------------------------------------------------- the action


@pytest.mark.parametrize("make", [recipe, with_model])
def test_two_runs_propose_the_same_fields_with_reasons_and_a_picture(
    world: Path, tmp_path: Path, make: Callable[..., AnnotateRecipe]
) -> None:
    runs = [proposed(make(world, "n=4"), tmp_path / str(number)) for number in range(2)]
    assert rows(runs[0]) == rows(runs[1])
    found = rows(runs[0])
    assert list(found[0]) == ["rank", "well", "field", "acquisition", "score", "reason", "cell_line"]
    assert [row["rank"] for row in found] == ["1", "2", "3", "4"]
    assert found[0]["reason"].startswith("in the middle of all fields")
    assert found[0]["score"] == ""
    assert [row["cell_line"] for row in found] == [
        {"B": "HeLa", "C": "3T3", "D": "MCF10A"}[row["well"][0]] for row in found
    ]
    scores = [float(row["score"]) for row in found[1:]]
    assert all(0 < score <= 1 for score in scores)
    assert all("SD from the nearest field" in row["reason"] for row in found[1:])
    assert all(("PCC" in row["reason"]) == (make is with_model) for row in found[1:])
    summary = runs[0].summary() or {}
    with Image.open(summary["made"]["picture of them"]) as picture:
        pixels = np.asarray(picture.convert("L"))
    # One panel a field, side by side: in each there is an image, which is no white paper.
    parts = np.array_split(pixels, 4, axis=1)
    assert [bool((part < 250).mean() > 0.3) for part in parts] == [True] * 4
    assert not (runs[0].folder / "embeddings.npz").exists()


def test_the_next_command_lends_exactly_the_proposed_fields(world: Path, tmp_path: Path) -> None:
    run = proposed(with_model(world, "n=3"), tmp_path)
    [line] = (run.summary() or {})["next"]
    verb, *words = shlex.split(line)
    words = [word if not word.startswith("out=") else f"out={tmp_path}/todo" for word in words]
    lent = load(verb, None, action_as_keys(verb, words))
    assert isinstance(lent, AnnotateRecipe)
    annotate(plan(lent).recipe, Attempt(Run(tmp_path / "runs" / "annotate" / "out")))
    images = {path.name.split("_")[0] for path in (tmp_path / "todo").glob("*.image.tif")}
    assert images == set(wells(run))


def test_test_fields_of_the_model_are_neither_read_nor_proposed(
    world: Path, copy: Path, tmp_path: Path
) -> None:
    """Their pixels are destroyed: whatever reads them fails. People have annotated one of them."""
    index = open_plate(copy / "P01.zarr")
    annotated(index, "cells", "B04")
    for well in TEST:
        for level in index.image(FieldKey(well, "1")).glob("[0-9]"):
            shutil.rmtree(level)
    damaged = proposed(with_model(copy, f"n={len(LEFT)}"), copy)
    assert rows(damaged) == rows(proposed(with_model(world, f"n={len(LEFT)}"), tmp_path))
    assert sorted(wells(damaged)) == LEFT
    with pytest.raises(UserError, match="cannot be read"):
        proposed(recipe(copy, "n=9"), tmp_path)  # without a model nobody knows that these test


def test_fields_that_people_annotated_are_known_and_not_proposed(copy: Path) -> None:
    index = open_plate(copy / "P01.zarr")
    annotated(index, "cells", "B02", "D03")
    annotated(index, "cells", "C02", origin="drafted")
    annotated(index, "nuclei", "B03")
    annotated(index, "cells", "B05")
    # As another program writes them: who drew these, nobody knows.
    group = index.image(FieldKey("B05", "1")) / "labels" / "cells" / "zarr.json"
    content = json.loads(group.read_text())
    del content["attributes"]["hpc_isl"]
    group.write_text(json.dumps(content))
    found = rows(proposed(with_model(copy, "n=5"), copy))
    assert sorted(row["well"] for row in found) == sorted(set(LEFT) - {"B02", "B05", "D03"})
    assert "of which none is annotated" not in found[0]["reason"]
    first = found[0]["reason"].split(";")[0]
    known = ("B02/1", "B05/1", "D03/1")
    assert first.endswith(known), "the nearest field is one of those that are annotated"
    messages = "\n".join(plan(with_model(copy, "n=5")).messages)
    assert "3 fields have labels 'cells' of people" in messages
    assert "5 of 5 fields" in messages


def test_no_cell_line_is_proposed_twice_before_each_has_a_field(copy: Path) -> None:
    lines = [row["cell_line"] for row in rows(proposed(with_model(copy, "n=3", "stratify=cell_line"), copy))]
    assert sorted(lines) == ["3T3", "HeLa", "MCF10A"]
    annotated(open_plate(copy / "P01.zarr"), "cells", "B02", "C02")
    again = Path(copy / "again")
    found = rows(proposed(recipe(copy, "n=2", "stratify=[cell_line]"), again))
    assert found[0]["cell_line"] == "MCF10A"
    assert "the first of cell_line=MCF10A" in found[0]["reason"]
    assert "the first of" not in found[1]["reason"]


def test_only_fields_that_are_named_are_proposed(world: Path, tmp_path: Path) -> None:
    named = ["B02", "B04", "C05", "D03"]
    assert sorted(wells(proposed(with_model(world, f"fields={named}", "n=3"), tmp_path))) == [
        "B02", "C05", "D03",
    ]  # fmt: skip


class Stopped(Attempt):
    """One that is asked to stop after three fields."""

    def progress(self, done: int, total: int, unit: str, kept: int = 0, /, **metrics: float) -> None:
        super().progress(done, total, unit, kept, **metrics)
        if done == 3:
            self.stopping.set()


def test_a_run_that_was_stopped_continues_where_it_was_and_ends_with_the_same_list(
    copy: Path, tmp_path: Path
) -> None:
    asked = plan(with_model(copy, "n=5")).recipe
    whole = proposed(with_model(copy, "n=5"), tmp_path / "whole")
    run = Run(tmp_path / "runs" / "annotate" / "p")
    annotate(asked, Stopped(run))
    assert run.summary() is None
    assert not (run.folder / "proposed.csv").exists()
    with np.load(run.folder / "embeddings.npz") as kept:
        assert list(kept["names"]) == ["B02/1", "B03/1", "B05/1"]
    second = Attempt(run, 1)
    annotate(asked, second)
    assert rows(run) == rows(whole)
    assert second._state["progress"] == {
        "done": 8, "total": 8, "unit": "fields", "metrics": {}, "kept": 3,
    }  # fmt: skip


def test_embeddings_of_another_plate_or_model_are_not_taken(world: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "annotate" / "p")
    annotate(plan(recipe(world, "n=5")).recipe, Stopped(run))
    asked = plan(with_model(world, "n=5")).recipe
    annotate(asked, Attempt(run, 1))
    assert rows(run) == rows(proposed(with_model(world, "n=5"), tmp_path / "whole"))


def test_the_weight_of_the_residual_moves_the_list_from_unlike_to_badly_predicted(
    world: Path, tmp_path: Path
) -> None:
    annotate_all = f"n={len(LEFT)}"
    found = rows(proposed(with_model(world, annotate_all, "residual_weight=1"), tmp_path / "1"))
    values = [float(row["reason"].split("stain ")[1].split(",")[0]) for row in found[1:]]
    assert values == sorted(values), "the worst first"
    without = rows(proposed(with_model(world, annotate_all, "residual_weight=0"), tmp_path / "0"))
    assert not any("PCC" in row["reason"] for row in without)
    gaps = [float(row["reason"].split(" SD")[0]) for row in without[1:]]
    assert gaps == sorted(gaps, reverse=True), "each is nearer to those before it than the one before"


@pytest.mark.parametrize("make", [recipe, with_model])
def test_a_field_that_shows_nothing_but_noise_is_left_out(
    copy: Path, make: Callable[..., AnnotateRecipe]
) -> None:
    """It is unlike all others, and there is nothing to annotate."""
    index = open_plate(copy / "P01.zarr")
    field = index.field(FieldKey("B03", "1"))
    noise = np.random.default_rng(0).normal(20000, 60, field.shape).astype(np.uint16)
    write_field(index.path, index.plate, field, noise, measure(noise), CodecRecipe(chunk=32), overwrite=True)
    rebuild_index(index.path)
    asked = make(copy, "n=3")
    assert "1 of 10 fields show no structure" in "\n".join(plan(asked).messages)
    pool = pool_of(asked, open_plate(copy / "P01.zarr"))
    assert {key.well for key in pool.keys} == (set(LEFT) if make is with_model else set(WELLS)) - {"B03"}


def test_fields_of_several_times_are_left_out(
    tmp_path: Path, write_stained_plate: Callable[..., Any]
) -> None:
    write_stained_plate(tmp_path / "P01.zarr", wells=("B02", "B03"), times=2, size=64)
    with pytest.raises(UserError, match=r"of 2 fields 2 have several times.*there is none to propose"):
        plan(recipe(tmp_path, "n=1"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["n=9"],
            "n=9: 8 fields of .*P01.zarr can be proposed; of 10 fields 2 are test.*ask for n=8",
        ),
        (
            ["n=2", "fields=[B02, B04]"],
            "n=2: 1 field of .*7 are not among fields=.*ask for n=1 or fewer",
        ),
        (["fields=[B04]", "n=1"], "there is none to propose"),
        (["fields=[Z09]"], "fields: 'Z09' is not on the plate"),
        (["stratify=[cell_lin]"], "no column 'cell_lin'; did you mean 'cell_line'"),
        (["model=/nowhere/S13"], "model=S13: .*holds no model"),
    ],
)
def test_what_cannot_be_proposed_is_refused_with_the_reason(
    world: Path, keys: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(with_model(world, *keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["residual_weight=0.5"], "residual_weight: changes nothing because without a model no stain"),
        (["threshold=li"], "threshold: changes nothing because action is propose"),
        (["n=0"], "n"),
        (["residual_weight=2"], "residual_weight"),
    ],
)
def test_keys_that_mean_nothing_here_are_refused(world: Path, keys: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(world, *keys)
    with pytest.raises(UserError, match="n: changes nothing because action is export"):
        load("annotate", None, ["action=export", "plate=P.zarr", "labels=cells", "out=todo", "n=3"])


def test_a_model_that_segments_is_refused(copy: Path) -> None:
    path = isl(copy).model / "contract.json"
    content = json.loads(path.read_text())
    content["task"] = {"labels": "nuclei", "kind": "nuclei"}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="model=S12: this model segments; name a run of pretrain"):
        plan(with_model(copy))


def test_the_user_is_told_what_is_compared_with_what(copy: Path) -> None:
    annotated(open_plate(copy / "P01.zarr"), "nuclei", "B02")
    without = "\n".join(plan(recipe(copy)).messages)
    assert "no model is given: fields are compared by simple statistics" in without
    assert "no field has labels 'cells'; there are: nuclei" in without
    messages = "\n".join(plan(with_model(copy)).messages)
    assert "2 of 10 fields are test fields of the model and are not looked at" in messages
    assert "5 of 8 fields" in messages
    assert "experimental" in messages


def test_a_plate_without_the_stain_is_ranked_by_its_label_free_images_and_the_user_is_told(
    world: Path, tmp_path: Path, write_stained_plate: Callable[..., Any]
) -> None:
    write_stained_plate(tmp_path / "P01.zarr", wells=WELLS[:5], stains=())
    asked = recipe(tmp_path, f"model={isl(world).folder}", "n=2")
    told = "how well the stain is predicted does not count: P01 has no channel 'Hoechst'"
    assert told in plan(asked).messages
    assert told not in plan(with_model(world)).messages
    assert not any("PCC" in row["reason"] for row in rows(proposed(asked, tmp_path)))


SCRIPT = """
import json, sys
from hpc_isl.recipes.load import load
from hpc_isl.stages.annotate.stage import plan
plan(load("annotate", None, sys.argv[1:]))
print(json.dumps(sorted(sys.modules)))
"""


def test_a_plan_imports_nothing_that_only_its_job_needs(world: Path) -> None:
    words = ["action=propose", f"plate={world}/P01.zarr", "labels=cells", f"model={isl(world).folder}"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    later = {"torch", "scipy", "skimage", "pandas", "matplotlib", "segmentation_models_pytorch"}
    assert later & set(json.loads(done.stdout)) == set()
