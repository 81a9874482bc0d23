"""Results of a run of segment: its plates, a record per field, their objects; and rows of a table of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.plate import FieldKey, layout
from hpc_isl.plates.plate_map import OF_PLATE_MAP
from hpc_isl.run import Run
from hpc_isl.stages.shared.field_records import read_records

DUPLICATE = "duplicate_of"
BORDER, CELL, NUCLEI, CYTOPLASM = "touches_border", "cell", "nuclei_in_cell", "cytoplasm_"
RELATED = (BORDER, CELL, NUCLEI)
TRUST = ("confidence", "score")  # of objects: how they were found, not what they are
CORRECTION = "intensity_correction"
FLAG = "flag_"
"""Begins the names of columns of flags: how many of the fields have it."""
IMAGE = ["well", "field", "acquisition", "time"]
"""The columns that name an image: one field at one time."""
OBJECT = [*IMAGE, "label"]
BY = {"well": ["well"], "field": ["well", "field"], "plate": []}
MEDIAN = "median_"
BESIDE = "normalised_"
"""Begins the names of relative readouts that stand beside the plain ones."""
# Columns whose median means nothing: positions, and the angles of axes.
WITHOUT_MEDIAN = ("centroid_", "orientation_")
OURS = {
    "plate", "well", "field", "acquisition", "time", "wells", "fields", "lost_fields", "empty_fields",
    "problem", "objects", "confluence", "objects_per_mm2", "truth_fields", "truth_objects",
    "objects_in_truth_fields", "dropped_objects", "training_fields", "excluded_fields", "objects_per_field",
    CORRECTION, "imaged_fields", "orphans", "cells_without_nucleus", "cells_with_several_nuclei",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SegmentedPlate:
    """One plate of the run.

    Attributes:
        plate_map: well -> column -> value.
        table: its objects; the file is missing where no field was segmented.
        images: one row per field and time, in plate order, with the columns of `IMAGE` and `pixels` (0 where
            the image failed), `problem` (why it failed; else empty), `empty` (it shows no structure), and
            three that are null where they are not known: `truth` (objects by the reference labels), `dropped`
            (objects too small to count) and `trained_on` (whether the model learnt from the field).
            Of runs of this version also: `focus` (source -> sharpness and contrast), `saturated` and
            `incomplete` (whether any pixels, or planes, are). Where fields are left out, also `excluded`;
            once `quality.flagged`, a column for each flag.
        path: of the plate, which may have gone; shown_channel: of pictures, or empty.
        kind: of the objects: nuclei, cells or stain; empty for a run of an earlier version, which lacks it.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    pixel_um: float | None
    plate_map: Mapping[str, Mapping[str, str]]
    table: Path
    images: pd.DataFrame
    kind: str = ""
    path: Path = Path()
    shown_channel: str = ""

    @property
    def schema(self) -> pa.Schema:
        return pq.read_schema(self.table) if self.table.exists() else pa.schema([])

    @property
    def map_columns(self) -> list[str]:
        """Returns the columns of the plate map, in the order of their first appearance."""
        return list(dict.fromkeys(name for facts in self.plate_map.values() for name in facts))

    def without(self, excluded: Mapping[tuple[str, str, str], str]) -> SegmentedPlate:
        """Returns the plate as if the fields (plate, well, field) -> reason had not been imaged."""
        places = zip(self.images.well, self.images.field, strict=True)
        reasons = pd.Series(
            [excluded.get((self.name, *place)) for place in places], self.images.index, object
        )
        is_out = reasons.notna()
        images = self.images.assign(excluded=is_out, pixels=self.images.pixels.where(~is_out, 0))
        images["problem"] = images.problem.where(~is_out, "left out: " + reasons.fillna(""))
        images.loc[is_out, ["truth", "dropped"]] = pd.NA
        return replace(self, images=images)

    def objects(self, features: Sequence[str]) -> pd.DataFrame:
        """Returns all objects: columns of `IMAGE`, `counts`, `area` in pixels, and features (float64).

        And those of `RELATED` that the run has.
        """
        if not self.table.exists():
            return pd.DataFrame(columns=[*IMAGE, "counts", "area", *features])
        area = "area_px" if self.pixel_um is None else "area_um2"
        related = [name for name in RELATED if name in self.schema.names]
        names = dict.fromkeys([*OBJECT, DUPLICATE, area, *related, *features])
        table = pq.read_table(self.table, columns=list(names))
        objects: pd.DataFrame = table.to_pandas().astype(dict.fromkeys(features, float))
        objects["counts"], is_out = self._count_flags(table)
        objects["area"] = objects[area] / (self.pixel_um or 1) ** 2
        return objects[~is_out]

    def batches(self) -> Iterator[pa.Table]:
        """Yields the objects that count, some at a time, without the column that marks the others."""
        if self.table.exists():
            for batch in pq.ParquetFile(self.table).iter_batches():
                part = pa.Table.from_batches([batch])
                yield part.filter(pa.array(self._count_flags(part)[0])).drop_columns(DUPLICATE)

    def _count_flags(self, objects: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Returns whether each object counts, and whether its field is left out.

        An object does not count that an overlapping field has shown already. Where that field is left out,
        the first of those that show it again counts in its place.
        """
        counted: NDArray[np.bool_] = pc.equal(pc.fill_null(objects[DUPLICATE], ""), "").to_numpy()
        if not self._fields_left_out:
            return counted, np.zeros(len(counted), bool)
        places = pd.MultiIndex.from_arrays([objects[name].to_pandas() for name in OBJECT], names=OBJECT)
        is_out = places.droplevel(["time", "label"]).isin(self._fields_left_out)
        return (counted | places.isin(self._stand_ins)) & ~is_out, is_out

    @cached_property
    def _fields_left_out(self) -> list[tuple[str, str, int]]:
        if "excluded" not in self.images:
            return []
        left_out = self.images[self.images.excluded]
        return list(zip(left_out.well, left_out.field, left_out.acquisition, strict=True))

    @cached_property
    def _stand_ins(self) -> pd.MultiIndex:
        """The objects that count in the place of one whose field is left out; reads doubled objects alone."""
        doubled = pq.read_table(
            self.table, columns=[*OBJECT, DUPLICATE], filters=pc.field(DUPLICATE).is_valid()
        ).to_pandas()
        places = pd.MultiIndex.from_frame(doubled[OBJECT[:3]])
        shown_by = doubled[DUPLICATE].str.rsplit(":", n=1).str[0]
        names = [str(FieldKey(*place)) for place in self._fields_left_out]
        orphaned = doubled[shown_by.isin(names) & ~places.isin(self._fields_left_out)]
        first_shown = orphaned.drop_duplicates(["time", DUPLICATE])
        return pd.MultiIndex.from_frame(first_shown[OBJECT])


def segmented_plates(run: Run) -> list[SegmentedPlate]:
    """Returns the plates of a run of segment.

    Raises:
        UserError: the run is one of another stage, or not done: until then tables of plates are incomplete.
    """
    if run.stage != "segment":
        raise UserError(f"table: {run.label!r} is a {run.stage} run; name a run of segment")
    if run.summary() is None:
        raise UserError(
            f"table: {run.label!r} is not done, and its tables are not whole: python -m hpc_isl.submit "
            f"resume {shlex.quote(run.label)}"
        )
    return read_plates(run)


def read_plates(run: Run) -> list[SegmentedPlate]:
    """Returns the plates of a run that may be about to end."""
    return [_plate(run.folder, facts) for facts in json.loads((run.folder / "plates.json").read_text())]


def _plate(folder: Path, facts: Mapping[str, Any]) -> SegmentedPlate:
    table = folder / "tables" / f"{facts['slug']}.parquet"
    records = [*read_records(folder, facts["slug"]).values(), *facts.get("left_out", [])]
    records.sort(key=lambda record: FieldKey(record["well"], record["field"], record["acquisition"]).place)
    rows, columns = facts.get("rows"), facts.get("columns")
    if not rows or not columns:
        # Runs of earlier versions do not name all rows and columns of the plate.
        rows, columns = layout({record["well"] for record in records})
    # Records of failed fields, and of earlier versions, do not say how many times the field has.
    times = max((record.get("times", 1) for record in records), default=1)
    if table.exists():
        times = max(times, 1 + (pc.max(pq.read_table(table, columns=["time"])["time"]).as_py() or 0))
    images = pd.DataFrame([
        image for record in records for image in _images(record, times, facts)
    ])  # fmt: skip
    images = images.astype({"truth": "Int64", "dropped": "Int64", "trained_on": "boolean"})
    images = images.astype({"saturated": "boolean", "incomplete": "boolean", "focus": object})
    try:  # the plate map of the plate may have been corrected since; where the plate has gone, as it was
        plate_map = read_group(Path(facts["path"]))["hpc_isl"]["plate_map"]
    except (UserError, KeyError, TypeError):
        plate_map = facts["plate_map"]
    return SegmentedPlate(
        facts["plate"], tuple(rows), tuple(columns), facts["pixel_um"], plate_map, table, images,
        facts.get("kind", ""), Path(facts["path"]), facts.get("shown", ""),
    )  # fmt: skip


def _images(record: Mapping[str, Any], times: int, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    name = f"{record['well']}/{record['field']}"

    def listed(key: str) -> bool | None:
        return name in facts[key] if facts.get(key) is not None else None

    saturated = record.get("saturated")
    field = {
        **{key: record[key] for key in IMAGE[:-1]}, "empty": bool(record.get("empty")),
        "trained_on": listed("taught"), "incomplete": listed("incomplete"),
        "saturated": None if saturated is None else bool(saturated),
    }  # fmt: skip
    for time in range(record.get("times", times)):
        is_imaged = time not in record.get("not_imaged", ())
        problem = record.get("problem", "") if is_imaged else "a source was not imaged"
        image = {"time": time, "problem": problem, "pixels": 0 if problem else prod(record["shape"][-2:])}
        for key in ("truth", "dropped"):
            numbers = None if problem else record.get(key)
            image[key] = None if numbers is None else numbers[time]
        image["focus"] = None if problem or not record.get("focus") else record["focus"][time]
        yield field | image


# ---------------------------------------------------------------- rows of a table


def rows_of(plates: Sequence[SegmentedPlate], per: str) -> pd.DataFrame:
    """Returns one row per well, field or plate, in plate order.

    Where a run has several acquisitions or times, each has rows of its own. Null is what is not known: the
    objects of a failed field, a density without a pixel size, a median of nothing. Objects that an
    overlapping field has shown already are left out, except from the density and from
    `objects_in_truth_fields`: there the area and the reference labels of each field count as well.
    """
    images: pd.DataFrame = pd.concat([plate.images[IMAGE] for plate in plates])
    several = [name for name in ("acquisition", "time") if images[name].nunique() > 1]
    # One plate at a time: the objects of a whole run may not fit in memory.
    blocks = zip(*(_rows(plate, [*BY[per], *several]) for plate in plates), strict=True)
    columns = [pd.concat(block, ignore_index=True) for block in blocks]
    rows: pd.DataFrame = pd.concat(columns, axis=1)
    return rows


def plate_map_name(name: str, used_names: Collection[str] = ()) -> str:
    """Returns how a column of the plate map is called in tables, where some names are taken."""
    is_taken = name in OURS or name in used_names or name.startswith((MEDIAN, BESIDE, FLAG))
    return f"{name}{OF_PLATE_MAP}" if is_taken else name


def mapped_columns(plates: Sequence[SegmentedPlate]) -> list[str]:
    """Returns how the columns of all plate maps are called in tables of wells."""
    return [plate_map_name(name) for plate in plates for name in plate.map_columns]


def _rows(plate: SegmentedPlate, keys: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Returns what each row of a plate is about, its counts, and its medians."""
    floats = [column.name for column in plate.schema if pa.types.is_floating(column.type)]
    features = [name for name in floats if not name.startswith(WITHOUT_MEDIAN)]
    images = plate.images.assign(plate=plate.name)
    images["row"] = images.groupby(["plate", *keys], sort=False).ngroup()
    images["known"] = images.truth.notna()
    objects = plate.objects(features).merge(images[[*IMAGE, "row", "known"]], on=IMAGE)

    row_facts = images.drop_duplicates("row").set_index("row")
    wells = [name for name in keys if name == "well"]
    map_values: dict[str, Any] = {
        plate_map_name(name): [plate.plate_map.get(well, {}).get(name) or None for well in row_facts.well]
        for name in (plate.map_columns if wells else ())
    }
    if CORRECTION in plate.schema.names:  # one of all objects of a plate
        batches = pq.ParquetFile(plate.table).iter_batches(1, columns=[CORRECTION])
        map_values[CORRECTION] = next((batch[CORRECTION][0].as_py() for batch in batches), None)
    names = ["plate", *wells, *map_values, *(name for name in keys if name != "well")]
    row_facts = row_facts.assign(**map_values)[names]

    medians = _medians(objects[objects.counts.astype(bool)], features)
    medians = medians.reindex(row_facts.index).add_prefix(MEDIAN)
    return row_facts, _counts(plate, images, objects, keys), medians


def _medians(objects: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """Returns the median of each feature by row.

    Of an object at the border of an image a part is missing: it counts, but it is in no median, except of
    how far objects may be trusted. Of cells with no nucleus or several, what is outside of nuclei is no
    cytoplasm.
    """
    if not features:
        return pd.DataFrame()
    # An object that is whole, and has one nucleus where nuclei are known.
    inside = ~objects[BORDER].astype(bool) if BORDER in objects else pd.Series(True, objects.index)
    single = inside & (objects[NUCLEI] == 1) if NUCLEI in objects else inside
    masks = {name: single if name.startswith(CYTOPLASM) else inside for name in features}
    values = {name: objects[name] if name in TRUST else objects[name].where(masks[name]) for name in features}
    medians: pd.DataFrame = pd.DataFrame(values).groupby(objects.row).median()
    return medians


def _counts(
    plate: SegmentedPlate, images: pd.DataFrame, objects: pd.DataFrame, keys: Sequence[str]
) -> pd.DataFrame:
    """Returns the counts of each row; columns that say nothing about any row of the plate are absent."""
    by_row, whole = images.groupby("row"), images.problem == ""
    has_whole = whole.groupby(images.row).any()

    def count(selection: pd.DataFrame) -> pd.Series[int]:
        return selection.groupby("row").size().reindex(rows.index, fill_value=0).astype("Int64")

    rows = _fields(images, keys)
    rows["objects"] = count(objects[objects.counts.astype(bool)]).where(has_whole)
    if "excluded" in images and "fields" in rows:  # totals of wells that lack fields cannot be compared
        rows["objects_per_field"] = (rows.objects / rows.fields).where(has_whole)
    if images.dropped.notna().any():
        # Unknown where any field was segmented by an earlier version, which did not count them.
        is_known = images.dropped.notna().groupby(images.row).sum() == whole.groupby(images.row).sum()
        rows["dropped_objects"] = by_row.dropped.sum().where(is_known & has_whole)
    if images.trained_on.notna().any():
        rows["training_fields"] = _count_fields(images, images.trained_on.fillna(False).astype(bool))
    pixels = by_row.pixels.sum()
    if plate.kind in ("", "cells"):  # the share of the area that nuclei cover is no confluence
        # NumPy's sum: that of pandas would not be bit-identical with earlier tables.
        area = objects.groupby("row").area.agg(lambda values: values.to_numpy(float).sum())
        rows["confluence"] = (area.reindex(rows.index, fill_value=0.0).astype(float) / pixels).where(
            has_whole
        )
    if plate.pixel_um is not None:
        density = count(objects).astype(float) / (pixels * plate.pixel_um**2 / 1e6)
        rows["objects_per_mm2"] = density.where(has_whole)
    counted = objects[objects.counts.astype(bool)]
    if CELL in counted:
        rows["orphans"] = count(counted[counted[CELL] == 0]).where(has_whole)
    if NUCLEI in counted:
        rows["cells_without_nucleus"] = count(counted[counted[NUCLEI] == 0]).where(has_whole)
        rows["cells_with_several_nuclei"] = count(counted[counted[NUCLEI] > 1]).where(has_whole)
    if images.known.any():
        has_truth = by_row.known.any()
        rows["truth_fields"] = _count_fields(images, images.known).astype("Int64").where(has_truth)
        rows["truth_objects"] = by_row.truth.sum().where(has_truth)
        rows["objects_in_truth_fields"] = count(objects[objects.known.astype(bool)]).where(has_truth)
    return rows


def _fields(images: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Returns how many wells and fields each row has: whole, lost, left out, empty; or its problem."""
    by_row, whole = images.groupby("row"), images.problem == ""
    rows = pd.DataFrame(index=pd.RangeIndex(by_row.ngroups))
    if "well" not in keys:
        rows["wells"] = by_row.well.nunique()
    if "field" in keys:
        for name in (name for name in map(str, images) if name.startswith(FLAG)):
            rows[name] = by_row[name].any().where(by_row[name].count() > 0)
        problem = by_row.problem.agg(lambda texts: "; ".join(filter(None, texts)))
        rows["problem"] = problem.where(problem != "", None)
        return rows
    rows["fields"] = _count_fields(images, whole)
    rows["lost_fields"] = _count_fields(images, pd.Series(True, images.index)) - rows.fields
    if "excluded" in images:
        rows["excluded_fields"] = _count_fields(images, images.excluded)
        rows["lost_fields"] -= rows.excluded_fields
        rows["imaged_fields"] = rows.fields + rows.lost_fields + rows.excluded_fields
    rows["empty_fields"] = _count_fields(images, whole & images["empty"])
    for name in (name for name in map(str, images) if name.startswith(FLAG)):
        rows[name] = _count_fields(images, whole & images[name].fillna(False).astype(bool))
    return rows


def _count_fields(images: pd.DataFrame, is_chosen: pd.Series[bool]) -> pd.Series[int]:
    """Returns the number of fields of each row of which an image is chosen."""
    # A field of several times has an image for each, and counts once.
    field = images.groupby(IMAGE[:-1], sort=False).ngroup()
    return field.where(is_chosen).groupby(images.row).nunique()
