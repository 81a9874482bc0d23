"""Images as Gen5 exports them, as far as public readers and examples of its XML tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from coded_planes import Code, coded

CHANNELS = {"DAPI": (377, 447), "GFP": (469, 525), "Bright Field": None, "Phase Contrast": None}


@dataclass(frozen=True)
class Shot:
    """One plane; `how` it was processed."""

    well: str = "A01"
    number: int = 1
    channel: str = "DAPI"
    plane: int = 1
    time: int = 1
    planes: int = 1
    how: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> Code:
        return self.well, self.number, list(CHANNELS).index(self.channel), self.plane, self.time

    @property
    def short(self) -> str:
        return self.well[:-2] + str(int(self.well[-2:]))

    def xml(self) -> str:
        waves = CHANNELS[self.channel]
        color = f"{self.channel} {waves[0]},{waves[1]}" if waves else self.channel
        color = f"{self.how}[{color}]" if self.how else color
        reference = {
            "Plate": "Plate 1", "Date": "02/01/25", "Time": f"20:{self.time:02}:10", "Well": self.short,
            "KineticTimeMs": 1000 * self.time, "HorizontalOffsetMicrons": 100 * self.number,
            "VerticalOffsetMicrons": 291, "ZStackStepSizeMicrons": 10, "ZStackTotal": self.planes,
            "ZStackFocalPosition": 1, "ZStackPosition": self.plane,
        } | self.facts  # fmt: skip
        acquired = {
            "PixelWidth": 32, "PixelHeight": 24, "ImageWidthMicrons": 16, "ImageHeightMicrons": 12,
            "FocalHeightMicrons": 3226.3, "ShutterSpeedMS": 50,
        }  # fmt: skip
        light = self.channel.replace(" ", "")
        inner = f"<{light}>TRUE</{light}>"
        if waves:
            inner = f"<ExcitationWavelength>{waves[0]}</ExcitationWavelength>"
            inner += f"<EmissionWavelength>{waves[1]}</EmissionWavelength>"
        return (
            '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><BTIImageMetaData Version="34">'
            "<System><Gen5><Version>3.12.08</Version></Gen5></System>"
            f"<ImageReference>{_tags(reference)}</ImageReference>"
            f'<ImageAcquisition><Channel Color="{color}">{inner}</Channel>{_tags(acquired)}'
            "</ImageAcquisition></BTIImageMetaData>"
        )


def write(path: Path, *shots: Shot, described: bool = True) -> Path:
    """A file with a page for each of these planes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for shot in shots:
            text = shot.xml() if described else None
            plane = np.asarray(coded((24, 32), shot.code))
            writer.write(plane, description=text, metadata=None, contiguous=False)
    return path


def _tags(facts: dict[str, Any]) -> str:
    return "".join(f"<{name}>{value}</{name}>" for name, value in facts.items())
