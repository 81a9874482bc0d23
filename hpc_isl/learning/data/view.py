"""From a plate's stored pixels to what a network sees.

The view states this for any plate, as part of the model's contract; a `Plane` is one plane on disk, of which
a box is read, corrected and normalised here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import (
    Box,
    Pixels,
    Profile,
    gain,
    grown,
    normalise,
    numbers,
    project,
    subtract_box_mean,
)
from hpc_isl.plates.store import read_box
from hpc_isl.recipes.training import NormalizeRecipe

MEASURED_EDGE = 1024
Numbers = tuple[float, float]
"""Offset and scale: pixels become (x - offset) / scale."""


@dataclass(frozen=True)
class Role:
    """One input or output of the network, on any plate.

    Attributes:
        plane: a number, max, mean, min, focus, or an offset from focus, as in PlaneRecipe.
        numbers: offset and scale of a target's training wells; None: each field's own.
    """

    channel: str
    plane: int | str
    acquisition: int | None = None
    numbers: Numbers | None = None


@dataclass(frozen=True)
class Foreground:
    """A crop must hold at least `fraction` of pixels above `threshold`, in stored counts of the role.

    A threshold of None is Otsu's of each field.
    """

    role: Role
    threshold: float | None
    fraction: float


def same_pixel_size(first: float, second: float) -> bool:
    """Returns whether two edges of pixels are equal, within 5 %: instruments round them."""
    return isclose(first, second, rel_tol=0.05)


@dataclass(frozen=True)
class View:
    """How stored pixels become network arrays; the same for crops and whole fields, on any plate.

    Attributes:
        level: of the pyramid, on the plates it was made for.
        pixel_um: edge of a pixel of that level in micrometres, or None: unknown.
        flat_field: none, vendor (each plate's own) or estimated.
        profiles: channel -> estimated profile.
        normalize: the recipe's; the numbers it led to are in `targets`.
        foreground: None where any crop will do.
    """

    sources: tuple[Role, ...]
    targets: tuple[Role, ...]
    level: int = 0
    pixel_um: float | None = None
    flat_field: str = "none"
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    normalize: NormalizeRecipe = field(default_factory=NormalizeRecipe)
    foreground: Foreground | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON; `from_dict` reads it back to an equal view."""
        return asdict(self) | {"normalize": self.normalize.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> View:
        def role(entry: Mapping[str, Any]) -> Role:
            numbers = entry["numbers"]
            return Role(**{**entry, "numbers": numbers and tuple(numbers)})  # JSON turns tuples into lists

        foreground = content["foreground"]
        values = {
            "sources": tuple(map(role, content["sources"])),
            "targets": tuple(map(role, content["targets"])),
            "normalize": NormalizeRecipe.model_validate(content["normalize"]),
            "foreground": foreground and Foreground(**{**foreground, "role": role(foreground["role"])}),
        }
        return cls(**{**content, **values})


@dataclass(frozen=True)
class Plane:
    """A plane on disk, and how its pixels are corrected and normalised.

    Attributes:
        name: plate, field and channel, for messages.
        shape: (y, x) at `level`.
        shift: (y, x) in pixels of `level`, added to the places of boxes: the plane is of another acquisition,
            in which the plate lay elsewhere.
        depth: number of levels of the image.
        planes, projection: z positions read, and how they become one (max, mean, min; "" for one plane).
        profile: flat-field profile by which pixels are divided, or None.
        local_px: edge of the box mean that is subtracted, in pixels of `level`; 0: none.
        kind, low, high: of normalisation, as in NormalizeRecipe.
        numbers: of normalisation; None: measured on this plane after its corrections.
    """

    name: str
    image: Path
    level: int
    depth: int
    shape: tuple[int, int]
    time: int
    channel: int
    planes: tuple[int, ...]
    projection: str = ""
    profile: Profile | None = None
    local_px: int = 0
    kind: str = "none"
    low: float = 1.0
    high: float = 99.0
    clip: float | None = None
    numbers: Numbers | None = None
    shift: tuple[int, int] = (0, 0)

    @property
    def place(self) -> tuple[object, ...]:
        """Everything that determines the stored counts."""
        return self.image, self.level, self.time, self.channel, self.planes, self.projection, self.shift

    @property
    def whole(self) -> Box:
        return slice(0, self.shape[0]), slice(0, self.shape[1])


def counts(plane: Plane, box: Box) -> Pixels:
    """Returns the stored pixels of a box, projected: (y, x), in counts.

    Where a shifted box leaves the plane, the nearest pixel of the plane is repeated.
    """
    moved_box = shifted(box, plane.shift)
    rows, columns = (
        np.clip(np.arange(side.start, side.stop), 0, length - 1)
        for side, length in zip(moved_box, plane.shape, strict=True)
    )
    window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    try:
        stack = read_box(plane.image, plane.level, plane.time, plane.channel, list(plane.planes), *window)
    except UserError as error:
        raise UserError(f"{plane.name}: {error}") from None
    pixels = project(stack, plane.projection)
    return pixels if window == moved_box else pixels[np.ix_(rows - rows[0], columns - columns[0])]


def shifted(box: Box, shift: tuple[int, int]) -> Box:
    """Returns the box moved by a shift (y, x)."""
    y, x = (slice(side.start + step, side.stop + step) for side, step in zip(box, shift, strict=True))
    return y, x


def partnered(plane: Plane) -> Box:
    """Returns the box of places that a shifted plane shows, in the frame in which boxes are given."""
    y, x = (
        slice(max(0, -step), min(length, length - step))
        for step, length in zip(plane.shift, plane.shape, strict=True)
    )
    return y, x


def common(*boxes: Box) -> Box:
    """Returns the box that all boxes share; where there is none, its end lies before its start."""
    y, x = (
        slice(max(side.start for side in sides), min(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
    return y, x


def corrected(plane: Plane, box: Box, stored: Pixels | None = None) -> Pixels:
    """Returns counts over the flat-field profile, minus the box mean, of a box (y, x).

    Args:
        stored: `counts` of the same box, if they were read already.
    """
    # A margin, so that the box mean in a crop equals that in the whole plane.
    window, cut = grown(box, plane.local_px // 2 + 1, plane.shape) if plane.local_px else (box, ())
    # Counts that were read already lack the margin of a box mean.
    pixels = counts(plane, window) if stored is None or plane.local_px else stored
    if plane.profile is not None:
        # Illumination is the camera's, wherever the plate lay.
        pixels = pixels / gain(plane.profile, plane.shape, shifted(window, plane.shift))
    return subtract_box_mean(pixels, plane.local_px)[cut] if plane.local_px else pixels


def normalised(plane: Plane, box: Box, stored: Pixels | None = None) -> Pixels:
    """Returns what the network sees of a box of a plane: (y, x) float32."""
    offset, scale = plane.numbers or measured(plane)
    return normalise(corrected(plane, box, stored), offset, scale, plane.clip)


# Crops of a plane are read again and again; its numbers are measured once.
_MEASURED: dict[tuple[object, ...], Numbers] = {}


def measured(plane: Plane) -> Numbers:
    """Returns offset and scale of the corrected plane; computed once per process.

    They come from the first level, not finer than the plane's own, whose longer edge is at most 1024 pixels.
    """
    key = (*plane.place, repr(plane.profile), plane.local_px, plane.kind, plane.low, plane.high)
    if key not in _MEASURED:
        _MEASURED[key] = numbers(plane.kind, measured_pixels(plane), plane.low, plane.high)
    return _MEASURED[key]


def measured_pixels(plane: Plane) -> Pixels:
    """Returns the corrected whole plane at the level on which it is measured."""
    small = smallest(replace(plane, shift=(0, 0)), MEASURED_EDGE)
    return corrected(small, small.whole)


def smallest(plane: Plane, enough: int = 0) -> Plane:
    """Returns the plane at the first level whose longer edge is at most `enough`, or at the last level."""
    while plane.level + 1 < plane.depth and max(plane.shape) > enough:
        # The box mean covers the same area on a pixel of twice the edge.
        edge = -(-plane.local_px // 2)
        y, x = (round(step / 2) for step in plane.shift)
        plane = replace(
            plane, level=plane.level + 1, shape=halved_shape(plane.shape), local_px=edge, shift=(y, x)
        )
    return plane


def halved_shape(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // 2), -(-shape[1] // 2)


def stack(planes: tuple[Plane, ...], box: Box, stored: Mapping[tuple[object, ...], Pixels] = {}) -> Pixels:
    """Returns the planes of one field as (c, y, x); `stored` counts, by place, are not read again."""
    return np.stack([normalised(plane, box, stored.get(plane.place)) for plane in planes])
