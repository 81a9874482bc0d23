"""Olympus and Evident scanR: `data/metadata.ome.xml`, or names and `experiment_descriptor.xml`."""

# Seen in real metadata, without pixels: OME-XML (schema 2013-06) of scanR 3.3, one well. Only read about:
# several wells, channels, planes and times; the descriptor of older versions (Latin-1, pairs of Name and
# Val, exposures in ms) and its file names. Positions state no unit and are taken for micrometres in the
# frame of the stage: z fits the travel of a focus drive, x and y that of a stage. Wells are numbered along
# the rows.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import (
    FORMATS,
    Channel,
    Export,
    FieldKey,
    color_of,
    is_transmitted,
    well_name,
    well_position,
)
from hpc_isl.plates.readers import export, fields, ome_xml
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.folder import Folder, list_folder, nearest_files, unnamed
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata, local_name, number, parsed_xml, xml_elements

_INDEX, _DESCRIPTOR = "metadata.ome.xml", "experiment_descriptor.xml"
_NAME = re.compile(
    r"(?:.*/)?(?:(?P<label>[^/]*?)--)?W(?P<well>\d{5})--P(?P<field>\d{5})--Z(?P<plane>\d{5})--T(?P<time>\d{5})"
    r"--(?P<channel>[^/]+)\.tiff?",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"Well (?P<well>\d+), Position (?P<field>\d+)(?: \((?P<label>[^)]*)\))?")
_WELL = re.compile(r"A?[A-Z]\d{1,2}")


@dataclass(frozen=True)
class _Plane:
    """One plane: the number and label of its well, its file, and what is stated of it."""

    well: int
    label: str
    field: str
    channel: str
    file: str
    metadata: PlaneMetadata
    page: int = 0
    size: tuple[int, int] | None = None
    pixel_um: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Run:
    """A whole run, as index or descriptor state it; channels by name."""

    origin: Path
    planes: Sequence[_Plane]
    channels: Mapping[str, Channel]
    layout: tuple[int, int]
    details: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def recognise(below: Folder) -> bool:
    """Returns whether there is OME-XML of scanR, or a descriptor of one of its runs."""
    for index in _nearest(below, _INDEX)[:1]:
        # Other programs write files of this name: the beginning must name scanR.
        with (below.root / index).open("rb") as file:
            return b"scanr" in file.read(4096).lower()
    return bool(_nearest(below, _DESCRIPTOR))


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate of a run; the folder is the run's, or its `data`.

    Channels are in the order of the index, or of their names; fields are positions.

    Raises:
        UserError: neither index nor descriptor, several, or one that is damaged or names files outside the
            folder; wells that nothing places; none of the images is there.
    """
    below = list_folder(folder)
    run = _run_by_index(below, index) if (index := _file_of_run(below, _INDEX)) else _run_by_names(below)
    wells, rows, columns = _wells(run)
    absent = below.missing(plane.file for plane in run.planes)
    header = export.first_header((below.root / plane.file for plane in run.planes), absent, run.origin)
    numbers = {name: number for number, name in enumerate(run.channels)}
    planes = [
        Described(
            FieldKey(wells[plane.well], plane.field), below.root / plane.file, plane.metadata.time,
            numbers[plane.channel], plane.metadata.plane, plane.metadata, plane.page,
        )
        for plane in run.planes
    ]  # fmt: skip
    root = below.root
    return export.build(
        planes,
        dict(enumerate(run.channels.values())),
        {root / plane.file: (plane.size or header.shape, header.dtype) for plane in run.planes},
        {root / plane.file: plane.pixel_um for plane in run.planes},
        name=run.details.get("plate name") or (root.parent if root.name.lower() == "data" else root).name,
        layout=lambda _: export.stated_layout(set(wells.values()), rows, columns, run.origin),
        details={"reader": "scanr", "instrument": "scanR", **run.details},
        unreadable=absent,
        absent=absent,
        indexed=bool(index),
        left_out=unnamed(below, (root / plane.file for plane in run.planes)),
        remarks=run.remarks,
        resample=resample,
    )


def _nearest(below: Folder, name: str) -> list[str]:
    return nearest_files(below, lambda file: file == name)


def _file_of_run(below: Folder, name: str) -> str:
    """Returns the file of this name, or ""; raises a `UserError` where several runs have one."""
    names = _nearest(below, name)
    if len(names) > 1:
        raise UserError(f"{below.root} holds {len(names)} runs ({', '.join(names[:5])}); give one as source")
    return next(iter(names), "")


# ---------------------------------------------------------------- wells


def _wells(run: _Run) -> tuple[dict[int, str], int, int]:
    """Returns number -> name of each well, and rows and columns of the plate, 0 where they are unknown.

    A well is known by its name; without one, by its number on a plate whose columns are known.
    """
    labels = {plane.well: plane.label for plane in run.planes}
    positions = {well: well_position(label) for well, label in labels.items() if _WELL.fullmatch(label)}
    rows, columns = run.layout
    if not columns:
        # B02 is well 14 of 96: 13 wells before it, of which the first 12 are row A.
        widths = {(n - 1 - column) / row for n, (row, column) in positions.items() if row}
        rows, columns = next(((r, c) for r, c in FORMATS.values() if widths == {c}), (0, 0))
    wells: dict[int, str] = {}
    for well, label in labels.items():
        if well in positions:
            wells[well] = well_name(*positions[well])
        elif columns and 0 < well <= rows * columns:
            wells[well] = well_name(*divmod(well - 1, columns))
        else:
            raise UserError(
                f"{run.origin}: well {well} ({label or 'without a name'}) cannot be placed; where nothing "
                "states the format, read it by names: convert patterns/scanr.yaml pattern.wells_on_plate=96"
            )
    # A wrong name would put two wells into one.
    if len(set(wells.values())) < len(wells):
        repeated = next(well for well in wells.values() if list(wells.values()).count(well) > 1)
        raise UserError(f"{run.origin}: several well numbers are said to be {repeated}")
    return wells, rows, columns


# ---------------------------------------------------------------- OME-XML


def _run_by_index(below: Folder, name: str) -> _Run:
    path = below.root / name
    planes: list[_Plane] = []
    channels: dict[str, Channel] = {}
    objectives: dict[str, str] = {}
    details: dict[str, str] = {}
    remarks = {"positions state no unit and are taken for micrometres": None}
    for kind, element in xml_elements(path, {"Image", "Instrument"}):
        if kind == "Instrument":
            objectives, details = _instrument(element)
        elif image := ome_xml.image(element, unit="µm"):
            planes += _planes_of(image, below, str(PurePosixPath(name).parent), path)
            _channels_of(image, channels)
            remarks |= {image.remark: None} if image.remark else {}
            objective_id = next(
                (e.get("ID", "") for e in element if local_name(e.tag) == "ObjectiveSettings"), ""
            )
            if objective := objectives.get(objective_id):
                details["objective"] = objective
    if not planes:
        raise UserError(f"{path} names no image of a plane")
    return _Run(path, planes, channels, (0, 0), details, tuple(remarks))


def _planes_of(image: ome_xml.OmeImage, below: Folder, folder: str, path: Path) -> Iterator[_Plane]:
    match = _IMAGE.match(image.name)
    if match is None:
        raise UserError(f"{path}: image {image.name!r}: a name as in 'Well 14, Position 1 (B2)' is expected")
    size = (image.sizes["Y"], image.sizes["X"])
    for data in image.data:
        if not data.file:
            raise UserError(f"{path}: image {image.name!r} names no files")
        file = below.locate(data.file, f"{path}: image {image.name!r}")
        file = below.named(file if folder == "." else f"{folder}/{file}")
        for offset, place in enumerate(data.planes):
            yield _Plane(
                int(match["well"]), match["label"] or "", match["field"], _channel_name(image, place[1]),
                file, image.planes[place], data.first + offset, size if min(size) > 0 else None,
                image.pixel_um,
            )  # fmt: skip


def _channel_name(image: ome_xml.OmeImage, number: int) -> str:
    name = image.channels[number] if number < len(image.channels) else ""
    return name or f"channel {number + 1}"


def _channels_of(image: ome_xml.OmeImage, channels: dict[str, Channel]) -> None:
    for index in range(image.sizes["C"]):
        name = _channel_name(image, index)
        if name in channels:
            continue
        excitation, emission = image.channel_nm[index] if index < len(image.channel_nm) else (None, None)
        light = image.illumination[index] if index < len(image.illumination) else ""
        fluorescent = light != "Transmitted" and not is_transmitted(name)
        channels[name] = Channel(
            name, fluorescent, color_of(fluorescent, emission), excitation_nm=excitation, emission_nm=emission
        )


def _instrument(element: Element) -> tuple[dict[str, str], dict[str, str]]:
    """Returns ID -> objective, and microscope and camera."""
    objectives: dict[str, str] = {}
    details: dict[str, str] = {}
    for child in element:
        kind, model = local_name(child.tag), child.get("Model", "")
        if kind == "Objective":
            aperture = f", NA {child.get('LensNA')}" if child.get("LensNA") else ""
            objectives[child.get("ID", "")] = model + aperture
        elif kind in ("Microscope", "Detector") and model:
            details[{"Microscope": "microscope", "Detector": "camera"}[kind]] = model
    return objectives, details


# ---------------------------------------------------------------- names and descriptor


def _run_by_names(below: Folder) -> _Run:
    """Returns a run without OME-XML, described by file names and the descriptor."""
    descriptor = _file_of_run(below, _DESCRIPTOR)
    if not descriptor:
        raise UserError(
            f"{below.root}: neither {_INDEX} nor {_DESCRIPTOR}; the folder of a scanR run is expected"
        )
    path = below.root / descriptor
    facts, exposures = _descriptor(path)
    edge = number(facts.get("conversion factor um/pixel"))
    pixel_um = (edge, edge) if edge and edge > 0 else None
    planes = []
    for name in sorted(below.files):
        if match := _NAME.fullmatch(name):
            exposure = exposures.get(match["channel"])
            metadata = PlaneMetadata(
                time=int(match["time"]), plane=int(match["plane"]),
                exposure_s=None if exposure is None else exposure / 1000,
            )  # fmt: skip
            label, field = match["label"] or "", str(int(match["field"]))
            planes.append(
                _Plane(int(match["well"]), label, field, match["channel"], name, metadata, pixel_um=pixel_um)
            )
    if not planes:
        raise UserError(
            f"{below.root}: no image of scanR; names as data/B2--W00014--P00001--Z00000--T00000--DAPI.tif "
            "are expected"
        )
    channels = {
        name: fields.channel(name, None, None) for name in sorted({plane.channel for plane in planes})
    }
    rows, columns = (int(number(facts.get(name)) or 0) for name in ("Rows", "Columns"))
    details = {name: facts[name] for name in ("plate name",) if facts.get(name)}
    layout = (rows, columns) if (rows, columns) in FORMATS.values() else (0, 0)
    return _Run(path, planes, channels, layout, details)


def _descriptor(path: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Returns the first value of each name, and the exposure of each channel in ms.

    A channel is a name that is followed by an exposure; the plate's format follows "format typedef".
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    text = re.sub(r"^\s*<\?.*?\?>", "", content.decode("latin-1"), count=1, flags=re.DOTALL)
    root = parsed_xml(text, str(path))
    facts: dict[str, str] = {}
    exposures: dict[str, float] = {}
    name, channel = "", ""
    for element in root.iter():
        tag, value = local_name(element.tag), (element.text or "").strip()
        if tag == "Name":
            name = value
        elif tag == "Val":
            facts.setdefault(name, value)
            channel = value if name == "name" else channel
            exposure = number(value) if name == "exposure time" else None
            if channel and exposure is not None:
                exposures.setdefault(channel, exposure)
    return facts, exposures
