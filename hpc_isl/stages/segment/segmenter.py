"""The networks of a run, ready in a process of the pool; the reader of a field, and the labels made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from hpc_isl.learning.data.fields import field_view, imaged_times
from hpc_isl.learning.data.pixels import Box, Pixels
from hpc_isl.learning.data.rescale import at_scale, labels_to_full, read_sources, to_full, to_full_box
from hpc_isl.learning.data.view import counts
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.contract import PROGRAM
from hpc_isl.learning.network.model import load
from hpc_isl.learning.training.precision import as_scored, kind_of, resolve
from hpc_isl.objects.confidence import MEASURES, confidence, measures
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.types import Floats, Labels
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.statistics import sharpness
from hpc_isl.plates.store import open_plate, read_box, read_labels
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment.files import SCRATCH, Maps, maps_of, schema_file
from hpc_isl.stages.segment.inputs import PlateInput, kept_recipe
from hpc_isl.stages.segment.models import Models, models_of
from hpc_isl.stages.shared.decoding import Rule, decode, rule_of
from hpc_isl.stages.shared.program import predict

# Threads of one process share the networks: the second waits until the first has loaded them.
_LOADING = Lock()


class FieldReader:
    """Reads the pixels of one field; made once per field.

    Attributes:
        plate, key: the field, and the plate as the models see it; run: the folder of the run.
        image: folder of its pixels and labels.
        shape: (y, x) at full resolution.
        times: number of times; `not_imaged`: those at which a source is missing.
        scale: of the model's pixels; `stain_scale`: of those of the model of the stain, or None.
        is_empty: no source shows any structure: there are no objects.
    """

    def __init__(self, plate: PlateInput, key: FieldKey, run: Path) -> None:
        self.run = run
        self.plate, self.key, self.index = plate, key, plate.index
        self.image, field = plate.image(key), plate.index.field(key)
        self.times: int = field.shape[0]
        self.shape: tuple[int, int] = (field.shape[-2], field.shape[-1])
        self.not_imaged = sorted({*range(self.times)} - {*imaged_times(plate.models.view, self.index, key)})
        self.scale = plate.scale(key)
        self.stain_scale = plate.stain_scale(key) if plate.models.stain_view else None
        self.is_empty, self.is_large = plate.is_empty(key), plate.is_large(key)

    @property
    def whole(self) -> Box:
        return slice(0, self.shape[0]), slice(0, self.shape[1])

    def sources(self, time: int, box: Box | None = None) -> Pixels:
        """Returns (source, y, x) float32, normalised, on the model's grid; `box` of that grid, or all."""
        return read_sources(self.plate.models.view, self.index, self.key, time, self.scale, box)

    def stain_sources(self, time: int, box: Box | None = None) -> Pixels:
        """Returns (source, y, x) as `sources`, for the model of the stain."""
        view, scale = self.plate.models.stain_view, self.stain_scale
        assert view is not None and scale is not None  # noqa: PT018
        return read_sources(view, self.index, self.key, time, scale, box)

    def focus(self, time: int) -> dict[str, tuple[float, float]]:
        """Returns source -> sharpness and contrast of its sharpest plane: `statistics.sharpness`."""
        view = replace(at_scale(self.plate.models.view, self.scale), targets=(), foreground=None)
        facts: dict[str, tuple[float, float]] = {}
        roles = self.plate.models.view.sources
        for role, plane in zip(roles, field_view(view, self.index, self.key, time).sources, strict=True):
            score = sharpness(counts(plane, plane.whole))
            facts[role.channel] = max(score, facts.get(role.channel, score))
        return facts

    def predicted(self, stain: Pixels | None, box: Box) -> Mapping[str, NDArray[Any] | None]:
        """Returns predicted stain -> (y, x) of a box at full resolution; none where there is no such model.

        Args:
            stain: (target, y, x) on the grid of the model that predicts it, or None.
        """
        if stain is None or self.stain_scale is None:
            return {}
        full = to_full_box(lambda part: np.asarray(stain[:, *part]), self.stain_scale, box)
        return dict(zip(predicted_channels(self.plate.models), full, strict=True))

    def corrected(self, name: str, raw: NDArray[Any] | None, box: Box, labels: Labels) -> NDArray[Any] | None:
        """Returns the counts of a channel in a box (y, x) as they are measured."""
        if raw is None:
            return None
        return self.plate.illumination.corrected(name, raw, self.shape, box, labels, self.run)

    def projected(
        self, key: FieldKey, time: int, name: str, box: Box, is_stain: bool | None = None
    ) -> NDArray[Any] | None:
        """Returns (y, x): the maximum over the planes of a stain, the mean of those of transmitted light.

        None: the channel was not imaged. `key`: the field, or the same in another pass of imaging.
        `is_stain`: whatever the plate says of the channel.
        """
        channel = self.index.channel(name)
        planes = self.index.planes(key, channel, time)
        if not planes:
            return None
        stack = read_box(self.index.image(key), 0, time, channel, planes, *box)
        if is_stain is None:
            is_stain = self.index.plate.channels[channel].fluorescent
        projected: NDArray[Any] = stack.max(0) if is_stain else stack.mean(0, dtype=np.float32)
        return projected

    def labels(self, name: str, time: int) -> Labels:
        """Returns (y, x) of labels that the plate holds."""
        labels = read_labels(self.image, name)
        return labels[time] if labels.ndim == 3 else labels


def stored_channels(plate: PlateInput) -> list[str]:
    """Returns the channels of a plate whose intensity is measured."""
    if plate.recipe.measure.channels is not None:
        return plate.recipe.measure.channels
    return [channel.name for channel in plate.index.plate.channels if channel.fluorescent]


def predicted_channels(models: Models) -> list[str]:
    """Returns the names of the stains that are predicted and measured."""
    return [
        f"{role.channel} (predicted)" for role in (models.stain_view.targets if models.stain_view else ())
    ]


# ---------------------------------------------------------------- pixels to labels


@dataclass(frozen=True)
class FieldPrediction:
    """One field at one time.

    Attributes:
        prediction: (output, y, x) as the network predicts it, on its own grid; a program gives no output.
        stain: (target, y, x) on the grid of its model, or None.
        labels: (y, x) at full resolution.
        dropped: how many objects were too small to count.
        measures: of their confidence, as `Segmenter.measures` returns them.
    """

    prediction: Pixels
    stain: Pixels | None
    labels: Labels
    dropped: int = 0
    measures: Floats | None = None


@dataclass(frozen=True)
class Segmenter:
    """The recipe and the networks, loaded once and kept by a process from field to field.

    Attributes:
        predictor: the network that segments; None: another program does, in files below a folder of the run.
        run: its folder.
        device: kind of device and precision, as in `cpu AVX512 fp32`: on each results are bit-identical.
        rule: how a prediction becomes labels.
        schema: of the tables of objects.
    """

    recipe: SegmentRecipe
    models: Models
    predictor: Predictor | None
    device: str
    rule: Rule
    stain: Predictor | None
    maps: Maps
    schema: pa.Schema
    run: Path

    def reader(self, plate: Path, key: FieldKey) -> FieldReader:
        """Returns the reader of a field."""
        return FieldReader(PlateInput(self.recipe, self.models, open_once(plate)), key, self.run)

    def field(self, reader: FieldReader) -> list[FieldPrediction]:
        """Predicts all times of a field and finds their objects."""
        return [self._image(reader, time) for time in range(reader.times)]

    def _image(self, reader: FieldReader, time: int) -> FieldPrediction:
        # Without objects nothing is asked of a network, but for maps. The record tells the two apart.
        if time in reader.not_imaged or (reader.is_empty and not self.maps.channels):
            task, zeros = self.models.contract.task, np.zeros(reader.shape, np.uint32)
            outputs = task.outputs if task else len(self.models.view.targets)
            outputs = 0 if self.predictor is None else outputs
            stain = None
            if self.models.stain_view and reader.stain_scale:
                stain = np.zeros((len(self.models.stain_view.targets), *reader.stain_scale.shape), np.float32)
            return FieldPrediction(np.zeros((outputs, *reader.scale.shape), np.float32), stain, zeros)
        stain = self.stain(reader.stain_sources(time)) if self.stain else None
        if self.predictor is None:
            prediction = np.zeros((0, *reader.scale.shape), np.float32)
        else:
            prediction = self.predictor(reader.sources(time))
        if reader.is_empty:
            return FieldPrediction(prediction, stain, np.zeros(reader.shape, np.uint32))
        if self.predictor is None:
            return FieldPrediction(prediction, stain, *self._by_program(reader, time))
        full = to_full(prediction, reader.scale, reader.shape)
        labels, dropped = decode(full, self.rule_on(reader))
        return FieldPrediction(prediction, stain, labels, dropped, self.measures(reader, labels, full))

    def measures(self, reader: FieldReader, labels: Labels, prediction: Pixels) -> Floats | None:
        """Returns (object, measure) by label, for `objects.confidence`; None: the model knows none.

        Args:
            labels, prediction: (y, x) and (output, y, x) of a field at full resolution, or of a part of it.
        """
        task = self.models.contract.task
        if task is None or task.confidence is None:
            return None
        return measures(labels, prediction, self.rule.threshold, 1 / reader.scale.to_level_0**2)

    def confidence(self, column: str | None, values: Floats | None) -> dict[str, Floats]:
        """Returns the column of a field's objects from their measures; empty: the plate has none."""
        task = self.models.contract.task
        if column is None or task is None:
            return {}
        values = np.empty((0, len(MEASURES))) if values is None else values
        return {column: confidence(column, values, task.confidence or ())}

    def _by_program(self, reader: FieldReader, time: int) -> tuple[Labels, int]:
        """Returns the labels of a field at full resolution, and how many objects were too small to count."""
        program = self.models.contract.program
        assert program is not None
        [labels] = predict(program, [reader.sources(time)], self.models.folder / PROGRAM, self.run / SCRATCH)
        return drop_small(labels_to_full(labels, reader.scale, reader.shape), self.rule_on(reader).min_area)

    def rule_on(self, reader: FieldReader) -> Rule:
        """Returns the rule for the pixels of a field at full resolution."""
        return self.rule.finer(reader.scale.to_level_0, reader.index.plate.pixel_um)


def load_segmenter(run: Path) -> Segmenter:
    """Returns the networks of a run, on this process's device; loaded once, whichever thread asks first."""
    with _LOADING:
        return _segmenter(run)


@lru_cache(maxsize=2)
def _segmenter(run: Path) -> Segmenter:
    recipe = kept_recipe(Run(run))
    models = models_of(recipe)
    program = models.contract.program
    predictor = _predictor(recipe, models.folder) if program is None else None
    device = (
        kind_of(predictor.device, predictor.dtype) if predictor else f"program {program and program.name}"
    )
    overrides = {"h_maxima": recipe.h_maxima, "min_area": recipe.min_area}
    changes: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    if recipe.min_area is not None:
        changes["min_area_um2"] = None  # the recipe's pixels replace the model's micrometres
    return Segmenter(
        recipe, models, predictor, device,
        replace(rule_of(models.contract.task), **changes),
        stain=_predictor(recipe, models.stain) if models.stain else None,
        maps=maps_of(recipe.outputs, models.contract, models.stain_contract),
        schema=pq.read_schema(schema_file(run)),
        run=run,
    )  # fmt: skip


def _predictor(recipe: SegmentRecipe, folder: Path) -> Predictor:
    """Returns a network on the device that this process sees."""
    network, contract = load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiling, precision = recipe.predict or contract.predict, recipe.precision
    dtype = resolve(precision, device) if precision else as_scored(contract.precision, device)
    return Predictor(
        network, device, dtype, tile=tiling.tile, halo=tiling.halo, batch=tiling.batch,
        threads=recipe.threads, channels_last=contract.net.channels_last, compiled=recipe.compile,
    )  # fmt: skip


open_once = lru_cache(maxsize=16)(open_plate)
"""Opens a plate, once for many fields of it."""
