"""Rows of a table, one per well, field or plate: counts, confluence, medians of the features of objects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from hpc_isl.stages.table.segmented_plates import IMAGE, SegmentedPlate

BY = {"well": ["well"], "field": ["well", "field"], "plate": []}
MEDIAN = "median_"
# Columns whose median means nothing: positions, and the angles of axes.
WITHOUT_MEDIAN = ("centroid_", "orientation_")
OURS = {
    "plate", "well", "field", "acquisition", "time", "wells", "fields", "lost_fields", "empty_fields",
    "problem", "objects", "confluence", "objects_per_mm2", "truth_fields", "truth_objects",
    "objects_in_truth_fields", "dropped_objects", "training_fields",
}  # fmt: skip


def rows_of(plates: Sequence[SegmentedPlate], per: str) -> pd.DataFrame:
    """Returns one row per well, field or plate, in plate order.

    Where a run has several acquisitions or times, each has rows of its own. Null is what is not known: the
    objects of a lost field, a density without a pixel size, a median of nothing. Objects that an overlapping
    field has shown already are left out, except from the density and from `objects_in_truth_fields`: there
    the area and the reference labels of each field count as well.
    """
    images: pd.DataFrame = pd.concat([plate.images[IMAGE] for plate in plates])
    several = [name for name in ("acquisition", "time") if images[name].nunique() > 1]
    # One plate at a time: the objects of a whole run may not fit in memory.
    blocks = zip(*(_rows(plate, [*BY[per], *several]) for plate in plates), strict=True)
    columns = [pd.concat(block, ignore_index=True) for block in blocks]
    rows: pd.DataFrame = pd.concat(columns, axis=1)
    return rows


def plate_map_name(name: str, taken: Collection[str] = ()) -> str:
    """Returns how a column of the plate map is called in tables, where some names are taken."""
    is_taken = name in OURS or name in taken or name.startswith(MEDIAN)
    return f"{name} (plate map)" if is_taken else name


def _rows(plate: SegmentedPlate, keys: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Returns what each row of a plate is about, its counts, and its medians."""
    floats = [column.name for column in plate.schema if pa.types.is_floating(column.type)]
    features = [name for name in floats if not name.startswith(WITHOUT_MEDIAN)]
    images = plate.images.assign(plate=plate.name)
    images["row"] = images.groupby(["plate", *keys], sort=False).ngroup()
    images["known"] = images.truth.notna()
    objects = plate.objects(features).merge(images[[*IMAGE, "row", "known"]], on=IMAGE)

    about = images.drop_duplicates("row").set_index("row")
    wells = [name for name in keys if name == "well"]
    mapped: dict[str, Any] = {
        plate_map_name(name): [plate.plate_map.get(well, {}).get(name) or None for well in about.well]
        for name in (plate.map_columns if wells else ())
    }
    names = ["plate", *wells, *mapped, *(name for name in keys if name != "well")]
    about = about.assign(**mapped)[names]

    counting = objects[objects.counts.astype(bool)]
    medians = counting.groupby("row")[features].median() if features else pd.DataFrame()
    medians = medians.reindex(about.index).add_prefix(MEDIAN)
    return about, _counts(plate, images, objects, keys), medians


def _counts(
    plate: SegmentedPlate, images: pd.DataFrame, objects: pd.DataFrame, keys: Sequence[str]
) -> pd.DataFrame:
    """Returns the counts of each row; columns that say nothing about any row of the plate are absent."""
    by_row, whole = images.groupby("row"), images.problem == ""
    field = images.groupby(IMAGE[:-1], sort=False).ngroup()
    rows = pd.DataFrame(index=pd.RangeIndex(by_row.ngroups))
    has_whole = whole.groupby(images.row).any()

    def fields(chosen: pd.Series[bool]) -> pd.Series[int]:
        """Returns the number of fields of each row of which an image is chosen."""
        return field.where(chosen).groupby(images.row).nunique()

    def count(chosen: pd.DataFrame) -> pd.Series[int]:
        return chosen.groupby("row").size().reindex(rows.index, fill_value=0).astype("Int64")

    if "well" not in keys:
        rows["wells"] = by_row.well.nunique()
    if "field" in keys:
        problem = by_row.problem.agg(lambda texts: "; ".join(filter(None, texts)))
        rows["problem"] = problem.where(problem != "", None)
    else:
        rows["fields"], all_fields = fields(whole), field.groupby(images.row).nunique()
        rows["lost_fields"] = all_fields - rows.fields
        rows["empty_fields"] = fields(whole & images["empty"])
    rows["objects"] = count(objects[objects.counts.astype(bool)]).where(has_whole)
    if images.dropped.notna().any():
        # Unknown where any field was segmented by an earlier version, which did not count them.
        is_known = images.dropped.notna().groupby(images.row).sum() == whole.groupby(images.row).sum()
        rows["dropped_objects"] = by_row.dropped.sum().where(is_known & has_whole)
    if images.trained_on.notna().any():
        rows["training_fields"] = fields(images.trained_on.fillna(False).astype(bool))
    pixels = by_row.pixels.sum()
    if plate.kind in ("", "cells"):  # the share of the area that nuclei cover is no confluence
        # NumPy's sum, as ever: that of pandas differs in the last bits.
        area = objects.groupby("row").area.agg(lambda values: values.to_numpy(float).sum())
        rows["confluence"] = (area.reindex(rows.index, fill_value=0.0).astype(float) / pixels).where(
            has_whole
        )
    if plate.pixel_um is not None:
        density = count(objects).astype(float) / (pixels * plate.pixel_um**2 / 1e6)
        rows["objects_per_mm2"] = density.where(has_whole)
    if images.known.any():
        has_truth = by_row.known.any()
        rows["truth_fields"] = fields(images.known).astype("Int64").where(has_truth)
        rows["truth_objects"] = by_row.truth.sum().where(has_truth)
        rows["objects_in_truth_fields"] = count(objects[objects.known.astype(bool)]).where(has_truth)
    return rows
