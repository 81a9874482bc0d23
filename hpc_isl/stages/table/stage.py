"""The verb `table`: what a run of segment has found, as one table of all its plates, and as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.run import Run
from hpc_isl.stages.table import plate_maps, write
from hpc_isl.stages.table.read import Segmented, check_done, segmented
from hpc_isl.stages.table.rows import BY, Row, rows_of

PER = (*BY, "object")


@dataclass(frozen=True)
class Made:
    """What `table` says first, and what it has written: what it is -> where it lies."""

    headline: str
    made: Mapping[str, Path]


def table(
    run: Run, out: Path | None = None, per: str = "well", heat_maps: Sequence[str] | None = None
) -> Made:
    """Writes the table, and heat maps of all plates into `pictures/` of the run.

    Args:
        out: a file, .csv or .parquet; None: `wells.csv`, `objects.csv`, … in the run folder.
        per: well, field, plate, or object.
        heat_maps: count, a column of the table of wells that holds numbers, or a feature of objects, whose
            median is shown; None: count, and confluence of cells.

    Raises:
        UserError: the run is none of segment, or not done; no such per, ending or column.
    """
    if per not in PER:
        raise UserError(f"per={per}: no such table; {nearest(per, PER)}")
    path = write.checked(out or run.folder / f"{per}s.csv")
    check_done(run)
    return _written(run, path, per, heat_maps)


def after_segmenting(run: Run) -> dict[str, Path]:
    """The table of wells and its heat maps, as segmenting ends: what it is -> where it lies."""
    return dict(_written(run, run.folder / "wells.csv", "well", None).made)


def _written(run: Run, path: Path, per: str, heat_maps: Sequence[str] | None) -> Made:
    plates = segmented(run)
    wells = rows_of(plates, "well")
    columns = plate_maps.columns_of(heat_maps, wells)
    if per == "object":
        count = write.write_objects(path, plates)
    else:
        count = write.write_rows(path, wells if per == "well" else rows_of(plates, per))
    headline = _headline(plates, wells)
    pictures = plate_maps.draw(run, plates, wells, columns, f"{headline}.")
    return Made(headline, {f"table of {_many(count, per)}": path, **pictures})


def _headline(plates: Sequence[Segmented], wells: Sequence[Row]) -> str:
    """`2 plates, 120 wells, 480 fields, 3 of them lost, 51,234 objects`."""
    whole = {(shot.key[:3], plate.name) for plate in plates for shot in plate.shots if not shot.problem}
    fields = {(shot.key[:3], plate.name) for plate in plates for shot in plate.shots}
    lost = f", {len(fields) - len(whole):,} of them lost" if len(fields) > len(whole) else ""
    objects = sum(row["objects"] or 0 for row in wells)
    imaged = len({(row["plate"], row["well"]) for row in wells})
    return (
        f"{_many(len(plates), 'plate')}, {_many(imaged, 'well')}, {_many(len(fields), 'field')}{lost}, "
        f"{_many(objects, 'object')}"
    )


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
