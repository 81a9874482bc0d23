"""The one-file index of a plate: what a run needs to know of thousands of fields without opening them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from dataclasses import field as member
from dataclasses import fields as members
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates import metadata
from hpc_isl.plates.plate import Field, FieldKey, Plate, well_position
from hpc_isl.plates.statistics import FieldStatistics, Histogram, PlaneStatistics, edges, from_dict
from hpc_isl.run import write_atomic

PlateMap = Mapping[str, Mapping[str, str]]
Problems = tuple[tuple[FieldKey, str], ...]
FACTS = tuple(fact.name for fact in members(PlaneStatistics))
FILE = "index/fields.parquet"
# A field is out of focus in a channel where its sharpest plane scores below half of the plate's
# median, and below it by this many robust standard deviations of the logarithm.
FOCUS_DEVIATIONS = 4.0
FOCUS_FIELDS = 8


@dataclass(frozen=True)
class Index:
    """A plate as it lies on disk.

    Attributes:
        fingerprint: hash of pixels, channel names and positions; the same wherever the plate lies.
        plate_map: well -> column -> value.
        statistics: of each field, as measured at conversion.
        problems: fields that were left out, and why.
        depth: number of pyramid levels of each field.
    """

    path: Path
    plate: Plate
    fingerprint: str
    plate_map: PlateMap
    statistics: Mapping[FieldKey, FieldStatistics]
    problems: Problems
    depth: Mapping[FieldKey, int]
    _rows: Mapping[FieldKey, int] = member(repr=False, compare=False)

    def image(self, key: FieldKey) -> Path:
        """The folder of a field's image."""
        return image_path(self.path, self.plate, key)

    def field(self, key: FieldKey) -> Field:
        if key not in self._rows:
            raise Mistake(f"{self.path}: has no field {key}; {nearest(key, self._rows)}")
        return self.plate.fields[self._rows[key]]

    def channel(self, name: str) -> int:
        """The number of a channel."""
        names = [channel.name for channel in self.plate.channels]
        if name not in names:
            raise Mistake(f"{self.path}: has no channel {name!r}; {nearest(name, names)}")
        return names.index(name)

    def levels(self, key: FieldKey) -> int:
        """Number of pyramid levels of a field's image."""
        return self.depth[self.field(key).key]

    def histogram(self, keys: Iterable[FieldKey], channel: int) -> Histogram:
        """Counts of one channel over all planes and times of these fields."""
        wanted = list(keys)
        kinds = sorted({self.field(key).dtype for key in wanted})
        if len(kinds) != 1:
            raise Mistake(f"{self.path}: there is no one histogram for fields of the types {kinds}")
        return _histogram(self.path, [self._rows[key] for key in wanted], kinds[0], channel)


def image_path(path: Path, plate: Plate, key: FieldKey) -> Path:
    return path.joinpath(*metadata.place(plate, key.well), key.image)


# ---------------------------------------------------------------- finish and open


def finalise(path: Path, plate: Plate, plate_map: PlateMap, problems: Problems = ()) -> Index:
    """Makes written images a plate: well and row groups, then the index, then the plate's own group.

    The plate's `zarr.json` comes last: a folder without one is an unfinished conversion.
    """
    from hpc_isl.plates import ngff

    plate = replace(plate, fields=tuple(sorted(plate.fields, key=_order)))
    if not plate.fields:
        raise Mistake(f"{path}: no field was written, so there is no plate to finish")
    for well in plate.wells:
        row, column = metadata.place(plate, well)
        inside = [field for field in plate.fields if field.key.well == well]
        metadata.write_group(path / row / column, ngff.attributes(ngff.well_group(inside)))
        metadata.write_group(path / row)
    ours = {
        "plate": metadata.plate_facts(plate),
        "plate_map": {well: dict(columns) for well, columns in plate_map.items()},
        "problems": [[key.well, key.name, key.acquisition, text] for key, text in problems],
    }
    _write_index(path, _read_images(path, plate, [field.key for field in plate.fields]))
    metadata.write_group(path, ngff.attributes(ngff.plate_group(plate)), ours)
    return open_plate(path)


def open_plate(path: Path) -> Index:
    """The plate at `path`, from two files; an index that is not there is made anew from the images."""
    ours = _plate_attributes(path)
    try:
        return _index(path, ours, _read_table(path))
    except (OSError, pa.ArrowException):
        return rebuild_index(path)


def rebuild_index(path: Path) -> Index:
    """The plate at `path`, and its index file made anew from the images' own `zarr.json`."""
    ours = _plate_attributes(path)
    plate = metadata.plate_from(ours["plate"], ())
    keys = [key for well in _wells(path) for key in _keys_of_well(path / well)]
    _write_index(path, _read_images(path, plate, keys))
    return _index(path, ours, _read_table(path))


def _order(field: Field) -> tuple[tuple[int, int], int, int, str]:
    """Plate order; field names that are numbers sort as such."""
    name = field.key.name
    return well_position(field.key.well), field.key.acquisition, int(name) if name.isdigit() else 0, name


def _plate_attributes(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise Mistake(f"{path}: there is no such plate")
    if not (path / "zarr.json").exists():
        raise Mistake(f"{path}: holds no zarr.json: no plate, or a conversion that is not finished")
    attributes = metadata.read_group(path)
    if "hpc_isl" not in attributes or "plate" not in attributes.get("ome", {}):
        raise Mistake(f"{path}: is no plate that convert has written")
    return dict(attributes["hpc_isl"])


def _wells(path: Path) -> list[str]:
    return [well["path"] for well in metadata.read_group(path)["ome"]["plate"]["wells"]]


def _keys_of_well(folder: Path) -> list[FieldKey]:
    images = metadata.read_group(folder)["ome"]["well"]["images"]
    facts = [metadata.read_group(folder / image["path"])["hpc_isl"]["field"]["key"] for image in images]
    return [FieldKey(**fact) for fact in facts]


# ---------------------------------------------------------------- the file


def _read_images(path: Path, plate: Plate, keys: list[FieldKey]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda key: metadata.read_group(image_path(path, plate, key)), keys)
        return [attributes["hpc_isl"] for attributes in found]


def _write_index(path: Path, images: list[dict[str, Any]]) -> None:
    statistics = [from_dict(image["statistics"]) for image in images]
    blurred = _out_of_focus(statistics)
    rows = [_line(*each) for each in zip(images, statistics, blurred, strict=True)]
    table = pa.Table.from_pylist(rows, schema=_schema(rows))
    channels = [channel["name"] for channel in images[0]["plate"]["channels"]]
    fingerprint = _fingerprint(channels, images)
    stream = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"fingerprint": fingerprint}), stream, compression="zstd",
        use_dictionary=False,
    )  # fmt: skip
    metadata.write_group(path / "index", ours={"file": "fields.parquet"})
    write_atomic(path / FILE, stream.getvalue())


def _line(image: dict[str, Any], statistics: FieldStatistics, blurred: list[int]) -> dict[str, Any]:
    field = image["field"]
    keys = list(statistics.planes)
    facts = {name: [getattr(plane, name) for plane in statistics.planes.values()] for name in FACTS}
    return {
        **field["key"],
        "shape": field["shape"],
        "dtype": field["dtype"],
        "levels": image["levels"],
        "position_um": field["position_um"],
        "z_um": field["z_um"],
        "details": json.dumps(field["details"]),
        "digest": statistics.digest,
        "flags": [*statistics.flags, *(f"out of focus:{channel}" for channel in blurred)],
        **{part: [key[at] for key in keys] for at, part in enumerate(("time", "channel", "plane"))},
        **facts,
        **{f"histogram_{channel}": h.counts for channel, h in statistics.histograms.items()},
    }


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    numbers, floats, text = pa.list_(pa.int64()), pa.list_(pa.float64()), pa.string()
    histograms = sorted({name for row in rows for name in row if name.startswith("histogram_")})
    kinds = {
        "well": text, "name": text, "acquisition": pa.int64(), "shape": numbers, "dtype": text,
        "levels": pa.int64(), "position_um": floats, "z_um": floats, "details": text, "digest": text,
        "flags": pa.list_(text), "time": numbers, "channel": numbers, "plane": numbers,
    }  # fmt: skip
    return pa.schema(
        list((kinds | dict.fromkeys(FACTS, floats) | dict.fromkeys(histograms, numbers)).items())
    )


def _fingerprint(channels: list[str], images: list[dict[str, Any]]) -> str:
    fields = [
        [image["field"][fact] for fact in ("key", "shape", "dtype", "position_um", "z_um")]
        + [image["statistics"]["digest"]]
        for image in images
    ]
    ordered = sorted(json.dumps(field, sort_keys=True) for field in fields)
    return hashlib.sha256(json.dumps([channels, ordered]).encode()).hexdigest()[:16]


def _out_of_focus(statistics: list[FieldStatistics]) -> list[list[int]]:
    """For each field the channels in which it is blurred beside the plate's other fields."""
    blurred: list[list[int]] = [[] for _ in statistics]
    for channel in sorted({key[1] for field in statistics for key in field.planes}):
        scores = {
            at: max(plane.focus for key, plane in field.planes.items() if key[1] == channel)
            for at, field in enumerate(statistics)
            if channel in field.histograms and f"empty:{channel}" not in field.flags
        }
        logs = np.log([score for score in scores.values() if score > 0] or [1.0])
        if len(logs) < FOCUS_FIELDS:
            continue
        spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
        limit = np.exp(np.median(logs) - max(FOCUS_DEVIATIONS * spread, np.log(2)))
        for at, score in scores.items():
            if score < limit:
                blurred[at].append(channel)
    return blurred


def _read_table(path: Path) -> pa.Table:
    """All columns but the histograms, which are nearly all of the file."""
    with pq.ParquetFile(path / FILE) as file:
        names = [name for name in file.schema_arrow.names if not name.startswith("histogram_")]
        return file.read(columns=names)


def _histogram(path: Path, rows: list[int], dtype: str, channel: int) -> Histogram:
    lists = _histograms_of(path, channel, (path / FILE).stat().st_mtime_ns)
    ends, counts = _numbers(lists.offsets), _numbers(lists.values)
    total = np.zeros(len(edges(dtype)) - 1, np.int64)
    for row in rows:
        if ends[row] < ends[row + 1]:
            total += counts[ends[row] : ends[row + 1]]
    return Histogram(dtype, total)


def _numbers(array: pa.Array) -> NDArray[Any]:
    """By the buffer protocol, for `to_numpy` imports pandas, which takes a second."""
    numbers: NDArray[Any] = np.from_dlpack(array)
    return numbers


@lru_cache(maxsize=4)
def _histograms_of(path: Path, channel: int, written: int) -> pa.ListArray:
    """A channel's histograms of all fields, kept while fields are asked for one by one."""
    column = f"histogram_{channel}"
    with pq.ParquetFile(path / FILE) as file:
        if column not in file.schema_arrow.names:
            raise Mistake(f"{path}: channel {channel} holds no pixels")
        return file.read(columns=[column])[column].combine_chunks()


def _index(path: Path, ours: Mapping[str, Any], table: pa.Table) -> Index:
    facts = table.select(
        ["well", "name", "acquisition", "shape", "dtype", "position_um", "z_um", "details"]
    ).to_pylist()
    found = tuple(
        metadata.field_from(
            fact
            | {"key": {part: fact[part] for part in ("well", "name", "acquisition")}}
            | {"details": json.loads(fact["details"])}
        )
        for fact in facts
    )
    rows = {field.key: row for row, field in enumerate(found)}
    return Index(
        path=path,
        plate=metadata.plate_from(ours["plate"], found),
        fingerprint=table.schema.metadata[b"fingerprint"].decode(),
        plate_map=ours["plate_map"],
        statistics=_Statistics.of(path, rows, [field.dtype for field in found], table),
        problems=tuple((FieldKey(*key), text) for *key, text in ours["problems"]),
        depth=dict(zip(rows, table["levels"].to_pylist(), strict=True)),
        _rows=rows,
    )


@dataclass(frozen=True, eq=False)
class _Statistics(Mapping[FieldKey, FieldStatistics]):
    """Statistics held as columns; a field's are made when asked for, its histograms read when asked for."""

    path: Path
    rows: Mapping[FieldKey, int]
    dtypes: list[str]
    ends: NDArray[np.int64]
    places: NDArray[np.int64]
    facts: NDArray[np.float64]
    flags: list[list[str]]
    digests: list[str]

    @classmethod
    def of(cls, path: Path, rows: Mapping[FieldKey, int], dtypes: list[str], table: pa.Table) -> _Statistics:
        def flat(name: str) -> NDArray[Any]:
            return _numbers(table[name].combine_chunks().flatten())

        ends = np.cumsum(_numbers(table["time"].combine_chunks().value_lengths()))
        return cls(
            path, rows, dtypes, ends,
            np.stack([flat(part) for part in ("time", "channel", "plane")], axis=1),
            np.stack([flat(fact) for fact in FACTS], axis=1),
            table["flags"].to_pylist(), table["digest"].to_pylist(),
        )  # fmt: skip

    def __getitem__(self, key: FieldKey) -> FieldStatistics:
        row = self.rows[key]
        part = slice(self.ends[row - 1] if row else 0, self.ends[row])
        places, facts = self.places[part].tolist(), self.facts[part].tolist()
        planes = {(t, c, z): PlaneStatistics(*fact) for (t, c, z), fact in zip(places, facts, strict=True)}
        channels = sorted({channel for _, channel, _ in planes})
        histograms = _Histograms(self.path, row, self.dtypes[row], channels)
        return FieldStatistics(planes, histograms, tuple(self.flags[row]), self.digests[row])

    def __iter__(self) -> Iterator[FieldKey]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class _Histograms(Mapping[int, Histogram]):
    """The histograms of one field, read from the index when asked for."""

    path: Path
    row: int
    dtype: str
    channels: list[int]

    def __getitem__(self, channel: int) -> Histogram:
        if channel not in self.channels:
            raise KeyError(channel)
        return _histogram(self.path, [self.row], self.dtype, channel)

    def __iter__(self) -> Iterator[int]:
        return iter(self.channels)

    def __len__(self) -> int:
        return len(self.channels)
