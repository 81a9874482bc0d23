"""Reads what a run of segment wrote: its plates, one record per field, and the objects of a plate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.plate import FieldKey, layout
from hpc_isl.run import Run

DUPLICATE = "duplicate_of"
IMAGE = ["well", "field", "acquisition", "time"]
"""The columns that name an image: one field at one time."""


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

    @property
    def schema(self) -> pa.Schema:
        return pq.read_schema(self.table) if self.table.exists() else pa.schema([])

    @property
    def map_columns(self) -> list[str]:
        """Returns the columns of the plate map, in the order of their first appearance."""
        return list(dict.fromkeys(name for facts in self.plate_map.values() for name in facts))

    def objects(self, features: Sequence[str]) -> pd.DataFrame:
        """Returns all objects: columns of `IMAGE`, `counts`, `area` in pixels, and features (float64)."""
        if not self.table.exists():
            return pd.DataFrame(columns=[*IMAGE, "counts", "area", *features])
        area = "area_px" if self.pixel_um is None else "area_um2"
        table = pq.read_table(self.table, columns=list(dict.fromkeys([*IMAGE, DUPLICATE, area, *features])))
        objects: pd.DataFrame = table.to_pandas().astype(dict.fromkeys(features, float))
        objects["counts"] = counts(table).to_numpy()
        objects["area"] = objects[area] / (self.pixel_um or 1) ** 2
        return objects

    def batches(self) -> Iterator[pa.Table]:
        """Yields the objects that count, some at a time, without the column that marks the others."""
        if self.table.exists():
            for batch in pq.ParquetFile(self.table).iter_batches():
                part = pa.Table.from_batches([batch])
                yield part.filter(counts(part)).drop_columns(DUPLICATE)


def counts(objects: pa.Table) -> pa.ChunkedArray:
    """Returns whether each object counts: no overlapping field has shown it already."""
    return pc.equal(pc.fill_null(objects[DUPLICATE], ""), "")


def segmented_plates(run: Run) -> list[SegmentedPlate]:
    """Returns the plates of a run of segment.

    Raises:
        UserError: the run is one of another stage, or not done: until then tables of plates are incomplete.
    """
    if run.stage != "segment":
        raise UserError(f"table: {run.label!r} is a {run.stage} run; name a run of segment")
    if run.summary() is None:
        raise UserError(
            f"table: {run.label!r} is not done, its objects lie field by field in {run.folder / 'objects'}"
        )
    return read_plates(run)


def read_plates(run: Run) -> list[SegmentedPlate]:
    """Returns the plates of a run that may be about to end."""
    return [_plate(run.folder, facts) for facts in json.loads((run.folder / "plates.json").read_text())]


def _plate(folder: Path, facts: Mapping[str, Any]) -> SegmentedPlate:
    table = folder / "tables" / f"{facts['slug']}.parquet"
    records = [read_json(path) or {} for path in (folder / "fields" / facts["slug"]).glob("*.json")]
    records += facts.get("left_out", [])
    records.sort(key=lambda record: FieldKey(record["well"], record["field"], record["acquisition"]).place)
    rows, columns = facts.get("rows"), facts.get("columns")
    if not rows or not columns:
        # Runs of earlier versions do not name all rows and columns of the plate.
        rows, columns = layout({record["well"] for record in records})
    # Records of failed fields do not say how many times the field has.
    times = 1
    if table.exists():
        times = 1 + (pc.max(pq.read_table(table, columns=["time"])["time"]).as_py() or 0)
    images = pd.DataFrame([
        image for record in records for image in _images(record, times, facts.get("taught"))
    ])  # fmt: skip
    images = images.astype({"truth": "Int64", "dropped": "Int64", "trained_on": "boolean"})
    try:  # the plate map of the plate may have been corrected since; where the plate has gone, as it was
        plate_map = read_group(Path(facts["path"]))["hpc_isl"]["plate_map"]
    except (UserError, KeyError):
        plate_map = facts["plate_map"]
    return SegmentedPlate(
        facts["plate"], tuple(rows), tuple(columns), facts["pixel_um"], plate_map, table, images,
        facts.get("kind", ""),
    )  # fmt: skip


def _images(
    record: Mapping[str, Any], times: int, trained_on: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    name = f"{record['well']}/{record['field']}"
    field = {
        **{key: record[key] for key in IMAGE[:-1]}, "empty": bool(record.get("empty")),
        "trained_on": None if trained_on is None else name in trained_on,
    }  # fmt: skip
    for time in range(record.get("times", times)):
        is_imaged = time not in record.get("not_imaged", ())
        problem = record.get("problem", "") if is_imaged else "a source was not imaged"
        image = {"time": time, "problem": problem, "pixels": 0 if problem else prod(record["shape"][-2:])}
        for key in ("truth", "dropped"):
            numbers = None if problem else record.get(key)
            image[key] = None if numbers is None else numbers[time]
        yield field | image
