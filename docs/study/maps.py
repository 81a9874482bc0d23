"""What a map's shape costs before any network: people's labels become a map, are disturbed, and decoded.

    python docs/study/maps.py USIIGACI [PHASE_NUCLEAR] [--fields 10] [--level 1]

Prints, for each map, height h and disturbance: AP50, mAP, objects per true one, splits and merges per true
object, as means over fields. A split is a true object that two or more decoded ones cover by at least a tenth
each; a merge is a decoded object that covers at least half of two or more true ones. Labels come from
`labels/*_cells.tif` below each folder; the mask that decoding uses is the true one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from hpc_isl.objects.distance import distance_map
from hpc_isl.objects.geodesic import geodesic_map
from hpc_isl.objects.matching import match, splits_and_merges
from hpc_isl.objects.watershed import watershed

HEIGHTS = (2, 5, 10, 20, 40, 60)
NOISE = 8.0  # standard deviation, of 255
BLURS = {"none": (0.0, 0.0), "noise 8": (0.0, NOISE), "blur 2, noise 8": (2.0, NOISE)}


def diffusion_map(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the log heat that spreads inside each object from its centre (as in Cellpose), 0 to 255."""
    centres = geodesic_map(labels) == 255
    heat = np.zeros(np.array(labels.shape) + 2)
    framed = np.pad(labels, 1).astype(np.int64)
    middle = (slice(1, -1), slice(1, -1))
    shifts = [(slice(1 + y, heat.shape[0] - 1 + y), slice(1 + x, heat.shape[1] - 1 + x))
              for y in (-1, 0, 1) for x in (-1, 0, 1)]  # fmt: skip
    same = [framed[middle] == framed[shift] for shift in shifts]
    for _ in range(2 * int(np.sqrt(np.bincount(framed.ravel())[1:].max()) * 3)):
        heat[middle][centres] += 1
        heat[middle] = sum(heat[shift] * own for shift, own in zip(shifts, same, strict=True)) / 9
    logged = np.log1p(heat[middle] * (labels > 0) * 1e6)
    top = np.zeros(int(labels.max()) + 1)
    np.maximum.at(top, labels, logged)
    return np.asarray(np.where(labels > 0, 255 * logged / np.maximum(top[labels], 1e-9), 0), np.float32)


def neighbour_map(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the Euclidean map less the nearness of other objects (after Scherr et al. 2020), 0 to 255."""
    own = distance_map(labels).astype(np.float64)
    near = np.zeros(labels.shape)
    for name in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == name)
        window = (slice(max(y.min() - 15, 0), y.max() + 16), slice(max(x.min() - 15, 0), x.max() + 16))
        inside, others = labels[window] == name, (labels[window] > 0) & (labels[window] != name)
        if others.any():
            distance = distance_transform_edt(~others)
            near[window][inside] = np.maximum(0, 1 - distance[inside] / 15)
    return np.asarray(np.maximum(0, own - 255 * near**2 * (labels > 0)), np.float32)


MAPS: dict[str, Callable[[NDArray[Any]], NDArray[np.float32]]] = {
    "euclidean": distance_map,
    "geodesic": geodesic_map,
    "diffusion": diffusion_map,
    "neighbours": neighbour_map,
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("folders", nargs="+", type=Path)
    words.add_argument("--fields", type=int, default=10, help="at most so many, evenly spread")
    words.add_argument("--level", type=int, default=1, help="of the pyramid: 1 is half the resolution")
    given = words.parse_args()
    for folder in given.folders:
        paths = sorted((folder / "labels").glob("*_cells.tif"))
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(given.fields, len(paths))).astype(int)]
        rows = [row for path in paths for row in rows_of(path, 2**given.level)]
        columns = ["AP50", "mAP", "objects", "splits", "merges"]
        table = pd.DataFrame(rows).groupby(["disturbed", "map", "h"], sort=False)[columns].mean()
        print(f"\n{folder.name}: {len(paths)} fields\n{table.round(3).to_string()}")


def rows_of(path: Path, step: int) -> list[dict[str, Any]]:
    """Returns a row for each map, disturbance and height of one field."""
    labels = np.ascontiguousarray(tifffile.imread(path)[::step, ::step]).astype(np.int64)
    rows = []
    for name, make in MAPS.items():
        clean = make(labels)
        for disturbed, (blur, noise) in BLURS.items():
            rng = np.random.default_rng(0)
            seen = gaussian_filter(clean, blur) if blur else clean
            seen = (seen + rng.normal(0, noise, seen.shape)).astype(np.float32) if noise else seen
            for h in HEIGHTS:
                found = watershed(seen, labels > 0, h)
                matching = match(found, labels)
                splits, merges = splits_and_merges(found, labels)
                true = max(matching.truths, 1)
                rows.append(
                    {"disturbed": disturbed, "map": name, "h": h, "AP50": matching.ap(), "mAP":
                     matching.mean_ap(), "objects": matching.predictions / true, "splits": splits / true,
                     "merges": merges / true}
                )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
