"""A sweep of fine-tuning as its elements leave it; scores are a seeded generator's, not a network's."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, label

from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.split import write as write_split
from hpc_isl.learning.data.view import Role, View
from hpc_isl.plates.store import Index, read_box, write_labels
from hpc_isl.recipes.base import SweepRecipe
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Run
from hpc_isl.seeds import stream

# Score at N = 1, and how far it rises towards 0.85.
START = {"random": 0.42, "random+isl": 0.62, "imagenet": 0.5, "imagenet+isl": 0.64, "drafted": 0.63}
LINES = {"B": "HeLa", "C": "3T3", "D": "MCF10A"}
COLUMNS = [
    "plate", "well", "field", "time", "box", "truth", "origin", "same", "iou", "mAP", "AP50", "AP75", "F1",
    "PQ", "SQ", "RQ", "count_error", "objects", "predicted", "cell_line",
]  # fmt: skip
PACKAGES = {"torch": "2.15.0", "segmentation_models_pytorch": "0.5.0", "numpy": "2.3.1"}


@dataclass(frozen=True)
class Shape:
    """What the sweep holds.

    Attributes:
        over: more that is swept; key -> values.
        gain: of the arms with ISL over those without, at N = 1.
        missing: names of elements that have no done record; value: their last message, or None.
    """

    arms: Sequence[str] = ("random", "random+isl", "imagenet", "imagenet+isl", "drafted")
    ns: Sequence[int | str] = (1, 2, 5, "all")
    draws: Sequence[int] = (0, 1, 2)
    over: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    kind: str = "nuclei"
    truth: Sequence[tuple[str, str]] = (("nuclei", "human"), ("nuclei drafted", "drafted"))
    within: str | None = None
    gain: float | None = None
    missing: Mapping[str, str | None] = field(default_factory=dict)
    final: bool = True
    zero: bool = True
    cell_line: bool = True
    wells: Sequence[str] = ("B04", "B05", "C04", "C05", "D04", "D05")


def made_up_sweep(root: Path, index: Index, shape: Shape | None = None, name: str = "nuc") -> Run:
    """`runs/sweep/<name>` below `root`, and the ISL run it comes from; `index`: the plate."""
    shape = shape or Shape()
    pretrained = _pretrained(root, index)
    run = Run(root / "runs" / "sweep" / name)
    over = {"arm": list(shape.arms), "n": list(shape.ns), "draw": list(shape.draws), **shape.over}
    base = {"plates": [str(index.path)], "labels": "nuclei",
            "reference_labels": [name for name, _ in shape.truth], "pretrained": [str(pretrained)],
            "within": shape.within, "objects": {"kind": shape.kind}}  # fmt: skip
    settings = _settings(shape, over)
    for label_, setting in settings.items():
        _element(Run(run.folder / "finetune" / label_), index, shape, base | setting, label_)
    _write(run.elements_file, json.dumps({"elements": [f"finetune/{label_}" for label_ in settings]}))
    _write(run.recipe, to_yaml(SweepRecipe(stage="finetune", over=over, base=base)))
    _write(run.record, json.dumps(_record()))
    return run


def label_plate(index: Index, names: Sequence[str] = ("nuclei",)) -> None:
    """Each field's stain, thresholded, as its labels."""
    for one in index.plate.fields:
        height, width = one.shape[-2:]
        image = index.image(one.key)
        stain = read_box(image, 0, 0, index.channel("Hoechst"), [0], slice(0, height), slice(0, width))
        for name in names:
            write_labels(image, name, _objects(stain[0]), origin="human", boxes=[(0, 0, height, width)])


def _objects(stain: Any) -> Any:
    return label(stain > 5000)[0].astype(np.uint32)


def _settings(shape: Shape, over: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    more = [{key: value} for key, values in shape.over.items() for value in values] or [{}]
    for arm in shape.arms:
        for n in shape.ns:
            for draw in shape.draws:
                for extra in more:
                    setting = {"arm": arm, "n": n, "draw": draw, **extra}
                    found[",".join(f"{key}={value}" for key, value in setting.items())] = setting
    if shape.zero and "random+isl" in shape.arms:
        found["arm=random+isl,n=0"] = {"arm": "random+isl", "n": 0, "draw": 0}
    if shape.final:
        found["final"] = {"arm": "best", "n": "all", "draw": 0}
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        node = content
        for part in above:
            node = node.setdefault(part, {"steps": 400, "batch": 8, "micro_batch": 8})
        node[last] = value
    return content


def _element(run: Run, index: Index, shape: Shape, content: Mapping[str, Any], name: str) -> None:
    recipe = FinetuneRecipe.model_validate(_nested(content))
    _write(run.recipe, to_yaml(recipe))
    _write(run.record, json.dumps(_record()))
    if name in shape.missing:
        message = shape.missing[name]
        if message is not None:
            record = {"rank": 0, "outcome": "failed", "message": message}
            _write(run.attempts / "0" / "rank-0.json", json.dumps(record))
        return
    boxes = _boxes(index, shape, recipe)
    _table(run.folder / "boxes.csv", ["plate", "well", "field", "box", "origin", "objects"], boxes)
    rows = _scores(index, shape, recipe)
    _table(run.folder / "scores.csv", COLUMNS if shape.cell_line else COLUMNS[:-1], rows)
    _panels(run, index, shape, recipe)
    _write(run.model / "contract.json", json.dumps(_contract(index)))
    figures = {"images": len(rows), "boxes": len(boxes), "objects": sum(box["objects"] for box in boxes),
               "steps": recipe.train.steps, "seconds": 61.2}  # fmt: skip
    figures |= {score: float(np.mean([row[score] for row in rows])) for score in ("iou", "mAP")}
    arm = "random+isl" if recipe.arm == "best" else recipe.arm
    ended = "2026-01-31T10:20:00.000+00:00"
    summary = {"figures": figures, "made": {}, "arm": arm, "time": ended}
    _write(run.done / "finetune.json", json.dumps(summary))


def _count(shape: Shape, n: int | str) -> int:
    return 12 if n == "all" else int(n)


def _boxes(index: Index, shape: Shape, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """The first N of a draw's order: nested, and the same for all arms."""
    rng, rows = stream(recipe.draw, "boxes"), []
    for place in range(_count(shape, recipe.n)):
        box = {
            "plate": index.plate.name,
            "well": f"{'BCD'[recipe.draw % 3]}{2 + place % 2:02d}",
            "field": "1",
        }
        rows.append(
            {**box, "box": f"0 0 {96 + place} 96", "origin": "human", "objects": int(rng.integers(60, 180))}
        )
    return rows


def _scores(index: Index, shape: Shape, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    rows = []
    for truth, origin in shape.truth:
        for well in shape.wells:
            rows += [
                _row(index, shape, recipe, truth, origin, well, box) for box in ("0 0 96 48", "0 48 96 96")
            ]
    return rows


def _row(
    index: Index, shape: Shape, recipe: FinetuneRecipe, truth: str, origin: str, well: str, box: str
) -> dict[str, Any]:
    same = ""
    if shape.within and recipe.n != 0:
        same = "within" if well[0] == "BCD"[recipe.draw % 3] else "across"
    mean = _mean(shape, recipe) - (0.06 if same == "across" else 0) + (0.05 if origin == "drafted" else 0)
    place = stream(1, well, box).normal(0, 0.03) + stream(2, recipe.draw, str(recipe.n)).normal(0, 0.015)
    chance = stream(
        3, str(recipe.arm), str(recipe.n), recipe.draw, recipe.train.seed, well, box, truth
    ).normal(0, 0.02)
    iou = float(np.clip(mean + place + chance, 0.01, 0.99))
    scores = {"iou": iou, "mAP": iou * 0.6, "AP50": iou * 0.9, "AP75": iou * 0.5, "F1": iou * 0.95,
              "PQ": iou * 0.7, "SQ": "" if iou < 0.35 else 0.7 + iou / 10, "RQ": iou * 0.95,
              "count_error": round(10 * (0.7 - iou))}  # fmt: skip
    row = {"plate": index.plate.name, "well": well, "field": "1", "time": 0, "box": box, "truth": truth,
           "origin": origin, "same": same, **scores, "objects": 8, "predicted": 9}  # fmt: skip
    return row | ({"cell_line": LINES[well[0]]} if shape.cell_line else {})


def _mean(shape: Shape, recipe: FinetuneRecipe) -> float:
    if recipe.n == 0:
        return 0.36
    arm = "random+isl" if recipe.arm == "best" else recipe.arm
    start = START[arm]
    if shape.gain is not None and arm.endswith("+isl"):
        start = START[arm.removesuffix("+isl")] + shape.gain
    longer = 0.02 * math.log2((recipe.train.steps or 400) / 400)
    return 0.85 - (0.85 - start - longer) / (1 + 0.9 * math.log(_count(shape, recipe.n)))


def _panels(run: Run, index: Index, shape: Shape, recipe: FinetuneRecipe) -> None:
    """Two boxes; the worse an arm, the more of the true objects it erodes, drops and makes up."""
    listed, arrays = [], {}
    box = (8, 0, 88, 96)
    y, x = slice(box[0], box[2]), slice(box[1], box[3])
    for key, one in enumerate(index.plate.fields[:2]):
        stain = read_box(index.image(one.key), 0, 0, index.channel("Hoechst"), [0], y, x)[0]
        rng = stream(4, str(recipe.arm), str(recipe.n), key)
        labels = _objects(stain)
        for number in range(1, int(labels.max()) + 1):
            if rng.random() > _mean(shape, recipe) + 0.1:
                labels[labels == number] = 0
            elif rng.random() > _mean(shape, recipe) + 0.1:
                labels[(labels == number) & ~binary_erosion(labels == number, iterations=4)] = 0
        corner = int(rng.integers(0, 70))
        labels[corner : corner + 6, 2:9] = labels.max() + 1
        arrays[f"labels_{key}"] = labels
        if recipe.arm.endswith("+isl"):
            arrays[f"stain_{key}"] = (
                (stain.astype(float) - 700) / 9000 + rng.normal(0, 0.05, stain.shape)
            ).astype(np.float16)
        listed.append(
            {"key": str(key), "plate": str(index.path), "well": one.key.well, "field": one.key.name,
             "time": 0, "level": 0, "box": list(box), "truth": shape.truth[0][0]}
        )  # fmt: skip
    _write(run.folder / "panels.json", json.dumps(listed))
    np.savez_compressed(run.folder / "panels.npz", **arrays)


def _pretrained(root: Path, index: Index) -> Path:
    folder = root / "runs" / "pretrain" / "S12"
    _write(folder / "recipe.yaml", "plates: [P]\n")
    _write(folder / "model" / "contract.json", json.dumps(_contract(index)))
    parts = {"2": "train", "3": "train", "4": "test", "5": "test"}
    wells = [f"{row}{column:02d}" for row in LINES for column in range(2, 6)]
    write_split(
        Split({(index.plate.name, well, "1"): parts[well[-1]] for well in wells}), folder / "split.csv"
    )
    return folder


def _contract(index: Index) -> dict[str, Any]:
    view = View((Role("Brightfield", 0),), (Role("Hoechst", "max"),), pixel_um=index.plate.pixel_um)
    return {"format": 1, "view": view.to_dict(), "digest": "0123456789abcdef", "split": "fedcba9876543210",
            "weights": "ab" * 32, "plates": {index.plate.name: index.fingerprint}}  # fmt: skip


def _record() -> dict[str, Any]:
    return {"key": "k", "digest": "d" * 16, "made": "2026-01-31T10:00:00.000+00:00", "version": "0.1.0",
            "commit": "c0ffee" * 6, "diff": None, "code": "deadbeef", "python": "3.11.9",
            "packages": PACKAGES, "inputs": {"P01": "5eed5eed5eed5eed"}}  # fmt: skip


def _table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as stream_:
        table = csv.DictWriter(stream_, columns)
        table.writeheader()
        table.writerows(rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
