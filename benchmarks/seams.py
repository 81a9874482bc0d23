"""Objects that differ from those of the untiled image, when one and the same maps are labelled in blocks.

    python benchmarks/seams.py [--edge 2048] [--block 512] [--halo 64 128]

The distance map and mask are those of touching, uneven cells; each block, grown by a halo, is flooded by
the same `flood`. Then come our blocks, the common way (crop the halo, join what overlaps by IoU), and
cellpose's distributed merge, where cellpose can be imported (`pip install cellpose dask-image
dask-jobqueue`). That one merges volumes alone, so it is given five equal planes. StarDist's merge is not
here: it takes star-shaped polygons with their probabilities, which these maps do not say.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hpc_isl.objects.watershed import watershed
from hpc_isl.objects.watershed_tiled import tiled_watershed
from hpc_isl.tiles import Tile, tiles

H = 10.0
PLANES = 5
Labels = NDArray[np.uint32]
Maps = tuple[NDArray[np.float32], NDArray[np.bool_]]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--edge", type=int, default=2048)
    words.add_argument("--block", type=int, default=512)
    words.add_argument("--halo", type=int, nargs="+", default=[64, 128])
    given = words.parse_args()
    maps = cells(given.edge)
    whole = watershed(*maps, H)
    print(
        f"{given.edge}², {whole.max()} objects, {np.mean(whole > 0):.0%} foreground, blocks of {given.block}²"
    )
    _tell("hpc_isl, blocks", 0, whole, ours(maps, given.block))
    for halo in given.halo:
        grid = list(tiles(whole.shape, given.block, halo))
        parts = [watershed(maps[0][tile.read], maps[1][tile.read], H) for tile in grid]
        _tell("halo, crop, IoU", halo, whole, glued(grid, parts, whole.shape))
        try:
            found = by_cellpose(maps, given.block, halo)
        except ImportError as error:
            print(f"  cellpose's merge: not tried, {error}")
            continue
        _tell("cellpose's merge", halo, whole, found)


def cells(edge: int) -> Maps:
    """A distance map up to 255 and a mask of cells that touch, some of them far from round."""
    rng = np.random.default_rng(0)
    points = np.ones((edge, edge), bool)
    points[rng.integers(0, edge, edge * edge // 900), rng.integers(0, edge, edge * edge // 900)] = False
    near = ndimage.distance_transform_edt(points)
    bumps = ndimage.gaussian_filter(rng.standard_normal((edge, edge)), 5)
    distance = np.clip(1 - near / 17 + 1.6 * bumps, 0, 1) * 255
    patches = ndimage.gaussian_filter(rng.standard_normal((edge, edge)), 40)
    return distance.astype(np.float32), (distance > 12) & (patches > np.quantile(patches, 0.25))


def ours(maps: Maps, block: int) -> Labels:
    shape = maps[0].shape
    found = np.zeros(shape, np.uint32)
    with tempfile.TemporaryDirectory() as folder:
        tiled_watershed(
            lambda box: (maps[0][box], maps[1][box]), found.__setitem__, (shape[0], shape[1]), H,
            block=(block, block), scratch=Path(folder),
        )  # fmt: skip
    return found


def glued(grid: list[Tile], parts: list[Labels], shape: tuple[int, ...]) -> Labels:
    """Own boxes side by side; objects of two blocks are one if, where both see, their IoU is 0.5 or more."""
    found, first, pairs = np.zeros(shape, np.int64), 1, []
    seen: list[tuple[Tile, NDArray[np.int64]]] = []
    for tile, part in zip(grid, parts, strict=True):
        named = np.where(part > 0, part.astype(np.int64) + first - 1, 0)
        for other, theirs in seen:
            pairs += _overlapping(tile, named, other, theirs)
        found[tile.own] = named[_inner(tile)]
        seen.append((tile, named))
        first += int(part.max())
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(first, first))
    return connected_components(graph, directed=False)[1][found].astype(np.uint32)


def _inner(tile: Tile) -> tuple[slice, ...]:
    pairs = zip(tile.own, tile.read, strict=True)
    return tuple(slice(own.start - read.start, own.stop - read.start) for own, read in pairs)


def _overlapping(a: Tile, in_a: NDArray[Any], b: Tile, in_b: NDArray[Any]) -> list[tuple[int, int]]:
    low = [max(p.start, q.start) for p, q in zip(a.read, b.read, strict=True)]
    high = [min(p.stop, q.stop) for p, q in zip(a.read, b.read, strict=True)]
    if any(start >= stop for start, stop in zip(low, high, strict=True)):
        return []
    one, two = (
        part[tuple(slice(s - r.start, e - r.start) for s, e, r in zip(low, high, tile.read, strict=True))]
        for tile, part in ((a, in_a), (b, in_b))
    )
    both = (one > 0) & (two > 0)
    sizes_one, sizes_two = (
        dict(zip(*np.unique(part, return_counts=True), strict=True)) for part in (one, two)
    )
    shared, counts = np.unique(np.stack([one[both], two[both]]), axis=1, return_counts=True)
    return [
        (int(p), int(q))
        for (p, q), n in zip(shared.T, counts, strict=True)
        if n / (sizes_one[p] + sizes_two[q] - n) >= 0.5
    ]


def by_cellpose(maps: Maps, block: int, halo: int) -> Labels:
    """Each block is flooded as cellpose cuts it: those at the image's border read less than our tiles."""
    from cellpose.contrib import distributed_segmentation as cellpose

    size, whole = (PLANES, block, block), (PLANES, *maps[0].shape)
    indices, crops = cellpose.get_block_crops(whole, size, np.array([0, halo, halo]), None)
    blocks = cellpose.get_nblocks(whole, size)
    found, faces, used = np.zeros(whole, np.uint32), [], []
    for index, crop in zip(indices, crops, strict=True):
        part = watershed(maps[0][crop[1:]], maps[1][crop[1:]], H)
        trimmed, box = cellpose.remove_overlaps(np.repeat(part[None], PLANES, 0), crop, halo, size)
        named, names = cellpose.global_segment_ids(trimmed, index, blocks)
        found[tuple(box)] = named
        faces.append(cellpose.block_faces(named))
        used += names
    relabelled = cellpose.determine_merge_relabeling(indices, faces, np.unique(used))
    return np.asarray(relabelled[found[PLANES // 2]], np.uint32)


def _tell(way: str, halo: int, whole: Labels, found: Labels) -> None:
    wrong = int(whole.max()) - same(whole, found)
    print(f"  {way:<18} halo {halo:>4} px: {wrong:>5} objects differ, {wrong / whole.max():.3%}")


def same(whole: Labels, found: Labels) -> int:
    """Objects of the untiled image that are in the other just so, pixel by pixel."""
    pairs, counts = np.unique(
        np.stack([whole.ravel(), found.ravel().astype(np.uint32)]), axis=1, return_counts=True
    )
    sizes, others = np.bincount(whole.ravel()), np.bincount(found.ravel())
    return sum(
        int(p > 0 and q > 0 and n == sizes[p] == others[q]) for (p, q), n in zip(pairs.T, counts, strict=True)
    )


if __name__ == "__main__":
    main()
