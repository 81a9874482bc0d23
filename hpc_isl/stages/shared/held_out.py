"""Fields that did not train: predicted whole, shared out among ranks, scored image by image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.files import write_atomic
from hpc_isl.learning.data.annotated_crops import labels_in
from hpc_isl.learning.data.fields import image_key, imaged_times, level_on
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.data.view import Role
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.training.world import World
from hpc_isl.objects.scores import is_constant, mae, pcc, pcc_by_object, ssim
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_names
from hpc_isl.stages.shared.plate_views import PlateField, PlateViews, name_of

Pixels = NDArray[np.float32]
Row = dict[str, Any]
SCORES = ("pcc", "mae", "ssim")
CONSTANT = "constant_predictions"
# A column of the plate map with more values than this names wells rather than groups of them.
MOST_GROUPS = 24


@dataclass(frozen=True)
class FieldPrediction:
    """One field at one time, predicted.

    Attributes:
        sources, targets, prediction: (channel, y, x), normalised; targets None where there is no stain.
    """

    index: Index
    key: FieldKey
    time: int
    sources: Pixels
    targets: Pixels | None
    prediction: Pixels


def predict_field(study: PlateViews, predictor: Predictor, place: PlateField) -> Iterator[FieldPrediction]:
    """The times of a field at which its sources were imaged, one after the other."""
    index, key = place
    for time in imaged_times(study.view, index, key):
        sources, targets = read(study.view, index, key, time)
        yield FieldPrediction(index, key, time, sources, targets, predictor(sources))


def quick_scores(
    study: PlateViews,
    predictor: Predictor,
    places: Sequence[PlateField],
    world: World,
    stopping: Callable[[], bool],
    loss: Callable[[Pixels, Pixels], float],
) -> dict[str, float] | None:
    """Mean PCC and MAE over fields and targets, and the loss; None if any rank was asked to stop meanwhile.

    Where predictions are constant though their stains are not, also how many.
    """
    found: list[tuple[float, ...]] = []
    for place in places[world.rank :: world.size]:
        if stopping():
            break
        for seen in predict_field(study, predictor, place):
            if seen.targets is not None:
                value = loss(seen.prediction, seen.targets)
                found += [
                    (pcc(p, t), mae(p, t), value, is_blind(p, t))
                    for p, t in zip(seen.prediction, seen.targets, strict=True)
                ]
    gathered = world.gather((stopping(), found))
    if any(stopped for stopped, _ in gathered):
        return None
    columns = list(zip(*(values for _, own in gathered for values in own), strict=True))
    if not columns:
        return {"pcc": float("nan"), "mae": float("nan")}
    scores = dict(zip(("pcc", "mae", "loss"), map(mean, columns), strict=False))
    return scores | ({CONSTANT: sum(columns[-1])} if any(columns[-1]) else {})


def is_blind(prediction: Pixels, truth: Pixels) -> bool:
    """Whether the prediction is constant though the stain is not: its PCC counts as 0."""
    return is_constant(prediction) and not is_constant(truth)


def constant_text(count: float) -> str:
    """How many predictions are constant, for people."""
    one = count == 1
    return (
        f"{count:g} prediction{'' if one else 's'} of a field {'is' if one else 'are'} constant though the "
        f"stain is not, and count{'s' if one else ''} as PCC 0"
    )


def score(study: PlateViews, seen: FieldPrediction, labels: str | None) -> list[Row]:
    """A row for each target of a field: where it is, PCC, MAE, SSIM, and the mean PCC of its objects.

    MAE is in the unit of the normalised target; the plate map's columns come last.
    """
    if seen.targets is None:
        return []
    plate_map = seen.index.plate_map.get(seen.key.well, {})
    rows = []
    for role, prediction, truth in zip(study.view.targets, seen.prediction, seen.targets, strict=True):
        row: Row = {
            "plate": seen.index.plate.name, "well": seen.key.well, "field": seen.key.name,
            "acquisition": seen.key.acquisition, "time": seen.time, "target": name_of(role),
            "pcc": pcc(prediction, truth), "mae": mae(prediction, truth), "ssim": ssim(prediction, truth),
        }  # fmt: skip
        row |= {CONSTANT: 1} if is_blind(prediction, truth) else {}
        rows.append(row | _object_scores(study, seen, role, prediction, truth, labels) | dict(plate_map))
    return rows


def _object_scores(
    study: PlateViews,
    seen: FieldPrediction,
    role: Role,
    prediction: Pixels,
    truth: Pixels,
    labels: str | None,
) -> Row:
    """How many objects of that name there are, and their mean PCC; nothing where there are no labels."""
    image = seen.index.image(image_key(seen.key, role))
    if labels is None or labels not in label_names(image):
        return {}
    objects = labels_in(image, labels, level_on(study.view, seen.index, seen.key), seen.time)
    found = pcc_by_object(prediction, truth, objects)
    return {"objects": len(found), "pcc_objects": mean(found.values())}


# ---------------------------------------------------------------- tables


def write_scores(rows: Sequence[Row], path: Path) -> None:
    """CSV, one line per field and target; a score that is not a number is left empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over images; JSON knows no NaN, so what has none is left out."""
    if not rows:
        return {}
    found: dict[str, float] = {}
    for name in SCORES:
        values = [row[name] for row in rows]
        found |= {name: mean(values), f"{name}_sd": spread(values)}
    if any("objects" in row for row in rows):
        found["pcc_objects"] = mean(row["pcc_objects"] for row in rows if "objects" in row)
        found["objects"] = sum(row.get("objects", 0) for row in rows)
    finite = {name: round(value, 5) for name, value in found.items() if not math.isnan(value)}
    blind = sum(row.get(CONSTANT, 0) for row in rows)
    return finite | {"images": len(rows)} | ({CONSTANT: blind} if blind else {})


def main_scores(rows: Sequence[Row]) -> dict[str, float]:
    """The means among the figures."""
    return {name: value for name, value in figures(rows).items() if name in (*SCORES, "pcc_objects")}


def by_plate_map(study: PlateViews, rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Column -> value -> figures, for the columns of the plate map that group the scored wells."""
    columns = {name for index in study.indices for line in index.plate_map.values() for name in line}
    grouped: dict[str, dict[str, dict[str, Any]]] = {}
    for column in sorted(columns):
        values = sorted({row.get(column, "") for row in rows} - {""})
        if 1 < len(values) <= MOST_GROUPS:
            grouped[column] = {v: figures([r for r in rows if r.get(column) == v]) for v in values}
    return grouped


def mean(values: Iterable[float]) -> float:
    """Of the numbers among the values, the same in any order; NaN where there are none."""
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else float("nan")


def spread(values: Iterable[float]) -> float:
    """Standard deviation (of a sample) of the numbers among the values; NaN for fewer than two."""
    finite = [value for value in values if not math.isnan(value)]
    if len(finite) < 2:
        return float("nan")
    return math.sqrt(math.fsum((value - mean(finite)) ** 2 for value in finite) / (len(finite) - 1))
