"""Cytation and Lionheart: TIFFs that Gen5 exports, A1_02_1_1_DAPI_001.tif and its kin, to an `Export`."""

# No export of Gen5 was at hand: names in three styles and the XML in each file (`gen5_facts`) are only read
# about, from public readers and published examples. Names place an image; channel, sizes, place,
# height, time and exposure are those that the file states. A read step that takes a channel again is a
# channel of its own.

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
    Problem,
    layout,
    normal_well,
)
from hpc_isl.plates.readers import export, fields, tiff_metadata
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.folder import Folder, left_out_by_name, list_folder
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata, number

_WELL = r"(?:.*/)?(?P<well>[A-Z]{1,2}\d{1,2})"
_NAMES = (
    # well, read step, channel's number, field, plane, channel, time
    re.compile(
        _WELL + r"(?:ROI(?P<roi>\d+))?_(?P<step>-?\d+)_\d+_(?P<field>\d+)(?:Z(?P<plane>\d+))?"
        r"_(?P<channel>[^/]+)_(?P<time>-?\d+)\.(?i:tiff?)"
    ),
    # well, field, plane, channel, channel's number, time
    re.compile(
        _WELL + r"(?P<roi>)(?P<step>)_(?P<field>-?\d+)(?:Z(?P<plane>\d+))?"
        r"_(?P<channel>[^/_]+)_\d+_(?P<time>-?\d+)_-?\d*\.(?i:tiff?)"
    ),
)
_PROCESSED = re.compile(r"(?P<how>[A-Za-z -]+)\[(?P<name>.*)\]")
_IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
ChannelId = tuple[str, str, str]
"""Read step, name and processing of a channel."""


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
    """Returns whether an image is named as Gen5 names them, and states so."""
    names = [name for name in below.files if _matched_name(name)]
    return tiff_metadata.source_of(below.root, names) == "Gen5"


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate of a folder, of one folder for each well too.

    Channels are in the order of their names, fields are the numbers of a montage. Positions are from the
    centre of the well. Of a channel that the camera took, what Gen5 made of it (stitched, projected,
    deconvolved) is left out; of a channel that exists only as such, it is kept.

    Raises:
        UserError: no image of Gen5, several plates, or no image that can be read.
    """
    below = list_folder(folder)
    matches = {name: match for name in sorted(below.files) if (match := _matched_name(name))}
    if not matches:
        raise UserError(f"{below.root}: no image of Gen5; names such as A1_02_1_1_DAPI_001.tif are expected")
    metadata, unreadable = tiff_metadata.read_all([below.root / name for name in matches])
    if not metadata:
        raise UserError(f"no image can be used; {next(iter(unreadable.values()))}")
    plate_names = {tiff.facts.get("Plate", "") for tiff in metadata.values()}
    export.check_one_plate(plate_names - {""}, below.root)
    planes, misplaced = _planes(below, matches, metadata)
    planes, processed_files = _without_processed(planes)
    channels, numbers = _channels(planes, metadata)
    unknown_files = [
        left_out_by_name(below.root, name, "unknown name")
        for name in sorted(below.files)
        if name not in matches and name.lower().endswith(_IMAGES)
    ]
    facts = next(iter(metadata.values())).facts
    details = {
        "instrument": "Gen5 (Cytation, Lionheart)",
        "software": f"Gen5 {facts.get('Version', '')}".strip(),
        "objective": facts.get("DisplayedObjectiveSize") or facts.get("ObjectiveSize", ""),
        "numerical aperture": facts.get("NumericalAperture", ""),
    }
    return export.build(
        [
            Described(p.key, p.path, p.time, numbers[p.step, p.name, p.how], p.plane, p.metadata, p.page)
            for p in planes
        ],
        channels,
        *tiff_metadata.sizes_and_edges(metadata),
        name=facts.get("Plate") or below.root.name,
        layout=layout,
        details={"reader": "gen5", **details},
        unreadable=unreadable,
        left_out=(*unknown_files, *processed_files),
        problems=misplaced,
        resample=resample,
    )


def _matched_name(name: str) -> re.Match[str] | None:
    return next(filter(None, (pattern.fullmatch(name) for pattern in _NAMES)), None)


# ---------------------------------------------------------------- planes


def _planes(
    below: Folder, matches: Mapping[str, re.Match[str]], metadata: Mapping[Path, TiffMetadata]
) -> tuple[list[_Plane], list[Problem]]:
    """Returns the planes of all files; those whose own well is another than their name's are problems."""
    planes: list[_Plane] = []
    problems: list[Problem] = []
    # A file that cannot be read is of the channel that the others of its label state.
    stated_names = {
        matches[name]["channel"]: tiff.planes[0].channel_name
        for name in matches
        if (tiff := metadata.get(below.root / name)) and tiff.header.pages == 1
    }
    for name, match in matches.items():
        path = below.root / name
        tiff = metadata.get(path)
        field = str(abs(int(match["field"]))) + (f"ROI{match['roi']}" if match["roi"] else "")
        key = FieldKey(normal_well(match["well"]), field)
        well = tiff.facts.get("Well", "") if tiff else ""
        if re.fullmatch(r"A?[A-Z]\d{1,2}", well) and normal_well(well) != key.well:
            problems.append(Problem(key, f"{path.name} says that it is of well {well}", "misplaced"))
            continue
        processed = _PROCESSED.fullmatch(match["channel"])
        label = processed["name"] if processed else match["channel"]
        how = processed["how"].strip() if processed else ""
        label = label if tiff else stated_names.get(match["channel"]) or label
        # Negative times are taken for the first one.
        first_plane, time = _first_plane(match, tiff), max(0, int(match["time"]))
        for page, plane in enumerate(tiff.planes if tiff else [PlaneMetadata()]):
            plane = replace(plane, projection=plane.projection or how)
            planes.append(
                _Plane(
                    path, page, key, match["step"] or "", plane.channel_name or label, plane.projection,
                    time + plane.time, first_plane + plane.plane, plane,
                )
            )  # fmt: skip
    if not planes:
        raise UserError(f"no image is where its name says; {problems[0].text}")
    return planes, problems


def _first_plane(match: re.Match[str], tiff: TiffMetadata | None) -> int:
    """Returns the plane number in the name; without one that which the file states, of a stack."""
    if match["plane"]:
        return int(match["plane"])
    if tiff is None or tiff.header.pages > 1:
        return 0
    total, plane = (number(tiff.facts.get(f"ZStack{name}")) for name in ("Total", "Position"))
    return int(plane) if total and total > 1 and plane else 0


def _without_processed(planes: Sequence[_Plane]) -> tuple[list[_Plane], list[LeftOut]]:
    """Returns the planes without those that Gen5 made of channels which the camera took, and these."""
    photographed = {plane.name for plane in planes if not plane.how}
    kept_planes = [plane for plane in planes if not plane.how or plane.name not in photographed]
    paths = {plane.path for plane in kept_planes}
    processed = {plane.path: plane for plane in planes if plane.path not in paths}
    return kept_planes, [LeftOut(path, p.how.lower(), p.key.well, p.name) for path, p in processed.items()]


# ---------------------------------------------------------------- channels


def _channels(
    planes: Sequence[_Plane], metadata: Mapping[Path, TiffMetadata]
) -> tuple[dict[int, Channel], dict[ChannelId, int]]:
    """Returns number -> channel, and the number of each read step, name and processing.

    Read steps that take one plane twice are channels of their own; else a channel is its name.
    """
    counts = Counter((p.key, p.name, p.how, p.time, p.plane) for p in planes)
    repeated = {(name, how) for (_, name, how, _, _), count in counts.items() if count > 1}
    members: dict[ChannelId, list[_Plane]] = defaultdict(list)
    for plane in planes:
        step = plane.step if (plane.name, plane.how) in repeated else ""
        members[plane.name, plane.how, step].append(plane)
    numbers: dict[ChannelId, int] = {}
    channels: dict[int, Channel] = {}
    variants = Counter(name for name, how in {(name, how) for name, how, _ in members})
    for index, (name, how, step) in enumerate(sorted(members)):
        channel_planes = members[name, how, step]
        label = name + (f" {how}" if variants[name] > 1 and how else "") + (f" read {step}" if step else "")
        channels[index] = _channel(
            fields.unique(label, [c.name for c in channels.values()]), channel_planes, metadata
        )
        numbers |= {(plane.step, plane.name, plane.how): index for plane in channel_planes}
    return channels, numbers


def _channel(name: str, planes: Sequence[_Plane], metadata: Mapping[Path, TiffMetadata]) -> Channel:
    tiff = next((metadata[p.path] for p in planes if p.path in metadata), None)
    facts = tiff.facts if tiff and tiff.header.pages == 1 else {}
    lights = (facts.get(light, "").upper() == "TRUE" for light in ("BrightField", "PhaseContrast"))
    excitation, emission = (number(facts.get(f"{kind}Wavelength")) for kind in ("Excitation", "Emission"))
    return fields.channel(name, excitation, emission, transmitted=any(lights))
