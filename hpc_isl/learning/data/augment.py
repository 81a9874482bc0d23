"""Augmentation: random changes of a crop, drawn from the sample's own stream."""

from __future__ import annotations

import numpy as np

from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.recipes.training import AugmentRecipe


def zoom(recipe: AugmentRecipe, rng: np.random.Generator) -> float:
    """The factor by which a crop is magnified."""
    return float(rng.uniform(1 - recipe.scale, 1 + recipe.scale)) if recipe.scale else 1.0


def resize(pixels: Pixels, edge: int) -> Pixels:
    """(c, y, x) to (c, edge, edge), bilinear, pixel areas aligned."""
    if pixels.shape[-2:] == (edge, edge):
        return pixels
    from scipy import ndimage  # here: a plan makes crops and looks at none

    factors = [edge / length for length in pixels.shape[-2:]]
    planes = [ndimage.zoom(p, factors, order=1, mode="nearest", grid_mode=True) for p in pixels]
    return np.stack(planes)


def turn(sources: Pixels, targets: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """One of the eight mirror images and quarter turns, the same for both; (c, y, x) with y = x."""
    quarters, mirror = int(rng.integers(4)), bool(rng.integers(2))
    both = [np.rot90(pixels, quarters, axes=(1, 2)) for pixels in (sources, targets)]
    first, second = [pixels[:, :, ::-1] for pixels in both] if mirror else both
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def shade(sources: Pixels, recipe: AugmentRecipe, rng: np.random.Generator) -> Pixels:
    """Blur, contrast, brightness, noise: in this order, each plane of (c, y, x) with its own numbers."""
    if recipe.blur:
        from scipy import ndimage

        sigmas = rng.uniform(0, recipe.blur, len(sources))
        sources = np.stack([ndimage.gaussian_filter(p, s) for p, s in zip(sources, sigmas, strict=True)])
    if recipe.contrast:
        sources = sources * _numbers(1 - recipe.contrast, 1 + recipe.contrast, len(sources), rng)
    if recipe.brightness:
        sources = sources + _numbers(-recipe.brightness, recipe.brightness, len(sources), rng)
    if recipe.noise:
        sds = _numbers(0, recipe.noise, len(sources), rng)
        sources = sources + sds * rng.standard_normal(sources.shape, np.float32)
    return sources


def _numbers(low: float, high: float, count: int, rng: np.random.Generator) -> Pixels:
    return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)
