"""What pretrain, annotate, segment and table find on a plate, and whether it is what they find on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from made_up_screen import save_model
from numpy.typing import NDArray

from hpc_isl.plates.store import label_names, open_plate, read_labels
from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.annotate import stage as annotate
from hpc_isl.stages.pretrain import stage as pretrain
from hpc_isl.stages.segment import stage as segment
from hpc_isl.stages.table.stage import table
from hpc_isl.tasks import Answer

NET = "net={encoder: tu-test_resnet, weights: null, decoder: [16, 8, 8, 4, 4]}"
STEPS = "train={steps: 3, batch: 2, micro_batch: 2, crop: 32, evaluate_every: 3}"
SPLIT = "split={test: 0.2, validation: 0.2}"


class Here:
    """The pool of a test: every task in this process."""

    workers = 1

    def run(self, call: Callable[[Any], Any], tasks: Iterator[Any]) -> Iterator[Answer]:
        with ThreadPoolExecutor(1) as pool:
            yield from (Answer(task.name, pool.submit(call, task.argument).result()) for task in tasks)

    @contextmanager
    def __call__(self, need: Any) -> Iterator[Here]:
        yield self


def computed(stage: Any, root: Path, name: str, *words: str, pools: Any = None) -> Run:
    """A run of a stage from its plan to its end, as a job computes it."""
    verb = stage.__name__.split(".")[-2]
    run = Run(root / "runs" / verb / name)
    planned = stage.plan(load(verb, None, list(words)))
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(planned.recipe))
    getattr(stage, verb)(planned.recipe, Attempt(run), *([pools] if pools else []))
    return run


@dataclass(frozen=True)
class Results:
    """What verbs find on a plate: tables, labels by field and name, and the pixels of an exported image."""

    scores: pd.DataFrame
    wells: pd.DataFrame
    objects: pd.DataFrame
    labels: dict[str, NDArray[np.uint32]]
    exported: NDArray[Any]


def use(plate: Path, model: Path) -> Results:
    """Runs verbs on a plate; their runs lie beside it, and `model` gets one of random weights."""
    torch.set_num_threads(1)  # as the stages compute: sums in another order differ
    folder, index = plate.parent, open_plate(plate)
    drawn = np.zeros(index.plate.fields[0].shape[-2:], np.uint16)
    drawn[8:24, 8:24], drawn[30:50, 30:50] = 1, 2
    masks = folder / "masks"
    masks.mkdir()
    first = index.plate.fields[0].key
    tifffile.imwrite(masks / f"{first.well}_{first.name}.tif", drawn)
    if not model.exists():
        save_model(model / "runs" / "finetune" / "cells", pixel_um=index.plate.pixel_um)
    given = [f"plates=[{plate}]", "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst}]"]
    keys = [NET, STEPS, SPLIT, "data.workers=0", "train.precision=fp32"]
    trained = computed(pretrain, folder, "S12", *given, *keys)
    importing = ["action=import", f"plate={plate}", "labels=drawn", f"source={masks}"]
    computed(annotate, folder, "in", *importing)
    drafting = ["action=draft", f"plate={plate}", "labels=drafted", "channel=Hoechst"]
    computed(annotate, folder, "draft", *drafting)
    computed(
        annotate, folder, "out", "action=export", f"plate={plate}", "labels=drafted", f"out={folder}/todo"
    )
    words = [f"model={model}/runs/finetune/cells", given[0], "labels=found"]
    run = computed(segment, folder, "nuc", *words, pools=Here())
    (wells,) = [path for what, path in table(run).paths.items() if what.startswith("table")]
    tables = sorted((run.folder / "tables").rglob("*.parquet"))
    images = {str(field.key): index.image(field.key) for field in index.plate.fields}
    labels = {
        f"{key} {name}": read_labels(image, name)
        for key, image in images.items()
        for name in label_names(image)
    }
    return Results(
        scores=pd.read_csv(trained.folder / "scores.csv"),
        wells=pd.read_csv(wells),
        objects=pd.concat(map(pd.read_parquet, tables)),
        labels=labels,
        exported=tifffile.imread(sorted((folder / "todo").glob("*.image.tif"))[0]),
    )


def assert_same_results(found: Results, expected: Results) -> None:
    """All figures are equal to the last digit, and all pixels of labels."""
    pd.testing.assert_frame_equal(found.scores, expected.scores)
    pd.testing.assert_frame_equal(found.wells, expected.wells)
    assert len(expected.objects) > 0
    pd.testing.assert_frame_equal(found.objects, expected.objects)
    assert found.labels.keys() == expected.labels.keys()
    for name, labels in expected.labels.items():
        np.testing.assert_array_equal(found.labels[name], labels, err_msg=name)
    np.testing.assert_array_equal(found.exported, expected.exported)
