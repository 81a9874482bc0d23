"""A run of segment as it leaves its folder; objects are a seeded generator's, measured as the stage does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.ndimage import gaussian_filter, label

from hpc_isl.objects.features import features
from hpc_isl.plates.label_groups import slug
from hpc_isl.plates.plate import layout, well_name, well_position
from hpc_isl.run import Run
from hpc_isl.seeds import stream


@dataclass(frozen=True)
class MadeUp:
    """One plate.

    Attributes:
        lost: (well, field) -> why.
        twice: (well, field, label) -> key of the object that it is again.
        empty: wells without objects.
        truth: wells whose fields have a true count.
    """

    name: str = "P01"
    wells: Sequence[str] = ("B02", "B03", "C02", "C03")
    fields: Sequence[str] = ("1", "2")
    shape: tuple[int, int] = (96, 120)
    pixel_um: float | None = 0.5
    times: int = 1
    acquisitions: Sequence[int] = (0,)
    channels: Sequence[str] = ("DAPI",)
    plate_map: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lost: Mapping[tuple[str, str], str] = field(default_factory=dict)
    twice: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    empty: Sequence[str] = ()
    truth: Sequence[str] = ()
    wells_on_plate: int = 96


def made_up_segmentation(root: Path, plates: Sequence[MadeUp], name: str = "nuc-P") -> Run:
    """`runs/segment/<name>` below `root`."""
    run = Run(root / "runs" / "segment" / name)
    run.folder.mkdir(parents=True)
    run.recipe.write_text("model: nuc\nplates: [P]\n")
    for plate in plates:
        _write(run, plate)
    (run.folder / "plates.json").write_text(json.dumps([_facts(plate) for plate in plates]))
    lost = [(plate.name, *key, why) for plate in plates for key, why in plate.lost.items()]
    lines = ["plate,well,field,acquisition,problem", *(f"{p},{w},{f},0,{why}" for p, w, f, why in lost)]
    (run.folder / "losses.csv").write_text("\n".join(lines) + "\n")
    run.done.mkdir()
    (run.done / "segment.json").write_text("{}")
    return run


def _facts(plate: MadeUp) -> dict[str, Any]:
    rows, columns = layout(set(plate.wells), plate.wells_on_plate)
    return {
        "plate": plate.name, "slug": slug(plate.name), "path": f"/data/{plate.name}.zarr", "rows": rows,
        "columns": columns, "pixel_um": plate.pixel_um, "plate_map": plate.plate_map,
    }  # fmt: skip


def _write(run: Run, plate: MadeUp) -> None:
    tables = []
    for well, name, acquisition in _fields(plate):
        file = f"{well}-{f'{acquisition}x' if acquisition else ''}{name}"
        record = {
            "plate": plate.name,
            "well": well,
            "field": name,
            "acquisition": acquisition,
            "fingerprint": "f",
        }
        if (well, name) in plate.lost:
            record["problem"] = plate.lost[well, name]
        else:
            table = pa.concat_tables([objects(plate, well, name, acquisition, t) for t in range(plate.times)])
            _parquet(run.folder / "objects" / slug(plate.name) / f"{file}.parquet", table)
            tables.append(_with_duplicates(plate, well, name, table))
            record |= _counts(plate, well, table)
        path = run.folder / "fields" / slug(plate.name) / f"{file}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    if tables:
        _parquet(run.folder / "tables" / f"{slug(plate.name)}.parquet", pa.concat_tables(tables))


def _fields(plate: MadeUp) -> Iterator[tuple[str, str, int]]:
    for well in sorted(plate.wells, key=well_position):
        for name in plate.fields:
            for acquisition in plate.acquisitions:
                yield well, name, acquisition


def labels_of(plate: MadeUp, well: str, name: str, acquisition: int = 0, time: int = 0) -> Any:
    """The more objects the further right on the plate."""
    row, column = well_position(well)
    noise = gaussian_filter(
        stream(3, plate.name, well, name, acquisition, time).standard_normal(plate.shape), 3
    )
    threshold = 1.6 - 1.1 * column / 12 + 0.02 * row
    labels = label(noise > threshold * noise.std())[0].astype(np.uint32)
    return np.zeros_like(labels) if well in plate.empty else labels


def objects(plate: MadeUp, well: str, name: str, acquisition: int = 0, time: int = 0) -> pa.Table:
    labels = labels_of(plate, well, name, acquisition, time)
    rng = stream(4, plate.name, well, name)
    counts = {one: rng.integers(200, 4000, labels.shape).astype(np.uint16) for one in plate.channels}
    found = features(labels, counts, plate.pixel_um)
    count = len(found["label"])
    where = {
        "plate": pa.array([plate.name] * count, pa.string()), "well": pa.array([well] * count, pa.string()),
        "field": pa.array([name] * count, pa.string()),
        "acquisition": pa.array(np.full(count, acquisition, np.int32)),
        "time": pa.array(np.full(count, time, np.int32)),
    }  # fmt: skip
    return pa.table(where | {key: pa.array(column) for key, column in found.items()})


def _with_duplicates(plate: MadeUp, well: str, name: str, table: pa.Table) -> pa.Table:
    names = [plate.twice.get((well, name, one)) for one in table["label"].to_pylist()]
    return table.append_column("duplicate_of", pa.array(names, pa.string()))


def _counts(plate: MadeUp, well: str, table: pa.Table) -> dict[str, Any]:
    area = table["area_um2" if plate.pixel_um else "area_px"].to_numpy().sum() / (plate.pixel_um or 1) ** 2
    facts = {"shape": plate.shape, "pixel_um": plate.pixel_um, "objects": table.num_rows, "area": round(area)}
    if well in plate.truth:
        counts = [int(np.sum(table["time"].to_numpy() == time)) for time in range(plate.times)]
        facts["truth"] = [count + well_position(well)[1] % 3 for count in counts]
    return {**facts, "hash": "h", "seconds": 1.5}


def _parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def many_wells(rows: int, columns: int) -> list[str]:
    """All wells but those of the outermost rows and columns, which assays leave empty."""
    return [well_name(y, x) for y in range(1, rows - 1) for x in range(1, columns - 1)]
