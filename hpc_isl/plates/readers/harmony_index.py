"""Indices of Harmony and Columbus: where they lie, what they state of plate, channels, images; assay maps."""

# Seen: HarmonyV5 of an Opera Phenix and of a Sonata with pixels, V7 of a Phenix without. Only read about:
# V4, V6, `Index.ref.xml`, and Columbus, whose `BufferNo` is the page of a file and whose colours are
# numbers.

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import yaml

from hpc_isl.errors import UserError, many
from hpc_isl.plates.plate import MOST_COLUMNS, MOST_ROWS, Channel, FieldKey, PlaneFile, well_name
from hpc_isl.plates.readers.vendor_facts import (
    child_texts,
    local_name,
    micrometres,
    seconds,
    whole,
    xml_elements,
)

NAMES = ("index.idx.xml", "index.xml", "index.ref.xml", "index.flex.xml", "imageindex.columbusidx.xml")
_ROOT = b"EvaluationInputData"
# What differs from image to image (or is long and used by nobody); the rest are facts of the channel.
_NOT_OF_CHANNEL = frozenset({
    "id", "State", "URL", "Row", "Col", "FieldID", "PlaneID", "TimepointID", "SequenceID", "GroupID",
    "ChannelID", "FlimID", "PositionX", "PositionY", "PositionZ", "AbsPositionZ",
    "MeasurementTimeOffset", "AbsTime", "SkewcropParameters", "BufferNo",
})  # fmt: skip
_TIMES = frozenset({"ExposureTime", "MeasurementTimeOffset"})
_KINETICS = re.compile(r"sk(\d+)fk(\d+)")
_FREE_TEXT = re.compile(r",\s*ChannelName:")


@dataclass(frozen=True, slots=True)
class Image:
    """One plane of one field, as the index has it.

    Attributes:
        id: e.g. 0303K1F2P1R1.
        url: file name; empty where the instrument wrote none; `page`: the page of that file.
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
    page: int = 0

    @property
    def failed(self) -> bool:
        """Whether the instrument reports that it could not take the image."""
        return self.state.lower() != "ok"

    @property
    def key(self) -> FieldKey:
        """The field that the image belongs to."""
        return FieldKey(well_name(self.row - 1, self.column - 1), str(self.field))


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
        remarks: what could not be understood, and nothing needs.
    """

    version: str
    instrument: str
    plate: Mapping[str, str]
    channels: Mapping[int, Mapping[str, str]]
    images: tuple[Image, ...]
    remarks: tuple[str, ...] = ()


def indices(folder: Path) -> list[Path]:
    """Returns the index of the export at `folder`; else those of the exports just below it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if index := _index_of(folder):
        return [index]
    return [path for entry in _entries(folder) if (path := _index_of(entry))]


def _index_of(folder: Path) -> Path | None:
    """Returns the first kind of index of those in `Images`, the folder itself, or `index` as in archives."""
    places = (folder / "Images", folder / "images", folder, folder / "index")
    paths = (path for place in places for path in _entries(place, NAMES))
    return next(filter(_is_index, paths), None)


def _is_index(path: Path) -> bool:
    """Returns whether the file is an index, by its name, or by how it begins."""
    # Only Index.idx.xml is a name of Harmony's own: an index.xml may be of any program.
    if path.name.lower() == NAMES[0]:
        return path.is_file()
    with path.open("rb") as file:
        return _ROOT in file.read(4096)


def _entries(folder: Path, names: Collection[str] = ()) -> list[Path]:
    """Returns what is in a folder, in order; where names are given, in lower case, only those, in theirs."""
    try:
        entries = os.listdir(folder)
    except OSError:  # no folder, or one that may not be read: nothing is found there
        return []
    if names:
        ranks = {name: rank for rank, name in enumerate(names)}
        matches = [name for name in entries if name.lower() in ranks]
        return [folder / name for name in sorted(matches, key=lambda name: (ranks[name.lower()], name))]
    return [folder / name for name in sorted(entries, key=str.lower)]


def plate(path: Path) -> dict[str, str]:
    """Returns the facts about the plate alone, from the beginning of the index."""
    for _, element in xml_elements(path, {"Plate"}):
        return child_texts(element)
    return {}


def read(path: Path) -> Index:
    """Returns the index, read element by element: 200,000 images in seconds.

    Raises:
        UserError: naming file and image: not XML, no index, numbers that are none where a plane's place hangs
            on them, no images.
    """
    version, instrument = "", ""
    plate_facts: dict[str, str] = {}
    channels: dict[int, dict[str, str]] = {}
    images: list[Image] = []
    odd: Counter[str] = Counter()
    # Wells repeat what the images say, at length: named so that they are dropped.
    for name, element in xml_elements(path, {"InstrumentType", "Plate", "Well", "Entry", "Image"}):
        if name == "Image" and "id" not in element.attrib:
            facts = _facts(element)
            image = _image(facts, path, odd)
            images.append(image)
            channel = channels.setdefault(image.channel, {})
            # Version 5 repeats the facts of a channel in each of its images: those of the first are enough.
            if "ChannelName" not in channel:
                _add_constants(channel, facts)
        elif name == "Entry":
            number_of = whole(element.attrib, "ChannelID", f"{path}: a map's entry")
            _add_constants(channels.setdefault(number_of, {}), _facts(element))
        elif name == "InstrumentType":
            instrument = (element.text or "").strip()
        elif name == "Plate":
            if plate_facts:
                raise UserError(f"{path} describes several plates; one plate per export is expected")
            plate_facts = child_texts(element)
        version = version or str(element.tag).partition("}")[0].rpartition("/")[2].strip("{")
    if not images:
        raise UserError(f"{path} names no images: a Harmony index with at least one is expected")
    remarks = [
        f"{many(count, 'image', 'states', 'state')} {text}, which is no number: left unknown"
        for text, count in odd.items()
    ]
    return Index(version, instrument, plate_facts, channels, tuple(images), tuple(remarks))


def _facts(element: Element) -> dict[str, str]:
    """Returns the texts of the children and the page; numbers in m, nm (wavelengths) and s (times)."""
    facts = child_texts(element)
    for child in element:
        name, unit = local_name(child.tag), child.get("Unit", "")
        if name == "URL" and child.get("BufferNo"):  # Columbus: the page of a file with several planes
            facts["BufferNo"] = child.get("BufferNo", "")
        base_unit = "nm" if name.endswith("Wavelength") else "s" if name in _TIMES else "m"
        if unit and unit != base_unit:
            value = seconds(facts[name], unit) if base_unit == "s" else micrometres(facts[name], unit)
            if value is not None:
                facts[name] = repr(value * {"nm": 1e3, "s": 1.0, "m": 1e-6}[base_unit])
    return facts


def _add_constants(channel: dict[str, str], facts: Mapping[str, str]) -> None:
    for name, text in facts.items():
        if name not in _NOT_OF_CHANNEL:
            channel.setdefault(name, text)


def _image(facts: Mapping[str, str], path: Path, odd: Counter[str]) -> Image:
    origin = f"{path}: image {facts.get('id', '(without id)')}"
    url = facts.get("URL", "")
    slow_fast = _KINETICS.search(url)
    slow, fast = (int(slow_fast[1]), int(slow_fast[2])) if slow_fast else (0, 1)
    return Image(
        id=facts.get("id", ""),
        url=url,
        state=facts.get("State", "Ok"),
        row=whole(facts, "Row", origin),
        column=whole(facts, "Col", origin),
        field=whole(facts, "FieldID", origin),
        plane=whole(facts, "PlaneID", origin, 1),
        channel=whole(facts, "ChannelID", origin),
        time=(whole(facts, "TimepointID", origin, slow), fast),
        x_um=_micrometres(facts, "PositionX", odd),
        y_um=_micrometres(facts, "PositionY", odd),
        z_um=_micrometres(facts, "PositionZ", odd),
        stage_um=_micrometres(facts, "AbsPositionZ", odd),
        seconds=number(facts, "MeasurementTimeOffset", odd),
        moment=facts.get("AbsTime", ""),
        page=whole(facts, "BufferNo", origin, 0),
    )


def number(facts: Mapping[str, str], name: str, odd: Counter[str]) -> float | None:
    """Returns the number under `name`; None where it is absent, not finite, or no number (counted)."""
    text = facts.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        odd[f"{name} {text[:30]!r}"] += 1
        return None
    return value if math.isfinite(value) else None


def _micrometres(facts: Mapping[str, str], name: str, odd: Counter[str]) -> float | None:
    metres = number(facts, name, odd)
    return None if metres is None else round(metres * 1e6, 4)  # to 0.1 nm, so that 5E-06 m is 5 µm


def assay_layout(path: Path) -> dict[str, dict[str, str]]:
    """Returns well -> layer -> value, from the Assaylayout folder beside the images, where there is one."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    # Exports have the folder beside `Images`.
    export_folder = path.parent.parent if path.parent.name.lower() in ("images", "index") else path.parent
    for file in sorted((export_folder / "Assaylayout").glob("[!.]*.xml")):  # not ._a.xml, as a Mac adds it
        for _, layer in xml_elements(file, {"Layer"}):
            name = child_texts(layer).get("Name") or "Layer"
            wells = [child_texts(child) for child in layer if local_name(child.tag) == "Well"]
            for well in (well for well in wells if well.get("Value")):
                row, column = (
                    _place(well, *side, file) for side in (("Row", MOST_ROWS), ("Col", MOST_COLUMNS))
                )
                rows[well_name(row, column)][name] = well["Value"]
    return dict(rows)


def _place(well: Mapping[str, str], name: str, last: int, file: Path) -> int:
    """Returns a row or column, from 0."""
    text = well.get(name, "")
    if not text.isdecimal() or not 1 <= int(text) <= last:
        raise UserError(f"{file}: a well's {name} is {text!r}; a number from 1 to {last} is expected")
    return int(text) - 1


def flat_field(profile: str) -> dict[str, Any] | None:
    """Returns the `Background` entry of a FlatfieldProfile, numbers as numbers, NaN and INF as None.

    Returns None where the text cannot be understood.
    """
    # The text is YAML but for the channel's name, which may hold anything and is left out.
    parts = _FREE_TEXT.split(profile, maxsplit=1)
    head = parts[0] + "}" if len(parts) > 1 else profile
    if "&" in head or "*" in head:  # YAML references, which could unfold without end
        return None
    try:
        background = yaml.load(head, yaml.BaseLoader)["Background"]  # noqa: S506 - makes strings only
    except (yaml.YAMLError, TypeError, KeyError, RecursionError):
        return None
    return _values(background) if isinstance(background, dict) else None


def with_corrections(channels: Sequence[Channel], files: Iterable[PlaneFile]) -> tuple[Channel, ...]:
    """Returns the channels, with a note on those whose images the vendor's export script has corrected.

    Images of an export are raw, and the index states the profile to correct them by. Only read about: the
    script writes images of stains, divided by it, to a folder `flex` or as `flex_….tiff`.
    """
    corrected = {
        file.channel
        for file in files
        if file.path.name.lower().startswith("flex_") or "flex" in map(str.lower, file.path.parts[-3:-1])
    }
    return tuple(
        replace(channel, corrected="flat field, images in `flex`")
        if number in corrected and channel.fluorescent
        else channel
        for number, channel in enumerate(channels)
    )


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
