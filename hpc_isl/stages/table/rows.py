"""Rows of a table, one per well, field or plate: counts, confluence, medians of features; as files."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import write_atomic
from hpc_isl.stages.table.segmented_plates import DUPLICATE, IMAGE, SegmentedPlate

BY = {"well": ["well"], "field": ["well", "field"], "plate": []}
MEDIAN = "median_"
TYPES = (".csv", ".parquet")
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
    # A field of several times has an image for each, and counts once.
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


# ---------------------------------------------------------------- files


def check_path(path: Path) -> Path:
    """Returns the path, if its ending says what to write.

    Raises:
        UserError: it ends otherwise, or is a folder.
    """
    if path.is_dir():
        raise UserError(f"out={path}: is a folder; name a file, as in out={path / 'wells.csv'}")
    if path.suffix not in TYPES:
        raise UserError(f"out={path}: no such kind of table; {nearest(path.suffix, TYPES)}")
    return path


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"out={path}: cannot be written: {error.strerror or error}") from None


def write_rows(path: Path, rows: pd.DataFrame) -> int:
    """Writes a table of wells, fields or plates; returns its number of rows."""
    content: str | bytes
    if path.suffix == ".csv":
        # Six digits of a figure, as many as anyone measures.
        content = rows.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    else:
        # Without the metadata of pandas: any reader of Parquet sees the same columns.
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(), stream)
        content = stream.getvalue()
    with _translate_errors(path):
        write_atomic(path, content)
    return len(rows)


def write_objects(path: Path, plates: Sequence[SegmentedPlate]) -> int:
    """Writes a row for each object that counts, with the plate map of its well; returns their number.

    Columns: plate and well, those of the plate maps, then all other columns of all plates; null is unknown.
    """
    own = pa.unify_schemas([plate.schema for plate in plates], promote_options="permissive")
    columns = {column.name: column for column in own if column.name != DUPLICATE}
    mapped = dict.fromkeys(name for plate in plates for name in plate.map_columns)
    where = [columns.pop(name) for name in ("plate", "well") if name in columns]
    about = [pa.field(plate_map_name(name, own.names), pa.string()) for name in mapped]
    schema, count = pa.schema([*where, *about, *columns.values()]), 0
    with _translate_errors(path), _stream_to(path, schema) as writer:
        for plate in plates:
            for part in plate.batches():
                writer.write_table(_with_plate_map(part, plate, schema, own.names))
                count += part.num_rows
    return count


def _with_plate_map(part: pa.Table, plate: SegmentedPlate, schema: pa.Schema, own: Sequence[str]) -> pa.Table:
    """Returns the same rows with all columns of the schema."""
    wells = part["well"].to_pylist()
    maps = {
        # An empty cell of a plate map is unknown: null, as all that tables do not know.
        well: {plate_map_name(name, own): value or None for name, value in facts.items()}
        for well, facts in plate.plate_map.items()
    }
    columns = [
        part[column.name].cast(column.type)
        if column.name in part.column_names
        else pa.array([maps.get(well, {}).get(column.name) for well in wells], column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


@contextmanager
def _stream_to(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Yields a writer to a file beside the path, which is renamed at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".parquet":
            writer = pq.ParquetWriter(temporary, schema, compression="zstd")
        else:
            writer = pc.CSVWriter(temporary, schema, write_options=pc.WriteOptions(quoting_style="needed"))
        with writer:
            yield writer
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
