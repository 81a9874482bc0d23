"""Labels drafted from a stain, each object by a threshold of its own; sizes are learnt from the image.

One threshold for a whole image loses dim objects beside bright ones and draws bright ones too large. Here
lengths are in radii of a typical object of the image and heights are relative to the background around an
object and to the object's own brightness, so that a draft does not depend on unit, offset or pixel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage import filters, measure, segmentation, transform
from skimage.morphology import local_maxima, reconstruction

from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.types import AnyLabels, Image, Labels, Pixels

SMALLEST_RADIUS = 2.5
"""in pixels; what is smaller is noise of the camera"""
SCALES_PER_OCTAVE = 4
CLIPS = 8
"""rounds of sigma clipping; noise alone has converged after these"""


@dataclass(frozen=True)
class LocalSettings:
    """How `local_labels` drafts; chosen on 14 images of BBBC039 by `docs/study/drafts.py`."""

    smooth: float = 0.07
    """sigma of the Gaussian before any threshold, in radii"""
    background: float = 4.0
    """half the edge of the window whose darkest place is background, in radii"""
    centre: float = 0.35
    """sigma of the Laplacian of Gaussian whose peaks are centres of objects, in radii"""
    saddle: float = 0.8
    """two peaks are of one object where the Laplacian between them drops by less than this, in units of
    its natural logarithm"""
    level: float = 0.45
    """where an object ends, as a share of its median brightness above the background"""
    contrast: float = 0.1
    """what is dimmer than this share of the Otsu threshold is background"""
    noise: float = 5.0
    """and so is what is within so many standard deviations of the background"""


CHOSEN = LocalSettings()


def local_labels(stain: Image, *, min_area: int, split: bool, settings: LocalSettings = CHOSEN) -> Labels:
    """Returns labels (y, x) of the bright objects of a stain (y, x), those of `min_area` pixels or more.

    Args:
        split: touching objects are separated; otherwise each connected piece is one.
    """
    pixels = (stain - np.median(stain)).astype(np.float32)
    radius = typical_radius(pixels)
    if radius is None:
        return np.zeros(stain.shape, np.uint32)
    smooth = ndimage.gaussian_filter(pixels, settings.smooth * radius)
    bright, least_height = _subtract_background(smooth, radius, settings)
    basins = _basins(pixels, bright > least_height, radius, settings)
    labels = _largest_pieces(_threshold_each(bright, basins, least_height, settings.level))
    if not split:
        labels = measure.label(ndimage.binary_fill_holes(labels > 0), connectivity=2)
    return drop_small(labels, min_area)[0]


def typical_radius(stain: Pixels) -> float | None:
    """Returns the radius of a typical bright object, in pixels; None where nothing is bright.

    A disc of radius r answers strongest to a Laplacian of Gaussian of sigma r / sqrt(2), normalised by
    sigma squared (Lindeberg 1998). The result is the median over the maxima in place and scale, each
    weighted by its response times its area: a constant or a linear gradient changes no response.
    """
    radii, weights = [], []
    steps = np.arange(-1, SCALES_PER_OCTAVE + 1) / SCALES_PER_OCTAVE  # maxima need a neighbour on either side
    image, factor = stain, 1
    while min(image.shape) >= 8 * SMALLEST_RADIUS:
        scales = SMALLEST_RADIUS * 2**steps
        responses = np.stack([-(r * r / 2) * ndimage.gaussian_laplace(image, r / np.sqrt(2)) for r in scales])
        peaks = (responses == ndimage.maximum_filter(responses, (3, 5, 5))) & (responses > 0)
        peaks[[0, -1]] = False
        peak_radii = np.broadcast_to(scales[:, None, None] * factor, peaks.shape)[peaks]
        radii.append(peak_radii)
        weights.append(responses[peaks] * peak_radii**2)
        # Each octave of radii is measured on an image of half the size: large Gaussians would be slow.
        height, width = (edge // 2 for edge in image.shape)
        image = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
        factor *= 2
    if not sum(map(len, radii)):
        return None
    all_radii, all_weights = np.concatenate(radii), np.concatenate(weights)
    order = np.argsort(all_radii, kind="stable")
    total = np.cumsum(all_weights[order], dtype=np.float64)
    return float(all_radii[order][np.searchsorted(total, total[-1] / 2)])


def _subtract_background(smooth: Pixels, radius: float, settings: LocalSettings) -> tuple[Pixels, float]:
    """Returns the image less its background (y, x), and the least height of an object."""
    step = max(1, int(radius / 4))
    coarse = ndimage.gaussian_filter(smooth, radius / 4)[::step, ::step]
    window = 2 * round(settings.background * radius / step) + 1
    opened = ndimage.grey_opening(coarse, (window, window), mode="nearest")
    ground = ndimage.gaussian_filter(opened, window / 4, mode="nearest")
    bright = smooth - transform.resize(ground, smooth.shape, order=1, mode="edge", anti_aliasing=False)
    threshold = filters.threshold_otsu(bright)
    # The opening follows the darkest places; background is around the middle of what is dark, which is found
    # by sigma clipping from below, so that noise without objects is known as noise.
    limit = threshold
    for _ in range(CLIPS):
        dark = bright[bright <= limit]
        offset = np.median(dark)
        deviation = 1.4826 * np.median(np.abs(dark - offset))
        limit = offset + 3 * deviation
    least_height = max(settings.contrast * (threshold - offset), settings.noise * deviation)
    return np.asarray(bright - offset, np.float32), float(least_height)


def _basins(pixels: Pixels, mask: AnyLabels, radius: float, settings: LocalSettings) -> AnyLabels:
    """Returns the mask cut into one basin for each object (y, x), by the peaks of a Laplacian of Gaussian."""
    response = -ndimage.gaussian_laplace(pixels, settings.centre * radius)
    # In logarithms the drop between two peaks does not depend on how bright they are.
    response = np.log(np.maximum(response, 1e-3 * response.max()))
    response = np.where(mask, response, response.min()).astype(np.float32)
    plains = reconstruction(response - settings.saddle, response)
    seeds = measure.label(local_maxima(plains) & mask)
    return np.asarray(segmentation.watershed(-response, seeds, mask=mask))


def _threshold_each(bright: Pixels, basins: AnyLabels, least_height: float, level: float) -> AnyLabels:
    """Returns of each basin (y, x) the pixels brighter than a share of its object's median brightness."""
    names = np.arange(basins.max() + 1)
    # An object is what reaches half of its brightest pixel.
    top = np.asarray(ndimage.maximum(bright, basins, names))
    core = np.where(bright > top[basins] / 2, basins, 0)
    median = np.asarray(ndimage.median(bright, core, names))
    return np.where(bright > np.maximum(level * median[basins], least_height), basins, 0)


def _largest_pieces(labels: AnyLabels) -> AnyLabels:
    """Returns the largest connected piece of each label (y, x), with its holes filled."""
    pieces = measure.label(labels, connectivity=2)
    largest = np.zeros_like(labels)
    taken = set()
    for piece in sorted(measure.regionprops(pieces), key=lambda piece: -piece.area):
        name = labels[tuple(piece.coords[0])]
        if name in taken:
            continue
        taken.add(name)
        window = largest[piece.slice]
        window[piece.image_filled & (window == 0)] = name
    return largest
