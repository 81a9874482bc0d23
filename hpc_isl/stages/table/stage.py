"""The verb `table`: the results of a run of segment as one table of all its plates, and as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from hpc_isl.errors import UserError, nearest
from hpc_isl.run import Run
from hpc_isl.stages.table import plate_maps, rows
from hpc_isl.stages.table.rows import BY, rows_of
from hpc_isl.stages.table.segmented_plates import SegmentedPlate, read_plates, segmented_plates

PER = (*BY, "object")


@dataclass(frozen=True)
class TableFiles:
    """The first line that `table` prints, and the files it wrote: what each is -> its path."""

    headline: str
    made: Mapping[str, Path]


def table(
    run: Run, out: Path | None = None, per: str = "well", heat_maps: Sequence[str] | None = None
) -> TableFiles:
    """Writes the table, and heat maps of all plates into `pictures/` of the run.

    Args:
        out: a file, .csv or .parquet; None: `wells.csv`, `objects.csv`, … in the run folder.
        per: well, field, plate, or object.
        heat_maps: count, a column of the table of wells that holds numbers, or a feature of objects, whose
            median is shown; None: count, and confluence of cells.

    Raises:
        UserError: the run is none of segment, or not done; no such per, ending or column.
    """
    _check_per(per)
    path = rows.check_path(out or run.folder / f"{per}s.csv")
    return _write(run, segmented_plates(run), path, per, heat_maps)


def after_segmenting(run: Run) -> dict[str, Path]:
    """Writes the table of wells and its heat maps as segmenting ends; returns what each is -> its path."""
    return dict(_write(run, read_plates(run), run.folder / "wells.csv", "well", None).made)


def data_frame(run: Run, per: str = "well") -> pd.DataFrame:
    """Returns the table instead of writing it; all objects of a run must fit into memory.

    Raises:
        UserError: as `table` does.
    """
    _check_per(per)
    plates = segmented_plates(run)
    if per != "object":
        return rows_of(plates, per)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "objects.parquet"
        rows.write_objects(path, plates)
        return pd.read_parquet(path)


def _check_per(per: str) -> None:
    if per not in PER:
        raise UserError(f"per={per}: no such table; {nearest(per, PER)}")


def _write(
    run: Run, plates: Sequence[SegmentedPlate], path: Path, per: str, heat_maps: Sequence[str] | None
) -> TableFiles:
    wells = rows_of(plates, "well")
    columns = plate_maps.columns_of(heat_maps, wells)
    if per == "object":
        count = rows.write_objects(path, plates)
    else:
        count = rows.write_rows(path, wells if per == "well" else rows_of(plates, per))
    headline = _headline(plates, wells)
    pictures = plate_maps.draw(run, plates, wells, columns, f"{headline}.")
    return TableFiles(headline, {f"table of {_plural(count, per)}": path, **pictures})


def _headline(plates: Sequence[SegmentedPlate], wells: pd.DataFrame) -> str:
    """Returns `2 plates, 120 wells, 480 fields, 3 of them failed, 51,234 objects`."""
    images = pd.concat([plate.images.assign(plate=plate.name) for plate in plates])
    field = ["plate", "well", "field", "acquisition"]
    fields = len(images.drop_duplicates(field))
    # A field that failed at some times alone is none of the failed fields.
    failed = fields - len(images[images.problem == ""].drop_duplicates(field))
    objects = int(wells.objects.sum())
    return (
        f"{_plural(len(plates), 'plate')}, {_plural(len(wells.drop_duplicates(['plate', 'well'])), 'well')}, "
        f"{_plural(fields, 'field')}{f', {failed:,} of them failed' if failed else ''}, "
        f"{_plural(objects, 'object')}"
    )


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
