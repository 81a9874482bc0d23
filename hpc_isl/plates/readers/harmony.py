"""Opera Phenix and Operetta: a Harmony export, its index and its assay layout, to an `Export`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from hpc_isl.mistake import Mistake
from hpc_isl.plates import planes
from hpc_isl.plates.plate import (
    TRANSMITTED,
    Channel,
    Export,
    FieldKey,
    PlaneFile,
    Plate,
    color_of,
    layout,
    row_name,
    well_name,
)
from hpc_isl.plates.readers import harmony_fields, harmony_index, stacks, xml
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.harmony_fields import Camera, Order, Size
from hpc_isl.plates.readers.harmony_index import Image, Index, number

_LONG = frozenset({"FlatfieldProfile", "ChannelName"})


def recognise(folder: Path) -> bool:
    """Whether there is a Harmony index in `folder`, its `Images`, or a folder of exports just below."""
    return bool(_indices(folder))


def read(folder: Path) -> Export:
    """A Harmony export (V5, V6, V7): the folder that holds `Images`, or the one that holds the index.

    Channels are in the order of ChannelID, planes of PlaneID, times of TimepointID. Positions are
    those of the field's first pixel in µm from the centre of its well, y down.

    Raises:
        Mistake: naming the index: there is none, it is damaged or names files outside its folder or
            wells outside its plate, or none of its files is there.
    """
    path = _the_index(folder)
    index = harmony_index.read(path)
    rows, columns = _layout(index, path)
    order, channels, remarks = _channels(index)
    named, absent = _plane_files(index, order, path)
    files, problems = stacks.check(named, order.names, absent)
    camera = _camera(index, order, files, path)
    images = _by_field(index)
    fields = tuple(harmony_fields.field(key, images[key], named[key], order, camera) for key in images)
    for key in images:
        problems += harmony_fields.problems(key, images[key], camera)
    plate = Plate(
        name=index.plate.get("Name") or index.plate.get("PlateID") or folder.resolve().name,
        rows=rows,
        columns=columns,
        channels=channels,
        fields=fields,
        pixel_um=camera.pixel_um,
        plane_um=stacks.spacing(fields),
        acquisitions={0: index.plate.get("MeasurementStartTime") or "0"},
        details=_details(index, order),
    )
    return Export(plate, files, tuple(problems), _assay_layout(path), remarks)


# ---------------------------------------------------------------- the index and its files


def _the_index(folder: Path) -> Path:
    found = _indices(folder)
    if not found:
        raise Mistake(f"{folder}: no Harmony index; Images/Index.idx.xml or Images/Index.xml is expected")
    if len(found) > 1:
        listed = ", ".join(path.relative_to(folder).parts[0] for path in found[:10])
        raise Mistake(f"{folder} holds {len(found)} Harmony exports ({listed}); give one of them as source")
    return found[0]


def _indices(folder: Path) -> list[Path]:
    """The index of the export at `folder`; else those of the exports just below it."""
    if not folder.is_dir():
        raise Mistake(f"{folder}: there is no such folder")
    if own := _index_of(folder):
        return [own]
    return [path for below in _entries(folder) if (path := _index_of(below))]


def _index_of(folder: Path) -> Path | None:
    """Index.idx.xml before Index.xml; in `Images`, the folder itself, or `index` as in archives."""
    places = (folder / "Images", folder / "images", folder, folder / "index")
    paths = (path for place in places for path in _entries(place, harmony_index.NAMES))
    return next(filter(harmony_index.recognise, paths), None)


def _entries(folder: Path, names: Collection[str] = ()) -> list[Path]:
    """What is in a folder, in order; only those of these names (in lower case) where any are given."""
    try:
        found = [name for name in os.listdir(folder) if not names or name.lower() in names]
    except OSError:  # no folder, or not ours to read: nothing is found there
        return []
    return [folder / name for name in sorted(found, key=str.lower)]


def _plane_files(
    index: Index, order: Order, path: Path
) -> tuple[dict[FieldKey, list[PlaneFile]], dict[Path, str]]:
    """The file of every image of the index, by field, and what to say of those that are not there."""
    folder = list_folder(path.parent.parent if path.parent.name.lower() == "index" else path.parent)
    below, by_well = _below(index, folder)
    named: dict[FieldKey, list[PlaneFile]] = defaultdict(list)
    absent: dict[Path, str] = {}
    for image in index.images:
        origin = f"{path}: image {image.id}"
        name = folder.locate(image.url or image.id or "(no file)", origin)
        if below or by_well:
            name = folder.locate(below + (_well_folder(image) if by_well else "") + name, origin)
        file = folder.root / name
        if name not in folder.files:
            absent[file] = f"{image.url or 'the file of ' + image.id} is missing"
        t, c, z = order.times[image.time], order.channels[image.channel], order.planes[image.plane]
        named[_key(image)].append(PlaneFile(file, t, c, z))
    return dict(named), absent


def _below(index: Index, folder: Folder) -> tuple[str, bool]:
    """Where the images lie below the index's folder, and whether each well has a folder of its own.

    Exports keep them beside the index; archives in `images`, some in a folder such as r04c03.
    """
    some = index.images[:20]
    for below, by_well in product(("", "Images/", "images/"), (False, True)):
        names = [below + (_well_folder(image) if by_well else "") + image.url for image in some]
        if any(name.replace("\\", "/") in folder.files for name in names):
            return below, by_well
    return "", False


def _well_folder(image: Image) -> str:
    return f"r{image.row:02d}c{image.column:02d}/"


def _key(image: Image) -> FieldKey:
    return FieldKey(well_name(image.row - 1, image.column - 1), str(image.field))


def _by_field(index: Index) -> dict[FieldKey, list[Image]]:
    fields: dict[FieldKey, list[Image]] = defaultdict(list)
    for image in index.images:
        fields[_key(image)].append(image)
    return dict(fields)


def _camera(index: Index, order: Order, files: Mapping[FieldKey, Sequence[PlaneFile]], path: Path) -> Camera:
    """Sizes as the index states them; the type, which it does not, from the first readable file."""
    shape, dtype = _probe(files, path)
    sizes: dict[int, Size] = {}
    pixel_um = None
    for channel in order.channels:
        facts, origin = index.channels[channel], f"{path}: channel {channel}"
        height, width = (number(facts, name, origin) for name in ("ImageSizeY", "ImageSizeX"))
        sizes[channel] = (int(height), int(width)) if height and width and min(height, width) >= 1 else shape
        metres = number(facts, "ImageResolutionX", origin)
        pixel_um = pixel_um or (round(metres * 1e6, 12) if metres and metres > 0 else None)
    return Camera(sizes, dtype, pixel_um)


def _probe(files: Mapping[FieldKey, Sequence[PlaneFile]], path: Path) -> tuple[Size, str]:
    damaged = None
    for plane in (plane for stack in files.values() for plane in stack):
        try:
            return planes.header(plane.path)[:2]
        except Mistake as error:
            damaged = damaged or error
    raise damaged or Mistake(f"{path}: none of the images that it names is there")


# ---------------------------------------------------------------- the plate


def _layout(index: Index, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rows and columns that the index states, or those of the smallest format that holds its wells."""
    rows, columns = (
        int(number(index.plate, name, f"{path}: plate") or 0) for name in ("PlateRows", "PlateColumns")
    )
    if not (0 <= rows <= 32 and 0 <= columns <= 48):
        raise Mistake(
            f"{path}: the plate has {rows} rows and {columns} columns; at most 32 and 48 are expected"
        )
    wells = {(image.row, image.column): image for image in index.images}
    for (row, column), image in wells.items():
        if not (1 <= row <= (rows or 32) and 1 <= column <= (columns or 48)):
            said = f"{rows or 32} rows and {columns or 48} columns"
            raise Mistake(
                f"{path}: image {image.id} is in row {row}, column {column}, but the plate has {said}"
            )
    if not rows or not columns:
        return layout({well_name(row - 1, column - 1) for row, column in wells})
    return tuple(map(row_name, range(rows))), tuple(f"{column + 1:02d}" for column in range(columns))


def _channels(index: Index) -> tuple[Order, tuple[Channel, ...], tuple[str, ...]]:
    """The channels that have images, by ChannelID, and remarks about what could not be understood."""
    order = harmony_fields.order(index.images)
    channels: list[Channel] = []
    remarks = []
    for channel in order.channels:
        facts = index.channels[channel]
        name = _unique(facts.get("ChannelName") or f"Channel {channel}", {c.name for c in channels})
        profile = facts.get("FlatfieldProfile", "")
        flat_field = harmony_index.flat_field(profile)
        if profile and flat_field is None:
            remarks.append(
                f"channel {name!r}: its flat-field profile in the index is not understood and left out"
            )
        channels.append(_channel(name, facts, flat_field))
    return replace(order, names=tuple(c.name for c in channels)), tuple(channels), tuple(remarks)


def _unique(name: str, taken: set[str]) -> str:
    names = [name, *(f"{name} {count}" for count in range(2, len(taken) + 2))]
    return next(candidate for candidate in names if candidate not in taken)


def _channel(name: str, facts: Mapping[str, str], flat_field: dict[str, Any] | None) -> Channel:
    origin = f"channel {name!r} of the index"
    said = f"{facts.get('ChannelType', '')} {facts.get('IlluminationType', '')}".strip() or name
    fluorescent = not TRANSMITTED.search(said)
    emission = number(facts, "MainEmissionWavelength", origin) or None  # 0 where there is none
    return Channel(
        name=name,
        fluorescent=fluorescent,
        color=color_of(fluorescent, emission),
        excitation_nm=number(facts, "MainExcitationWavelength", origin) or None,
        emission_nm=emission,
        exposure_s=number(facts, "ExposureTime", origin),
        flat_field=flat_field,
    )


def _details(index: Index, order: Order) -> dict[str, Any]:
    """What the vendor states of plate, instrument and channels, in its own words."""
    channels = {
        order.names[c]: {key: text for key, text in index.channels[channel].items() if key not in _LONG}
        for channel, c in order.channels.items()
    }
    first = channels[order.names[0]]
    return {
        "reader": "harmony",
        "version": index.version,
        "instrument": index.instrument,
        "objective": f"{first.get('ObjectiveMagnification', '?')}x/{first.get('ObjectiveNA', '?')}",
        "plate": {key: text for key, text in index.plate.items() if text},
        "channels": channels,
    }


def _assay_layout(path: Path) -> dict[str, dict[str, str]]:
    """Wells -> layer -> value, from the Assaylayout folder beside the images, where there is one."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    beside = path.parent.parent if path.parent.name.lower() in ("images", "index") else path.parent
    for file in sorted((beside / "Assaylayout").glob("*.xml")):
        for _, layer in xml.elements(file, {"Layer"}):
            name = xml.texts(layer).get("Name") or "Layer"
            wells = [xml.texts(child) for child in layer if xml.local(child.tag) == "Well"]
            for well in (well for well in wells if well.get("Value")):
                key = well_name(_place(well, "Row", 32, file), _place(well, "Col", 48, file))
                rows[key][name] = well["Value"]
    return dict(rows)


def _place(well: Mapping[str, str], name: str, last: int, file: Path) -> int:
    """Row or column, from 0."""
    text = well.get(name, "")
    if not text.isdecimal() or not 1 <= int(text) <= last:
        raise Mistake(f"{file}: a well's {name} is {text!r}; a number from 1 to {last} is expected")
    return int(text) - 1
