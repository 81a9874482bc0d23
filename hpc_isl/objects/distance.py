"""Distance maps of labels, which the network learns to predict beside the mask.

The distance of a pixel is the exact Euclidean one to the nearest pixel of the image that is not of its
object: background, or another object, so that objects which touch have a valley of 1 between them.
Background is 0.

Beyond the image's edge nothing is known, so the edge bounds no object: half a cell rises towards the edge, as
it does in a training crop that cuts it. (An object that fills the image is measured to the edge; it has no
other end.)
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.objects.compiled import compiled
from hpc_isl.objects.types import AnyLabels, Distance, Labels

Scale = Literal["pixels", "object"]
PEAK = 255.0
FAR = 2**30  # no other pixel in this column


def distance_map(labels: AnyLabels, scale: Scale = "object") -> Distance:
    """Returns the distance inside each object (y, x), 0 outside.

    Args:
        labels: (y, x), 0 background, k the k-th object; pieces of one label are one object.
        scale: "pixels": distances in pixels. "object": the greatest of each object is 255, so that h and α
            mean the same for small objects and large ones; h = 10 and α = 2000 are numbers on this scale.
    """
    if scale not in ("pixels", "object"):
        raise UserError(f"scale {scale!r} of a distance map: 'pixels' or 'object'")
    names = names_of(labels)
    distance = np.zeros(names.shape, np.float32)
    if names.size:
        _complete_rows(names, _column_distances(names), distance)
    if scale == "object":
        _scale(names.ravel(), distance.ravel(), np.zeros(int(names.max(initial=0)) + 1, np.float32))
    return distance


def names_of(labels: AnyLabels) -> Labels:
    if labels.ndim != 2 or labels.dtype.kind not in "biu":
        raise UserError(f"labels of shape {labels.shape}, {labels.dtype}: whole numbers (y, x) are expected")
    if labels.size and labels.min() < 0:
        raise UserError(f"labels go down to {labels.min()}; 0 is background, objects are positive")
    if labels.size and labels.max() > 4 * labels.size:  # renumbered, so that a table by label is short
        labels = np.unique(np.append(labels, labels.dtype.type(0)), return_inverse=True)[1][:-1].reshape(
            labels.shape
        )
    return np.ascontiguousarray(labels, np.uint32)


@compiled
def _column_distances(names: Any) -> Any:
    """Returns each pixel's distance to the nearest one of its column that has another label."""
    height, width = names.shape
    steps = np.full((height, width), FAR, np.int64)
    for y in range(1, height):
        for x in range(width):
            steps[y, x] = min(steps[y - 1, x] + 1, FAR) if names[y, x] == names[y - 1, x] else 1
    for y in range(height - 2, -1, -1):
        for x in range(width):
            below = steps[y + 1, x] + 1 if names[y, x] == names[y + 1, x] else 1
            steps[y, x] = min(steps[y, x], below)
    return steps


@compiled
def _complete_rows(names: Any, steps: Any, distance: Any) -> None:
    """Completes each row, run by run of equal labels."""
    # What lies beyond a run is never nearer than the pixel at its end, which has another label. So a run
    # needs itself and its two ends alone, and one pass serves all objects.
    height, width = names.shape
    envelope = np.empty((2, width), np.int64)
    for y in range(height):
        start = 0
        for x in range(1, width + 1):
            if x == width or names[y, x] != names[y, start]:
                if names[y, start] != 0:
                    count = _envelope(steps[y], start, x, envelope)
                    _fill(steps[y], start, x, envelope[:, :count], y, height, distance[y])
                start = x


@compiled
def _squared_column_distance(steps: Any, start: int, end: int, x: int) -> int:
    # Squared distance to the nearest pixel of another label in a column; the ends of a run are such.
    return steps[x] * steps[x] if start <= x < end else 0


@compiled
def _envelope(steps: Any, start: int, end: int, envelope: Any) -> int:
    """Writes which columns are nearest to a stretch of the run, and from where on; returns their number.

    The lower envelope of parabolas (Meijster et al. 2000), in whole numbers.
    """
    count = 0
    for column in range(max(start - 1, 0), min(end + 1, steps.size)):
        if start <= column < end and steps[column] == FAR:
            continue
        begin, high = start, column * column + _squared_column_distance(steps, start, end, column)
        while count > 0:
            last = envelope[0, count - 1]
            lead = high - last * last - _squared_column_distance(steps, start, end, last)
            begin = -(-lead // (2 * (column - last)))
            if begin > envelope[1, count - 1]:
                break
            count -= 1
            begin = start
        if begin < end:
            envelope[0, count], envelope[1, count] = column, begin
            count += 1
    return count


@compiled
def _fill(steps: Any, start: int, end: int, envelope: Any, y: int, height: int, distance: Any) -> None:
    """Writes the distances of one run."""
    k = 0
    for x in range(start, end):
        while k + 1 < envelope.shape[1] and envelope[1, k + 1] <= x:
            k += 1
        if envelope.shape[1] == 0:  # the object fills the image and is measured to the edge
            distance[x] = min(x + 1, end - x, y + 1, height - y)
        else:
            column = envelope[0, k]
            distance[x] = np.sqrt((x - column) ** 2 + _squared_column_distance(steps, start, end, column))


@compiled
def _scale(names: Any, distance: Any, tops: Any) -> None:
    """Raises each object's greatest distance to PEAK."""
    for i in range(names.size):
        tops[names[i]] = max(tops[names[i]], distance[i])
    for i in range(names.size):
        if names[i] != 0:
            # In float64, so that the greatest distance becomes PEAK exactly.
            distance[i] = np.float64(distance[i]) * PEAK / tops[names[i]]
