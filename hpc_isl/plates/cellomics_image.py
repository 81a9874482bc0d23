"""Pixels of Cellomics: `.DIB`, and `.C01`, which is four bytes and a DIB in zlib."""

# Seen: 16 bits, 512 × 512, a header of 40 bytes and three masks of 4. The first row of the file is the
# upper one although the height is positive (equal to what Bio-Formats makes of it). Only read about: `.DIB`
# alone.

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpc_isl.errors import UserError

C01, DIB = b"\0\0\0\x10", b"\x28\0\0\0"  # a DIB begins with the length of its header
_MOST = 1 << 28  # pixels


class DibHeader(NamedTuple):
    """Size (y, x), bytes of a pixel, and edges of a pixel (y, x) in micrometres."""

    shape: tuple[int, int]
    depth: int
    pixel_um: tuple[float, float] | None


def read_header(path: Path) -> DibHeader:
    """Returns what a `.C01` or `.DIB` states, without its pixels.

    Raises:
        UserError: naming the file: no such image.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        data = zlib.decompressobj().decompress(start[4:], 40) if start[:4] == C01 else start[:40]
    except zlib.error as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if len(data) < 40 or data[:4] != DIB:
        raise UserError(f"{path} is truncated or no image of Cellomics: its header is missing")
    width, height, _, bits, _, _, x, y = struct.unpack("<iiHHIIii", data[4:32])
    if bits not in (8, 16):
        raise UserError(f"{path} has {bits} bits per pixel; 8 or 16 are expected")
    if width < 1 or height < 1 or width * height > _MOST:
        raise UserError(f"{path} is damaged: it claims {height} × {width} pixels")
    pixel_um = (round(1e6 / y, 4), round(1e6 / x, 4)) if x > 0 and y > 0 else None
    return DibHeader((height, width), bits // 8, pixel_um)


def decode(path: Path) -> np.ndarray:
    """Returns the pixels of a `.C01` or `.DIB` as (y, x), the upper row first.

    Raises:
        UserError: naming the file: see `read_header`; truncated or damaged.
    """
    (height, width), depth, _ = read_header(path)
    data = path.read_bytes()
    stride = -(-width * depth // 4) * 4  # rows of a DIB fill whole words
    if data[:4] == C01:
        opened = zlib.decompressobj()
        data = opened.decompress(data[4:], stride * height + 2048)
        if not opened.eof:
            raise UserError(f"{path} is truncated or damaged: its compressed pixels do not end")
    for row in (stride, width * depth):
        begin = len(data) - row * height
        if begin in (40, 52, 40 + 4 * 256, 40 + 4 * int.from_bytes(data[32:36], "little")):
            rows = np.frombuffer(data, np.uint8, row * height, begin).reshape(height, row)[:, : width * depth]
            return np.ascontiguousarray(rows).view("<u2" if depth == 2 else np.uint8)
    raise UserError(f"{path} is truncated or damaged: {len(data)} bytes for {height} × {width} pixels")
