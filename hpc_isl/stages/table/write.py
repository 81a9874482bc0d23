"""Writes tables as CSV or Parquet; a file appears complete or not at all, objects stream through memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import write_atomic
from hpc_isl.stages.table.rows import plate_map_name
from hpc_isl.stages.table.segmented_plates import DUPLICATE, SegmentedPlate

TYPES = (".csv", ".parquet")


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
