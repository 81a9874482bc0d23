"""Limits of tiles, decoders and weights files; alone, because both plans and networks import it."""

from __future__ import annotations

import os

from hpc_isl.errors import UserError

DECODERS = (3, 4, 5)
"""Blocks that a decoder may have."""
STRIDE = 32
"""Edges of the images that any network takes are multiples of this, in pixels."""
SUFFIXES = (".safetensors", ".pth", ".pt")
"""Endings of the names of weights files."""


def is_file(weights: str) -> bool:
    """Returns whether weights are given by path rather than by name."""
    return weights.endswith(SUFFIXES) or os.sep in weights


def check_grid(tile: int | None, halo: int) -> None:
    """Raises a UserError unless tile and halo, in pixels, are multiples of the network's stride."""
    # Tiles that begin elsewhere would be pooled on another grid than the whole image.
    for key, value in (("predict.tile", tile), ("predict.halo", halo if tile else 0)):
        if value and value % STRIDE:
            multiple = value // STRIDE * STRIDE
            raise UserError(f"{key}={value}: a multiple of {STRIDE} is needed, such as {multiple or STRIDE}")
