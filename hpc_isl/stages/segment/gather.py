"""The end of a run's files: objects and records of all fields become one file of each for a plate.

Until then a field has a table and a record of its own. These go once the files of all plates are in place:
all tables at once, then the records, so that at every moment a field's record leads to its objects. A field
that is computed again has files of its own again, which count before what was gathered.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc_isl.files import read_json, write_atomic
from hpc_isl.plates.plate import FieldKey
from hpc_isl.run import Run
from hpc_isl.stages.segment.files import OBJECTS, PLACE, SCRATCH, FieldTask, fitted
from hpc_isl.stages.segment.inputs import PlateInput
from hpc_isl.stages.segment.overlap import Duplicate
from hpc_isl.stages.shared import field_records

GROUP = 2**16  # rows that are written, and read, together
DUPLICATE = "duplicate_of"


class PlateObjects:
    """The objects of a plate in its one file, read field by field, without the column `duplicate_of`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cached_group: tuple[int, pa.Table] | None = None

    def read(self, key: FieldKey) -> pa.Table:
        """Returns a row for each object of a field."""
        parts = self._parts.get((key.well, key.name, key.acquisition), ())
        tables = [self._group(group).slice(first, count) for group, first, count in parts]
        return pa.concat_tables([self._file.schema_arrow.empty_table(), *tables]).drop_columns(DUPLICATE)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path)

    @cached_property
    def _parts(self) -> dict[tuple[str, str, int], list[tuple[int, int, int]]]:
        """Field -> (group of rows, first row, number of rows): those of a field follow each other."""
        parts: dict[tuple[str, str, int], list[tuple[int, int, int]]] = {}
        for group in range(self._file.num_row_groups):
            places, first = self._file.read_row_group(group, columns=list(PLACE)), 0
            for place, rows in groupby(zip(*(places[name].to_pylist() for name in PLACE), strict=True)):
                parts.setdefault(place, []).append((group, first, count := sum(1 for _ in rows)))
                first += count
        return parts

    def _group(self, number: int) -> pa.Table:
        if self._cached_group is None or self._cached_group[0] != number:
            self._cached_group = number, self._file.read_row_group(number)
        return self._cached_group[1]


def objects_of(task: FieldTask) -> pa.Table:
    """Returns the objects of one field that is done."""
    try:
        return pq.read_table(task.table)
    except FileNotFoundError:
        values = (task.key.well, task.key.name, task.key.acquisition)
        place = [(name, "=", value) for name, value in zip(PLACE, values, strict=True)]
        return pq.read_table(task.plate_table, filters=place).drop_columns(DUPLICATE)


def gather_objects(
    run: Run, plate: PlateInput, keys: Sequence[FieldKey], duplicates: Sequence[Duplicate], schema: pa.Schema
) -> None:
    """Writes the objects of these fields of a plate with `duplicate_of`, in groups that memory holds.

    `keys`: in plate order; `schema`: of the tables of all plates of the run.
    """
    names: dict[str, dict[tuple[int, int], str]] = {}
    for image, time, label, name in duplicates:
        names.setdefault(image, {})[time, label] = name
    path = _task(run, plate, plate.keys[0]).plate_table
    if not keys:
        return path.unlink(missing_ok=True)
    stream, group, gathered = io.BytesIO(), list[pa.Table](), PlateObjects(path)
    with pq.ParquetWriter(
        stream, schema.append(pa.field(DUPLICATE, pa.string())), compression="zstd"
    ) as writer:
        for number, key in enumerate(keys, 1):
            table_file = _task(run, plate, key).table
            # An earlier version, or a run of fewer plates, wrote it without other plates' columns.
            part = fitted(pq.read_table(table_file) if table_file.exists() else gathered.read(key), schema)
            duplicate_names = names.get(str(key), {})
            places = (
                zip(part["time"].to_pylist(), part["label"].to_pylist(), strict=True)
                if duplicate_names
                else ()
            )
            marks = [duplicate_names.get(place) for place in places] or [None] * part.num_rows
            group.append(part.append_column(DUPLICATE, pa.array(marks, pa.string())))
            if sum(table.num_rows for table in group) >= GROUP or number == len(keys):
                # In one piece: the bytes of the file do not tell from which files its rows came.
                writer.write_table(pa.concat_tables(group).combine_chunks())
                group.clear()
    return write_atomic(path, stream.getvalue())


def gather_records(run: Run, plate: PlateInput) -> None:
    """Writes the records of all fields of a plate, in plate order."""
    gathered = field_records.gathered_records(run.folder, plate.slug)
    tasks = (_task(run, plate, key) for key in plate.keys)
    records = (
        gathered[task.file] if (field_record := read_json(task.record)) is None else field_record
        for task in tasks
    )
    lines = [json.dumps(record) + "\n" for record in records]
    write_atomic(field_records.plate_file(run.folder, plate.slug), "".join(lines))


def remove_single_files(run: Run, plates: Sequence[PlateInput]) -> None:
    """Removes what each field had of its own, once the objects and records of all plates are gathered."""
    # Tables first: a table without a record is that of a field whose computation was cut off.
    for folder in (OBJECTS, *(f"{field_records.FOLDER}/{plate.slug}" for plate in plates)):
        if (run.folder / folder).is_dir():
            target = run.folder / SCRATCH / "gathered" / folder
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(run.folder / folder, target)  # thousands of files vanish at once
    shutil.rmtree(run.folder / SCRATCH, ignore_errors=True)


def _task(run: Run, plate: PlateInput, key: FieldKey) -> FieldTask:
    return FieldTask(run.folder, plate.index.path, plate.name, plate.slug, key)
