"""ImageXpress HCS.ai: a run's `.jdce` (JSON) and its `image_metadata_N.csv`, to an `Export`."""

# Seen in real metadata of MetaXpress Acquire 2025.2 and 2026.1 (96 wells, DAPI, FITC and transmitted light,
# binning 1 and 4, a montage), without pixels: all that is read here. The `.jdce` holds the plan, the CSV
# what was imaged, so shapes are the CSV's. Row and Column count from 1, Field, Wavelength, Timepoint and
# ZIndex from 0. PositionX/YUm is the centre of the field in the plate's frame, y down; the pixel size
# includes binning. The excitation filter repeats the emission and is not used where it does. One run may
# hold further folders with files of the same names: its montage is left out.

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import MOST_COLUMNS, MOST_ROWS, Channel, Export, FieldKey, well_name
from hpc_isl.plates.readers import export, fields
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.folder import Folder, list_folder, unnamed
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata, micrometres, number, position, utc_moment

_NEEDED = ("Row", "Column", "Field", "Wavelength", "Timepoint", "ZIndex", "ImageFileName")
Row = Mapping[str, str]


def recognise(below: Folder) -> bool:
    """Returns whether there is a `.jdce`."""
    return any(name.lower().endswith(".jdce") for name in below.files)


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate of one run; the folder is the run's, or one of those in it.

    Channels are in the order of Wavelength and named by their emission filters, fields are named by the
    vendor's numbers, from 0. Positions and heights are those of the stage.

    Raises:
        UserError: no `.jdce`, several runs, an index that is damaged or names files outside its folder, or
            none of its images is there.
    """
    below = list_folder(folder)
    name, montages = _run_index(below)
    path = below.root / name
    protocol, stack = _protocol_and_stack(path)
    rows = list(_rows(path, stack))
    files = [_file(below, name, row, f"{path.parent}: row {n}") for n, row in enumerate(rows, start=1)]
    paths = [below.root / file for file in files]
    absent = below.missing(files)
    channels, channel_remarks = _channels(rows, protocol)
    header = export.first_header(paths, absent, path)
    plate_rows, plate_columns = (
        int(number(_value_at(protocol, "Plate", n)) or 0) for n in ("Rows", "Columns")
    )
    begin = f"{_text(stack, 'Creation', 'Date')}T{_text(stack, 'Creation', 'Time')}".strip("T")
    return export.build(
        [_described(row, image) for row, image in zip(rows, paths, strict=True)],
        channels,
        {image: (_size(row) or header.shape, header.dtype) for row, image in zip(rows, paths, strict=True)},
        dict.fromkeys(paths, _pixel(protocol)),
        name=_text(stack, "SpecimenHolder", "Barcode") or _text(stack, "PlateId") or path.stem,
        layout=lambda wells: export.stated_layout(wells, plate_rows, plate_columns, path),
        details=_details(stack, protocol),
        acquisitions={0: begin or "0"},
        unreadable=absent,
        absent=absent,
        indexed=True,
        left_out=unnamed(
            below, paths, lambda file: "montage" if file.startswith(tuple(montages)) else "not in the index"
        ),
        remarks=(*channel_remarks, *_plan_remarks(rows, protocol)),
        resample=resample,
    )


# ---------------------------------------------------------------- the run


def _run_index(below: Folder) -> tuple[str, list[str]]:
    """Returns the `.jdce` to read, and the folders of montages beside it, whose files have the same names."""
    names = sorted(name for name in below.files if name.lower().endswith(".jdce"))
    montages = [name for name in names if "montage" in name.lower()]
    runs = [name for name in names if name not in montages] or names  # a montage alone is read
    if len(runs) > 1:
        raise UserError(
            f"{below.root} holds {len(runs)} runs ({', '.join(runs[:5])}); give the folder of one"
        )
    if not runs:
        raise UserError(f"{below.root}: no .jdce; the folder of a run of ImageXpress HCS.ai is expected")
    return runs[0], [f"{PurePosixPath(name).parent}/" for name in montages if name not in runs]


def _protocol_and_stack(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns acquisition protocol and image stack of a `.jdce`."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        stack = content["ImageStack"]
        protocol = stack["AutoLeadAcquisitionProtocol"]
    # JSON may nest deeper than Python recurses.
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no readable run of ImageXpress HCS.ai: {error!r}") from None
    if not (isinstance(stack, dict) and isinstance(protocol, dict)):
        raise UserError(f"{path} is no readable run of ImageXpress HCS.ai: its ImageStack is empty")
    return protocol, stack


def _rows(path: Path, stack: Mapping[str, Any]) -> Iterator[Row]:
    names = stack.get("ImageMetadataFiles")
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} names no ImageMetadataFiles")
    for name in names:
        # The name alone counts, so that nothing outside the run's folder is opened.
        table = path.parent / PurePosixPath(str(name).replace("\\", "/")).name
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                yield from _checked_rows(csv.DictReader(file), table)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{table}, which {path.name} names, is not readable as CSV: {error}") from None


def _checked_rows(reader: csv.DictReader[str], table: Path) -> Iterator[Row]:
    missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{table} has no column {missing[0]!r}: no index of ImageXpress HCS.ai")
    for row in reader:
        for name in _NEEDED[:-1]:
            value, least = row[name] or "", 1 if name in ("Row", "Column") else 0
            if not (value.isascii() and value.isdigit() and len(value) < 7 and int(value) >= least):
                raise UserError(
                    f"{table} line {reader.line_num}: {name} is {value!r}; a number from {least} is expected"
                )
        if int(row["Row"]) > MOST_ROWS or int(row["Column"]) > MOST_COLUMNS:
            raise UserError(
                f"{table} line {reader.line_num}: row {row['Row']}, column {row['Column']} is no well"
            )
        for start in ("ImageStartXPx", "ImageStartYPx"):
            if number(row.get(start) or 0):
                raise UserError(
                    f"{table} line {reader.line_num}: {start} is {row[start]}: parts of files are not read"
                )
        yield {name: text or "" for name, text in row.items() if isinstance(name, str)}


def _file(below: Folder, jdce: str, row: Row, origin: str) -> str:
    """Returns the path of a row's image, which lies below the folder of its index."""
    parts = (
        str(PurePosixPath(jdce).parent),
        row.get("ImageSubFolderPath", ""),
        row["ImageFileName"] or "(no file)",
    )
    inner = below.locate("/".join(part.replace("\\", "/").strip("/") or "." for part in parts[1:]), origin)
    return below.named(below.locate(str(PurePosixPath(parts[0]) / inner), origin))


# ---------------------------------------------------------------- what it states


def _described(row: Row, path: Path) -> Described:
    y, x = number(row.get("PositionYUm")), number(row.get("PositionXUm"))
    exposure = number(row.get("ExposureTimeMs"))
    metadata = PlaneMetadata(
        center_um=position(y, x),
        z_um=number(row.get("PositionZUm")),
        # In UTC: the run's own date is local, and its offset is wrong.
        moment=utc_moment(number(row.get("TimeStampSec"))),
        exposure_s=None if exposure is None else round(exposure / 1000, 7),
    )
    key = FieldKey(well_name(int(row["Row"]) - 1, int(row["Column"]) - 1), str(int(row["Field"])))
    time, channel, plane = (int(row[name]) for name in ("Timepoint", "Wavelength", "ZIndex"))
    return Described(key, path, time, channel, plane, metadata)


def _size(row: Row) -> tuple[int, int] | None:
    y, x = (number(row.get(name)) for name in ("ImageSizeYPx", "ImageSizeXPx"))
    return (int(y), int(x)) if y and x and 0 < y < 1e6 and 0 < x < 1e6 else None


def _pixel(protocol: Mapping[str, Any]) -> tuple[float, float] | None:
    calibration = _value_at(protocol, "ObjectiveCalibration")
    y, x = (
        micrometres(_value_at(calibration, name), _text(calibration, "Unit"))
        for name in ("PixelHeight", "PixelWidth")
    )
    return (y, x) if y and x and min(y, x) > 0 else None


def _channels(rows: Sequence[Row], protocol: Mapping[str, Any]) -> tuple[dict[int, Channel], list[str]]:
    """Returns wavelength -> channel, named by the plan's emission filter, else as the CSV names it."""
    waves = _value_at(protocol, "Wavelengths")
    plan = (
        {_value_at(wave, "Index"): wave for wave in waves if isinstance(wave, dict)}
        if isinstance(waves, list)
        else {}
    )
    stated_names: dict[int, str] = {}
    for row in rows:
        stated_names.setdefault(int(row["Wavelength"]), row.get("ExcitationEmissionFilter", "").strip())
    channels: dict[int, Channel] = {}
    remarks = []
    for wave in sorted(stated_names):
        planned_name = _text(plan.get(wave), "EmissionFilter", "Name")
        if planned_name and stated_names[wave] and planned_name != stated_names[wave]:
            remarks.append(
                f"wavelength {wave} is {planned_name!r} in the .jdce, "
                f"{stated_names[wave]!r} in the CSV; {planned_name!r} is kept"
            )
        name = fields.unique(
            planned_name or stated_names[wave] or f"w{wave}", [c.name for c in channels.values()]
        )
        lengths = []
        for kind in ("EmissionFilter", "ExcitationFilter"):
            unit = _text(plan.get(wave), kind, "Unit")
            length = micrometres(_value_at(plan.get(wave), kind, "Wavelength"), unit)
            lengths.append(round(length * 1000, 3) if length else None)
        emission, excitation = lengths
        channels[wave] = fields.channel(name, excitation if excitation != emission else None, emission)
    return channels, remarks


def _plan_remarks(rows: Sequence[Row], protocol: Mapping[str, Any]) -> list[str]:
    """Returns remarks where less was imaged than planned."""
    remarks = []
    if _value_at(protocol, "CollectionComplete") is False:
        remarks.append("the run was not completed")
    for kind, column, *keys in (
        ("planes", "ZIndex", "ZDimensionParameters", "NumberOfSlices"),
        ("times", "Timepoint", "TimeSchedule", "NumberOfTimepoints"),
    ):
        planned = int(number(_value_at(protocol, "PlateMap", *keys)) or 0)
        listed = len({row[column] for row in rows})
        if planned > listed and _value_at(protocol, "PlateMap", keys[0], "Enabled") is True:
            remarks.append(f"{planned} {kind} were planned, the index has {listed}")
    return remarks


def _details(stack: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, object]:
    return {
        "reader": "imagexpress_ai",
        "instrument": "ImageXpress HCS.ai",
        "software": " ".join(_text(stack, "Application", name) for name in ("Name", "SoftwareLabel")).strip(),
        "objective": _text(protocol, "ObjectiveCalibration", "ObjectiveName"),
        "binning": _text(protocol, "Camera", "Binning"),
        "plate type": _text(protocol, "Plate", "Name"),
        "plate id": _text(stack, "PlateId"),
    }


def _value_at(node: Any, *names: str) -> Any:
    """Returns what lies at these keys; None where the path ends before."""
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _text(node: Any, *names: str) -> str:
    value = _value_at(node, *names)
    return str(value).strip() if isinstance(value, str | int | float) else ""
