"""Cytation and Lionheart: TIFFs that Gen5 exports, A1_02_1_1_DAPI_001.tif and its kin, to an `Export`.

No export of Gen5 was at hand: names in three styles and the XML in each file (`gen5_metadata`) are only read
about, from public readers and published examples. Names place an image; channel, sizes, place, height, time
and exposure are those that the file states. A read step that takes a channel again is a channel of its own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import (
    Channel,
    Export,
    FieldKey,
    LeftOut,
    Plate,
    Problem,
    color_of,
    layout,
    well_name,
    well_position,
)
from hpc_isl.plates.readers import agreement, fields, left_out, stacks, tiff_metadata
from hpc_isl.plates.readers.fields import Described
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.plane_metadata import PlaneMetadata
from hpc_isl.plates.readers.quantities import number
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata

_WELL = r"(?:.*/)?(?P<well>[A-Z]{1,2}\d{1,2})"
_NAMES = (
    # well, read step, channel's number, field, plane, channel, time
    re.compile(
        _WELL + r"(?:ROI(?P<roi>\d+))?_(?P<step>-?\d+)_\d+_(?P<field>\d+)(?:Z(?P<plane>\d+))?"
        r"_(?P<channel>[^/]+)_(?P<time>-?\d+)\.tiff?"
    ),
    # well, field, plane, channel, channel's number, time
    re.compile(
        _WELL + r"(?P<roi>)(?P<step>)_(?P<field>-?\d+)(?:Z(?P<plane>\d+))?"
        r"_(?P<channel>[^/_]+)_\d+_(?P<time>-?\d+)_-?\d*\.tiff?"
    ),
)  # fmt: skip
_PROCESSED = re.compile(r"(?P<how>[A-Za-z -]+)\[(?P<name>.*)\]")
_IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class _Plane:
    """One plane; `how` it was processed, "" of what the camera took."""

    path: Path
    page: int
    key: FieldKey
    step: str
    name: str
    how: str
    time: int
    plane: int
    metadata: PlaneMetadata


def recognise(below: Folder) -> bool:
    """Whether an image is named as Gen5 names them, and states so."""
    named = min((name for name in below.files if _match(name)), default="")
    found = tiff_metadata.tried(below.root / named) if named else None
    return isinstance(found, TiffMetadata) and found.source == "Gen5"


def read(folder: Path) -> Export:
    """Returns the plate of a folder, of one folder for each well too.

    Channels are in the order of their names, fields are the numbers of a montage. Positions are from the
    centre of the well. Of a channel that the camera took, what Gen5 made of it (stitched, projected,
    deconvolved) is left out; of one that there is only as that, it is kept.

    Raises:
        UserError: no image of Gen5, several plates, or no image that can be read.
    """
    below = list_folder(folder)
    named = {name: match for name in sorted(below.files) if (match := _match(name))}
    if not named:
        raise UserError(f"{below.root}: no image of Gen5; names such as A1_02_1_1_DAPI_001.tif are expected")
    metadata, unreadable = tiff_metadata.read_all([below.root / name for name in named])
    if not metadata:
        raise UserError(f"no image can be used; {next(iter(unreadable.values()))}")
    _one_plate(metadata, below.root)
    planes, misplaced = _planes(below, named, metadata)
    planes, processed = _without_processed(planes)
    channels, numbers = _channels(planes, metadata)
    headers = {path: found.header[:2] for path, found in metadata.items()}
    described = [
        Described(p.key, p.path, p.time, numbers[p.step, p.name, p.how], p.plane, p.metadata, p.page)
        for p in planes
    ]
    sizes = agreement.channel_sizes(((plane.channel, plane.path) for plane in described), headers)
    described, channels, of_other_size, resized = fields.of_one_size(described, channels, sizes)
    pixel_um, unknown = fields.pixel_edge(metadata[p.path].pixel_um for p in described if p.path in metadata)
    parts = fields.parts(described, channels, pixel_um, unreadable, headers=headers)
    rows, columns = layout({plane.key.well for plane in described})
    first = next(iter(metadata.values())).facts
    plate = Plate(
        name=first.get("Plate") or below.root.name,
        rows=rows,
        columns=columns,
        channels=parts.channels,
        fields=parts.fields,
        pixel_um=pixel_um,
        plane_um=stacks.spacing(parts.fields, stacks.MEASURED),
        details=_details(first),
    )
    others = [
        left_out.of_name(below.root, name, "unknown name")
        for name in sorted(below.files)
        if name not in named and name.lower().endswith(_IMAGES)
    ]
    return Export(
        plate,
        parts.files,
        (*parts.problems, *misplaced),
        (*others, *processed, *of_other_size),
        remarks=(*resized, *unknown, *parts.remarks),
    )


def _match(name: str) -> re.Match[str] | None:
    return next(filter(None, (pattern.fullmatch(name) for pattern in _NAMES)), None)


def _one_plate(metadata: Mapping[Path, TiffMetadata], root: Path) -> None:
    names = sorted({name for found in metadata.values() if (name := found.facts.get("Plate", ""))})
    if len(names) > 1:
        raise UserError(f"{root} holds several plates ({', '.join(names[:5])}); give one as source")


# ---------------------------------------------------------------- planes


def _planes(
    below: Folder, named: Mapping[str, re.Match[str]], metadata: Mapping[Path, TiffMetadata]
) -> tuple[list[_Plane], list[Problem]]:
    """The planes of all files; those whose own well is another than their name's are problems."""
    planes: list[_Plane] = []
    problems: list[Problem] = []
    for name, match in named.items():
        path = below.root / name
        found = metadata.get(path)
        key = _key(match)
        well = found.facts.get("Well", "") if found else ""
        if re.fullmatch(r"A?[A-Z]\d{1,2}", well) and well_name(*well_position(well)) != key.well:
            problems.append(Problem(key, f"{path.name} says that it is of well {well}", "misplaced"))
            continue
        processed = _PROCESSED.fullmatch(match["channel"])
        label = processed["name"] if processed else match["channel"]
        how = processed["how"].strip() if processed else ""
        number_in_stack, time = _plane_number(match, found), max(0, int(match["time"]))
        for page, plane in enumerate(found.planes if found else [PlaneMetadata()]):
            stated = replace(plane, projection=plane.projection or how)
            planes.append(
                _Plane(
                    path, page, key, match["step"] or "", plane.channel_name or label, stated.projection,
                    time + plane.time, number_in_stack + plane.plane, stated,
                )
            )  # fmt: skip
    if not planes:
        raise UserError(f"no image is where its name says; {problems[0].text}")
    return planes, problems


def _key(match: re.Match[str]) -> FieldKey:
    field = str(abs(int(match["field"]))) + (f"ROI{match['roi']}" if match["roi"] else "")
    return FieldKey(well_name(*well_position(match["well"])), field)


def _plane_number(match: re.Match[str], found: TiffMetadata | None) -> int:
    """The number in the name; without one that which the file states, of a stack."""
    if match["plane"]:
        return int(match["plane"])
    if found is None or found.header.pages > 1:
        return 0
    total, at = (number(found.facts.get(f"ZStack{what}")) for what in ("Total", "Position"))
    return int(at) if total and total > 1 and at else 0


def _without_processed(planes: Sequence[_Plane]) -> tuple[list[_Plane], list[LeftOut]]:
    """Of a channel that the camera took its planes alone; of one that was only made what was made."""
    taken = {plane.name for plane in planes if not plane.how}
    kept = [plane for plane in planes if not plane.how or plane.name not in taken]
    paths = {plane.path for plane in kept}
    others = {plane.path: plane for plane in planes if plane.path not in paths}
    return kept, [
        LeftOut(path, plane.how.lower(), plane.key.well, plane.name) for path, plane in others.items()
    ]


# ---------------------------------------------------------------- channels


def _channels(
    planes: Sequence[_Plane], metadata: Mapping[Path, TiffMetadata]
) -> tuple[dict[int, Channel], dict[tuple[str, str, str], int]]:
    """Number -> channel, and the number of each read step, name and processing.

    Read steps that take one plane twice are channels of their own; else a channel is its name.
    """
    places = Counter((p.key, p.name, p.how, p.time, p.plane) for p in planes)
    twice = {(name, how) for (_, name, how, _, _), count in places.items() if count > 1}
    entities: dict[tuple[str, str, str], list[_Plane]] = defaultdict(list)
    for plane in planes:
        step = plane.step if (plane.name, plane.how) in twice else ""
        entities[plane.name, plane.how, step].append(plane)
    numbers: dict[tuple[str, str, str], int] = {}
    channels: dict[int, Channel] = {}
    hows = Counter(name for name, how in {(name, how) for name, how, _ in entities})
    for place, (name, how, step) in enumerate(sorted(entities)):
        own = entities[name, how, step]
        label = name + (f" {how}" if hows[name] > 1 and how else "") + (f" read {step}" if step else "")
        channels[place] = _channel(fields.unique(label, [c.name for c in channels.values()]), own, metadata)
        numbers |= {(plane.step, plane.name, plane.how): place for plane in own}
    return channels, numbers


def _channel(name: str, planes: Sequence[_Plane], metadata: Mapping[Path, TiffMetadata]) -> Channel:
    found = next((metadata[p.path] for p in planes if p.path in metadata), None)
    facts = found.facts if found and found.header.pages == 1 else {}
    lights = (facts.get(light, "").upper() == "TRUE" for light in ("BrightField", "PhaseContrast"))
    fluorescent = not any(lights) and not fields.is_transmitted(name)
    excitation, emission = (
        (number(facts.get(f"{what}Wavelength")) or None) if fluorescent else None
        for what in ("Excitation", "Emission")
    )
    return Channel(
        name, fluorescent, color_of(fluorescent, emission), excitation_nm=excitation, emission_nm=emission
    )


def _details(facts: Mapping[str, str]) -> dict[str, object]:
    named = {
        "instrument": "Gen5 (Cytation, Lionheart)",
        "software": f"Gen5 {facts.get('Version', '')}".strip(),
        "objective": facts.get("DisplayedObjectiveSize") or facts.get("ObjectiveSize", ""),
        "numerical aperture": facts.get("NumericalAperture", ""),
    }
    return {"reader": "gen5", **{name: text for name, text in named.items() if text}}
