"""The files below an export's folder, listed once, and those that are not stored, counted for reports.

Names that lead out of the folder are refused here.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import MOST_ROWS, LeftOut, row_name

IMAGES = (".tif", ".tiff", ".png")

_PLAIN = re.compile(r"[\w(). -]*[\w)-]")
_ELSEWHERE = re.compile(r"[A-Za-z][\w+.-]*:")  # a drive or an address
_KINDS = (
    ("thumbnail", re.compile(r"thumb", re.IGNORECASE)),
    ("shading image", re.compile(r"(?:.*/)?(?:SC|DC)_")),
    ("projection", re.compile(r"max_?(?:project|ip)|(?<![A-Za-z])MIP(?![A-Za-z])|ZStep_0/", re.IGNORECASE)),
)
_WELL = re.compile(r"(?<![A-Za-z0-9])([A-Z]|A[A-F])(\d{1,2})(?![A-Za-z0-9])|r(\d\d)c(\d\d)(?!\d)")
_CHANNEL = re.compile(r"_(w\d+)|(?<=\d)(C\d\d)\.|-(ch\d+)|channel,value-(\w+)", re.IGNORECASE)
_GUID = re.compile(r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}", re.IGNORECASE)
_SHOWN = 8


@dataclass(frozen=True)
class Folder:
    """All files below a folder.

    Attributes:
        root: the folder, with links in its own path resolved.
        files: paths of all files below it, relative, with forward slashes; hidden ones left out.
        leaving: links, to files or folders, that lead out of it; no file is reached through them.
    """

    root: Path
    files: frozenset[str]
    leaving: frozenset[str]

    def locate(self, name: str, origin: str) -> str:
        """Returns `name`, as an index or a table gives it, as a path relative to the folder.

        The file need not exist. Backslashes separate folders, as Windows writes them.

        Raises:
            UserError: naming `origin` and the name, where it leads out of the folder.
        """
        if _PLAIN.fullmatch(name) and not self.leaving:  # quick: an index names 200,000 files
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

    def named(self, name: str) -> str:
        """Returns the file of this name in any case of letters, as Windows finds it; else the name itself."""
        return name if name in self.files else self.by_lower.get(name.lower(), name)

    @cached_property
    def by_lower(self) -> dict[str, str]:
        """Name in lower case -> name."""
        return {name.lower(): name for name in self.files}

    def missing(self, names: Iterable[str]) -> dict[Path, str]:
        """Returns a clause on each of these files that does not exist."""
        return {self.root / name: f"{name} is missing" for name in names if name not in self.files}


def list_folder(folder: Path) -> Folder:
    """Returns all files below `folder`; links to folders are not followed.

    Raises:
        UserError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    root = folder.resolve()
    files: set[str] = set()
    leaving: set[str] = set()
    stack = [""]
    while stack:
        below = stack.pop()
        try:
            with os.scandir(root / below) as scan:
                entries = list(scan)
        except OSError as error:
            raise UserError(f"{root / below} cannot be listed: {error.strerror}") from None
        for entry in entries:
            name = below + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
                leaving.add(name)
            elif entry.is_dir(follow_symlinks=False):
                stack.append(name + "/")
            # Only for a link the file system is asked again: an export has up to 200,000 files.
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                files.add(name)
    return Folder(root, frozenset(files), frozenset(leaving))


def nearest_file(below: Folder, ending: str, contents: str) -> str:
    """Returns the file with this ending that lies nearest to the top; "" where there is none.

    Raises:
        UserError: there are several, and so several `contents`, as exports.
    """
    names = nearest_files(below, lambda name: name.endswith(ending))
    if len(names) > 1:
        examples = ", ".join(names[:5])
        raise UserError(f"{below.root} holds {len(names)} {contents} ({examples}); give one as source")
    return names[0] if names else ""


def nearest_files(below: Folder, wanted: Callable[[str], bool]) -> list[str]:
    """Returns those files that lie nearest to the top, by name; `wanted` is asked in lower case."""
    names = [name for name in below.files if wanted(name.rpartition("/")[2].lower())]
    depth = min((name.count("/") for name in names), default=0)
    return sorted(name for name in names if name.count("/") == depth)


# ---------------------------------------------------------------- files that are not stored


def unnamed(
    below: Folder, named: Iterable[Path], kind: Callable[[str], str] = lambda _: "not in the index"
) -> list[LeftOut]:
    """Returns the images that the index does not name; `kind` returns why, from a path below the folder."""
    named_paths = set(named)
    images = (name for name in sorted(below.files) if PurePosixPath(name).suffix.lower() in IMAGES)
    return [LeftOut(below.root / name, kind(name)) for name in images if below.root / name not in named_paths]


def left_out_by_name(root: Path, name: str, kind: str) -> LeftOut:
    """Returns a file below `root`; its name may state a closer kind, and well and channel for counts."""
    # A GUID may contain what looks like a channel.
    closer = next((closer for closer, pattern in _KINDS if pattern.search(name)), kind)
    match, channel, well = _WELL.search(name), _CHANNEL.search(_GUID.sub("", name)), ""
    if match and match[1]:
        well = f"{match[1]}{int(match[2]):02d}"
    elif match and 1 <= int(match[3]) <= MOST_ROWS:
        well = f"{row_name(int(match[3]) - 1)}{int(match[4]):02d}"
    return LeftOut(root / name, closer, well, next(filter(None, channel.groups())) if channel else "")


def left_out_lines(left_out: Iterable[LeftOut], root: Path) -> list[str]:
    """Returns one line for each kind: its number, an example, and counts by channel and by well.

    >>> left_out_lines([LeftOut(Path("/a/x.tif"), "copy", "B03", "w1")], Path("/a"))
    ['1 copy, e.g. x.tif; by channel: 1 w1; by well: 1 B03']
    """
    by_kind: dict[str, list[LeftOut]] = {}
    for left in left_out:
        by_kind.setdefault(left.kind, []).append(left)
    lines = []
    for kind, files in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        path = files[0].path
        example = path.relative_to(root) if path.is_relative_to(root) else path.name
        line = f"{len(files):,} {kind}, e.g. {example}"
        for part in ("channel", "well"):
            counts = Counter(name for file in files if (name := getattr(file, part)))
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            if texts := [f"{count:,} {name}" for name, count in ranked]:
                remainder = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
                line += f"; by {part}: {', '.join(texts[:_SHOWN])}{remainder}"
        lines.append(line)
    return lines
