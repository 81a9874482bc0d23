"""How far each field of a later acquisition is shifted against the first: kept in the plate, used by readers.

Pixels stay where they are. What the first acquisition shows at pixel p, a later one shows at p + shift.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.plates import packed
from hpc_isl.plates.plate import FieldKey

# By digest, because a plate that takes in further fields has two for a moment.
TABLES = "index/registration-{}.csv"
PICTURE = "index/registration.png"
KEY = "registration"  # beside the facts of the plate in its zarr.json
State = Literal["measured", "far", "model", "rejected"]
MEANINGS = {
    "measured": "measured",
    "far": "measured, more than 2 px from the model of the plate",
    "model": "not measurable, by the model of the plate",
    "rejected": "left out of pairs, for the two images do not show the same place",
}
COLUMNS = (
    "well", "field", "acquisition", "state", "shift_y_px", "shift_x_px", "measured_y_px", "measured_x_px",
    "peak_ratio", "pcc", "pcc_gain", "residual_px", "images",
)  # fmt: skip


@dataclass(frozen=True)
class FieldShift:
    """One field of a later acquisition against the same field of the first.

    Attributes:
        state: see `MEANINGS`.
        shift: (y, x) in whole pixels of level 0, that readers apply; None: rejected.
        measured: (y, x) in pixels, at the highest peak of the cross-correlation.
        ratio: of the highest peak to the second.
        pcc, gain: Pearson's correlation of the two images under the measured shift, and how much greater it
            is than that with other fields' images under the same shift.
        residual: pixels from the model of the plate; None: there is no model.
        images: hash of both images' pixels.
    """

    key: FieldKey
    state: State
    shift: tuple[int, int] | None
    measured: tuple[float, float]
    ratio: float
    pcc: float
    gain: float
    residual: float | None
    images: str


@dataclass(frozen=True)
class Registration:
    """The shifts of all fields of later acquisitions that have a partner in the first.

    Attributes:
        models: acquisition -> how the plate lay in it: degrees, offset_px (y, x), fitted; None: no model.
    """

    shifts: Mapping[FieldKey, FieldShift]
    models: Mapping[int, Mapping[str, Any] | None]

    @property
    def digest(self) -> str:
        """Hash of the shifts that readers apply; empty where there are none."""
        if not self.shifts:
            return ""
        applied = sorted([str(key), shift.shift] for key, shift in self.shifts.items())
        return hashlib.sha256(json.dumps(applied).encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """Name of the table below the plate."""
        return TABLES.format(self.digest)

    def facts(self) -> dict[str, Any]:
        """Returns what the plate's own group states of it, as JSON."""
        return {
            "digest": self.digest,
            "models": {str(number): model for number, model in self.models.items()},
        }


def write(path: Path, registration: Registration) -> None:
    """Writes the table of shifts of the plate at `path`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, shift in sorted(registration.shifts.items(), key=lambda item: item[0].place):
        writer.writerow([
            key.well, key.name, key.acquisition, shift.state, *(shift.shift or ("", "")),
            *(f"{value:.2f}" for value in shift.measured), f"{shift.ratio:.3f}", f"{shift.pcc:.4f}",
            f"{shift.gain:.4f}", "" if shift.residual is None else f"{shift.residual:.2f}", shift.images,
        ])  # fmt: skip
    write_atomic(path / registration.file, stream.getvalue())


def remove_former(path: Path, registration: Registration) -> None:
    """Removes tables of the plate at `path` that its group does not name any more."""
    for table in path.glob(TABLES.format("*")):
        if table != path / registration.file:
            table.unlink(missing_ok=True)


def read(path: Path, facts: Mapping[str, Any]) -> Registration:
    """Returns the shifts of the plate at `path`, whose group states `facts`.

    Raises:
        UserError: the table is missing, or is not the one that belongs to the plate.
    """
    models = {int(number): model for number, model in facts["models"].items()}
    table = path / TABLES.format(facts["digest"])
    try:
        lines = csv.DictReader(io.StringIO(packed.read_text(table)))
        registration = Registration({shift.key: shift for shift in map(_shift, lines)}, models)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{table}, the shifts of its acquisitions, cannot be read: {error}") from None
    if registration.digest != facts["digest"]:
        raise UserError(
            f"{table} was changed since it was written, and pairs would be others than the plate's "
            "fingerprint says; put the former table back"
        )
    return registration


def _shift(row: Mapping[str, str]) -> FieldShift:
    key = FieldKey(row["well"], row["field"], int(row["acquisition"]))
    applied = (int(row["shift_y_px"]), int(row["shift_x_px"])) if row["shift_y_px"] else None
    state: Any = row["state"]
    return FieldShift(
        key, state, applied, (float(row["measured_y_px"]), float(row["measured_x_px"])),
        float(row["peak_ratio"]), float(row["pcc"]), float(row["pcc_gain"]),
        float(row["residual_px"]) if row["residual_px"] else None, row["images"],
    )  # fmt: skip


def summary_lines(registration: Registration) -> list[str]:
    """Returns a line for each later acquisition: how it lies, and how many fields have which shift."""
    lines = []
    for number, model in sorted(registration.models.items()):
        shifts = [shift for key, shift in registration.shifts.items() if key.acquisition == number]
        if not shifts:
            lines.append(
                f"warning: acquisition {number}: no shift could be measured; fields are paired as they lie"
            )
            continue
        applied = [shift.shift for shift in shifts if shift.shift]
        y, x = (median(offset[axis] for offset in applied) for axis in (0, 1)) if applied else (0, 0)
        degrees = round(model["degrees"], 2) + 0.0 if model else 0.0  # + 0.0: -0.00 is no turn either
        turned = f", turned by {degrees:.2f}°" if model else "; the plate has no common model"
        counts = Counter[str](shift.state for shift in shifts)
        states = ", ".join(
            f"{counts[state]} {meaning}" for state, meaning in MEANINGS.items() if counts[state]
        )
        lines.append(f"acquisition {number}: shifted by {y:g}, {x:g} px (y, x; median){turned}: {states}")
    return lines
