"""`BTIImageMetaData`, the XML that Gen5 (Cytation, Lionheart) writes into each page of its TIFFs.

No file of Gen5 was at hand: names and meanings are those that public readers and published examples of
the XML agree on. Vertical offsets are taken to point up, for the first of several rows has the largest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from hpc_isl.plates.readers import xml
from hpc_isl.plates.readers.plane_metadata import PlaneMetadata
from hpc_isl.plates.readers.quantities import moment, number

Facts = Mapping[str, str]
_STITCHED = re.compile(r"(?P<how>[A-Za-z ]+)\[(?P<name>.*)\]")
_WAVELENGTHS = re.compile(r"\s+\d+\s*,\s*\d+$")
_DATE = re.compile(r"(\d\d)/(\d\d)/(\d\d)")


def facts(root: Element) -> dict[str, str]:
    """Returns name -> text of all elements, and the channel's attribute Color."""
    found = {xml.local(element.tag): (element.text or "").strip() for element in root.iter()}
    channel = next((element for element in root.iter() if xml.local(element.tag) == "Channel"), None)
    return found | {"Color": "" if channel is None else channel.get("Color", "")}


def plane(found: Facts) -> PlaneMetadata:
    """Returns what the facts say of a page; heights are those of the focus plus the steps of the stack."""
    x, y = (number(found.get(f"{axis}OffsetMicrons")) for axis in ("Horizontal", "Vertical"))
    elapsed = number(found.get("KineticTimeMs"))
    exposure = number(found.get("ShutterSpeedMS"))
    stitched = _STITCHED.fullmatch(found["Color"].strip())
    return PlaneMetadata(
        channel_name=_WAVELENGTHS.sub("", stitched["name"] if stitched else found["Color"].strip()),
        center_um=None if x is None or y is None else (-y, x),
        z_um=_height(found),
        moment=_moment(found),
        seconds=None if elapsed is None else elapsed / 1e3,
        exposure_s=None if exposure is None else exposure / 1e3,
        label=found.get("Well", ""),
        projection=stitched["how"].strip() if stitched else "",
    )


def pixel_um(found: Facts, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel: those of the image in µm over its pixels."""
    y, x = (number(found.get(f"Image{side}Microns")) for side in ("Height", "Width"))
    rows, columns = (number(found.get(f"Pixel{side}")) for side in ("Height", "Width"))
    if not y or not x:
        return None
    return round(y / (rows or shape[0]), 7), round(x / (columns or shape[1]), 7)


def _height(found: Facts) -> float | None:
    """`ZStackPosition` counts from 1, `ZStackFocalPosition` is the one in focus."""
    focus, step = number(found.get("FocalHeightMicrons")), number(found.get("ZStackStepSizeMicrons"))
    at, focal = number(found.get("ZStackPosition")), number(found.get("ZStackFocalPosition"))
    if focus is None or not step or at is None or focal is None:
        return focus
    return round(focus + (at - focal) * step, 4)


def _moment(found: Facts) -> str:
    """Dates are month/day/year of two digits, as in 02/26/19."""
    date = _DATE.fullmatch(found.get("Date", ""))
    time = found.get("Time", "").replace(" ", "")
    return moment(f"20{date[3]}-{date[1]}-{date[2]} {time}") if date else ""
