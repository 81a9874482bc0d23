"""How far the wells of a run lie from what its model knows: a table, a warning, a picture of the farthest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_isl.files import write_atomic
from hpc_isl.learning.data.drift import FACTS, FAR, drift
from hpc_isl.learning.network.contract import Contract
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.segment import pictures
from hpc_isl.stages.segment.files import Row, csv_text
from hpc_isl.stages.segment.inputs import Models, PlateInput, view_of

DRIFT = "drift.png"
SHOWN = 5  # wells that are far, beside one that is not
Line = dict[str, Any]


def write_drift(
    recipe: SegmentRecipe,
    models: Models,
    targets: Sequence[PlateInput],
    attempt: Attempt,
    rows: Sequence[Row],
) -> dict[str, Path]:
    """`drift.csv`, and `pictures/drift.png` where wells are far: what it is -> where it is.

    Wells that the model's reference was made of are in the table, and never called unlike it.
    """
    lines = _lines(recipe, models, targets, attempt)
    if not lines:
        return {}
    path = attempt.run.folder / "drift.csv"
    columns = list(dict.fromkeys(name for line in lines for name in line))
    write_atomic(path, csv_text(columns, ([line.get(name) for name in columns] for line in lines)))
    made = {"drift of each well": path}
    new = [line for line in lines if not line["in_training"]]
    far = sorted((line for line in new if line["largest"] > FAR), key=lambda line: -line["largest"])
    if not far:
        (attempt.run.pictures / DRIFT).unlink(missing_ok=True)  # of an earlier attempt
        return made
    picture = _draw(recipe, models, targets, attempt, rows, [min(lines, key=_largest), *far[:SHOWN]])
    shown = f"look at {picture.relative_to(attempt.run.folder)}" if picture else "look at these wells"
    attempt.log(
        f"warning: in {len(far)} of {len(new)} wells the images are unlike those that the model was trained "
        f"on (worst: {far[0]['plate']} {far[0]['well']}: {_words(far[0])}); {shown}; {path.name} has "
        "all wells"
    )
    return made | ({"wells unlike the training images": picture} if picture else {})


def _lines(
    recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput], attempt: Attempt
) -> list[Line]:
    reference = models.contract.reference
    if not reference:
        attempt.log("the model's contract has no statistics of its training fields: drift is not known")
        return []
    view = view_of(recipe, models.contract)
    lines = []
    for target in targets:
        plate = target.index.plate.name
        known = {key.well for key in target.keys if _is_known(models.contract, plate, key)}
        for row in drift(reference, view, target.index, target.keys):
            is_known = "yes" if row["well"] in known else ""
            lines.append({"plate": target.name, "well": row["well"], "in_training": is_known} | row)
    return lines


def _is_known(contract: Contract, plate: str, key: FieldKey) -> bool:
    """Whether the reference was made of the field's images; models of earlier versions tell of fewer."""
    return contract.has_seen("reference" if "reference" in contract.wells else "train", plate, key)


def _largest(line: Line) -> float:
    return float(line["largest"])


def _words(line: Line) -> str:
    """`Brightfield 0 light +6.4, how far the brightest hundredth lies above the middle`."""
    return f"{_distance(line)}, {FACTS[line['where'].rpartition(' ')[2]]}"


# ---------------------------------------------------------------- the picture


def _draw(
    recipe: SegmentRecipe,
    models: Models,
    targets: Sequence[PlateInput],
    attempt: Attempt,
    rows: Sequence[Row],
    lines: Sequence[Line],
) -> Path | None:
    """The first whole field of each well, the most ordinary one first; None where labels are not kept."""
    fields = [(target, key) for target in targets for key in target.keys]
    places: dict[tuple[str, str], tuple[PlateInput, FieldKey, Row]] = {}
    for (target, key), row in zip(fields, rows, strict=True):
        if "problem" not in row:
            places.setdefault((target.name, key.well), (target, key, row))
    shown = [(line, places[line["plate"], line["well"]]) for line in lines
             if (line["plate"], line["well"]) in places]  # fmt: skip
    if not shown or "labels" not in recipe.outputs:
        return None
    view = view_of(recipe, models.contract)
    panels = [pictures.panel(recipe, models, view, *place, below=_below(line)) for line, place in shown]
    path = attempt.run.pictures / DRIFT
    facts = dict.fromkeys(line["where"].rpartition(" ")[2] for line, _ in shown if line["largest"] > FAR)
    legend = "; ".join(f"{fact}: {FACTS[fact]}" for fact in facts)
    pictures.draw_panels(
        panels, path, f"Distances in robust standard deviations of the training fields. {legend}"
    )
    return path


def _below(line: Line) -> str:
    return _distance(line) if line["largest"] > FAR else "for comparison: like the training images"


def _distance(line: Line) -> str:
    """`Brightfield 0 light −6.4`."""
    return f"{line['where']} {line[line['where']]:+.1f}".replace("-", "−")
