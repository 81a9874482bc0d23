"""Images, plate and channels as the `.mlf`, `.mrf` and `.mes` files of a CellVoyager or a CQ3K state them."""

# Seen: CV7000, CV8000 and CQ3K. The `.mlf` holds one record per image, and the errors; the others may be
# missing. They list all channels that are defined, whether they were taken or not, and counts of fields,
# planes and times that the images do not have: none of these is used.

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import MOST_COLUMNS, MOST_ROWS, Channel, color_of, is_transmitted, well_name
from hpc_isl.plates.readers.folder import Folder, nearest_file
from hpc_isl.plates.readers.vendor_facts import (
    PlaneMetadata,
    edges,
    local_name,
    moment,
    number,
    position,
    whole,
    xml_elements,
)

_FILTER = re.compile(r"[A-Z]*(\d{3})\s*/\s*\d+")
_COLOR = re.compile(r"#[0-9A-Fa-f]{2}([0-9A-Fa-f]{6})")
Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of the index.

    Attributes:
        well, field, time, channel, action, line, plane: the vendor's numbers.
        name: of the file.
    """

    name: str
    well: str
    field: int
    time: int
    channel: int
    action: int
    line: int
    plane: int
    metadata: PlaneMetadata

    @property
    def projection(self) -> str:
        return self.metadata.projection


def find(below: Folder) -> Path:
    """Returns the index of the measurement below a folder.

    Raises:
        UserError: there is none, or there are several.
    """
    if name := nearest_file(below, ".mlf", "measurements"):
        return below.root / name
    raise UserError(f"{below.root}: no index of a CellVoyager; MeasurementData.mlf is expected")


def read(path: Path) -> tuple[list[Record], list[tuple[Facts, str]]]:
    """Returns the images of an index, and the errors that it lists: facts and text.

    Raises:
        UserError: naming file and record: no XML, numbers that are none, no images.
    """
    records: list[Record] = []
    errors: list[tuple[Facts, str]] = []
    # Records that are no images are errors of the instrument, which are reported.
    for _, element in xml_elements(path, {"MeasurementRecord"}):
        facts = attributes(element)
        text = (element.text or "").strip()
        if facts.get("Type") == "IMG":
            records.append(_record(facts, text, path))
        else:
            errors.append((facts, text))
    if not records:
        raise UserError(f"{path} names no images: a CellVoyager's index with at least one is expected")
    return records, errors


def _record(facts: Facts, name: str, path: Path) -> Record:
    origin = f"{path}: record of {name or '(no file)'}"
    row, column = whole(facts, "Row", origin), whole(facts, "Column", origin)
    if not (1 <= row <= MOST_ROWS and 1 <= column <= MOST_COLUMNS):
        raise UserError(
            f"{origin}: row {row}, column {column}; at most {MOST_ROWS} and {MOST_COLUMNS} are expected"
        )
    x, y = number(facts.get("X")), number(facts.get("Y"))
    return Record(
        name=name,
        well=well_name(row - 1, column - 1),
        field=whole(facts, "FieldIndex", origin),
        time=whole(facts, "TimePoint", origin, 1),
        channel=whole(facts, "Ch", origin),
        action=whole(facts, "ActionIndex", origin, 1),
        line=whole(facts, "TimelineIndex", origin, 1),
        plane=whole(facts, "ZIndex", origin, 1),
        metadata=PlaneMetadata(
            center_um=position(y, x, up=True),
            z_um=number(facts.get("Z")),
            moment=moment(facts.get("Time", "")),
            projection=facts.get("ZImageProcessing", ""),
        ),
    )


# ---------------------------------------------------------------- plate and channels


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
        return edges(y, x)

    def size(self, channel: int) -> tuple[int, int] | None:
        """Returns the size (y, x) of a channel's images in pixels."""
        facts = self.cameras.get(channel, {})
        y, x = (number(facts.get(f"{side}Pixels")) for side in ("Vertical", "Horizontal"))
        return (int(y), int(x)) if y and x and min(y, x) >= 1 else None

    def channel(self, number_of: int, name: str) -> Channel:
        """Returns a channel; the caller gives its name, which must be unique."""
        facts = self.channels.get(number_of, {})
        fluorescent = not is_transmitted(f"{facts.get('Kind', '')} {facts.get('Target', '')}")
        band = _FILTER.search(facts.get("Acquisition", ""))
        emission = float(band[1]) if band and fluorescent else None
        light = [self.wavelengths.get(source) for source in facts.get("light", "").split("\n")]
        exposure = number(facts.get("ExposureTime"))
        color = _COLOR.fullmatch(facts.get("Color", ""))
        # The image that the instrument has divided by: `SC_BP445-45_40x_M10_CH01.tif`.
        source = self.cameras.get(number_of, {}).get("ShadingCorrectionSource", "")
        return Channel(
            name=name,
            fluorescent=fluorescent,
            color=color[1].upper() if color else color_of(fluorescent, emission),
            excitation_nm=next((nm for nm in light if nm), None) if fluorescent else None,
            emission_nm=emission,
            exposure_s=None if exposure is None else round(exposure / 1e3, 6),
            corrected=f"ShadingCorrectionSource {source}" if source else "",
        )


def read_settings(folder: Path) -> tuple[Settings, list[str]]:
    """Returns what the files in a folder say, and remarks on those that are missing.

    Raises:
        UserError: a file is there and is no XML.
    """
    remarks = []
    detail = _file(folder, ".mrf", "MeasurementDetail.mrf")
    measurement: dict[str, str] = {}
    cameras: dict[int, Facts] = {}
    if detail is None:
        remarks.append("there is no .mrf file: pixel size and plate format are not known from it")
    else:
        tags = {"MeasurementDetail", "MeasurementSamplePlate", "MeasurementChannel"}
        for tag, element in xml_elements(detail, tags):
            if tag == "MeasurementChannel":
                facts = attributes(element)
                cameras[_channel(facts)] = facts
            else:
                measurement = {f"{tag}.{k}" if tag != "MeasurementDetail" else k: v
                               for k, v in attributes(element).items()} | measurement  # fmt: skip
    setting_name = measurement.get("MeasurementSettingFileName", "")
    setting = _file(folder, ".mes", setting_name)
    channels: dict[int, Facts] = {}
    wavelengths: dict[str, float | None] = {}
    if setting is None:
        remarks.append(
            f"there is no .mes file{f' ({setting_name})' if setting_name else ''}: channels have no names"
        )
    else:
        for tag, element in xml_elements(setting, {"LightSource", "Channel"}):
            facts = attributes(element)
            if tag == "Channel":
                sources = [
                    child.text or "" for child in element if local_name(child.tag) == "LightSourceName"
                ]
                channels[_channel(facts)] = {**facts, "light": "\n".join(sources)}
            else:
                wavelengths[facts.get("Name", "")] = number(facts.get("WaveLength"))
    return Settings(measurement, cameras, channels, wavelengths), remarks


def attributes(element: Element) -> dict[str, str]:
    """Returns the attributes of an element without their namespace."""
    return {local_name(name): value.strip() for name, value in element.attrib.items()}


def _file(folder: Path, suffix: str, name: str) -> Path | None:
    """Returns the file of that name, in any case of letters; else the only one with that ending."""
    # A Mac adds ._a.mes beside a.mes on some disks.
    paths = sorted(p for p in folder.glob("[!.]*") if p.suffix.lower() == suffix)
    matches = [path for path in paths if path.name.lower() == name.lower()]
    return matches[0] if matches else paths[0] if len(paths) == 1 else None


def _channel(facts: Facts) -> int:
    return int(number(facts.get("Ch")) or 0)
