"""A small Harmony export, written as the instrument writes it and bent as each test needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

SPACE = {
    "HarmonyV5": "http://www.perkinelmer.com/PEHH/HarmonyV5",
    "HarmonyV6": "http://www.perkinelmer.com/PEHH/HarmonyV6",
    "HarmonyV7": "43B2A954-E3C3-47E1-B392-6635266B0DD3/HarmonyV7",
}
PROFILE = (
    "{Background: {Character: NonFlat, Mean: 443.5, NonFlatness: {Corrected: 0.04, Random: INF}, Profile: "
    "{Coefficients: [[1.25], [-0.0365, -0.032]], Dims: [24, 32], Origin: [11.5, 15.5], "
    "Scale: [0.04, 0.03], Type: Polynomial}, Quality: 1.0}, Channel: 1, "
    "ChannelName: %s, Version: Acapella:2013}"
)
CHANNELS: dict[int, dict[str, str]] = {
    1: {
        "ChannelName": "Brightfield",
        "ImageType": "Signal",
        "IlluminationType": "Transmitted",
        "ChannelType": "Brightfield",
        "ImageResolutionX": "5E-07",
        "ImageResolutionY": "5E-07",
        "ImageSizeX": "32",
        "ImageSizeY": "24",
        "MainExcitationWavelength": "740",
        "MainEmissionWavelength": "0",
        "ObjectiveMagnification": "20",
        "ObjectiveNA": "1",
        "ExposureTime": "0.1",
    },
}
CHANNELS[2] = CHANNELS[1] | {
    "ChannelName": "HOECHST 33342",
    "IlluminationType": "Epifluorescence",
    "ChannelType": "Fluorescence",
    "MainExcitationWavelength": "405",
    "MainEmissionWavelength": "456",
    "ExposureTime": "0.02",
}


def shot(**facts: object) -> dict[str, str]:
    """The facts of one image; what is not given is well A01, field 1, plane 1, channel 1, time 0."""
    said = {"Row": 1, "Col": 1, "FieldID": 1, "PlaneID": 1, "TimepointID": 0, "ChannelID": 1} | facts
    number = "r{Row:02}c{Col:02}f{FieldID:02}p{PlaneID:02}-ch{ChannelID}".format_map(said)
    usual = {
        "id": number,
        "State": "Ok",
        "URL": f"{number}sk{said['TimepointID']}fk1fl1.tiff",
        "PositionX": "0",
        "PositionY": "0",
        "PositionZ": f"{said['PlaneID']}E-06",
        "AbsPositionZ": "0.1346",
        "MeasurementTimeOffset": "0",
        "AbsTime": "2021-03-29T16:55:28.987-04:00",
    }
    return {name: str(value) for name, value in (usual | said).items()}


def _tags(facts: Mapping[str, str]) -> str:
    return "".join(f"<{name}>{text}</{name}>" for name, text in facts.items())


def index_text(
    shots: Sequence[Mapping[str, str]],
    version: str = "HarmonyV5",
    channels: Mapping[int, Mapping[str, str]] = CHANNELS,
    plate: Mapping[str, str] = {"Name": "P 01", "PlateRows": "8", "PlateColumns": "12"},
    profile: str = PROFILE,
) -> str:
    """An index: channel facts in each image up to V5, once in a map from V6 on."""
    entries = {
        n: f"<FlatfieldProfile>{profile % c['ChannelName']}</FlatfieldProfile>" for n, c in channels.items()
    }
    facts = {n: _tags(c) for n, c in channels.items()}
    in_images = version == "HarmonyV5"
    images = "".join(
        f'<Image Version="1">{_tags(s)}{facts[int(s["ChannelID"])] if in_images else ""}</Image>'
        for s in shots
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><EvaluationInputData Version="1" xmlns="{SPACE[version]}">'
        f"<InstrumentType>Phenix</InstrumentType>"
        f"<Plates><Plate>{_tags(plate)}<Well id='0101' /></Plate></Plates>"
        f"<Wells><Well><id>0101</id><Image id='0101K1F1P1R1' /></Well></Wells>"
        f"<Maps>{_map(entries)}{'' if in_images else _map(facts)}</Maps>"
        f"<Images>{images}</Images></EvaluationInputData>"
    )


def _map(entries: Mapping[int, str]) -> str:
    inner = (f'<Entry ChannelID="{n}">{text}</Entry>' for n, text in entries.items())
    return f"<Map>{''.join(inner)}</Map>"


def write_export(folder: Path, shots: Sequence[Mapping[str, str]], **index: object) -> Path:
    """An export with the file of every image; pixels count the images, so that no two are alike."""
    images = folder / "Images"
    images.mkdir(parents=True, exist_ok=True)
    for number, said in enumerate(shots):
        pixels = np.full((24, 32), number, np.uint16)
        tifffile.imwrite(images / said["URL"], pixels, metadata=None)
    text = index_text(shots, **index)  # type: ignore[arg-type]
    (images / "Index.idx.xml").write_text(text, encoding="utf-8-sig")
    return folder


class Harmony:
    """What the tests of a Harmony export share."""

    shot = staticmethod(shot)
    space = staticmethod(SPACE.__getitem__)
    index_text = staticmethod(index_text)
    write = staticmethod(write_export)
    channels = CHANNELS
    profile = PROFILE


@pytest.fixture(scope="session")
def harmony_export() -> type[Harmony]:
    return Harmony


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """Writes small TIFF or PNG files of the given names below a folder; its path comes back."""

    def write(*names: str, shape: tuple[int, ...] = (24, 32), dtype: str = "uint16") -> Path:
        folder = tmp_path / "export"
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full(shape, number, dtype)
            if path.suffix == ".png":
                import imagecodecs

                path.write_bytes(imagecodecs.png_encode(pixels))
            else:
                photometric = "minisblack" if len(shape) == 3 else None
                tifffile.imwrite(path, pixels, photometric=photometric, metadata=None)
        return folder

    return write
