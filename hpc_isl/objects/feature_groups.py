"""Groups of features beside shape and intensity: correlation, rings, texture, granularity, cytoplasm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.objects.distance import PEAK, distance_map
from hpc_isl.objects.features import Columns, assigned, contiguous, features
from hpc_isl.objects.types import Floats, Image, Labels

RINGS = 4
Channels = Mapping[str, Image | None]
"""Name -> (y, x) pixels of the shape of the labels; None: not imaged, and nothing is known."""


def correlations(labels: Labels, channels: Channels) -> Columns:
    """Returns `A_B_correlation` of each pair of channels: Pearson's, over the pixels of each object.

    NaN where either channel is constant in the object, as of one pixel.
    """
    inside, rows, count = _pixels(labels)

    def centred(pixels: Image) -> Floats:
        values = pixels[inside].astype(np.float64)
        return values - (_sums(rows, count, values) / _sums(rows, count))[rows]

    deviations = {name: None if pixels is None else centred(pixels) for name, pixels in channels.items()}
    columns: Columns = {}
    for (first, a), (second, b) in combinations(deviations.items(), 2):
        result = np.full(count, np.nan)
        if a is not None and b is not None:
            scale = np.sqrt(_sums(rows, count, a * a) * _sums(rows, count, b * b))
            np.divide(_sums(rows, count, a * b), scale, out=result, where=scale > 0)
        columns[f"{first}_{second}_correlation"] = result
    return columns


def radial(labels: Labels, channels: Channels) -> Columns:
    """Returns `CHANNEL_ring1` (the innermost) to `_ring4`: mean of a ring over the mean of the object.

    Rings are of equal width in the distance from the object's edge, over its greatest. NaN where an object
    has no pixel in a ring, or a mean of 0 or less.
    """
    inside, rows, count = _pixels(labels)
    depth = distance_map(labels, "object")[inside] / PEAK
    ring = np.clip(((1 - depth) * RINGS).astype(np.int64), 0, RINGS - 1)
    columns: Columns = {}
    for name, pixels in channels.items():
        values = np.zeros(len(rows)) if pixels is None else pixels[inside].astype(np.float64)
        mean = _sums(rows, count, values) / _sums(rows, count)
        for number in range(RINGS):
            in_ring = ring == number
            ring_area, total = _sums(rows[in_ring], count), _sums(rows[in_ring], count, values[in_ring])
            result = np.full(count, np.nan)
            np.divide(total, ring_area * mean, out=result, where=(ring_area > 0) & (mean > 0))
            columns[f"{name}_ring{number + 1}"] = result
    return columns


def texture(labels: Labels, channels: Channels, white: float, scale: int, grey_levels: int) -> Columns:
    """Returns CellProfiler's Haralick features as `CHANNEL_Contrast_3_00_256`, by cp_measure.

    Args:
        white: counts that become 1, as 0 becomes 0; what lies beyond is cut.
        scale: distance of the pixels that are compared.
        grey_levels: that pixels are rounded to.
    """
    from cp_measure.core.measuretexture import get_texture  # an optional library

    return _by_cp_measure(
        labels, channels, white, lambda masks, pixels: get_texture(masks, pixels, scale, grey_levels)
    )


def granularity(labels: Labels, channels: Channels, white: float) -> Columns:
    """Returns CellProfiler's spectrum of granularity as `CHANNEL_Granularity_1` to `_16`, by cp_measure."""
    from cp_measure.core.measuregranularity import get_granularity

    return _by_cp_measure(labels, channels, white, get_granularity)


def _by_cp_measure(
    labels: Labels, channels: Channels, white: float, measure: Callable[[Any, Any], Mapping[str, Any]]
) -> Columns:
    tidy, names, rows = contiguous(labels)
    masks = np.where(tidy > 0, rows[tidy] + 1, 0).astype(np.int64)
    columns: Columns = {}
    for name, pixels in channels.items():
        scaled_pixels = (
            np.zeros(labels.shape) if pixels is None else np.clip(pixels / np.float64(white), 0, 1)
        )
        for feature, values in measure(masks, scaled_pixels).items():
            imaged = pixels is not None
            columns[f"{name}_{feature}"] = (
                np.asarray(values, float) if imaged else np.full(len(names), np.nan)
            )
    return columns


def cytoplasm(cells: Labels, nuclei: Labels, channels: Channels, pixel_um: float | None) -> Columns:
    """Returns for each cell, by ascending label, how many nuclei are its, and its cytoplasm.

    `nuclei_in_cell`: nuclei of which it holds most pixels; `cytoplasm_area_um2` (or `_px`), 0 where nuclei
    cover all of it; for each channel `cytoplasm_CHANNEL_mean`, `_sd`, `_min`, `_max` and `_sum`.
    """
    names, cell = contiguous(cells)[1], assigned(nuclei, cells)
    nuclei_in_cell = np.bincount(np.searchsorted(names, cell[cell > 0]), minlength=len(names))
    table = features(np.where(nuclei > 0, 0, cells).astype(np.uint32), channels, pixel_um)
    place = np.searchsorted(names, table["label"])
    area = "area_px" if pixel_um is None else "area_um2"
    column_names = [
        area,
        *(f"{name}_{kind}" for name in channels for kind in ("mean", "sd", "min", "max", "sum")),
    ]
    columns: Columns = {"nuclei_in_cell": nuclei_in_cell}
    for name in column_names:
        values = np.full(len(names), 0.0 if name == area else np.nan)
        values[place] = table[name]
        columns[f"cytoplasm_{name}"] = values
    return columns


def _pixels(labels: Labels) -> tuple[NDArray[np.bool_], NDArray[np.int32], int]:
    """Returns which pixels are of objects, the row of each of these, and the number of objects."""
    tidy, names, rows = contiguous(labels)
    inside = tidy > 0
    return inside, rows[tidy[inside]], len(names)


def _sums(rows: NDArray[np.int32], count: int, values: Floats | None = None) -> Floats:
    return np.bincount(rows, weights=values, minlength=count).astype(np.float64)
