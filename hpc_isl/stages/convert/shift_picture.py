"""A small picture of how far each field of a later acquisition is shifted: arrows over the plate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.files import write_atomic
from hpc_isl.plates.plate import Plate, well_position
from hpc_isl.plates.registration import MEANINGS, Registration

COLORS = {"measured": "#0072B2", "far": "#E69F00", "model": "#666666", "rejected": "#D55E00"}
LONGEST = 0.8  # of the distance of two wells: the longest arrow


def draw_shifts(plate: Plate, registration: Registration, path: Path) -> None:
    """Writes the picture as PNG: a panel for each later acquisition, an arrow for each of its fields.

    Arrows begin in their well, fields of one side by side, have one scale, and are coloured by what is known
    of the shift; a field that is left out is a cross.
    """
    from matplotlib.figure import Figure

    numbers = sorted(registration.models)
    rows, columns = len(plate.rows), len(plate.columns)
    figure = Figure(figsize=(7, (1 + 6.6 * rows / columns) * len(numbers)), layout="constrained", dpi=130)
    for axis, number in zip(figure.subplots(len(numbers), 1, squeeze=False)[:, 0], numbers, strict=True):
        _panel(axis, plate, registration, number)
        axis.set_xlim(-0.7, columns - 0.3)
        axis.set_ylim(rows - 0.3, -0.7)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())


def _panel(axis: Any, plate: Plate, registration: Registration, number: int) -> None:
    field_shifts = [shift for key, shift in registration.shifts.items() if key.acquisition == number]
    longest = max((float(np.hypot(*shift.shift)) for shift in field_shifts if shift.shift), default=0.0)
    shifts_by_well = {
        well: [s for s in field_shifts if s.key.well == well] for well in {s.key.well for s in field_shifts}
    }
    for state, color in COLORS.items():
        tails, arrows = [], []
        for well, well_shifts in shifts_by_well.items():
            row, column = well_position(well)
            side = int(np.ceil(np.sqrt(len(well_shifts))))
            for place, shift in enumerate(sorted(well_shifts, key=lambda s: s.key.place)):
                y, x = ((part + 0.5) / side - 0.5 for part in divmod(place, side))
                if shift.state == state:
                    tails.append((column + 0.7 * x, row + 0.7 * y))
                    arrows.append(shift.shift or (0, 0))
        if not tails:
            continue
        points, (dy, dx) = np.array(tails).T, np.array(arrows, float).T * LONGEST / max(longest, 1.0)
        label = f"{len(tails)} {MEANINGS[state]}"
        if state == "rejected":
            axis.scatter(*points, marker="x", s=18, color=color, label=label)
        else:
            axis.scatter(*points, s=5, color=color, label=label)
            axis.quiver(*points, dx, dy, angles="xy", scale_units="xy", scale=1, width=0.0025, color=color)
    axis.set_xticks(range(len(plate.columns)), [str(int(name)) for name in plate.columns], fontsize=7)
    axis.set_yticks(range(len(plate.rows)), plate.rows, fontsize=7)
    axis.set_aspect("equal")
    axis.tick_params(length=0)
    axis.spines[:].set_color("#cccccc")
    model = registration.models[number]
    rotation = f", plate turned by {round(model['degrees'], 2) + 0.0:.2f}°" if model else ""
    passes = f"{plate.acquisitions[number]} against {plate.acquisitions[0]}"
    axis.set_title(f"{passes}: longest arrow {longest:.0f} px{rotation}", fontsize=9)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
