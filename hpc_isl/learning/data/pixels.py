"""Pure functions of pixels: choice of planes, projections, flat-field profiles, box means, normalisation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError

Pixels = NDArray[np.float32]
Box = tuple[slice, slice]
"""A box of a plane: y, x."""
REDUCE: dict[int | str, Callable[..., NDArray[Any]]] = {"max": np.max, "mean": np.mean, "min": np.min}
"""The projections."""


def choose_planes(
    spec: int | str, focus: Mapping[int, float], z_um: Mapping[int, float] = {}, plane_um: float | None = None
) -> tuple[int, ...]:
    """Returns the planes that `spec` means: all that exist for a projection, else one.

    Args:
        spec: a number; max, mean or min; focus, focus+2 (planes) or focus-4um (micrometres).
        focus: plane that exists -> focus score, greater is sharper; the first of equals is taken.
        z_um: plane -> height, to which micrometres refer; where empty, `plane_um`, their distance.

    Raises:
        UserError: there is no such plane; the caller adds the field's name to the message.
    """
    if spec in REDUCE:
        return tuple(sorted(focus))
    plane = spec if isinstance(spec, int) else _plane_by_focus(spec, focus, z_um, plane_um)
    if plane not in focus:
        request = f"plane {spec}" if spec == plane else f"plane {spec} would be plane {plane}"
        raise UserError(f"{request}; there are the planes {', '.join(map(str, sorted(focus)))}")
    return (plane,)


def _plane_by_focus(
    spec: str, focus: Mapping[int, float], z_um: Mapping[int, float], plane_um: float | None
) -> int:
    # The first of equally sharp planes, so that the choice repeats.
    sharpest = min(focus, key=lambda plane: (-focus[plane], plane))
    match = re.fullmatch(r"focus([+-][\d.]+)?\s?(um)?", spec)
    if match is None:
        raise UserError(f"plane {spec!r}: a number, max, mean, min, focus, focus+2 or focus-4um is expected")
    offset, unit = match.groups()
    if offset is None:
        return sharpest
    if unit is None:
        return sharpest + int(offset)
    if not z_um:
        if plane_um is None:
            raise UserError(f"plane {spec}: the distance of planes is unknown; write planes, as in focus+1")
        return sharpest + round(float(offset) / plane_um)
    heights = {plane: z_um[plane] for plane in focus}
    height, low, high = z_um[sharpest] + float(offset), min(heights.values()), max(heights.values())
    half_step = (high - low) / max(len(heights) - 1, 1) / 2 * 1.001  # so far beyond the stack is near enough
    if not low - half_step <= height <= high + half_step:
        raise UserError(
            f"plane {spec} would lie at {height:g} µm; the planes lie from {low:g} to {high:g} µm"
        )
    return min(heights, key=lambda plane: abs(heights[plane] - height))


def project(stack: NDArray[Any], how: int | str) -> Pixels:
    """Returns the projection (y, x), float32, of (z, y, x) of any type; without one, the only plane."""
    if how in REDUCE:
        stack = REDUCE[how](stack, axis=0, keepdims=True)
    return np.asarray(stack[0], np.float32)


def subtract_box_mean(plane: Pixels, edge: int) -> Pixels:
    """Returns the plane minus its mean over boxes of `edge` × `edge` pixels, reflected at the borders."""
    from scipy import ndimage  # here, because a plan reads no pixels and need not wait for scipy

    means: Pixels = ndimage.uniform_filter(plane, edge, mode="reflect")
    return plane - means


def grown(box: Box, margin: int, shape: tuple[int, int]) -> tuple[Box, Box]:
    """Returns `box` with a margin, inside a plane of `shape`; and the position of `box` in that."""
    read = [
        slice(max(side.start - margin, 0), min(side.stop + margin, length))
        for side, length in zip(box, shape, strict=True)
    ]
    cut = [
        slice(side.start - read_side.start, side.stop - read_side.start)
        for side, read_side in zip(box, read, strict=True)
    ]
    return (read[0], read[1]), (cut[0], cut[1])


def pad(pixels: Pixels, edge: int) -> Pixels:
    """Returns (…, y, x) extended to at least `edge` × `edge` by reflection, equally on both sides."""
    missing = [max(edge - length, 0) for length in pixels.shape[-2:]]
    if not any(missing):
        return pixels
    widths = [(0, 0)] * (pixels.ndim - 2) + [(m // 2, m - m // 2) for m in missing]
    return np.pad(pixels, widths, mode="reflect")


def known_box(pixels: Pixels) -> Box:
    """Returns the box of (…, y, x) outside of which pixels are NaN, as targets without a partner are."""
    unknown = np.any(np.isnan(pixels).reshape(-1, *pixels.shape[-2:]), axis=0)
    y, x = (np.flatnonzero(~np.all(unknown, axis=axis)) for axis in (1, 0))
    if not len(y):
        return slice(0, 0), slice(0, 0)
    return slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)


def numbers(kind: str, pixels: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Returns offset and scale of a kind of normalisation, from pixels: standard, percentile, max16, none."""
    if kind == "standard":
        return float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    if kind == "percentile":
        bottom, top = np.percentile(pixels, [low, high])
        return float(bottom), float(top - bottom)
    return 0.0, 65535.0 if kind == "max16" else 1.0


def normalise(pixels: Pixels, offset: float, scale: float, clip: float | None = None) -> Pixels:
    """Returns (x - offset) / scale, clipped to [-clip, clip]; a scale of 0 (constant pixels) counts as 1."""
    # In float32: NumPy would widen the result to the type of a float64 scale.
    result: Pixels = pixels - np.float32(offset)
    result *= np.float32(1 / (scale or 1.0))
    return result if clip is None else np.clip(result, -clip, clip, out=result)


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
        "a network that is to see such plates is trained with data.flat_field=estimated or none"
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


def estimate(
    planes: Iterable[NDArray[Any]], average: Callable[..., NDArray[np.float64]] = np.mean
) -> Profile:
    """Returns a profile from planes (y, x) of one channel, small ones of many fields.

    Each is divided by its mean; cells, whose positions differ from field to field, average out (24 fields
    leave 1 % on average, 7 % in a corner, where cells give a quarter of the light); a polynomial of
    degree 4 is fitted to the average.

    Args:
        average: of the fields, mean or median.
    """
    blocks = [block_means(plane) for plane in planes]
    v, u = (axis.ravel() for axis in np.meshgrid(*blocks[0][1], indexing="ij"))
    powers = [(i - j, j) for i in range(DEGREE + 1) for j in range(i + 1)]
    design = np.stack([u**a * v**b for a, b in powers], axis=1)
    solution = np.linalg.lstsq(design, average([means for means, _ in blocks], axis=0).ravel(), rcond=None)[0]
    flat = iter(solution.tolist())
    return {
        "Type": "Polynomial",
        "Coefficients": [[next(flat) for _ in range(i + 1)] for i in range(DEGREE + 1)],
        "Origin": [0.0, 0.0], "Scale": [1.0, 1.0], "Dims": [1, 1],
    }  # fmt: skip


def block_means(
    plane: NDArray[Any], count: int = 16
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
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
