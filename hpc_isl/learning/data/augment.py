"""Augmentation: random changes of a crop, drawn from the sample's own stream of random numbers."""

from __future__ import annotations

import numpy as np

from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.recipes.training import AugmentRecipe


def zoom(recipe: AugmentRecipe, rng: np.random.Generator) -> float:
    """Returns the factor by which a crop is magnified."""
    return float(rng.uniform(1 - recipe.scale, 1 + recipe.scale)) if recipe.scale else 1.0


def resize(pixels: Pixels, edge: int) -> Pixels:
    """Returns (c, y, x) interpolated to (c, edge, edge), bilinear, pixel areas aligned."""
    if pixels.shape[-2:] == (edge, edge):
        return pixels
    from scipy import ndimage  # here, because a plan makes crops without reading any

    # grid_mode aligns the areas of pixels, not their centres.
    factors = [edge / length for length in pixels.shape[-2:]]
    return np.stack(
        [ndimage.zoom(plane, factors, order=1, mode="nearest", grid_mode=True) for plane in pixels]
    )


def turn(sources: Pixels, targets: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Returns one of the eight mirror images and quarter turns, the same for both; (c, y, x) with y = x."""
    quarters, mirror = int(rng.integers(4)), bool(rng.integers(2))
    rotated = [np.rot90(pixels, quarters, axes=(1, 2)) for pixels in (sources, targets)]
    first, second = [pixels[:, :, ::-1] for pixels in rotated] if mirror else rotated
    # torch takes no arrays of negative strides.
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def shade(sources: Pixels, recipe: AugmentRecipe, rng: np.random.Generator) -> Pixels:
    """Returns (c, y, x) with blur, contrast, brightness and noise, in this order, drawn for each plane."""

    def uniform(low: float, high: float) -> Pixels:
        return rng.uniform(low, high, (len(sources), 1, 1)).astype(np.float32)

    if recipe.blur:
        from scipy import ndimage

        # One stream in a fixed order: another order would change every sample.
        sigmas = rng.uniform(0, recipe.blur, len(sources))
        sources = np.stack(
            [ndimage.gaussian_filter(plane, sigma) for plane, sigma in zip(sources, sigmas, strict=True)]
        )
    if recipe.contrast:
        sources = sources * uniform(1 - recipe.contrast, 1 + recipe.contrast)
    if recipe.brightness:
        sources = sources + uniform(-recipe.brightness, recipe.brightness)
    if recipe.noise:
        sds = uniform(0, recipe.noise)
        sources = sources + sds * rng.standard_normal(sources.shape, np.float32)
    return sources
