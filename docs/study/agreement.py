"""Counts, areas and confluence as a model finds them, against people's, field by field.

    python docs/study/agreement.py RUN PLATE [LABELS]

The fields are those that the run tested on, or with LABELS all of the plate that have such labels. For each
readout the bias is the mean of model − people, and the limits of agreement are bias ± 1.96 standard
deviations (Bland and Altman 1986), in percent of people's mean; over all fields, then over the sparser and
the denser half of them. A screen can live with a bias that is the same everywhere; it cannot with one that
depends on density.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from splits import annotated

import hpc_isl

READOUTS = {"objects": "objects", "area": "median area, pixels", "confluence": "share of pixels in objects"}


def readouts(labels: np.ndarray) -> dict[str, float]:
    """Returns number of objects, their median area in pixels, and the share of pixels inside objects."""
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    return {
        "objects": float(len(areas)), "area": float(np.median(areas)) if len(areas) else 0.0,
        "confluence": float(areas.sum() / labels.size),
    }  # fmt: skip


def agreement(table: pd.DataFrame) -> dict[str, float]:
    """Returns people's mean, and bias and limits of agreement in percent of it."""
    people, difference = table.people.mean(), table.model - table.people
    spread = 1.96 * difference.std()
    limits = {
        "bias": difference.mean(),
        "lower": difference.mean() - spread,
        "upper": difference.mean() + spread,
    }
    correlation = table.people.corr(table.model)
    return {"fields": len(table), "people": people, "r": correlation} | {
        f"{name} %": 100 * value / people for name, value in limits.items()
    }


def main(run: Path, path: Path, labels: str | None = None) -> None:
    plate, model, rows = hpc_isl.open_plate(path), hpc_isl.load_model(run), []
    for field, own in annotated(plate, run, labels):
        people, found = readouts(field.labels(own)), readouts(model.segment(field))
        place = f"{field.well}/{field.name}"
        rows += [
            {"field": place, "readout": name, "people": people[name], "model": found[name]}
            for name in READOUTS
        ]
    table = pd.DataFrame(rows)
    density = table[table.readout == "objects"].set_index("field").people
    dense = set(density.index[density > density.median()])
    print(table.pivot(index="field", columns="readout").round(3).to_string(), end="\n\n")
    parts = {
        "all": table,
        "sparser half": table[~table.field.isin(dense)],
        "denser half": table[table.field.isin(dense)],
    }
    lines = [
        {"readout": title, "of": part} | agreement(own[own.readout == name])
        for name, title in READOUTS.items()
        for part, own in parts.items()
    ]
    print(pd.DataFrame(lines).round(2).to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
