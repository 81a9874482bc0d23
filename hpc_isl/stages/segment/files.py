"""The files of a run of segment: tables, records and maps of fields, and when a field counts as done."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.network.contract import Contract
from hpc_isl.objects.types import Labels
from hpc_isl.plates.atomic_directory import MARK, clean, translate_write_errors
from hpc_isl.plates.label_groups import label_folder, labels_home, slug
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate
from hpc_isl.plates.store import Index, edited, label_provenance, refuse_edited
from hpc_isl.run import Run
from hpc_isl.stages.shared import field_records

Row = dict[str, Any]
SCRATCH = "scratch"  # below the run folder: files of fields under way
BAND = 256  # rows that are hashed at once
OBJECTS = "objects"  # the folder of fields' own tables
PLACE = ("well", "field", "acquisition")  # the columns that name a field
FOLDERS = ("fields", OBJECTS, "maps", "tables", "pictures")  # of the run folder, which segment alone writes
FILES = (
    "plates.json",
    "losses.csv",
    "drift.csv",
    "wells.csv",
    "assay_quality.csv",
    "normalisation.csv",
    "left_out_fields.csv",
    "flat_field.json",
)  # the same


@dataclass(frozen=True, slots=True)
class FieldTask:
    """One field to segment: coordinates and paths alone.

    Attributes:
        run: folder of the run, which holds the recipe.
        name, slug: of the plate, in tables and in file names.
        fingerprint: of all that decides labels and measurements; `labels_fingerprint`: of what decides the
            labels alone.
        former_fingerprint: the fingerprint as earlier versions noted it, where that was another.
        confidence: the column that says how far objects may be trusted, as PlateInput knows it.
    """

    run: Path
    plate: Path
    name: str
    slug: str
    key: FieldKey
    fingerprint: str = ""
    labels_fingerprint: str = ""
    former_fingerprint: str = ""
    confidence: str | None = None

    @property
    def file(self) -> str:
        return f"{self.key.well}-{self.key.image}"

    @property
    def record(self) -> Path:
        """The file written last: figures of the field, and the fingerprint of what they were made of."""
        return field_records.own_file(self.run, self.slug, self.key)

    @property
    def table(self) -> Path:
        """The file with one row for each object."""
        return self.run / OBJECTS / self.slug / f"{self.file}.parquet"

    @property
    def plate_table(self) -> Path:
        """The file with the objects of all fields of the plate, once they are gathered."""
        return self.run / "tables" / f"{self.slug}.parquet"

    @property
    def maps(self) -> Path:
        """The plate of the networks' outputs."""
        return self.run / "maps" / f"{self.slug}.zarr"

    @property
    def scratch(self) -> Path:
        return self.run / SCRATCH / self.slug / self.file


# Added to the name of labels in single fields, by runs of earlier versions and where somebody draws while a
# run computes.
COPY = " predicted"


def labels_name(image: Path, name: str) -> str:
    """Returns the name for computed labels of an image: those that people drew, or a draft, stay."""
    provenance = label_provenance(image, name)
    return name if provenance is None or provenance.fingerprint else name + COPY


def check_can_write_labels(image: Path, name: str, fingerprint: str, overwrite: bool) -> None:
    """Checks that what exists where labels are about to be written may be replaced.

    Raises:
        UserError: people corrected it, or another computation made it and `overwrite` does not say so.
    """
    check_owner(image, name, fingerprint, overwrite)
    computed_name = labels_name(image, name)
    provenance = label_provenance(image, computed_name)
    if provenance is None or (provenance.fingerprint == fingerprint and edited(image, computed_name) is None):
        return  # of an earlier version, without a checksum: the writer compares pixels
    refuse_edited(image, computed_name)


def check_owner(image: Path, name: str, fingerprint: str, overwrite: bool = False) -> None:
    """Checks that the labels of this name are of this computation, or of another that may be replaced.

    Raises:
        UserError: they are people's, or another computation made them and `overwrite` does not say so.
    """
    computed_name = labels_name(image, name)
    provenance = label_provenance(image, computed_name)
    if provenance is None or provenance.fingerprint == fingerprint:
        return
    if not provenance.fingerprint:
        raise UserError(
            f"{image}: people have labels {name!r} there, and have corrected those that were computed, "
            f"{name + COPY!r}: neither is replaced; choose another labels="
        )
    if not overwrite:
        raise UserError(
            f"{image}: has labels {computed_name!r} of another run of segment; choose another labels=, or "
            "overwrite=true replaces them"
        )


def done_record(task: FieldTask, image: Path, labels: str | None, gathered: Row | None) -> Row | None:
    """Returns the record of a field that is done, with these labels where they are kept; None: not done.

    `gathered`: its record in the plate's file, or None.
    """
    field_record = read_json(task.record)
    record = gathered if field_record is None else field_record
    if (
        record is None
        or "problem" in record
        or record["fingerprint"] not in (task.fingerprint, task.former_fingerprint)
    ):
        return None
    if task.table.exists():
        has_objects = field_record is not None  # else their table was written, and the record was to follow
    else:
        has_objects = field_record in (None, gathered) and task.plate_table.exists()
    if not has_objects:
        return None
    if labels is not None:
        provenance = label_provenance(image, labels_name(image, labels))
        if provenance is None or provenance.fingerprint != task.labels_fingerprint:
            return None
    return record


FACTS_OF_RUN = ("problem", "objects", "dropped", "not_imaged", "doubt", "empty", "device")


def brief(task: FieldTask, record: Row) -> Row:
    """Returns what the end of a run says of a field: of hundreds of thousands memory holds no more."""
    key = task.key
    place = {"plate": task.name, "well": key.well, "field": key.name, "acquisition": key.acquisition}
    return place | {name: record[name] for name in FACTS_OF_RUN if name in record}


def write_record(task: FieldTask, facts: Mapping[str, Any]) -> Row:
    """Writes the record of a field that is done or, with a `problem`, failed; returns it."""
    key = task.key
    record = {
        "plate": task.name, "well": key.well, "field": key.name, "acquisition": key.acquisition,
        "fingerprint": task.fingerprint, **facts,
    }  # fmt: skip
    _write(task.record, json.dumps(record, indent=1).encode())
    return record


def table_of(task: FieldTask, features: Sequence[Mapping[str, NDArray[Any]]]) -> pa.Table:
    """Returns one row for each object of a field: where it is, then its features.

    Args:
        features: of each time, name -> one value per object.
    """
    parts = []
    for time, columns in enumerate(features):
        count = len(columns["label"])
        # Arrow takes an empty list for a column of nulls: its type has to be named.
        texts = {
            name: pa.array([value] * count, pa.string())
            for name, value in (("plate", task.name), ("well", task.key.well), ("field", task.key.name))
        }
        numbers = {
            "acquisition": np.full(count, task.key.acquisition, np.int32),
            "time": np.full(count, time, np.int32),
        }
        arrays = {
            name: pa.array(values, pa.string() if values.dtype == object else None)
            for name, values in (numbers | dict(columns)).items()
        }
        parts.append(pa.table(texts | arrays))
    return pa.concat_tables(parts)


def schema_file(run: Path) -> Path:
    """Returns the file of the columns of all tables of objects, by a name that readers of Parquet know."""
    return run / OBJECTS / "_common_metadata"


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the same rows with all columns of the schema; what its plate does not have is null."""
    nulls = {column.name: pa.nulls(table.num_rows, column.type) for column in schema}
    return pa.table({**nulls, **dict(zip(table.column_names, table.columns, strict=True))}, schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table, the same bytes for the same rows; complete or not at all."""
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    _write(path, stream.getvalue())


def _write(path: Path, content: bytes) -> None:
    with translate_write_errors(path, len(content)):
        write_atomic(path, content)


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Writes rows as CSV; by default all their columns, in the order of their first appearance."""
    import pandas as pd  # here, because a plan does not wait for it

    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    # As objects: figures keep all their digits, and one that is missing makes no floats of integers.
    table = pd.DataFrame([[row.get(name) for name in names] for row in rows], columns=names, dtype=object)
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))


def content_hash(labels: Iterable[Labels], table: pa.Table) -> str:
    """Returns the hash of every label and every figure of a field.

    Labels are hashed in bands of rows, because those of a large field lie on the disk.
    """
    digest = hashlib.sha256()
    for band in (image[row : row + BAND] for image in labels for row in range(0, len(image), BAND)):
        digest.update(np.ascontiguousarray(band).data)
    for name in table.column_names:
        # Texts have no bytes of their own in NumPy.
        column = table[name].to_numpy(zero_copy_only=False)
        content = "\n".join(column).encode() if column.dtype == object else column.tobytes()
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


# ---------------------------------------------------------------- maps


MAPS = {
    "stain": "a run of pretrain predicts a stain, also beside this model, as in stain=NAME",
    "distance": "a model of cells predicts distances",
    "mask": "a model that segments predicts a mask",
}
"""The maps that can be kept beside labels -> which model has them."""


@dataclass(frozen=True)
class Maps:
    """The outputs of the networks that are kept, as channels of a plate of their own in the run folder.

    Attributes:
        channels: (name of the channel, whether the stain's model predicts it, number of the output).
    """

    channels: tuple[tuple[str, bool, int], ...]

    def stack(self, prediction: Pixels, stain: Pixels | None) -> Pixels:
        """Returns (channel, y, x) of what is kept."""
        sources = {False: prediction, True: stain}
        planes = [(sources[is_stain], number) for _, is_stain, number in self.channels]
        return np.stack([source[number] for source, number in planes if source is not None])

    def plate(self, index: Index, pixel_um: float | None, fields: Sequence[Field] = ()) -> Plate:
        """Returns the plate that holds the maps."""
        channels = tuple(Channel(name) for name, _, _ in self.channels)
        origin = {"predicted from": index.plate.name, "fingerprint": index.fingerprint}
        return replace(
            index.plate, channels=channels, fields=tuple(fields), pixel_um=pixel_um, plane_um=None,
            details=origin,
        )  # fmt: skip


def maps_of(outputs: Sequence[str], contract: Contract, stain: Contract | None) -> Maps:
    """Returns the maps that `outputs` names and that the models have."""
    task, channels = contract.task, []
    if "stain" in outputs and (isl := contract if task is None else stain):
        roles = enumerate(isl.view.targets)
        channels += [(f"{role.channel} (predicted)", task is not None, number) for number, role in roles]
    if contract.program is not None:
        return Maps(tuple(channels))  # it gives labels alone
    if "distance" in outputs and task and task.kind == "cells":
        channels.append(("distance", False, 0))
    if "mask" in outputs and task:
        channels.append(("mask (logit)", False, task.outputs - 1))
    return Maps(tuple(channels))


# ---------------------------------------------------------------- what killed processes left


def remove_partial_image(image: Path, name: str) -> None:
    """Removes what a killed writer of these labels left beside them; other writers' files stay."""
    _remove(labels_home(image).glob(f".zarr.json.{slug(labels_name(image, name))}.*{MARK}"))


def remove_partial_labels(image: Path, name: str) -> None:
    """Removes labels of this name that were never finished beside those that were."""
    clean(label_folder(image, labels_name(image, name)))


def remove_partial_run(run: Run, attempt: int) -> None:
    """Removes what was never finished from the run folder; no process of this attempt writes fields now."""
    older = [run.attempts / str(number) for number in run.attempt_numbers() if number < attempt]
    for folder in (*(run.folder / name for name in FOLDERS), *older):
        _remove(folder.rglob(f".*{MARK}*"))
    for name in FILES:
        _remove(run.folder.glob(f".{name}.*{MARK}"))
    _remove([run.folder / SCRATCH])


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
