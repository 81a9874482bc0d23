"""Parsing of vendors' XML, never with a DTD or an entity; planes as MetaSeries and Gen5 describe them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring, iterparse

from hpc_isl.errors import UserError
from hpc_isl.plates.readers.plane_metadata import (
    MetadataError,
    PlaneMetadata,
    duration,
    edges,
    micrometres,
    moment,
    number,
    position,
)


def elements(path: Path, names: Collection[str]) -> Iterator[tuple[str, Element]]:
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
    except (ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not well-formed XML ({error}): truncated or edited?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _elements(file: BinaryIO, names: frozenset[str]) -> Iterator[tuple[str, Element]]:
    open_elements: list[Element] = []
    for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
        if event == "start":
            open_elements.append(element)
            continue
        open_elements.pop()
        name = local(element.tag)
        if name in names:
            yield name, element
            if open_elements:  # else the tree would grow to the size of the file
                open_elements[-1].remove(element)


def texts(element: Element) -> dict[str, str]:
    """Returns local name -> stripped text of the element's children; the last one counts."""
    return {local(child.tag): (child.text or "").strip() for child in element}


@lru_cache(1024)
def local(tag: str) -> str:
    """Returns a tag without its namespace."""
    return tag.rpartition("}")[2]


def parsed(text: str, origin: str) -> Element:
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
    what = type(error).__name__.removesuffix("Forbidden").lower()
    return f"holds a DTD or entities ({what}), which instruments never write: refused"


# ---------------------------------------------------------------- XML of a TIFF's page

# Seen of MetaSeries XML, in files of MetaXpress 6.5 and 6.7, exported and as its database keeps them: all
# that is read here. The column of a field grows with `stage-position-x`: seen in two fields that overlap.
#
# Of Gen5 (Cytation, Lionheart) no file was at hand: names and meanings are those that public readers and
# published examples of `BTIImageMetaData` agree on. Vertical offsets are taken to point up, for the first
# of several rows has the largest.

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
    facts = {local(element.tag): (element.text or "").strip() for element in root.iter()}
    channel = next((element for element in root.iter() if local(element.tag) == "Channel"), None)
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
    at, focal = number(facts.get("ZStackPosition")), number(facts.get("ZStackFocalPosition"))
    if focus is None or not step or at is None or focal is None:
        return focus
    return round(focus + (at - focal) * step, 4)
