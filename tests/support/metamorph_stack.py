"""A MetaMorph stack (STK) as its makers write it: one page, the pixels of all planes behind it, UIC tags."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

JULIAN_2024 = 2460310  # 1 January 2024, as MetaMorph counts days


def write_stk(
    path: Path,
    pixels: NDArray[np.uint16],
    distances: Sequence[float],
    milliseconds: Sequence[int],
    pixel_um: float = 0.325,
    name: str = "DAPI",
    places: Sequence[tuple[float, float]] = (),
) -> None:
    """Planes (n, y, x) at these distances in z and times of 1 January 2024; `places` are stage (x, y)."""
    count, height, width = pixels.shape
    content = bytearray(b"II*\0\0\0\0\0")

    def put(data: bytes) -> int:
        at = len(content)
        content.extend(data)
        return at

    strips = put(pixels.astype("<u2").tobytes())
    planes = b"".join(
        _fraction(distance) + struct.pack("<4I", JULIAN_2024, time, JULIAN_2024, time)
        for distance, time in zip(distances, milliseconds, strict=True)
    )
    text = name.encode() + b"\0"
    entries = [
        (4, put(_fraction(pixel_um))), (5, put(_fraction(pixel_um))),
        (6, put(struct.pack("<I", 3) + b"um\0")), (7, put(struct.pack("<I", len(text)) + text)),
    ]  # fmt: skip
    uic1 = put(struct.pack("<2I", 3, 1) + b"".join(struct.pack("<2I", *entry) for entry in entries))
    uic4 = (
        b"".join([struct.pack("<H", 28), *(_fraction(at) for place in places for at in place)])
        if places
        else b""
    )
    tags: list[tuple[int, int, int, Any]] = [
        (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, strips), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 2 * width * height),
        (33628, 4, 1 + len(entries), uic1), (33629, 5, count, put(planes)),
        (33630, 5, count, put(_fraction(452.0) * count)),
        (33631, 4, count, put(uic4 + struct.pack("<H", 0))),
    ]  # fmt: skip
    first = put(
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    )
    content[4:8] = struct.pack("<I", first)
    path.write_bytes(content)


def _fraction(value: float) -> bytes:
    found = Fraction(value).limit_denominator(10**6)
    return struct.pack("<2I", found.numerator, found.denominator)
