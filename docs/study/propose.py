"""Whether `annotate propose` chooses fields that teach more than others: at equal N, on whole-field labels.

    python docs/study/propose.py U.zarr --split split.csv --weights lite0.safetensors [--out propose]

U.zarr and split.csv are those of docs/study/usiigaci.sh; fields that test there are never looked at. The
others are halved at random, again for each of --pools: from one half N fields are chosen, the other half
scores. They are chosen by

    propose      the action, under a name that no label has (--model RUN of pretrain, or image statistics)
    random       at random, in --draws ways
    matched      at random, field after field until at least as many objects are drawn as in the proposed ones
    stratified   at random, one from each of N strata of median brightness
    most         those with the most objects: it knows the labels, which a user does not

and a small network learns cells from them, always by the same recipe; the draw seeds its training. Each
fine-tuning is a run in --out, so that the script continues where it was stopped. Prints for each pool the
AP50 of the proposal (a mean over trainings), the median of the random draws and how many of them it is
ahead of, then means of each choice; `propose.csv` in --out has a line for each run.
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

from hpc_isl.learning.data.split import Split, read, write
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_names, open_plate, read_labels, write_labels
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.seeds import integer, stream
from hpc_isl.stages.annotate import stage as annotate
from hpc_isl.stages.finetune import stage as finetune

# What chooses, and how many of the draws it gets.
CHOICES = {"propose": 3, "random": None, "matched": 5, "stratified": 3, "most": 1}
HIDDEN = "to annotate"  # labels that no field has: nothing is annotated yet


@dataclass(frozen=True)
class Study:
    """A random half of the fields that train, from which is chosen, and the other half, which scores.

    Attributes:
        pool: fields that may be annotated; `test`: that score.
        objects: number of objects of each field.
    """

    given: argparse.Namespace
    number: int
    index: Index
    pool: tuple[FieldKey, ...]
    test: tuple[FieldKey, ...]
    objects: dict[FieldKey, int]

    @property
    def folder(self) -> Path:
        return Path(self.given.out) / f"pool-{self.number}"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("plate", type=Path)
    words.add_argument("--split", type=Path, required=True, help="fields that test there are left out")
    words.add_argument("--weights", type=Path, required=True, help="of the encoder, as safetensors")
    words.add_argument("--labels", default="cells", help="that people drew on whole fields")
    words.add_argument("--channel", default="phase", help="that the network sees")
    words.add_argument("--model", type=Path, help="folder of a run of pretrain; without it, by statistics")
    words.add_argument("--n", type=int, default=3)
    words.add_argument("--pools", type=int, default=8)
    words.add_argument("--draws", type=int, default=10)
    words.add_argument("--steps", type=int, default=60)
    words.add_argument("--out", type=Path, default=Path("propose"))
    given = words.parse_args()
    index = copied(given)
    rows = [row for number in range(1, given.pools + 1) for row in rows_of(halved(index, given, number))]
    table = pd.DataFrame(rows)
    table.to_csv(given.out / "propose.csv", index=False)
    for number, pool in table.groupby("pool"):
        own = {choice: part["AP50"].to_numpy() for choice, part in pool.groupby("choice")}
        proposed_score = float(own["propose"].mean())
        ahead = int((own["random"] < proposed_score).sum())
        print(
            f"pool {number}: proposed {proposed_score:.3f}, median of {len(own['random'])} random draws "
            f"{np.median(own['random']):.3f}, ahead of {ahead}"
        )
    means = table.groupby(["pool", "choice"], sort=False)[["AP50", "mAP", "objects"]].mean()
    print(means.groupby("choice", sort=False).agg(["mean", "std"]).round(3).to_string())


def copied(given: argparse.Namespace) -> Index:
    """Returns a copy of the plate, because labels of each choice are written into it."""
    target = given.out / given.plate.name
    if not target.exists():
        partial = given.out / "partial.zarr"
        shutil.copytree(given.plate, partial, dirs_exist_ok=True)
        partial.rename(target)
    return open_plate(target.absolute())


def halved(index: Index, given: argparse.Namespace, number: int) -> Study:
    """Returns the study of a random half of the fields that train."""
    known, keys = read(given.split), [field.key for field in index.plate.fields]
    keys = [key for key in keys if known.part(index.plate.name, key) == "train"]
    keys = [key for key in keys if given.labels in label_names(index.image(key))]
    order = [keys[place] for place in stream(0, "propose", "pool", number).permutation(len(keys))]
    pool, test = sorted(order[: len(keys) // 2], key=str), sorted(order[len(keys) // 2 :], key=str)
    objects = {key: len(np.unique(read_labels(index.image(key), given.labels))) - 1 for key in keys}
    study = Study(given, number, index, tuple(pool), tuple(test), objects)
    study.folder.mkdir(parents=True, exist_ok=True)
    parts = {(index.plate.name, key.well, key.name): "test" if key in test else "train" for key in keys}
    write(Split(parts), study.folder / "split.csv")
    return study


def rows_of(study: Study) -> list[dict[str, Any]]:
    """Returns a row for each choice and draw."""
    rows = []
    for choice, draws in CHOICES.items():
        for draw in range(study.given.draws if draws is None else draws):
            fields = chosen(study, choice, draw)
            scores = learnt(study, f"{choice}-{draw}", fields, draw)
            row = {
                "pool": study.number, "choice": choice, "draw": draw, **scores,
                "objects": sum(study.objects[key] for key in fields), "fields": " ".join(map(str, fields)),
            }  # fmt: skip
            print(row, flush=True)
            rows.append(row)
    return rows


# ---------------------------------------------------------------- choices


def chosen(study: Study, choice: str, draw: int) -> list[FieldKey]:
    """Returns the fields of the pool that are annotated."""
    n = study.given.n
    if choice == "propose":
        return proposed(study)
    if choice == "most":
        return sorted(study.pool, key=lambda key: (-study.objects[key], key.place))[:n]
    rng = stream(0, "propose", choice, study.number, draw)
    order = [study.pool[place] for place in rng.permutation(len(study.pool))]
    if choice == "matched":
        wanted = sum(study.objects[key] for key in proposed(study))
        drawn = np.cumsum([study.objects[key] for key in order])
        return order[: int(np.searchsorted(drawn, wanted)) + 1]
    if choice == "stratified":
        strata = np.array_split(sorted(study.pool, key=lambda key: brightness(study, key)), n)
        return [next(key for key in order if key in stratum.tolist()) for stratum in strata]
    return order[:n]


def proposed(study: Study) -> list[FieldKey]:
    """Returns the fields that the action proposes, with none annotated."""
    given, run = study.given, Run(study.folder / "runs" / "annotate" / "propose")
    if run.summary() is None:
        words = ["action=propose", f"plate={study.index.path}", f"labels={HIDDEN}", f"n={given.n}"]
        words += [f"fields=[{', '.join(map(str, study.pool))}]"]
        words += [f"model={given.model.absolute()}"] if given.model else []
        recipe = load("annotate", None, words)
        assert isinstance(recipe, AnnotateRecipe)
        annotate.annotate(annotate.plan(recipe).recipe, Attempt(run, cpus=1))
    with (run.folder / "proposed.csv").open(newline="") as lines:
        names = [(row["well"], row["field"]) for row in csv.DictReader(lines)]
    by_name = {(key.well, key.name): key for key in study.pool}
    return [by_name[name] for name in names]


def brightness(study: Study, key: FieldKey) -> float:
    """Returns the median of the field's label-free pixels."""
    channel = study.index.channel(study.given.channel)
    facts = study.index.statistics[key].planes.items()
    return float(np.mean([fact.p50 for (_, own, _), fact in facts if own == channel]))


# ---------------------------------------------------------------- learning from the choice


def learnt(study: Study, choice: str, fields: Sequence[FieldKey], draw: int) -> dict[str, float]:
    """Returns mean scores on the other half, of a network that learnt from these fields."""
    given, run = study.given, Run(study.folder / "runs" / "finetune" / choice)
    name = f"{study.number}-{choice}"
    for key in fields:
        image = study.index.image(key)
        if name not in label_names(image):
            labels = read_labels(image, given.labels)
            write_labels(image, name, labels, origin="human", boxes=[(0, 0, *labels.shape[-2:])])
    if run.summary() is None:
        train = {"steps": given.steps, "batch": 4, "micro_batch": 4, "crop": 128, "crops_per_field": 4}
        words = [
            f"plates=[{study.index.path}]", f"labels={name}", f"reference_labels=[{given.labels}]",
            f"sources=[{{channel: {given.channel}, plane: 0}}]", "data={level: 1, workers: 0}",
            f"split={{file: {(study.folder / 'split.csv').absolute()}, by: field}}",
            f"net={{encoder: tu-tf_efficientnet_lite0, weights: {given.weights.absolute()},"
            " decoder: [64, 48, 32, 16, 16]}",
            "arm=imagenet", "n=all", "objects={kind: cells, h_maxima: 40}", "left_out=never",
            "optim={name: adamw, lr: 0.002, schedule: one_cycle}",
            *(f"train.{key}={value}" for key, value in train.items()),
            f"train.seed={integer(draw, 'propose', 'train') % 2**31}",
        ]  # fmt: skip
        recipe = load("finetune", None, words)
        assert isinstance(recipe, FinetuneRecipe)
        finetune.finetune(finetune.plan(recipe).recipe, Attempt(run, cpus=1))
    scores = pd.read_csv(run.folder / "scores.csv")
    return {name: float(scores[name].mean()) for name in ("AP50", "mAP")}


if __name__ == "__main__":
    main()
