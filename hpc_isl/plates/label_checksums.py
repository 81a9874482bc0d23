"""Checksums of labels' pixels: they tell which labels a person edited, and what a run has learnt from.

A checksum is kept with labels when they are written, and a hash of their files: as long as the files are the
same, no pixel need be decoded. Their names, sizes and dates say nothing, for an edit may leave these alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.label_groups import existing, find, label_folder, noted
from hpc_isl.plates.label_pixels import open_labels


def checksum(shape: tuple[int, ...], bands: Iterable[NDArray[np.uint32]]) -> str:
    """Hash of labels (t, y, x), given in raster order: of their pixels, however these are stored."""
    found = hashlib.sha256(str(tuple(shape)).encode())
    for band in bands:
        found.update(np.ascontiguousarray(band, "<u4").data)
    return found.hexdigest()[:32]


def files_digest(level: Path) -> str:
    """Hash of the files of one level, by name and content."""
    found = hashlib.sha256()
    for path in sorted(path for path in level.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(level)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:32]


def labels_checksum(image: Path, name: str) -> str:
    """Hash of the labels' pixels as they are now."""
    folder = existing(image, name)
    return _now(folder, noted(folder))


def edited(image: Path, name: str) -> bool | None:
    """Whether the labels' pixels are others than were written; None: no checksum was kept with them."""
    return label_state(image, name).edited


@dataclass(frozen=True)
class LabelState:
    """What one look at labels tells.

    Attributes:
        stamp: tells these labels from others: who made them, their boxes and their pixels.
        edited: as `edited` says.
    """

    stamp: str
    edited: bool | None


def label_state(image: Path, name: str) -> LabelState:
    """Reads the labels' files, and decodes them where they are not those that were written."""
    folder = existing(image, name)
    kept = noted(folder)
    now = _now(folder, kept)
    stamp = hashlib.sha256(repr((name, _about(kept), now)).encode()).hexdigest()
    return LabelState(stamp, now != kept["checksum"] if "checksum" in kept else None)


def _now(folder: Path, kept: Mapping[str, Any]) -> str:
    pixels = open_labels(folder)
    if kept.get("files") and kept["files"] == files_digest(pixels.level):
        return str(kept["checksum"])
    return checksum(pixels.shape, pixels.bands())


# ---------------------------------------------------------------- what depends on labels


def stamp(image: Path, name: str) -> str:
    """What tells these labels from others: who made them, their boxes and their pixels."""
    return label_state(image, name).stamp


def former_stamp(image: Path, name: str) -> str:
    """The same as runs noted it before checksums were of pixels: by names and sizes of files."""
    folder = existing(image, name)
    found = hashlib.sha256(repr((name, _about(noted(folder)))).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return found.hexdigest()


def _about(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kept.items() if key not in ("checksum", "files")}


# ---------------------------------------------------------------- what may be replaced


def refuse_edited(image: Path, name: str, same: Collection[str | None] = ()) -> None:
    """Labels may be replaced where no work goes with them: if they are as they were written.

    Args:
        same: checksums of other pixels that may be replaced: those that the new labels hold anyway, or were
            made from.

    Raises:
        UserError: a person edited them, or nobody knows.
    """
    folder = find(image, name)
    if folder is None:
        if label_folder(image, name).exists():
            raise UserError(f"{label_folder(image, name)}: holds no zarr.json; move it away first")
        return
    kept = noted(folder)
    try:
        now = _now(folder, kept)
    except UserError as mistake:
        raise UserError(f"{mistake}; what cannot be read is not replaced: move it away first") from None
    if now not in (kept.get("checksum"), *same):
        raise UserError(f"{image}: labels {name!r} {edits_stay('checksum' in kept)}")


def edits_stay(known: bool) -> str:
    """Why labels are not replaced, and what to do; `known`: they have a checksum, which differs."""
    edits = "were edited since they were written (their pixels are not those of their checksum)"
    unknown = (
        "have no checksum, as those of other programs or earlier versions: a person may have edited them"
    )
    return (
        f"{edits if known else unknown}; they are not replaced. Choose another labels=, or make them a "
        "person's: annotate export, then annotate import accept=true"
    )
