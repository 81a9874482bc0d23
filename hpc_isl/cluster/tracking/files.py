"""The files of a run folder that MLflow gets a copy of, and which of them have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hpc_isl.run import Run

NAMES = ("recipe.yaml", "site.yaml", "record.json", "elements.json", "code.diff", "split.csv")
TABLES = ("boxes.csv", "scores.csv")
PAGES = ("html", "png", "csv")


def files(run: Run) -> list[Path]:
    """Recipe, records, tables, pictures, and the report of an array."""
    pages = [path for kind in PAGES for path in run.folder.glob(f"report/**/*.{kind}")]
    paths = [
        *(run.folder / name for name in NAMES + TABLES),
        *sorted(run.pictures.glob("*.png")),
        *sorted(pages),
    ]
    return [path for path in paths if path.is_file()]


def stamp(path: Path) -> list[int]:
    """When the file was written, and its size."""
    return [path.stat().st_mtime_ns, path.stat().st_size]


def changed(run: Run, sent: Mapping[str, list[int]]) -> list[Path]:
    """Those that are new, or are not as they were when they were sent."""
    return [path for path in files(run) if sent.get(str(path.relative_to(run.folder))) != stamp(path)]
