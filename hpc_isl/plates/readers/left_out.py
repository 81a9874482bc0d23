"""Files of an export that are not stored: what their names tell, and how many of each kind, for reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from hpc_isl.plates.plate import LeftOut, row_name

_KINDS = (
    ("thumbnail", re.compile(r"thumb", re.IGNORECASE)),
    ("shading image", re.compile(r"(?:.*/)?(?:SC|DC)_")),
    ("projection", re.compile(r"max_?(?:project|ip)|(?<![A-Za-z])MIP(?![A-Za-z])|ZStep_0/", re.IGNORECASE)),
)
_WELL = re.compile(r"(?<![A-Za-z0-9])([A-P]|A[A-F])(\d{1,2})(?![A-Za-z0-9])|r(\d\d)c(\d\d)(?!\d)")
_CHANNEL = re.compile(r"_(w\d+)|(?<=\d)(C\d\d)\.|-(ch\d+)|channel,value-(\w+)", re.IGNORECASE)
_GUID = re.compile(r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}", re.IGNORECASE)
_SHOWN = 8


def of_name(root: Path, name: str, kind: str) -> LeftOut:
    """The file below `root`; its name may tell a closer kind, and well and channel, for counting alone."""
    closer = next((said for said, pattern in _KINDS if pattern.search(name)), kind)
    well, channel = _WELL.search(name), _CHANNEL.search(_GUID.sub("", name))
    return LeftOut(
        root / name,
        closer,
        _well(well) if well else "",
        next(filter(None, channel.groups())) if channel else "",
    )


def lines(left_out: Iterable[LeftOut], root: Path) -> list[str]:
    """One line for each kind, how many there are of it by channel and by well, and one of them.

    >>> lines([LeftOut(Path("/a/x.tif"), "copy", "B03", "w1")], Path("/a"))
    ['1 copy, e.g. x.tif; by channel: 1 w1; by well: 1 B03']
    """
    by_kind: dict[str, list[LeftOut]] = {}
    for left in left_out:
        by_kind.setdefault(left.kind, []).append(left)
    told = []
    for kind, found in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        line = f"{len(found):,} {kind}, e.g. {_below(found[0].path, root)}"
        for what in ("channel", "well"):
            if counted := _counted(getattr(left, what) for left in found):
                line += f"; by {what}: {counted}"
        told.append(line)
    return told


def _counted(names: Iterable[str]) -> str:
    counts = Counter(name for name in names if name)
    shown = [
        f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _well(match: re.Match[str]) -> str:
    letters, column = match[1], match[2]
    if letters:
        return f"{letters}{int(column):02d}"
    row, column = int(match[3]), match[4]
    return f"{row_name(row - 1)}{int(column):02d}" if 1 <= row <= 32 else ""


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
