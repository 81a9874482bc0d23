"""What a run of segment says of each field, and a finished run as earlier versions left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def records(run: Path) -> dict[str, dict[str, Any]]:
    """`S1 B03-1` -> record: read as lines and files, whichever of them there are, each field once."""
    found: dict[str, dict[str, Any]] = {}
    for path in run.glob("fields/*.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()):
            name = f"{path.stem} {_file(record)}"
            assert name not in found
            found[name] = record
    found |= {f"{p.parent.name} {p.stem}": json.loads(p.read_text()) for p in run.glob("fields/*/*.json")}
    return dict(sorted(found.items()))


def spread(run: Path) -> None:
    """Gives each field a record and a table of its own again, as runs of earlier versions have when done."""
    for path in run.glob("fields/*.jsonl"):
        table = pq.read_table(run / "tables" / f"{path.stem}.parquet").drop_columns("duplicate_of")
        for record in map(json.loads, path.read_text().splitlines()):
            own = run / "fields" / path.stem / f"{_file(record)}.json"
            own.parent.mkdir(exist_ok=True)
            own.write_text(json.dumps(record, indent=1))
            if "problem" not in record:
                _write(run / "objects" / path.stem / f"{_file(record)}.parquet", _objects(table, record))
        _write(run / "objects" / "_common_metadata", table.schema.empty_table())
        path.unlink()


def _objects(table: pa.Table, record: dict[str, Any]) -> pa.Table:
    same = [pc.equal(table[name], record[name]) for name in ("well", "field", "acquisition")]
    return table.filter(pc.and_(pc.and_(same[0], same[1]), same[2]))


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def _file(record: dict[str, Any]) -> str:
    acquisition = f"{record['acquisition']}x" if record["acquisition"] else ""
    return f"{record['well']}-{acquisition}{record['field']}"
