"""The files of a segmentation: tables and records of fields, and when a field counts as done."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.plates.atomic_directory import MARK, clean, translate_write_errors
from hpc_isl.plates.label_groups import slug
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import edited, label_provenance, refuse_edited
from hpc_isl.run import Run

Row = dict[str, Any]
# Added to the name of all labels of a run where people, or a draft, have the name already; and to the name in
# single fields, by runs of earlier versions and where somebody draws while a run goes on.
OURS, COPY = "_predicted", " predicted"
FOLDERS = ("fields", "objects", "maps", "tables", "pictures")  # of the run folder, which segment alone writes
FILES = ("plates.json", "losses.csv", "drift.csv", "wells.csv")  # the same


@dataclass(frozen=True)
class FieldTask:
    """One field to segment: coordinates and paths alone.

    Attributes:
        run: folder of the run, which holds the recipe.
        name, slug: of the plate, in tables and in file names.
        fingerprint: of all that decides what is found; `mark`: of what decides the labels alone.
        former: the fingerprint as earlier versions noted it, where that was another.
    """

    run: Path
    plate: Path
    name: str
    slug: str
    key: FieldKey
    fingerprint: str = ""
    labels_fingerprint: str = ""
    former: str = ""

    @property
    def file(self) -> str:
        return f"{self.key.well}-{self.key.image}"

    @property
    def record(self) -> Path:
        """Written last: what was found, and of what it was made."""
        return self.run / "fields" / self.slug / f"{self.file}.json"

    @property
    def table(self) -> Path:
        """One row for each object."""
        return self.run / "objects" / self.slug / f"{self.file}.parquet"

    @property
    def maps(self) -> Path:
        """The plate of what the network says."""
        return self.run / "maps" / f"{self.slug}.zarr"

    @property
    def scratch(self) -> Path:
        return self.run / "scratch" / self.slug / self.file


def labels_name(image: Path, name: str) -> str:
    """Under which name labels are written beside an image: those that people drew, or a draft, stay."""
    made = label_provenance(image, name)
    return name if made is None or made[1] else name + COPY


def check_can_write_labels(image: Path, name: str, mark: str, overwrite: bool) -> None:
    """What lies where labels are about to be written may be replaced.

    Raises:
        UserError: people corrected it, or another computation made it and `overwrite` does not say so.
    """
    check_owner(image, name, mark, overwrite)
    own = labels_name(image, name)
    made = label_provenance(image, own)
    if made is None or (made[1] == mark and edited(image, own) is None):
        return  # of an earlier version, without a checksum: whoever writes compares pixels
    refuse_edited(image, own)


def check_owner(image: Path, name: str, mark: str, overwrite: bool = False) -> None:
    """The labels of this name are nobody's else: of this computation, or of another that may be replaced.

    Raises:
        UserError: they are people's, or another computation made them and `overwrite` does not say so.
    """
    own = labels_name(image, name)
    made = label_provenance(image, own)
    if made is None or made[1] == mark:
        return
    if not made[1]:
        raise UserError(
            f"{image}: people have labels {name!r} there, and have corrected those that were computed, "
            f"{name + COPY!r}: neither is replaced; choose another labels="
        )
    if not overwrite:
        raise UserError(
            f"{image}: has labels {own!r} of another run of segment; choose another labels=, or "
            "overwrite=true replaces them"
        )


def done(work: FieldTask, image: Path, labels: str | None) -> Row | None:
    """The record of a field that is done, with these labels where they are kept; None: not done."""
    record = read_json(work.record)
    if record is None or "problem" in record or record["fingerprint"] not in (work.fingerprint, work.former):
        return None
    if not work.table.exists():
        return None
    if labels is not None:
        made = label_provenance(image, labels_name(image, labels))
        if made is None or made[1] != work.labels_fingerprint:
            return None
    return record


def write_record(work: FieldTask, facts: Mapping[str, Any]) -> Row:
    """The done record of a field, or with a `problem` the word that it is lost."""
    key = work.key
    record = {
        "plate": work.name, "well": key.well, "field": key.name, "acquisition": key.acquisition,
        "fingerprint": work.fingerprint, **facts,
    }  # fmt: skip
    _write(work.record, json.dumps(record, indent=1).encode())
    return record


def table_of(work: FieldTask, columns: list[tuple[int, dict[str, NDArray[Any]]]]) -> pa.Table:
    """One row for each object of a field, by time: where it is, then its features."""
    parts = []
    for time, features in columns:
        count = len(features["label"])
        where = {
            "plate": [work.name] * count, "well": [work.key.well] * count, "field": [work.key.name] * count,
            "acquisition": np.full(count, work.key.acquisition, np.int32),
            "time": np.full(count, time, np.int32),
        }  # fmt: skip
        parts.append(pa.table(_typed(where) | {name: pa.array(one) for name, one in features.items()}))
    return pa.concat_tables(parts)


def _typed(where: dict[str, Any]) -> dict[str, pa.Array]:
    """An empty list is a column of text all the same."""
    return {k: pa.array(v, pa.string()) if isinstance(v, list) else pa.array(v) for k, v in where.items()}


def schema_file(run: Path) -> Path:
    """The columns of all tables of objects of a run, by a name that readers of Parquet know, or pass over."""
    return run / "objects" / "_common_metadata"


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with all columns of the schema; what its plate does not have is null."""
    nothing = {one.name: pa.nulls(table.num_rows, one.type) for one in schema}
    return pa.table({**nothing, **dict(zip(table.column_names, table.columns, strict=True))}, schema)


def write_table(path: Path, table: pa.Table) -> None:
    """The same bytes for the same rows; complete or not at all."""
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    _write(path, stream.getvalue())


def _write(path: Path, content: bytes) -> None:
    with translate_write_errors(path, len(content)):
        write_atomic(path, content)


def csv_text(names: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(lines)
    return text.getvalue()


def content_hash(labels: Iterable[NDArray[np.uint32]], table: pa.Table) -> str:
    """Of every label and every figure of a field; labels come in bands of whole rows, in raster order."""
    found = hashlib.sha256()
    for band in labels:
        found.update(np.ascontiguousarray(band).data)
    for name in table.column_names:
        column = table[name].to_numpy(zero_copy_only=False)
        content = "\n".join(column).encode() if column.dtype == object else column.tobytes()
        found.update(name.encode() + b"\0" + content)
    return found.hexdigest()


# ---------------------------------------------------------------- what killed processes left


def remove_partial_image(image: Path, name: str) -> None:
    """Removes what a killed writer of these labels left beside them; other writers' files stay."""
    _remove((image / "labels").glob(f".zarr.json.{slug(labels_name(image, name))}.*{MARK}"))


def remove_partial_labels(image: Path, name: str) -> None:
    """Removes labels of this name that were never finished beside those that were."""
    clean(image / "labels" / slug(labels_name(image, name)))


def remove_partial_run(run: Run, attempt: int) -> None:
    """Removes what was never finished from the run folder; none of this attempt writes fields any more."""
    older = [run.attempts / str(number) for number in run.attempt_numbers() if number < attempt]
    for folder in (*(run.folder / name for name in FOLDERS), *older):
        _remove(folder.rglob(f".*{MARK}*"))
    for name in FILES:
        _remove(run.folder.glob(f".{name}.*{MARK}"))
    _remove([run.folder / "scratch"])


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
