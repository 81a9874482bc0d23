"""The records of the fields of a segmentation: a file for each while it computes, then one for each plate.

A field's own file counts before its line in the plate's file: it was written later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_isl.files import read_json
from hpc_isl.plates.plate import FieldKey

FOLDER = "fields"  # of the run folder


def plate_file(run: Path, slug: str) -> Path:
    """Returns the file of all records of a plate: a line of JSON for each field, in plate order."""
    return run / FOLDER / f"{slug}.jsonl"


def own_file(run: Path, slug: str, key: FieldKey) -> Path:
    """Returns the file of one record."""
    return run / FOLDER / slug / f"{key.well}-{key.image}.json"


def gathered_records(run: Path, slug: str) -> dict[str, dict[str, Any]]:
    """Returns `B03-1` -> the record of that field, of those in the plate's file."""
    try:
        lines = plate_file(run, slug).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {_name(record): record for record in map(json.loads, lines)}


def read_records(run: Path, slug: str) -> dict[str, dict[str, Any]]:
    """Returns `B03-1` -> the record of that field, of all fields of a plate that have one."""
    own_records, folder = {}, run / FOLDER / slug
    # These first: what is gathered meanwhile is then found in the plate's file, which is written before.
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if name.endswith(".json") and (record := read_json(folder / name)) is not None:
                own_records[name.removesuffix(".json")] = record
    return gathered_records(run, slug) | own_records


def read_record(run: Path, slug: str, key: FieldKey) -> dict[str, Any] | None:
    """Returns the record of one field; None where it has none."""
    record = read_json(path := own_file(run, slug, key))
    return gathered_records(run, slug).get(path.stem) if record is None else record


def _name(record: Mapping[str, Any]) -> str:
    key = FieldKey(record["well"], record["field"], record["acquisition"])
    return f"{key.well}-{key.image}"
