"""The networks of a run, ready in a process of the pool, and what they make of a field: labels."""

from __future__ import annotations

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

from hpc_isl.learning.data.fields import image_key, imaged_times
from hpc_isl.learning.data.rescale import Scale, read_sources, to_full
from hpc_isl.learning.data.view import View
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.model import load
from hpc_isl.learning.training.precision import as_scored, kind_of, resolve
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment.files import schema_file
from hpc_isl.stages.segment.inputs import (
    Models,
    is_empty,
    models_of,
    recipe_of,
    scale_of,
    stain_scale_of,
    view_of,
)
from hpc_isl.stages.segment.maps import Maps, maps_of
from hpc_isl.stages.shared.decoding import Rule, decode, rule_of

Pixels = NDArray[np.float32]
Labels = NDArray[np.uint32]
_LOADING = Lock()


@dataclass(frozen=True)
class Segmenter:
    """What a process keeps between fields: the recipe and the networks, loaded once.

    Attributes:
        device: kind of device and precision, as in `cpu AVX512 fp32`: on each results repeat to the bit.
        schema: of the tables of objects.
    """

    recipe: SegmentRecipe
    models: Models
    view: View
    predictor: Predictor
    device: str
    rule: Rule
    stain: Predictor | None
    stain_view: View | None
    maps: Maps
    schema: pa.Schema


@dataclass(frozen=True)
class FieldPrediction:
    """One field at one time.

    Attributes:
        prediction: (output, y, x) as the network says it, on its own grid.
        stain: (target, y, x) on the grid of its model, or None.
        labels: (y, x) at full resolution.
        dropped: how many objects were too small to count.
    """

    prediction: Pixels
    stain: Pixels | None
    labels: Labels
    dropped: int = 0


def load_segmenter(run: Path) -> Segmenter:
    """The networks of a run, ready on this process's device; loaded once, whichever thread asks first."""
    with _LOADING:
        return _segmenter(run)


@lru_cache(maxsize=2)
def _segmenter(run: Path) -> Segmenter:
    recipe = recipe_of(Run(run))
    models = models_of(recipe)
    stained = models.stain_contract
    predictor = _loaded(recipe, models.folder)
    return Segmenter(
        recipe, models, view_of(recipe, models.contract), predictor,
        kind_of(predictor.device, predictor.dtype), _rule(recipe, models),
        stain=_loaded(recipe, models.stain) if models.stain else None,
        stain_view=view_of(recipe, stained) if stained else None,
        maps=maps_of(recipe.outputs, models.contract, stained),
        schema=pq.read_schema(schema_file(run)),
    )  # fmt: skip


def _rule(recipe: SegmentRecipe, models: Models) -> Rule:
    """The model's rule, with what the recipe says otherwise."""
    given = {"h_maxima": recipe.h_maxima, "min_area": recipe.min_area}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if recipe.min_area is not None:
        changes["min_area_um2"] = None
    return replace(rule_of(models.contract.task), **changes)


def _loaded(recipe: SegmentRecipe, folder: Path) -> Predictor:
    """The network on the device that this process sees."""
    network, contract = load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of = recipe.predict or contract.predict
    given = recipe.precision
    dtype = resolve(given, device) if given else as_scored(contract.precision, device)
    return Predictor(
        network, device, dtype, tile=of.tile, halo=of.halo, batch=of.batch, threads=recipe.threads,
        channels_last=contract.net.channels_last, compiled=recipe.compile,
    )  # fmt: skip


@lru_cache(maxsize=16)
def index_of(plate: Path) -> Index:
    return open_plate(plate)


# ---------------------------------------------------------------- pixels to labels


def predict_field(segmenter: Segmenter, index: Index, key: FieldKey) -> list[FieldPrediction]:
    """All times of a field."""
    return [_look(segmenter, index, key, time) for time in range(index.field(key).shape[0])]


def _look(segmenter: Segmenter, index: Index, key: FieldKey, time: int) -> FieldPrediction:
    scale = scale_of(segmenter.recipe, segmenter.view, index, key)
    if time not in imaged_times(segmenter.view, index, key):
        return _not_imaged(segmenter, index, key, scale)
    prediction = segmenter.predictor(read_sources(segmenter.view, index, key, time, scale))
    shape = index.field(image_key(key, segmenter.view.sources[0])).shape
    full = to_full(prediction, scale, (shape[-2], shape[-1]))
    stain = _stain(segmenter, index, key, time)
    if is_empty(segmenter.recipe, segmenter.view, index, key):
        return FieldPrediction(prediction, stain, np.zeros(full.shape[1:], np.uint32))
    rule = segmenter.rule.finer(scale.to_level_0, index.plate.pixel_um)
    return FieldPrediction(prediction, stain, *decode(full, rule))


def _not_imaged(segmenter: Segmenter, index: Index, key: FieldKey, scale: Scale) -> FieldPrediction:
    """A time at which a source is missing: no objects, which the record tells from an empty image."""
    task = segmenter.models.contract.task
    outputs = task.outputs if task else len(segmenter.view.targets)
    prediction = np.zeros((outputs, *scale.shape), np.float32)
    labels = np.zeros(index.field(key).shape[-2:], np.uint32)
    stain = None
    if segmenter.stain_view is not None:
        shape = (len(segmenter.stain_view.targets), *stain_scale(segmenter, index, key).shape)
        stain = np.zeros(shape, np.float32)
    return FieldPrediction(prediction, stain, labels)


def not_imaged(segmenter: Segmenter, index: Index, key: FieldKey) -> list[int]:
    """The times of a field at which a source was not imaged."""
    return sorted({*range(index.field(key).shape[0])} - {*imaged_times(segmenter.view, index, key)})


def _stain(segmenter: Segmenter, index: Index, key: FieldKey, time: int) -> Pixels | None:
    if segmenter.stain is None or segmenter.stain_view is None:
        return None
    scale = stain_scale(segmenter, index, key)
    return segmenter.stain(read_sources(segmenter.stain_view, index, key, time, scale))


def stain_scale(segmenter: Segmenter, index: Index, key: FieldKey) -> Scale:
    """The scale of a field for the model of the stain."""
    assert segmenter.stain_view is not None
    return stain_scale_of(segmenter.recipe, segmenter.stain_view, index, key)
