"""Flat-field profiles of uneven illumination, the vendor's or estimated, by which planes are divided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError

DEGREE = 4
# Below this a polynomial is beyond what a lens does, and dividing by it would only amplify noise.
DARKEST = 0.1

Profile = Mapping[str, Any]
"""{Type: Polynomial, Coefficients, Origin, Scale, Dims}, as Harmony writes it, or {Type: Identity}."""


def vendor_profile(background: Mapping[str, Any] | None, channel: str) -> Profile:
    """Returns the profile inside the `Background` entry of Harmony's FlatfieldProfile.

    Raises:
        UserError: the index states none for this channel, or one of a type that is not known.
    """
    profile: Profile = (background or {}).get("Profile") or background or {}
    kind = profile.get("Type")
    if kind == "Identity" or (kind == "Polynomial" and "Coefficients" in profile):
        return profile
    raise UserError(
        f"channel {channel!r}: the plate states no flat-field profile that can be used ({kind or 'none'}); "
        "say data.flat_field=estimated or none"
    )


def gain(profile: Profile, shape: tuple[int, int], box: tuple[slice, slice]) -> NDArray[np.float32]:
    """Returns the divisor of the pixels of `box` in a plane of `shape` (y, x); its mean over the plane is 1.

    The plane is mapped onto the profile's own `Dims`, so that `shape` may be any level of a pyramid.
    Harmony's polynomial is sum c[i][j] · u^(i-j) · v^j with u = (x - Origin[0]) · Scale[0] and v likewise
    along y. This is not published: on a Phenix export, a channel without cells follows this formula with a
    correlation of 0.99, and any exchange or mirroring of axes less well (tested); the polynomials have a
    mean of 1.000.
    """
    if profile["Type"] == "Identity":
        return np.ones([side.stop - side.start for side in box], np.float32)
    wide, high = profile["Dims"]
    y = (np.arange(box[0].start, box[0].stop) + 0.5) * high / shape[0] - 0.5
    x = (np.arange(box[1].start, box[1].stop) + 0.5) * wide / shape[1] - 0.5
    # The mean of a smooth polynomial needs few points.
    coarse = [(np.arange(64) + 0.5) * length / 64 - 0.5 for length in (high, wide)]
    values: NDArray[np.float32] = _evaluate(profile, y, x) / _evaluate(profile, *coarse).mean()
    return values.astype(np.float32)


def _evaluate(profile: Profile, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    v = (y - profile["Origin"][1]) * profile["Scale"][1]
    u = (x - profile["Origin"][0]) * profile["Scale"][0]
    rows = profile["Coefficients"]
    terms = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        for j, coefficient in enumerate(row):
            terms[j, i - j] = coefficient
    values: NDArray[np.float64] = np.polynomial.polynomial.polygrid2d(v, u, terms)
    return np.maximum(values, DARKEST)


def estimate(planes: Iterable[NDArray[Any]]) -> Profile:
    """Returns a profile from planes (y, x) of one channel, small ones of many fields.

    Each is divided by its mean; cells, whose positions differ from field to field, average out (24 fields
    leave 1 % on average, 7 % in a corner, where cells give a quarter of the light); a polynomial of
    degree 4 is fitted to the average.
    """
    blocks = [_blocks(plane) for plane in planes]
    v, u = (axis.ravel() for axis in np.meshgrid(*blocks[0][1], indexing="ij"))
    powers = [(i - j, j) for i in range(DEGREE + 1) for j in range(i + 1)]
    design = np.stack([u**a * v**b for a, b in powers], axis=1)
    solution = np.linalg.lstsq(design, np.mean([means for means, _ in blocks], axis=0).ravel(), rcond=None)[0]
    flat = iter(solution.tolist())
    return {
        "Type": "Polynomial",
        "Coefficients": [[next(flat) for _ in range(i + 1)] for i in range(DEGREE + 1)],
        "Origin": [0.0, 0.0], "Scale": [1.0, 1.0], "Dims": [1, 1],
    }  # fmt: skip


def _blocks(plane: NDArray[Any], count: int = 16) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Returns means over count × count blocks, over the plane's mean; and centres, -0.5 to 0.5 (y, x)."""
    sums, sizes, centers = plane.astype(np.float64), [], []
    for axis, length in enumerate(plane.shape):
        # A plane of fewer pixels than blocks repeats pixels, so sizes are at least 1.
        starts = np.linspace(0, length, count + 1).astype(int)[:-1]
        size = np.maximum(np.diff(starts, append=length), 1)
        sums = np.add.reduceat(sums, starts, axis=axis)
        sizes.append(size)
        centers.append((starts + size / 2) / length - 0.5)
    means = sums / np.outer(*sizes)
    return means / means.mean() if means.mean() > 0 else np.ones_like(means), centers
