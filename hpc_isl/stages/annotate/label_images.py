"""Label images, as TIFF (OME-TIFF and ImageJ's among them), PNG or numpy array: each object has a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import header, read_plane
from hpc_isl.stages.annotate.outlines import Shape

EXACT = {"float16": 2**11, "float32": 2**24, "float64": 2**53}  # whole numbers up to here keep their value
NUMPY = ".npy"


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Checks by the header that a file holds numbers of the field's shape; of decimal ones, reads all."""
    if _check_header(path, shape).kind == "f":
        read(path, part, shape)
    return ()


def read(path: Path, part: str, shape: Shape) -> NDArray[Any]:
    """Returns label numbers (t, y, x)."""
    if path.suffix.lower() != NUMPY:
        pages = [read_plane(path, page, drawn=True) for page in range(shape[0])]
        return np.stack(
            [(_color_numbers if page.ndim == 3 else _whole_numbers)(path, page) for page in pages]
        )
    _check_header(path, shape)
    try:
        pixels = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return _whole_numbers(path, pixels).reshape(shape)


def _check_header(path: Path, shape: Shape) -> np.dtype[Any]:
    if path.suffix.lower() == NUMPY:
        stored, dtype = _numpy_header(path)
        padded = (1,) * (3 - len(stored)) + stored
    else:
        plane, name, pages = header(path, drawn=True)
        stored = padded = (pages, *plane)
        dtype = np.dtype(name)
    if dtype.kind not in "iub" and dtype.name not in EXACT:
        raise UserError(f"{path} holds {dtype}; labels are whole numbers: 0 background, k the k-th object")
    if padded != shape:
        raise UserError(f"{path} has the shape {stored}, but the field has {shape} (t, y, x)")
    return dtype


def _numpy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with path.open("rb") as file:
            read = {(1, 0): npy.read_array_header_1_0}.get(npy.read_magic(file), npy.read_array_header_2_0)
            shape, _, dtype = read(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if dtype.hasobject:
        raise UserError(
            f"{path} holds objects of Python, and opening these may run any program: save the masks instead, "
            "in Cellpose by File > Save masks as PNG/tif, or in Python by cellpose.io.save_masks"
        )
    return shape, dtype


def _color_numbers(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Returns R + 256 G + 65536 B of colours (y, x, sample); what is transparent or black is background."""
    samples = pixels.shape[-1]
    if pixels.dtype != np.uint8 and samples > 2:
        raise UserError(
            f"{path} has colours of {pixels.dtype}; 8 bits each for red, green and blue are expected"
        )
    planes = np.moveaxis(pixels, -1, 0)
    *colors, alpha = planes if samples in (2, 4) else (*planes, 1)
    numbers = sum(color.astype(np.uint32) << 8 * place for place, color in enumerate(colors))
    return np.where(alpha, numbers, 0)


def _whole_numbers(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Returns decimal numbers, as which ImageJ keeps 32-bit labels, as whole ones.

    Raises:
        UserError: they are not whole, or so large that neighbours may have become one.
    """
    if pixels.dtype.kind != "f":
        return pixels
    if not np.isfinite(pixels).all() or (pixels != np.round(pixels)).any():
        raise UserError(
            f"{path} holds {pixels.dtype} that are not whole; labels are: 0 background, k the k-th object"
        )
    if pixels.size and np.abs(pixels).max() >= EXACT[pixels.dtype.name]:
        raise UserError(f"{path} holds {pixels.dtype} up to {pixels.max():.0f}: so large they are not exact")
    return pixels.astype(np.int64)
