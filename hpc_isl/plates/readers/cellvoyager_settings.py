"""What a CellVoyager's `.mrf` and `.mes` say of plate and channels; both may be missing.

Seen: CV7000, CV8000 and CQ3K. Both list all channels that are defined, whether they were taken or not, and
counts of fields, planes and times that the images do not have: none of these is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from hpc_isl.plates.plate import Channel, color_of
from hpc_isl.plates.readers import fields, xml
from hpc_isl.plates.readers.quantities import number

_FILTER = re.compile(r"[A-Z]*(\d{3})\s*/\s*\d+")
_COLOR = re.compile(r"#[0-9A-Fa-f]{2}([0-9A-Fa-f]{6})")
Facts = Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """The facts as the files have them, attribute -> text.

    Attributes:
        measurement: of the `.mrf`, and of the plate and the `.mes` below it.
        cameras: channel -> facts of the `.mrf`: sizes of pixels and images.
        channels: channel -> facts of the `.mes`: name, filter, exposure, objective, sources of `light`.
        wavelengths: name of a light source -> nm, or None.
    """

    measurement: Facts = field(default_factory=dict)
    cameras: Mapping[int, Facts] = field(default_factory=dict)
    channels: Mapping[int, Facts] = field(default_factory=dict)
    wavelengths: Mapping[str, float | None] = field(default_factory=dict)

    def pixel_um(self, channel: int) -> tuple[float, float] | None:
        """Returns the edges (y, x) of a channel's pixels in µm."""
        facts = self.cameras.get(channel, {})
        y, x = (number(facts.get(f"{side}PixelDimension")) for side in ("Vertical", "Horizontal"))
        return (y, x) if y and x else None

    def size(self, channel: int) -> tuple[int, int] | None:
        """Returns the size (y, x) of a channel's images in pixels."""
        facts = self.cameras.get(channel, {})
        y, x = (number(facts.get(f"{side}Pixels")) for side in ("Vertical", "Horizontal"))
        return (int(y), int(x)) if y and x and min(y, x) >= 1 else None

    def rows_and_columns(self) -> tuple[int, int]:
        """Returns how many there are on the plate, 0 where that is not stated."""
        rows, columns = (number(self.measurement.get(key)) for key in ("RowCount", "ColumnCount"))
        return int(rows or 0), int(columns or 0)

    def channel(self, number_of: int, name: str) -> Channel:
        """Returns a channel; its name is given, for it must be unique."""
        facts = self.channels.get(number_of, {})
        fluorescent = not fields.is_transmitted(f"{facts.get('Kind', '')} {facts.get('Target', '')}")
        band = _FILTER.search(facts.get("Acquisition", ""))
        emission = float(band[1]) if band and fluorescent else None
        light = [self.wavelengths.get(source) for source in facts.get("light", "").split("\n")]
        exposure = number(facts.get("ExposureTime"))
        color = _COLOR.fullmatch(facts.get("Color", ""))
        return Channel(
            name=name,
            fluorescent=fluorescent,
            color=color[1].upper() if color else color_of(fluorescent, emission),
            excitation_nm=next((nm for nm in light if nm), None) if fluorescent else None,
            emission_nm=emission,
            exposure_s=None if exposure is None else round(exposure / 1e3, 6),
        )


def read(folder: Path) -> tuple[Settings, list[str]]:
    """Returns what the files in a folder say, and remarks on those that are missing.

    Raises:
        UserError: a file is there and is no XML.
    """
    remarks = []
    detail = _one(folder, ".mrf", "MeasurementDetail.mrf")
    measurement: dict[str, str] = {}
    cameras: dict[int, Facts] = {}
    if detail is None:
        remarks.append("there is no .mrf file: pixel size and plate format are not known from it")
    else:
        tags = {"MeasurementDetail", "MeasurementSamplePlate", "MeasurementChannel"}
        for tag, element in xml.elements(detail, tags):
            if tag == "MeasurementChannel":
                facts = attributes(element)
                cameras[_channel(facts)] = facts
            else:
                measurement = {f"{tag}.{k}" if tag != "MeasurementDetail" else k: v
                               for k, v in attributes(element).items()} | measurement  # fmt: skip
    wanted = measurement.get("MeasurementSettingFileName", "")
    setting = _one(folder, ".mes", wanted)
    channels: dict[int, Facts] = {}
    wavelengths: dict[str, float | None] = {}
    if setting is None:
        remarks.append(f"there is no .mes file{f' ({wanted})' if wanted else ''}: channels have no names")
    else:
        for tag, element in xml.elements(setting, {"LightSource", "Channel"}):
            facts = attributes(element)
            if tag == "Channel":
                sources = [child.text or "" for child in element if xml.local(child.tag) == "LightSourceName"]
                channels[_channel(facts)] = {**facts, "light": "\n".join(sources)}
            else:
                wavelengths[facts.get("Name", "")] = number(facts.get("WaveLength"))
    return Settings(measurement, cameras, channels, wavelengths), remarks


def attributes(element: Element) -> dict[str, str]:
    """Returns the attributes of an element without their namespace."""
    return {xml.local(name): value.strip() for name, value in element.attrib.items()}


def _one(folder: Path, suffix: str, wanted: str) -> Path | None:
    """The file of that name, in any case of letters; else the only one with that ending."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix)
    named = [path for path in found if path.name.lower() == wanted.lower()]
    return named[0] if named else found[0] if len(found) == 1 else None


def _channel(facts: Facts) -> int:
    return int(number(facts.get("Ch")) or 0)
