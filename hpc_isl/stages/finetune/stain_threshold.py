"""The threshold of a predicted stain, with which the stain's head begins, calibrated on held-out fields.

No annotation is read. What stands for truth are labels drafted from the true stain of those fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from hpc_isl.errors import many
from hpc_isl.learning.data.pixels import known_box
from hpc_isl.objects.draft_labels import pieces_of
from hpc_isl.objects.types import Floats, Pixels
from hpc_isl.seeds import evenly_spread
from hpc_isl.stages.shared.decoding import DRAFTED
from hpc_isl.stages.shared.plate_views import PlateField, PlateViews

MOST_FIELDS = 8
BINS = 1024
SLOPES = (0.1, 1000.0)  # per unit of the predicted stain, of which 1 is a high percentile of the true one


@dataclass(frozen=True)
class StainThreshold:
    """Where nuclei begin in a predicted stain, and how steeply.

    Attributes:
        centre, slope: of the probability 1 / (1 + exp(-slope (stain - centre))).
        iou: with the drafted labels, mean over fields.
        fields: how many; `part`: of the split that they are of.
    """

    centre: float
    slope: float
    iou: float
    fields: int
    part: str


def held_out_fields(study: PlateViews) -> tuple[str, list[PlateField]]:
    """Returns the part that pretraining did not learn from, and up to eight of its fields, evenly spread."""
    # Test fields lend their stain alone, never a label. Without either part training fields must do.
    for part in ("validation", "test", "train"):
        if fields := study.fields(part):
            return part, evenly_spread(fields, MOST_FIELDS)
    return "train", []


def calibrate(study: PlateViews, predictor: Callable[[Pixels], Pixels]) -> StainThreshold | None:
    """Returns the threshold with the best mean IoU, and the slope of greatest likelihood at it.

    None: no field of the split holds the stain.
    """
    part, fields = held_out_fields(study)
    inside, outside, edges = [], [], np.linspace(-1.0, 3.0, BINS + 1)
    for plate, key in fields:
        for time in plate.times(key):
            sources, targets = plate.read(key, time)
            if targets is None:
                continue
            box = known_box(targets)  # another acquisition may show less of the field
            targets, prediction = targets[:, *box], predictor(sources)[:, *box]
            truth = pieces_of(targets[0], "otsu", DRAFTED.sigma, DRAFTED.min_area, split=False) > 0
            stain = np.clip(prediction[0], edges[0], edges[-1])
            inside.append(np.histogram(stain[truth], edges)[0])
            outside.append(np.histogram(stain[~truth], edges)[0])
    if not inside:
        return None
    return threshold_of(np.array(inside, float), np.array(outside, float), edges, part)


def threshold_of(inside: Floats, outside: Floats, edges: Floats, part: str = "") -> StainThreshold:
    """Returns the threshold from histograms (field, bin) of the stain inside and outside drafted nuclei."""
    # Pixels at or above each bin's lower edge.
    hits, false_hits = (np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] for counts in (inside, outside))
    iou = (hits / np.maximum(inside.sum(1, keepdims=True) + false_hits, 1)).mean(axis=0)
    best_bin = int(np.argmax(iou))
    centre, middles = float(edges[best_bin]), (edges[:-1] + edges[1:]) / 2
    inside_counts, outside_counts = inside.sum(axis=0), outside.sum(axis=0)

    def surprise(log_slope: float) -> float:
        logits = np.exp(log_slope) * (middles - centre)
        return float(
            (inside_counts * np.logaddexp(0, -logits) + outside_counts * np.logaddexp(0, logits)).sum()
        )

    low, high = np.log(SLOPES)
    slope = float(np.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded").x))
    return StainThreshold(centre, slope, float(iou[best_bin]), len(inside), part)


def message(threshold: StainThreshold) -> str:
    """Returns what a person is told about it."""
    fields_text = f"{many(threshold.fields, 'field')} of the part {threshold.part}"
    warning = "; pretraining learnt from them, so it is flattered" if threshold.part == "train" else ""
    return (
        f"the predicted stain is cut at {threshold.centre:.3f} (slope {threshold.slope:.3g}): IoU "
        f"{threshold.iou:.3f} with labels drafted from the true stain of {fields_text}{warning}"
    )
