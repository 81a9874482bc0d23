"""Statements of a TIFF on itself: axes, channel names, pixel size, positions, heights, times, exposures.

Resolution tags alone are no pixel size: Harmony writes the camera's pixels there, most others 1 or 72.
"""

# Seen in real files: MetaSeries XML (MetaXpress 6.5, 6.7), the OME-XML of scanR 3.3 and of VisiView, and
# files by ImageJ, tifffile and Bio-Formats. Only read about: MetaMorph stacks with UIC tags, whose layout
# is tifffile's reading of them, and Gen5's `BTIImageMetaData`.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import tifffile

from hpc_isl.errors import UserError, many
from hpc_isl.plates import planes
from hpc_isl.plates.planes import (
    Header,
    StoredPlane,
    file_kind,
    header,
    header_of,
    named_file,
    stored_planes,
)
from hpc_isl.plates.readers import ome_xml
from hpc_isl.plates.readers.vendor_facts import (
    MetadataError,
    PlaneMetadata,
    edges,
    gen5_facts,
    gen5_pixel,
    gen5_plane,
    metaseries_facts,
    metaseries_pixel,
    metaseries_plane,
    micrometres,
    moment,
    number,
    parsed_xml,
    seconds,
)

AXES = "TCZ"
EXAMPLES = 5  # files that are tried to know whose they are: the first one may be damaged
_UNKNOWN = "IQ"  # tifffile's letters for an axis that nothing names
_XML = {"<OME": "OME-XML", "<ome:OME": "OME-XML", "<MetaData>": "MetaSeries", "<BTIImageMetaData": "Gen5"}


@dataclass(frozen=True)
class TiffMetadata:
    """The statements of a TIFF on its pixels and planes.

    Attributes:
        source: which metadata state it, for messages: "OME-XML", "ImageJ", "MetaSeries", …; "" where none do.
        axes: those of T, C and Z that have several planes, outermost first; "" of a single plane.
        pixel_um: edges of a pixel (y, x) in micrometres, or None.
        planes: in the order of the file.
        facts: further statements, in the vendor's own words.
        linked: the file in which an OME-TIFF without its own metadata says they lie.
        remark: what could not be understood, or was named otherwise, and harms no pixel.
    """

    header: Header
    source: str
    axes: str
    planes: tuple[PlaneMetadata, ...]
    pixel_um: tuple[float, float] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    linked: str = ""
    remark: str = ""


def read(path: Path) -> TiffMetadata:
    """Returns what a TIFF or PNG states of itself; no pixels are decoded. A PNG states its size alone.

    Raises:
        UserError: naming the file: as `planes.header`; axes that do not fit the planes, several images,
            XML with a DTD or entities; of several planes also XML that is not well-formed.
    """
    with named_file(path):
        kind = file_kind(path)
        if kind == "dib":
            return _pages_as_planes(header(path), "DIB", pixel_um=planes.read_header(path).pixel_um)
        if kind == "png":
            return _pages_as_planes(header(path))
        with tifffile.TiffFile(path) as tiff:
            return _stated_metadata(tiff, stored_planes(tiff), path)


def read_all(paths: Sequence[Path]) -> tuple[dict[Path, TiffMetadata], dict[Path, str]]:
    """Returns what files state of themselves, and a clause about each that cannot be used."""
    metadata: dict[Path, TiffMetadata] = {}
    unreadable: dict[Path, str] = {}
    with ThreadPoolExecutor(8) as pool:  # they wait for the file system together
        for path, outcome in zip(paths, pool.map(tried, paths), strict=True):
            if isinstance(outcome, UserError):
                unreadable[path] = str(outcome)
            else:
                metadata[path] = outcome
    return metadata, unreadable


def read_single(paths: Sequence[Path]) -> tuple[dict[Path, TiffMetadata], dict[Path, str]]:
    """Returns what `read_all` does, of files with one plane each.

    Raises:
        UserError: no file can be used.
    """
    metadata, unreadable = read_all(paths)
    # Names of these vendors place one plane each: nothing would tell further ones apart.
    for path in [path for path, tiff in metadata.items() if tiff.header.pages > 1]:
        unreadable[path] = f"{path} holds {metadata.pop(path).header.pages} planes; one is expected"
    if not metadata:
        raise UserError(f"no image can be used; {next(iter(unreadable.values()))}")
    return metadata, unreadable


def sizes_and_edges(
    metadata: Mapping[Path, TiffMetadata],
) -> tuple[dict[Path, tuple[tuple[int, int], str]], dict[Path, tuple[float, float] | None]]:
    """Returns size (y, x) and type of each file, and the edges (y, x) of its pixels in µm."""
    return (
        {path: (tiff.header.shape, tiff.header.dtype) for path, tiff in metadata.items()},
        {path: tiff.pixel_um for path, tiff in metadata.items()},
    )


def tried(path: Path) -> TiffMetadata | UserError:
    """Returns what a file states of itself, or what is wrong with it."""
    try:
        return read(path)
    except UserError as error:
        return error


def source_of(root: Path, names: Iterable[str]) -> str:
    """Returns which metadata the first of these files has, of the first few that can be read; "" for none."""
    outcomes = (tried(root / name) for name in sorted(names)[:EXAMPLES])
    return next((tiff.source for tiff in outcomes if isinstance(tiff, TiffMetadata)), "")


def _stated_metadata(tiff: Any, stored: list[StoredPlane], path: Path) -> TiffMetadata:
    head = header_of(stored)
    if tiff.is_stk:
        return _stk(tiff, head)
    if tiff.is_imagej:
        return _imagej(tiff, head)
    if tiff.is_shaped:
        return _shaped(tiff, head)
    text = stored[0].page.description or ""
    # Bio-Formats puts a long comment before the root.
    kind = next((kind for mark, kind in _XML.items() if mark in text[:2000]), "")
    try:
        if kind == "OME-XML":
            return _ome(parsed_xml(text, f"{path}: its OME-XML"), head, path)
        if kind:
            texts = [entry.page.description for entry in stored]
            return _by_page([parsed_xml(text, f"{path}: its {kind} XML") for text in texts], head, kind)
    except MetadataError as error:
        if head.pages > 1:  # nothing else would tell its planes apart
            raise
        return replace(_pages_as_planes(head), remark=f"left out: {str(error).removeprefix(f'{path}: ')}")
    return _pages_as_planes(head)


def _pages_as_planes(head: Header, source: str = "", **attributes: Any) -> TiffMetadata:
    """Returns a stack: where nothing names the axes, pages are planes."""
    planes = tuple(PlaneMetadata(plane=number) for number in range(head.pages))
    return TiffMetadata(head, source, "Z" if head.pages > 1 else "", planes, **attributes)


# ---------------------------------------------------------------- XML in the description


def _ome(root: Element, head: Header, path: Path) -> TiffMetadata:
    if linked := ome_xml.linked_file(root):
        return _pages_as_planes(head, "OME-XML", linked=linked)
    images = [
        (image, pages)
        for image in ome_xml.images(root)
        if (pages := ome_xml.planes_in(image, path.name, root))
    ]
    if len(images) != 1:
        raise MetadataError(
            f"{path}: its OME-XML speaks of {len(images)} images in it; "
            "one image (a field) per file is expected"
        )
    image, pages = images[0]
    # A plane without metadata, or metadata without a plane: either would shift all that follow.
    if set(pages) != set(range(head.pages)):
        raise MetadataError(
            f"{path}: its OME-XML speaks of {many(len(pages), 'plane')}, but it has {head.pages}"
        )
    planes = tuple(pages[number] for number in range(head.pages))
    return TiffMetadata(
        head, "OME-XML", _axes(planes, image.order[::-1]), planes, image.pixel_um, image.facts,
        remark=image.remark,
    )  # fmt: skip


def _by_page(roots: Sequence[Element], head: Header, kind: str) -> TiffMetadata:
    """Returns the axes along which the pages' own channels, heights and times differ."""
    if kind == "MetaSeries":
        facts = [metaseries_facts(root) for root in roots]
        planes, pixel_um = (
            [metaseries_plane(page_facts) for page_facts in facts],
            metaseries_pixel(facts[0]),
        )
    else:
        facts = [gen5_facts(root) for root in roots]
        planes = [gen5_plane(page_facts) for page_facts in facts]
        pixel_um = gen5_pixel(facts[0], head.shape)
    names = list(dict.fromkeys(plane.channel_name for plane in planes))
    placed: dict[int, PlaneMetadata] = {}
    for channel, name in enumerate(names):
        pages = [page for page, plane in enumerate(planes) if plane.channel_name == name]
        heights = {planes[page].z_um for page in pages}
        times = {planes[page].seconds or planes[page].moment for page in pages}
        # Pages of one height at different times are a time series, all others a stack.
        series = len(heights) < 2 and len(times) == len(pages)
        for rank, page in enumerate(pages):
            time, plane = (rank, 0) if series else (0, rank)
            placed[page] = replace(planes[page], time=time, channel=channel, plane=plane)
    ordered = tuple(placed[page] for page in range(len(planes)))
    return TiffMetadata(head, kind, _axes(ordered, AXES), ordered, pixel_um, facts[0])


def _axes(planes: Sequence[PlaneMetadata], order: str) -> str:
    """Returns the axes along which the planes differ."""
    names = {"T": "time", "C": "channel", "Z": "plane"}
    return "".join(axis for axis in order if len({getattr(plane, names[axis]) for plane in planes}) > 1)


# ---------------------------------------------------------------- axes by shape


def _imagej(tiff: Any, head: Header) -> TiffMetadata:
    # Time lies outside z outside channel, unless `order` states otherwise.
    metadata = tiff.imagej_metadata or {}
    sizes = {"C": metadata.get("channels", 1), "Z": metadata.get("slices", 1), "T": metadata.get("frames", 1)}
    order = str(metadata.get("order", "czt")).upper()
    order = order if sorted(order) == sorted(AXES) else "CZT"
    axes, unit = order[::-1], str(metadata.get("unit", ""))
    if prod(sizes.values()) == 1 and head.pages > 1:
        axes, sizes = "Z", {"Z": head.pages}
    step, interval = micrometres(metadata.get("spacing"), unit), number(metadata.get("finterval"))
    return _by_shape(
        head, "ImageJ", axes, [sizes[axis] for axis in axes], tiff.filehandle.path,
        plane_um=step if sizes.get("Z", 1) > 1 else None,
        interval_s=interval if sizes.get("T", 1) > 1 else None,
        pixel_um=_resolution(tiff.pages[0], unit),
    )  # fmt: skip


def _shaped(tiff: Any, head: Header) -> TiffMetadata:
    # tifffile's own description states a shape and perhaps axes.
    metadata = tiff.shaped_metadata[0]
    shape = [int(length) for length in metadata["shape"][:-2]]
    axes = str(metadata.get("axes", "")).upper()[: len(shape)]
    if len(axes) != len(shape):
        return _pages_as_planes(head)
    pixel = [
        micrometres(metadata.get(f"PhysicalSize{a}"), str(metadata.get(f"PhysicalSize{a}Unit", "µm")))
        for a in "YX"
    ]
    return _by_shape(
        head, "tifffile's description", axes, shape, tiff.filehandle.path,
        plane_um=micrometres(metadata.get("PhysicalSizeZ"), str(metadata.get("PhysicalSizeZUnit", "µm"))),
        interval_s=seconds(metadata.get("TimeIncrement"), str(metadata.get("TimeIncrementUnit", "s"))),
        pixel_um=edges(*pixel),
    )  # fmt: skip


def _stk(tiff: Any, head: Header) -> TiffMetadata:
    """Returns a MetaMorph stack: in z where planes have distances, in time where they have times."""
    metadata = tiff.stk_metadata
    count = head.pages
    distances = _numbers(metadata.get("ZDistance"), count)
    heights = _numbers(metadata.get("AbsoluteZ"), count)
    times = [moment(str(value)) for value in _value_per_plane(metadata.get("DatetimeCreated"), count)]
    axis = "T" if not any(distances) and len(set(heights)) < 2 and len(set(times)) == count else "Z"
    if not any(heights) and any(distances):
        heights = [sum(distances[: number + 1]) - distances[0] for number in range(count)]
    places = [tuple(map(float, place)) for place in _value_per_plane(metadata.get("StagePosition"), count)]
    labels = [str(label) for label in _value_per_plane(metadata.get("StageLabel"), count)]
    planes = tuple(
        PlaneMetadata(
            time=index if axis == "T" else 0,
            plane=index if axis == "Z" else 0,
            channel_name=str(metadata.get("Name") or ""),
            center_um=(places[index][1], places[index][0]) if places else None,
            z_um=heights[index] if any(heights) else None,
            moment=times[index] if times else "",
            label=labels[index] if labels else "",
        )
        for index in range(count)
    )
    x, y = (
        micrometres(metadata.get(f"{a}Calibration"), str(metadata.get("CalibrationUnits", ""))) for a in "XY"
    )
    pixel_um = edges(y, x) if metadata.get("SpatialCalibration", 1) else None
    return TiffMetadata(head, "MetaMorph", axis if count > 1 else "", planes, pixel_um)


def _value_per_plane(value: Any, count: int) -> list[Any]:
    # One value per plane; a list of another length belongs to something else.
    values = [] if value is None or isinstance(value, int) else list(value)
    return values if len(values) == count else []


def _numbers(value: Any, count: int) -> list[float]:
    return [float(item) for item in _value_per_plane(value, count)]


def _by_shape(
    head: Header, source: str, axes: str, shape: Sequence[int], path: str, *,
    plane_um: float | None, interval_s: float | None, pixel_um: tuple[float, float] | None,
) -> TiffMetadata:  # fmt: skip
    """Returns planes in the order of axes, the last of which runs fastest; an unnamed axis is z."""
    lengths = {axis: length for axis, length in zip(axes, shape, strict=True) if length > 1}
    unknown_axes = [axis for axis in lengths if axis in _UNKNOWN]
    if len(unknown_axes) == 1 and "Z" not in lengths:
        lengths = {("Z" if axis in _UNKNOWN else axis): length for axis, length in lengths.items()}
    if strange_axes := [axis for axis in lengths if axis not in AXES]:
        raise UserError(
            f"{path}: its planes lie along an axis {strange_axes[0]!r}; time, channel and z are understood"
        )
    if prod(lengths.values()) != head.pages:
        stated_axes = ", ".join(f"{axis} {length}" for axis, length in lengths.items()) or "one plane"
        raise UserError(f"{path} has {many(head.pages, 'plane')}, but {source} states {stated_axes}")
    planes = []
    for index in range(head.pages):
        place: dict[str, int] = {}
        for axis, length in reversed(lengths.items()):
            index, place[axis] = divmod(index, length)
        time, plane = place.get("T", 0), place.get("Z", 0)
        planes.append(
            PlaneMetadata(
                time=time,
                channel=place.get("C", 0),
                plane=plane,
                z_um=None if plane_um is None else round(plane * plane_um, 6),
                seconds=None if interval_s is None else round(time * interval_s, 6),
            )
        )
    return TiffMetadata(head, source, "".join(lengths), tuple(planes), pixel_um)


def _resolution(page: Any, unit: str) -> tuple[float, float] | None:
    """Returns edges (y, x) from the resolution tags, whose unit the description states."""
    lengths = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        pixels, units = tag.value if tag is not None else (0, 0)
        lengths.append(micrometres(units / pixels, unit) if pixels else None)
    return edges(*lengths)
