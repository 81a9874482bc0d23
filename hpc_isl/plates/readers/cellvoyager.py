"""Yokogawa CellVoyager (CV7000, CV8000) and CQ3K: `MeasurementData.mlf`, with `.mrf` and `.mes` beside it."""

# Seen in real metadata: all that is read here, from CV7000 and CV8000 stacks and projections, CQ3K
# projections, four time lines with a well and a channel each, times that begin at 2, autofocus errors, and
# `.tif` in the index where `.png` lies. Of CV8000 the real images were at hand too, but blank. Y points up,
# as the positions of fields and a public reader agree; no pixels could prove it. Only read about: one
# channel in several actions or time lines of one field, whole plates of 1536 wells.

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hpc_isl.plates.plate import NOT_IMAGED, Channel, Export, FieldKey, LeftOut, Problem, well_name
from hpc_isl.plates.readers import cellvoyager_index, export, fields
from hpc_isl.plates.readers.cellvoyager_index import Facts, Record, Settings
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.folder import IMAGES, Folder, list_folder, unnamed
from hpc_isl.plates.readers.vendor_facts import number

_SHADING = re.compile(r"(?:SC|DC)_.*", re.IGNORECASE)


def recognise(below: Folder) -> bool:
    """Returns whether there is an `.mlf` index."""
    return any(name.lower().endswith(".mlf") for name in below.files)


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate that the nearest `.mlf` describes.

    Channels are in the order of their numbers and named as the `.mes` names them. Positions are those of the
    field's first pixel in µm from the centre of its well, y down. Where each well has its own time line, each
    begins at time 0. What the instrument could not image is no damage; its errors are recorded.

    Raises:
        UserError: several indices; one that is damaged, names files outside its folder or wells outside the
            plate, or none of whose images exists.
    """
    path = cellvoyager_index.find(list_folder(folder))
    below = list_folder(path.parent)
    records, errors = cellvoyager_index.read(path)
    settings, remarks = cellvoyager_index.read_settings(path.parent)
    files, absent, renamed = _files(records, below, path)
    kept_records, projections = _without_projections(records, files)
    split_channels = _split_channels(kept_records)
    channels = _channels(kept_records, split_channels, settings)
    lines = _acquisitions(kept_records)
    numbers = {channel: number for number, channel in enumerate(channels)}
    header = export.first_header((files[record] for record in kept_records), absent, path)
    counts = [int(number(settings.measurement.get(key)) or 0) for key in ("RowCount", "ColumnCount")]
    # From all wells of the index, even those of which nothing is stored.
    rows, columns = export.stated_layout({r.well for r in records}, counts[0], counts[1], path)
    plate_export = export.build(
        [
            Described(
                FieldKey(r.well, str(r.field), lines.get(r.line, 0)), files[r], r.time,
                numbers[_channel_id(r, split_channels)], r.plane, r.metadata,
            )
            for r in kept_records
        ],
        {numbers[ids]: channel for ids, channel in channels.items()},
        {files[r]: (settings.size(r.channel) or header.shape, header.dtype) for r in kept_records},
        {files[r]: settings.pixel_um(r.channel) for r in kept_records},
        name=settings.measurement.get("MeasurementSamplePlate.Name") or path.parent.name,
        layout=lambda _: (rows, columns),
        details=_details(settings),
        acquisitions={number: f"time line {line}" for line, number in lines.items()},
        unreadable=absent,
        absent=absent,
        indexed=True,
        tolerance=0.01,
        left_out=(*projections, *unnamed(below, files.values(), _kind)),
        remarks=(*remarks, *renamed),
        resample=resample,
    )  # fmt: skip
    imaged = {field.key for field in plate_export.plate.fields}
    failures, error_remarks = _failures(errors, imaged, lines, len(rows), len(columns))
    return replace(
        plate_export,
        problems=(*plate_export.problems, *failures),
        remarks=(*plate_export.remarks, *error_remarks),
    )


# ---------------------------------------------------------------- files


def _files(
    records: Sequence[Record], below: Folder, path: Path
) -> tuple[dict[Record, Path], dict[Path, str], list[str]]:
    """Returns the file of each record, a clause on each that is missing, and remarks on other endings."""
    by_stem: dict[str, str] = {}
    for name in sorted(below.files):
        if PurePosixPath(name).suffix.lower() in IMAGES:
            by_stem.setdefault(str(PurePosixPath(name).with_suffix("")).lower(), name)
    files: dict[Record, Path] = {}
    absent: dict[Path, str] = {}
    endings: Counter[tuple[str, str]] = Counter()
    for record in records:
        name = below.locate(record.name or "(no file)", str(path))
        if name not in below.files:  # seen: `.tif` in the index where `.png` lies
            alternative = by_stem.get(str(PurePosixPath(name).with_suffix("")).lower())
            if alternative is None:
                absent[below.root / name] = f"{record.name or 'a file without a name'} is missing"
            else:
                endings[PurePosixPath(name).suffix, PurePosixPath(alternative).suffix] += 1
                name = alternative
        files[record] = below.root / name
    remarks = [
        f"{count} files named {before} in the index are {after} files"
        for (before, after), count in endings.items()
    ]
    return files, absent, remarks


def _kind(name: str) -> str:
    """Returns why an image has no record: the instrument corrects shading by it, or it is unknown."""
    return "shading image" if _SHADING.fullmatch(PurePosixPath(name).name) else "not in the index"


def _without_projections(
    records: Sequence[Record], files: Mapping[Record, Path]
) -> tuple[list[Record], list[LeftOut]]:
    """Returns the records without the projections of channels that have planes, and these projections."""
    # Channel by channel: one may have planes and another only projections.
    stacked = {record.channel for record in records if not record.projection}
    kept_records = [record for record in records if not record.projection or record.channel not in stacked]
    left_out = [
        LeftOut(files[record], "projection", record.well, f"Ch{record.channel}")
        for record in records
        if record.projection and record.channel in stacked
    ]
    return kept_records, left_out


# ---------------------------------------------------------------- channels and acquisitions


def _split_channels(records: Sequence[Record]) -> set[int]:
    """Returns the channels of which several actions take one plane: each action is then a channel."""
    actions: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for r in records:
        actions[r.well, r.field, r.time, r.line, r.plane, r.channel].add(r.action)
    return {place[-1] for place, numbers in actions.items() if len(numbers) > 1}  # type: ignore[misc]


def _channel_id(record: Record, split_channels: Container[int]) -> tuple[int, int]:
    """Returns the number of a channel, and that of its action where it has several."""
    return record.channel, record.action if record.channel in split_channels else 0


def _channels(
    records: Sequence[Record], split_channels: Container[int], settings: Settings
) -> dict[tuple[int, int], Channel]:
    """Returns the channels that were taken, in the order of their numbers.

    A name that the settings give to several of them is followed by the channel's number.
    """
    ids = sorted({_channel_id(record, split_channels) for record in records})
    targets = {c: settings.channels.get(c, {}).get("Target", "") or f"Ch{c}" for c, _ in ids}
    counts = Counter(targets.values())
    channels: dict[tuple[int, int], Channel] = {}
    for channel, action in ids:
        name = targets[channel] if counts[targets[channel]] == 1 else f"{targets[channel]} Ch{channel}"
        name = f"{name} action {action}" if action else name
        name = fields.unique(name, [earlier.name for earlier in channels.values()])
        channels[channel, action] = settings.channel(channel, name)
    return channels


def _acquisitions(records: Sequence[Record]) -> dict[int, int]:
    """Returns time line -> acquisition, where lines image a field at two places or a plane twice."""
    visits: dict[tuple[str, int], set[tuple[object, int]]] = defaultdict(set)
    planes: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for r in records:
        visits[r.well, r.field].add((r.metadata.center_um, r.line))
        planes[r.well, r.field, r.time, r.channel, r.action, r.plane].add(r.line)
    moved = any(
        len({center for center, _ in pairs}) > 1 and len({line for _, line in pairs}) > 1
        for pairs in visits.values()
    )
    if not moved and all(len(lines) == 1 for lines in planes.values()):
        return {}
    return {line: number for number, line in enumerate(sorted({record.line for record in records}))}


# ---------------------------------------------------------------- errors, details


def _failures(
    errors: Sequence[tuple[Facts, str]],
    imaged: Container[FieldKey],
    lines: Mapping[int, int],
    rows: int,
    columns: int,
) -> tuple[list[Problem], list[str]]:
    """Returns the fields that an error kept from being imaged, and a remark that counts the errors."""
    problems = []
    for facts, text in errors:
        row, column, field = (number(facts.get(name)) for name in ("Row", "Column", "FieldIndex"))
        if not row or not column or not field or row > rows or column > columns:
            continue
        # Of a time line that imaged nothing there is no acquisition: its errors are only counted.
        acquisition = lines.get(int(number(facts.get("TimelineIndex")) or 1)) if lines else 0
        if acquisition is None:
            continue
        key = FieldKey(well_name(int(row) - 1, int(column) - 1), str(int(field)), acquisition)
        if key not in imaged:
            problems.append(Problem(key, f"the instrument reports: {text}", NOT_IMAGED))
    kinds = Counter(text.split(" at ")[0] or facts.get("Type", "") for facts, text in errors)
    counted = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
    return problems, [f"the instrument reports errors: {counted}"] if errors else []


def _details(settings: Settings) -> dict[str, object]:
    facts = settings.measurement
    camera = next(iter(settings.channels.values()), {})
    details = {
        "instrument": facts.get("TargetSystem", ""),
        "software": facts.get("ReleaseNumber", ""),
        "title": facts.get("Title", ""),
        "begin": facts.get("BeginTime", ""),
        "end": facts.get("EndTime", ""),
        "plate product": facts.get("MeasurementSamplePlate.WellPlateProductFileName", ""),
        "objective": camera.get("Objective", ""),
        "binning": camera.get("Binning", ""),
    }
    channels = {
        f"Ch{channel}": {k: v for k, v in {**settings.cameras.get(channel, {}), **channel_facts}.items() if v}
        for channel, channel_facts in sorted(settings.channels.items())
    }
    return {"reader": "cellvoyager", **details, "channels": channels}
