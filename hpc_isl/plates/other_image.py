"""An image of an OME-Zarr plate of another program: axes, sizes, levels and channels as its metadata say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.plates.nodes import ArrayFacts, array_facts, ome_attributes
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.pyramid import count_levels
from hpc_isl.plates.readers.vendor_facts import micrometres_in
from hpc_isl.plates.statistics import is_measured

AXES = {"time": "t", "channel": "c"}  # by type, where the name is another
Transforms = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class OtherImage:
    """One image as its metadata describe it.

    Attributes:
        path: its folder below the plate.
        axes: of its arrays, one letter of tczyx each, or - for one that is dropped.
        paths, arrays: of its levels, the finest first.
        channels: name and colour of each.
        steps, places: distance of pixels, and place of the first one, along z, y and x in µm; None: unknown.
        remarks: what a person should read about it.
    """

    path: str
    key: FieldKey
    axes: tuple[str, ...]
    paths: tuple[str, ...]
    arrays: tuple[ArrayFacts, ...]
    channels: tuple[tuple[str, str], ...]
    steps: tuple[float | None, float | None, float | None]
    places: tuple[float | None, float | None, float | None]
    remarks: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(t, c, z, y, x) of level 0."""
        return self.shape_of(0)

    def shape_of(self, number: int) -> tuple[int, int, int, int, int]:
        lengths = dict(zip(self.axes, self.arrays[number].shape, strict=True))
        t, c, z, y, x = (lengths.get(axis, 1) for axis in "tczyx")
        return t, c, z, y, x

    @property
    def halves(self) -> bool:
        """Whether each of its levels halves y and x of the one before."""
        *rest, y, x = self.shape
        return all(self.shape_of(n) == (*rest, -(-y // 2**n), -(-x // 2**n)) for n in range(len(self.arrays)))

    def levels(self) -> tuple[str | None, ...]:
        """Returns the array of each level that halves y and x of the one before; None: it has none.

        One of another type than level 0 holds other values, and is none.
        """
        *rest, y, x = self.shape
        alike = [n for n, array in enumerate(self.arrays) if array.dtype == self.arrays[0].dtype]
        path_of = {self.shape_of(n): self.paths[n] for n in reversed(alike)}
        shapes = [(*rest, -(-y // 2**k), -(-x // 2**k)) for k in range(count_levels(self.shape, None))]
        return (self.paths[0], *(path_of.get(shape) for shape in shapes[1:]))


def read_image(path: Path, key: FieldKey, where: str) -> OtherImage:
    """Returns the image of the plate at `path` whose folder below it is `where`.

    Raises:
        UserError: its metadata miss what is needed, or state what is not read.
        KeyError, IndexError, TypeError, ValueError, AttributeError: they are damaged.
    """
    folder = path / where
    content = ome_attributes(folder)
    if not content.get("multiscales"):
        raise UserError(f"{folder}: has no multiscales, so it is no image")
    scales = content["multiscales"][0]
    paths = tuple(str(level["path"]) for level in scales["datasets"])
    first = array_facts(folder / paths[0])
    arrays = (first, *(array_facts(folder / path) for path in paths[1:]))
    if not is_measured(first.dtype):
        raise UserError(f"{folder}: holds {first.dtype}; integers up to 32 bits and floats are read")
    axes, units = _axes(folder, scales.get("axes"), first)
    transforms = (
        scales["datasets"][0].get("coordinateTransformations"),
        scales.get("coordinateTransformations"),
    )
    steps, places, remarks = _grid(axes, units, [entry for entry in transforms if entry])
    length = dict(zip(axes, first.shape, strict=True)).get("c", 1)
    entries = content.get("omero", {}).get("channels") or []
    return OtherImage(
        where, key, axes, paths, arrays, _named_channels(entries, length),
        (steps["z"], steps["y"], steps["x"]), (places["z"], places["y"], places["x"]), tuple(remarks),
    )  # fmt: skip


# ---------------------------------------------------------------- axes, scales, units


def _axes(folder: Path, stated_axes: Any, first: ArrayFacts) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the letter of each axis of the arrays, - for one that is dropped, and units by letter."""
    rank = len(first.shape)
    if stated_axes is None and rank == 5:  # 0.1 and 0.2 have these alone
        stated_axes = list("tczyx")
    entries = [entry if isinstance(entry, dict) else {"name": str(entry)} for entry in stated_axes or ()]
    names = [str(entry.get("name", "")) for entry in entries]
    if len(entries) != rank:
        raise UserError(f"{folder}: has the axes {names} for arrays of {rank} dimensions")
    letters = []
    for entry, name, length in zip(entries, names, first.shape, strict=True):
        letter = name.lower() if name.lower() in tuple("tczyx") else AXES.get(str(entry.get("type")), "")
        if not letter and length > 1:
            raise UserError(f"{folder}: has an axis {name!r} of {length}; t, c, z, y and x are read")
        letters.append(letter or "-")
    kept_letters = [letter for letter in letters if letter != "-"]
    if len(set(kept_letters)) < len(kept_letters) or not {"y", "x"} <= set(kept_letters):
        raise UserError(f"{folder}: has the axes {names}; y and x are needed, and each axis once")
    units = {letter: str(entry.get("unit") or "") for letter, entry in zip(letters, entries, strict=True)}
    return tuple(letters), units


Lengths = dict[str, float | None]


def _grid(
    axes: Sequence[str], units: Mapping[str, str], transforms: Sequence[Transforms]
) -> tuple[Lengths, Lengths, list[str]]:
    """Returns the distance of pixels and the place of the first one along z, y and x in µm, and remarks."""
    step, first = np.ones(len(axes)), np.zeros(len(axes))
    stated = False
    # Those of the level come first.
    for transform in (transform for group in transforms for transform in group):
        values = transform.get(str(transform.get("type")))
        if isinstance(values, list) and len(values) == len(axes):
            numbers = np.array(values, float)
            step, first = (
                (step * numbers, first * numbers) if transform["type"] == "scale" else (step, first + numbers)
            )
            stated = True
    steps: Lengths = dict.fromkeys("zyx")
    places: Lengths = dict.fromkeys("zyx")
    remarks = []
    for i, axis in enumerate(axes):
        if axis not in "zyx" or not stated or not step[i] > 0 or not math.isfinite(step[i] + first[i]):
            continue
        if factor := micrometres_in(units[axis]):
            steps[axis], places[axis] = float(step[i]) * factor, float(first[i]) * factor
        elif axis == "x" and step[i] != 1:
            unit = f"the unit {units[axis]!r}" if units[axis] else "no unit"
            remarks.append(
                f"its pixels have a scale of {step[i]:g} and {unit}: their size is taken as unknown; if "
                f"these are micrometres: set PLATE pixel_um={step[i]:g}"
            )
    return steps, places, remarks


def _named_channels(entries: Sequence[Mapping[str, Any]], length: int) -> tuple[tuple[str, str], ...]:
    """Returns name and colour of each channel of an image; without a name it is called by its number."""
    channels: list[tuple[str, str]] = []
    for number in range(length):
        entry = entries[number] if number < len(entries) else {}
        name = str(entry.get("label") or f"channel {number}")
        names = [earlier for earlier, _ in channels]
        color = str(entry.get("color") or "").lstrip("#")[:6].upper()
        color = color if re.fullmatch(r"[0-9A-F]{6}", color) else "FFFFFF"
        channels.append((name if name not in names else f"{name} ({number})", color))
    return tuple(channels)
