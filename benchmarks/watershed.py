"""What it costs to make labels of a distance map and a mask: against scikit-image and SimpleITK.

    python benchmarks/watershed.py                        # 2048² and 4096², under three minutes
    python benchmarks/watershed.py --sizes 1024 2048      # without the long one
    python benchmarks/watershed.py --cells 12             # radius of the cells in pixels

Maps are made as a network would predict them: distance maps of cells that touch, a little blurred, with
noise. All programs get the same map, on one thread, in turns; times are CPU seconds, so that ratios hold on a
busy machine. SimpleITK takes part where it is installed.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import h_maxima
from skimage.segmentation import watershed as skimage_watershed

from hpc_isl.objects.distance import distance_map
from hpc_isl.objects.watershed import TOUCHING, reference, watershed

H = 10
Image = np.ndarray[Any, Any]
Program = Callable[[Image, Image], Image]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096], help="edges in pixels")
    options.add_argument("--cells", type=int, default=24, help="radius of a cell in pixels")
    options.add_argument("--rounds", type=int, default=1)
    given = options.parse_args()
    for program in (ours, scipy_distance):  # compiles
        program(*cells(64, 8)[:2])
    for size in given.sizes:
        compare(*cells(size, given.cells), given.rounds)


def compare(distance: Image, mask: Image, labels: Image, rounds: int) -> None:
    print(f"\n{len(mask)}², {mask.mean():.0%} foreground, {labels.max()} cells, h = {H}, CPU seconds")
    floods(distance, mask, rounds)
    took, alone = seconds(lambda: distance_map(labels)), seconds(lambda: scipy_distance(labels, mask))
    print(f"{'distance map of all objects':44}{took:8.2f}")
    print(f"{'scipy, of the mask as one':44}{alone:8.2f}{alone / took:8.1f} ×")


def cells(size: int, radius: int) -> tuple[Image, Image, Image]:
    """A predicted distance map, its mask, and the cells: discs, cut where they overlap."""
    rng = np.random.default_rng(0)
    centres = np.zeros((size, size), np.int32)
    count = int(0.42 * size**2 / (np.pi * radius**2))
    centres[rng.integers(0, size, count), rng.integers(0, size, count)] = np.arange(1, count + 1)
    away, (y, x) = ndimage.distance_transform_edt(centres == 0, return_indices=True)
    labels = np.where(away < radius, centres[y, x], 0)
    distance = ndimage.gaussian_filter(distance_map(labels), 1.5)
    return distance + rng.normal(0, 1, labels.shape).astype(np.float32), labels > 0, labels


# ---------------------------------------------------------------- who takes part


def ours(distance: Image, mask: Image) -> Image:
    return watershed(distance, mask, H)


def skimage_reference(distance: Image, mask: Image) -> Image:
    return reference(distance, mask, H)


def skimage_h_maxima(distance: Image, mask: Image) -> Image:
    inside = np.where(mask, distance, 0)
    seeds = label(h_maxima(inside, H, footprint=TOUCHING), connectivity=2)
    return np.asarray(skimage_watershed(-inside, seeds, mask=mask, connectivity=TOUCHING))


def simple_itk(distance: Image, mask: Image) -> Image:
    sitk = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    inside = sitk.GetImageFromArray(np.where(mask, distance, -1000).astype(np.float32))
    suppressed = sitk.ReconstructionByDilation(inside - H, inside, True)
    peaks = sitk.RegionalMaxima(suppressed, 0, 1, True) * sitk.GetImageFromArray(mask.astype(np.uint32))
    seeds = sitk.ConnectedComponent(peaks, True)
    labels = sitk.MorphologicalWatershedFromMarkers(-1 * inside, seeds, False, True)
    return sitk.GetArrayFromImage(labels) * mask


def scipy_distance(labels: Image, mask: Image) -> Image:
    return np.asarray(ndimage.distance_transform_edt(mask))


def programs() -> dict[str, Program]:
    there = {
        "scikit-image: h_maxima, watershed": skimage_h_maxima,
        "scikit-image: reconstruction, watershed": skimage_reference,
    }
    if importlib.util.find_spec("SimpleITK"):
        there["SimpleITK: reconstruction, watershed"] = simple_itk
    return there


# ---------------------------------------------------------------- turns


def floods(distance: Image, mask: Image, rounds: int) -> None:
    """Each program in turns, ours before and after it; times and ratios are medians."""
    others, mine = programs(), []
    labels, result = ours(distance, mask), {}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for name in list(others) * rounds:
        mine.append(seconds(lambda: ours(distance, mask)))
        start = time.process_time()
        result[name] = others[name](distance, mask)
        took = time.process_time() - start
        mine.append(seconds(lambda: ours(distance, mask)))
        found[name].append((took, took / np.mean(mine[-2:])))
    print(f"{'hpc_isl flood':44}{np.median(mine):8.2f}{labels.max():15} objects")
    for name, turns in found.items():
        took, ratio = np.median(turns, axis=0)
        print(f"{name:44}{took:8.2f}{ratio:8.1f} × {agreement(result[name], labels)}")


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def agreement(theirs: Image, mine: Image) -> str:
    """How many objects, and which share of the foreground lies in another object than with us."""
    pairs, counts = np.unique(theirs[mine > 0].astype(np.int64) << 32 | mine[mine > 0], return_counts=True)
    best: dict[int, int] = {}
    for name, count in zip((pairs >> 32).tolist(), counts.tolist(), strict=True):
        best[name] = max(best.get(name, 0), count)
    return f"{len(best):5} objects, {1 - sum(best.values()) / counts.sum():.3%} of the foreground elsewhere"


if __name__ == "__main__":
    main()
