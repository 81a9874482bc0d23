"""What a Harmony index says, as values: plate, channels, one record per image. No files are looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpc_isl.mistake import Mistake
from hpc_isl.plates.readers import xml

NAMES = ("index.idx.xml", "index.xml")
_ROOT = b"EvaluationInputData"
# What differs from image to image (or is long and used by nobody); the rest are facts of the channel.
_NOT_OF_CHANNEL = frozenset({
    "id", "State", "URL", "Row", "Col", "FieldID", "PlaneID", "TimepointID", "SequenceID", "GroupID",
    "ChannelID", "FlimID", "PositionX", "PositionY", "PositionZ", "AbsPositionZ",
    "MeasurementTimeOffset", "AbsTime", "SkewcropParameters",
})  # fmt: skip
_KINETICS = re.compile(r"sk(\d+)fk(\d+)")
_FREE_TEXT = re.compile(r",\s*ChannelName:")


@dataclass(frozen=True, slots=True)
class Image:
    """One plane of one field, as the index has it.

    Attributes:
        id: e.g. 0303K1F2P1R1.
        url: file name; empty where the instrument wrote none.
        state: "Ok", or what went wrong.
        row, column, field, plane, channel: the vendor's numbers, from 1.
        time: (TimepointID, number within a fast series): sorts in the order of imaging.
        x_um, y_um: centre of the field from the centre of its well; y points up.
        z_um, stage_um: height above the found focus; height of the stage.
        seconds: from the start of the measurement.
        moment: date and time.
    """

    id: str
    url: str
    state: str
    row: int
    column: int
    field: int
    plane: int
    channel: int
    time: tuple[int, int]
    x_um: float | None
    y_um: float | None
    z_um: float | None
    stage_um: float | None
    seconds: float | None
    moment: str


@dataclass(frozen=True)
class Index:
    """A whole index.

    Attributes:
        version: e.g. "HarmonyV5", from the namespace.
        instrument: e.g. "Phenix".
        plate: the vendor's facts about the plate.
        channels: ChannelID -> the vendor's facts about the channel (exposure, wavelengths, sizes,
            FlatfieldProfile), whether they stand in each image (V5) or once in a map (V6, V7).
        images: in the order of the index.
    """

    version: str
    instrument: str
    plate: Mapping[str, str]
    channels: Mapping[int, Mapping[str, str]]
    images: tuple[Image, ...]


def recognise(path: Path) -> bool:
    """Whether the file is a Harmony index, by its name, or by how it begins."""
    if path.name.lower() == NAMES[0]:
        return path.is_file()
    with path.open("rb") as file:
        return _ROOT in file.read(4096)


def read(path: Path) -> Index:
    """The index, read element by element: 200,000 images in seconds.

    Raises:
        Mistake: naming file and image: not XML, no Harmony index, numbers that are none, no images.
    """
    version, instrument = "", ""
    plate: dict[str, str] = {}
    channels: dict[int, dict[str, str]] = {}
    images: list[Image] = []
    # Wells repeat what the images say, at length: named so that they are dropped.
    for name, element in xml.elements(path, {"InstrumentType", "Plate", "Well", "Entry", "Image"}):
        if name == "Image" and "id" not in element.attrib:
            facts = xml.texts(element)
            image = _image(facts, path)
            images.append(image)
            channel = channels.setdefault(image.channel, {})
            if "ChannelName" not in channel:
                _constants(channel, facts)
        elif name == "Entry":
            number_of = _whole(
                {"ChannelID": element.get("ChannelID", "")}, "ChannelID", f"{path}: a map's entry"
            )
            _constants(channels.setdefault(number_of, {}), xml.texts(element))
        elif name == "InstrumentType":
            version = str(element.tag).partition("}")[0].rpartition("/")[2].strip("{")
            instrument = (element.text or "").strip()
        elif name == "Plate":
            if plate:
                raise Mistake(f"{path} describes several plates; one plate per export is expected")
            plate = xml.texts(element)
    if not images:
        raise Mistake(f"{path} names no images: a Harmony index with at least one is expected")
    return Index(version, instrument, plate, channels, tuple(images))


def _constants(channel: dict[str, str], facts: Mapping[str, str]) -> None:
    for name, text in facts.items():
        if name not in _NOT_OF_CHANNEL:
            channel.setdefault(name, text)


def _image(facts: Mapping[str, str], path: Path) -> Image:
    origin = f"{path}: image {facts.get('id', '(without id)')}"
    url = facts.get("URL", "")
    slow_fast = _KINETICS.search(url)
    slow, fast = (int(slow_fast[1]), int(slow_fast[2])) if slow_fast else (0, 1)
    return Image(
        id=facts.get("id", ""),
        url=url,
        state=facts.get("State", "Ok"),
        row=_whole(facts, "Row", origin),
        column=_whole(facts, "Col", origin),
        field=_whole(facts, "FieldID", origin),
        plane=_whole(facts, "PlaneID", origin, 1),
        channel=_whole(facts, "ChannelID", origin),
        time=(_whole(facts, "TimepointID", origin, slow), fast),
        x_um=_micrometres(facts, "PositionX", origin),
        y_um=_micrometres(facts, "PositionY", origin),
        z_um=_micrometres(facts, "PositionZ", origin),
        stage_um=_micrometres(facts, "AbsPositionZ", origin),
        seconds=number(facts, "MeasurementTimeOffset", origin),
        moment=facts.get("AbsTime", ""),
    )


def _whole(facts: Mapping[str, str], name: str, origin: str, default: int | None = None) -> int:
    text = facts.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Mistake(f"{origin}: {name} is {text!r}; a whole number is expected")
    return int(text)


def number(facts: Mapping[str, str], name: str, origin: str) -> float | None:
    """The number under `name`; None where it is absent, empty, NaN or infinite."""
    text = facts.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise Mistake(f"{origin}: {name} is {text!r}; a number is expected") from None
    return value if math.isfinite(value) else None


def _micrometres(facts: Mapping[str, str], name: str, origin: str) -> float | None:
    """Harmony writes metres; to 0.1 nm, so that 5E-06 m is 5 µm."""
    metres = number(facts, name, origin)
    return None if metres is None else round(metres * 1e6, 4)


def flat_field(profile: str) -> dict[str, Any] | None:
    """The `Background` entry of a FlatfieldProfile, numbers as numbers, NaN and INF as None.

    The text is YAML but for the channel's name, which may hold anything and is left out.
    None where the text cannot be understood.
    """
    text = _FREE_TEXT.split(profile, maxsplit=1)
    head = text[0] + "}" if len(text) > 1 else profile
    if "&" in head or "*" in head:  # YAML references, which could unfold without end
        return None
    try:
        background = yaml.load(head, yaml.BaseLoader)["Background"]  # noqa: S506 - makes strings only
    except (yaml.YAMLError, TypeError, KeyError, RecursionError):
        return None
    return _values(background) if isinstance(background, dict) else None


def _values(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _values(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_values(value) for value in node]
    try:
        value = float(node)
    except ValueError:
        return node
    if not math.isfinite(value):
        return None
    return int(value) if re.fullmatch(r"-?\d+", node) else value
