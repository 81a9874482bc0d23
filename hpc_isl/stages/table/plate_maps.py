"""The pictures of the verb `table`: heat maps of all plates for each column asked for, and a page of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import write_atomic
from hpc_isl.plates.label_groups import slug
from hpc_isl.run import Run
from hpc_isl.stages.table.html import HeatMap, written
from hpc_isl.stages.table.pictures import Map, agreement_text, draw_plates, scatter, taught_note
from hpc_isl.stages.table.read import Segmented
from hpc_isl.stages.table.rows import MEDIAN, OURS, Row

COUNT = "objects"
USUAL = (COUNT, "confluence")
MOST_MAPS = 24  # plates, or times of plates, in one picture
UNITS = {
    "_um2": "µm²", "_um": "µm", "_px": "pixels", "_mean": "counts", "_sd": "counts", "_min": "counts",
    "_max": "counts", "_sum": "counts", "_mm2": "objects / mm²",
}  # fmt: skip
ABOUT = {
    "dropped_objects": "Objects that were too small to count, by the model's min_area.",
    COUNT: "Objects in all fields of each well that are not lost; those that two overlapping fields show "
    "count once, where labels are kept.",
    "confluence": "Share of the imaged area that objects cover.",
    "objects_per_mm2": "Objects per imaged area.",
}


def columns_of(asked: Sequence[str] | None, wells: Sequence[Row]) -> list[str]:
    """The columns of the table of wells that are meant; None: the usual ones.

    Raises:
        UserError: there is none of such a name that holds numbers.
    """
    numbers = [name for name in (wells[0] if wells else {}) if _is_number(name, wells)]
    if asked is None:
        return [name for name in USUAL if name in numbers]
    return [_column(name, numbers) for name in asked]


def _column(name: str, numbers: Sequence[str]) -> str:
    for column in (COUNT if name == "count" else name, MEDIAN + name):
        if column in numbers:
            return column
    legal = ["count", *(column.removeprefix(MEDIAN) for column in numbers)]
    raise UserError(f"heatmap={name}: no such column of numbers; {nearest(name, legal)}")


def _is_number(name: str, wells: Sequence[Row]) -> bool:
    """Whether a column holds numbers alone, or a plate map's words that are numbers."""
    known = [row[name] for row in wells if row[name] is not None]
    place = name in ("plate", "well", "time", "acquisition")
    return not place and bool(known) and not any(math.isnan(_number(value)) for value in known)


def _number(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except ValueError:
        return math.nan


# ---------------------------------------------------------------- all figures


def draw(
    run: Run, plates: Sequence[Segmented], wells: Sequence[Row], columns: Sequence[str], headline: str
) -> dict[str, Path]:
    """PNGs and the page, in `pictures/` of the run; what it is -> where it lies."""
    groups = _groups(wells)
    shown = [
        HeatMap(_title(column), _about(column), unit_of(column), _maps(plates, groups, column))
        for column in columns
    ]
    made: dict[str, Path] = {}
    all_of_them = len(_all_groups(wells))
    for column, one in zip(columns, shown, strict=True):
        path = run.pictures / f"plates-{'count' if column == COUNT else slug(column)}.png"
        draw_plates(one.maps, one.title, one.unit, path)
        made[f"plates, {'count' if column == COUNT else column}"] = path
    against, lines = _against(run, wells), [headline]
    if len(groups) < all_of_them:
        lines.append(f"{len(groups)} of {all_of_them} plates (or times of plates) are shown, spread evenly.")
    if against is not None:
        made["counts against the truth"] = against[0]
        lines.append(f"Held against the truth: {against[1]}.")
    page = run.pictures / "plates.html"
    hover = [_hover(rows, columns) for rows in groups.values()]
    picture = None if against is None else (against[0].read_bytes(), against[1])
    write_atomic(page, written(run.label, lines, shown, hover, picture), durable=False)
    _forget(run.pictures, made.values())
    return {"plates, to look at": page, **made}


def _groups(wells: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each plate, acquisition and time; where these are many, of some spread evenly."""
    groups = _all_groups(wells)
    chosen = np.linspace(0, len(groups) - 1, min(len(groups), MOST_MAPS)).round().astype(int)
    names = list(groups)
    return {names[place]: groups[names[place]] for place in chosen}


def _all_groups(wells: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in wells:
        parts = [f"{name} {row[name]}" for name in ("acquisition", "time") if name in row]
        groups.setdefault((row["plate"], ", ".join([row["plate"], *parts])), []).append(row)
    return groups


def _maps(
    plates: Sequence[Segmented], groups: Mapping[tuple[str, str], Sequence[Row]], column: str
) -> list[Map]:
    known = {plate.name: plate for plate in plates}
    return [
        Map(
            title,
            known[plate].rows,
            known[plate].columns,
            {row["well"]: _number(row[column]) for row in rows},
            {row["well"] for row in rows if row["fields"] and row["lost_fields"]},
        )
        for (plate, title), rows in groups.items()
    ]


def _against(run: Run, wells: Sequence[Row]) -> tuple[Path, str] | None:
    """Counts of wells against the true ones: the picture, and its figures in words."""
    known = [row for row in wells if row.get("truth_objects") is not None]
    if not known:
        return None
    pairs = [(float(row["objects_in_truth_fields"]), float(row["truth_objects"])) for row in known]
    taught = [bool(row.get("training_fields")) for row in known]
    path = run.pictures / "counts.png"
    found = scatter(pairs, path, run.label, taught)
    return path, "; ".join(filter(None, [agreement_text(found), taught_note(taught)]))


def _forget(folder: Path, made: Sequence[Path] | Any) -> None:
    """Heat maps of an earlier call: the run may have gone on since."""
    for path in set(folder.glob("plates-*.png")) - set(made):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- words


def _title(column: str) -> str:
    if column == COUNT:
        return "Objects per well"
    if column.startswith(MEDIAN):
        return f"Median {column.removeprefix(MEDIAN)} of each well"
    return f"{column[0].upper()}{column[1:]} of each well".replace("_", " ") if column in OURS else column


def _about(column: str) -> str:
    if column.startswith(MEDIAN):
        return f"Median of {column.removeprefix(MEDIAN)} over all objects of a well."
    return ABOUT.get(column, f"{column}, as the table of wells has it.")


def unit_of(column: str) -> str:
    """Empty where it has none."""
    if column in (COUNT, "truth_objects", "objects_in_truth_fields", "dropped_objects"):
        return "objects"
    if column == "confluence":
        return "share of the area"
    return next((unit for end, unit in UNITS.items() if column.endswith(end)), "")


def _hover(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, str]:
    """What is told of each well: what the plate map says, its counts, and the medians that are drawn."""
    names = [name for name in (rows[0] if rows else {}) if not name.startswith(MEDIAN) or name in columns]
    return {row["well"]: "\n".join([row["well"], *_told(row, names[2:])]) for row in rows}


def _told(row: Row, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        value = row[name]
        if isinstance(value, (int, float)):
            value = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        if value is not None:
            yield f"{name}: {value}"
