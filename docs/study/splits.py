"""Splits and merges of a fine-tuning run's test fields, beside its scores.

    python docs/study/splits.py RUN PLATE

Prints one line for each test field and their means: objects, objects for each true one, splits and merges per
true object, AP50 and mAP. A split is a true object that two or more predicted ones cover by at least a tenth
each; a merge is a predicted object that covers at least half of two or more true ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import hpc_isl
from hpc_isl.objects.matching import match, splits_and_merges


def main(run: Path, path: Path) -> None:
    plate, model, rows = hpc_isl.open_plate(path), hpc_isl.load_model(run), []
    scores = pd.read_csv(run / "scores.csv", dtype={"field": str})
    for well, name, labels in zip(scores.well, scores.field, scores.truth, strict=True):
        field = plate[f"{well}/{name}"]
        truth, found = field.labels(labels), model.segment(field)
        matching, true = match(found, truth), len(set(truth.ravel().tolist()) - {0})
        splits, merges = splits_and_merges(found, truth)
        rows.append(
            {"field": f"{well}/{name}", "objects": true, "for each": matching.predictions / true,
             "splits": splits / true, "merges": merges / true, "AP50": matching.ap(),
             "mAP": matching.mean_ap()}
        )  # fmt: skip
    table = pd.DataFrame(rows).set_index("field")
    table.loc["mean"] = table.mean()
    print(table.round(3).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
