"""From planes, as a vendor describes them, to an `Export`: the steps that readers share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates import plate as plates
from hpc_isl.plates.planes import Header, header
from hpc_isl.plates.plate import (
    HEIGHT_TOLERANCE,
    Channel,
    Export,
    FieldKey,
    LeftOut,
    PlaneFile,
    Plate,
    Problem,
    row_name,
    spacing,
    well_position,
)
from hpc_isl.plates.readers import fields, plane_checks
from hpc_isl.plates.readers.fields import Shot
from hpc_isl.plates.readers.plane_checks import Kind, Size
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata

Layout = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of all rows and of all columns of a plate."""


@dataclass(frozen=True, slots=True)
class Described:
    """One plane as a vendor describes it: `time`, `channel` and `plane` are the vendor's numbers."""

    key: FieldKey
    path: Path
    time: int
    channel: int
    plane: int
    metadata: PlaneMetadata
    page: int = 0


def build(
    planes: Sequence[Described],
    channels: Mapping[int, Channel],
    headers: Mapping[Path, Kind],
    edges: Mapping[Path, tuple[float, float] | None],
    *,
    name: str,
    layout: Callable[[set[str]], Layout],
    details: Mapping[str, object],
    acquisitions: Mapping[int, str] | None = None,
    unreadable: Mapping[Path, str] = {},
    absent: Collection[Path] = (),
    indexed: bool = False,
    tolerance: float = HEIGHT_TOLERANCE,
    left_out: Iterable[LeftOut] = (),
    problems: Iterable[Problem] = (),
    remarks: Iterable[str] = (),
    resample: bool = False,
) -> Export:
    """Returns the plate that described planes make, checked, with what is left out and what is remarkable.

    Args:
        channels: the vendor's number -> channel, in stored order.
        headers: size (y, x) and type of each file; planes that differ from the others are problems.
        edges: edges (y, x) of a pixel in µm, where a file or an index states them.
        layout: wells -> rows and columns of the plate.
        details: what the vendor states; empty texts are left out.
        unreadable, absent, indexed: as for `plane_checks.check`.
        tolerance: as for `spacing`.
        left_out, problems, remarks: those that the reader itself has found.
        resample: channels of another size are kept, to be resampled, and not left out.
    """
    sizes = plane_checks.channel_sizes(((plane.channel, plane.path) for plane in planes), headers)
    channel_names = {number: channel.name for number, channel in channels.items()}
    channel_edges = {plane.channel: edges.get(plane.path) for plane in planes} if resample else None
    odd_numbers, resampled, size_remarks = odd_channels(channel_names, sizes, channel_edges)
    odd_sized_files = [
        LeftOut(plane.path, "channel of another size", plane.key.well, channels[plane.channel].name)
        for plane in planes
        if plane.channel in odd_numbers
    ]
    planes = [plane for plane in planes if plane.channel not in odd_numbers]
    # Channels that no image shows are no channels of the plate.
    used = {plane.channel for plane in planes}
    assert used <= channels.keys(), f"planes of channels {used - channels.keys()} that are not described"
    channels, name_remarks = _with_unique_names({n: channel for n, channel in channels.items() if n in used})
    usual_paths = [plane.path for plane in planes if plane.channel not in resampled]
    pixel_um, edge_remarks = fields.pixel_edge(edges[path] for path in usual_paths if path in edges)
    names = [channel.name for channel in channels.values()]
    shots = placed(planes, list(channels))
    if resampled:
        stored_size = next(
            size for number, size in sizes.items() if number not in odd_numbers | resampled.keys()
        )
        sizes_by_index = {list(channels).index(number): size for number, size in resampled.items()}
        shots = {
            key: [replace(shot, file=sized(shot.file, sizes_by_index)) for shot in field_shots]
            for key, field_shots in shots.items()
        }
        headers = as_stored(
            headers, [s.file for field_shots in shots.values() for s in field_shots], stored_size
        )
    plane_files = {key: [shot.file for shot in field_shots] for key, field_shots in shots.items()}
    files, faults = plane_checks.check(plane_files, names, unreadable, absent=absent, indexed=indexed)
    files, kind_problems, kind_remarks = plane_checks.agreeing(files, headers)
    kinds = plane_checks.kinds(files, headers)
    plate_fields = tuple(
        fields.field(key, field_shots, names, *kinds[key], pixel_um) for key, field_shots in shots.items()
    )
    exposed_channels, exposure_remarks = fields.with_exposures(
        list(channels.values()), [shot for field_shots in shots.values() for shot in field_shots]
    )
    rows, columns = layout({key.well for key in shots})
    plate = Plate(
        name, rows, columns, exposed_channels, plate_fields, pixel_um,
        spacing(plate_fields, tolerance), acquisitions or {0: "0"},
        {name: fact for name, fact in details.items() if fact != ""},
    )  # fmt: skip
    return Export(
        plate,
        files,
        (*faults, *kind_problems, *problems),
        (*left_out, *odd_sized_files),
        remarks=(
            *remarks,
            *name_remarks,
            *size_remarks,
            *edge_remarks,
            *kind_remarks,
            *exposure_remarks,
            *plane_checks.gaps(plane_files, names),
        ),
    )


def _with_unique_names(channels: Mapping[int, Channel]) -> tuple[dict[int, Channel], list[str]]:
    """Returns the channels with unique names, and a remark on each that was renamed."""
    unique_channels: dict[int, Channel] = {}
    remarks = []
    for number, channel in channels.items():
        name = fields.unique(channel.name, [earlier.name for earlier in unique_channels.values()])
        unique_channels[number] = replace(channel, name=name)
        if name != channel.name:
            remarks.append(f"several channels are called {channel.name!r}: one of them is {name!r} here")
    return unique_channels, remarks


Edges = tuple[float, float] | None
"""Edges (y, x) of a pixel in µm."""


def odd_channels(
    names: Mapping[int, str], sizes: Mapping[int, Size], edges: Mapping[int, Edges] | None = None
) -> tuple[set[int], dict[int, Size], list[str]]:
    """Returns channels to leave out, channels to resample with the sizes that they have, and remarks.

    A channel of another size than most (other binning, another camera) cannot be stored beside the others as
    it is. It is resampled where that is asked for and it shows the same area.

    Args:
        edges: of a pixel of each channel; None: nothing is to be resampled.
    """
    counts = Counter(sizes.values())
    if len(counts) < 2:
        return set(), {}, []
    usual_size = max(counts, key=lambda size: (counts[size], size))  # of equally many the larger size
    other_sizes = {number: size for number, size in sizes.items() if size != usual_size}
    usual_channel = next(number for number, size in sizes.items() if size == usual_size)
    resampled = {
        number: size
        for number, size in other_sizes.items()
        if edges is not None and _same_area((size, edges.get(number)), (usual_size, edges.get(usual_channel)))
    }
    unasked = "it is left out, for pixels are not resampled unasked; resample=true does it"
    other_area = "it is left out, for it shows another area and not the same one in other pixels"
    return other_sizes.keys() - resampled.keys(), resampled, [
        f"channel {names[number]!r} has {size[0]} × {size[1]} pixels, "
        f"the others {usual_size[0]} × {usual_size[1]}: "
        + ("it is resampled to these" if number in resampled else unasked if edges is None else other_area)
        for number, size in sorted(other_sizes.items())
    ]  # fmt: skip


def _same_area(image: tuple[Size, Edges], usual_image: tuple[Size, Edges]) -> bool:
    """Returns whether two images of a field (size, edge of a pixel) show the same area, as far as stated."""
    (size, edge), (usual_size, usual_edge) = image, usual_image
    if edge is None or usual_edge is None or edge == usual_edge:  # an index may state one edge for all
        return isclose(size[0] / usual_size[0], size[1] / usual_size[1], rel_tol=0.01)
    sides = zip(size, edge, usual_size, usual_edge, strict=True)
    return all(
        isclose(length * pixel, usual_length * usual_pixel, rel_tol=0.02)
        for length, pixel, usual_length, usual_pixel in sides
    )


def sized(file: PlaneFile, sizes: Mapping[int, Size]) -> PlaneFile:
    """Returns the file with the size of its plane, where its channel is resampled."""
    return replace(file, size=sizes[file.channel]) if file.channel in sizes else file


def as_stored(headers: Mapping[Path, Kind], files: Iterable[PlaneFile], size: Size) -> dict[Path, Kind]:
    """Returns the headers with the size that resampled planes will have, where theirs is what is expected."""
    changed = {
        file.path: (size, headers[file.path][1])
        for file in files
        if file.size is not None and file.path in headers and headers[file.path][0] == file.size
    }
    return {**headers, **changed}


def placed(planes: Sequence[Described], channels: Sequence[int]) -> dict[FieldKey, list[Shot]]:
    """Returns the planes of each field, in plate order, with indices into its stored image.

    Channels are in the order of `channels`; planes rank among those of their acquisition, times among
    those of the fields that share some: where each well has its own time line, each begins at 0.
    """
    channel_of = {number: index for index, number in enumerate(channels)}
    depths: dict[int, set[int]] = defaultdict(set)
    for plane in planes:
        depths[plane.key.acquisition].add(plane.plane)
    plane_of = {
        a: {number: rank for rank, number in enumerate(sorted(numbers))} for a, numbers in depths.items()
    }
    time_of = _time_ranks(planes)
    shots: dict[FieldKey, list[Shot]] = defaultdict(list)
    for plane in planes:
        acquisition = plane.key.acquisition
        time, z = time_of[acquisition, plane.time], plane_of[acquisition][plane.plane]
        file = PlaneFile(plane.path, time, channel_of[plane.channel], z, plane.page)
        shots[plane.key].append(Shot(file, plane.metadata))
    return {key: shots[key] for key in sorted(shots, key=lambda key: key.place)}


def _time_ranks(planes: Iterable[Described]) -> dict[tuple[int, int], int]:
    """Returns (acquisition, the vendor's number) -> rank among the times of the same time line."""
    times: dict[FieldKey, set[int]] = defaultdict(set)
    for plane in planes:
        times[plane.key].add(plane.time)
    ranks: dict[tuple[int, int], int] = {}
    for acquisition in {key.acquisition for key in times}:
        lines: list[set[int]] = []
        # Fields that share a time share a line, so each field's times join all lines that they touch.
        for field_times in {frozenset(times[key]) for key in times if key.acquisition == acquisition}:
            joined = [line for line in lines if line & field_times]
            lines = [line for line in lines if not line & field_times] + [set(field_times).union(*joined)]
        ranks |= {(acquisition, time): rank for line in lines for rank, time in enumerate(sorted(line))}
    return ranks


# ---------------------------------------------------------------- checks that readers share


def check_one_plate(names: Iterable[str], root: Path) -> None:
    """Raises a `UserError` where images below `root` are of several plates."""
    if len(plate_names := sorted(set(names))) > 1:
        raise UserError(f"{root} holds several plates ({', '.join(plate_names[:5])}); give one as source")


def stated_layout(wells: set[str], rows: int, columns: int, origin: object) -> Layout:
    """Returns rows and columns as stated; where that cannot be, those of the smallest format for the wells.

    Raises:
        UserError: a well lies outside the plate that is stated.
    """
    if not (1 <= rows <= plates.MOST_ROWS and 1 <= columns <= plates.MOST_COLUMNS):
        return plates.layout(wells)
    for well in sorted(wells):
        row, column = well_position(well)
        if row >= rows or column >= columns:
            raise UserError(f"{origin}: a plate of {rows} × {columns} wells, but there is well {well}")
    return tuple(map(row_name, range(rows))), tuple(f"{column + 1:02d}" for column in range(columns))


def first_header(
    paths: Iterable[Path], absent: Collection[Path] | Mapping[Path, str], origin: object
) -> Header:
    """Returns the header of the first file that can be read: indices do not state the type of pixels.

    Raises:
        UserError: there is none.
    """
    first_error = None  # raised if no file can be read
    for path in paths:
        if path not in absent:
            try:
                return header(path)
            except UserError as error:
                first_error = first_error or error
    raise first_error or UserError(f"{origin}: none of the images that it names is there")


# ---------------------------------------------------------------- several measurements of one plate


def merged(exports: Sequence[Export], names: Sequence[str]) -> Export:
    """Returns one export of several measurements of a plate, each an acquisition, in the order given.

    Channels of one name are one channel. Fields stay where they are: nothing is shifted or resampled.

    Args:
        names: of the measurements, for the messages.

    Raises:
        UserError: they differ in plate format or in the size of a pixel.
    """
    _check_same_plate(exports, names)
    channels: dict[str, Channel] = {}
    for export in exports:
        for channel in export.plate.channels:
            channels.setdefault(channel.name, channel)
    parts = [as_acquisition(export, number, list(channels)) for number, export in enumerate(exports)]
    first = exports[0].plate
    plate = replace(
        first,
        channels=tuple(channels.values()),
        fields=tuple(field for part in parts for field in part.plate.fields),
        pixel_um=next((e.plate.pixel_um for e in exports if e.plate.pixel_um), None),
        plane_um=next((e.plate.plane_um for e in exports if e.plate.plane_um), None),
        acquisitions={number: e.plate.acquisitions[0] for number, e in enumerate(exports)},
        details={**first.details, "measurements": [dict(e.plate.details) for e in exports]},
    )
    plate_map: dict[str, dict[str, str]] = {}
    for export in exports:
        for well, columns in export.plate_map.items():
            plate_map.setdefault(well, {}).update(columns)
    return Export(
        plate,
        {key: files for part in parts for key, files in part.files.items()},
        tuple(problem for part in parts for problem in part.problems),
        tuple(left for part in parts for left in part.left_out),
        plate_map,
        (
            *(f"{name}: {remark}" for name, e in zip(names, exports, strict=True) for remark in e.remarks),
            *_sizes_passed_over(exports, names),
        ),
    )


def _sizes_passed_over(exports: Sequence[Export], names: Sequence[str]) -> Iterator[str]:
    """Yields remarks on measurements whose sizes are not those that the one plate of all states."""
    plates_by_name = {name: e.plate for name, e in zip(names, exports, strict=True)}
    pixel_um = next((plate.pixel_um for plate in plates_by_name.values() if plate.pixel_um), None)
    plane_um = next((plate.plane_um for plate in plates_by_name.values() if plate.plane_um), None)
    for name, plate in plates_by_name.items():
        if pixel_um and not plate.pixel_um:
            yield f"{name}: states no size of a pixel; {pixel_um:g} µm is taken, as of the others"
        if plane_um is None or all(field.shape[2] < 2 for field in plate.fields):
            continue
        distance = "at unknown or uneven distances" if not plate.plane_um else f"{plate.plane_um:g} µm apart"
        if not plate.plane_um or not isclose(plate.plane_um, plane_um, rel_tol=HEIGHT_TOLERANCE):
            yield f"{name}: its planes lie {distance}, others {plane_um:g} µm: the plate states these"


def _check_same_plate(exports: Sequence[Export], names: Sequence[str]) -> None:
    first = exports[0].plate
    for name, export in zip(names[1:], exports[1:], strict=True):
        plate = export.plate
        if (plate.rows, plate.columns) != (first.rows, first.columns):
            raise UserError(f"{names[0]} and {name} are of different plate formats; give one as source")
        if first.pixel_um and plate.pixel_um and not isclose(first.pixel_um, plate.pixel_um, rel_tol=0.005):
            raise UserError(
                f"{names[0]} has pixels of {first.pixel_um:g} µm, {name} of {plate.pixel_um:g} µm: give one "
                "as source, for acquisitions of one plate have pixels of one size"
            )


def as_acquisition(export: Export, number: int, channels: Sequence[str]) -> Export:
    """Returns the export as acquisition `number` of a plate with these channels."""
    indices = [channels.index(channel.name) for channel in export.plate.channels]
    fields = tuple(
        replace(
            field,
            key=replace(field.key, acquisition=number),
            shape=(field.shape[0], len(channels), *field.shape[2:]),
        )
        for field in export.plate.fields
    )
    files = {
        replace(key, acquisition=number): tuple(
            replace(file, channel=indices[file.channel]) for file in plane_files
        )
        for key, plane_files in export.files.items()
    }
    problems = tuple(p._replace(key=replace(p.key, acquisition=number)) for p in export.problems)
    return replace(export, plate=replace(export.plate, fields=fields), files=files, problems=problems)
