"""How far the wells of a run lie from what its model knows: a table, a warning, a picture of the farthest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpc_isl.learning.data.drift import FACTS, FAR, drift
from hpc_isl.plates.plate import FieldKey
from hpc_isl.run import Attempt
from hpc_isl.stages.segment import pictures
from hpc_isl.stages.segment.files import Row, write_csv
from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs

DRIFT = "drift.png"
SHOWN = 5  # wells that are far, beside one that is not


def write_drift(inputs: SegmentInputs, attempt: Attempt, rows: Sequence[Row]) -> dict[str, Path]:
    """Writes `drift.csv`, and `pictures/drift.png` where wells are far; returns what each is -> its path.

    Wells that the model's reference was made of are in the table, and never called unlike it.
    """
    if not inputs.models.contract.reference:
        attempt.log("the model's contract has no statistics of its training fields: drift is not known")
        return {}
    wells = [row for plate in inputs.plates for row in _wells(plate)]
    if not wells:
        return {}
    path = attempt.run.folder / "drift.csv"
    write_csv(path, wells)
    made = {"drift of each well": path}
    new = [well for well in wells if not well["in_training"]]
    far = sorted((well for well in new if well["largest"] > FAR), key=lambda well: -well["largest"])
    if not far:
        (attempt.run.pictures / DRIFT).unlink(missing_ok=True)  # of an earlier attempt
        return made
    nearest = min(wells, key=lambda well: float(well["largest"]))
    picture = _draw(inputs, attempt.run.pictures / DRIFT, rows, [nearest, *far[:SHOWN]])
    shown = f"look at {picture.relative_to(attempt.run.folder)}" if picture else "look at these wells"
    worst = f"{far[0]['plate']} {far[0]['well']}: {_distance(far[0])}, {FACTS[_fact(far[0])]}"
    attempt.log(
        f"warning: in {len(far)} of {len(new)} wells the images are unlike those that the model was trained "
        f"on (worst: {worst}); {shown}; {path.name} has all wells"
    )
    return made | ({"wells unlike the training images": picture} if picture else {})


def _wells(plate: PlateInput) -> list[Row]:
    contract, name = plate.models.contract, plate.index.plate.name
    # Models of earlier versions do not name the wells of their reference, only those that trained.
    part = "reference" if "reference" in contract.wells else "train"
    known = {key.well for key in plate.keys if contract.has_seen(part, name, key)}
    rows = drift(contract.reference, plate.models.view, plate.index, plate.keys)
    return [
        {"plate": plate.name, "well": row["well"], "in_training": "yes" if row["well"] in known else ""} | row
        for row in rows
    ]


def _draw(inputs: SegmentInputs, path: Path, rows: Sequence[Row], wells: Sequence[Row]) -> Path | None:
    """Draws the first whole field of each well, the most ordinary one first; None if no labels are kept."""
    fields: dict[tuple[str, str], tuple[PlateInput, FieldKey, Row]] = {}
    for (plate, key), row in zip(inputs.fields, rows, strict=True):
        if "problem" not in row:
            fields.setdefault((plate.name, key.well), (plate, key, row))
    shown = [(well, fields[place]) for well in wells if (place := (well["plate"], well["well"])) in fields]
    if not shown or not inputs.keeps_labels:
        return None
    panels = []
    for well, field in shown:
        ordinary = "for comparison: like the training images"
        panels.append(pictures.panel(*field, below=_distance(well) if well["largest"] > FAR else ordinary))
    facts = dict.fromkeys(_fact(well) for well, _ in shown if well["largest"] > FAR)
    legend = "; ".join(f"{fact}: {FACTS[fact]}" for fact in facts)
    pictures.draw_panels(
        panels, path, f"Distances in robust standard deviations of the training fields. {legend}"
    )
    return path


def _fact(well: Row) -> str:
    return str(well["where"].rpartition(" ")[2])


def _distance(well: Row) -> str:
    """Returns `Brightfield 0 light −6.4`."""
    return f"{well['where']} {well[well['where']]:+.1f}".replace("-", "−")
