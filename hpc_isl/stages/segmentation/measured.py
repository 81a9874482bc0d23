"""What is measured of the objects of a field: features, intensities, the cell each lies in, and the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpc_isl.learning.foreign import to_full_box
from hpc_isl.mistake import Mistake
from hpc_isl.objects.draft import draft
from hpc_isl.objects.features import assigned, features
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, computed_by, read_box, read_labels
from hpc_isl.recipes.segment import TruthRecipe
from hpc_isl.stages.segmentation import files
from hpc_isl.stages.segmentation.bench import Bench, Labels, Pixels, Seen, stain_scale
from hpc_isl.stages.segmentation.files import Work

Box = tuple[slice, slice]


def measured(bench: Bench, index: Index, work: Work, seen: list[Seen]) -> pa.Table:
    """One row for each object of a field."""
    rows = []
    for time, each in enumerate(seen):
        channels = intensities(bench, index, work.key, time, each.stain, _whole(each.labels.shape))
        columns = features(each.labels, channels, index.plate.pixel_um)
        if bench.recipe.cells:
            columns["cell"] = _cells(bench.recipe.cells, index, work.key, time, each.labels)
        rows.append((time, columns))
    return files.table_of(work, rows)


def intensities(
    bench: Bench, index: Index, key: FieldKey, time: int, stain: Pixels | None, box: Box
) -> Mapping[str, NDArray[Any]]:
    """Channel -> (y, x) of a box of level 0: stored counts of those that are measured, and predicted stains.

    Args:
        stain: (target, y, x) on the grid of the model that predicts it, or None.
    """
    there = {channel.name: channel.fluorescent for channel in index.plate.channels}
    wanted = bench.recipe.measure
    names = [name for name, stains in there.items() if stains] if wanted is None else wanted
    found = {name: _projected(index, key, time, name, there[name], box) for name in names}
    if stain is None or bench.stain_view is None:
        return found
    full = to_full_box(lambda part: np.asarray(stain[:, *part]), stain_scale(bench, index, key), box)
    names = [f"{role.channel} (predicted)" for role in bench.stain_view.targets]
    return found | dict(zip(names, full, strict=True))


def _projected(index: Index, key: FieldKey, time: int, name: str, stains: bool, box: Box) -> NDArray[Any]:
    """The maximum over the planes of a stain, the mean of those of transmitted light."""
    planes = list(index.field(key).planes(name))
    if not planes:
        return np.zeros([side.stop - side.start for side in box], np.float32)
    stack = read_box(index.image(key), 0, time, index.channel(name), planes, *box)
    projected: NDArray[Any] = stack.max(0) if stains else stack.mean(0, dtype=np.float32)
    return projected


def _whole(shape: tuple[int, ...]) -> Box:
    return slice(0, shape[-2]), slice(0, shape[-1])


def _cells(name: str, index: Index, key: FieldKey, time: int, labels: Labels) -> NDArray[np.uint32]:
    """For each object the cell that it lies in."""
    cells = read_labels(index.image(key), name)
    return assigned(labels, cells[time] if cells.ndim == 3 else cells)


# ---------------------------------------------------------------- truth


def true_count(of: TruthRecipe | None, index: Index, work: Work, times: int) -> int | None:
    """How many objects there are by labels or by a stain; None where the field has neither.

    What this very run has written is no truth.
    """
    if of is None:
        return None
    key = work.key
    if of.labels is not None:
        made = computed_by(index.image(key), of.labels)
        if made and made[1] == work.fingerprint:
            return None
        try:
            labels = read_labels(index.image(key), of.labels)
        except Mistake:
            return None
        return sum(int(np.count_nonzero(np.unique(p))) for p in labels.reshape(-1, *labels.shape[-2:]))
    if of.channel not in [channel.name for channel in index.plate.channels]:
        return None
    return sum(_drafted(of, of.channel, index, key, time) for time in range(times))


def _drafted(of: TruthRecipe, channel: str, index: Index, key: FieldKey, time: int) -> int:
    if f"empty:{index.channel(channel)}" in index.statistics[key].flags:
        return 0
    stain = _projected(index, key, time, channel, True, _whole(index.field(key).shape))
    found = draft(stain, threshold=of.threshold, sigma=of.sigma, min_area=of.min_area, split=True)
    return int(found.max(initial=0))
