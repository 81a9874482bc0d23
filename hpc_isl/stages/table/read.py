"""What a run of segment left in its folder: plates, a record for each field, and all objects of a plate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.plate import FieldKey, layout
from hpc_isl.run import Run

DUPLICATE = "duplicate_of"
WHERE = ("well", "field", "acquisition", "time")
ShotKey = tuple[str, str, int, int]


@dataclass(frozen=True)
class Shot:
    """One field at one time.

    Attributes:
        pixels: of the image; 0 where it is lost.
        truth: objects that there are, or None.
        problem: why the field is lost; "": it is not.
        empty: it shows nothing that has any structure.
        dropped: objects that were too small to count; None: a run of an earlier version, which does not say.
        taught: whether the model learnt from this field; None: the same.
    """

    well: str
    field: str
    acquisition: int
    time: int
    pixels: int
    truth: int | None
    problem: str
    empty: bool
    dropped: int | None = None
    taught: bool | None = None

    @property
    def key(self) -> ShotKey:
        return self.well, self.field, self.acquisition, self.time


@dataclass(frozen=True)
class Segmented:
    """One plate of the run.

    Attributes:
        table: its objects; the file is missing where no field has been segmented.
        shots: in plate order.
        kind: of the objects: nuclei, cells, or stain; empty: a run of an earlier version, which does not say.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    pixel_um: float | None
    plate_map: Mapping[str, Mapping[str, str]]
    table: Path
    shots: tuple[Shot, ...]
    kind: str = ""

    @property
    def schema(self) -> pa.Schema:
        return pq.read_schema(self.table) if self.table.exists() else pa.schema([])

    def objects(self, columns: Sequence[str]) -> pa.Table | None:
        """These columns of all objects, those that are seen twice among them; None: there is no table."""
        return pq.read_table(self.table, columns=list(columns)) if self.table.exists() else None

    def batches(self) -> Iterator[pa.Table]:
        """The objects that count, some at a time; without the column that says which do not."""
        if self.table.exists():
            for batch in pq.ParquetFile(self.table).iter_batches():
                part = pa.Table.from_batches([batch])
                yield part.filter(counts(part)).drop_columns(DUPLICATE)


def counts(objects: pa.Table) -> pa.ChunkedArray:
    """Whether each object is none that an overlapping field has shown already."""
    return pc.equal(pc.fill_null(objects[DUPLICATE], ""), "")


def check_done(run: Run) -> None:
    """Tables are of a run that is done: until then those of its plates are missing, or of fewer fields.

    Raises:
        UserError: it is a run of something else, or not done.
    """
    if run.stage != "segment":
        raise UserError(f"table: {run.label!r} is a {run.stage} run; name a run of segment")
    if run.summary() is None:
        raise UserError(
            f"table: {run.label!r} is not done, its objects lie field by field in {run.folder / 'objects'}"
        )


def segmented(run: Run) -> list[Segmented]:
    """The plates of a run of segment."""
    plates = json.loads((run.folder / "plates.json").read_text())
    return [_plate(run.folder, facts) for facts in plates]


def _plate(folder: Path, facts: Mapping[str, Any]) -> Segmented:
    table = folder / "tables" / f"{facts['slug']}.parquet"
    records = [read_json(path) or {} for path in (folder / "fields" / facts["slug"]).glob("*.json")]
    records += facts.get("left_out", [])
    records.sort(key=lambda one: FieldKey(one["well"], one["field"], one["acquisition"]).place)
    rows, columns = facts.get("rows"), facts.get("columns")
    if not rows or not columns:
        rows, columns = layout({one["well"] for one in records})
    times = 1
    if table.exists():
        times = 1 + (pc.max(pq.read_table(table, columns=["time"])["time"]).as_py() or 0)
    shots = tuple(shot for record in records for shot in _shots(record, times, facts.get("taught")))
    return Segmented(
        facts["plate"], tuple(rows), tuple(columns), facts["pixel_um"], _plate_map(facts), table, shots,
        facts.get("kind", ""),
    )  # fmt: skip


def _plate_map(facts: Mapping[str, Any]) -> Mapping[str, Mapping[str, str]]:
    """As the plate has it now, for it may have been corrected; where the plate has gone, as it was."""
    try:
        now: Mapping[str, Mapping[str, str]] = read_group(Path(facts["path"]))["hpc_isl"]["plate_map"]
    except (UserError, KeyError):
        now = facts["plate_map"]
    return now


def _shots(record: Mapping[str, Any], times: int, taught: Sequence[str] | None) -> Iterator[Shot]:
    problem = record.get("problem", "")
    height, width = (0, 0) if problem else record["shape"][-2:]
    truth, dropped = record.get("truth"), record.get("dropped")
    known = None if taught is None else f"{record['well']}/{record['field']}" in taught
    for time in range(record.get("times", times)):
        reason = "a source was not imaged" if time in record.get("not_imaged", ()) else problem
        yield Shot(
            record["well"], record["field"], record["acquisition"], time, 0 if reason else height * width,
            None if truth is None or reason else truth[time], reason, bool(record.get("empty")),
            None if dropped is None or reason else dropped[time], known,
        )  # fmt: skip
