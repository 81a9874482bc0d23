"""How long a plate of 3456 fields takes to open, against reading the bytes of its index alone.

    python benchmarks/index.py            # four minutes, of which three make the index

The plate is that of tests/support/large_plate.py: 384 wells x 9 fields, 6 channels, 4 planes, no pixels.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from large_plate import large_plate

from hpc_isl.plates.store import open_plate

ROUNDS = 9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.zarr"
        large_plate(path, alike=False)
        files = [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        index = open_plate(path)
        keys = [field.key for field in index.plate.fields[:3000]]
        print(f"{len(index.plate.fields)} fields, {size / 1e6:.0f} MB in {len(files)} files")
        bare = seconds(lambda: [file.read_bytes() for file in files])
        for name, call in {
            "reading the bytes": lambda: [file.read_bytes() for file in files],
            "opening the plate": lambda: open_plate(path),
            "one channel over 3000 fields": lambda: open_plate(path).histogram(keys, 1),
        }.items():
            took = seconds(call)
            print(f"{name:<30} {took:.3f} s   {took / bare:.1f} x reading the bytes")


def seconds(call: Callable[[], object]) -> float:
    """The median of some rounds, of wall time from a warm cache."""
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return median(took)


if __name__ == "__main__":
    main()
