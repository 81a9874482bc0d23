"""Opera Phenix and Operetta: a Harmony export, its index and its assay layout, to an `Export`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.plates import planes
from hpc_isl.plates.plate import (
    TRANSMITTED,
    Channel,
    Export,
    FieldKey,
    LeftOut,
    PlaneFile,
    Plate,
    color_of,
    layout,
    row_name,
    well_name,
)
from hpc_isl.plates.readers import (
    acquisitions,
    fields,
    harmony_fields,
    harmony_files,
    harmony_index,
    stacks,
    xml,
)
from hpc_isl.plates.readers.harmony_fields import Camera, ChannelOrder, Size
from hpc_isl.plates.readers.harmony_index import Image, Index, number

_LONG = frozenset({"FlatfieldProfile", "ChannelName"})


def recognise(folder: Path) -> bool:
    """Whether there is an index in `folder`, its `Images`, or a folder of exports just below."""
    return bool(harmony_files.indices(folder))


def read(folder: Path) -> Export:
    """A Harmony or Columbus export: the folder that holds `Images`, or the one that holds the index.

    A folder of several measurements of one plate is a plate of as many acquisitions, in the order of their
    begin. Channels are in the order of ChannelID, planes of PlaneID, times of TimepointID. Positions are
    those of the field's first pixel in µm from the centre of its well, y down.

    Raises:
        UserError: naming the index: there is none, it is damaged or names files outside its folder or
            wells outside its plate, or none of its files is there; exports of several plates.
    """
    paths = _one_plate(harmony_files.indices(folder), folder)
    if len(paths) == 1:
        return _export(paths[0], folder)
    names = [path.relative_to(folder).parts[0] for path in paths]
    exports = [_export(path, folder / name) for path, name in zip(paths, names, strict=True)]
    return acquisitions.merged(exports, names)


def _one_plate(paths: list[Path], folder: Path) -> list[Path]:
    """The indices in the order in which their measurements began, all of one plate."""
    if not paths:
        raise UserError(f"{folder}: no Harmony index; Images/Index.idx.xml or Images/Index.xml is expected")
    if len(paths) == 1:
        return paths
    plates = [harmony_index.plate(path) for path in paths]
    ids = {facts.get("PlateID") or facts.get("Name") for facts in plates}
    if len(ids) > 1 or None in ids:
        listed = ", ".join(path.relative_to(folder).parts[0] for path in paths[:10])
        raise UserError(f"{folder} holds {len(paths)} Harmony exports ({listed}); give one of them as source")
    begins = {path: facts.get("MeasurementStartTime", "") for path, facts in zip(paths, plates, strict=True)}
    return sorted(paths, key=lambda path: (begins[path], str(path)))


def _export(path: Path, folder: Path) -> Export:
    """The export of one index."""
    index, left_out, odd = _of_one_size(harmony_index.read(path), path.parent)
    rows, columns = _layout(index, path)
    order, channels, remarks = _channels(index)
    named, absent, unwritten = harmony_files.plane_files(index, order, path)
    unreadable = absent | unwritten
    camera, unknown = _camera(index, order, named, unreadable, path)
    images = _by_field(index)
    made = tuple(harmony_fields.field(key, images[key], named[key], order, camera) for key in images)
    files, problems = stacks.check(
        named, order.names, unreadable, absent=absent, unimaged=unwritten, indexed=True
    )
    files, failures = harmony_fields.without_failures(files, images, order)
    plate = Plate(
        name=index.plate.get("Name") or index.plate.get("PlateID") or folder.resolve().name,
        rows=rows,
        columns=columns,
        channels=channels,
        fields=made,
        pixel_um=camera.pixel_um,
        plane_um=stacks.spacing(made),
        acquisitions={0: index.plate.get("MeasurementStartTime") or "0"},
        details=_details(index, order),
    )
    return Export(
        plate,
        files,
        (*problems, *failures),
        left_out,
        _assay_layout(path),
        (*odd, *remarks, *index.remarks, *unknown, *stacks.gaps(named, order.names)),
    )


def _of_one_size(index: Index, folder: Path) -> tuple[Index, tuple[LeftOut, ...], list[str]]:
    """The index with those channels alone that have the size of most, and what becomes of the others."""
    used = sorted({image.channel for image in index.images})
    sizes = {channel: size for channel in used if (size := _stated_size(index, channel))}
    names = {channel: index.channels[channel].get("ChannelName") or f"Channel {channel}" for channel in sizes}
    odd, remarks = fields.odd_channels(names, sizes)
    kept = tuple(image for image in index.images if image.channel not in odd)
    left_out = tuple(
        LeftOut(
            folder / image.url, "channel of another size", well_name(image.row - 1, image.column - 1),
            names[image.channel],
        )
        for image in index.images
        if image.channel in odd
    )  # fmt: skip
    return replace(index, images=kept), left_out, remarks


def _stated_size(index: Index, channel: int) -> Size | None:
    height, width = (number(index.channels[channel], f"ImageSize{axis}", Counter()) for axis in "YX")
    return (int(height), int(width)) if height and width and min(height, width) >= 1 else None


def _by_field(index: Index) -> dict[FieldKey, list[Image]]:
    images: dict[FieldKey, list[Image]] = defaultdict(list)
    for image in index.images:
        images[harmony_files.key_of(image)].append(image)
    return dict(images)


def _camera(
    index: Index,
    order: ChannelOrder,
    named: Mapping[FieldKey, Sequence[PlaneFile]],
    absent: Container[Path],
    path: Path,
) -> tuple[Camera, list[str]]:
    """Sizes as the index states them; the type, which it does not, from the first readable file."""
    shape, dtype = _probe(
        [file.path for own in named.values() for file in own if file.path not in absent], path
    )
    sizes = {channel: _stated_size(index, channel) or shape for channel in order.channels}
    odd: Counter[str] = Counter()
    edges = []
    for channel in order.channels:
        facts = index.channels[channel]
        y, x = (number(facts, f"ImageResolution{axis}", odd) for axis in "YX")
        y, x = y or x, x or y
        if y and x and min(y, x) > 0:
            edges.append((round(y * 1e6, 12), round(x * 1e6, 12)))
    pixel_um, remarks = fields.pixel_edge(edges)
    return Camera(sizes, dtype, pixel_um), remarks


def _probe(paths: Iterable[Path], path: Path) -> tuple[Size, str]:
    damaged = None
    for file in paths:
        try:
            return planes.header(file)[:2]
        except UserError as error:
            damaged = damaged or error
    raise damaged or UserError(f"{path}: none of the images that it names is there")


# ---------------------------------------------------------------- the plate


def _layout(index: Index, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rows and columns that the index states, or those of the smallest format that holds its wells."""
    rows, columns = (int(number(index.plate, name, Counter()) or 0) for name in ("PlateRows", "PlateColumns"))
    if not (0 <= rows <= 32 and 0 <= columns <= 48):
        raise UserError(
            f"{path}: the plate has {rows} rows and {columns} columns; at most 32 and 48 are expected"
        )
    wells = {(image.row, image.column): image for image in index.images}
    for (row, column), image in wells.items():
        if not (1 <= row <= (rows or 32) and 1 <= column <= (columns or 48)):
            said = f"{rows or 32} rows and {columns or 48} columns"
            raise UserError(
                f"{path}: image {image.id} is in row {row}, column {column}, but the plate has {said}"
            )
    if not rows or not columns:
        return layout({well_name(row - 1, column - 1) for row, column in wells})
    return tuple(map(row_name, range(rows))), tuple(f"{column + 1:02d}" for column in range(columns))


def _channels(index: Index) -> tuple[ChannelOrder, tuple[Channel, ...], tuple[str, ...]]:
    """The channels that have images, by ChannelID, and remarks about what could not be understood."""
    order = harmony_fields.order(index.images)
    channels: list[Channel] = []
    remarks = []
    for channel in order.channels:
        facts = index.channels[channel]
        name = fields.unique(facts.get("ChannelName") or f"Channel {channel}", [c.name for c in channels])
        profile = facts.get("FlatfieldProfile", "")
        flat_field = harmony_index.flat_field(profile)
        if profile and flat_field is None:
            remarks.append(
                f"channel {name!r}: its flat-field profile in the index is not understood and left out"
            )
        odd: Counter[str] = Counter()
        channels.append(_channel(name, facts, flat_field, odd))
        remarks += [f"channel {name!r}: {text} is no number and left unknown" for text in odd]
    return replace(order, names=tuple(c.name for c in channels)), tuple(channels), tuple(remarks)


def _channel(
    name: str, facts: Mapping[str, str], flat_field: dict[str, Any] | None, odd: Counter[str]
) -> Channel:
    said = f"{facts.get('ChannelType', '')} {facts.get('IlluminationType', '')}".strip() or name
    fluorescent = not TRANSMITTED.search(said)
    emission = number(facts, "MainEmissionWavelength", odd) or None  # 0 where there is none
    return Channel(
        name=name,
        fluorescent=fluorescent,
        color=_color(facts) or color_of(fluorescent, emission),
        excitation_nm=number(facts, "MainExcitationWavelength", odd) or None,
        emission_nm=emission,
        exposure_s=number(facts, "ExposureTime", odd),
        flat_field=flat_field,
    )


def _color(facts: Mapping[str, str]) -> str:
    """RRGGBB of Columbus' colours, 32-bit numbers with alpha first; "" where there is none."""
    text = facts.get("ChannelColor", "")
    return f"{int(text) & 0xFFFFFF:06X}" if re.fullmatch(r"-?\d{1,10}", text) else ""


def _details(index: Index, order: ChannelOrder) -> dict[str, Any]:
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
        raise UserError(f"{file}: a well's {name} is {text!r}; a number from 1 to {last} is expected")
    return int(text) - 1
