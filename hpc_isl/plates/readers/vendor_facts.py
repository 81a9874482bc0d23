"""Facts as vendors write them: quantities, XML without DTD or entities, and what is stated of one plane."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError, iterparse
from xml.parsers import expat

from defusedxml import DefusedXmlException, DTDForbidden
from defusedxml.ElementTree import fromstring

from hpc_isl.errors import UserError

_MICROMETRES = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3,
    "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "inch": 25400.0, "in": 25400.0,
}  # fmt: skip
_METRES = {"": 1e6, "centi": 1e4, "milli": 1e3, "micro": 1.0, "nano": 1e-3, "pico": 1e-6}
_MICROMETRES |= {
    f"{prefix}{end}": um for prefix, um in _METRES.items() for end in ("meter", "meters", "metre", "metres")
}
_SECONDS = {
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "s": 1.0,
    "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9,
}  # fmt: skip
_NUMBER_AND_UNIT = re.compile(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([^\d\s]*)\s*")
_MOMENT = re.compile(
    r"(\d{4})[-:./]?(\d\d)[-:./]?(\d\d)[ T_]+(\d\d):(\d\d):(\d\d)([.,]\d+)?\s*(Z|[-+]\d\d:?\d\d)?"
)


class MetadataError(UserError):
    """Metadata that cannot be understood; of a file with one plane they may be left out."""


@dataclass(frozen=True, slots=True)
class PlaneMetadata:
    """One plane, as its own file describes it; "" and None where the file states nothing.

    Attributes:
        time, channel, plane: indices within the file.
        center_um: stage position (y, x) in micrometres, in the directions of the stage.
        z_um: height, or distance from the file's first plane.
        moment: date and time as ISO 8601.
        seconds: from the start of the series.
        label: of the stage position, e.g. "E07 : Site 1".
        projection: how planes became one, e.g. "Maximum"; "" of a plane that was imaged.
    """

    time: int = 0
    channel: int = 0
    plane: int = 0
    channel_name: str = ""
    center_um: tuple[float, float] | None = None
    z_um: float | None = None
    moment: str = ""
    seconds: float | None = None
    exposure_s: float | None = None
    label: str = ""
    projection: str = ""


# ---------------------------------------------------------------- quantities


def number(text: object) -> float | None:
    """Returns the number that a text is; None where it is none, NaN or infinite."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole(facts: Mapping[str, str], name: str, origin: str, default: int | None = None) -> int:
    """Returns the whole number under a name; the default, if there is one, where the text is empty.

    Raises:
        UserError: naming `origin` and `name`: it is no whole number.
    """
    text = facts.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{origin}: {name} is {text!r}; a whole number is expected")
    return int(text)


def position(y: float | None, x: float | None, *, up: bool = False) -> tuple[float, float] | None:
    """Returns a position (y, x), None where either is unknown; `up`: y is stated growing upwards."""
    # Rows of an image are counted downwards, and so are ours.
    return None if y is None or x is None else (-y if up else y, x)


def edges(y: float | None, x: float | None) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel; None where either is unknown or 0."""
    return (y, x) if y and x else None


def micrometres(value: object, unit: str) -> float | None:
    """Returns a length in µm, to 0.1 pm; None where its unit is no length, as pixels and inventions are."""
    return _scaled(value, micrometres_in(unit))


def micrometres_in(unit: str) -> float | None:
    """Returns the µm that a unit of length has; None where it is none."""
    return _MICROMETRES.get(_normal_unit(unit))


def seconds(value: object, unit: str) -> float | None:
    """Returns a time in seconds; None where its unit is no time."""
    return _scaled(value, _SECONDS.get(_normal_unit(unit)))


def duration(text: object) -> float | None:
    """Returns the seconds of a text such as "100 ms"."""
    match = _NUMBER_AND_UNIT.fullmatch(str(text))
    return seconds(match[1], match[2]) if match else None


def moment(text: object) -> str:
    """Returns a date and time as ISO 8601, with the offset where one is stated; "" where there is none."""
    match = _MOMENT.match(str(text).strip())
    if not match:
        return ""
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    fraction = (fraction or "").replace(",", ".")[:7]  # microseconds
    zone = "+00:00" if zone == "Z" else zone or ""
    iso = f"{year}-{month}-{day}T{hour}:{minute}:{second}{fraction}{zone}"
    try:
        datetime.fromisoformat(iso)
    except ValueError:
        return ""
    return iso


def utc_moment(seconds: float | None) -> str:
    """Returns the moment so many seconds after 1970 as ISO 8601; "" where it is unknown or 0."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else ""
    except (ValueError, OverflowError, OSError):
        return ""


def seconds_between(first: str, later: str) -> float | None:
    """Returns the seconds from one moment to another; None where either is unknown or lacks its offset."""
    try:
        return round((datetime.fromisoformat(later) - datetime.fromisoformat(first)).total_seconds(), 6)
    except (ValueError, TypeError):  # TypeError: only one has an offset
        return None


def _normal_unit(unit: str) -> str:
    # The Greek letter mu and ImageJ's escape become the micro sign.
    return unit.strip().replace("\\u00B5", "µ").replace("\u03bc", "µ").lower()


def _scaled(value: object, factor: float | None) -> float | None:
    size = number(value)
    return None if size is None or factor is None else round(size * factor, 7)


# ---------------------------------------------------------------- XML


def xml_elements(path: Path, names: Collection[str]) -> Iterator[tuple[str, Element]]:
    """Yields each element whose local name is in `names`, complete with its children, and then drops it.

    Namespaces are ignored. Memory holds one such element at a time, so an index of 200,000 images is
    read in the memory of one; nothing of an element may be kept but its text.

    Raises:
        UserError: naming the file: unreadable, not well-formed, or holding a DTD or entities.
    """
    try:
        with path.open("rb") as file:
            yield from _elements(file, frozenset(names))
    except DefusedXmlException as error:
        raise UserError(f"{path}: {_forbidden(error)}") from None
    except (ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not well-formed XML ({error}): truncated or edited?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _elements(file: BinaryIO, names: frozenset[str]) -> Iterator[tuple[str, Element]]:
    # Not by defusedxml, which parses in Python. Without a DTD there are no entities but those of XML itself.
    _refuse_dtd(file)
    file.seek(0)
    open_elements: list[Element] = []
    for event, element in iterparse(file, events=("start", "end")):  # noqa: S314
        if event == "start":
            open_elements.append(element)
            continue
        open_elements.pop()
        name = local_name(element.tag)
        if name in names:
            yield name, element
            if open_elements:  # else the tree would grow to the size of the file
                open_elements[-1].remove(element)


def _refuse_dtd(file: BinaryIO) -> None:
    """Raises `DTDForbidden` where a DTD stands before the first element: elsewhere none may."""
    parser, begun = expat.ParserCreate(), []

    def refuse(name: str, system: str | None, public: str | None, _internal: bool) -> None:
        raise DTDForbidden(name, system, public)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda *_: begun.append(True)
    while not begun and (content := file.read(4096)):
        parser.Parse(content)


def child_texts(element: Element) -> dict[str, str]:
    """Returns local name -> stripped text of the element's children; the last one counts."""
    return {local_name(child.tag): (child.text or "").strip() for child in element}


@lru_cache(1024)
def local_name(tag: str) -> str:
    """Returns a tag without its namespace."""
    return tag.rpartition("}")[2]


def parsed_xml(text: str, origin: str) -> Element:
    """Returns the root of an XML text, as TIFFs hold it.

    Raises:
        MetadataError: naming `origin`.
        UserError: it holds a DTD or entities.
    """
    try:
        # A tag of a TIFF ends with NUL, and some programs begin it with a byte order mark.
        root: Element = fromstring(text.strip("\ufeff\0 \t\r\n"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise UserError(f"{origin} {_forbidden(error)}") from None
    except (ParseError, ValueError, LookupError) as error:
        raise MetadataError(f"{origin} is not well-formed XML ({error}): truncated or edited?") from None
    return root


def _forbidden(error: DefusedXmlException) -> str:
    kind = type(error).__name__.removesuffix("Forbidden").lower()
    return f"holds a DTD or entities ({kind}), which instruments never write: refused"


# ---------------------------------------------------------------- XML of a TIFF's page

# Seen of MetaSeries XML, in files of MetaXpress 6.5 and 6.7, exported and as its database keeps them: all
# that is read here. The column of a field grows with `stage-position-x`: seen in two fields that overlap.
#
# Of Gen5 (Cytation, Lionheart) no file was at hand: names and meanings are those that public readers and
# published examples of `BTIImageMetaData` agree on. Vertical offsets are taken to point up, because
# the first of several rows has the largest.

Facts = Mapping[str, str]
_STITCHED = re.compile(r"(?P<how>[A-Za-z ]+)\[(?P<name>.*)\]")
_WAVELENGTHS = re.compile(r"\s+\d+\s*,\s*\d+$")
_DATE = re.compile(r"(\d\d)/(\d\d)/(\d\d)")


def metaseries_facts(root: Element) -> dict[str, str]:
    """Returns id -> value of all properties."""
    return {prop.get("id", ""): prop.get("value", "").strip() for prop in root.iter() if "id" in prop.attrib}


def metaseries_plane(facts: Facts) -> PlaneMetadata:
    """Returns what the facts state of the plane."""
    x, y = (number(facts.get(f"stage-position-{axis}")) for axis in "xy")
    return PlaneMetadata(
        channel_name=facts.get("_IllumSetting_", ""),
        center_um=position(y, x),
        z_um=number(facts.get("z-position")),
        moment=moment(facts.get("acquisition-time-local")),
        exposure_s=duration(facts.get("Exposure Time")),
        label=facts.get("stage-label", ""),
        projection=facts.get("Z Projection Method", ""),
    )


def metaseries_pixel(facts: Facts) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel in µm, where they are calibrated."""
    if facts.get("spatial-calibration-state", "on").lower() != "on":
        return None
    unit = facts.get("spatial-calibration-units", "")
    y, x = (micrometres(facts.get(f"spatial-calibration-{axis}"), unit) for axis in "yx")
    return edges(y, x)


def gen5_facts(root: Element) -> dict[str, str]:
    """Returns name -> text of all elements, and the channel's attribute Color."""
    facts = {local_name(element.tag): (element.text or "").strip() for element in root.iter()}
    channel = next((element for element in root.iter() if local_name(element.tag) == "Channel"), None)
    return facts | {"Color": "" if channel is None else channel.get("Color", "")}


def gen5_plane(facts: Facts) -> PlaneMetadata:
    """Returns what the facts state of a page; heights are those of the focus plus the steps of the stack."""
    x, y = (number(facts.get(f"{axis}OffsetMicrons")) for axis in ("Horizontal", "Vertical"))
    elapsed, exposure = number(facts.get("KineticTimeMs")), number(facts.get("ShutterSpeedMS"))
    stitched = _STITCHED.fullmatch(facts["Color"].strip())
    date = _DATE.fullmatch(facts.get("Date", ""))  # month/day/year of two digits, as in 02/26/19
    time = facts.get("Time", "").replace(" ", "")
    return PlaneMetadata(
        channel_name=_WAVELENGTHS.sub("", stitched["name"] if stitched else facts["Color"].strip()),
        center_um=position(y, x, up=True),
        z_um=_gen5_height(facts),
        moment=moment(f"20{date[3]}-{date[1]}-{date[2]} {time}") if date else "",
        seconds=None if elapsed is None else elapsed / 1e3,
        exposure_s=None if exposure is None else exposure / 1e3,
        label=facts.get("Well", ""),
        projection=stitched["how"].strip() if stitched else "",
    )


def gen5_pixel(facts: Facts, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel: those of the image in µm over its pixels."""
    y, x = (number(facts.get(f"Image{side}Microns")) for side in ("Height", "Width"))
    rows, columns = (number(facts.get(f"Pixel{side}")) for side in ("Height", "Width"))
    if not y or not x:
        return None
    return round(y / (rows or shape[0]), 7), round(x / (columns or shape[1]), 7)


def _gen5_height(facts: Facts) -> float | None:
    """Returns the height; `ZStackPosition` counts from 1, `ZStackFocalPosition` is the one in focus."""
    focus, step = number(facts.get("FocalHeightMicrons")), number(facts.get("ZStackStepSizeMicrons"))
    plane, focal_plane = number(facts.get("ZStackPosition")), number(facts.get("ZStackFocalPosition"))
    if focus is None or not step or plane is None or focal_plane is None:
        return focus
    return round(focus + (plane - focal_plane) * step, 4)
