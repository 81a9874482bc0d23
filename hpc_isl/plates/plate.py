"""A plate and its parts, by names and positions; no pixels and no files are opened here."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from hpc_isl.errors import UserError, nearest

# Physical layouts that plates are made in: wells -> (rows, columns).
FORMATS = {
    6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48),
}  # fmt: skip

MOST_ROWS, MOST_COLUMNS = max(FORMATS.values())

PlaneIndex = tuple[int, int, int]
"""A plane of a stored image: (time, channel, plane)."""


# Names of channels that show no stain.
_TRANSMITTED = re.compile(r"bright-?\s?field|phase|transmi|(?<![a-z])(?:dic|tl|bf)(?![a-z])", re.IGNORECASE)
# Wells on the plate -> from centre to centre.
WELL_DISTANCE_UM = {6: 39120, 12: 26010, 24: 19300, 48: 13000, 96: 9000, 384: 4500, 1536: 2250}


@dataclass(frozen=True)
class Channel:
    """One stain or contrast.

    Attributes:
        name: as the vendor writes it, unique within the plate.
        fluorescent: False for bright-field, phase, DIC and other transmitted light.
        color: RRGGBB, for viewers.
        excitation_nm, emission_nm, exposure_s: None where the vendor states none.
        flat_field: the vendor's profile of uneven illumination, or None; for Harmony the parsed `Background`
            entry of FlatfieldProfile.
        corrected: how the vendor's metadata say that images were corrected for illumination before they were
            stored; empty: they are raw, or nothing is said.
    """

    name: str
    fluorescent: bool = True
    color: str = "FFFFFF"
    excitation_nm: float | None = None
    emission_nm: float | None = None
    exposure_s: float | None = None
    flat_field: Mapping[str, Any] | None = None
    corrected: str = ""


@dataclass(frozen=True, order=True, slots=True)
class FieldKey:
    """The name of an image on its plate; `str(key)` is `B03/1`, or `B03/2x1` in acquisition 2."""

    well: str
    name: str
    acquisition: int = 0

    @property
    def image(self) -> str:
        """The image's folder name within its well: alphanumeric, as OME-Zarr asks."""
        return f"{self.acquisition}x{self.name}" if self.acquisition else self.name

    @property
    def place(self) -> tuple[tuple[int, int], int, int, str]:
        """Sorting key for plate order."""
        # Names that are numbers sort as such: 10 after 9.
        number = int(self.name) if self.name.isdigit() else 0
        return well_position(self.well), self.acquisition, number, self.name

    def __str__(self) -> str:
        return f"{self.well}/{self.image}"


BY_CHANNEL = ("planes", "times", "z_um", "projections")
"""What a field's details hold for each channel, under its name."""


@dataclass(frozen=True, slots=True)
class Field:
    """One imaged position in a well (and one acquisition of it).

    Attributes:
        shape: (t, c, z, y, x) in pixels; t is 1 where the plate has no time.
        dtype: numpy name, e.g. "uint16".
        position_um: stage position (y, x) of the field's first pixel in micrometres, or None.
        z_um: heights of the planes, in the stored order; empty where unknown. Where channels are
            imaged at different heights, those of the channel with the most planes; all of them are
            then in `details["z_um"]`, channel name -> heights.
        details: further facts the vendor states for this field (time stamps, autofocus height), as
            JSON can hold them. Every reader gives `planes`, channel name -> plane numbers that were
            imaged at any time: channels may have fewer than z planes, or none. Where a channel was not
            imaged at all times there is also `times`, channel name -> times. The index has exactly which
            planes were imaged (`Index.imaged`); the rest is stored as zeros, which are no counts.
    """

    key: FieldKey
    shape: tuple[int, int, int, int, int]
    dtype: str
    position_um: tuple[float, float] | None = None
    z_um: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def planes(self, channel: str) -> tuple[int, ...]:
        """Returns the planes in which `channel` was imaged at any time; all where `details` have none."""
        imaged = self.details.get("planes")
        return tuple(range(self.shape[2])) if imaged is None else tuple(imaged.get(channel, ()))

    def with_planes(self, places: Collection[PlaneIndex], channels: Sequence[str]) -> Field:
        """Returns the field with only these planes imaged; `channels` are the plate's names."""
        remaining = imaged(places, channels, self.shape[0])
        planes = remaining["planes"]
        details = {name: fact for name, fact in self.details.items() if name not in ("planes", "times")}
        if heights := details.get("z_um"):
            details["z_um"] = {
                name: [z for plane, z in zip(self.planes(name), z_um, strict=False) if plane in planes[name]]
                for name, z_um in heights.items()
                if name in planes
            }
        return replace(self, details={**remaining, **details})


def imaged(
    places: Collection[PlaneIndex], channels: Sequence[str], times: int
) -> dict[str, dict[str, list[int]]]:
    """Returns what of a field exists, for its `details`: `planes`, and `times` where a channel lacks some."""
    planes: dict[int, set[int]] = defaultdict(set)
    times_of: dict[int, set[int]] = defaultdict(set)
    for time, channel, plane in places:
        planes[channel].add(plane)
        times_of[channel].add(time)
    details = {"planes": {channels[c]: sorted(planes[c]) for c in sorted(planes)}}
    if any(len(channel_times) < times for channel_times in times_of.values()):
        details["times"] = {channels[c]: sorted(times_of[c]) for c in sorted(times_of)}
    return details


@dataclass(frozen=True)
class Plate:
    """A multi-well plate: its physical layout, its channels and its fields.

    Attributes:
        rows, columns: all physical ones of the format, used or not: ("A", …), ("01", …).
        pixel_um: edge of a pixel at level 0 in micrometres, None where unknown (never invented).
        plane_um: distance of planes in micrometres, None where unknown or uneven.
        acquisitions: id -> name of each pass of imaging.
        details: instrument, measurement id, start time, objective: as the vendor states them.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    channels: tuple[Channel, ...]
    fields: tuple[Field, ...]
    pixel_um: float | None = None
    plane_um: float | None = None
    acquisitions: Mapping[int, str] = field(default_factory=lambda: {0: "0"})
    details: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    @property
    def wells(self) -> tuple[str, ...]:
        """The wells that hold fields, in plate order."""
        return tuple(sorted({field.key.well for field in self}, key=well_position))

    def keep(self, keys: set[FieldKey]) -> Plate:
        """Returns the plate with only these fields."""
        return replace(self, fields=tuple(field for field in self if field.key in keys))

    def choose(self, wanted: Iterable[str]) -> set[FieldKey]:
        """Returns the fields that `wanted` names: B03/1 is one of them, B03 means all of its well.

        Raises:
            UserError: a text names no field of the plate.
        """
        chosen: set[FieldKey] = set()
        for name in wanted:
            well, _, image = name.partition("/")
            well = normal_well(well)
            well_keys = [field.key for field in self if field.key.well == well]
            keys = {key for key in well_keys if image in ("", key.image)}
            if not keys:
                raise UserError(
                    f"fields: {name!r} is not on the plate; {nearest(name, well_keys or self.wells)}"
                )
            chosen |= keys
        return chosen


@dataclass(frozen=True, slots=True)
class PlaneFile:
    """The file of one plane of one field, by a reader; indices are into the stored image.

    `size`: (y, x) of the plane in the file, where it is resampled to that of the field; None: it has that.
    """

    path: Path
    time: int
    channel: int
    plane: int
    page: int = 0
    size: tuple[int, int] | None = None

    @property
    def place(self) -> PlaneIndex:
        """(time, channel, plane)."""
        return self.time, self.channel, self.plane


HEIGHT_TOLERANCE = 0.1  # share by which steps between heights that were measured may differ
NOT_IMAGED = "not imaged"


class Problem(NamedTuple):
    """A fault of a field: the planes concerned are not stored, nor is the field where none is left.

    `kind` is a word to count by: missing, damaged, duplicate, incomplete, differing, failed, or
    NOT_IMAGED, which the instrument itself reports and is no damage.
    """

    key: FieldKey
    text: str
    kind: str = "damaged"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of the export that is not stored, and why: a word to count by, as copy or thumbnail."""

    path: Path
    kind: str
    well: str = ""
    channel: str = ""


@dataclass(frozen=True)
class Export:
    """A vendor's export: the plate it describes and the file of each plane.

    Attributes:
        files: for each field, its plane files; those that the index names but that are not there,
            or that contradict each other, are named in `problems`, not here.
        problems: missing, duplicate or misplaced files, found without decoding pixels.
        left_out: files with pixels that belong to the export and are not stored, by design.
        plate_map: rows that the export itself holds about wells (assay layout), well -> column ->
            value.
        remarks: sentences a person should read about the export as a whole; they harm no field.
    """

    plate: Plate
    files: Mapping[FieldKey, tuple[PlaneFile, ...]]
    problems: tuple[Problem, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    plate_map: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def doubtful_size(plate: Plate) -> str:
    """Returns a warning where a field would be wider than wells are apart, so that pixels cannot be so large.

    The distance of wells is that of the SBS standard (ANSI SLAS 4) for the plate's format.
    """
    formats = {shape: wells for wells, shape in FORMATS.items()}
    wells = formats.get((len(plate.rows), len(plate.columns)))
    if plate.pixel_um is None or wells not in WELL_DISTANCE_UM or not plate.fields:
        return ""
    pixels, well_distance = max(field.shape[-1] for field in plate.fields), WELL_DISTANCE_UM[wells]
    if pixels * plate.pixel_um <= well_distance:
        return ""
    return (
        f"pixels of {plate.pixel_um:g} µm make a field {pixels * plate.pixel_um / 1000:.3g} mm wide, and the "
        f"wells of a plate of {wells} are {well_distance / 1000:g} mm apart: is the size of a pixel right?"
    )


def well_name(row: int, column: int) -> str:
    """Returns (0, 0) -> "A01"; rows beyond 26 are AA, AB, … as on 1536-well plates."""
    return f"{row_name(row)}{column + 1:02d}"


def row_name(row: int) -> str:
    """Returns 0 -> "A", 26 -> "AA"."""
    return ascii_uppercase[row] if row < 26 else "A" + ascii_uppercase[row - 26]


@lru_cache(maxsize=4096)
def well_position(well: str) -> tuple[int, int]:
    """Returns (1, 2) of "B03", "b3" and "B003", (26, 0) of "aa1"; raises a `UserError` for others."""
    # Rows beyond Z are AA to AF, on plates of 1536 wells.
    match = re.fullmatch(r"([Aa]?[A-Za-z])0*([1-9]\d?)", well.strip())
    if not match:
        raise UserError(f"well {well!r} is no well name: write a row and a column, as in B03")
    letters = match[1].upper()
    row = ascii_uppercase.index(letters[-1]) + (26 if len(letters) == 2 else 0)
    return row, int(match[2]) - 1


def normal_well(well: str) -> str:
    """Returns "B03" of "B03", "b3" and "B003"; raises a `UserError` for what is no well."""
    return well_name(*well_position(well))


def layout(wells: set[str], wells_on_plate: int | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns all rows and columns of the smallest common format that holds `wells` (or of the one named)."""
    places = [well_position(well) for well in wells]
    row_count, column_count = (1 + max((place[axis] for place in places), default=0) for axis in (0, 1))
    for count, (rows, columns) in FORMATS.items():
        allowed = count >= 96 if wells_on_plate is None else count == wells_on_plate
        if allowed and row_count <= rows and column_count <= columns:
            return tuple(map(row_name, range(rows))), tuple(f"{c + 1:02d}" for c in range(columns))
    raise UserError(
        f"wells up to {well_name(row_count - 1, column_count - 1)} do not fit a plate of "
        f"{wells_on_plate or 1536} wells; plate formats: {', '.join(map(str, FORMATS))}"
    )


def is_transmitted(name: str) -> bool:
    """Returns whether a channel's name is one of bright-field, phase, DIC or other transmitted light."""
    return bool(_TRANSMITTED.search(name))


def color_of(fluorescent: bool, emission_nm: float | None = None) -> str:
    """Returns RRGGBB to show a channel in: white for transmitted light, else the hue of its emission."""
    if not fluorescent or emission_nm is None:
        return "FFFFFF"
    # Longest wavelength in nm of each hue.
    hues = {500: "0000FF", 560: "00FF00", 590: "FFFF00", 640: "FF0000"}
    return next((hue for longest, hue in hues.items() if emission_nm < longest), "FF00FF")


def spacing(fields: Iterable[Field], tolerance: float = 0.01) -> float | None:
    """Returns the distance of planes in µm where all stacks rise in steps that are even within a share."""
    steps = [upper - lower for z_um in {f.z_um for f in fields} for lower, upper in pairwise(z_um)]
    if not steps or min(steps) <= 0 or max(steps) > (1 + tolerance) * min(steps):
        return None
    return round(sum(steps) / len(steps), 4)
