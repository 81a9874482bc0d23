"""Runs of IN Cell Analyzer, made up as public readers and published lines of `.xdce` tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from coded_planes import Code, coded

from hpc_isl.plates.plate import well_position

SIZE = (24, 32)
# name of excitation and emission, and their wavelengths in nm
WAVES = [("UV", "DAPI", 350, 455), ("TL-Brightfield", "Cy3", 473, 605), ("FITC", "FITC", 490, 525)]


@dataclass(frozen=True)
class Shot:
    """One plane by the instrument's numbers, all from 0; `file`: another name than the usual one."""

    well: str = "B02"
    field: int = 0
    wave: int = 0
    plane: int = 0
    time: int = 0
    file: str = ""

    @property
    def code(self) -> Code:
        return self.well, self.field, self.wave, self.plane, self.time

    @property
    def name(self) -> str:
        row, column = well_position(self.well)
        excitation, emission, *_ = WAVES[self.wave]
        series = f" z {self.plane + 1} time {self.time + 1} - {2636 * self.time}ms"
        well = f"{chr(65 + row)} - {column + 1:02}"
        return self.file or f"{well}(fld {self.field + 1} wv {excitation} - {emission}{series}).tif"

    def element(self, places: str) -> str:
        """The shot's entry; `places`: "well", "plate" or "plan", which says where its field lies."""
        row, column = well_position(self.well)
        where = {
            "well": f'<OffsetFromWellCenter x="{100 * self.field}.0" y="{-50 * self.field}.0" unit="µm"/>',
            "plate": f'<PlatePosition_um x="{9000 * column + 100 * self.field}" '
            f'y="{9000 * row + 50 * self.field}"/>',
            "plan": "",
        }[places]
        excitation, emission, *_ = WAVES[self.wave]
        return (
            f'<Image acquisition_time_ms="{2636 * self.time}" filename={quoteattr(self.name)} thumbnail="">'
            f'<Well label="{chr(65 + row)} - {column + 1}"><Row number="{row + 1}"/>'
            f'<Column number="{column + 1}"/></Well>{where}'
            f'<FocusPosition unit="µm" z="{7000 + 2.5 * self.plane}"/><MinMaxMean max="9" mean="3" min="1"/>'
            f'<Exposure time="{50 * (self.wave + 1)}" unit="ms"/>'
            f'<ExcitationFilter name="{excitation}"/><EmissionFilter name="{emission}"/>'
            f'<Identifier field_index="{self.field}" time_index="{self.time}" wave_index="{self.wave}" '
            f'z_index="{self.plane}"/></Image>'
        )


def write_run(
    folder: Path,
    shots: Sequence[Shot],
    *,
    binning: str = "1 X 1",
    places: str = "well",
    rows: int = 8,
    columns: int = 12,
    changes: Mapping[str, str] | None = None,
) -> Path:
    """A run as IN Cell Analyzer 2000 writes it, with the image of each shot; `changes` of its text."""
    folder.mkdir(parents=True, exist_ok=True)
    for shot in shots:
        path = folder / shot.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.asarray(coded(SIZE, shot.code)), metadata=None)
    waves = "".join(
        f'<Wavelength fusion_wave="false" imaging_mode="3-D" index="{number}">'
        f'<ExcitationFilter name="{excitation}" unit="nm" wavelength="{ex}"/>'
        f'<EmissionFilter name="{emission}" unit="nm" wavelength="{em}"/></Wavelength>'
        for number, (excitation, emission, ex, em) in enumerate(WAVES)
    )
    points = "".join(f'<offset_point index="{n}" x="{100 * n}.0" y="{-50 * n}.0"/>' for n in (1, 0, 2))
    text = (
        '<?xml version="1.0" encoding="ISO-8859-1" standalone="no"?>\n<ImageStack>'
        '<UUID value="7697b7dd"/><Application name="IN Cell Analyzer 2000" software_version="3.0.0.5"/>'
        '<Creation date="2010-11-17" time="20:23:53"/><AutoLeadAcquisitionProtocol name="P">'
        '<Microscopy type="Fluorescence"/><ObjectiveCalibration magnification="20.0" '
        'numerical_aperture="0.45" objective_name="Nikon 20X/0.45" pixel_height="0.3250" '
        'pixel_width="0.3250" unit="µm"/><Camera name="CoolSnap"><Size height="24" width="32"/>'
        f'<Binning value="{binning}"/></Camera><Wavelengths>{waves}</Wavelengths>'
        f'<Plate columns="{columns}" name="96 Greiner" rows="{rows}"/><PlateMap>'
        f"<FieldOffsets>{points if places == 'plan' else ''}</FieldOffsets></PlateMap>"
        f'</AutoLeadAcquisitionProtocol><Images number="{len(shots)}">'
        f"{''.join(shot.element(places) for shot in shots)}</Images></ImageStack>"
    )
    for before, after in (changes or {}).items():
        assert before in text
        text = text.replace(before, after)
    (folder / "P 1.xdce").write_bytes(text.encode("latin-1"))
    return folder
