"""IN Cell Analyzer (GE, Cytiva): the run's index `.xdce`, to an `Export`."""

# No run was at hand, neither pixels nor a whole index: all of this is only read about, in public readers, a
# macro that stitches real wells, notes on one export of MetaXpress for IN Carta, and the first lines of two
# published indices (IN Cell Analyzer 2000). Row and Column count from 1, the indices of an image from 0.
# OffsetFromWellCenter grows upwards, by that macro; PlatePosition_um downwards, by one position of those
# notes. A channel that has one plane may be listed for each plane of the others, with the same file.

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn
from xml.etree.ElementTree import Element

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import MOST_COLUMNS, MOST_ROWS, Channel, Export, FieldKey, well_name
from hpc_isl.plates.readers import export, fields
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.folder import Folder, left_out_by_name, list_folder, nearest_file, unnamed
from hpc_isl.plates.readers.vendor_facts import (
    PlaneMetadata,
    edges,
    local_name,
    micrometres,
    moment,
    number,
    position,
    seconds,
    utc_moment,
    whole,
    xml_elements,
)

_HEADS = ("ImageStack", "Application", "Creation", "AutoLeadAcquisitionProtocol")
_BINNING = re.compile(r"\s*(\d+)\s*[xX]\s*(\d+)\s*")
Facts = Mapping[str, str]
"""Attributes of an XML element."""


@dataclass
class _Index:
    """The statements of an index.

    Attributes:
        facts: of the run, tag -> attributes.
        waves: number -> attributes of both filters.
        offsets: number of a field -> its place (y, x) in the plan.
        planes: by file, field, wave and time.
        named_again: entries whose file is that of another plane.
    """

    path: Path
    facts: dict[str, Facts] = field(default_factory=dict)
    waves: dict[int, dict[str, Facts]] = field(default_factory=dict)
    offsets: dict[int, tuple[float, float] | None] = field(default_factory=dict)
    planes: dict[tuple[str, FieldKey, int, int], Described] = field(default_factory=dict)
    named_again: int = 0
    remarks: list[str] = field(default_factory=list)


def recognise(below: Folder) -> bool:
    """Returns whether there is an `.xdce`."""
    return any(name.lower().endswith(".xdce") for name in below.files)


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate of one run.

    Channels are in the order of their waves and named by their filters; fields are numbered from 1, as in the
    names of the files. Positions are from the centre of the well, or in the frame of the plate.

    Raises:
        UserError: no `.xdce`, several, one that is damaged or names files outside its folder, or none of its
            images is there.
    """
    below = list_folder(folder)
    name = nearest_file(below, ".xdce", "runs")
    if not name:
        raise UserError(f"{below.root}: no .xdce; the folder of a run of IN Cell Analyzer is expected")
    index = _read(below, name)
    files = {file: below.root / file for file, *_ in index.planes}
    absent = below.missing(files)
    header = export.first_header(files.values(), absent, index.path)
    pixel_um = _pixel(index)
    plate_facts = index.facts.get("Plate", {})
    rows, columns = (int(number(plate_facts.get(axis)) or 0) for axis in ("rows", "columns"))
    creation = index.facts.get("Creation", {})
    channels = _channels(index)
    return export.build(
        list(index.planes.values()),
        channels,
        dict.fromkeys(files.values(), (header.shape, header.dtype)),
        dict.fromkeys(files.values(), pixel_um),
        name=index.facts.get("ImageStack", {}).get("PlateID", "").strip() or PurePosixPath(name).stem,
        layout=lambda wells: export.stated_layout(wells, rows, columns, index.path),
        details=_details(index.facts),
        acquisitions={0: moment(f"{creation.get('date')} {creation.get('time')}") or "0"},
        unreadable=absent,
        absent=absent,
        indexed=True,
        left_out=[
            left_out_by_name(below.root, str(left.path.relative_to(below.root)), left.kind)
            for left in unnamed(below, files.values())
        ],
        remarks=index.remarks,
        resample=resample,
    )


# ---------------------------------------------------------------- the index


def _read(below: Folder, name: str) -> _Index:
    index = _Index(below.root / name)
    for kind, element in xml_elements(index.path, {"Image", *_HEADS}):
        if kind == "Image":
            _add_image(index, element, below, str(PurePosixPath(name).parent))
        else:
            index.facts.setdefault(kind, dict(element.attrib))
        if kind == "AutoLeadAcquisitionProtocol":
            _add_protocol(index, element)
    if not index.planes:
        raise UserError(f"{index.path} names no image: no index of IN Cell Analyzer, or one of an empty run")
    if index.named_again:
        index.remarks.append(
            f"entries of the index that name another plane's file, which is stored once: {index.named_again}"
        )
    _place(index)
    return index


def _add_image(index: _Index, element: Element, below: Folder, parent: str) -> None:
    """Adds an image, unless its file is that of another plane of the same field and wave."""
    origin = f"{index.path}: image {element.get('filename', '')!r}"
    facts_by_tag = {local_name(child.tag): child.attrib for child in element.iter()}
    numbers = facts_by_tag.get("Identifier", {})
    row, column = (
        whole(facts_by_tag.get(tag, {}), "number", f"{origin}: {tag}") for tag in ("Row", "Column")
    )
    if not (1 <= row <= MOST_ROWS and 1 <= column <= MOST_COLUMNS):
        raise UserError(f"{origin}: row {row}, column {column} is no well")
    field_number, wave, time, plane = (
        whole(numbers, f"{axis}_index", origin, 0) for axis in ("field", "wave", "time", "z")
    )
    file_name = element.get("filename", "")
    if not file_name:
        _refuse_unnamed(index.path, row, column)
    file = below.named(below.locate(str(PurePosixPath(parent) / below.locate(file_name, origin)), origin))
    if file.lower().endswith(".im"):
        raise UserError(f"{origin}: files .im of IN Cell Analyzer 1000 are not read; export them as TIFF")
    key = FieldKey(well_name(row - 1, column - 1), str(field_number + 1))
    described = Described(key, below.root / file, time, wave, plane, _metadata(element, facts_by_tag))
    _add_wave(index, wave, facts_by_tag)
    place = (file, key, wave, time)
    if earlier := index.planes.get(place):
        index.named_again += 1
        described = min(earlier, described, key=lambda entry: entry.plane)
    index.planes[place] = described


def _refuse_unnamed(path: Path, row: int, column: int) -> NoReturn:
    raise UserError(
        f"{path}: an image of {well_name(row - 1, column - 1)} has no file name; read the images by their "
        "names: convert patterns/incell.yaml source=… out=…"
    )


def _metadata(element: Element, facts_by_tag: Mapping[str, Facts]) -> PlaneMetadata:
    elapsed, stamp = number(element.get("acquisition_time_ms")), number(element.get("timestamp_sec"))
    exposure, focus = facts_by_tag.get("Exposure", {}), facts_by_tag.get("FocusPosition", {})
    offset, plate_position = facts_by_tag.get("OffsetFromWellCenter"), facts_by_tag.get("PlatePosition_um")
    center = _position(offset, up=True) if offset else _position(plate_position or {}, up=False)
    return PlaneMetadata(
        center_um=center,
        z_um=micrometres(focus.get("z"), focus.get("unit") or "µm"),
        moment=utc_moment(stamp),
        seconds=None if elapsed is None else elapsed / 1000,
        exposure_s=seconds(exposure.get("time"), exposure.get("unit") or "ms"),
    )


def _position(facts: Facts, *, up: bool) -> tuple[float, float] | None:
    y, x = (micrometres(facts.get(axis), facts.get("unit") or "µm") for axis in "yx")
    return position(y, x, up=up)


def _add_protocol(index: _Index, protocol: Element) -> None:
    """Adds what the plan of the run states: plate, camera, objective, filters, places of the fields."""
    wave_count = 0
    for element in protocol.iter():
        tag = local_name(element.tag)
        if tag == "Wavelength":
            stated_index = number(element.get("index"))
            _add_wave(index, wave_count if stated_index is None else int(stated_index), _filters(element))
            wave_count += 1
        elif tag == "offset_point":
            stated_index = number(element.get("index"))
            field_number = len(index.offsets) if stated_index is None else int(stated_index)
            index.offsets[field_number] = _position(element.attrib, up=True)
        elif tag in ("Plate", "ObjectiveCalibration", "Camera", "Binning"):
            index.facts.setdefault(tag, dict(element.attrib))


def _add_wave(index: _Index, wave: int, facts_by_tag: Mapping[str, Facts]) -> None:
    """Adds the filters of a wave; the plan states wavelengths, images may state names alone."""
    filters = index.waves.setdefault(wave, {})
    for tag in ("ExcitationFilter", "EmissionFilter"):
        filters[tag] = {
            **filters.get(tag, {}),
            **{n: v for n, v in facts_by_tag.get(tag, {}).items() if v.strip()},
        }


def _filters(element: Element) -> dict[str, Facts]:
    return {local_name(child.tag): child.attrib for child in element.iter()}


def _place(index: _Index) -> None:
    """Gives fields the places that the plan states, where the images state none."""
    planes = index.planes.values()
    if any(plane.metadata.center_um for plane in planes) or not any(index.offsets.values()):
        return
    for key, plane in index.planes.items():
        center = index.offsets.get(int(plane.key.name) - 1)
        index.planes[key] = replace(plane, metadata=replace(plane.metadata, center_um=center))
    index.remarks.append("positions of the plan state no unit and are taken for micrometres")


# ---------------------------------------------------------------- what it states


def _pixel(index: _Index) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel; None where the camera was binned, as readers differ on that."""
    facts = index.facts.get("ObjectiveCalibration", {})
    y, x = (
        micrometres(facts.get(f"pixel_{side}"), facts.get("unit") or "µm") for side in ("height", "width")
    )
    pixel_um = edges(y, x)
    binning = _BINNING.fullmatch(index.facts.get("Binning", {}).get("value", ""))
    if pixel_um is None or binning is None or binning.groups() == ("1", "1"):
        return pixel_um
    index.remarks.append(
        f"pixels of {pixel_um[1]:g} µm are stated, and a binning of {binning[1]} × {binning[2]}; readers "
        "differ on whether the one includes the other, so the size is left unknown: after the conversion, "
        f"set PLATE pixel_um={pixel_um[1]:g} or pixel_um={pixel_um[1] * int(binning[2]):g}"
    )
    return None


def _channels(index: _Index) -> dict[int, Channel]:
    """Returns wave -> channel, named by its filters: "UV - DAPI", or "DAPI" where both have that name."""
    channels: dict[int, Channel] = {}
    applied = index.facts.get("Camera", {}).get("apply_ffc", "").lower() == "true"
    corrected = "flat field (apply_ffc)" if applied else ""
    for wave in sorted({plane.channel for plane in index.planes.values()}):
        excitation, emission = (index.waves[wave][f"{kind}Filter"] for kind in ("Excitation", "Emission"))
        names = dict.fromkeys(
            filter(None, (facts.get("name", "").strip() for facts in (excitation, emission)))
        )
        name = fields.unique(" - ".join(names) or f"wave {wave}", [c.name for c in channels.values()])
        channels[wave] = replace(
            fields.channel(name, *map(_nanometres, (excitation, emission))), corrected=corrected
        )
    return channels


def _nanometres(facts: Facts) -> float | None:
    length = micrometres(facts.get("wavelength"), facts.get("unit") or "nm")
    return round(length * 1000, 3) if length else None


def _details(facts: Mapping[str, Facts]) -> dict[str, object]:
    def stated(tag: str, *names: str) -> str:
        return " ".join(filter(None, (facts.get(tag, {}).get(name, "").strip() for name in names)))

    return {
        "reader": "incell",
        "instrument": "IN Cell Analyzer",
        "software": stated("Application", "name", "software_version"),
        "objective": stated("ObjectiveCalibration", "objective_name"),
        "numerical aperture": stated("ObjectiveCalibration", "numerical_aperture"),
        "binning": stated("Binning", "value"),
        "camera": stated("Camera", "name"),
        "plate type": stated("Plate", "name"),
    }
