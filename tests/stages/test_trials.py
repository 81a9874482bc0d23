"""Trials: the real work for a while; each phase that the plan counts is timed, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_up_screen import save_model, write_screen
from made_up_sweep import label_plate

from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Plan, Run
from hpc_isl.stages.finetune import finetuning
from hpc_isl.stages.finetune import stage as finetune
from hpc_isl.stages.pretrain import pretraining
from hpc_isl.stages.pretrain import stage as pretrain
from hpc_isl.stages.segment import stage as segment
from hpc_isl.tasks import Answer, estimate

KEYS = [
    "sources=[{channel: Brightfield}]",
    "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}",
    "split={test_wells: [B04, C04], validation_wells: [B03]}",
    "train={steps: 100000, batch: 2, micro_batch: 2, crop: 32}",
]  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second tells as much here as ten."""
    for module in (finetuning, pretraining, segment):
        monkeypatch.setattr(module, "TRIAL_S", 0.5)


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory, write_stained_plate: Callable[..., Any]) -> Path:
    index = write_stained_plate(tmp_path_factory.mktemp("plates") / "P01.zarr")
    label_plate(index)
    return Path(index.path)


def left(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_tells(plan: Plan, attempt: Attempt) -> None:
    """What the trial has timed is enough to tell the time of all, and the run was not taken for done."""
    assert plan.workload is not None
    assert estimate(plan.workload, [("", attempt.clock.timed())], 1) is not None
    assert attempt.run.summary() is None
    assert not attempt.stopping.is_set()


def test_a_trial_of_pretraining_times_steps_and_fields_of_both_kinds(plate: Path, tmp_path: Path) -> None:
    keys = [f"plates=[{plate}]", *KEYS, "targets=[{channel: Hoechst, plane: max}]", "data.workers=0",
            "train.evaluate_every=100"]  # fmt: skip
    plan = pretrain.plan(load("pretrain", None, keys))
    attempt, before = Attempt(Run(tmp_path / "pretrain" / "trial")), left(plate)
    pretrain.trial(pretrain.trial_recipe(plan.recipe), attempt)
    assert_tells(plan, attempt)
    assert plan.workload.units.keys() == {"micro-batches", "validation", "test"}
    assert left(plate) == before


def test_a_trial_of_fine_tuning_times_steps_and_a_test_field(plate: Path, tmp_path: Path) -> None:
    plan = finetune.plan(load("finetune", None, [f"plates=[{plate}]", *KEYS, "labels=nuclei", "arm=random"]))
    attempt, before = Attempt(Run(tmp_path / "finetune" / "trial")), left(plate)
    finetune.trial(plan.recipe, attempt)
    assert_tells(plan, attempt)
    assert left(plate) == before


class Here:
    """Tasks computed in this process, one after the other, until the attempt is to stop."""

    workers = 1

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def run(self, call: Callable[[Any], Any], tasks: Any) -> Iterator[Answer]:
        for task in tasks:
            if self.attempt.stopping.is_set():
                return
            with ThreadPoolExecutor(1) as pool:
                yield Answer(task.name, pool.submit(call, task.argument).result())


def test_a_trial_of_segmentation_times_fields_and_writes_no_label(tmp_path: Path) -> None:
    index = write_screen(tmp_path / "S1.zarr", ["B02", "B03"], 3)
    save_model(tmp_path / "finetune" / "cells")
    keys = [f"model={tmp_path / 'finetune' / 'cells'}", f"plates=[{index.path}]", "labels=found"]
    plan = segment.plan(load("segment", None, keys))
    attempt, before = Attempt(Run(tmp_path / "segment" / "trial")), left(index.path)
    recipe = segment.trial_recipe(plan.recipe)
    attempt.run.folder.mkdir(parents=True)
    attempt.run.recipe.write_text(to_yaml(recipe))

    @contextmanager
    def pools(need: Any) -> Iterator[Here]:
        yield Here(attempt)

    segment.trial(recipe, attempt, pools)
    assert_tells(plan, attempt)
    assert left(index.path) == before
