"""What is measured of the objects of a field: features, intensities, the cell each lies in, and the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpc_isl.learning.data.rescale import to_full_box
from hpc_isl.learning.data.view import View
from hpc_isl.objects.draft_labels import draft_labels
from hpc_isl.objects.features import assigned, features
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, fully_annotated, label_provenance, read_box, read_labels
from hpc_isl.recipes.segment import ReferenceRecipe, SegmentRecipe
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.files import FieldTask
from hpc_isl.stages.segment.inputs import PlateInput
from hpc_isl.stages.segment.segmenter import FieldPrediction, Labels, Pixels, Segmenter, stain_scale

Box = tuple[slice, slice]


def measured(segmenter: Segmenter, index: Index, work: FieldTask, seen: list[FieldPrediction]) -> pa.Table:
    """One row for each object of a field."""
    rows = []
    for time, each in enumerate(seen):
        channels = intensities(segmenter, index, work.key, time, each.stain, _whole(each.labels.shape))
        columns = features(each.labels, channels, index.plate.pixel_um)
        if segmenter.recipe.cells:
            columns["cell"] = _cells(segmenter.recipe.cells, index, work.key, time, each.labels)
        rows.append((time, columns))
    return files.table_of(work, rows)


def intensities(
    segmenter: Segmenter, index: Index, key: FieldKey, time: int, stain: Pixels | None, box: Box
) -> Mapping[str, NDArray[Any] | None]:
    """Channel -> (y, x) of a box of level 0: stored counts of those that are measured, and predicted stains.

    Args:
        stain: (target, y, x) on the grid of the model that predicts it, or None.
    """
    there = {channel.name: channel.fluorescent for channel in index.plate.channels}
    found = {
        name: _projected(index, key, time, name, there[name], box)
        for name in _stored_channels(segmenter.recipe, index)
    }
    if stain is None or segmenter.stain_view is None:
        return found
    full = to_full_box(lambda part: np.asarray(stain[:, *part]), stain_scale(segmenter, index, key), box)
    return found | dict(zip(_predicted_channels(segmenter.stain_view), full, strict=True))


def _stored_channels(recipe: SegmentRecipe, index: Index) -> list[str]:
    """The channels of a plate whose intensity is measured."""
    fluorescent = [channel.name for channel in index.plate.channels if channel.fluorescent]
    return fluorescent if recipe.measure is None else recipe.measure


def _predicted_channels(stain: View | None) -> list[str]:
    return [f"{role.channel} (predicted)" for role in stain.targets] if stain else []


def schema_of(recipe: SegmentRecipe, stain: View | None, targets: Sequence[PlateInput]) -> pa.Schema:
    """The columns of all plates of a run: those of the first, then what others have beside them.

    Plates differ in their channels, and in whether their size of a pixel is known.
    """
    schemas = []
    for target in targets:
        names = [*_stored_channels(recipe, target.index), *_predicted_channels(stain)]
        nothing = np.zeros((1, 1), np.uint32)
        columns = features(nothing, dict.fromkeys(names), target.index.plate.pixel_um)
        if recipe.cells:
            columns["cell"] = np.zeros(0, np.uint32)
        work = FieldTask(Path(), target.index.path, target.name, target.slug, target.keys[0])
        schemas.append(files.table_of(work, [(0, columns)]).schema)
    return pa.unify_schemas(schemas)


def _projected(
    index: Index, key: FieldKey, time: int, name: str, stains: bool, box: Box
) -> NDArray[Any] | None:
    """The maximum over the planes of a stain, the mean of those of transmitted light; None: not imaged."""
    channel = index.channel(name)
    planes = index.planes(key, channel, time)
    if not planes:
        return None
    stack = read_box(index.image(key), 0, time, channel, planes, *box)
    projected: NDArray[Any] = stack.max(0) if stains else stack.mean(0, dtype=np.float32)
    return projected


def _whole(shape: tuple[int, ...]) -> Box:
    return slice(0, shape[-2]), slice(0, shape[-1])


def _cells(name: str, index: Index, key: FieldKey, time: int, labels: Labels) -> NDArray[np.uint32]:
    """For each object the cell that it lies in."""
    cells = read_labels(index.image(key), name)
    return assigned(labels, cells[time] if cells.ndim == 3 else cells)


# ---------------------------------------------------------------- truth


def true_counts(of: ReferenceRecipe | None, index: Index, work: FieldTask, times: int) -> list[int] | None:
    """How many objects there are at each time, by labels or by a stain; None: the field has neither.

    Labels count where they are drawn in all of the field. What this very run has written is no truth.
    """
    if of is None:
        return None
    if of.labels is not None:
        return _drawn(of.labels, index.image(work.key), work.labels_fingerprint)
    key = stained(of, work.key)
    there = key in index.statistics and of.channel in [channel.name for channel in index.plate.channels]
    if not there or of.channel is None:
        return None
    counts = [_drafted(of, of.channel, index, key, time) for time in range(times)]
    known = [count for count in counts if count is not None]
    return known if len(known) == times else None


def stained(of: ReferenceRecipe, key: FieldKey) -> FieldKey:
    """The field in the pass of imaging that has the stain."""
    return key if of.acquisition is None else replace(key, acquisition=of.acquisition)


def _drawn(name: str, image: Path, own: str) -> list[int] | None:
    made = label_provenance(image, name)
    if made is None or made[1] == own or not fully_annotated(image, name):
        return None
    labels = read_labels(image, name)
    return [int(np.count_nonzero(np.unique(one))) for one in labels.reshape(-1, *labels.shape[-2:])]


def _drafted(of: ReferenceRecipe, channel: str, index: Index, key: FieldKey, time: int) -> int | None:
    stain = _projected(index, key, time, channel, True, _whole(index.field(key).shape))
    if stain is None:
        return None
    if f"empty:{index.channel(channel)}" in index.statistics[key].flags:
        return 0
    found = draft_labels(stain, threshold=of.threshold, sigma=of.sigma, min_area=of.min_area, split=True)
    return int(found.max(initial=0))
