"""Labels drafted from a stain: smooth, threshold, split what touches. A start for people, not a truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import feature, filters, segmentation

Labels = NDArray[np.uint32]
RULES = {"otsu": filters.threshold_otsu, "triangle": filters.threshold_triangle, "li": filters.threshold_li}


def draft_labels(
    stain: NDArray[Any], *, threshold: str | float, sigma: float, min_area: int, split: bool
) -> Labels:
    """Labels (y, x) of the bright objects of a stain (y, x), those of `min_area` pixels or more.

    Args:
        threshold: otsu, triangle or li (of the smoothed stain), or a value in counts.
        sigma: of the Gaussian before the threshold, in pixels.
        min_area: in pixels; peaks of the distance map nearer to each other than the radius of an object of
            this size are one.
        split: touching objects are cut by a watershed on the distance to the background.
    """
    return without_small(pieces_of(stain, threshold, sigma, min_area, split), min_area)


def pieces_of(
    stain: NDArray[Any], threshold: str | float, sigma: float, min_area: int, split: bool
) -> NDArray[np.int32]:
    """The same, small ones among them."""
    smooth = ndimage.gaussian_filter(stain.astype(np.float32), sigma)
    above = RULES[threshold](smooth) if isinstance(threshold, str) else threshold
    mask = ndimage.binary_fill_holes(smooth > above)
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    if split:
        pieces = _split(pieces, reach=max(1, round(np.sqrt(min_area / np.pi))))
    return np.asarray(pieces, np.int32)


def _split(pieces: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """Each piece is flooded from the peaks of its distance to the background."""
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(pieces > 0), reach / 2)
    peaks = feature.peak_local_max(distance, min_distance=reach, labels=pieces, exclude_border=False)
    seeds = np.zeros_like(pieces)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    flooded: NDArray[np.int32] = segmentation.watershed(-distance, seeds, mask=pieces > 0)
    return flooded


def without_small(labels: NDArray[Any], min_area: int) -> Labels:
    """The objects of `min_area` pixels or more, numbered anew."""
    return parted_by_size(labels, min_area)[0]


def parted_by_size(labels: NDArray[Any], min_area: int) -> tuple[Labels, int]:
    """The objects of `min_area` pixels or more, numbered anew, and how many were smaller."""
    areas = np.bincount(labels.ravel())
    small = int(np.count_nonzero((areas[1:] > 0) & (areas[1:] < min_area)))
    return in_raster_order(np.where(areas[labels] < min_area, 0, labels)), small


def in_raster_order(labels: NDArray[Any]) -> Labels:
    """The same objects numbered 1, 2, … by where their first pixel lies."""
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, -1, first))
    rank = np.empty(len(values), np.uint32)
    rank[order] = np.arange(len(values)) + (0 not in values)
    return rank[inverse].reshape(labels.shape)
