"""Whether `annotate propose` chooses fields that teach more than others: at equal N, on whole-field labels.

    H convert source=USIIGACI out=U.zarr reader=pattern \\
      'pattern.regex=(?P<image>set\\d+)_(?P<channel>phase)\\.tif' 'pattern.transmitted=[phase]'
    H annotate import USIIGACI/labels plate=U.zarr labels=cells 'regex=(?P<image>set\\d+)_cells\\.tif'
    python docs/study/propose.py U.zarr [--model RUN] [--n 1 3 5] [--draws 5] [--steps 200] [--out propose]

For each plate a fixed third of the annotated fields tests; of the others N are chosen by

    propose      the action, under a name that no label has (--model RUN of pretrain, or image statistics)
    random       at random, another choice for each draw
    stratified   at random, from strata: --stratify COLUMN of the plate map, or median brightness
    most         those with the most objects: it knows the labels, which a user does not

and a small network learns cells from them, always by the same recipe; the draw seeds its training. Each
fine-tuning is a run in --out, so that the script continues where it was stopped. Prints, for each plate,
choice and N, mean and standard deviation over draws of AP50 and mAP on the test fields, and the number of
objects that a person would have drawn; `propose.csv` in --out has a line for each run.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_isl.learning.data.split import Split, write
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_names, open_plate, read_labels, write_labels
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.seeds import integer, stream
from hpc_isl.stages.annotate import stage as annotate
from hpc_isl.stages.finetune import stage as finetune

CHOICES = ("propose", "random", "stratified", "most")
TEST_SHARE = 1 / 3
NET = "net={encoder: resnet18, weights: null, decoder: [64, 48, 32, 16]}"
HIDDEN = "to annotate"  # labels that no field has: nothing is annotated yet


@dataclass(frozen=True)
class Study:
    """One plate with labels on whole fields, copied into the folder of the study.

    Attributes:
        pool: fields that may be annotated; `test`: that score.
        objects: number of objects of each field.
    """

    given: argparse.Namespace
    folder: Path
    index: Index
    pool: tuple[FieldKey, ...]
    test: tuple[FieldKey, ...]
    objects: dict[FieldKey, int]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("plates", nargs="+", type=Path)
    words.add_argument("--labels", default="cells", help="that people drew on whole fields")
    words.add_argument("--channel", default="phase", help="that the network sees")
    words.add_argument("--level", type=int, default=1, help="of the pyramid")
    words.add_argument("--model", type=Path, help="folder of a run of pretrain; without it, by statistics")
    words.add_argument("--stratify", help="column of the plate map")
    words.add_argument("--n", type=int, nargs="+", default=[1, 3, 5])
    words.add_argument("--draws", type=int, default=5)
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("--test", type=int, help="number of test fields; default a third")
    words.add_argument("--out", type=Path, default=Path("propose"))
    given = words.parse_args()
    rows = [row for plate in given.plates for row in rows_of(opened(plate, given))]
    table = pd.DataFrame(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "propose.csv", index=False)
    figures = table.groupby(["plate", "choice", "n"], sort=False)[["AP50", "mAP", "objects"]]
    print(figures.agg(["mean", "std", "count"]).round(3).to_string())


def opened(plate: Path, given: argparse.Namespace) -> Study:
    """Returns the study of a plate; copies it first, because labels of each choice are written into it."""
    folder = given.out / plate.stem
    if not (folder / plate.name).exists():
        shutil.copytree(plate, folder / "partial.zarr", dirs_exist_ok=True)
        (folder / "partial.zarr").rename(folder / plate.name)
    index = open_plate((folder / plate.name).absolute())
    keys = [field.key for field in index.plate.fields]
    keys = [key for key in keys if given.labels in label_names(index.image(key))]
    count = given.test or round(TEST_SHARE * len(keys))
    drawn = set(stream(0, "propose", "test").permutation(len(keys))[:count].tolist())
    test = tuple(key for number, key in enumerate(keys) if number in drawn)
    pool = tuple(key for number, key in enumerate(keys) if number not in drawn)
    parts = {key: "test" if key in test else "train" for key in keys}
    split = {(index.plate.name, key.well, key.name): part for key, part in parts.items()}
    write(Split(split), folder / "split.csv")
    objects = {key: len(np.unique(read_labels(index.image(key), given.labels))) - 1 for key in keys}
    return Study(given, folder, index, pool, test, objects)


def rows_of(study: Study) -> list[dict[str, Any]]:
    """Returns a row for each choice, N and draw."""
    rows = []
    for n in study.given.n:
        for choice in CHOICES:
            for draw in range(study.given.draws):
                fields = chosen(study, choice, n, draw)
                scores = learnt(study, f"{choice}-{n}-{draw}", fields, draw)
                row = {
                    "plate": study.index.plate.name, "choice": choice, "n": n, "draw": draw, **scores,
                    "objects": sum(study.objects[key] for key in fields),
                    "fields": " ".join(map(str, fields)),
                }  # fmt: skip
                print(row, flush=True)
                rows.append(row)
    return rows


# ---------------------------------------------------------------- choices


def chosen(study: Study, choice: str, n: int, draw: int) -> list[FieldKey]:
    """Returns N fields of the pool."""
    if choice == "propose":
        return proposed(study, n)
    if choice == "most":
        return sorted(study.pool, key=lambda key: (-study.objects[key], key.place))[:n]
    rng = stream(0, "propose", choice, draw)
    order = [study.pool[number] for number in rng.permutation(len(study.pool))]
    if choice == "random":
        return order[:n]
    strata = strata_of(study, n)
    names = sorted({strata[key] for key in study.pool})
    queues = {name: [key for key in order if strata[key] == name] for name in names}
    # Round after round one of each stratum, the strata in an order of their own in each.
    rounds = [
        queues[names[number]][turn]
        for turn in range(len(order))
        for number in rng.permutation(len(names))
        if turn < len(queues[names[number]])
    ]
    return rounds[:n]


def proposed(study: Study, n: int) -> list[FieldKey]:
    """Returns the fields that the action proposes, with none annotated."""
    given, run = study.given, Run(study.folder / "runs" / "annotate" / f"propose-{n}")
    if run.summary() is None:
        words = ["action=propose", f"plate={study.index.path}", f"labels={HIDDEN}", f"n={n}"]
        words += [f"fields=[{', '.join(map(str, study.pool))}]"]
        words += [f"model={given.model.absolute()}"] if given.model else []
        words += [f"stratify=[{given.stratify}]"] if given.stratify else []
        recipe = load("annotate", None, words)
        assert isinstance(recipe, AnnotateRecipe)
        annotate.annotate(annotate.plan(recipe).recipe, Attempt(run, cpus=2))
    with (run.folder / "proposed.csv").open(newline="") as lines:
        names = [(row["well"], row["field"]) for row in csv.DictReader(lines)]
    by_name = {(key.well, key.name): key for key in study.pool}
    return [by_name[name] for name in names]


def strata_of(study: Study, n: int) -> dict[FieldKey, str]:
    """Returns a stratum for each field of the pool: by the plate map, or N strata of median brightness."""
    if study.given.stratify:
        maps = study.index.plate_map
        return {key: maps.get(key.well, {}).get(study.given.stratify, "") for key in study.pool}
    channel = study.index.channel(study.given.channel)

    def brightness(key: FieldKey) -> float:
        facts = study.index.statistics[key].planes.items()
        return float(np.mean([fact.p50 for (_, own, _), fact in facts if own == channel]))

    ordered = sorted(study.pool, key=brightness)
    return {key: f"{place * n // len(ordered):03}" for place, key in enumerate(ordered)}


# ---------------------------------------------------------------- learning from the choice


def learnt(study: Study, name: str, fields: Sequence[FieldKey], draw: int) -> dict[str, float]:
    """Returns mean scores on the test fields of a network that learnt from these fields."""
    given, run = study.given, Run(study.folder / "runs" / "finetune" / name)
    for key in fields:
        image = study.index.image(key)
        if name not in label_names(image):
            labels = read_labels(image, given.labels)
            write_labels(image, name, labels, origin="human", boxes=[(0, 0, *labels.shape[-2:])])
    if run.summary() is None:
        train = {"steps": given.steps, "batch": 8, "micro_batch": 8, "crop": 128}
        words = [
            f"plates=[{study.index.path}]", f"labels={name}", f"reference_labels=[{given.labels}]",
            f"sources=[{{channel: {given.channel}}}]", f"data={{level: {given.level}, workers: 0}}",
            f"split={{file: {(study.folder / 'split.csv').absolute()}, by: field}}", NET,
            "arm=random", "n=all", "objects={kind: cells, h_maxima: 10}",
            *(f"train.{key}={value}" for key, value in train.items()),
            f"train.seed={integer(draw, 'propose', 'train') % 2**31}",
        ]  # fmt: skip
        recipe = load("finetune", None, words)
        assert isinstance(recipe, FinetuneRecipe)
        finetune.finetune(finetune.plan(recipe).recipe, Attempt(run, cpus=2))
    scores = pd.read_csv(run.folder / "scores.csv")
    return {name: float(scores[name].mean()) for name in ("AP50", "mAP")}


if __name__ == "__main__":
    main()
