#!/usr/bin/env bash
# 2026-11-29, pillow 12.0.0, imageio 2.37.2, scikit-image 0.25.2, imagecodecs 2025.11.11.
# Believed: a label image saved as a grey PNG of 2 or 4 bits (up to 3 or 15 objects; painting programs and
#   PNG optimisers choose so few) is read back with the numbers that are in the file.
# Seen: all four libraries stretch grey to 0…255: object 1 of a 4-bit file becomes 17, of a 2-bit file 85. The
#   same numbers as a palette PNG come back unchanged from Pillow (mode P), while imagecodecs gives colours.
# It matters because object 1 is no longer the object 1 of a table or of a list of corrections, and because
#   nothing in the array tells that it was stretched.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  pillow==12.0.0 imageio==2.37.2 scikit-image==0.25.2 imagecodecs==2025.11.11
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct
import zlib

import imagecodecs
import imageio.v3
import numpy as np
import skimage.io
from PIL import Image

GREY, PALETTE = 0, 3


def part(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(numbers, bits, kind):
    """A PNG as its specification says: rows of packed samples, most significant first."""
    rows = b""
    for row in numbers:
        packed = 0
        for number in row:
            packed = packed << bits | int(number)
        rows += b"\0" + packed.to_bytes(len(row) * bits // 8, "big")
    size = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, kind, 0, 0, 0)
    colours = part(b"PLTE", bytes(3 * [0, 60, 120, 180])) if kind == PALETTE else b""
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", size) + colours + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


labels = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
for bits, factor in ((2, 85), (4, 17)):
    with open("labels.png", "wb") as file:
        file.write(png(labels, bits, GREY))
    read = {
        "pillow": np.asarray(Image.open("labels.png")),
        "imageio": imageio.v3.imread("labels.png"),
        "scikit-image": skimage.io.imread("labels.png"),
        "imagecodecs": imagecodecs.png_decode(open("labels.png", "rb").read()),
    }
    for library, pixels in read.items():
        print(bits, "bits,", library, np.unique(pixels))
        assert (pixels == labels * factor).all(), f"{library} reads it otherwise by now"
with open("palette.png", "wb") as file:
    file.write(png(labels, 2, PALETTE))
assert (np.asarray(Image.open("palette.png")) == labels).all()
assert imagecodecs.png_decode(open("palette.png", "rb").read()).ndim == 3
PYTHON
