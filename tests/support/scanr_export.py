"""Runs of scanR: real OME-XML with made-up images, and made-up metadata too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile
from coded_planes import Code, coded

from hpc_isl.plates.plate import well_name, well_position

SIZE = (24, 32)
OME = "{http://www.openmicroscopy.org/Schemas/OME/2013-06}"


@dataclass(frozen=True)
class Shot:
    """One plane, by scanR's numbers."""

    well: str = "B02"
    field: int = 1
    channel: str = "DAPI"
    plane: int = 0
    time: int = 0

    def number(self, columns: int = 12) -> int:
        row, column = well_position(self.well)
        return row * columns + column + 1

    @property
    def label(self) -> str:
        return self.well[:-2] + str(int(self.well[-2:]))

    @property
    def code(self) -> Code:
        return self.well, self.field, 1 + ["DAPI", "TRITC", "BF"].index(self.channel), self.plane, self.time

    def name(self, label: str | None = None) -> str:
        begin = f"{self.label if label is None else label}--" if label != "" else ""
        where = f"W{self.number():05}--P{self.field:05}--Z{self.plane:05}--T{self.time:05}"
        return f"{begin}{where}--{self.channel}.tif"


def image(path: Path, code: Code, size: tuple[int, int] = SIZE, dtype: str = "uint16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.asarray(coded(size, code, dtype)), metadata=None, compression="zlib")


def planes(index: Path) -> Iterator[dict[str, str]]:
    """Each plane of an index, as the standard library reads it; `file`, `image` and `channel` with it."""
    for element in ElementTree.parse(index).getroot().iter(f"{OME}Image"):
        pixels = element.find(f"{OME}Pixels")
        assert pixels is not None
        channels = [c.attrib["Name"] for c in pixels.iter(f"{OME}Channel")]
        files = {
            tuple(d.attrib[f"First{axis}"] for axis in "TCZ"): d[0].attrib["FileName"]
            for d in pixels.iter(f"{OME}TiffData")
        }
        for plane in pixels.iter(f"{OME}Plane"):
            where = tuple(plane.attrib[f"The{axis}"] for axis in "TCZ")
            yield {
                **pixels.attrib, **plane.attrib, "file": files[where], "image": element.attrib["Name"],
                "channel": channels[int(where[1])],
            }  # fmt: skip


def with_images(metadata: Path, folder: Path) -> Path:
    """A copy of a real run of one channel, with an image of the size that it states for each plane."""
    shutil.copytree(metadata, folder)
    for plane in planes(folder / "data" / "metadata.ome.xml"):
        number, field = (int(word.strip(",")) for word in plane["image"].split()[1:4:2])
        code = (well_name(*divmod(number - 1, 12)), field, 1, int(plane["TheZ"]), int(plane["TheT"]))
        image(folder / "data" / plane["file"], code, (int(plane["SizeY"]), int(plane["SizeX"])))
    return folder


def write_index(folder: Path, shots: Sequence[Shot], labels: bool = True, unit: str = "") -> Path:
    """A run with OME-XML as scanR 3.3 writes it."""
    images = []
    for well, field in dict.fromkeys((shot.well, shot.field) for shot in shots):
        own = [shot for shot in shots if (shot.well, shot.field) == (well, field)]
        channels = list(dict.fromkeys(shot.channel for shot in own))
        tiffs, stated = "", ""
        for shot in own:
            image(folder / "data" / shot.name(), shot.code)
            c = channels.index(shot.channel)
            tiffs += (
                f'<TiffData FirstC="{c}" FirstT="{shot.time}" FirstZ="{shot.plane}">'
                f'<UUID FileName="{shot.name()}">urn:uuid:0</UUID></TiffData>'
            )
            stated += (
                f'<Plane DeltaT="{10 * shot.time + 0.5}" ExposureTime="0.{c + 1}" PositionX="{1000 * field}" '
                f'PositionY="{2000 * field}" PositionZ="{6000 + 3 * shot.plane + c}" TheC="{c}" '
                f'TheT="{shot.time}" TheZ="{shot.plane}"{unit}/>'
            )
        lights = ["Transmitted" if channel == "BF" else "Epifluorescence" for channel in channels]
        named = "".join(
            f'<Channel Name="{channel}" IlluminationType="{light}"/>'
            for channel, light in zip(channels, lights, strict=True)
        )
        sizes = [1 + max(numbers) for numbers in ([s.time for s in own], [s.plane for s in own])]
        label = f" ({own[0].label})" if labels else ""
        images.append(
            f'<Image Name="Well {own[0].number()}, Position {field}{label}">'
            '<ObjectiveSettings ID="Objective:1"/>'
            f'<Pixels DimensionOrder="XYCTZ" PhysicalSizeX="0.325" PhysicalSizeY="0.325" '
            f'SizeC="{len(channels)}" SizeT="{sizes[0]}" SizeX="32" SizeY="24" SizeZ="{sizes[1]}" '
            'Type="uint16">'
            f"{named}{tiffs}{stated}</Pixels></Image>"
        )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME Creator="Olympus, scanR 3.3.0" '
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2013-06"><Instrument ID="Instrument:0">'
        '<Microscope Model="IX83"/><Objective ID="Objective:1" LensNA="0.80" Model="UPLXAPO 20x"/>'
        "</Instrument>"
        f"{''.join(images)}</OME>"
    )
    (folder / "data" / "metadata.ome.xml").write_text(text)
    return folder


def write_descriptor(folder: Path, shots: Sequence[Shot], layout: tuple[int, int] = (8, 12)) -> Path:
    """A run as older versions write it: names and a descriptor in Latin-1 that states no encoding."""
    for shot in shots:
        image(folder / "data" / shot.name(""), shot.code, dtype="int16")
    pairs = [
        ("plate name", "Platte Ä"), ("format typedef", ""), ("Rows", layout[0]), ("Columns", layout[1]),
        ("conversion factor um/pixel", "0.645"), ("# slices", 99), ("name", "DAPI"), ("exposure time", 40),
        ("name", "BF"), ("exposure time", 5.5),
    ]  # fmt: skip
    body = "".join(f"<DBL><Name>{name}</Name><Val>{value}</Val></DBL>" for name, value in pairs)
    text = f'<?xml version="1.0" standalone="yes" ?><LVData><Cluster>{body}</Cluster></LVData>'
    (folder / "experiment_descriptor.xml").write_bytes(text.encode("latin-1"))
    return folder
