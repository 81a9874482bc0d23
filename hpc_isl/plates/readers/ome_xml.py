"""OME-XML, in TIFFs and beside them: images, their planes, and which page of which file holds each."""

# Seen: scanR 3.3 (schema 2013-06, one image per position), VisiView (2016-06, companion file), and what
# tifffile and Bio-Formats write. A position without a unit, or in "reference frame", is no micrometre.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from hpc_isl.plates.readers.fields import unique
from hpc_isl.plates.readers.vendor_facts import (
    PlaneMetadata,
    edges,
    local_name,
    micrometres,
    moment,
    number,
    position,
    seconds,
)

PlaneIndex = tuple[int, int, int]
_MOST_PLANES = 4_000_000  # more in one image is damage


@dataclass(frozen=True)
class TiffData:
    """The file of some planes: `planes[n]` is page `first + n` of it; "" is the file itself."""

    file: str
    uuid: str
    first: int
    planes: tuple[PlaneIndex, ...]


@dataclass(frozen=True)
class OmeImage:
    """One image.

    Attributes:
        name: e.g. "Well 14, Position 1 (B2)".
        sizes: axis (T, C, Z, Y, X) -> length.
        order: of T, C and Z, the fastest first.
        pixel_um, plane_um: edges of a pixel (y, x), distance of planes; None where not stated.
        planes: (t, c, z) -> what is stated of the plane.
        data: where the planes lie.
        channels: names, numbered where one repeats.
        facts: pixel type, objective and date, in the file's own words.
        channel_nm: wavelengths of excitation and emission of each channel.
        illumination: of each channel, "Epifluorescence", "Transmitted", …; "" where not stated.
        remark: on channels that had to be numbered; "" where none had.
    """

    name: str
    sizes: Mapping[str, int]
    order: str
    pixel_um: tuple[float, float] | None
    plane_um: float | None
    planes: Mapping[PlaneIndex, PlaneMetadata]
    data: tuple[TiffData, ...]
    channels: tuple[str, ...] = ()
    channel_nm: tuple[tuple[float | None, float | None], ...] = ()
    illumination: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""


def linked_file(root: Element) -> str:
    """Returns the companion file that holds the metadata; "" where this one does."""
    binary_only = _child(root, "BinaryOnly")
    return "" if binary_only is None else binary_only.get("MetadataFile", "(without a name)")


def images(root: Element) -> Iterator[OmeImage]:
    """Yields the images in order; what lacks sizes is no image."""
    for element in root:
        if local_name(element.tag) == "Image" and (parsed := image(element)):
            yield parsed


def planes_in(image: OmeImage, file: str, root: Element) -> dict[int, PlaneMetadata]:
    """Returns page -> plane, for those planes of the image that lie in this file.

    A file that was renamed is known by its UUID, or as the only one that the metadata speak of.
    """
    own_uuid = root.get("UUID", "")
    only_file = (
        sum(local_name(child.tag) == "Image" for child in root) == len({d.file for d in image.data}) == 1
    )
    pages: dict[int, PlaneMetadata] = {}
    for data in image.data:
        file_name = PurePosixPath(data.file.replace("\\", "/")).name
        if only_file or file_name in ("", file) or data.uuid == own_uuid != "":
            pages |= {data.first + number: image.planes[place] for number, place in enumerate(data.planes)}
    return pages


def image(element: Element, unit: str = "") -> OmeImage | None:
    """Returns the image of an `Image` element; None where it states no sizes.

    Args:
        unit: of stage positions that state none.
    """
    pixels = _child(element, "Pixels")
    # Planes are listed one by one: a damaged size must not fill the memory.
    if pixels is None or not 0 < prod(_whole(pixels, f"Size{axis}") for axis in "ZCT") < _MOST_PLANES:
        return None
    sizes = {axis: _whole(pixels, f"Size{axis}") for axis in "TCZYX"}
    order = "".join(a for a in pixels.get("DimensionOrder", "XYZCT").upper() if a in "ZCT")
    order = order if len(order) == 3 else "ZCT"
    z, y, x = (
        micrometres(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "ZYX"
    )
    channels = [child for child in pixels if local_name(child.tag) == "Channel"]
    stated_names = [channel.get("Name", "") for channel in channels]
    names = _unique_names(stated_names)
    places = _places(sizes, order)
    date = _child(element, "AcquisitionDate")
    image_moment = moment(date.text) if date is not None else ""
    stage = _child(element, "StageLabel")
    label = "" if stage is None else stage.get("Name", "")
    planes = {
        place: PlaneMetadata(
            *place, names[place[1]] if place[1] < len(names) else "", moment=image_moment, label=label,
            z_um=round(place[2] * z, 6) if z is not None and sizes["Z"] > 1 else None,
        )
        for place in places
    }  # fmt: skip
    return OmeImage(
        name=element.get("Name", ""),
        sizes=sizes,
        order=order,
        pixel_um=edges(y, x),
        plane_um=z,
        planes=planes | _stated(pixels, planes, unit),
        data=tuple(_tiff_data(pixels, places)),
        channels=names,
        channel_nm=tuple(
            (number(c.get("ExcitationWavelength")), number(c.get("EmissionWavelength"))) for c in channels
        ),
        illumination=tuple(c.get("IlluminationType", "") for c in channels),
        facts={"type": pixels.get("Type", ""), "date": image_moment},
        remark="; ".join(
            f"several channels are called {stated!r}: one of them is {name!r} here"
            for stated, name in zip(stated_names, names, strict=True)
            if stated != name
        ),
    )


def _unique_names(stated_names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of channels, numbered where one repeats: by it alone they would be one channel."""
    names: list[str] = []
    for name in stated_names:
        names.append(unique(name, names) if name else "")
    return tuple(names)


def _places(sizes: Mapping[str, int], order: str) -> list[PlaneIndex]:
    """Returns all (t, c, z) in the order of the file."""
    # `product` varies its last range fastest, an OME order names the fastest axis first.
    slowest_first = order[::-1]
    indices = product(*(range(sizes[axis]) for axis in slowest_first))
    t, c, z = (slowest_first.index(axis) for axis in "TCZ")
    return [(place[t], place[c], place[z]) for place in indices]


def _stated(
    pixels: Element, planes: Mapping[PlaneIndex, PlaneMetadata], unit: str
) -> dict[PlaneIndex, PlaneMetadata]:
    """Returns what the `Plane` elements state; those of planes that do not exist are left out."""
    stated_planes = {}
    for element in (child for child in pixels if local_name(child.tag) == "Plane"):
        place = (_whole(element, "TheT"), _whole(element, "TheC"), _whole(element, "TheZ"))
        if place not in planes:
            continue
        x, y, z = (
            micrometres(element.get(f"Position{a}"), element.get(f"Position{a}Unit", unit)) for a in "XYZ"
        )
        stated_planes[place] = replace(
            planes[place],
            center_um=position(y, x),
            z_um=planes[place].z_um if z is None else z,
            seconds=seconds(element.get("DeltaT"), element.get("DeltaTUnit", "s")),
            exposure_s=seconds(element.get("ExposureTime"), element.get("ExposureTimeUnit", "s")),
        )
    return stated_planes


def _tiff_data(pixels: Element, places: list[PlaneIndex]) -> Iterator[TiffData]:
    """Yields planes from a first one on, in the order of the file; without attributes all of them."""
    ranks = {place: rank for rank, place in enumerate(places)}
    blocks = [child for child in pixels if local_name(child.tag) == "TiffData"]
    for block in blocks:
        first = ranks.get((_whole(block, "FirstT"), _whole(block, "FirstC"), _whole(block, "FirstZ")))
        if first is None:
            continue
        uuid = _child(block, "UUID")
        bare = uuid is None and not block.attrib
        # The schema's defaults: one plane where a page is named, else all from the first one on.
        count = _whole(block, "PlaneCount", len(places) if bare or "IFD" not in block.attrib else 1)
        if uuid is not None and "PlaneCount" not in block.attrib:
            count = 1
        file = "" if uuid is None else uuid.get("FileName", "")
        uuid_text = "" if uuid is None else (uuid.text or "").strip()
        yield TiffData(file, uuid_text, _whole(block, "IFD"), tuple(places[first : first + count]))
    if not blocks:
        yield TiffData("", "", 0, tuple(places))


def _child(element: Element, name: str) -> Element | None:
    return next((child for child in element if local_name(child.tag) == name), None)


def _whole(element: Element, name: str, default: int = 0) -> int:
    text = element.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default
