"""Neighbouring fields that overlap: where, and which of their objects are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from hpc_isl.objects.types import AnyLabels

Crop = tuple[slice, slice]
Seen = tuple[int, int]
"""Number of a field among those of its well, and the label of an object in it."""


class Overlap(NamedTuple):
    """Two fields, by their place in what was given, and the crop of each that shows what both show."""

    a: int
    b: int
    in_a: Crop
    in_b: Crop


def overlapping(
    positions_px: Sequence[tuple[float, float]], shapes: Sequence[tuple[int, int]]
) -> list[Overlap]:
    """Returns the pairs of fields that share pixels, a before b; distances of fields are rounded to pixels.

    Args:
        positions_px: stage position (y, x) of each field's first pixel, in pixels.
        shapes: (y, x) of each field.
    """
    overlaps = []
    for a, b in combinations(range(len(positions_px)), 2):
        offset = np.rint(np.subtract(positions_px[b], positions_px[a])).astype(int).tolist()
        in_a, in_b = [], []
        for shift, length_a, length_b in zip(offset, shapes[a], shapes[b], strict=True):
            start, stop = max(shift, 0), min(shift + length_b, length_a)
            in_a.append(slice(start, stop))
            in_b.append(slice(start - shift, stop - shift))
        if all(side.start < side.stop for side in in_a):
            overlaps.append(Overlap(a, b, (in_a[0], in_a[1]), (in_b[0], in_b[1])))
    return overlaps


def duplicates(bands: Iterable[tuple[AnyLabels, AnyLabels]], iou: float) -> list[tuple[int, int]]:
    """Returns pairs (label in a, label in b) that are the same object, each in one pair at most.

    The best pair first, until none reaches `iou`; of equals the one of the smaller labels. The IoU is that of
    what both fields show, so an object that one field's border cuts is as whole here as in the other field.

    Args:
        bands: pairs of (y, x) labels of the same area, 0 background: the crops of an `Overlap`, as wholes
            or in bands, so that memory need not hold them.
        iou: least intersection over union, above 0 and at most 1.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou={iou}: must be above 0 and at most 1")
    pairs: dict[int, int] = {}
    taken = set()
    for _, a, b in sorted(pair for pair in _ious(bands) if -pair[0] >= iou):
        if a not in pairs and b not in taken:
            pairs[a] = b
            taken.add(b)
    return list(pairs.items())


def _ious(bands: Iterable[tuple[AnyLabels, AnyLabels]]) -> Iterable[tuple[float, int, int]]:
    """Yields minus the IoU, and both labels, of all pairs that share pixels: the best sort first."""
    size_a, size_b, shared_pixels = Counter[int](), Counter[int](), Counter[int]()
    for a, b in bands:
        if a.shape != b.shape:
            raise ValueError(f"crops {a.shape}, {b.shape} differ in shape: they are to show the same ground")
        overlap = (a > 0) & (b > 0)
        size_a.update(_sizes(a[a > 0]))
        size_b.update(_sizes(b[b > 0]))
        # Two labels in one 64-bit number.
        shared_pixels.update(_sizes(a[overlap].astype(np.uint64) << 32 | b[overlap].astype(np.uint64)))
    for pair, pixels in shared_pixels.items():
        label_a, label_b = pair >> 32, pair & 0xFFFFFFFF
        yield -pixels / (size_a[label_a] + size_b[label_b] - pixels), label_a, label_b


def _sizes(values: AnyLabels) -> dict[int, int]:
    labels, counts = np.unique(values, return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def counted_first(same: Iterable[Seen], cut: Collection[Seen]) -> list[Seen]:
    """Returns the views of one object, first the one that counts; the others are its duplicates.

    It is the one of the earliest field that shows it whole; if none does, of the earliest field.

    Args:
        cut: objects that touch the border of their own image.
    """
    return sorted(same, key=lambda view: (view in cut, view))
