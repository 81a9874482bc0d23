"""The cells of a synthetic field before a microscope images them: outlines, nuclei, phase and stains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]
Labels = NDArray[np.uint16]


@dataclass(frozen=True)
class Condition:
    """The cells of a well, with lengths in pixels.

    Attributes:
        density: share of the field that cells would cover if they did not overlap; 0 is an empty field.
        cell_px, nucleus_px: mean radii.
        rounded: share of cells that have detached: small, thick, with a condensed nucleus.
    """

    density: float
    cell_px: float = 30.0
    nucleus_px: float = 13.0
    rounded: float = 0.03

    def scaled(self, density: float, nucleus_px: float) -> Condition:
        """Returns the condition with these factors."""
        return replace(self, density=self.density * density, nucleus_px=self.nucleus_px * nucleus_px)


@dataclass(frozen=True)
class Truth:
    """One field, all arrays (y, x).

    Attributes:
        cells, nuclei: labels; a nucleus has the number of its cell.
        phase: optical path in radians.
        density: optical density (natural logarithm), what absorbs light.
        dna, membrane: amounts of two stains; 1 is a typical nucleus, a typical cell.
    """

    cells: Labels
    nuclei: Labels
    phase: Image
    density: Image
    dna: Image
    membrane: Image


@dataclass(frozen=True)
class _Shape:
    """A smooth outline round a centre: radius × (1 + sum of three harmonics), in pixels."""

    y: float
    x: float
    radius: float
    waves: NDArray[np.float64]  # (3,) amplitudes of harmonics 2, 3, 4
    turns: NDArray[np.float64]  # (3,) their phases

    def depth(self, size: int) -> tuple[tuple[slice, slice], Image]:
        """Returns the box round the shape, cut to the field, and depth: 0 in the centre, 1 at the outline."""
        reach = self.radius * (1.05 + float(np.abs(self.waves).sum()))
        rows, columns = (
            slice(*np.clip((int(c - reach), int(c + reach) + 2), 0, size)) for c in (self.y, self.x)
        )
        dy = np.arange(rows.start, rows.stop)[:, None] - self.y
        dx = np.arange(columns.start, columns.stop)[None] - self.x
        angle = np.arctan2(dy, dx)
        swing = sum(
            a * np.cos(k * angle + t) for k, a, t in zip((2, 3, 4), self.waves, self.turns, strict=True)
        )
        return (rows, columns), (np.hypot(dy, dx) / (self.radius * (1 + swing))).astype(np.float32)


def grow(rng: np.random.Generator, size: int, condition: Condition) -> Truth:
    """Returns a field of `size`² pixels with cells as `condition` says; cells may lie across its border."""
    outlines = _outlines(rng, size, condition)
    rounded = rng.random(len(outlines)) < condition.rounded
    outlines = [
        _shrink(outline, 0.6) if is_round else outline
        for outline, is_round in zip(outlines, rounded, strict=True)
    ]
    cells, radial = _paint(outlines, size)
    kernels = [
        _nucleus(rng, outline, condition, bool(is_round))
        for outline, is_round in zip(outlines, rounded, strict=True)
    ]
    nuclei, inner = _paint(kernels, size, within=cells)
    # Label 0, the background, has neither height nor stain.
    height = np.concatenate([[0], np.where(rounded, 3.0, rng.uniform(0.8, 1.2, len(outlines)))])
    stain = np.concatenate([[0], np.where(rounded, 1.8, 1.0) * rng.lognormal(0, 0.12, len(outlines))])
    spots = _spots(rng, [_shrink(kernel, 0.65) for kernel in kernels], 3, (0.13, 0.24), size) * (nuclei > 0)
    grains = _grains(rng, size, (cells > 0) & (nuclei == 0))

    body = _dome(radial, 0.6) * height[cells]
    core = _dome(inner, 0.5) * np.sqrt(height)[nuclei]
    texture = _noise(rng, size, 1.2, 3.0) * np.where(nuclei > 0, 0.25, 1.0)
    phase = body * (1.1 + 0.12 * texture) + 0.35 * core + 0.45 * spots + 0.5 * grains
    chromatin = np.clip(1 + 0.12 * _noise(rng, size, 0.8, 2.0) - 0.45 * spots, 0, None)
    # Membranes stand out where cells end.
    rim = np.asarray(np.exp(-(((radial - 0.97) / 0.06) ** 2)) * (cells > 0), np.float32)
    cytoplasm = body * np.clip(1 + 0.25 * texture, 0, None) * np.where(nuclei > 0, 0.6, 1.0)
    return Truth(
        cells=cells,
        nuclei=nuclei,
        phase=ndimage.gaussian_filter(phase, 0.6).astype(np.float32),
        density=(0.01 * body + 0.05 * grains).astype(np.float32),
        dna=(core * stain[nuclei] * chromatin).astype(np.float32),
        membrane=(cytoplasm + 0.5 * rim + 0.8 * grains).astype(np.float32),
    )


def _outlines(rng: np.random.Generator, size: int, condition: Condition) -> list[_Shape]:
    """Returns cells placed one by one; one that comes too close to an earlier one is discarded."""
    reach = condition.cell_px
    count = int(condition.density * (size + 2 * reach) ** 2 / (np.pi * reach**2))
    outlines: list[_Shape] = []
    # Limited tries, because a dense field has no room for all that are wanted.
    for y, x in rng.uniform(-reach, size + reach, (4 * count, 2)):
        if len(outlines) == count:
            break
        if all((y - outline.y) ** 2 + (x - outline.x) ** 2 > (1.25 * reach) ** 2 for outline in outlines):
            outlines.append(_shape(rng, y, x, reach * rng.uniform(0.8, 1.3), (0.3, 0.12, 0.06)))
    return outlines


def _shape(
    rng: np.random.Generator, y: float, x: float, radius: float, roughness: tuple[float, ...]
) -> _Shape:
    return _Shape(y, x, radius, rng.uniform(0.2, 1, 3) * roughness, rng.uniform(0, 2 * np.pi, 3))


def _shrink(shape: _Shape, factor: float) -> _Shape:
    return _Shape(shape.y, shape.x, shape.radius * factor, shape.waves * factor, shape.turns)


def _nucleus(rng: np.random.Generator, cell: _Shape, condition: Condition, rounded: bool) -> _Shape:
    """Returns an ellipse-like nucleus near the middle of its cell."""
    # A large nucleus in a small cell still leaves cytoplasm around it.
    radius = min(condition.nucleus_px * rng.uniform(0.85, 1.15), 0.6 * cell.radius)
    y, x = rng.normal((cell.y, cell.x), 0.1 * cell.radius)
    return _shape(rng, y, x, radius * (0.75 if rounded else 1.0), (0.18, 0.04, 0.02))


def _paint(shapes: list[_Shape], size: int, within: Labels | None = None) -> tuple[Labels, Image]:
    """Returns labels in which a pixel belongs to the shape it is deepest in, and that depth (1: outside).

    With `within`, shape k keeps to the pixels of label k there.
    """
    labels = np.zeros((size, size), np.uint16)
    depth = np.ones((size, size), np.float32)
    for number, shape in enumerate(shapes, 1):
        box, shape_depth = shape.depth(size)
        wins = shape_depth < depth[box]
        if within is not None:
            wins &= within[box] == number
        labels[box][wins] = number
        depth[box][wins] = shape_depth[wins]
    return labels, depth


def _dome(depth: Image, power: float) -> Image:
    """Returns 1 in the middle of a shape, 0 from its outline on; a smaller power has a flatter top."""
    return np.asarray(np.clip(1 - depth**2, 0, None) ** power, np.float32)


def _spots(
    rng: np.random.Generator, shapes: list[_Shape], max_count: int, width: tuple[float, float], size: int
) -> Image:
    """Returns nucleoli: 1 to `max_count` soft discs in each shape, their radii a share of the shape's."""
    image = np.zeros((size, size), np.float32)
    for shape in shapes:
        for _ in range(rng.integers(1, max_count + 1)):
            # The root spreads them evenly over a disc, and not round its centre.
            angle, distance = rng.uniform(0, 2 * np.pi), shape.radius * np.sqrt(rng.random())
            disc = _Shape(
                shape.y + distance * np.sin(angle),
                shape.x + distance * np.cos(angle),
                1.5 * shape.radius * rng.uniform(*width),
                np.zeros(3),
                np.zeros(3),
            )
            box, depth = disc.depth(size)
            image[box] = np.maximum(image[box], np.exp(-2 * depth**2))
    return image


def _grains(rng: np.random.Generator, size: int, mask: NDArray[np.bool_]) -> Image:
    """Returns vesicles: bright points in `mask`, about one in 250 pixels, of uneven strength."""
    points = (rng.random((size, size)) < 0.004) & mask
    strength = points * rng.gamma(2.0, 0.5, (size, size))
    return np.asarray(ndimage.gaussian_filter(strength, 1.0) * 2 * np.pi, np.float32)


def _noise(rng: np.random.Generator, size: int, fine: float, coarse: float) -> Image:
    """Returns texture of unit variance between two length scales, in pixels."""
    white = rng.standard_normal((size, size), dtype=np.float32)
    band = ndimage.gaussian_filter(white, fine) - ndimage.gaussian_filter(white, coarse)
    return np.asarray(band / band.std(), np.float32)
