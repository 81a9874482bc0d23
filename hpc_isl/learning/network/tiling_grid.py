"""The grid on which every network of this house pools, and the tiles that fit it."""

from __future__ import annotations

from hpc_isl.errors import UserError

STRIDE = 32
"""Edges of what the network sees are multiples of this, in pixels."""


def check_grid(tile: int | None, halo: int) -> None:
    """Tiles begin and end at multiples of the network's stride, else they would see another pooling grid."""
    for key, value in (("predict.tile", tile), ("predict.halo", halo if tile else 0)):
        if value and value % STRIDE:
            below = value // STRIDE * STRIDE
            raise UserError(f"{key}={value}: a multiple of {STRIDE} is needed, such as {below or STRIDE}")
