"""Images as Cellomics writes them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np


def dib(plane: np.ndarray, masks: bool = True, metre: int = 1550387, padded: bool = True) -> bytes:
    """A DIB with the upper row first, as Cellomics writes it."""
    bits, (height, width) = 8 * plane.dtype.itemsize, plane.shape
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, metre, metre, 0, 0)
    filled = -(-width * bits // 32) * 4 if padded else width * bits // 8
    rows = np.ascontiguousarray(plane).view(np.uint8).reshape(height, -1)
    return head + bytes(12 if masks else 0) + np.pad(rows, ((0, 0), (0, filled - rows.shape[1]))).tobytes()


def write(path: Path, plane: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    content = dib(plane)
    path.write_bytes(b"\0\0\0\x10" + zlib.compress(content) if path.suffix == ".C01" else content)
    return path
