"""Converts a Harmony export with another program, to images of the same chunks, shards and codec as ours.

    python convert_peers.py ngio|ome-zarr EXPORT OUT

`benchmarks/convert.py` runs it with the Python of an environment that has nothing but that program: it
imports nothing of hpc_isl. Planes are read by tifffile; 2 × 2 means make the levels. Neither program measures
fields, hashes pixels or looks for damage.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from zarr.codecs import BloscCodec

CHUNK, LEVELS = 256, 5
BLOSC = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2)


def main() -> None:
    program, export, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    images = sorted(export.glob("[Ii]mages/r*.tiff"))
    for field, planes in groupby(images, key=lambda path: path.name[:9]):
        # The names of a field's planes end in plane and channel, as p01-ch1…
        stacks = groupby(sorted(planes, key=lambda path: path.name[13:16]), key=lambda path: path.name[13:16])
        pixels = np.stack([np.stack([tifffile.imread(path) for path in stack]) for _, stack in stacks])
        target = out / field
        target.parent.mkdir(parents=True, exist_ok=True)
        {"ngio": _ngio, "ome-zarr": _ome_zarr}[program](target, pixels)


def _shards(pixels: np.ndarray, level: int) -> tuple[int, ...]:
    edges = (-(-edge // 2**level // CHUNK) * CHUNK for edge in pixels.shape[2:])
    return *pixels.shape[:2], *edges


def _ngio(target: Path, pixels: np.ndarray) -> None:
    from ngio import create_ome_zarr_from_array

    create_ome_zarr_from_array(
        target, pixels, pixelsize=0.598, axes_names=["c", "z", "y", "x"], ngff_version="0.5", levels=LEVELS,
        chunks=(1, 1, CHUNK, CHUNK), shards=_shards(pixels, 0), compressors=BLOSC,
        consolidation_mode="numpy",
    )  # fmt: skip


def _ome_zarr(target: Path, pixels: np.ndarray) -> None:
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image

    options: list[dict[str, Any]] = [
        {"chunks": (1, 1, CHUNK, CHUNK), "shards": _shards(pixels, level), "compressors": [BLOSC]}
        for level in range(LEVELS)
    ]
    write_image(
        pixels, str(target), axes="czyx", scale_factors=[2**level for level in range(1, LEVELS)],
        method=Methods.LOCAL_MEAN, storage_options=options,
    )  # fmt: skip


if __name__ == "__main__":
    main()
