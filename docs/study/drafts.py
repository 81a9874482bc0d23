"""How well labels drafted from a stain agree with nuclei that people drew.

    python docs/study/drafts.py BBBC039 [PHASE_NUCLEAR]

BBBC039 holds `images` and `labels` of the same names: settings of `annotate draft method=local` are chosen
on these alone, by the sum of IoU and mAP over the images as they are and every other one disturbed: its
nuclei made brighter or dimmer at random, blurred, over a slope of light, with noise. Neighbouring settings
(smooth 0.05, contrast 0.05) have a sum that is higher by up to 0.011, which was not pursued.
PHASE_NUCLEAR holds
`NAME_nuclear.tif` and `labels/NAME_nuclei.tif`, on which nothing is chosen. Its ceiling is the IoU of the
best of all global thresholds of the stain, raw or smoothed: as it is, and over all shifts within 4 pixels
(registration) with masks grown or shrunk by up to one pixel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import expand_labels

from hpc_isl.objects.draft_labels import draft_labels
from hpc_isl.objects.local_drafts import CHOSEN, LocalSettings, local_labels
from hpc_isl.objects.matching import object_scores
from hpc_isl.objects.scores import mask_iou

Array = NDArray[Any]
Pair = tuple[str, Array, Array]
"""name, stain and drawn labels (y, x)"""

MIN_AREA = 50
SHIFT = 4
TRIED: tuple[dict[str, float], ...] = (
    {},
    {"smooth": 0.05}, {"smooth": 0.1},
    {"background": 3.0}, {"background": 8.0},
    {"centre": 0.35, "saddle": 0.4}, {"centre": 0.42, "saddle": 0.4}, {"centre": 0.5, "saddle": 0.3},
    {"level": 0.4}, {"level": 0.5},
    {"contrast": 0.05}, {"contrast": 0.2},
    {"noise": 3.0}, {"noise": 8.0},
)  # fmt: skip
"""settings other than those chosen"""


def pairs(stains: Path, labels: Path, stain: str, drawn: str) -> list[Pair]:
    """Returns the stains NAME + `stain` that have labels NAME + `drawn`, by name."""
    names = sorted(path.name.removesuffix(drawn) for path in labels.glob(f"*{drawn}"))
    return [(n, tifffile.imread(stains / (n + stain)), tifffile.imread(labels / (n + drawn))) for n in names]


def disturbed(images: list[Pair], seed: int = 0) -> Iterator[Pair]:
    """Yields the images as a worse microscope and unevenly stained cells would give them."""
    random = np.random.default_rng(seed)
    for name, stain, labels in images:
        ground = np.median(stain[labels == 0])
        gains = np.exp(random.normal(0, 0.7, int(labels.max()) + 1))
        gains[0] = 1
        gain = ndimage.gaussian_filter(gains[expand_labels(labels, 8)], 1.5)
        y, x = np.indices(stain.shape)
        light = 300 * np.exp(-((y - 150) ** 2 + (x - 500) ** 2) / (2 * 250**2))
        blurred = ndimage.gaussian_filter((stain - ground) * gain, 1.0)
        yield name, blurred + ground + light + random.normal(0, 8, stain.shape), labels


def scores(drafted: Array, drawn: Array) -> tuple[float, float]:
    """Returns IoU of the masks, and mAP."""
    return mask_iou(drafted, drawn), object_scores(drafted, drawn)["mAP"]


def mean_scores(images: list[Pair], draft: Callable[[Array], Array]) -> NDArray[np.float64]:
    return np.asarray(np.mean([scores(draft(stain), drawn) for _, stain, drawn in images], 0))


def threshold(rule: str) -> Callable[[Array], Array]:
    """Returns the older method: one threshold, peaks of the distance."""
    return lambda stain: draft_labels(stain, threshold=rule, sigma=1.5, min_area=MIN_AREA, split=True)


def local(settings: LocalSettings = CHOSEN) -> Callable[[Array], Array]:
    return lambda stain: local_labels(stain, min_area=MIN_AREA, split=True, settings=settings)


def ceiling(stain: Array, drawn: Array, shift: int = 0, grow: bool = False) -> float:
    """Returns the best IoU of any global threshold, raw or smoothed, over all shifts up to `shift` pixels."""
    # The threshold of a local maximum is the mask of that threshold, grown; of a minimum, shrunk.
    filters = [ndimage.minimum_filter, ndimage.maximum_filter] if grow else []
    smooth = [ndimage.gaussian_filter(stain.astype(np.float32), sigma) for sigma in (0, 1.5)]
    images = smooth + [f(image, 3) for image in smooth for f in filters]
    steps = range(-shift, shift + 1)
    inner = (slice(shift, -shift or None),) * 2
    best = 0.0
    for image in images:
        values = image[inner].ravel()
        order = np.argsort(-values)
        ends = np.append(np.diff(values[order]) != 0, True)  # equal pixels are all in, or all out
        for y, x in product(steps, steps):
            truth = (np.roll(drawn, (y, x), (0, 1))[inner] > 0).ravel()[order]
            hits = np.cumsum(truth)
            best = max(best, float((hits / (np.arange(1, len(hits) + 1) + hits[-1] - hits))[ends].max()))
    return best


def shifted_iou(drafted: Array, drawn: Array) -> float:
    """Returns the IoU of the masks at the best shift within 4 pixels."""
    inner = (slice(SHIFT, -SHIFT),) * 2
    steps = range(-SHIFT, SHIFT + 1)
    return max(
        mask_iou(drafted[inner], np.roll(drawn, (y, x), (0, 1))[inner]) for y, x in product(steps, steps)
    )


def choose(images: list[Pair]) -> None:
    """Prints how each setting does on BBBC039."""
    sets = images, list(disturbed(images[::2]))

    def line(name: str, draft: Callable[[Array], Array]) -> None:
        found = np.concatenate([mean_scores(pairs, draft) for pairs in sets])
        print(f"{name:<32}" + "".join(f"{value:8.3f}" for value in [*found, found.sum()]), flush=True)

    print(f"{'BBBC039':<32}     IoU     mAP   (disturbed)       sum")
    for rule in ("otsu", "li"):
        line(f"threshold {rule}", threshold(rule))
    for change in TRIED:
        name = ", ".join(f"{key} {value:g}" for key, value in change.items())
        line(f"local, {name or 'as chosen'}", local(replace(CHOSEN, **change)))
    print(CHOSEN)


def measure(images: list[Pair]) -> None:
    """Prints how the methods do on fields on which nothing was chosen."""
    methods = {"otsu": threshold("otsu"), "li": threshold("li"), "local": local()}
    print("\nIoU, mAP of each method; IoU at the best shift; ceilings: as it is, shifted and grown")
    rows = []
    for name, stain, drawn in images:
        drafts = {method: draft(stain) for method, draft in methods.items()}
        row = [value for draft in drafts.values() for value in scores(draft, drawn)]
        row += [shifted_iou(drafts["local"], drawn)]
        row += [ceiling(stain, drawn), ceiling(stain, drawn, SHIFT, grow=True)]
        rows.append(row)
        titles = [f"{method} {score}" for method in methods for score in ("IoU", "mAP")]
        titles += ["local IoU shifted", "ceiling", "ceiling shifted, grown"]
        print(f"{name}: {drawn.max()} drawn, {drafts['local'].max()} drafted")
        print("   " + ", ".join(f"{title} {value:.3f}" for title, value in zip(titles, row, strict=True)))
    print("mean\n   " + ", ".join(f"{t} {v:.3f}" for t, v in zip(titles, np.mean(rows, 0), strict=True)))


def main() -> None:
    folder, *others = (Path(word) for word in sys.argv[1:])
    choose(pairs(folder / "images", folder / "labels", ".tif", ".tif"))
    for other in others:
        measure(pairs(other, other / "labels", "_nuclear.tif", "_nuclei.tif"))


if __name__ == "__main__":
    main()
