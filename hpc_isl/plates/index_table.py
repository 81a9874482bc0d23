"""The table in a plate's index: one row per field, statistics as columns, histograms read on demand."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import fields as members
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import metadata, packed
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.statistics import FieldStatistics, Histogram, PlaneStatistics, edges

FILE = "index/fields.parquet"
FACTS = tuple(fact.name for fact in members(PlaneStatistics))
Row = dict[str, Any]


def row(field: Mapping[str, Any], levels: int, statistics: FieldStatistics, flags: tuple[str, ...]) -> Row:
    """Returns one field as a row; `field` as `metadata.field_facts` writes it."""
    keys = list(statistics.planes)
    return {
        **field["key"],
        "shape": field["shape"],
        "dtype": field["dtype"],
        "levels": levels,
        "position_um": field["position_um"],
        "z_um": field["z_um"],
        # As text: each vendor's details have other keys, and a column has one type.
        "details": json.dumps(field["details"]),
        "digest": statistics.digest,
        "flags": flags,
        **{part: [key[axis] for key in keys] for axis, part in enumerate(("time", "channel", "plane"))},
        **{name: [getattr(plane, name) for plane in statistics.planes.values()] for name in FACTS},
        **{f"histogram_{channel}": h.counts for channel, h in statistics.histograms.items()},
    }


def encoded(rows: list[Row], fingerprint: str) -> bytes:
    """Returns the file's content."""
    # Types are given, as rows alone tell none of a column whose lists are empty or whose values are unknown.
    numbers, floats, string = pa.list_(pa.int64()), pa.list_(pa.float64()), pa.string()
    histograms = sorted({name for row in rows for name in row if name.startswith("histogram_")})
    types = {
        "well": string, "name": string, "acquisition": pa.int64(), "shape": numbers, "dtype": string,
        "levels": pa.int64(), "position_um": floats, "z_um": floats, "details": string, "digest": string,
        "flags": pa.list_(string), "time": numbers, "channel": numbers, "plane": numbers,
        **dict.fromkeys(FACTS, floats), **dict.fromkeys(histograms, numbers),
    }  # fmt: skip
    schema = pa.schema(list(types.items()))
    # As JSON, because `Table.from_pylist` imports pandas, which takes a second.
    lines = [json.dumps(row, default=np.ndarray.tolist).encode() for row in rows]
    # A row may not be longer than a block.
    read_options = pajson.ReadOptions(block_size=16 * max(map(len, lines)))
    parse_options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    table = pajson.read_json(io.BytesIO(b"\n".join(lines)), read_options, parse_options).combine_chunks()
    table = table.replace_schema_metadata({"fingerprint": fingerprint})
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", use_dictionary=False)
    return stream.getvalue()


def read_table(path: Path) -> pa.Table:
    """Returns all columns but the histograms, which are nearly all of the file; `path` is the plate's."""
    with pq.ParquetFile(packed.opened(path / FILE)) as file:
        names = [name for name in file.schema_arrow.names if not name.startswith("histogram_")]
        return file.read(columns=names)


def fingerprint(table: pa.Table) -> str:
    """Returns the plate's fingerprint."""
    return str(table.schema.metadata[b"fingerprint"].decode())


def fields(table: pa.Table) -> tuple[Field, ...]:
    """Returns the fields, in the order of the rows."""
    key = ["well", "name", "acquisition"]
    facts = table.select([*key, "shape", "dtype", "position_um", "z_um", "details"]).to_pylist()
    # Hundreds of thousands of fields may be open at once, and most of what they say is the same.
    details = lru_cache(None)(json.loads)
    return tuple(
        metadata.field_from(
            fact
            | {"key": {part: fact[part] for part in key}, "dtype": sys.intern(fact["dtype"])}
            | {"details": details(fact["details"])}
        )
        for fact in facts
    )


def histogram(path: Path, rows: list[int], dtype: str, channel: int) -> Histogram:
    """Returns counts of one channel over these rows, all of one dtype."""
    lists = _histograms_of(path, channel, packed.written_at(path / FILE))
    ends, counts = _numbers(lists.offsets), _numbers(lists.values)
    total = np.zeros(len(edges(dtype)) - 1, np.int64)
    for row in rows:
        if ends[row] < ends[row + 1]:
            total += counts[ends[row] : ends[row + 1]]
    return Histogram(dtype, total)


def _numbers(array: pa.Array) -> NDArray[Any]:
    # By the buffer protocol, because `to_numpy` imports pandas, which takes a second.
    numbers: NDArray[Any] = np.from_dlpack(array)
    return numbers


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    # `flatten` would import pyarrow.compute, which takes longer than all the rest.
    lists = column.combine_chunks()
    starts = _numbers(lists.offsets)
    return _numbers(lists.values)[starts[0] : starts[-1]]


@lru_cache(maxsize=4)  # fields are asked for one by one
def _histograms_of(path: Path, channel: int, written: int) -> pa.ListArray:
    """Returns a channel's histograms of all fields, of the file written at this time."""
    column = f"histogram_{channel}"
    with pq.ParquetFile(packed.opened(path / FILE)) as file:
        if column not in file.schema_arrow.names:
            raise UserError(f"{path}: channel {channel} holds no pixels")
        return file.read(columns=[column])[column].combine_chunks()


@dataclass(frozen=True, eq=False)
class Statistics(Mapping[FieldKey, FieldStatistics]):
    """Statistics held as columns: those of a field are made, and its histograms read, on demand."""

    path: Path
    rows: Mapping[FieldKey, int]
    dtypes: list[str]
    ends: NDArray[np.int64]
    places: NDArray[np.int64]
    facts: NDArray[np.float64]
    flags: list[list[str]]
    digests: list[str]

    @classmethod
    def of(cls, path: Path, fields: tuple[Field, ...], table: pa.Table) -> Statistics:
        """Returns the statistics in the table of the plate at `path`, whose rows are these fields."""
        starts = _numbers(table["time"].combine_chunks().offsets).astype(np.int64)
        return cls(
            path, {field.key: row for row, field in enumerate(fields)}, [field.dtype for field in fields],
            starts[1:] - starts[0],
            np.stack([_flat(table[part]) for part in ("time", "channel", "plane")], axis=1),
            np.stack([_flat(table[fact]) for fact in FACTS], axis=1),
            table["flags"].to_pylist(), table["digest"].to_pylist(),
        )  # fmt: skip

    def __getitem__(self, key: FieldKey) -> FieldStatistics:
        row = self.rows[key]
        part = self._part(row)
        places, facts = self.places[part].tolist(), self.facts[part].tolist()
        planes = {(t, c, z): PlaneStatistics(*fact) for (t, c, z), fact in zip(places, facts, strict=True)}
        channels = sorted({channel for _, channel, _ in planes})
        histograms = _Histograms(self.path, row, self.dtypes[row], channels)
        return FieldStatistics(planes, histograms, tuple(self.flags[row]), self.digests[row])

    def imaged(self, key: FieldKey) -> NDArray[np.int64]:
        """Returns the planes of a field that were imaged: rows of time, channel and plane."""
        return self.places[self._part(self.rows[key])]

    def focus(self, key: FieldKey) -> NDArray[np.float64]:
        """Returns how sharp each plane of `imaged` is."""
        return self.facts[self._part(self.rows[key]), FACTS.index("focus")]

    def digest(self, key: FieldKey) -> str:
        """Returns the hash of a field's pixels."""
        return self.digests[self.rows[key]]

    def _part(self, row: int) -> slice:
        return slice(self.ends[row - 1] if row else 0, self.ends[row])

    def __contains__(self, key: object) -> bool:
        return key in self.rows  # that of a Mapping would make the statistics of the field

    def __iter__(self) -> Iterator[FieldKey]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class _Histograms(Mapping[int, Histogram]):
    """The histograms of one field, read from the index on demand."""

    path: Path
    row: int
    dtype: str
    channels: list[int]

    def __getitem__(self, channel: int) -> Histogram:
        if channel not in self.channels:
            raise KeyError(channel)
        return histogram(self.path, [self.row], self.dtype, channel)

    def __iter__(self) -> Iterator[int]:
        return iter(self.channels)

    def __len__(self) -> int:
        return len(self.channels)
