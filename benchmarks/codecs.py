"""Which compressor and chunk a plate should have: crops per second, MB/s of writing, share of the raw size.

    python benchmarks/codecs.py [EXPORT]

EXPORT is a Harmony export; without one a synthetic plate is made. One field of 2160² pixels is built from it
by mirroring (so its noise and structure are real) and written with each codec; crops of 512² in 4 planes of
one channel are then read in random places, from the page cache, by one thread. All
times are seconds of CPU. Prints a table for
docs/performance.md, and zarr-python's time of writing and reading beside tensorstore's.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HPC_ISL_IO_THREADS"] = "1"

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from hpc_isl.plates.assemble import assemble
from hpc_isl.plates.pyramid import open_fresh, write_pyramid
from hpc_isl.plates.readers import harmony
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.stages.synthetic import stage as synthetic

EDGE, CROP, PLANES, CROPS = 2160, 512, 4, 60
CROP_MB = PLANES * CROP**2 * 2 / 1e6
AXES = ("c", "z", "y", "x")
CODECS = [("none", 0), ("lz4", 1), ("lz4", 5), ("lz4", 9), ("zstd", 1), ("zstd", 3), ("zstd", 5), ("zstd", 9)]


def field_of(export: Path) -> np.ndarray:
    """(c, 4, 2160, 2160): the first field of an export, mirrored; planes it lacks get new photon noise."""
    found = harmony.read(export)
    field = found.plate.fields[0]
    _, pixels = assemble(field, found.files[field.key])
    image = pixels[0]
    while min(image.shape[-2:]) < EDGE:
        image = np.concatenate([image, image[..., ::-1]], axis=-1)
        image = np.concatenate([image, image[..., ::-1, :]], axis=-2)
    rng = np.random.default_rng(0)
    planes = []
    for plane in range(PLANES):
        source = image[:, plane % image.shape[1], :EDGE, :EDGE]
        counts = source if plane < image.shape[1] else rng.poisson(source)  # photon noise of its own
        planes.append(counts.clip(0, 65535).astype("uint16"))
    return np.stack(planes, axis=1)


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some runs, in seconds of CPU, so that other jobs on the machine count little."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def crops(read: Callable[[int, slice, slice], object], channels: int) -> float:
    """Seconds per crop in random places."""
    rng = np.random.default_rng(1)
    places = [
        (int(rng.integers(channels)), *rng.integers(EDGE - CROP, size=2).tolist()) for _ in range(CROPS)
    ]

    def work() -> None:
        for channel, y, x in places:
            read(channel, slice(y, y + CROP), slice(x, x + CROP))

    return timed(work) / CROPS


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        export = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "export"
        if len(sys.argv) < 2:
            synthetic.write(export, wells=1, fields=1, size=1080, planes=PLANES)
        pixels = field_of(export)
        print(f"one field {pixels.shape} uint16 from {export.name}; crops of {CROP_MB:.1f} MB\n")
        print("| codec | chunk | share of raw | write MB/s | ms per crop | read MB/s |")
        print("|---|---|---|---|---|---|")
        for name, level in CODECS:
            row(Path(folder), pixels, CodecRecipe(name=name, level=level))
        for name, level in (("lz4", 5), ("zstd", 3)):
            row(Path(folder), pixels, CodecRecipe(name=name, level=level, chunk=512))
        against_zarr(Path(folder), pixels)


def row(folder: Path, pixels: np.ndarray, codec: CodecRecipe) -> None:
    """One line of the table."""
    image = folder / f"{codec.name}{codec.level}-{codec.chunk}"
    write_s = timed(lambda: write_pyramid(image, pixels, AXES, 1, codec, "mean"), 2)
    size = sum(p.stat().st_size for p in image.rglob("*") if p.is_file())
    store = open_fresh(image, 0)
    crop_s = crops(lambda c, y, x: store[c, :, y, x].read().result(), len(pixels))
    print(
        f"| {codec.name} {codec.level} | {codec.chunk} | {size / pixels.nbytes:.3f} "
        f"| {pixels.nbytes / 1e6 / write_s:.0f} | {1e3 * crop_s:.2f} | {CROP_MB / crop_s:.0f} |",
        flush=True,
    )


def against_zarr(folder: Path, pixels: np.ndarray) -> None:
    """The default codec by zarr-python: the reason why tensorstore writes and reads."""
    blosc = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2)
    shard = (*pixels.shape[:2], *(-(-EDGE // 256) * 256,) * 2)
    options = {"chunks": (1, 1, 256, 256), "shards": shard, "compressors": blosc, "overwrite": True}

    def write() -> None:
        array = zarr.create_array(folder / "zarr", shape=pixels.shape, dtype="uint16", **options)
        array[:] = pixels

    write_s = timed(write, 1)
    array = zarr.open_array(folder / "zarr", mode="r")
    crop_s = crops(lambda c, y, x: array[c, :, y, x], len(pixels))
    speed = pixels.nbytes / 1e6 / write_s
    print(f"\nzarr-python, lz4 5, chunk 256: write {speed:.0f} MB/s, {1e3 * crop_s:.2f} ms per crop")


if __name__ == "__main__":
    main()
