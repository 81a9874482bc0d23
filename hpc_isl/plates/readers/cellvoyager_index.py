"""The `.mlf` index of a CellVoyager or a CQ3K: one record per image, and the errors it tells of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import well_name
from hpc_isl.plates.readers import xml
from hpc_isl.plates.readers.cellvoyager_settings import attributes
from hpc_isl.plates.readers.folder import Folder
from hpc_isl.plates.readers.plane_metadata import PlaneMetadata
from hpc_isl.plates.readers.quantities import moment, number

Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of the index.

    Attributes:
        well, field, time, channel, action, line, plane: the vendor's numbers.
        name: of the file.
    """

    name: str
    well: str
    field: int
    time: int
    channel: int
    action: int
    line: int
    plane: int
    metadata: PlaneMetadata

    @property
    def projection(self) -> str:
        return self.metadata.projection


def files(below: Folder) -> list[str]:
    """Returns the `.mlf` files that lie nearest to the top, by name."""
    found = [name for name in below.files if name.lower().endswith(".mlf")]
    depth = min((name.count("/") for name in found), default=0)
    return sorted(name for name in found if name.count("/") == depth)


def find(below: Folder) -> Path:
    """Returns the index of the measurement below a folder.

    Raises:
        UserError: there is none, or there are several.
    """
    found = files(below)
    if not found:
        raise UserError(f"{below.root}: no index of a CellVoyager; MeasurementData.mlf is expected")
    if len(found) > 1:
        raise UserError(
            f"{below.root} holds {len(found)} measurements ({', '.join(found[:5])}); give one as source"
        )
    return below.root / found[0]


def read(path: Path) -> tuple[list[Record], list[tuple[Facts, str]]]:
    """Returns the images of an index, and the errors that it tells of: facts and text.

    Raises:
        UserError: naming file and record: no XML, numbers that are none, no images.
    """
    records: list[Record] = []
    errors: list[tuple[Facts, str]] = []
    for _, element in xml.elements(path, {"MeasurementRecord"}):
        facts = attributes(element)
        text = (element.text or "").strip()
        if facts.get("Type") == "IMG":
            records.append(_record(facts, text, path))
        else:
            errors.append((facts, text))
    if not records:
        raise UserError(f"{path} names no images: a CellVoyager's index with at least one is expected")
    return records, errors


def _record(facts: Facts, name: str, path: Path) -> Record:
    origin = f"{path}: record of {name or '(no file)'}"
    row, column = _whole(facts, "Row", origin), _whole(facts, "Column", origin)
    if not (1 <= row <= 32 and 1 <= column <= 48):
        raise UserError(f"{origin}: row {row}, column {column}; at most 32 and 48 are expected")
    x, y = number(facts.get("X")), number(facts.get("Y"))
    return Record(
        name=name,
        well=well_name(row - 1, column - 1),
        field=_whole(facts, "FieldIndex", origin),
        time=_whole(facts, "TimePoint", origin, 1),
        channel=_whole(facts, "Ch", origin),
        action=_whole(facts, "ActionIndex", origin, 1),
        line=_whole(facts, "TimelineIndex", origin, 1),
        plane=_whole(facts, "ZIndex", origin, 1),
        metadata=PlaneMetadata(
            center_um=None if x is None or y is None else (-y, x),
            z_um=number(facts.get("Z")),
            moment=moment(facts.get("Time", "")),
            projection=facts.get("ZImageProcessing", ""),
        ),
    )


def _whole(facts: Facts, name: str, origin: str, default: int | None = None) -> int:
    text = facts.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{origin}: {name} is {text!r}; a whole number is expected")
    return int(text)
