"""The plan of a synthetic plate: its wells and their treatments, its channels, and its optics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import well_name
from hpc_isl.seeds import stream
from hpc_isl.stages.synthetic.cells import Condition, Image, Truth

PIXEL_UM = 0.598
PLANE_UM = 4.0
WAVELENGTH_UM = 0.74  # of the transmitted light
COHERENCE = 0.25  # numerical aperture of the condenser: blurs with defocus
PEDESTAL = 100.0  # counts of a camera in the dark
ELECTRONS = 0.5  # per count
READ_NOISE = 2.0  # counts

# (wells up to, plate format, wells side by side); outer rows and columns stay empty, because they dry out
_BLOCKS = ((36, 96, 6), (60, 96, 10), (308, 384, 22))
# treatment, dose in µM, control
_TREATMENTS = (
    ("DMSO", 0.0, "negative"),
    ("compound A", 1.0, ""),
    ("compound A", 10.0, ""),
    ("DMSO", 0.0, "negative"),
    ("compound B", 1.0, ""),
    ("compound B", 10.0, "positive"),
)


@dataclass(frozen=True)
class Channel:
    """One channel as the microscope images it: (`base` + `gain` × light) × illumination, in counts.

    Attributes:
        kind: Harmony's ChannelType: Brightfield, Phase or Fluorescence.
        nm: excitation and emission.
        profile: illumination as Harmony states it (`illumination`); ((1.0,),) is flat.
        stain: for fluorescence, which of `Truth`.
    """

    name: str
    kind: str
    base: float
    gain: float
    nm: tuple[int, int]
    profile: tuple[tuple[float, ...], ...]
    stain: str = ""

    def light(self, truth: Truth, z_um: float) -> Image:
        """Returns the light of a plane `z_um` above focus, in counts, before illumination and noise."""
        if self.kind == "Brightfield":
            light = brightfield(truth.phase, truth.density, z_um, PIXEL_UM)
        elif self.kind == "Phase":
            light = phase_contrast(truth.phase, z_um, PIXEL_UM)
        else:
            light = fluorescence(getattr(truth, self.stain), z_um, PIXEL_UM)
        return self.base + self.gain * light


_BRIGHT = ((1.02,), (0.03, -0.02), (-0.12, 0.0, -0.12))
_BLUE = ((1.10,), (0.06, -0.08), (-0.62, 0.05, -0.58))
_RED = ((1.08,), (-0.05, 0.04), (-0.50, -0.06, -0.46))
BRIGHTFIELD = Channel("Brightfield", "Brightfield", 0, 20000, (740, 0), _BRIGHT)
PHASE = Channel("Digital Phase Contrast", "Phase", 700, 800, (740, 0), ((1.0,),))
HOECHST = Channel("HOECHST 33342", "Fluorescence", 60, 1500, (375, 456), _BLUE, "dna")
CELLMASK = Channel("CellMask Deep Red", "Fluorescence", 120, 900, (640, 706), _RED, "membrane")


@dataclass(frozen=True)
class Well:
    """A well and its treatment; row and column count from 0."""

    row: int
    column: int
    treatment: str
    dose_um: float
    control: str

    @property
    def name(self) -> str:
        return well_name(self.row, self.column)

    def condition(self, seed: int) -> Condition:
        """Returns how its cells are: compound A halts division (fewer, larger nuclei), compound B kills."""
        baseline = Condition(density=stream(seed, "density", self.name).uniform(0.35, 0.8))
        strength = self.dose_um / 10
        if self.treatment == "compound A":
            return baseline.scaled(density=1 - 0.5 * strength, nucleus_px=1 + 0.25 * strength)
        if self.treatment == "compound B":
            killed = baseline.scaled(density=1 - 0.4 * strength, nucleus_px=1 - 0.2 * strength)
            return replace(killed, rounded=baseline.rounded + 0.25 * strength)
        return baseline


def lay_out(wells: int) -> tuple[list[Well], int]:
    """Returns the first `wells` wells of a plate, row by row, and the plate's format."""
    for max_wells, plate_format, side in _BLOCKS:
        if wells <= max_wells:
            treatments = (_TREATMENTS[n % len(_TREATMENTS)] for n in range(wells))
            return [
                Well(n // side + 1, n % side + 1, *treatment) for n, treatment in enumerate(treatments)
            ], plate_format
    raise UserError(f"{wells} wells: at most {_BLOCKS[-1][0]}, the inner wells of a plate of 384")


# ---------------------------------------------------------------- optics


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

    x and y run from -0.5 to 0.5 over the field, origin in its middle, as the export's index states them.
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
