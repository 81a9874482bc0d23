"""What segmenting has left on disk, read back with zarr-python and plain bytes, for runs to be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zarr
from field_files import records

UNFINISHED = (".partial", ".replaced-")  # what marks a file or folder that is still being written
Left = dict[str, str]
"""What it is -> a hash of its content."""


def left_by(run: Path, plates: Sequence[Path], labels: str = "found") -> Left:
    """The hashes that the records hold, of all labels as they lie on disk, and of the bytes of the tables."""
    found: Left = {}
    for name, record in records(run).items():
        found[f"record {name}"] = record.get("hash", "lost")
    for plate in plates:
        found |= {f"labels {plate.stem} {field}": content for field, content in _labels(plate, labels)}
    for path in [*sorted(run.glob("tables/*.parquet")), run / "wells.csv"]:
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differing(one: Left, other: Left) -> list[str]:
    """Names of what is not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def unfinished(*folders: Path) -> list[str]:
    """All files and folders, however deep, that were never given their name."""
    return sorted(
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if any(m in path.name for m in UNFINISHED)
    )


def read_every_array(plate: Path) -> int:
    """Decodes all images and labels of a plate, at all levels; how many arrays there are."""
    arrays = [path.parent for path in plate.rglob("zarr.json") if _is_array(path)]
    for path in arrays:
        assert np.asarray(zarr.open_array(path, mode="r")[...]).size
    return len(arrays)


def _is_array(path: Path) -> bool:
    return bool(json.loads(path.read_text())["node_type"] == "array")


def _labels(plate: Path, name: str) -> Iterator[tuple[str, str]]:
    """Of each image that has these labels: its place on the plate, and a hash of all their levels."""
    for folder in sorted(plate.glob(f"*/*/*/labels/{name}")):
        content = hashlib.sha256()
        for level in sorted(path for path in folder.iterdir() if path.name.isdigit()):
            content.update(np.ascontiguousarray(zarr.open_array(level, mode="r")[...]).tobytes())
        yield str(folder.parents[1].relative_to(plate)), content.hexdigest()
