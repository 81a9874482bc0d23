"""The plan of a synthetic plate: its wells and their treatments, its channels and how they are imaged."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import well_name
from hpc_isl.seeds import stream
from hpc_isl.stages.synthetic import optics
from hpc_isl.stages.synthetic.cells import Condition, Truth

PIXEL_UM = 0.598
PLANE_UM = 4.0

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
        profile: illumination as Harmony states it (`optics.illumination`); ((1.0,),) is flat.
        stain: for fluorescence, which of `Truth`.
    """

    name: str
    kind: str
    base: float
    gain: float
    nm: tuple[int, int]
    profile: tuple[tuple[float, ...], ...]
    stain: str = ""

    def light(self, truth: Truth, z_um: float) -> optics.Image:
        """Returns the light of a plane `z_um` above focus, in counts, before illumination and noise."""
        if self.kind == "Brightfield":
            light = optics.brightfield(truth.phase, truth.density, z_um, PIXEL_UM)
        elif self.kind == "Phase":
            light = optics.phase_contrast(truth.phase, z_um, PIXEL_UM)
        else:
            light = optics.fluorescence(getattr(truth, self.stain), z_um, PIXEL_UM)
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
        usual = Condition(density=stream(seed, "density", self.name).uniform(0.35, 0.8))
        strength = self.dose_um / 10
        if self.treatment == "compound A":
            return usual.scaled(density=1 - 0.5 * strength, nucleus_px=1 + 0.25 * strength)
        if self.treatment == "compound B":
            killed = usual.scaled(density=1 - 0.4 * strength, nucleus_px=1 - 0.2 * strength)
            return replace(killed, rounded=usual.rounded + 0.25 * strength)
        return usual


def lay_out(wells: int) -> tuple[list[Well], int]:
    """Returns the first `wells` wells of a plate, row by row, and the plate's format."""
    for most, plate_format, side in _BLOCKS:
        if wells <= most:
            treatments = (_TREATMENTS[n % len(_TREATMENTS)] for n in range(wells))
            return [Well(n // side + 1, n % side + 1, *t) for n, t in enumerate(treatments)], plate_format
    raise UserError(f"{wells} wells: at most {_BLOCKS[-1][0]}, the inner wells of a plate of 384")
