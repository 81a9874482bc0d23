"""Rows to a file, CSV or Parquet, that appears complete or not at all; objects stream through memory."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import write_atomic
from hpc_isl.stages.table.read import DUPLICATE, Segmented
from hpc_isl.stages.table.rows import Row, plate_map_name

TYPES = (".csv", ".parquet")


def checked(path: Path) -> Path:
    """The path, if its ending says what to write.

    Raises:
        UserError: it ends otherwise, or is a folder.
    """
    if path.is_dir():
        raise UserError(f"out={path}: is a folder; name a file, as in out={path / 'wells.csv'}")
    if path.suffix not in TYPES:
        raise UserError(f"out={path}: no such kind of table; {nearest(path.suffix, TYPES)}")
    return path


@contextmanager
def _reachable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"out={path}: cannot be written: {error.strerror or error}") from None


# ---------------------------------------------------------------- wells, fields, plates


def write_rows(path: Path, rows: Sequence[Row]) -> int:
    """The table of rows with equal columns; how many there are."""
    with _reachable(path):
        write_atomic(path, _csv(rows) if path.suffix == ".csv" else _parquet(rows))
    return len(rows)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0] if rows else [])
    writer.writerows([_shown(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _shown(value: Any) -> Any:
    """Six digits of a figure, as many as anyone measures."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _parquet(rows: Sequence[Row]) -> bytes:
    stream = io.BytesIO()
    names = list(rows[0]) if rows else []
    pq.write_table(pa.table({name: pa.array([row[name] for row in rows]) for name in names}), stream)
    return stream.getvalue()


# ---------------------------------------------------------------- objects


def write_objects(path: Path, plates: Sequence[Segmented]) -> int:
    """A row for each object that counts, with what the plate map says of its well; how many there are."""
    own = pa.unify_schemas([plate.schema for plate in plates], promote_options="permissive")
    schema, count = _schema(own, plates), 0
    with _reachable(path), _streaming(path, schema) as writer:
        for plate in plates:
            for part in plate.batches():
                writer.write_table(_fitted(part, plate, schema, own.names))
                count += part.num_rows
    return count


def _schema(own: pa.Schema, plates: Sequence[Segmented]) -> pa.Schema:
    """Where an object is and what its well holds, then all columns of all plates."""
    columns = {one.name: one for one in own if one.name != DUPLICATE}
    mapped = dict.fromkeys(name for plate in plates for facts in plate.plate_map.values() for name in facts)
    about = [pa.field(plate_map_name(name, own.names), pa.string()) for name in mapped]
    first = [columns.pop(name) for name in ("plate", "well") if name in columns]
    return pa.schema([*first, *about, *columns.values()])


def _fitted(part: pa.Table, plate: Segmented, schema: pa.Schema, own: Sequence[str]) -> pa.Table:
    """The same rows with all columns of the schema; unknown is null."""
    wells = part["well"].to_pylist()
    maps = {well: _mapped(plate, well, own) for well in set(wells)}
    columns = [
        part[one.name].cast(one.type)
        if one.name in part.column_names
        else pa.array([maps[well].get(one.name) for well in wells], one.type)
        for one in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _mapped(plate: Segmented, well: str, taken: Sequence[str]) -> dict[str, str | None]:
    facts = plate.plate_map.get(well, {})
    return {plate_map_name(name, taken): value or None for name, value in facts.items()}


@contextmanager
def _streaming(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Writes beside the path and renames at the end."""
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
