"""A finished plate as one file, `NAME.ozx`, and back: zipped OME-Zarr as RFC-9 of OME-NGFF proposes it.

Entries are not compressed, because chunks are. All `zarr.json` come first, those nearer to the root before
those below, so that a reader knows the plate from the beginning of the file. Text of the proposal:
https://ngff.openmicroscopy.org/rfc/9/index.html
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from hpc_isl.errors import UserError
from hpc_isl.plate_home import PACKED, beside
from hpc_isl.plates import metadata, ngff, packed
from hpc_isl.plates.atomic_directory import (
    MARK,
    OLD,
    atomic_directory,
    leftovers,
    translate_write_errors,
    unused,
    unwritable,
)
from hpc_isl.plates.label_groups import label_paths
from hpc_isl.plates.store import open_plate

# As the proposal's implementations write it.
COMMENT = {"ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}}
BLOCK = 1 << 22
BEGINNING = (1980, 1, 1, 0, 0, 0)  # of ZIP's time: the same plate gives the same bytes


@dataclass(frozen=True)
class Packed:
    """The file or folder that was made, the number of its entries, and their bytes."""

    path: Path
    entries: int
    size: int


def pack(plate: Path, out: Path | None = None) -> Packed:
    """Writes a finished plate as one file beside it, or at `out`; the plate stays as it is.

    The file gets its name when every entry was read back and compared with the plate. A kill at any moment
    leaves no file of that name, or a whole one.

    Raises:
        UserError: no finished plate, one that a run uses just now, an existing file, or one that differs.
    """
    plate = plate.expanduser().absolute()
    index = open_plate(plate)  # makes a missing index anew
    if index.adopted:
        raise UserError(f"{index.adopted}: is a plate of another program; convert it, and pack that")
    packed.refuse_packed(plate, "change it")
    target = (out or plate.with_name(plate.name.removesuffix(".zarr") + PACKED)).expanduser().absolute()
    if target.suffix != PACKED:
        raise UserError(f"out={out}: a packed plate is called NAME{PACKED}, as in {target.name}{PACKED}")
    if target.is_relative_to(plate):
        raise UserError(f"out={out}: lies in the plate itself; choose a place outside")
    if target.exists():
        raise UserError(f"{target}: exists already; move it away, or choose another name with out=")
    if reason := unwritable(target.parent):
        raise UserError(f"{reason}; choose another place with out=")
    with unused(plate):
        names = _files(plate)
        size = sum((plate / name).stat().st_size for name in names)
        partial = target.with_name(f".{target.name}{MARK}-{os.getpid()}-{secrets.token_hex(4)}")
        with translate_write_errors(target.parent, size):
            for file in target.parent.glob(f".{target.name}{MARK}-*"):  # one process packs a plate at a time
                file.unlink()
            try:
                _write(partial, plate, names)
                _compare(partial, plate, names)
                os.rename(partial, target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    return Packed(target, len(names), target.stat().st_size)


def remove_original(plate: Path) -> None:
    """Removes a plate that was packed; under another name first, so that no half of it looks like a plate."""
    plate = plate.expanduser().absolute()
    with unused(plate):
        hidden = plate.with_name(f".{plate.name}{OLD}{os.getpid()}")
        os.rename(plate, hidden)
    shutil.rmtree(hidden)


def _files(plate: Path) -> list[str]:
    """Returns the names of a plate's files below it, in the order of the proposal."""
    if partial := leftovers(plate):
        raise UserError(f"{partial[0]}: was left by a killed process; resume what wrote it, then pack")
    names = []
    for folder, folders, files in os.walk(plate):
        for name in folders:
            if (path := Path(folder, name)).is_symlink():
                raise UserError(f"{path}: is a link to a folder; a packed plate holds no links")
        subfolder = Path(folder).relative_to(plate).as_posix()
        # Locks are of this folder; what is hidden was never finished.
        names += [
            str(PurePosixPath(subfolder, name))
            for name in files
            if not name.startswith(".") and not name.endswith(".lock")
        ]
    hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    return sorted(set(names) - set(hidden), key=_order)


def _order(name: str) -> tuple[bool, int, str]:
    """Sorts `zarr.json` files first, breadth-first from the root's on, then all else by name."""
    is_group = name.rpartition("/")[2] == "zarr.json"
    return not is_group, name.count("/") if is_group else 0, name


def _write(path: Path, plate: Path, names: Sequence[str]) -> None:
    with path.open("xb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in names:
                entry = zipfile.ZipInfo(name, BEGINNING)
                entry.external_attr = 0o644 << 16
                entry.file_size = (plate / name).stat().st_size  # says whether it needs ZIP64
                with (plate / name).open("rb") as source, archive.open(entry, "w") as sink:
                    shutil.copyfileobj(source, sink, BLOCK)
            archive.comment = json.dumps(COMMENT).encode()
        stream.flush()
        os.fsync(stream.fileno())


def _compare(path: Path, plate: Path, names: Sequence[str]) -> None:
    """Reads every entry back, and compares it with the plate's file, and the list of files with its own."""
    with zipfile.ZipFile(path) as archive:
        same = [entry.filename for entry in archive.infolist()] == list(names) == _files(plate)
        for entry in archive.infolist() if same else ():
            with archive.open(entry) as copy, (plate / entry.filename).open("rb") as original:
                same = same and _digest(copy) == _digest(original)
    if not same:
        raise UserError(f"{plate}: changed while it was packed, or the disk is faulty: nothing was made")


def _digest(stream: IO[bytes]) -> bytes:
    return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]


# ---------------------------------------------------------------- and back


def unpack(path: Path, out: Path | None = None) -> Packed:
    """Writes a packed plate as a folder, with the labels that were made beside it since; the file stays.

    Raises:
        UserError: no packed plate, a damaged one, entries that lead outside, or an existing target.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{path}: there is no such packed plate")
    target = (out or path.with_suffix(".zarr")).expanduser().absolute()
    if target.exists():
        raise UserError(f"{target}: exists already; move it away, or choose another name with out=")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = list(_checked_entries(path, archive))
            size = sum(entry.file_size for entry in entries)
            with atomic_directory(target, size) as folder:
                for entry in entries:
                    place = folder / entry.filename
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as source, place.open("xb") as sink:
                        shutil.copyfileobj(source, sink, BLOCK)
                _add_labels(beside(path), folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: is no packed plate, or is damaged: {error}; nothing was made") from None
    return Packed(target, len(entries), size)


def _checked_entries(path: Path, archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """Yields the files of an archive.

    Raises:
        UserError: one leads outside, is a link, or stands there twice; or there is no plate.
    """
    seen = set()
    for entry in archive.infolist():
        name = entry.filename
        parts = name.removesuffix("/").split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in parts[0] or "\0" in name:
            raise UserError(f"{path}: holds {name!r}, which leads outside of the plate; nothing was made")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(f"{path}: holds {name!r}, a link; nothing was made")
        if name in seen:
            raise UserError(f"{path}: holds {name!r} twice; nothing was made")
        seen.add(name)
        if not entry.is_dir():
            yield entry
    if "zarr.json" not in seen:
        raise UserError(f"{path}: holds no zarr.json at its root, so it is no packed plate; nothing was made")


def _add_labels(home: Path, plate: Path) -> None:
    """Copies labels from the folder beside a packed plate; those of one name replace the packed ones."""
    for labels in sorted(home.glob("*/*/*/labels")):
        place = plate / labels.relative_to(home)
        for path in label_paths(labels):
            shutil.rmtree(place / path, ignore_errors=True)
            shutil.copytree(labels / path, place / path)
        metadata.write_group(place, ngff.attributes(ngff.labels_group(label_paths(place))))
