"""Pure functions of pixels: choice of planes, projections, box means and normalisation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
    plane = spec if isinstance(spec, int) else _from_focus(spec, focus, z_um, plane_um)
    if plane not in focus:
        where = f"plane {spec}" if spec == plane else f"plane {spec} would be plane {plane}"
        raise UserError(f"{where}; there are the planes {', '.join(map(str, sorted(focus)))}")
    return (plane,)


def _from_focus(
    spec: str, focus: Mapping[int, float], z_um: Mapping[int, float], plane_um: float | None
) -> int:
    # The first of equally sharp planes, so that the choice repeats.
    sharpest = min(focus, key=lambda plane: (-focus[plane], plane))
    offset, unit = re.fullmatch(r"focus([+-][\d.]+)?\s?(um)?", spec).groups()  # type: ignore[union-attr]
    if offset is None:
        return sharpest
    if unit is None:
        return sharpest + int(offset)
    if not z_um:
        if plane_um is None:
            raise UserError(f"plane {spec}: the distance of planes is unknown; write planes, as in focus+1")
        return sharpest + round(float(offset) / plane_um)
    heights = {plane: z_um[plane] for plane in focus}
    wanted, low, high = z_um[sharpest] + float(offset), min(heights.values()), max(heights.values())
    half_step = (high - low) / max(len(heights) - 1, 1) / 2 * 1.001  # so far beyond the stack is near enough
    if not low - half_step <= wanted <= high + half_step:
        raise UserError(
            f"plane {spec} would lie at {wanted:g} µm; the planes lie from {low:g} to {high:g} µm"
        )
    return min(heights, key=lambda plane: abs(heights[plane] - wanted))


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
    read = [slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, shape, strict=True)]
    cut = [slice(s.start - r.start, s.stop - r.start) for s, r in zip(box, read, strict=True)]
    return (read[0], read[1]), (cut[0], cut[1])


def pad(pixels: Pixels, edge: int) -> Pixels:
    """Returns (…, y, x) extended to at least `edge` × `edge` by reflection, equally on both sides."""
    missing = [max(edge - length, 0) for length in pixels.shape[-2:]]
    if not any(missing):
        return pixels
    widths = [(0, 0)] * (pixels.ndim - 2) + [(m // 2, m - m // 2) for m in missing]
    return np.pad(pixels, widths, mode="reflect")


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
    result = (pixels - np.float32(offset)) * np.float32(1 / (scale or 1.0))
    return result if clip is None else np.clip(result, -clip, clip)
