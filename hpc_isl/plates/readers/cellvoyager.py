"""Yokogawa CellVoyager (CV7000, CV8000) and CQ3K: `MeasurementData.mlf`, with `.mrf` and `.mes` beside it.

Seen in real metadata: all that is read here, from CV7000 and CV8000 stacks and projections, CQ3K projections,
four time lines with a well and a channel each, times that begin at 2, autofocus errors, and `.tif` in the
index where `.png` lies. Of CV8000 the real images were at hand too, but blank. Y points up, as the positions
of fields and a public reader agree; no pixels could prove it. Only read about: one channel in several actions
or time lines of one field, whole plates of 1536 wells.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path, PurePosixPath

from hpc_isl.plates.plate import (
    NOT_IMAGED,
    Channel,
    Export,
    FieldKey,
    LeftOut,
    Plate,
    Problem,
    well_name,
)
from hpc_isl.plates.readers import cellvoyager_index, cellvoyager_settings, fields, indexed, stacks
from hpc_isl.plates.readers.cellvoyager_index import Facts, Record
from hpc_isl.plates.readers.cellvoyager_settings import Settings
from hpc_isl.plates.readers.fields import Described
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.quantities import number

_SHADING = re.compile(r"(?:SC|DC)_.*", re.IGNORECASE)


def recognise(below: Folder) -> bool:
    """Whether there is an `.mlf` index."""
    return bool(cellvoyager_index.files(below))


def read(folder: Path) -> Export:
    """Returns the plate that the nearest `.mlf` describes.

    Channels are in the order of their numbers and named as the `.mes` names them. Positions are those of the
    field's first pixel in µm from the centre of its well, y down. Wells with a time line each begin at time 0
    each. What the instrument could not image is no damage; its errors are recorded.

    Raises:
        UserError: several indices; one that is damaged, names files outside its folder or wells outside the
            plate, or of whose images none is there.
    """
    path = cellvoyager_index.find(list_folder(folder))
    below = list_folder(path.parent)
    records, errors = cellvoyager_index.read(path)
    settings, remarks = cellvoyager_settings.read(path.parent)
    rows, columns = indexed.layout({record.well for record in records}, *settings.rows_and_columns(), path)
    files, absent, renamed = _files(records, below, path)
    kept, projections = _without_projections(records, files)
    split = _split_channels(kept)
    channels = _channels(kept, split, settings)
    lines = _acquisitions(kept)
    numbers = {entity: number for number, entity in enumerate(channels)}
    described = [
        Described(
            _key(record, lines), files[record], record.time, numbers[_entity(record, split)], record.plane,
            record.metadata,
        )
        for record in kept
    ]  # fmt: skip
    by_number = {numbers[entity]: channel for entity, channel in channels.items()}
    size, dtype, _ = indexed.probe((plane.path for plane in described), absent, path)
    sizes = {numbers[entity]: settings.size(entity[0]) or size for entity in channels}
    described, used, odd, more = fields.of_one_size(described, by_number, sizes)
    pixel_um, unknown = fields.pixel_edge(settings.pixel_um(e[0]) for e, n in numbers.items() if n in used)
    parts = fields.parts(
        described,
        used,
        pixel_um,
        absent,
        kinds={plane.key: (sizes[plane.channel], dtype) for plane in described},
        absent=absent,
        indexed=True,
    )
    failed, notes = _failures(errors, {field.key for field in parts.fields}, len(rows), len(columns))
    plate = Plate(
        name=settings.measurement.get("MeasurementSamplePlate.Name") or path.parent.name,
        rows=rows,
        columns=columns,
        channels=parts.channels,
        fields=parts.fields,
        pixel_um=pixel_um,
        plane_um=stacks.spacing(parts.fields),
        acquisitions={place: f"time line {line}" for line, place in lines.items()} or {0: "0"},
        details=_details(settings),
    )
    return Export(
        plate,
        parts.files,
        (*parts.problems, *failed),
        (*projections, *odd, *indexed.unnamed(below, files.values(), _kind)),
        remarks=(*remarks, *renamed, *more, *unknown, *notes, *parts.remarks),
    )


# ---------------------------------------------------------------- files


def _files(
    records: Sequence[Record], below: Folder, path: Path
) -> tuple[dict[Record, Path], dict[Path, str], list[str]]:
    """The file of each record, what to say of those that are not there, and of those with another ending."""
    by_stem: dict[str, str] = {}
    for name in sorted(below.files):
        if PurePosixPath(name).suffix.lower() in indexed.IMAGES:
            by_stem.setdefault(str(PurePosixPath(name).with_suffix("")).lower(), name)
    files: dict[Record, Path] = {}
    absent: dict[Path, str] = {}
    endings: Counter[tuple[str, str]] = Counter()
    for record in records:
        name = below.locate(record.name or "(no file)", str(path))
        if name not in below.files:
            other = by_stem.get(str(PurePosixPath(name).with_suffix("")).lower())
            if other is None:
                absent[below.root / name] = f"{record.name or 'a file without a name'} is missing"
            else:
                endings[PurePosixPath(name).suffix, PurePosixPath(other).suffix] += 1
                name = other
        files[record] = below.root / name
    return (
        files,
        absent,
        [
            f"{count} files named {before} in the index are {after} files"
            for (before, after), count in endings.items()
        ],
    )


def _kind(name: str) -> str:
    """Why an image has no record: the instrument corrects shading by it, or it is a stranger."""
    return "shading image" if _SHADING.fullmatch(PurePosixPath(name).name) else "not in the index"


def _without_projections(
    records: Sequence[Record], files: Mapping[Record, Path]
) -> tuple[list[Record], list[LeftOut]]:
    """Of a channel that has planes, the planes alone; of one that has projections alone these."""
    stacked = {record.channel for record in records if not record.projection}
    kept = [record for record in records if not record.projection or record.channel not in stacked]
    left_out = [
        LeftOut(files[record], "projection", record.well, f"Ch{record.channel}")
        for record in records
        if record.projection and record.channel in stacked
    ]
    return kept, left_out


# ---------------------------------------------------------------- channels and acquisitions


def _split_channels(records: Sequence[Record]) -> set[int]:
    """Channels that several actions take of one plane: each action is a channel of its own then."""
    actions: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for r in records:
        actions[r.well, r.field, r.time, r.line, r.plane, r.channel].add(r.action)
    return {place[-1] for place, own in actions.items() if len(own) > 1}  # type: ignore[misc]


def _entity(record: Record, split: Container[int]) -> tuple[int, int]:
    """What becomes a channel: its number, and that of its action where it has several."""
    return record.channel, record.action if record.channel in split else 0


def _channels(
    records: Sequence[Record], split: Container[int], settings: Settings
) -> dict[tuple[int, int], Channel]:
    """The channels that were taken, in the order of their numbers.

    A name that the settings give to several of them is followed by the channel's number.
    """
    entities = sorted({_entity(record, split) for record in records})
    targets = {e[0]: settings.channels.get(e[0], {}).get("Target", "") or f"Ch{e[0]}" for e in entities}
    counts = Counter(targets.values())
    channels: dict[tuple[int, int], Channel] = {}
    for channel, action in entities:
        name = targets[channel] if counts[targets[channel]] == 1 else f"{targets[channel]} Ch{channel}"
        name = f"{name} action {action}" if action else name
        name = fields.unique(name, [other.name for other in channels.values()])
        channels[channel, action] = settings.channel(channel, name)
    return channels


def _acquisitions(records: Sequence[Record]) -> dict[int, int]:
    """Time line -> acquisition, where lines image one field at two places or one plane twice; else empty."""
    places: dict[tuple[str, int], set[tuple[object, int]]] = defaultdict(set)
    planes: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for r in records:
        places[r.well, r.field].add((r.metadata.center_um, r.line))
        planes[r.well, r.field, r.time, r.channel, r.action, r.plane].add(r.line)
    moved = any(
        len({at for at, _ in own}) > 1 and len({line for _, line in own}) > 1 for own in places.values()
    )
    if not moved and all(len(own) == 1 for own in planes.values()):
        return {}
    return {line: place for place, line in enumerate(sorted({record.line for record in records}))}


def _key(record: Record, lines: Mapping[int, int]) -> FieldKey:
    return FieldKey(record.well, str(record.field), lines.get(record.line, 0))


# ---------------------------------------------------------------- errors, details


def _failures(
    errors: Sequence[tuple[Facts, str]], there: Container[FieldKey], rows: int, columns: int
) -> tuple[list[Problem], list[str]]:
    """The fields that an error kept from being imaged, and a remark that counts the errors."""
    problems = []
    for facts, text in errors:
        row, column, field = (number(facts.get(name)) for name in ("Row", "Column", "FieldIndex"))
        if not row or not column or not field or row > rows or column > columns:
            continue
        key = FieldKey(well_name(int(row) - 1, int(column) - 1), str(int(field)))
        if key not in there:
            problems.append(Problem(key, f"the instrument reports: {text}", NOT_IMAGED))
    kinds = Counter(text.split(" at ")[0] or facts.get("Type", "") for facts, text in errors)
    counted = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
    return problems, [f"the instrument reports errors: {counted}"] if errors else []


def _details(settings: Settings) -> dict[str, object]:
    facts = settings.measurement
    camera = next(iter(settings.channels.values()), {})
    named = {
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
        f"Ch{channel}": {k: v for k, v in {**settings.cameras.get(channel, {}), **own}.items() if v}
        for channel, own in sorted(settings.channels.items())
    }
    return {"reader": "cellvoyager", **{k: v for k, v in named.items() if v}, "channels": channels}
