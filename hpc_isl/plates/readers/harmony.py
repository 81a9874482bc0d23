"""Opera Phenix and Operetta: a Harmony export, its index and its assay layout, to an `Export`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import (
    MOST_COLUMNS,
    MOST_ROWS,
    Channel,
    Export,
    Field,
    FieldKey,
    LeftOut,
    PlaneFile,
    Plate,
    Problem,
    color_of,
    imaged,
    is_transmitted,
    spacing,
)
from hpc_isl.plates.readers import export, fields, harmony_index, plane_checks
from hpc_isl.plates.readers.export import Layout
from hpc_isl.plates.readers.fields import Shot
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.harmony_index import Image, Index, number
from hpc_isl.plates.readers.plane_checks import Size
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata, position

# Below the index's folder: beside it; in archives; of exports with corrected images.
_FOLDERS = ("", "Images/", "images/", "flex/")
_LONG = frozenset({"FlatfieldProfile", "ChannelName"})


@dataclass(frozen=True)
class ChannelOrder:
    """The vendor's numbers -> indices into the stored images: the same for all fields of the plate.

    Attributes:
        times: (TimepointID, number within a fast series) -> t
        channels: ChannelID -> c
        planes: PlaneID -> z
        names: of the channels, by c.
    """

    times: Mapping[tuple[int, int], int]
    channels: Mapping[int, int]
    planes: Mapping[int, int]
    names: tuple[str, ...] = ()

    def index(self, image: Image) -> tuple[int, int, int]:
        """Returns (t, c, z) of an image."""
        return self.times[image.time], self.channels[image.channel], self.planes[image.plane]


@dataclass(frozen=True)
class Camera:
    """Size (y, x) of images by ChannelID, numpy dtype name, and edge of a pixel in µm where it is known."""

    sizes: Mapping[int, Size]
    dtype: str
    pixel_um: float | None


def recognise(below: Folder) -> bool:
    """Returns whether there is an index in the folder, its `Images`, or a folder of exports just below."""
    return bool(harmony_index.indices(below.root))


def read(folder: Path, resample: bool = False) -> Export:
    """Returns a Harmony or Columbus export; the folder is that of the index, or the one above it.

    A folder of several measurements of one plate is a plate of as many acquisitions, in the order in which
    they began. Channels are in the order of ChannelID, planes of PlaneID, times of TimepointID. Positions are
    those of the field's first pixel in µm from the centre of its well, y down.

    Raises:
        UserError: naming the index: there is none, it is damaged or names files outside its folder or
            wells outside its plate, or none of its files is there; exports of several plates.
    """
    paths = _one_plate(harmony_index.indices(folder), folder)
    if len(paths) == 1:
        return _export(paths[0], folder, resample)
    names = [path.relative_to(folder).parts[0] for path in paths]
    exports = [_export(path, folder / name, resample) for path, name in zip(paths, names, strict=True)]
    return export.merged(exports, names)


def _one_plate(paths: list[Path], folder: Path) -> list[Path]:
    """Returns the indices in the order in which their measurements began, all of one plate."""
    if not paths:
        raise UserError(f"{folder}: no Harmony index; Images/Index.idx.xml or Images/Index.xml is expected")
    if len(paths) == 1:
        return paths
    # Measurements of one plate repeat its id; without one nothing tells two plates apart.
    plates = [harmony_index.plate(path) for path in paths]
    ids = {facts.get("PlateID") or facts.get("Name") for facts in plates}
    if len(ids) > 1 or None in ids:
        examples = ", ".join(path.relative_to(folder).parts[0] for path in paths[:10])
        raise UserError(
            f"{folder} holds {len(paths)} Harmony exports ({examples}); give one of them as source"
        )
    begins = {path: facts.get("MeasurementStartTime", "") for path, facts in zip(paths, plates, strict=True)}
    return sorted(paths, key=lambda path: (begins[path], str(path)))


def _export(path: Path, folder: Path, resample: bool) -> Export:
    """Returns the export of one index."""
    index, odd = harmony_index.read(path), Counter[str]()
    index, left_out, resampled, size_remarks = _of_one_size(index, path.parent, resample, odd)
    rows, columns = _layout(index, path, odd)
    order, channels, remarks = _channels(index)
    planes, absent, unwritten = _plane_files(index, order, path)
    sizes = {order.channels[number]: size for number, size in resampled.items()}
    planes = {key: [export.sized(file, sizes) for file in stack] for key, stack in planes.items()}
    unreadable = absent | unwritten
    camera, camera_remarks = _camera(index, order, planes, unreadable, resampled, path, odd)
    images: dict[FieldKey, list[Image]] = defaultdict(list)
    for image in index.images:
        images[image.key].append(image)
    plate_fields = tuple(
        _field(key, field_images, planes[key], order, camera) for key, field_images in images.items()
    )
    files, problems = plane_checks.check(
        planes, order.names, unreadable, absent=absent, unimaged=unwritten, indexed=True
    )
    files, failures = _without_failures(files, images, order)
    plate = Plate(
        name=index.plate.get("Name") or index.plate.get("PlateID") or folder.resolve().name,
        rows=rows,
        columns=columns,
        channels=harmony_index.with_corrections(channels, (f for stack in planes.values() for f in stack)),
        fields=plate_fields,
        pixel_um=camera.pixel_um,
        plane_um=spacing(plate_fields),
        acquisitions={0: index.plate.get("MeasurementStartTime") or "0"},
        details=_details(index, order),
    )
    return Export(
        plate,
        files,
        (*problems, *failures),
        left_out,
        harmony_index.assay_layout(path),
        (*size_remarks, *remarks, *index.remarks, *camera_remarks, *plane_checks.gaps(planes, order.names)),
    )


def _of_one_size(
    index: Index, folder: Path, resample: bool, odd: Counter[str]
) -> tuple[Index, tuple[LeftOut, ...], dict[int, Size], list[str]]:
    """Returns the index without channels of another size than most that are not resampled, and the others."""
    channels = sorted({image.channel for image in index.images})
    sizes = {channel: size for channel in channels if (size := _stated_size(index, channel, odd))}
    names = {channel: index.channels[channel].get("ChannelName") or f"Channel {channel}" for channel in sizes}
    edges = {channel: _edge(index, channel, odd) for channel in channels} if resample else None
    odd_channels, resampled, remarks = export.odd_channels(names, sizes, edges)
    kept_images = tuple(image for image in index.images if image.channel not in odd_channels)
    left_out = tuple(
        LeftOut(folder / image.url, "channel of another size", image.key.well, names[image.channel])
        for image in index.images
        if image.channel in odd_channels
    )
    return replace(index, images=kept_images), left_out, resampled, remarks


def _stated_size(index: Index, channel: int, odd: Counter[str]) -> Size | None:
    height, width = (number(index.channels[channel], f"ImageSize{axis}", odd) for axis in "YX")
    return (int(height), int(width)) if height and width and min(height, width) >= 1 else None


def _camera(
    index: Index,
    order: ChannelOrder,
    planes: Mapping[FieldKey, Sequence[PlaneFile]],
    absent: Mapping[Path, str],
    resampled: Mapping[int, Size],
    path: Path,
    odd: Counter[str],
) -> tuple[Camera, list[str]]:
    """Returns sizes as the index states them; the type, which it does not, from the first readable file.

    `resampled`: sizes of the channels that will be resampled. `odd`: what is no number, for the remarks.
    """
    files = (file.path for stack in planes.values() for file in stack if file.size is None)
    shape, dtype, _ = export.first_header(files, absent, path)
    usual_channels = [channel for channel in order.channels if channel not in resampled]
    sizes = {channel: _stated_size(index, channel, odd) or shape for channel in usual_channels}
    sizes |= dict.fromkeys(resampled, sizes[usual_channels[0]])
    edges = [edge for channel in usual_channels if (edge := _edge(index, channel, odd))]
    pixel_um, remarks = fields.pixel_edge(edges)
    remarks += [f"the index states {text}, which is no number: it is ignored" for text in odd]
    return Camera(sizes, dtype, pixel_um), remarks


def _edge(index: Index, channel: int, odd: Counter[str]) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a channel's pixels in µm, or None where none is stated."""
    y, x = (number(index.channels[channel], f"ImageResolution{axis}", odd) for axis in "YX")
    y, x = y or x, x or y  # where one is missing, the other counts
    return (round(y * 1e6, 12), round(x * 1e6, 12)) if y and x and min(y, x) > 0 else None


# ---------------------------------------------------------------- the plate


def _layout(index: Index, path: Path, odd: Counter[str]) -> Layout:
    """Returns rows and columns as the index states them, or those of the smallest format for its wells."""
    rows, columns = (int(number(index.plate, name, odd) or 0) for name in ("PlateRows", "PlateColumns"))
    if not (0 <= rows <= MOST_ROWS and 0 <= columns <= MOST_COLUMNS):
        raise UserError(
            f"{path}: the plate has {rows} rows and {columns} columns; "
            f"at most {MOST_ROWS} and {MOST_COLUMNS} are expected"
        )
    wells = {(image.row, image.column): image for image in index.images}
    last_row, last_column = rows or MOST_ROWS, columns or MOST_COLUMNS
    for (row, column), image in wells.items():
        if not (1 <= row <= last_row and 1 <= column <= last_column):
            raise UserError(
                f"{path}: image {image.id} is in row {row}, column {column}, but the plate has "
                f"{last_row} rows and {last_column} columns"
            )
    return export.stated_layout({image.key.well for image in wells.values()}, rows, columns, path)


def _channels(index: Index) -> tuple[ChannelOrder, tuple[Channel, ...], tuple[str, ...]]:
    """Returns the channels that have images, by ChannelID, and remarks about what could not be understood."""
    images = index.images

    def ranks(values: set[Any]) -> dict[Any, int]:
        return {value: rank for rank, value in enumerate(sorted(values))}

    # Ranks of the numbers that occur: TimepointID begins at 0 in Harmony V5 and at 1 in V7.
    order = ChannelOrder(
        times=ranks({image.time for image in images}),
        channels=ranks({image.channel for image in images}),
        planes=ranks({image.plane for image in images}),
    )
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
    light = f"{facts.get('ChannelType', '')} {facts.get('IlluminationType', '')}".strip() or name
    fluorescent = not is_transmitted(light)
    color = facts.get("ChannelColor", "")  # Columbus writes colours as 32-bit numbers with alpha first
    stated_color = f"{int(color) & 0xFFFFFF:06X}" if re.fullmatch(r"-?\d{1,10}", color) else ""
    emission = number(facts, "MainEmissionWavelength", odd) or None  # 0 where there is none
    return Channel(
        name=name,
        fluorescent=fluorescent,
        color=stated_color or color_of(fluorescent, emission),
        excitation_nm=number(facts, "MainExcitationWavelength", odd) or None,
        emission_nm=emission,
        exposure_s=number(facts, "ExposureTime", odd),
        flat_field=flat_field,
    )


def _details(index: Index, order: ChannelOrder) -> dict[str, Any]:
    """Returns what the vendor states of plate, instrument and channels, in its own words."""
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


# ---------------------------------------------------------------- files and fields


def _plane_files(
    index: Index, order: ChannelOrder, path: Path
) -> tuple[dict[FieldKey, list[PlaneFile]], dict[Path, str], dict[Path, str]]:
    """Returns the file of every image by field; clauses on those missing, and on those never written."""
    folder = list_folder(path.parent.parent if path.parent.name.lower() == "index" else path.parent)
    prefix, by_well = _location(index, folder.by_lower)
    plane_files: dict[FieldKey, list[PlaneFile]] = defaultdict(list)
    absent: dict[Path, str] = {}
    unwritten: dict[Path, str] = {}
    for image in index.images:
        origin = f"{path}: image {image.id}"
        name = folder.locate(image.url or image.id or "(no file)", origin)
        if prefix or by_well:
            name = folder.locate(prefix + (_well_folder(image) if by_well else "") + name, origin)
        name = folder.named(name)  # the ending may be .tif here and .TIF there
        file = folder.root / name
        if name not in folder.files:
            if not image.url or image.failed:
                unwritten[file] = f"the instrument wrote no file for {image.id}"
            else:
                absent[file] = f"{image.url} is missing"
        plane_files[image.key].append(PlaneFile(file, *order.index(image), image.page))
    return dict(plane_files), absent, unwritten


def _location(index: Index, files: Collection[str]) -> tuple[str, bool]:
    """Returns where most images lie below the index's folder, and whether each well has its own folder.

    Args:
        files: in lower case.
    """
    # Exports keep images beside the index; archives in `images`, some in a folder such as r04c03. Some files
    # may be missing, so the place with most of them counts.
    places = list(product(_FOLDERS, (False, True)))
    counts = []
    for prefix, by_well in places:
        names = (prefix + (_well_folder(image) if by_well else "") + image.url for image in index.images)
        counts.append(sum(name.replace("\\", "/").lower() in files for name in names))
    return places[counts.index(max(counts))]


def _well_folder(image: Image) -> str:
    return f"r{image.row:02d}c{image.column:02d}/"


def _field(
    key: FieldKey, images: Sequence[Image], stack: Sequence[PlaneFile], order: ChannelOrder, camera: Camera
) -> Field:
    """Returns the field that `images` describe and `stack` holds the files of."""
    times, depth = plane_checks.extent(stack)
    size = camera.sizes[min(image.channel for image in images)]
    shots = [Shot(file, PlaneMetadata(z_um=image.z_um)) for image, file in zip(images, stack, strict=True)]
    heights = fields.plane_heights(shots, order.names)
    longest = max(heights.values(), key=len, default=())
    details: dict[str, Any] = imaged([plane.place for plane in stack], order.names, times)
    details["time"] = images[0].moment
    if len(set(heights.values())) > 1:
        details["z_um"] = {name: list(values) for name, values in heights.items()}
    # The height of the stage at which the instrument found the bottom of the well.
    focus = (i.stage_um - i.z_um for i in images if i.stage_um is not None and i.z_um is not None)
    if (height := next(focus, None)) is not None:
        details["focus_um"] = round(height, 4)
    if times > 1:  # seconds from the start of the measurement
        by_time: dict[int, float | None] = {}
        for image in images:
            by_time.setdefault(order.times[image.time], image.seconds)
        details["seconds"] = [by_time[time] for time in sorted(by_time)]
    x, y = images[0].x_um, images[0].y_um
    center_um = position(y, x, up=True)  # of the field's centre
    return Field(
        key=key,
        shape=(times, len(order.names), depth, *size),
        dtype=camera.dtype,
        position_um=fields.first_pixel(center_um, size, camera.pixel_um),
        z_um=longest if len(longest) == depth else (),
        details=details,
    )


def _without_failures(
    files: Mapping[FieldKey, Sequence[PlaneFile]],
    images: Mapping[FieldKey, Sequence[Image]],
    order: ChannelOrder,
) -> tuple[dict[FieldKey, tuple[PlaneFile, ...]], list[Problem]]:
    """Returns the files without those that the instrument says it failed to take, which are problems."""
    kept_files: dict[FieldKey, tuple[PlaneFile, ...]] = {}
    problems = []
    for key, plane_files in files.items():
        failed = {order.index(image): image for image in images[key] if image.failed}
        kept_files[key] = tuple(file for file in plane_files if file.place not in failed)
        if failed_images := [failed[file.place] for file in plane_files if file.place in failed]:
            examples = plane_checks.listed(
                [f"{image.url or image.id} ({image.state})" for image in failed_images]
            )
            problems.append(Problem(key, f"the instrument reports failures: {examples}", "failed"))
    return kept_files, problems
