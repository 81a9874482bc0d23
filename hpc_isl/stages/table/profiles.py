"""Statistics of a screen, from a table of wells: readouts relative to controls, assay quality, names.

Controls are the wells that the plate map's column `control` calls `negative` or `positive`. All figures are
of one plate (and acquisition and time), over wells, whose fields were put together before: wells, not objects
or fields, are the independent units of a plate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import median_abs_deviation

from hpc_isl.errors import UserError, nearest
from hpc_isl.objects.types import Floats
from hpc_isl.stages.table.segmented_plates import FLAG, MEDIAN, OURS, TRUST

CONTROL, NEGATIVE, POSITIVE = "control", "negative", "positive"
NORMALISE = ("none", "negative_controls", "plate")
COUNTS = ("objects", "objects_per_field", "objects_per_mm2", "confluence")
LEAST_WELLS = 4  # of each control, below which Z′ says nothing
# From the median absolute deviation of normal values to their standard deviation.
SD_PER_MAD = 1.4826
COMPARTMENTS = {"nuclei": "Nuclei", "cells": "Cells"}
# CellProfiler's names of features whose values are CellProfiler's too: both are scikit-image's.
CELLPROFILER = {"eccentricity": "AreaShape_Eccentricity", "solidity": "AreaShape_Solidity"}
OBJECT_COUNT = "object_count"  # the number of objects as it was counted, where `objects` is normalised
# As pycytominer calls them.
METADATA = {
    "plate": "Plate", "well": "Well", "field": "Site", "objects": "Object_Count",
    OBJECT_COUNT: "Object_Count", "label": "ObjectNumber",
}  # fmt: skip


def readouts(wells: pd.DataFrame) -> list[str]:
    """Returns the columns of a table of wells that measure something: counts, and medians of features."""
    trust = {MEDIAN + name for name in TRUST}
    names = [str(name) for name in wells if name in COUNTS or str(name).startswith(MEDIAN)]
    return [name for name in names if name not in trust]


def by_plate(wells: pd.DataFrame) -> list[str]:
    """Returns the columns that tell plates, and their acquisitions and times, apart."""
    return ["plate", *(name for name in ("acquisition", "time") if name in wells)]


def _title(wells: pd.DataFrame, plate: Sequence[Any]) -> str:
    """Returns `P01`, or `P01 time 1` where the table has several."""
    return " ".join([str(plate[0]), *map("{} {}".format, by_plate(wells)[1:], plate[1:])])


def usual_method(wells: pd.DataFrame) -> tuple[str, list[str]]:
    """Returns how readouts are made relative by default, and what a user should know about that.

    By negative controls, where each plate has two or more in which something was measured; else not at all.
    """
    counts = {
        _title(wells, plate): int(plate_wells.objects[_is_control(plate_wells, NEGATIVE)].notna().sum())
        for plate, plate_wells in wells.groupby(by_plate(wells), sort=False)
    }
    lacking = [f"{title} has {count}" for title, count in counts.items() if count < 2]
    if not lacking:
        return "negative_controls", []
    if not any(counts.values()):
        return "none", []
    lacking_text = ", ".join(lacking)
    return "none", [
        f"readouts are not compared with negative controls: each plate needs two, and {lacking_text}"
    ]


@dataclass(frozen=True)
class Relative:
    """Wells whose readouts are relative to others.

    Attributes:
        wells: with (value − median) / (1.4826 MAD) in the place of each readout.
        scales: a row for each plate and readout: how many wells it was compared with, their `median` and
            `scale` (1.4826 MAD), and the `reason` why it has become null, if it has.
        notes: what a user should know, in words.
    """

    wells: pd.DataFrame
    scales: pd.DataFrame
    notes: list[str]


def normalised(wells: pd.DataFrame, method: str) -> Relative:
    """Returns the wells with (value − median) / (1.4826 MAD) in place of each readout.

    Median and MAD (median absolute deviation) are of the plate's negative controls, or of all its wells: the
    `mad_robustize` of pycytominer. A readout whose MAD is 0 has no scale: it becomes null.

    Args:
        method: negative_controls, plate, or none.

    Raises:
        UserError: no such method; a plate has fewer than two wells to compare with.
    """
    if method not in NORMALISE:
        raise UserError(f"normalise={method}: no such way; {nearest(method, NORMALISE)}")
    if method == "none":
        return Relative(wells, pd.DataFrame(), [])
    result, names, scales, notes = wells.copy(), readouts(wells), list[dict[str, Any]](), list[str]()
    result[names] = result[names].astype(float)
    for plate, plate_wells in wells.groupby(by_plate(wells), sort=False):
        title = _title(wells, plate)
        basis = plate_wells if method == "plate" else plate_wells[_is_control(plate_wells, NEGATIVE)]
        if len(basis) < 2:
            raise UserError(
                f"normalise={method}: plate {title} has {len(basis)} wells to compare with, and needs two: "
                "negative controls are wells whose `control` in the plate map is `negative`; normalise=plate "
                "compares with all wells"
            )
        values = basis[names].astype(float)
        scale = SD_PER_MAD * median_abs_deviation(values, nan_policy="omit", axis=0)
        scale = np.where(np.asarray(scale, float) > 0, scale, np.nan)
        result.loc[plate_wells.index, names] = (plate_wells[names].astype(float) - values.median()) / scale
        facts = dict(zip(by_plate(wells), plate, strict=True))
        for name, readout_scale in zip(names, scale, strict=True):
            count, median = int(values[name].notna().sum()), float(values[name].median())
            reason = (
                "" if readout_scale > 0 else "their MAD is 0" if count else "nothing was measured in them"
            )
            scales.append(facts | {
                "readout": name, "wells": count, "median": median, "scale": readout_scale, "reason": reason,
            })  # fmt: skip
        flat_readouts = [
            name for name, is_finite in zip(names, np.isfinite(scale), strict=True) if not is_finite
        ]
        if flat_readouts:
            notes.append(
                f"{title}: no spread among the wells compared with, so null: {', '.join(flat_readouts)}"
            )
    if method == "plate" and "dose" in " ".join(map(str, wells.columns)):
        notes.append(
            "normalise=plate takes most wells for untreated: on a plate of doses that hides what they do; "
            "normalise=negative_controls does not"
        )
    return Relative(result, pd.DataFrame(scales), notes)


def assay_quality(wells: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each plate and readout: how far negative and positive controls lie apart.

    `z_prime` is 1 − 3 (s₊ + s₋) / |m₊ − m₋| with means and standard deviations (n − 1) of well values (Zhang,
    Chung and Oldenburg 1999), `robust_z_prime` the same with medians and 1.4826 MAD, `ssmd` is
    (m₊ − m₋) / √(s₊² + s₋²) with its sign (Zhang 2007). Null below four wells of either control, and where
    both are equal. Empty: no plate has both controls.
    """
    rows = []
    if CONTROL not in wells:
        return pd.DataFrame()
    for plate, plate_wells in wells.groupby(by_plate(wells), sort=False):
        for name in readouts(wells):
            values = plate_wells[name].astype(float)
            low, high = (
                values[_is_control(plate_wells, kind)].dropna().to_numpy(np.float64)
                for kind in (NEGATIVE, POSITIVE)
            )
            if len(low) and len(high):
                facts = dict(zip(by_plate(wells), plate, strict=True))
                rows.append(facts | {"readout": name} | _quality(low, high))
    return pd.DataFrame(rows)


def _quality(low: Any, high: Any) -> dict[str, Any]:
    quality: dict[str, Any] = {"negative_wells": len(low), "positive_wells": len(high)}
    if min(len(low), len(high)) < LEAST_WELLS:
        return quality | dict.fromkeys(("z_prime", "robust_z_prime", "ssmd"))

    def sd(values: Floats) -> float:
        return float(values.std(ddof=1))

    def robust_sd(values: Floats) -> float:
        return SD_PER_MAD * float(median_abs_deviation(values))

    def z_prime(middle: Callable[..., Any], spread: Callable[[Floats], float]) -> float | None:
        distance = abs(float(middle(high) - middle(low)))
        return 1 - 3 * (spread(high) + spread(low)) / distance if distance else None

    combined_sd = float(np.hypot(sd(high), sd(low)))
    ssmd = float(high.mean() - low.mean()) / combined_sd if combined_sd else None
    return quality | {
        "z_prime": z_prime(np.mean, sd), "robust_z_prime": z_prime(np.median, robust_sd), "ssmd": ssmd,
    }  # fmt: skip


def quality_lines(quality: pd.DataFrame) -> Iterator[str]:
    """Yields Z′ of the number of objects for each plate, in words; per field where fields are left out."""
    per_field = len(quality) and "objects_per_field" in set(quality.readout)
    readout = "objects_per_field" if per_field else "objects"
    count_rows = quality[quality.readout == readout] if len(quality) else quality
    for row in count_rows.to_dict("records"):
        title = _title(quality, [row[name] for name in by_plate(quality)])
        wells = f"{row['negative_wells']} negative and {row['positive_wells']} positive control wells"
        if pd.isna(row["z_prime"]):
            yield f"{title}: Z′ of {readout} is not known: {wells}; it needs {LEAST_WELLS} each"
        else:
            yield f"{title}: Z′ of {readout} {row['z_prime']:.2f} ({wells})"


def _is_control(wells: pd.DataFrame, kind: str) -> pd.Series[bool]:
    if CONTROL not in wells:
        return pd.Series(False, wells.index)
    controls = wells[CONTROL].fillna("").str.strip().str.lower()
    return controls == kind


# ---------------------------------------------------------------- names


def pycytominer_names(columns: Sequence[str], kind: str, mapped: Collection[str]) -> dict[str, str]:
    """Returns column -> its name for pycytominer: `Metadata_…`, or a feature of the compartment `kind`.

    No name has a space. Features keep our names, which say their units, behind the compartment; the two that
    are CellProfiler's own to the digit have its names.

    Args:
        kind: of the objects, as in `SegmentedPlate.kind`.
        mapped: those of the plate map, by their names among the columns.

    Raises:
        UserError: two columns would have one name.
    """
    compartment = COMPARTMENTS.get(kind, "Objects")
    metadata_columns = {
        *(name for name in columns if name.startswith(FLAG)),
        *OURS - set(COUNTS),
        *TRUST,
        OBJECT_COUNT,
        "label",
        "y0",
        "x0",
        "y1",
        "x1",
        "touches_border",
        "cell",
        "nuclei_in_cell",
    }
    names: dict[str, str] = {}
    for column in columns:
        feature = column.removeprefix(MEDIAN)
        # Normalised, the number of objects is a readout, and stands beside the plain one.
        is_metadata = feature in metadata_columns or column in mapped
        if is_metadata or (column == "objects" and OBJECT_COUNT not in columns):
            name = f"Metadata_{METADATA.get(column, _words(feature))}"
        else:
            name = f"{compartment}_{CELLPROFILER.get(feature, _words(feature))}"
        if name in names.values():
            raise UserError(
                f"format=pycytominer: two columns would be called {name}; rename a channel or a column of "
                "the plate map"
            )
        names[column] = name
    return names


def _words(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")
