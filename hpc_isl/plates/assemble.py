"""The planes of one field, read from their files and compared with each other before they are stored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.metadata import field_facts
from hpc_isl.plates.nodes import files_digest
from hpc_isl.plates.planes import Header, header, read_plane
from hpc_isl.plates.plate import Field, FieldKey, PlaneFile, PlaneIndex
from hpc_isl.plates.statistics import is_measured

Kind = tuple[str, int, int]  # dtype, y, x
T = TypeVar("T")
_SAMPLES = 5  # files of each channel that are read to know its type


@dataclass(frozen=True)
class Assembled:
    """A field as its files hold it.

    Attributes:
        field: with the files' type, and with those planes alone that could be read.
        pixels: (t, c, z, y, x); planes without a file are zeros.
        places: the planes that could be read.
        problems: what was wrong with the others.
    """

    field: Field
    pixels: NDArray[Any]
    places: frozenset[PlaneIndex]
    problems: tuple[str, ...] = ()


def usual_types(files: Mapping[FieldKey, Sequence[PlaneFile]]) -> dict[int, dict[int, str]]:
    """Returns acquisition -> channel -> dtype of most of some of its planes, of fields all over the plate."""
    first_files: dict[tuple[int, int], list[PlaneFile]] = {}
    for key, plane_files in files.items():
        by_channel: dict[int, PlaneFile] = {}
        for file in plane_files:
            by_channel.setdefault(file.channel, file)
        for channel, file in by_channel.items():
            first_files.setdefault((key.acquisition, channel), []).append(file)
    types: dict[int, dict[int, str]] = {}
    for (acquisition, channel), candidates in first_files.items():
        # Spread over the plate, because one well may have been imaged with other settings.
        step = max(1, (len(candidates) - 1) // (_SAMPLES - 1))
        kinds, _ = _kinds(candidates[::step][: _SAMPLES + 1])
        if kinds:
            types.setdefault(acquisition, {})[channel] = _most_common(kind[0] for kind in kinds.values())
    return types


def _most_common(kinds: Iterable[T]) -> T:
    return Counter(kinds).most_common(1)[0][0]


def assemble(
    field: Field,
    files: Sequence[PlaneFile],
    channels: Sequence[str],
    skip: bool = False,
    types: Mapping[int, str] | None = None,
) -> Assembled:
    """Returns the field's pixels, from one file per plane.

    Planes of one channel must agree in type, those of a field in shape. Channels of different types are
    widened to one that holds all their values.

    Args:
        channels: names of the plate's channels.
        skip: leave out planes that cannot be read or differ from the others.
        types: dtype of each channel's planes all over the plate; default: of most of the field's.

    Raises:
        UserError: naming every file that cannot be read, or whose plane differs from the others; with
            `skip` only where no plane is left.
    """
    kinds, problems = _kinds(files)
    usable, differing = _agreeing(kinds, field, types or {})
    problems += differing
    pixels: NDArray[Any] | None = None
    places: set[PlaneIndex] = set()
    dtype = np.result_type(*{kinds[file][0] for file in usable}) if usable else None
    if dtype is not None and not is_measured(dtype.name):
        types_text = ", ".join(sorted({kinds[file][0] for file in usable}))
        raise UserError(f"its channels are {types_text}, and no type of 32 bits holds the values of all")
    digests = _array_digests(usable)
    for file in usable:
        try:
            plane = read_plane(file.path, file.page, digest=digests.get(file.path, ""))
            if plane.dtype.kind == "f" and not np.isfinite(plane).all():
                raise UserError(f"{file.path}: some of its pixels are NaN or infinite")
            plane = plane if file.size is None else resampled(plane, (field.shape[3], field.shape[4]))
        except UserError as error:
            problems.append(str(error))
            continue
        if pixels is None:  # not before a plane was read: a field without planes needs no memory
            pixels = np.zeros(field.shape, dtype)
        pixels[file.place] = plane
        places.add(file.place)
    if pixels is None or (problems and not skip):
        raise UserError("; ".join(problems) or "no file holds any of its planes")
    field = replace(field, dtype=pixels.dtype.name).with_planes(places, channels)
    return Assembled(field, pixels, frozenset(places), tuple(problems))


def _kinds(files: Sequence[PlaneFile]) -> tuple[dict[PlaneFile, Kind], list[str]]:
    """Returns type and shape of each plane that can be read, and complaints about the others.

    Planes that will be resampled have the shape that they are expected to have in their file.
    """
    kinds: dict[PlaneFile, Kind] = {}
    problems = []
    headers: dict[Path, Header | UserError] = {}  # one for all planes of a file
    for file in files:
        if file.path not in headers:
            try:
                headers[file.path] = header(file.path)
            except UserError as error:
                headers[file.path] = error
        stated = headers[file.path]
        if isinstance(stated, UserError):
            problems.append(str(stated))
        else:
            kinds[file] = (stated.dtype, *stated.shape)
    return kinds, problems


def _array_digests(files: Sequence[PlaneFile]) -> dict[Path, str]:
    """Returns the digest of each array of OME-Zarr among files of several planes."""
    # For each plane anew, a field would cost the square of its planes in looks at files.
    counts = Counter(file.path for file in files)
    digests = {}
    for path, count in counts.items():
        if count > 1 and path.is_dir():
            with suppress(OSError):  # reading it names the fault
                digests[path] = files_digest(path)
    return digests


def _agreeing(
    kinds: Mapping[PlaneFile, Kind], field: Field, known_types: Mapping[int, str]
) -> tuple[list[PlaneFile], list[str]]:
    """Returns the planes that can be stored together, and complaints about the others.

    Shapes are those of most of the field's planes; types are `known_types`, or of most of the channel's.
    """
    if not kinds:
        return [], []
    # A field whose planes all have the type that its reader states is right as it is.
    if {kind[0] for kind in kinds.values()} == {field.dtype}:
        known_types = {}
    size = field.shape[3], field.shape[4]
    odd_sizes = [f"{file.path} is {_kind_text(kind)}, {file.size[0]} × {file.size[1]} are expected"
           for file, kind in kinds.items() if file.size is not None and kind[1:] != file.size]  # fmt: skip
    if odd_sizes:
        return [], odd_sizes
    kinds = {file: kind if file.size is None else (kind[0], *size) for file, kind in kinds.items()}
    shape = _most_common(kind[1:] for kind in kinds.values())
    if shape != field.shape[-2:]:
        usual_kind = _most_common(kinds.values())
        stated_kind = (usual_kind[0], *field.shape[-2:])
        return [], [f"its planes are {_kind_text(usual_kind)}, the export says {_kind_text(stated_kind)}"]
    types = {
        channel: known_types.get(channel)
        or _most_common(k[0] for f, k in kinds.items() if f.channel == channel)
        for channel in {file.channel for file in kinds}
    }
    usable, complaints = [], []
    for file, kind in kinds.items():
        usual_kind = (types[file.channel], *shape)
        if kind == usual_kind:
            usable.append(file)
        else:
            complaints.append(f"{file.path} is {_kind_text(kind)}, other planes are {_kind_text(usual_kind)}")
    return usable, complaints


def resampled(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Returns a plane (y, x) of another size: interpolated linearly, and smoothed before where it shrinks."""
    from skimage.transform import resize  # only where somebody asks for it

    shrinks = any(new_length < old_length for new_length, old_length in zip(size, plane.shape, strict=True))
    pixels: NDArray[Any] = resize(plane.astype(np.float64), size, order=1, mode="edge", anti_aliasing=shrinks)
    # Between the least and the greatest of the pixels, so that no integer overflows.
    is_integer = plane.dtype.kind in "iu"
    return (np.rint(pixels) if is_integer else pixels).astype(plane.dtype)


def inputs_digest(field: Field, files: Sequence[PlaneFile], *settings: Any) -> str:
    """Returns a hash of what an image is made of: the field, its files by name, size and time, and settings.

    Folders do not count: an export that was moved is the same. A file that is missing counts as such.
    """
    parts = []
    for file in files:
        size, modified = None, None
        with suppress(OSError):
            facts = file.path.stat()
            size, modified = facts.st_size, facts.st_mtime_ns
        part = [file.path.name, size, modified, file.time, file.channel, file.plane, file.page]
        parts.append(part if file.size is None else [*part, file.size])
    # Keys are not sorted: a reader that states details in another order makes its plates convert anew.
    content = json.dumps([field_facts(field), parts, *settings], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _kind_text(kind: Kind) -> str:
    return f"{kind[0]} of {kind[1]} × {kind[2]} pixels"
