"""The index of a plate, one file that describes thousands of fields without opening them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from dataclasses import field as member
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpc_isl import metadata_changes
from hpc_isl.errors import UserError, nearest
from hpc_isl.files import same_place, write_atomic
from hpc_isl.metadata_changes import MetadataChange
from hpc_isl.plate_home import home_of
from hpc_isl.plates import adopted, atomic_directory, index_table, metadata, nodes, packed, registration
from hpc_isl.plates.adopted import AdoptedPlate
from hpc_isl.plates.plate import Field, FieldKey, Plate, Problem
from hpc_isl.plates.registration import Registration
from hpc_isl.plates.statistics import FieldStatistics, Histogram, from_dict

PlateMap = Mapping[str, Mapping[str, str]]
Changes = tuple[MetadataChange, ...]
# A field is out of focus in a channel where its sharpest plane scores below half of the plate's
# median, and below it by this many robust standard deviations of the logarithm.
FOCUS_DEVIATIONS = 4.0
FOCUS_FIELDS = 8


@dataclass(frozen=True)
class Index:
    """A plate as it is stored on disk.

    Attributes:
        fingerprint: hash of pixels, channel names and positions; the same wherever the plate lies.
        plate_map: well -> column -> value.
        statistics: of each field, as measured at conversion.
        problems: fields and planes that were left out, with the reason.
        depth: number of pyramid levels of each field.
        changes: of its metadata since it was converted, oldest first.
        registration: shifts between its acquisitions; None: they are paired as they lie.
        adopted: the plate of another program that holds the pixels; None: the folder at `path` holds them. Of
            an adopted plate `path` is the folder beside it, and every verb finds all but pixels there.
    """

    path: Path
    plate: Plate
    fingerprint: str
    plate_map: PlateMap
    statistics: index_table.Statistics
    problems: tuple[Problem, ...]
    depth: Mapping[FieldKey, int]
    changes: tuple[MetadataChange, ...]
    registration: Registration | None
    adopted: Path | None
    _rows: Mapping[FieldKey, int] = member(repr=False, compare=False)

    @property
    def revision(self) -> str:
        """The changes by `set` that no hash of pixels and names holds; empty: all is as converted."""
        return revision_of(self.plate, self.changes)

    def image(self, key: FieldKey) -> Path:
        """Returns the folder of a field's image."""
        return image_path(self.path, self.plate, key)

    def field(self, key: FieldKey) -> Field:
        """Returns a field; raises a `UserError` where there is none of this key."""
        if key not in self._rows:
            raise UserError(f"{self.path}: has no field {key}; {nearest(key, self._rows)}")
        return self.plate.fields[self._rows[key]]

    def channel(self, name: str) -> int:
        """Returns the number of a channel; raises a `UserError` with its new name where it was renamed."""
        names = [channel.name for channel in self.plate.channels]
        if name in names:
            return names.index(name)
        for change in self.changes:
            for former, new_name in zip(change.former["channels"], names, strict=True):
                if former["name"] == name:
                    reason = f"it is called {new_name!r} since {change.time[:10]}, when metadata changed"
                    raise UserError(f"{self.path}: has no channel {name!r}; {reason}")
        raise UserError(f"{self.path}: has no channel {name!r}; {nearest(name, names)}")

    def imaged(self, key: FieldKey) -> NDArray[np.bool_]:
        """Returns which planes of a field were imaged, as (t, c, z); zeros stored elsewhere are no counts."""
        mask = np.zeros(self.field(key).shape[:3], bool)
        mask[tuple(self.statistics.imaged(key).T)] = True
        return mask

    def planes(self, key: FieldKey, channel: int, time: int) -> list[int]:
        """Returns the planes of a field in which a channel was imaged at a time."""
        numbers: list[int] = np.flatnonzero(self.imaged(key)[time, channel]).tolist()
        return numbers

    def focus(self, key: FieldKey, channel: int, time: int) -> dict[int, float]:
        """Returns how sharp each plane is in which a channel was imaged at a time: greater is sharper."""
        planes = zip(self.statistics.imaged(key).tolist(), self.statistics.focus(key).tolist(), strict=True)
        return {z: focus for (t, c, z), focus in planes if (t, c) == (time, channel)}

    def shift(self, key: FieldKey, other: FieldKey) -> tuple[int, int] | None:
        """Returns (y, x): what the image of `key` shows at p, that of `other` shows at p + shift.

        In whole pixels of level 0; None where the two acquisitions were found to show different places.
        """
        if self.registration is None or key.acquisition == other.acquisition:
            return 0, 0
        # Both against the first acquisition, which is not shifted against itself.
        shifts = [self.registration.shifts.get(field_key) for field_key in (key, other)]
        if any(shift is not None and shift.shift is None for shift in shifts):
            return None
        (y, x), (other_y, other_x) = ((shift and shift.shift) or (0, 0) for shift in shifts)
        return other_y - y, other_x - x

    def levels(self, key: FieldKey) -> int:
        """Returns the number of pyramid levels of a field's image."""
        return self.depth[self.field(key).key]

    def histogram(self, keys: Iterable[FieldKey], channel: int) -> Histogram:
        """Returns counts of one channel over all planes and times of these fields."""
        chosen_keys = list(keys)
        dtypes = sorted({self.field(key).dtype for key in chosen_keys})
        if len(dtypes) != 1:
            raise UserError(f"{self.path}: there is no one histogram for fields of the types {dtypes}")
        return index_table.histogram(self.path, [self._rows[key] for key in chosen_keys], dtypes[0], channel)


def image_path(path: Path, plate: Plate, key: FieldKey) -> Path:
    """Returns the folder of a field's image on the plate at `path`."""
    return path.joinpath(*metadata.place(plate, key.well), key.image)


# ---------------------------------------------------------------- finish and open


def finalise(
    path: Path,
    plate: Plate,
    plate_map: PlateMap,
    problems: Iterable[Problem] = (),
    adopted_plate: AdoptedPlate | None = None,
    registered: Registration | None = None,
) -> Index:
    """Makes written images a plate: writes well and row groups, the index, and the plate's own group last.

    Args:
        adopted_plate: holds the pixels.
        registered: shifts between its acquisitions.
    """
    from hpc_isl.plates import ngff

    plate = replace(plate, fields=tuple(sorted(plate.fields, key=lambda field: field.key.place)))
    if not plate.fields:
        raise UserError(f"{path}: no field was written, so there is no plate to finish")
    for well in plate.wells:
        row, column = metadata.place(plate, well)
        well_fields = [field for field in plate.fields if field.key.well == well]
        metadata.write_group(path / row / column, ngff.attributes(ngff.well_group(well_fields)))
        metadata.write_group(path / row)
    ours: dict[str, Any] = {
        "plate": metadata.plate_facts(plate),
        "plate_map": {well: dict(columns) for well, columns in plate_map.items()},
        "problems": [[key.well, key.name, key.acquisition, text, kind] for key, text, kind in problems],
    }
    ours |= {adopted.PLATE_KEY: adopted_plate.facts(path)} if adopted_plate else {}
    changes = metadata_changes.changes_of(path)  # of a plate that takes in further fields
    ours |= {metadata_changes.KEY: [change.facts() for change in changes]} if changes else {}
    if registered:
        registration.write(path, registered)
        ours[registration.KEY] = registered.facts()
    images = _read_images(path, plate, [field.key for field in plate.fields])
    _write_index(path, images, plate, changes, registered.digest if registered else "")
    # A folder without the plate's `zarr.json` is an unfinished conversion, so it comes last.
    metadata.write_group(path, ngff.attributes(ngff.plate_group(plate)), ours)
    if registered:
        registration.remove_former(path, registered)
    return open_plate(path)


def open_plate(path: Path) -> Index:
    """Returns the plate at `path`, from two files; a missing index is made anew from the images.

    A change of metadata that was interrupted is finished first. Of an adopted plate, the folder beside it is
    opened.

    Raises:
        UserError: there is no plate, none that was converted or adopted, or an adopted one has changed.
    """
    home = home_of(path)
    version = atomic_directory.version(home)
    ours = _plate_attributes(home)
    if home != path and not same_place(path, adopted.adopted_plate(home, ours).path):
        raise UserError(
            f"{path}: {home} belongs to another plate, {adopted.adopted_plate(home, ours).path}; adopt this "
            "one with another index="
        )
    try:
        table = index_table.read_table(home)
    except (OSError, pa.ArrowException):
        return rebuild_index(home)
    if atomic_directory.version(home) != version:  # the two files may be of different times
        return open_plate(path)
    return _index(home, ours, table)


def rebuild_index(path: Path) -> Index:
    """Returns the plate at `path`, after writing its index anew from the images' own `zarr.json`."""
    ours = _plate_attributes(path)
    plate = metadata.plate_from(ours["plate"], ())
    keys = []
    for well in metadata.read_group(path)["ome"]["plate"]["wells"]:
        folder = path / well["path"]
        for image in metadata.read_group(folder)["ome"]["well"]["images"]:
            image_facts = metadata.read_group(folder / image["path"]).get("hpc_isl")
            if image_facts:  # images that other programs added to a well have none
                keys.append(FieldKey(**image_facts["field"]["key"]))
    try:
        shifts = ours.get(registration.KEY, {}).get("digest", "")
        changes = metadata_changes.of_facts(ours)
        _write_index(path, _read_images(path, plate, keys), plate, changes, shifts)
    except OSError as error:
        raise UserError(f"{path}: its index is missing and cannot be made anew: {error.strerror}") from None
    return _index(path, ours, index_table.read_table(path))


def _plate_attributes(path: Path) -> dict[str, Any]:
    if not packed.is_dir(path):
        raise UserError(f"{path}: there is no such plate")
    atomic_directory.finish_interrupted(path)
    if not packed.is_file(path / "zarr.json"):
        if nodes.is_group(path):
            _refuse_other(path)
        raise UserError(f"{path}: holds no zarr.json: no plate, or a conversion that is not finished")
    attributes = metadata.read_group(path)
    if "hpc_isl" not in attributes or "plate" not in attributes.get("ome", {}):
        _refuse_other(path)
    ours = dict(attributes["hpc_isl"])
    if adopted.PLATE_KEY in ours:
        adopted.refuse_changed_plate(adopted.adopted_plate(path, ours), path)
    return ours


def _refuse_other(path: Path) -> NoReturn:
    """Raises a `UserError` that says what to do with a folder that is no plate of ours."""
    if nodes.is_group(path) and not {"plate", adopted.SERIES}.isdisjoint(nodes.ome_attributes(path)):
        raise UserError(
            f"{path}: is an OME-Zarr plate of another program; measure it once, where it lies: "
            f"python -m hpc_isl.submit adopt {shlex.quote(str(path))}"
        )
    raise UserError(f"{path}: is no plate that convert has written")


# ---------------------------------------------------------------- from images to the index


def _read_images(path: Path, plate: Plate, keys: list[FieldKey]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(8) as pool:  # thousands of small files wait for the file system together
        attributes = pool.map(lambda key: metadata.read_group(image_path(path, plate, key)), keys)
        return [group["hpc_isl"] for group in attributes]


def _write_index(
    path: Path, images: list[dict[str, Any]], plate: Plate, changes: Changes = (), shifts: str = ""
) -> None:
    metadata.write_group(path / "index", ours={"file": index_table.FILE.partition("/")[2]})
    write_atomic(path / index_table.FILE, encoded(images, fingerprint_of(images, plate, changes, shifts)))


def encoded(images: list[dict[str, Any]], fingerprint: str) -> bytes:
    """Returns the index file of these images, in order; `images` as their `zarr.json` hold them."""
    statistics = [from_dict(image["statistics"]) for image in images]
    blurred = _out_of_focus(statistics)
    rows = [
        index_table.row(
            image["field"], image["levels"], field_statistics, (*field_statistics.flags, *focus_flags)
        )
        for image, field_statistics, focus_flags in zip(images, statistics, blurred, strict=True)
    ]
    return index_table.encoded(rows, fingerprint)


def _index(path: Path, ours: Mapping[str, Any], table: pa.Table) -> Index:
    fields = index_table.fields(table)
    rows = {field.key: row for row, field in enumerate(fields)}  # the table's rows are the plate's fields
    return Index(
        path=path,
        plate=metadata.plate_from(ours["plate"], fields),
        fingerprint=index_table.fingerprint(table),
        plate_map=ours["plate_map"],
        statistics=index_table.Statistics.of(path, fields, table),
        problems=tuple(Problem(FieldKey(*entry[:3]), *entry[3:]) for entry in ours["problems"]),
        depth=dict(zip(rows, table["levels"].to_pylist(), strict=True)),
        changes=metadata_changes.of_facts(ours),
        registration=registration.read(path, ours[registration.KEY]) if registration.KEY in ours else None,
        adopted=adopted.adopted_plate(path, ours).path if adopted.PLATE_KEY in ours else None,
        _rows=rows,
    )


def fingerprint_of(images: list[dict[str, Any]], plate: Plate, changes: Changes, shifts: str = "") -> str:
    """Returns the plate's fingerprint: of pixels, channel names, positions, and further changes by `set`.

    `shifts`: digest of those between acquisitions; empty: there are none.
    """
    channels = images[0]["plate"]["channels"]
    fields = [
        [image["field"][fact] for fact in ("key", "shape", "dtype", "position_um", "z_um")]
        + [image["statistics"]["digest"]]
        for image in images
    ]
    ordered = sorted(json.dumps(field, sort_keys=True) for field in fields)
    fingerprint = hashlib.sha256(json.dumps([channels, ordered]).encode()).hexdigest()[:16]
    revision = " ".join(filter(None, [revision_of(plate, changes), shifts]))
    return hashlib.sha256(f"{fingerprint} {revision}".encode()).hexdigest()[:16] if revision else fingerprint


def revision_of(plate: Plate, changes: Changes) -> str:
    """Returns what `set` changed that no hash of pixels and names holds; empty: it is as converted."""
    if not changes:
        return ""
    former = changes[0].former
    converted = [former["pixel_um"], [channel["fluorescent"] for channel in former["channels"]]]
    present = [plate.pixel_um, [channel.fluorescent for channel in plate.channels]]
    return "" if present == converted else json.dumps(present)


def _out_of_focus(statistics: list[FieldStatistics]) -> list[list[str]]:
    """Returns for each field the flags of channels in which it is blurred compared with other fields."""
    blurred: list[list[str]] = [[] for _ in statistics]
    for channel in sorted({key[1] for field in statistics for key in field.planes}):
        scores = {
            number: max(plane.focus for key, plane in field.planes.items() if key[1] == channel)
            for number, field in enumerate(statistics)
            if channel in field.histograms and f"empty:{channel}" not in field.flags
        }
        logs = np.log([score for score in scores.values() if score > 0] or [1.0])
        if len(logs) < FOCUS_FIELDS:  # too few to know what is usual
            continue
        # 1.4826 times the median absolute deviation estimates the standard deviation of normal data.
        spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
        limit = np.exp(np.median(logs) - max(FOCUS_DEVIATIONS * spread, np.log(2)))
        for number, score in scores.items():
            if score < limit:
                blurred[number].append(f"out of focus:{channel}")
    return blurred
