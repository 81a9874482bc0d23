"""Label images, TIFF (OME-TIFF and ImageJ's among them) or PNG: each object has a number, or a colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import header, read_plane
from hpc_isl.stages.annotate.formats.outlines import Shape

EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}  # whole numbers up to here keep their value


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """What the header tells: numbers, the field's shape, a page for each time; of decimal ones, all."""
    found, dtype, pages = header(path, drawn=True)
    if np.dtype(dtype).kind not in "iub" and dtype not in EXACT:
        raise UserError(f"{path} holds {dtype}; labels are whole numbers: 0 background, k the k-th object")
    if (pages, *found) != shape:
        raise UserError(f"{path} has the shape {(pages, *found)}, but the field has {shape} (t, y, x)")
    if dtype in EXACT:
        read(path, part, shape)
    return ()


def read(path: Path, part: str, shape: Shape) -> NDArray[Any]:
    """Label numbers (t, y, x)."""
    return np.stack([_numbers(path, read_plane(path, page, drawn=True)) for page in range(shape[0])])


def _numbers(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 3:
        return _of_colors(path, pixels)
    return whole(path, pixels) if pixels.dtype.kind == "f" else pixels


def _of_colors(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """A colour is the object's number, R + 256 G + 65536 B; what is transparent or black is background."""
    samples = pixels.shape[-1]
    if pixels.dtype != np.uint8 and samples > 2:
        raise UserError(
            f"{path} has colours of {pixels.dtype}; 8 bits each for red, green and blue are expected"
        )
    *colors, alpha = np.moveaxis(pixels, -1, 0) if samples in (2, 4) else (*np.moveaxis(pixels, -1, 0), 1)
    numbers = sum(color.astype(np.uint32) << 8 * place for place, color in enumerate(colors))
    return np.where(alpha, numbers, 0)


def whole(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Numbers that are kept as decimal ones, as ImageJ's 32-bit images do, where they are whole.

    Raises:
        UserError: they are not, or so large that neighbours may have become one.
    """
    if not np.isfinite(pixels).all() or (pixels != np.round(pixels)).any():
        raise UserError(
            f"{path} holds {pixels.dtype} that are not whole; labels are: 0 background, k the k-th object"
        )
    if pixels.size and np.abs(pixels).max() >= EXACT[pixels.dtype.name]:
        raise UserError(f"{path} holds {pixels.dtype} up to {pixels.max():.0f}: so large they are not exact")
    return pixels.astype(np.int64)
