"""Reads an OME-Zarr plate of another program from its metadata: as a plate of ours, and where its pixels lie.

Versions 0.1 to 0.5. Nothing is guessed: a size without a unit is unknown, and what cannot be understood is a
`Problem` of its image or a `UserError` about the plate.
"""

# Seen: plates written by ngio 1.1.3 and ome-zarr-py 0.18 (0.4 and 0.5) and by iohub 0.3 (0.4 and 0.5), and
# layouts as bioformats2raw writes them. Read about only: its images without a plate, IDR's and Fractal's.

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.plate_home import PACKED
from hpc_isl.plates import adopted, nodes, series
from hpc_isl.plates.adopted import PixelSource
from hpc_isl.plates.nodes import ArrayFacts, ome_attributes
from hpc_isl.plates.other_image import OtherImage, read_image
from hpc_isl.plates.plate import (
    FORMATS,
    Channel,
    Field,
    FieldKey,
    Plate,
    Problem,
    is_transmitted,
    layout,
    normal_well,
    well_name,
)

KNOWN = ("0.1", "0.2", "0.3", "0.4", "0.5")
THREADS = 8


@dataclass(frozen=True)
class OtherPlate:
    """A plate of another program, as ours describes one.

    Attributes:
        version: of OME-Zarr.
        plate: with the fields that can be read.
        sources: of each of them.
        arrays: of each of them, what level 0 says of itself.
        problems: images that cannot be read, with the reason.
        remarks: sentences that a person should read.
        uneven: images whose levels do not halve the one before each.
    """

    path: Path
    version: str
    plate: Plate
    sources: Mapping[FieldKey, PixelSource]
    arrays: Mapping[FieldKey, ArrayFacts]
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()
    uneven: tuple[FieldKey, ...] = ()


def is_other_plate(path: Path) -> bool:
    """Returns whether a folder is a plate of OME-Zarr, or images of bioformats2raw, whoever wrote it."""
    try:
        return not {"plate", adopted.SERIES}.isdisjoint(ome_attributes(path))
    except UserError:
        return False


def read(path: Path, transmitted: Sequence[str] | None = None, wells: Path | None = None) -> OtherPlate:
    """Returns the plate at `path`, from metadata alone.

    Args:
        transmitted: names of the label-free channels; None: those whose names say so.
        wells: table of the wells of images that no metadata put into one, see `series.read_series`.

    Raises:
        UserError: it is no plate, of no known version, damaged, or its images do not fit together.
    """
    path = path.absolute()
    plate_facts, version = _stated_plate(path)
    if plate_facts is None:
        plate_facts, places, remarks = series.read_series(path, wells)
        images, problems = _images(path, places)
    elif wells is not None:
        raise UserError(f"wells: {path} states its own wells; leave it out")
    else:
        places, damaged_wells, remarks = _places(path, plate_facts)
        images, problems = _images(path, places)
        problems = [*damaged_wells, *problems]
    if not images:
        reasons = "; ".join(f"{problem.key}: {problem.text}" for problem in problems[:5])
        raise UserError(f"{path}: none of its images can be read: {reasons or 'it lists none'}")
    plate_channels = _channels(images, transmitted)
    positions = _positions(images)
    numbers = {channel.name: number for number, channel in enumerate(plate_channels)}
    fields, sources = [], {}
    for image in images:
        index_of = {name: index for index, (name, _) in enumerate(image.channels)}
        channels = tuple(index_of.get(channel.name) for channel in plate_channels)
        sources[image.key] = PixelSource(image.path, image.axes, image.levels(), channels, {})
        fields.append(
            _field(image, numbers, [channel.name for channel in plate_channels], positions[image.key])
        )
    plate = Plate(
        str(plate_facts.get("name") or path.name.split(".")[0]),
        *_layout(plate_facts, {f.key.well for f in fields}), plate_channels,
        tuple(sorted(fields, key=lambda field: field.key.place)), _one_size(path, images, (1, 2)),
        _one_size(path, [image for image in images if image.shape[2] > 1], (0,)),
        _acquisitions(plate_facts, images),
        {"reader": "ome_zarr", "version": version},
    )  # fmt: skip
    arrays = {image.key: image.arrays[0] for image in images}
    remark_counts = Counter([*remarks, *(remark for image in images for remark in image.remarks)])
    counted_remarks = tuple(
        f"{text} ({count} images)" if count > 1 else text for text, count in remark_counts.items()
    )
    uneven = tuple(image.key for image in images if not image.halves)
    return OtherPlate(path, version, plate, sources, arrays, tuple(problems), counted_remarks, uneven)


def _stated_plate(path: Path) -> tuple[Mapping[str, Any] | None, str]:
    """Returns what the group says of the plate, None for images of bioformats2raw, and OME-Zarr's version."""
    if path.suffix == PACKED and path.is_file():
        raise UserError(f"{path}: is packed; plates of other programs are read as folders: `unpack` it first")
    if not path.is_dir():
        raise UserError(f"{path}: there is no such plate")
    if not nodes.is_group(path):
        raise UserError(f"{path}: holds neither zarr.json nor .zattrs: it is no OME-Zarr")
    content = ome_attributes(path)
    plate_facts = content.get("plate")
    if not isinstance(plate_facts, dict) and ("plate" in content or adopted.SERIES not in content):
        description = "is one image, and no plate" if "multiscales" in content else "states no plate"
        raise UserError(
            f"{path}: {description}; plates of OME-Zarr have rows, columns and wells in their metadata"
        )
    usual_version = "0.5" if (path / "zarr.json").is_file() else "0.4"
    version = str(content.get("version") or (plate_facts or {}).get("version") or usual_version)
    if version not in KNOWN:
        raise UserError(f"{path}: is OME-Zarr {version}; {', '.join(KNOWN)} are known")
    return plate_facts, version


# ---------------------------------------------------------------- wells and images


def _places(path: Path, plate_facts: Mapping[str, Any]) -> tuple[series.Places, list[Problem], list[str]]:
    """Returns the images of all wells, wells that cannot be read, and remarks."""
    wells = _wells(path, plate_facts)
    missing = [well for well, where in wells.items() if not nodes.is_group(path / where)]
    count = many(len(missing), "well", "is", "are")
    gaps = f"{count} listed and not there: {', '.join(missing[:10])}" if missing else ""
    places: series.Places = []
    problems = []
    for well, where in wells.items():
        if well in missing:
            continue
        try:
            places += _well_images(path / where, well, where)
        except UserError as error:  # one damaged well makes no other unreadable
            problems.append(Problem(FieldKey(well, "1"), str(error)))
    return places, problems, [gaps] if gaps else []


def _images(path: Path, places: series.Places) -> tuple[list[OtherImage], list[Problem]]:
    """Returns the images at these places, and those that cannot be read."""
    images, problems = [], []
    with ThreadPoolExecutor(THREADS) as pool:  # thousands of small files wait for the file system together
        for (key, _), image in zip(
            places, pool.map(lambda place: _try_image(path, *place), places), strict=True
        ):
            if isinstance(image, OtherImage):
                images.append(image)
            else:
                problems.append(Problem(key, image))
    return images, problems


def _wells(path: Path, plate_facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns well -> its folder below the plate; its name is that of row and column, or given by indices."""
    wells: dict[str, str] = {}
    try:
        for entry in plate_facts["wells"]:
            where = str(entry["path"]).strip("/")
            try:
                well = normal_well("".join(where.split("/")[-2:]))
            except UserError:
                well = well_name(int(entry["rowIndex"]), int(entry["columnIndex"]))
            if wells.setdefault(well, where) != where:
                raise UserError(f"{path}: {wells[well]} and {where} are both well {well}")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its list of wells is damaged: {error!r}") from None
    return wells


def _well_images(folder: Path, well: str, where: str) -> series.Places:
    """Returns the key of each image of a well, and its folder below the plate."""
    try:
        entries = [
            (str(entry["path"]).strip("/"), int(entry.get("acquisition") or 0))
            for entry in ome_attributes(folder)["well"]["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: its list of images is damaged: {error!r}") from None
    by_pass: dict[int, list[str]] = defaultdict(list)
    for name, acquisition in entries:
        by_pass[acquisition].append(name)
    first_paths = by_pass[min(by_pass)] if by_pass else []
    keys = []
    for acquisition, paths in by_pass.items():
        # Passes of equally many images show the same fields in the same order, although paths count on.
        names = _alphanumeric_names(first_paths if len(paths) == len(first_paths) else paths)
        keys += [
            (FieldKey(well, name, acquisition), f"{where}/{path}")
            for name, path in zip(names, paths, strict=True)
        ]
    return keys


def _alphanumeric_names(names: Iterable[str]) -> list[str]:
    """Returns names of letters and digits alone, each one once: `0_registered` becomes `0registered`."""
    plain: list[str] = []
    for name in names:
        short = re.sub(r"[^A-Za-z0-9]", "", name) or "image"
        lower = [earlier.lower() for earlier in plain]  # disks may ignore case
        plain.append(short if short.lower() not in lower else f"{short}n{len(plain)}")
    return plain


def _try_image(path: Path, key: FieldKey, where: str) -> OtherImage | str:
    try:
        return read_image(path, key, where)
    except UserError as error:
        return str(error)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return f"{path / where}: its metadata are damaged: {error!r}"


def _one_size(path: Path, images: Sequence[OtherImage], axes: tuple[int, ...]) -> float | None:
    """Returns the distance of pixels along these axes (0: z, 1: y, 2: x) in all images; None: unknown."""
    sizes = {image.steps[axis]: image.path for image in images for axis in axes}
    known_sizes = [size for size in sizes if size is not None]
    if not known_sizes or len(known_sizes) < len(sizes):
        return None
    if not isclose(min(known_sizes), max(known_sizes), rel_tol=1e-3):
        if axes == (0,):  # stacks may differ: then their distance is unknown, as for a converted plate
            return None
        least, most = min(known_sizes), max(known_sizes)
        raise UserError(
            f"{path}: pixels of {least:g} µm ({sizes[least]}) and {most:g} µm ({sizes[most]}); a plate has "
            "square pixels of one size"
        )
    return Counter(image.steps[axes[-1]] for image in images).most_common(1)[0][0]


def _positions(images: Sequence[OtherImage]) -> dict[FieldKey, tuple[float, float] | None]:
    """Returns where the first pixel of each field lies; None for all where all lie at one place."""
    places = {image.key: image.places[1:] for image in images}
    if len(set(places.values())) == 1:  # programs write 0 where they know nothing
        return dict.fromkeys(places)
    return {key: (y, x) if y is not None and x is not None else None for key, (y, x) in places.items()}


# ---------------------------------------------------------------- channels, fields, layout


def _channels(images: Sequence[OtherImage], transmitted: Sequence[str] | None) -> tuple[Channel, ...]:
    """Returns the channels of all images, in the order in which they appear."""
    colors: dict[str, str] = {}
    for image in sorted(images, key=lambda image: image.key.place):
        for name, color in image.channels:
            colors.setdefault(name, color)
    for name in transmitted or ():
        if name not in colors:
            raise UserError(f"transmitted: the plate has no channel {name!r}; {nearest(name, colors)}")
    return tuple(
        Channel(name, not is_transmitted(name) if transmitted is None else name not in transmitted, color)
        for name, color in colors.items()
    )


def _field(
    image: OtherImage, numbers: Mapping[str, int], names: Sequence[str], position: tuple[float, float] | None
) -> Field:
    t, _, z, y, x = image.shape
    step, first = image.steps[0], image.places[0]
    heights = tuple(first + step * n for n in range(z)) if step and first is not None else ()
    field = Field(
        image.key, (t, len(names), z, y, x), image.arrays[0].dtype, position, heights, {"image": image.path}
    )
    channel_numbers = [numbers[name] for name, _ in image.channels]
    return field.with_planes(
        [(time, c, plane) for time in range(t) for c in channel_numbers for plane in range(z)], names
    )


def _layout(plate_facts: Mapping[str, Any], wells: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns all rows and columns of the format that the plate states, or of the smallest that fits."""
    stated_axes = plate_facts.get("rows") or (), plate_facts.get("columns") or ()
    shape = tuple(len(axis) if isinstance(axis, list) else 0 for axis in stated_axes)
    for count, size in FORMATS.items():
        if size == shape:
            try:
                return layout(wells, count)
            except UserError:
                break
    return layout(wells)


def _acquisitions(plate_facts: Mapping[str, Any], images: Sequence[OtherImage]) -> dict[int, str]:
    """Returns number -> name of the passes in which images were taken."""
    names = {
        entry.get("id", 0): str(entry.get("name") or entry.get("id", 0))
        for entry in plate_facts.get("acquisitions") or ()
        if isinstance(entry, dict) and isinstance(entry.get("id", 0), int)
    }
    return {number: names.get(number, str(number)) for number in sorted({i.key.acquisition for i in images})}
