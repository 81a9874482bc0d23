"""Scores of held-out fields, and the curves of training."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.split import draw
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.losses import title_of
from hpc_isl.learning.training.world import open_world
from hpc_isl.objects.scores import mae
from hpc_isl.objects.types import Pixels
from hpc_isl.recipes.load import load
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.shared.held_out import (
    by_plate_map,
    figures,
    predict_field,
    quick_scores,
    score,
    write_scores,
)
from hpc_isl.stages.shared.pictures import training_figure
from hpc_isl.stages.shared.plate_views import PlateViews
from hpc_isl.stages.shared.training_run import TrainingLog

KEYS = [
    "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst, plane: max}]", "data.workers=0",
    "split={test_wells: [B04, C04], validation_wells: [B03, C03]}",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, write_stained_plate: Callable[..., Any]) -> PlateViews:
    path = tmp_path_factory.mktemp("plates") / "P01.zarr"
    index = write_stained_plate(path)
    recipe: Any = load("pretrain", None, [f"plates=[{path}]", *KEYS])
    split = draw((index,), recipe.split)
    return PlateViews(recipe, view_of((index,), split, recipe), split, (index,))


class FirstFieldAlone(nn.Module):
    """Gives its source back, but where that is one of the fields it is blind to."""

    def __init__(self, blind: int) -> None:
        super().__init__()
        self.blind, self.seen = blind, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return torch.full_like(x, 0.1) if self.seen <= self.blind else -x


def test_constant_predictions_count_as_pcc_0_and_are_counted(
    study: PlateViews, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user sees the PCC of a network that is blind to half of the fields halved, not that of the others,
    with the number of fields that it is blind to: while it trains, in its figures and in scores.csv."""
    attempt = Attempt(Run(tmp_path / "runs" / "pretrain" / "a"))
    places = study.fields("validation")

    def quick(blind: int) -> dict[str, float]:
        with open_world(attempt) as world:
            predictor = Predictor(FirstFieldAlone(blind))
            found = quick_scores(predictor, places, world, lambda: False, l1)
        assert found is not None
        return found

    sees, half, dead = quick(0), quick(1), quick(2)
    assert sees["pcc"] > 0.5
    assert "constant_predictions" not in sees
    assert sees["loss"] == pytest.approx(sees["mae"], rel=1e-5), "the loss is measured on the same fields"
    assert 0 < half["pcc"] < sees["pcc"]
    assert (half["constant_predictions"], dead["constant_predictions"], dead["pcc"]) == (1, 2, 0)
    TrainingLog(attempt, steps=1, batch=1).validated(1, dead)
    assert "PCC 0.0000" in (said := capsys.readouterr().out)
    assert "2 predictions of a field are constant though the stain is not" in said

    one_blind = Predictor(FirstFieldAlone(1))
    rows = [row for place in study.fields("test") for seen in predict_field(one_blind, place)
            for row in score(seen, None)]  # fmt: skip
    assert [row["pcc"] == 0 for row in rows] == [True, False]
    found = figures(rows)
    assert found["pcc"] == pytest.approx(rows[1]["pcc"] / 2, abs=1e-5)
    assert (found["constant_predictions"], found["images"]) == (1, 2)
    write_scores(rows, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as stream:
        assert [line["constant_predictions"] for line in csv.DictReader(stream)] == ["1", ""]


def l1(prediction: Pixels, truth: Pixels) -> float:
    return mae(prediction, truth)


# ---------------------------------------------------------------- curves


def lines(**curves: list[float]) -> list[dict[str, Any]]:
    return [{"step": step, "values": {name.replace("_", "/"): value}}
            for name, values in curves.items() for step, value in enumerate(values, 1)]  # fmt: skip


def test_a_plate_map_that_uses_our_names_changes_no_score(study: PlateViews) -> None:
    """Its `target`, `time` and `objects` stand beside ours, and group the figures as other columns do."""
    facts = {"B04": {"target": "EGFR", "time": "24 h", "objects": "many"}, "C04": {"target": "KRAS"}}
    own = replace(study, indices=(replace(study.indices[0], plate_map=facts),))
    sees = Predictor(FirstFieldAlone(0))
    rows = [row for place in own.fields("test") for seen in predict_field(sees, place)
            for row in score(seen, None)]  # fmt: skip
    assert [(row["target"], row["time"], row["target (plate map)"]) for row in rows] == [
        ("Hoechst max", 0, "EGFR"), ("Hoechst max", 0, "KRAS"),
    ]  # fmt: skip
    assert figures(rows)["images"] == 2
    assert "objects" not in figures(rows)
    groups = by_plate_map(own, rows)
    assert {name: [*values] for name, values in groups.items()} == {"target": ["EGFR", "KRAS"]}


def test_training_curves_name_the_loss_and_what_is_measured() -> None:
    """A user reads from the picture which loss fell, on what, and how it did on validation fields."""
    measured = lines(
        train_loss=[1, 0.5, 0.3], validation_loss=[0.9, 0.6, 0.7], validation_pcc=[0.1, 0.6, 0.5]
    )
    figure = training_figure(measured, title_of("smooth_l1", pearson=0.5))
    left, right = figure.axes
    assert (left.get_ylabel(), left.get_xlabel()) == ("smooth L1 + 0.5 × (1 − PCC)", "step")
    assert left.get_legend_handles_labels()[1] == ["training crops", "validation fields"]
    assert [list(line.get_ydata()) for line in left.lines] == [[1, 0.5, 0.3], [0.9, 0.6, 0.7]]
    assert (right.get_ylabel(), right.get_xlabel()) == ("Pearson correlation (PCC)", "step")


def test_curves_without_measurements_have_no_panel_and_no_legend() -> None:
    (axis,) = training_figure(lines(train_loss=[1.0, -0.5]), "1 − Jaccard index").axes
    assert axis.get_ylabel() == "1 − Jaccard index"
    assert axis.get_legend() is None
    assert axis.get_yscale() == "linear", "a loss below 0 has no logarithm"
