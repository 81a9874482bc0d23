"""The quality of each field: flags, and which of them leave a field out.

Left out is what is technically bad alone, unless a person's rules say otherwise: a field that a compound has
cleared is the result. Nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field as Bound

from hpc_isl.recipes.base import Fraction, Positive
from hpc_isl.recipes.strict import Strict, parse, read_yaml
from hpc_isl.stages.table.exclusion import Exclusions
from hpc_isl.stages.table.profiles import SD_PER_MAD, readouts
from hpc_isl.stages.table.segmented_plates import FLAG, IMAGE, SegmentedPlate

Flag = Literal[
    "incomplete", "out_of_focus", "no_objects", "debris", "confluent", "edge", "saturated", "drifted"
]
FLAGS: tuple[str, ...] = get_args(Flag)
ABOUT = {
    "incomplete": "planes are missing or damaged", "out_of_focus": "out of focus, and it shows structure",
    "no_objects": "it has no objects", "debris": "much of what was found is too small to count",
    "confluent": "cells cover nearly all of it", "edge": "its well lies at the edge of the plate",
    "saturated": "pixels lie at the camera's greatest value",
    "drifted": "its well is unlike the images that the model was trained on",
}  # fmt: skip
FAR = 6.0  # robust standard deviations from which `drift.csv` calls a well unlike the training images
LEAST_FIELDS = 8  # of a plate, below which it is not known what is usual
# A field is blurred from so many robust standard deviations of the logarithm on, and at least this factor: of
# a field in focus, one object or 144 change sharpness by 0.85 to 1.09; a blur of 2 pixels divides it by 4.
DEVIATIONS, LEAST_FACTOR = 4.0, 3.0
SHARP = 0.05  # usual sharpness below which images are too smooth or noisy to tell a blur from chance
STRUCTURE = 0.03  # of the contrast that is usual: a field of less shows too little to be called blurred


class QcRules(Strict):
    """Which flags leave a field out, and from where on fields are flagged: the file of `qc=`."""

    leave_out: list[Flag] = ["incomplete", "out_of_focus"]
    """flags of fields that are left out"""
    min_fields: Positive = 1
    """wells of which fewer fields are kept have no readouts: they were not measured, which is not low"""
    debris: Fraction = 0.5
    """share of all that was found that is too small to count, above which a field is flagged"""
    confluent: Fraction = 0.9
    """share of the area that cells cover, above which a field is flagged"""
    drifted: float = Bound(default=FAR, gt=0)
    """robust standard deviations from the training images (drift.csv), above which a well is flagged"""


def read_rules(path: Path | None) -> QcRules:
    """Returns the rules of a file, the usual ones for None, and none for the path `none`.

    Raises:
        UserError: there is no such file, or a key or flag in it that there is not.
    """
    if path is None:
        return QcRules()
    if str(path) == "none":
        return QcRules(leave_out=[])
    return parse(QcRules, read_yaml(path), f"qc={path}")


def flagged(plate: SegmentedPlate, rules: QcRules, drift: pd.DataFrame) -> SegmentedPlate:
    """Returns the plate with a column for each flag in its images: true, false, or null where not known.

    Args:
        drift: `drift.csv` of the run; empty where the model has no statistics.
    """
    images = plate.images
    objects = plate.objects([])
    object_counts = objects[objects.counts.astype(bool)].groupby(IMAGE).size()
    area = objects.groupby(IMAGE).area.sum()
    places = pd.MultiIndex.from_frame(images[IMAGE])
    count = pd.Series(object_counts.reindex(places).astype(float).fillna(0).to_numpy(), images.index)
    whole = images.problem == ""
    flags: dict[str, pd.Series[Any]] = {"no_objects": count == 0}
    flags["out_of_focus"] = out_of_focus(images)
    flags["saturated"] = images.saturated
    flags["incomplete"] = images.incomplete
    if images.dropped.notna().any():
        dropped = images.dropped.astype(float)
        flags["debris"] = (dropped > rules.debris * (dropped + count)).where(dropped.notna())
    if plate.kind in ("", "cells"):
        coverage = area.reindex(places).astype(float).fillna(0).to_numpy() / images.pixels.where(
            images.pixels > 0
        )
        flags["confluent"] = coverage > rules.confluent
    ends = [{plate.rows[0], plate.rows[-1]}, {plate.columns[0], plate.columns[-1]}]
    flags["edge"] = images.well.map(lambda well: well[:-2] in ends[0] or well[-2:] in ends[1])
    plate_drift = drift[drift.plate == plate.name] if len(drift) else drift
    if len(plate_drift):
        is_far = plate_drift.largest > rules.drifted
        if "in_training" in plate_drift:  # runs of earlier versions do not tell
            is_far &= plate_drift.in_training.isna()
        wells = plate_drift.well[is_far]
        flags["drifted"] = images.well.isin(wells)
    columns = {
        FLAG + name: flags[name].where(whole).astype("boolean")
        for name in FLAGS
        if name in flags and flags[name].notna().any()
    }
    return replace(plate, images=images.assign(**columns))


def out_of_focus(images: pd.DataFrame) -> pd.Series[Any]:
    """Returns whether each image is blurred beside those of its plate; null where it is not known.

    An image without structure is never blurred. It is compared with the half of the images that have most
    contrast, so that a plate of many cleared wells does not call the others blurred.
    """
    blurred = pd.Series(pd.NA, images.index, "boolean")
    names = dict.fromkeys(name for focus in images.focus.dropna() for name in focus)
    for name in names:
        pairs = [
            (focus or {}).get(name, (np.nan, np.nan))
            for focus in images.focus.where(images.focus.notna(), None)
        ]
        facts = pd.DataFrame(pairs, images.index, ["sharpness", "contrast"]).astype(float)
        facts = facts[facts.contrast > 0]
        usual = facts[facts.contrast >= facts.contrast.median()]
        if len(facts) < LEAST_FIELDS or usual.sharpness.median() < SHARP:
            continue  # it is not known what is usual
        logs = np.log(usual.sharpness.clip(lower=1e-3))
        spread = SD_PER_MAD * float(np.median(np.abs(logs - logs.median())))
        limit = float(np.exp(logs.median() - max(DEVIATIONS * spread, np.log(LEAST_FACTOR))))
        is_blurred = (facts.sharpness < limit) & (facts.contrast > STRUCTURE * usual.contrast.median())
        blurred.loc[facts.index] = blurred.loc[facts.index].fillna(value=False) | is_blurred
    return blurred


def left_out(plates: Sequence[SegmentedPlate], rules: QcRules) -> Mapping[str, Exclusions]:
    """Returns for each flag that leaves fields out, these fields; a field has one reason, the first.

    Of a field of several images, times or acquisitions, half have to be flagged.
    """
    left_out_fields: dict[tuple[str, str, str], str] = {}
    by_rule: dict[str, Exclusions] = {}
    for name in rules.leave_out:
        rule_fields: dict[tuple[str, str, str], str] = {}
        for plate in plates:
            if FLAG + name not in plate.images:
                continue
            values = plate.images[FLAG + name].astype(float)
            share = values.groupby([plate.images.well, plate.images.field], sort=False).mean()
            places = [(plate.name, *place) for place in share.index[share >= 0.5]]
            rule_fields |= {place: ABOUT[name] for place in places if place not in left_out_fields}
        left_out_fields |= rule_fields
        if rule_fields:
            by_rule[name] = rule_fields
    return by_rule


def enough(wells: pd.DataFrame, rules: QcRules) -> pd.DataFrame:
    """Returns the wells with null readouts where fewer fields than `min_fields` were kept."""
    few = wells.fields < rules.min_fields
    return wells.assign(**{name: wells[name].where(~few) for name in readouts(wells)}) if few.any() else wells
