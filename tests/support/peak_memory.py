"""Labels one image as a process of its own, and tells how much memory that took beyond what it began with.

    python peak_memory.py FOLDER blocks|whole EDGE

FOLDER holds distance.npy (float32) and mask.npy (bool) of EDGE × EDGE pixels; `labels.raw` is written there.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np

from hpc_isl.objects.watershed import watershed
from hpc_isl.objects.watershed_tiled import tiled_watershed

BLOCK = 512
H = 2.0


def main() -> None:
    folder, way, edge = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    _warm_up(folder / f"warm-{way}")
    before, peak, ended = anonymous(), [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(peak, ended), daemon=True)
    watch.start()
    found = _blocks(folder, edge) if way == "blocks" else _whole(folder)
    ended.set()
    watch.join()
    print(found, peak[0] - before)


def _blocks(folder: Path, edge: int) -> str:
    scratch = folder / "scratch"
    scratch.mkdir()
    out = (folder / "labels.raw").open("w+b")

    def write(box: tuple[slice, slice], labels: np.ndarray) -> None:
        for row, line in zip(range(box[0].start, box[0].stop), labels, strict=True):
            out.seek(4 * (row * edge + box[1].start))
            out.write(line.tobytes())

    def read(box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        return part(folder / "distance.npy", np.float32, edge, box), part(
            folder / "mask.npy", np.bool_, edge, box
        )

    tiled_watershed(read, write, (edge, edge), H, block=(BLOCK, BLOCK), scratch=scratch)
    out.seek(0)
    digest = hashlib.sha256()
    while rows := out.read(2**20):
        digest.update(rows)
    return digest.hexdigest()


def part(path: Path, kind: type, edge: int, box: tuple[slice, slice]) -> np.ndarray:
    """A box of an array on disk, read row by row: pages of a mapped file would count as memory."""
    size, (rows, columns) = np.dtype(kind).itemsize, box
    found = np.empty((rows.stop - rows.start, columns.stop - columns.start), kind)
    with path.open("rb") as stream:
        header = path.stat().st_size - size * edge * edge
        for line, row in zip(found, range(rows.start, rows.stop), strict=True):
            stream.seek(header + size * (row * edge + columns.start))
            line[:] = np.frombuffer(stream.read(line.nbytes), kind)
    return found


def _whole(folder: Path) -> str:
    labels = watershed(np.load(folder / "distance.npy"), np.load(folder / "mask.npy"), H)
    return hashlib.sha256(labels.data).hexdigest()


def _warm_up(folder: Path) -> None:
    """Compiles everything."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    distance, mask = rng.random((64, 64)).astype(np.float32), rng.random((64, 64)) < 0.6
    watershed(distance, mask, 0.1)
    tiled_watershed(
        lambda box: (distance[box], mask[box]), lambda box, labels: None, (64, 64), 0.1,
        block=(16, 16), scratch=folder,
    )  # fmt: skip


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", text)[1])  # type: ignore[index]


def _watch(peak: list[int], ended: threading.Event) -> None:
    while not ended.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)


if __name__ == "__main__":
    main()
