"""Splits and merges of a model's objects on annotated fields, beside its scores.

    python docs/study/splits.py RUN PLATE [LABELS] [--drop PIXELS]

The fields are those that the run tested on, or with LABELS all of the plate that have such labels. Prints one
line for each and their means: objects, objects for each true one, splits and merges per true object, AP50,
mAP, and the IoU of the masks. A split is a true object that two or more predicted ones cover by at least a
tenth each; a merge is a predicted object that covers at least half of two or more true ones. With --drop
objects of fewer pixels at full resolution do not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import hpc_isl
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.matching import match, splits_and_merges
from hpc_isl.objects.scores import mask_iou


def annotated(plate: hpc_isl.Plate, run: Path, labels: str | None) -> list[tuple[hpc_isl.Field, str]]:
    """Returns the fields that the run tested on, or all with such labels, and the name of the labels."""
    if labels is not None:
        return [(field, labels) for field in plate if labels in field.label_names]
    scores = pd.read_csv(run / "scores.csv", dtype={"field": str})
    places = zip(scores.well, scores.field, scores.truth, strict=True)
    return [(plate[f"{well}/{name}"], own) for well, name, own in places]


def main(run: Path, path: Path, labels: str | None, drop: int) -> None:
    plate, model, rows = hpc_isl.open_plate(path), hpc_isl.load_model(run), []
    for field, own in annotated(plate, run, labels):
        truth, found = field.labels(own), drop_small(model.segment(field), drop)[0]
        matching, true = match(found, truth), len(set(truth.ravel().tolist()) - {0})
        splits, merges = splits_and_merges(found, truth)
        each = max(true, 1)
        rows.append(
            {"field": f"{field.well}/{field.name}", "objects": true, "for each": matching.predictions / each,
             "splits": splits / each, "merges": merges / each, "AP50": matching.ap(),
             "mAP": matching.mean_ap(), "IoU": mask_iou(found, truth)}
        )  # fmt: skip
    table = pd.DataFrame(rows).set_index("field")
    table.loc["mean"] = table.mean()
    print(table.round(3).to_string())


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("run", type=Path)
    words.add_argument("plate", type=Path)
    words.add_argument("labels", nargs="?")
    words.add_argument("--drop", type=int, default=0)
    given = words.parse_args()
    main(given.run, given.plate, given.labels, given.drop)
