"""The optics of a synthetic microscope: defocus, point spread, uneven illumination, the camera's noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Image = NDArray[np.float32]

WAVELENGTH_UM = 0.74  # of the transmitted light
COHERENCE = 0.25  # numerical aperture of the condenser: blurs with defocus
PEDESTAL = 100.0  # counts of a camera in the dark
ELECTRONS = 0.5  # per count
READ_NOISE = 2.0  # counts


def brightfield(phase: Image, density: Image, defocus_um: float, pixel_um: float) -> Image:
    """Returns the transmitted intensity (y, x), 1 without cells, `defocus_um` above the plane of focus.

    The wave exp(-density / 2 + i phase) is propagated by the Fresnel kernel (angular spectrum, paraxial);
    for small defocus this is the transport of intensity: contrast inverts through focus and in focus only
    absorption is seen. A condenser of finite aperture blurs in proportion to the defocus.
    """
    wave = fft.fft2(np.exp(-density / 2 + 1j * phase))
    fy, fx = (fft.fftfreq(n, pixel_um) for n in phase.shape)
    squared = fy[:, None] ** 2 + fx[None] ** 2
    field = fft.ifft2(wave * np.exp(-1j * np.pi * WAVELENGTH_UM * defocus_um * squared))
    blur = 0.5 + abs(defocus_um) * COHERENCE / 2 / pixel_um
    return np.asarray(ndimage.gaussian_filter(np.abs(field) ** 2, blur), np.float32)


def phase_contrast(phase: Image, defocus_um: float, pixel_um: float) -> Image:
    """Returns digital phase contrast (y, x): the phase without its slow part, which gives dark halos."""
    blur = 0.7 + abs(defocus_um) * COHERENCE / pixel_um
    return np.asarray(
        ndimage.gaussian_filter(phase, blur) - 0.7 * ndimage.gaussian_filter(phase, 12.0 / pixel_um / 2),
        np.float32,
    )


def fluorescence(stain: Image, defocus_um: float, pixel_um: float) -> Image:
    """Returns the emitted light (y, x): a point spread that widens with defocus, and a faint wide haze."""
    width = np.hypot(0.45, 0.2 * defocus_um) / pixel_um
    haze = ndimage.gaussian_filter(stain, 6.0 / pixel_um)
    return np.asarray(0.88 * ndimage.gaussian_filter(stain, width) + 0.12 * haze, np.float32)


def illumination(coefficients: Sequence[Sequence[float]], size: int) -> Image:
    """Returns the polynomial that Harmony states as a profile: sum of c[n][k] x^(n-k) y^k over a field.

    x and y run from -0.5 to 0.5 over the field, origin in its middle (`profile` writes the same numbers).
    """
    axis = (np.arange(size) - (size - 1) / 2) / size
    y, x = axis[:, None], axis[None]
    terms = [
        c * x ** (n - k) * y**k for n, order in enumerate(coefficients) for k, c in enumerate(order) if c
    ]
    return np.asarray(sum(terms) + np.zeros((size, size)), np.float32)


def expose(light: Image, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Returns camera counts (uint16) of `light` (counts without noise): shot noise, read noise, pedestal."""
    counts = rng.poisson(np.clip(light, 0, None) * ELECTRONS) / ELECTRONS
    counts = counts + rng.normal(PEDESTAL, READ_NOISE, light.shape)
    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)
