"""The planes of one field, read from their files and checked against each other: what a store is fed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.mistake import Mistake
from hpc_isl.plates.metadata import field_facts
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import Field, PlaneFile
from hpc_isl.plates.statistics import Place

Kind = tuple[str, int, int]  # dtype, y, x


def assemble(field: Field, files: Sequence[PlaneFile]) -> tuple[Field, NDArray[Any]]:
    """The field's pixels (t, c, z, y, x); planes without a file are zeros.

    The type is the files' own: where it is not the one that the field states, the field is corrected.

    Raises:
        Mistake: naming every file that cannot be read, or whose plane differs from the others.
    """
    pixels: NDArray[Any] | None = None
    kinds: dict[Kind, list[PlaneFile]] = {}
    problems: list[str] = []
    for file in files:
        try:
            plane = read_plane(file.path, file.page)
        except Mistake as error:
            problems.append(str(error))
            continue
        kinds.setdefault((plane.dtype.name, *plane.shape), []).append(file)
        if pixels is None:
            pixels = np.zeros(field.shape, plane.dtype)
        if len(kinds) == 1 and plane.shape == pixels.shape[-2:]:
            pixels[file.time, file.channel, file.plane] = plane
    problems += _differing(kinds, field)
    if problems or pixels is None:
        raise Mistake("; ".join(problems) or "no file holds any of its planes")
    return replace(field, dtype=pixels.dtype.name), pixels


def _differing(kinds: Mapping[Kind, list[PlaneFile]], field: Field) -> list[str]:
    """Complaints about planes that are not as most of the field's are, or as the export says they are."""
    if not kinds:
        return []
    usual = max(kinds, key=lambda kind: len(kinds[kind]))
    complaints = [
        f"{file.path} is {_said(kind)}, the field's other planes are {_said(usual)}"
        for kind, odd in kinds.items()
        for file in odd
        if kind != usual
    ]
    if usual[1:] != field.shape[-2:]:
        stated = (usual[0], *field.shape[-2:])
        complaints.append(f"its planes are {_said(usual)}, the export says {_said(stated)}")
    return complaints


def places(files: Sequence[PlaneFile]) -> set[Place]:
    """The planes that have a file."""
    return {(file.time, file.channel, file.plane) for file in files}


def inputs_digest(field: Field, files: Sequence[PlaneFile], *settings: Any) -> str:
    """Hash of what an image is made of: the field, its files by name, size and time, and settings.

    Folders do not count: an export that was moved is the same.
    """
    parts = []
    for file in files:
        try:
            facts = file.path.stat()
        except OSError as error:
            raise Mistake(f"{file.path}: {error.strerror}") from None
        where = [file.time, file.channel, file.plane, file.page]
        parts.append([file.path.name, facts.st_size, facts.st_mtime_ns, *where])
    text = json.dumps([field_facts(field), parts, *settings], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _said(kind: Kind) -> str:
    return f"{kind[0]} of {kind[1]} × {kind[2]} pixels"
