"""Scores of predicted images: pure functions of a predicted and a true image (y, x)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from hpc_isl.objects.types import Floats, Image

SSIM_WINDOW = 11


def pcc(prediction: Image, truth: Image) -> float:
    """Returns Pearson's correlation over pixels, 0 for a constant prediction; NaN for a constant truth."""
    if is_constant(truth):
        return float("nan")
    # A constant prediction has no correlation. It shows nothing of a stain that varies, but is not to count
    # for less than one that is wrong.
    if is_constant(prediction):
        return 0.0
    a = prediction.astype(np.float64) - prediction.mean(dtype=np.float64)
    b = truth.astype(np.float64) - truth.mean(dtype=np.float64)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def is_constant(image: Image) -> bool:
    """Returns whether all pixels are equal."""
    return bool(image.min() == image.max())


def mae(prediction: Image, truth: Image) -> float:
    """Returns the mean absolute difference, in the unit of the images."""
    return float(np.abs(prediction.astype(np.float64) - truth).mean())


def ssim(prediction: Image, truth: Image) -> float:
    """Returns the mean structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5, 11 pixels).

    Its constants refer to the range of the truth without outliers, percentiles 0.1 to 99.9. NaN where that
    is nothing, or where an edge is shorter than the window.
    """
    low, high = np.percentile(truth, [0.1, 99.9])
    if high <= low or min(truth.shape) < SSIM_WINDOW:
        return float("nan")
    return float(
        structural_similarity(
            truth.astype(np.float64), prediction.astype(np.float64), data_range=float(high - low),
            gaussian_weights=True, use_sample_covariance=False,
        )
    )  # fmt: skip


def mask_iou(prediction: Image, truth: Image) -> float:
    """Returns pixels above 0 in both masks or labels, over those in any; 1 where both are empty."""
    union = int(((prediction > 0) | (truth > 0)).sum())
    return int(((prediction > 0) & (truth > 0)).sum()) / union if union else 1.0


def pcc_by_object(prediction: Image, truth: Image, labels: Image, least: int = 16) -> dict[int, float]:
    """Returns label -> Pearson's correlation over the pixels of the object, without any background.

    Objects of fewer than `least` pixels, and those in which the truth is constant, are left out; one in
    which the prediction is constant has 0, as in `pcc`.
    """
    names, place = np.unique(labels[labels > 0], return_inverse=True)
    area = np.bincount(place, minlength=len(names))

    def centred(image: Image) -> Floats:
        pixels = image[labels > 0].astype(np.float64)
        return pixels - (np.bincount(place, pixels, len(names)) / area)[place]

    def total(pixels: Floats) -> Floats:
        return np.bincount(place, pixels, len(names)).astype(np.float64)

    def varies(image: Image) -> NDArray[np.bool_]:
        low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        np.minimum.at(low, place, image[labels > 0])
        np.maximum.at(high, place, image[labels > 0])
        return high > low

    a, b = centred(prediction), centred(truth)
    valid = (area >= least) & varies(truth)
    spread = np.sqrt(total(a * a) * total(b * b))
    values = np.divide(total(a * b), spread, out=np.zeros(len(names)), where=valid & varies(prediction))[
        valid
    ]
    return {int(name): float(value) for name, value in zip(names[valid], values, strict=True)}
