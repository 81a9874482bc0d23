"""Pictures of a run: heat maps of plates for each column asked for, and counts against known ones."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.files import write_atomic
from hpc_isl.plates.label_groups import slug
from hpc_isl.run import Run
from hpc_isl.seeds import evenly_spread
from hpc_isl.stages.shared.heat_maps import HeatMap, PlateValues, draw_plates, page_of
from hpc_isl.stages.shared.pictures import DPI, INK, Html, save
from hpc_isl.stages.table.segmented_plates import BESIDE, MEDIAN, OURS, SegmentedPlate

COUNT = "objects"
PER_FIELD = "objects_per_field"
USUAL = ("confluence",)
MOST_MAPS = 24  # plates, or times of plates, in one picture
UNITS = {
    "_um2": "µm²", "_um": "µm", "_px": "pixels", "_mean": "counts", "_sd": "counts", "_min": "counts",
    "_max": "counts", "_sum": "counts", "_mm2": "objects / mm²",
}  # fmt: skip
ABOUT = {
    "dropped_objects": "Objects that were too small to count, by the model's min_area.",
    COUNT: "Objects in all fields of each well that did not fail; those that two overlapping fields show "
    "count once, where labels are kept.",
    PER_FIELD: "Objects per field that is kept.",
    "confluence": "Share of the imaged area that objects cover.",
    "objects_per_mm2": "Objects per imaged area.",
}


def columns_of(names: Sequence[str] | None, wells: pd.DataFrame) -> list[str]:
    """Returns the columns of the table of wells that are meant; None: the usual ones.

    Raises:
        UserError: no column of numbers has such a name.
    """
    numbers = [str(name) for name in wells if _holds_numbers(wells[name])]
    # Totals of wells that lack fields cannot be compared.
    count = PER_FIELD if PER_FIELD in numbers else COUNT
    if names is None:
        return [name for name in (count, *USUAL) if name in numbers]
    columns = []
    for name in names:
        candidates = (count if name == "count" else name, MEDIAN + name)
        matches = [column for column in candidates if column in numbers]
        if not matches:
            valid_names = ["count", *(column.removeprefix(MEDIAN) for column in numbers)]
            raise UserError(f"heatmap={name}: no such column of numbers; {nearest(name, valid_names)}")
        columns.append(matches[0])
    return columns


def _holds_numbers(values: pd.Series[Any]) -> bool:
    """Returns whether a column holds nothing but numbers, or texts of a plate map that are numbers."""
    present = values.dropna()
    # Times and acquisitions are numbers, but they name images.
    is_key = values.name in ("plate", "well", "time", "acquisition")
    return not is_key and len(present) > 0 and bool(pd.to_numeric(present, errors="coerce").notna().all())


def draw(
    run: Run, plates: Sequence[SegmentedPlate], wells: pd.DataFrame, columns: Sequence[str],
    headline: Sequence[str], section: Html,
) -> dict[str, Path]:  # fmt: skip
    """Writes PNGs and the page to `pictures/` of the run; returns what each is -> its path.

    Args:
        headline: lines at the top of the page; section: what it ends with.
    """
    image_keys = [name for name in ("acquisition", "time") if name in wells]
    groups = {
        ", ".join(
            [str(name), *(f"{key} {number}" for key, number in zip(image_keys, numbers, strict=True))]
        ): rows
        for (name, *numbers), rows in wells.groupby(["plate", *image_keys], sort=False)
    }
    # Pictures of hundreds of plates are neither drawn in time nor read: some, spread evenly, are shown.
    shown_groups = dict(evenly_spread(list(groups.items()), MOST_MAPS))
    layouts = {plate.name: (plate.rows, plate.columns) for plate in plates}

    heat_maps, outputs = [], dict[str, Path]()
    for column in columns:
        maps = [_plate_values(title, rows, column, layouts) for title, rows in shown_groups.items()]
        heat_map = HeatMap(_title(column), _about(column), unit_of(column), maps)
        name = "count" if column == COUNT else column
        path = run.pictures / f"plates-{'count' if column == COUNT else slug(column)}.png"
        draw_plates(maps, heat_map.title, heat_map.unit, path)
        heat_maps.append(heat_map)
        outputs[f"plates, {name}"] = path
    lines, comparison = [*headline], _draw_agreement(run, wells)
    if len(shown_groups) < len(groups):
        lines.append(
            f"{len(shown_groups)} of {len(groups)} plates (or times of plates) are shown, spread evenly."
        )
    if comparison is not None:
        outputs["counts against the truth"] = comparison[0]
        lines.append(f"Compared with the reference labels: {comparison[1]}.")
    page = run.pictures / "plates.html"
    hover = [_hover(rows, columns) for rows in shown_groups.values()]
    picture = None if comparison is None else (comparison[0].read_bytes(), comparison[1])
    write_atomic(page, page_of(run.label, lines, heat_maps, hover, picture, section), durable=False)
    for path in set(run.pictures.glob("plates-*.png")) - set(outputs.values()):
        path.unlink(missing_ok=True)  # of an earlier call: the run may have been resumed since
    return {"plates, to look at": page, **outputs}


def _plate_values(
    title: str, rows: pd.DataFrame, column: str, layouts: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> PlateValues:
    values = pd.to_numeric(rows[column], errors="coerce").astype(float)
    partial = rows.well[(rows.fields > 0) & (rows.lost_fields > 0)]
    layout = layouts[rows.plate.iloc[0]]
    return PlateValues(title, *layout, dict(zip(rows.well, values, strict=True)), set(partial))


def _draw_agreement(run: Run, wells: pd.DataFrame) -> tuple[Path, str] | None:
    """Draws counts of wells over those of the reference labels; returns the path, and figures in words."""
    if "truth_objects" not in wells:
        return None
    compared_wells = wells[wells.truth_objects.notna()]
    pairs = compared_wells[["objects_in_truth_fields", "truth_objects"]].astype(float).to_numpy()
    trained_on = [False] * len(compared_wells)
    if "training_fields" in compared_wells:
        trained_on = (compared_wells.training_fields.fillna(0) > 0).tolist()
    path = run.pictures / "counts.png"
    figures = draw_agreement(pairs, path, run.label, trained_on)
    return path, "; ".join(filter(None, [agreement_text(figures), training_note(trained_on)]))


# ---------------------------------------------------------------- words


def _title(column: str) -> str:
    if column == COUNT:
        return "Objects per well"
    if column.startswith(MEDIAN):
        return f"Median {column.removeprefix(MEDIAN)} of each well"
    return f"{column[0].upper()}{column[1:]} of each well".replace("_", " ") if column in OURS else column


def _about(column: str) -> str:
    if column.startswith(MEDIAN):
        name = column.removeprefix(MEDIAN)
        return f"Median of {name} over the objects of a well that no border of an image cuts."
    return ABOUT.get(column, f"{column}, as the table of wells has it.")


def unit_of(column: str) -> str:
    """Returns the unit of a column; empty where it has none."""
    if column.startswith(BESIDE):
        return "robust standard deviations"
    if column in (COUNT, PER_FIELD, "truth_objects", "objects_in_truth_fields", "dropped_objects"):
        return "objects"
    if column == "confluence":
        return "share of the area"
    return next((unit for end, unit in UNITS.items() if column.endswith(end)), "")


def _hover(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    """Returns the text of each well: its plate map, its counts, and the medians that are drawn."""
    names = [name for name in map(str, rows) if not name.startswith(MEDIAN) or name in columns]
    texts = {}
    for row in rows[names].astype(object).to_dict("records"):
        # Plate and well, which come first, are in the title and the first line.
        entries = [(name, row[name]) for name in names[2:] if not pd.isna(row[name])]
        formats = {float: ",.4g", int: ","}
        lines = [f"{name}: {value:{formats.get(type(value), '')}}" for name, value in entries]
        texts[row["well"]] = "\n".join([row["well"], *lines])
    return texts


# ---------------------------------------------------------------- agreement with known counts


def agreement(counts: ArrayLike) -> dict[str, float]:
    """Returns how counts without the stain agree with those from it.

    Args:
        counts: (well, 2): label-free, stain.

    Returns:
        r: Pearson's correlation; slope: of the line of least squares, label-free over stain; bias: mean of
        label-free less stain; median_ratio: of label-free over stain, where the stain has any; n: wells. NaN
        where a figure is not defined.
    """
    label_free, stain = np.array(counts, np.float64).reshape(-1, 2).T
    figures = dict.fromkeys(("r", "slope", "bias", "median_ratio"), math.nan) | {"n": float(len(label_free))}
    if not len(label_free):
        return figures
    figures["bias"] = float(np.mean(label_free - stain))
    if (stain > 0).any():
        figures["median_ratio"] = float(np.median(label_free[stain > 0] / stain[stain > 0]))
    a, b = label_free - label_free.mean(), stain - stain.mean()
    if (b * b).sum() > 0:
        figures["slope"] = float((a * b).sum() / (b * b).sum())
        if (a * a).sum() > 0:
            figures["r"] = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return figures


def draw_agreement(
    counts: ArrayLike, path: Path, title: str, trained_on: Sequence[bool] = ()
) -> dict[str, float]:
    """Draws a point for each well, label-free over stain, with the line where both are equal.

    Args:
        counts: (well, 2): label-free, stain.
        trained_on: of each well, whether the model learnt from it: these are hollow, and left out of the
            figures as long as there are others.

    Returns:
        The figures, as `agreement` has them.
    """
    from matplotlib.figure import Figure

    pairs = np.array(counts, np.float64).reshape(-1, 2)
    hollow = np.array(trained_on or [False] * len(pairs), bool)
    figures = agreement(pairs if hollow.all() else pairs[~hollow])
    figure = Figure(figsize=(5.0, 5.2), layout="constrained", dpi=DPI)
    axis = figure.subplots()
    top = 1.06 * float(pairs.max(initial=1))
    axis.plot([0, top], [0, top], color="#999999", lw=1, ls="--", zorder=1)
    axis.text(
        top * 0.97, top * 0.985, "equal ", color="#777777", fontsize=8, ha="right", va="bottom",
        rotation=45, rotation_mode="anchor",
    )  # fmt: skip
    looks: list[tuple[Any, dict[str, Any]]] = [(~hollow, {"mew": 0}), (hollow, {"mew": 1, "mfc": "none"})]
    for mask, look in looks:
        label_free, stain = pairs[mask].T
        axis.plot(stain, label_free, "o", ms=5, color="#0072b2", alpha=0.65, zorder=2, **look)
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axis.set_xlabel("true objects per well, by a stain or drawn by people", fontsize=9)
    axis.set_ylabel("objects found per well", fontsize=9)
    axis.set_title(f"{title}\n{agreement_text(figures)}", fontsize=10, color=INK, loc="left")
    if note := training_note(trained_on):
        figure.supxlabel("\n".join(textwrap.wrap(note, 88)), fontsize=8, color=INK, x=0.01, ha="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    save(figure, path, durable=False)
    return figures


def training_note(trained_on: Sequence[bool]) -> str:
    """Returns what to know of wells that the model learnt from; empty: it learnt from none."""
    count = sum(trained_on)
    if not count:
        return ""
    if count == len(trained_on):
        return "The model learnt from all of these wells: this does not show how well it counts in others."
    return f"Hollow: {many(count, 'well')} that the model learnt from, left out of the figures."


def agreement_text(figures: Mapping[str, float]) -> str:
    """Returns `r = 0.98, median ratio 1.02, bias +3.1 objects, 96 wells`."""
    parts = [] if math.isnan(figures["r"]) else [f"r = {figures['r']:.3f}"]
    parts += [] if math.isnan(figures["median_ratio"]) else [f"median ratio {figures['median_ratio']:.2f}"]
    bias = f"{figures['bias']:+.1f}".replace("-", "−")
    return ", ".join([*parts, f"bias {bias} objects", many(round(figures["n"]), "well")])
