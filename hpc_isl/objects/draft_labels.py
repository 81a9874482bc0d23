"""Labels drafted from a stain: smoothed, thresholded, split where objects touch; people correct them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import feature, filters, segmentation

from hpc_isl.objects.types import AnyLabels, Image, Labels
from hpc_isl.objects.watershed_kernels import first_and_area, renumbered

RULES = {"otsu": filters.threshold_otsu, "triangle": filters.threshold_triangle, "li": filters.threshold_li}


def draft_labels(stain: Image, *, threshold: str | float, sigma: float, min_area: int, split: bool) -> Labels:
    """Returns labels (y, x) of the bright objects of a stain (y, x), those of `min_area` pixels or more.

    Args:
        threshold: otsu, triangle or li (of the smoothed stain), or a value in counts.
        sigma: of the Gaussian before the threshold, in pixels.
        min_area: in pixels; peaks of the distance map nearer to each other than the radius of an object of
            this size are one.
        split: touching objects are cut by a watershed on the distance to the background.
    """
    return drop_small(pieces_of(stain, threshold, sigma, min_area, split), min_area)[0]


def pieces_of(
    stain: Image, threshold: str | float, sigma: float, min_area: int, split: bool
) -> NDArray[np.int32]:
    """Returns the labels of `draft_labels` before small objects are dropped, in no order."""
    smooth = ndimage.gaussian_filter(stain.astype(np.float32), sigma)
    limit = RULES[threshold](smooth) if isinstance(threshold, str) else threshold
    mask = ndimage.binary_fill_holes(smooth > limit)
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    if split:
        # Each piece is cut by a watershed from the peaks of its distance to the background.
        reach = max(1, round(np.sqrt(min_area / np.pi)))
        distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(pieces > 0), reach / 2)
        peaks = feature.peak_local_max(distance, min_distance=reach, labels=pieces, exclude_border=False)
        seeds = np.zeros_like(pieces)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        pieces = segmentation.watershed(-distance, seeds, mask=pieces > 0)
    return np.asarray(pieces, np.int32)


def drop_small(labels: AnyLabels, min_area: int) -> tuple[Labels, int]:
    """Returns objects of `min_area` pixels or more, in raster order, and the number of smaller ones."""
    tidy = np.ascontiguousarray(labels, np.uint32)
    first, area = first_and_area(tidy.ravel(), int(tidy.max(initial=0)))
    kept_objects = np.flatnonzero((area > 0) & (area >= min_area))
    numbers = np.zeros(len(area) + 1, np.uint32)
    numbers[1 + kept_objects[np.argsort(first[kept_objects])]] = np.arange(1, len(kept_objects) + 1)
    return renumbered(tidy, numbers), int(np.count_nonzero(area)) - len(kept_objects)
