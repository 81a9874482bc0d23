"""Label numbers in numpy's own files, but for those that hold objects of Python, which could run anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.formats.images import EXACT, whole
from hpc_isl.stages.annotate.formats.outlines import Shape


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """What the header tells: numbers, the field's shape; of decimal ones, all."""
    if _checked(path, shape).kind == "f":
        read(path, part, shape)
    return ()


def read(path: Path, part: str, shape: Shape) -> NDArray[Any]:
    """Label numbers (t, y, x)."""
    _checked(path, shape)
    try:
        pixels = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return (whole(path, pixels) if pixels.dtype.kind == "f" else pixels).reshape(shape)


def _checked(path: Path, shape: Shape) -> np.dtype[Any]:
    found, dtype = _header(path)
    if dtype.hasobject:
        raise UserError(
            f"{path} holds objects of Python, and opening these may run any program: save the masks instead, "
            "in Cellpose by File > Save masks as PNG/tif, or in Python by cellpose.io.save_masks"
        )
    if dtype.kind not in "iub" and dtype.name not in EXACT:
        raise UserError(f"{path} holds {dtype}; labels are whole numbers: 0 background, k the k-th object")
    if (1,) * (3 - len(found)) + found != shape:
        raise UserError(f"{path} has the shape {found}, but the field has {shape} (t, y, x)")
    return dtype


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with path.open("rb") as file:
            read = {(1, 0): npy.read_array_header_1_0}.get(npy.read_magic(file), npy.read_array_header_2_0)
            shape, _, dtype = read(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return shape, dtype
