"""Fields that did not train: predicted whole, shared among ranks, scored image by image."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_isl.files import write_atomic
from hpc_isl.learning.data.fields import image_key
from hpc_isl.learning.data.pixels import Box, known_box
from hpc_isl.learning.data.view import shifted
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.training.world import World
from hpc_isl.objects.scores import is_constant, mae, pcc, pcc_by_object, ssim
from hpc_isl.objects.types import Pixels
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.plate_map import map_name
from hpc_isl.plates.store import label_names, read_label_box
from hpc_isl.stages.shared.plate_views import PlateField, PlateView, PlateViews, name_of

Row = dict[str, Any]
SCORES = ("pcc", "mae", "ssim")
CONSTANT = "constant_predictions"
COLUMNS = frozenset({
    "plate", "well", "field", "acquisition", "time", "target", *SCORES, CONSTANT, "objects", "pcc_objects",
})  # fmt: skip
"""The columns of the scores of pretraining that are ours."""
# A column of the plate map with more values than this names wells rather than groups of them.
MOST_GROUPS = 24


@dataclass(frozen=True)
class FieldPrediction:
    """One field at one time, predicted.

    Attributes:
        sources, targets, prediction: (channel, y, x) float32, normalised; targets are None without a stain,
            and NaN where another acquisition, in which the plate lay elsewhere, does not show the place.
    """

    plate: PlateView
    key: FieldKey
    time: int
    sources: Pixels
    targets: Pixels | None
    prediction: Pixels

    @property
    def seen(self) -> Box:
        """The box (y, x) in which the targets are known; the rest is not scored."""
        return known_box(self.prediction if self.targets is None else self.targets)

    def scored(self) -> FieldPrediction | None:
        """Returns the part of the field in which the targets are known; None: nowhere."""
        if self.targets is None or not all(side.stop for side in self.seen):
            return None
        box = self.seen
        return replace(
            self, sources=self.sources[:, *box], targets=self.targets[:, *box],
            prediction=self.prediction[:, *box],
        )  # fmt: skip


def predict_field(predictor: Predictor, field: PlateField) -> Iterator[FieldPrediction]:
    """Yields the prediction of a field at each time at which its sources were imaged."""
    plate, key = field
    for time in plate.times(key):
        sources, targets = plate.read(key, time)
        yield FieldPrediction(plate, key, time, sources, targets, predictor(sources))


def quick_scores(
    predictor: Predictor,
    fields: Sequence[PlateField],
    world: World,
    stopping: Callable[[], bool],
    loss: Callable[[Pixels, Pixels], float],
) -> dict[str, float] | None:
    """Returns mean PCC, MAE and loss over fields and targets; None if any rank was asked to stop meanwhile.

    Adds the number of constant predictions of stains that are not constant, if there are any.
    """
    scores: list[tuple[float, ...]] = []
    for field in fields[world.rank :: world.size]:
        if stopping():
            break
        for predicted in predict_field(predictor, field):
            part = predicted.scored()
            if part is not None and part.targets is not None:
                pairs = list(zip(part.prediction, part.targets, strict=True))
                value = loss(part.prediction, part.targets)
                scores += [(pcc(p, t), mae(p, t), value, misses_structure(p, t)) for p, t in pairs]
    # A rank that was asked to stop gathers too: the others would wait for it for ever.
    gathered = world.gather((stopping(), scores))
    if any(stopped for stopped, _ in gathered):
        return None
    columns = list(zip(*(row for _, rank_scores in gathered for row in rank_scores), strict=True))
    if not columns:
        return {"pcc": float("nan"), "mae": float("nan")}
    means = dict(zip(("pcc", "mae", "loss"), map(mean, columns), strict=False))
    return means | ({CONSTANT: sum(columns[-1])} if any(columns[-1]) else {})


def misses_structure(prediction: Pixels, target: Pixels) -> bool:
    """Returns whether the prediction is constant though the stain is not; its PCC then counts as 0."""
    return is_constant(prediction) and not is_constant(target)


def constant_text(count: float) -> str:
    """Returns the message about `count` constant predictions."""
    if count == 1:
        return "1 prediction of a field is constant though the stain is not, and counts as PCC 0"
    return f"{count:g} predictions of a field are constant though the stain is not, and count as PCC 0"


def score(predicted: FieldPrediction, labels: str | None) -> list[Row]:
    """Returns a row for each target of a field: where it is, PCC, MAE, SSIM, and the objects' mean PCC.

    MAE is in the unit of the normalised target. Where the image has the labels, the row holds the number of
    objects and their mean PCC. The plate map's columns come last.
    """
    part = predicted.scored()
    if part is None or part.targets is None:
        return []
    plate, key, time = predicted.plate, predicted.key, predicted.time
    # A model may predict several stains of one field.
    rows = []
    for role, pixels, target in zip(plate.view.targets, part.prediction, part.targets, strict=True):
        row: Row = {
            "plate": plate.name, "well": key.well, "field": key.name, "acquisition": key.acquisition,
            "time": time, "target": name_of(role),
            "pcc": pcc(pixels, target), "mae": mae(pixels, target), "ssim": ssim(pixels, target),
        }  # fmt: skip
        if misses_structure(pixels, target):
            row[CONSTANT] = 1
        image = plate.index.image(image_key(key, role))
        if labels is not None and labels in label_names(image):
            label_image = read_label_box(image, labels, time, slice(None), slice(None), plate.level(key))
            box = shifted(predicted.seen, plate.shift(key, image_key(key, role)))
            by_object = pcc_by_object(pixels, target, label_image[box])
            row |= {"objects": len(by_object), "pcc_objects": mean(by_object.values())}
        rows.append(with_plate_map(row, plate.plate_map(key), COLUMNS))
    return rows


def with_plate_map(row: Row, facts: Mapping[str, str], ours: Collection[str]) -> Row:
    """Returns the row with the columns of the plate map after its own.

    `ours`: names of columns that are not the plate map's, whatever it calls its own.
    """
    return row | {map_name(column, ours): value for column, value in facts.items()}


# ---------------------------------------------------------------- tables


def write_scores(rows: Sequence[Row], path: Path) -> None:
    """Writes a CSV file with a line for each row; a missing score or NaN is left empty."""
    # Numbers become text first: pandas turns whole numbers in a column with gaps into floats.
    text = [
        {name: f"{cell:.6g}" if isinstance(cell, float) and not math.isnan(cell) else cell
         for name, cell in row.items()} for row in rows
    ]  # fmt: skip
    write_atomic(path, pd.DataFrame(text, dtype=object).to_csv(index=False, lineterminator="\n"))


def means_and_deviations(rows: Sequence[Row], names: Iterable[str]) -> dict[str, float]:
    """Returns name -> mean, and name_sd -> standard deviation, over the rows; NaN where there is none."""
    means: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in rows]
        means |= {name: mean(values), f"{name}_sd": standard_deviation(values)}
    return means


def finite_figures(figures: dict[str, float]) -> dict[str, float]:
    """Returns the figures to five decimals, without NaN, which JSON does not know."""
    return {name: round(value, 5) for name, value in figures.items() if not math.isnan(value)}


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns mean and standard deviation of each score over images, and the number of images."""
    if not rows:
        return {}
    means = means_and_deviations(rows, SCORES)
    if any("objects" in row for row in rows):
        means["pcc_objects"] = mean(row["pcc_objects"] for row in rows if "objects" in row)
        means["objects"] = sum(row.get("objects", 0) for row in rows)
    constant = sum(row.get(CONSTANT, 0) for row in rows)
    return finite_figures(means) | {"images": len(rows)} | ({CONSTANT: constant} if constant else {})


def main_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the means among the figures."""
    return {name: value for name, value in figures(rows).items() if name in (*SCORES, "pcc_objects")}


def by_plate_map(study: PlateViews, rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns column -> value -> figures, for each plate map column that groups the scored wells."""
    columns = {name for index in study.indices for line in index.plate_map.values() for name in line}
    by_column: dict[str, dict[str, dict[str, Any]]] = {}
    for column in sorted(columns):
        name = map_name(column, COLUMNS)
        values = sorted({row.get(name, "") for row in rows} - {""})
        if 1 < len(values) <= MOST_GROUPS:
            by_column[column] = {v: figures([r for r in rows if r.get(name) == v]) for v in values}
    return by_column


def mean(values: Iterable[float]) -> float:
    """Returns the mean of the values that are not NaN, whatever their order; NaN where there are none."""
    finite = [value for value in values if not math.isnan(value)]
    # fsum is exact, so that the number of ranks, which orders the values, changes no figure.
    return math.fsum(finite) / len(finite) if finite else float("nan")


def standard_deviation(values: Iterable[float]) -> float:
    """Returns the sample standard deviation of the values that are not NaN; NaN for fewer than two."""
    finite = [value for value in values if not math.isnan(value)]
    if len(finite) < 2:
        return float("nan")
    return math.sqrt(math.fsum((value - mean(finite)) ** 2 for value in finite) / (len(finite) - 1))
