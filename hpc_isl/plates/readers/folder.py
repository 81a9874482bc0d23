"""The files below an export's folder, listed once, and those that are not stored, counted for reports.

Names that lead out of the folder are refused here.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import LeftOut, row_name

IMAGES = (".tif", ".tiff", ".png")

_PLAIN = re.compile(r"[\w(). -]*[\w)-]")
_ELSEWHERE = re.compile(r"[A-Za-z][\w+.-]*:")  # a drive or an address
_KINDS = (
    ("thumbnail", re.compile(r"thumb", re.IGNORECASE)),
    ("shading image", re.compile(r"(?:.*/)?(?:SC|DC)_")),
    ("projection", re.compile(r"max_?(?:project|ip)|(?<![A-Za-z])MIP(?![A-Za-z])|ZStep_0/", re.IGNORECASE)),
)
_WELL = re.compile(r"(?<![A-Za-z0-9])([A-P]|A[A-F])(\d{1,2})(?![A-Za-z0-9])|r(\d\d)c(\d\d)(?!\d)")
_CHANNEL = re.compile(r"_(w\d+)|(?<=\d)(C\d\d)\.|-(ch\d+)|channel,value-(\w+)", re.IGNORECASE)
_GUID = re.compile(r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}", re.IGNORECASE)
_SHOWN = 8


@dataclass(frozen=True)
class Folder:
    """The files below a folder.

    Attributes:
        root: the folder, with links in its own path resolved.
        files: paths of all files below it, relative, with forward slashes; hidden ones left out.
        leaving: links, to files or folders, that lead out of it; no file is reached through them.
    """

    root: Path
    files: frozenset[str]
    leaving: frozenset[str]

    def locate(self, name: str, origin: str) -> str:
        """`name`, as an index or a table gives it, as a path relative to the folder.

        The file need not be there. Backslashes separate folders, as Windows writes them.

        Raises:
            UserError: naming `origin` and the name, where it leads out of the folder.
        """
        if _PLAIN.fullmatch(name) and not self.leaving:
            return name
        path = PurePosixPath(name.replace("\\", "/"))
        if not name or "\0" in name or _ELSEWHERE.match(name) or path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{origin} names {name!r}: a file below {self.root} is expected; nothing else is opened"
            )
        for part in (path, *path.parents):
            if str(part) in self.leaving:
                raise UserError(
                    f"{origin} names {name!r}, and {self.root / part} is a link that leads out of {self.root}"
                )
        return str(path)


def list_folder(folder: Path) -> Folder:
    """All files below `folder`; links to folders are not followed.

    Raises:
        UserError: the folder is not there or cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    root = folder.resolve()
    files: set[str] = set()
    leaving: set[str] = set()
    stack = [""]
    while stack:
        below = stack.pop()
        for entry in _entries(root / below):
            name = below + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
                leaving.add(name)
            elif entry.is_dir(follow_symlinks=False):
                stack.append(name + "/")
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                files.add(name)
    return Folder(root, frozenset(files), frozenset(leaving))


def nearest_files(below: Folder, wanted: Callable[[str], bool]) -> list[str]:
    """Returns those files that lie nearest to the top, by name; `wanted` is asked in lower case."""
    names = [name for name in below.files if wanted(name.rpartition("/")[2].lower())]
    depth = min((name.count("/") for name in names), default=0)
    return sorted(name for name in names if name.count("/") == depth)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


# ---------------------------------------------------------------- files that are not stored


def unnamed(
    below: Folder, named: Iterable[Path], kind: Callable[[str], str] = lambda _: "not in the index"
) -> list[LeftOut]:
    """Returns the images that the index does not name; `kind` tells why of a path below the folder."""
    known = set(named)
    found = (name for name in sorted(below.files) if PurePosixPath(name).suffix.lower() in IMAGES)
    return [LeftOut(below.root / name, kind(name)) for name in found if below.root / name not in known]


def left_out_by_name(root: Path, name: str, kind: str) -> LeftOut:
    """The file below `root`; its name may tell a closer kind, and well and channel, for counting alone."""
    closer = next((said for said, pattern in _KINDS if pattern.search(name)), kind)
    well, channel = _WELL.search(name), _CHANNEL.search(_GUID.sub("", name))
    return LeftOut(
        root / name,
        closer,
        _well(well) if well else "",
        next(filter(None, channel.groups())) if channel else "",
    )


def left_out_lines(left_out: Iterable[LeftOut], root: Path) -> list[str]:
    """One line for each kind, how many there are of it by channel and by well, and one of them.

    >>> left_out_lines([LeftOut(Path("/a/x.tif"), "copy", "B03", "w1")], Path("/a"))
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
