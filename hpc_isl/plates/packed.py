"""Files of plates as they are read: those in folders, and those inside a packed plate, `NAME.ozx`.

A path may lead through a packed plate, as in `P01.ozx/B/02/0/zarr.json`. Readers ask here for what lies at
a path, so that all else need not know how a plate is kept. Nothing is ever written into a packed plate:
what is made of it goes to the folder beside it.
"""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from hpc_isl.errors import UserError
from hpc_isl.plate_home import PACKED, beside


@dataclass(frozen=True)
class _Archive:
    """An open archive: its entries by name, and the names in each of its folders."""

    file: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]
    folders: dict[str, list[str]]


def split(path: Path) -> tuple[Path, str] | None:
    """Returns the packed plate that a path leads to or through, and the rest of the path; None: to none."""
    if PACKED not in str(path):
        return None
    for place in (path, *path.parents):
        if place.name.endswith(PACKED) and place.is_file():
            inside = path.relative_to(place).as_posix()
            return place, "" if inside == "." else inside
    return None


def written_beside(path: Path) -> Path:
    """Returns where something at a path is written: for a packed plate in the folder beside it."""
    place = split(path)
    return beside(place[0]) / place[1] if place else path


def refuse_packed(path: Path, verb: str) -> None:
    """Checks that a plate is not packed.

    Raises:
        UserError: it is; says how it can be changed.
    """
    if place := split(path):
        raise UserError(
            f"{place[0]}: is packed, and a packed plate is only read: `unpack` it, {verb}, `pack` it again"
        )


def is_file(path: Path) -> bool:
    """Returns whether there is a file at a path."""
    place = split(path)
    return place[1] in _archive(place[0]).entries if place else path.is_file()


def is_dir(path: Path) -> bool:
    """Returns whether there is a folder at a path; a packed plate is one."""
    place = split(path)
    return place[1] in _archive(place[0]).folders if place else path.is_dir()


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file; raises an OSError where there is none."""
    place = split(path)
    if place is None:
        return path.read_bytes()
    archive = _archive(place[0])
    if place[1] not in archive.entries:
        raise FileNotFoundError(2, "No such file in the packed plate", str(path))
    try:
        return archive.file.read(archive.entries[place[1]])
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: is damaged: {error}") from None


def read_text(path: Path) -> str:
    """Returns the content of a text file in UTF-8; raises an OSError where there is none."""
    return read_bytes(path).decode() if split(path) else path.read_text()


def opened(path: Path) -> BinaryIO | Path:
    """Returns what a reader of binary files takes: the path of a file, or the content of a packed one."""
    return io.BytesIO(read_bytes(path)) if split(path) else path


def size(path: Path) -> int:
    """Returns the bytes of a file."""
    place = split(path)
    return _archive(place[0]).entries[place[1]].file_size if place else path.stat().st_size


def written_at(path: Path) -> int:
    """Returns when a file, or the packed plate that holds it, was written last, in ns."""
    place = split(path)
    return (place[0] if place else path).stat().st_mtime_ns


def folders_in(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted; of hidden ones, which are unfinished, none."""
    place = split(folder)
    if place:
        archive = _archive(place[0])
        names = archive.folders.get(place[1], [])
        folder_names = [name for name in names if f"{place[1]}/{name}".lstrip("/") in archive.folders]
    else:
        folder_names = (
            [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []
        )
    return sorted(name for name in folder_names if not name.startswith("."))


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, in the order of their paths."""
    place = split(folder)
    if place is None:
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())
        return
    start = f"{place[1]}/" if place[1] else ""
    names = [name for name in _archive(place[0]).entries if name.startswith(start)]
    yield from sorted(place[0] / name for name in names)


def kvstore(folder: Path) -> dict[str, Any]:
    """Returns where tensorstore finds the files of a folder."""
    place = split(folder)
    if place is None:
        return {"driver": "file", "path": f"{folder}/"}
    # A cache of its own keeps the directory of the archive, which each array would else read anew.
    base = {"driver": "file", "path": str(place[0])}
    return {"driver": "zip", "base": base, "path": f"{place[1]}/", "cache_pool": "cache_pool#packed"}


def _archive(path: Path) -> _Archive:
    facts = path.stat()
    return _opened(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns), os.getpid())


_OPENING = threading.Lock()


def _opened(path: Path, version: tuple[int, int, int], process: int) -> _Archive:
    with _OPENING:  # threads that want one plate wait until one of them has read its directory
        return _read_directory(path, version, process)


@lru_cache(maxsize=32)
def _read_directory(path: Path, version: tuple[int, int, int], process: int) -> _Archive:
    # A fork may not share the position in its parent's file, so each process has its own.
    try:
        file = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is no packed plate, or is cut short: {error}") from None
    entries = {entry.filename: entry for entry in file.infolist() if not entry.is_dir()}
    folders: dict[str, list[str]] = {"": []}
    known_names = set()
    for name in entries:
        while name and name not in known_names:
            known_names.add(name)
            above, _, last = name.rpartition("/")
            folders.setdefault(above, []).append(last)
            name = above
    return _Archive(file, entries, folders)
