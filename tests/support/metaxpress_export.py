"""Images with MetaSeries XML, as MetaXpress writes them: exports with an HTD, and its database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from coded_planes import coded

SIZE = (24, 32)
NAMES = {1: "DAPI", 2: "FITC", 3: "TL20"}


@dataclass(frozen=True)
class Shot:
    """One plane that the instrument took; a copy is written by writing it again elsewhere."""

    well: str
    site: int = 1
    wave: int = 1
    step: int = 1
    time: int = 1
    projection: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def z(self) -> float:
        return round(9000 + 3.01 * self.step + 0.5 * bool(self.projection), 2)

    @property
    def moment(self) -> str:
        return f"20240709 13:{self.time:02d}:{self.step:02d}.{100 * self.wave + self.site:03d}"

    @property
    def guid(self) -> str:
        where = (self.well, self.site, self.wave, self.step, self.time, self.projection[:1])
        return "".join(map(str, where)).encode().hex()[-32:].rjust(32, "0")


def xml(shot: Shot) -> str:
    """The description of a plane, with the properties that real ones have."""
    facts: dict[str, Any] = {
        "spatial-calibration-state": "on", "spatial-calibration-x": 1.3672, "spatial-calibration-y": 1.3672,
        "spatial-calibration-units": "um", "plane-guid": "{" + shot.guid + "}",
        "acquisition-time-local": shot.moment, "stage-position-x": 20000 + 300 * shot.site,
        "stage-position-y": 19885, "stage-label": f"{shot.well} : Site {shot.site}", "z-position": shot.z,
        "wavelength": 400 + 50 * shot.wave, "_IllumSetting_": NAMES.get(shot.wave, f"Ch{shot.wave}"),
        "_MagSetting_": "40X", "Exposure Time": f"{10 * shot.wave} ms",
        **({"Z Projection Method": shot.projection} if shot.projection else {"Z Step": shot.step}),
        **shot.facts,
    }  # fmt: skip
    props = "".join(
        f'<prop id={quoteattr(k)} type="x" value={quoteattr(str(v))}/>'
        for k, v in facts.items()
        if v is not None
    )
    return f"<MetaData><PlaneInfo>{props}</PlaneInfo></MetaData>"


def write(path: Path, shot: Shot, described: bool = True) -> Path:
    """The file of a plane; its pixels hold well, site, wavelength, step (0: a projection) and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    step = 0 if shot.projection else shot.step
    plane = coded(SIZE, (shot.well, shot.site, shot.wave, step, shot.time))
    tifffile.imwrite(path, np.asarray(plane), description=xml(shot) if described else None, metadata=None)
    return path


def htd(
    wells: Sequence[str], waves: int = 1, times: int = 1, z: bool = True, names: dict[int, str] = NAMES
) -> bytes:
    """An HTD file, with the bytes in its description that are no UTF-8."""
    lines = [
        '"HTSInfoFile", Version 1.0', '"Description", "two lines\x82\x81of text"', f'"TimePoints", {times}',
        f'"ZSeries", {str(z).upper()}', f'"ZSteps", {3 if z else 0}', '"XWells", 12', '"YWells", 8',
    ]  # fmt: skip
    for row in range(8):
        selected = ", ".join(str(f"{'ABCDEFGH'[row]}{c + 1:02d}" in wells).upper() for c in range(12))
        lines.append(f'"WellsSelection{row + 1}", {selected}')
    lines += [f'"NWavelengths", {waves}', *(f'"WaveName{w}", "{names[w]}"' for w in range(1, waves + 1))]
    return "\r\n".join([*lines, '"EndFile"', ""]).encode("latin-1")
