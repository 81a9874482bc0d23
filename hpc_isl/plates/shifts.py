"""How far two images of one field are shifted, and how far that can be trusted; a rigid model of a plate.

Pure functions of arrays: `stages/convert/register.py` reads the pixels and keeps the results.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Image = NDArray[np.float32]
FINE, COARSE = 1.5, 12.0  # sigma in pixels of the smoothing, and of the background that is subtracted
APART = 12  # pixels from the highest peak within which another one is the same
RESIDUAL = 2.0  # pixels from the model of the plate within which a shift agrees with it
FARTHEST = 0.5  # largest shift, as a share of a field's edge


@dataclass(frozen=True)
class Peak:
    """The most likely shift between two images.

    Attributes:
        shift: (y, x) in pixels: what the first image shows at p, the second shows at p + shift.
        ratio: height of this peak of the cross-correlation over that of the next one elsewhere; of heights
            without their sign, where the images may be each other's negative.
        pcc: Pearson's correlation of the two images where they overlap under the shift.
    """

    shift: tuple[float, float]
    ratio: float
    pcc: float


def outlines(stack: NDArray[Any]) -> Image:
    """Returns what of an image is comparable between kinds of light: where it changes, whatever the sign.

    The logarithm of the gradient's magnitude, averaged over planes, without its slow part: bright field
    inverts out of focus, stains differ in brightness, and the shading of the light, which lies still while
    the plate is moved, would make a peak at no shift.

    Args:
        stack: (z, y, x), of any type.

    Returns:
        (y, x), mean 0 and standard deviation 1; 0 everywhere for an image without structure.
    """
    steep = np.zeros(stack.shape[-2:], np.float32)
    for plane in stack.astype(np.float32):
        gradient = ndimage.gaussian_gradient_magnitude(plane, FINE)
        steep += np.log(gradient + max(float(np.median(gradient)), 1e-6))
    return standardised(steep - ndimage.gaussian_filter(steep, COARSE))


def brightness(stack: NDArray[Any]) -> Image:
    """Returns the logarithm of a stain's maximum over planes, without its slow part; sizes as `outlines`."""
    brightest = ndimage.gaussian_filter(stack.max(axis=0).astype(np.float32), FINE)
    light = np.log(brightest - 0.9 * float(brightest.min()) + 1)
    return standardised(light - ndimage.gaussian_filter(light, COARSE))


def standardised(image: Image) -> Image:
    """Returns the image with mean 0 and standard deviation 1."""
    deviation = float(image.std())
    return (image - image.mean()) / deviation if deviation > 0 else np.zeros_like(image)


@dataclass(frozen=True)
class Correlation:
    """The cross-correlation of two images: `heights` at the shifts `rows` × `columns`, in pixels.

    It is that of the images without wrapping around, over the square root of the overlap, which makes it
    equally noisy at all shifts. It is not whitened: on smooth images the peak of a phase correlation is that
    of noise.
    """

    heights: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, first: Image, second: Image, either_sign: bool = False) -> Correlation:
        """Returns the correlation of two images (y, x) at all shifts up to half of their edges.

        Args:
            either_sign: a stain may be dark where the outlines of its cells are bright: the highest peak or
                the deepest one counts.
        """
        sizes = list(zip(first.shape, second.shape, strict=True))
        shape = [fft.next_fast_len(a + b, real=True) for a, b in sizes]
        spectrum = np.conj(fft.rfft2(first, shape)) * fft.rfft2(second, shape)
        rows, columns = (np.arange(-end, end + 1) for end in (int(FARTHEST * min(size)) for size in sizes))
        overlaps = [_overlaps(*size, steps) for size, steps in zip(sizes, (rows, columns), strict=True)]
        heights = fft.irfft2(spectrum, shape)[np.ix_(rows, columns)] / np.sqrt(np.outer(*overlaps))
        return cls(np.abs(heights) if either_sign else heights, rows, columns)

    def support(self, shift: tuple[int, int]) -> float:
        """Returns how high it is within two pixels of a shift, in standard deviations over all shifts."""
        near = np.ix_(abs(self.rows - shift[0]) <= RESIDUAL, abs(self.columns - shift[1]) <= RESIDUAL)
        spread = float(np.sqrt(np.mean(self.heights**2)))
        return float(self.heights[near].max(initial=0.0)) / spread if spread else 0.0


def best_shift(first: Image, second: Image, either_sign: bool = False) -> Peak:
    """Returns the shift at which the cross-correlation of two images (y, x) peaks, to a fraction of a pixel.

    Args:
        either_sign: as for `Correlation.of`.
    """
    correlation = Correlation.of(first, second, either_sign)
    heights = correlation.heights
    y, x = (int(place) for place in np.unravel_index(int(heights.argmax()), heights.shape))
    highest = float(heights[y, x])
    shift = (
        float(correlation.rows[y]) + _vertex(heights[:, x], y),
        float(correlation.columns[x]) + _vertex(heights[y], x),
    )
    elsewhere = heights.copy()
    elsewhere[max(y - APART, 0) : y + APART + 1, max(x - APART, 0) : x + APART + 1] = -np.inf
    next_highest = float(elsewhere.max())
    ratio = highest / next_highest if highest > 0 and next_highest > 0 else 1.0
    return Peak(shift, ratio, pcc_at(first, second, (round(shift[0]), round(shift[1]))))


def _overlaps(first: int, second: int, shifts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how many rows of two images overlap under each shift."""
    return np.minimum(first, second - shifts) - np.maximum(0, -shifts)


def _vertex(line: NDArray[Any], place: int) -> float:
    """Returns where between its neighbours a parabola through a peak has its vertex."""
    if not 0 < place < len(line) - 1:
        return 0.0
    below, here, above = (float(value) for value in line[place - 1 : place + 2])
    bend = below - 2 * here + above
    return 0.5 * (below - above) / bend if bend < 0 else 0.0


def pcc_at(first: Image, second: Image, shift: tuple[int, int]) -> float:
    """Returns Pearson's correlation of two images where they overlap under a shift; 0 if one is constant."""
    first_box, second_box = [], []
    for a, b, step in zip(first.shape, second.shape, shift, strict=True):
        start, stop = max(0, -step), min(a, b - step)
        if stop <= start:
            return 0.0
        first_box.append(slice(start, stop))
        second_box.append(slice(start + step, stop + step))
    x, y = standardised(first[tuple(first_box)]), standardised(second[tuple(second_box)])
    return float((x * y).mean())


# ---------------------------------------------------------------- a model of the plate


@dataclass(frozen=True)
class PlateModel:
    """How a plate lay in a later acquisition: turned by `degrees`, then moved by `offset` (y, x) in pixels.

    Attributes:
        fitted: number of fields that agree with it.
    """

    degrees: float
    offset: tuple[float, float]
    fitted: int

    def facts(self) -> dict[str, Any]:
        """Returns the model as JSON."""
        offset = [round(value, 2) for value in self.offset]
        return {"degrees": round(self.degrees, 4), "offset_px": offset, "fitted": self.fitted}

    def at(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the displacement (n, 2) of places (n, 2) on the plate, (y, x) in pixels."""
        angle = np.deg2rad(self.degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        displacements: NDArray[np.float64] = places @ turn.T + np.asarray(self.offset) - places
        return displacements


FEWEST = 3  # fields that make a model
STEEPEST = 5.0  # degrees


def plate_model(places: NDArray[np.float64], displacements: NDArray[np.float64]) -> PlateModel | None:
    """Returns the rigid model with which most displacements agree; None: less than half of them do.

    By RANSAC (Fischler & Bolles, Communications of the ACM 24, 1981) with scikit-image's EuclideanTransform;
    where the places do not spread, or a shift alone does as well, the median displacement.

    Args:
        places, displacements: (n, 2) each, (y, x) in pixels.
    """
    from skimage.measure import ransac
    from skimage.transform import EuclideanTransform

    count = len(places)
    if count < FEWEST:
        return None
    median = np.median(displacements, axis=0)
    models = [PlateModel(0.0, (float(median[0]), float(median[1])), 0)]
    # scikit-image counts x before y.
    source, target = places[:, ::-1], (places + displacements)[:, ::-1]
    if np.ptp(source, axis=0).max() > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no two fields agree is no news here
            transform, inside = ransac(
                (source, target), EuclideanTransform, min_samples=2, residual_threshold=RESIDUAL,
                max_trials=1000, rng=0,
            )  # fmt: skip
        if transform is not None and inside is not None and abs(np.rad2deg(transform.rotation)) <= STEEPEST:
            x, y = transform.translation
            models.append(PlateModel(float(np.rad2deg(transform.rotation)), (float(y), float(x)), 0))
    scored = [(agreeing(model, places, displacements), model) for model in models]
    # Of two models that explain as much, the simpler one.
    inliers, model = max(scored, key=lambda item: (item[0].sum(), item[1].degrees == 0))
    if inliers.sum() < FEWEST or 2 * inliers.sum() < count:
        return None
    return PlateModel(model.degrees, model.offset, int(inliers.sum()))


def agreeing(
    model: PlateModel, places: NDArray[np.float64], displacements: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Returns which displacements are within two pixels of the model's."""
    return residuals(model, places, displacements) <= RESIDUAL


def residuals(
    model: PlateModel, places: Sequence[Any] | NDArray[np.float64], displacements: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns how far displacements are from the model's, in pixels."""
    distances: NDArray[np.float64] = np.linalg.norm(displacements - model.at(np.asarray(places)), axis=1)
    return distances
