"""Neighbouring fields that show the same ground: where, and which of their objects are one and the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Crop = tuple[slice, slice]
Seen = tuple[int, int]
"""Number of a field among those of its well, and a label."""


class Overlap(NamedTuple):
    """Two fields, by their place in what was given, and the crop of each that shows what both show."""

    a: int
    b: int
    in_a: Crop
    in_b: Crop


def overlapping(
    positions_px: Sequence[tuple[float, float]], shapes: Sequence[tuple[int, int]]
) -> list[Overlap]:
    """The pairs of fields that share pixels, a before b; the way from field to field is rounded to pixels.

    Args:
        positions_px: stage position (y, x) of each field's first pixel, in pixels.
        shapes: (y, x) of each field.
    """
    found = []
    for a, b in combinations(range(len(positions_px)), 2):
        way = np.rint(np.subtract(positions_px[b], positions_px[a])).astype(int).tolist()
        pairs = [_common(*each) for each in zip(way, shapes[a], shapes[b], strict=True)]
        if all(own.start < own.stop for own, _ in pairs):
            (own_y, other_y), (own_x, other_x) = pairs
            found.append(Overlap(a, b, (own_y, own_x), (other_y, other_x)))
    return found


def _common(way: int, own: int, other: int) -> tuple[slice, slice]:
    """Along one axis the stretch that both hold, in each one's pixels; `way` from the first to the other."""
    start, stop = max(way, 0), min(way + other, own)
    return slice(start, stop), slice(start - way, stop - way)


def duplicates(bands: Iterable[tuple[NDArray[Any], NDArray[Any]]], iou: float) -> list[tuple[int, int]]:
    """Pairs (label in a, label in b) of objects that are one and the same, each in one pair at most.

    The best pair first, until none reaches `iou`; of equals the one of the smaller labels. The IoU is that of
    what both fields show, so an object that one field's border cuts is as whole here as in the other field.

    Args:
        bands: pairs of (y, x) labels of the same ground, 0 background: the crops of an `Overlap`, as wholes
            or in bands, so that memory need not hold them.
        iou: least intersection over union, above 0 and at most 1.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou={iou}: must be above 0 and at most 1")
    found, taken_a, taken_b = [], set(), set()
    for _, one, other in sorted(each for each in _ious(bands) if -each[0] >= iou):
        if one not in taken_a and other not in taken_b:
            taken_a.add(one)
            taken_b.add(other)
            found.append((one, other))
    return found


def _ious(bands: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Iterable[tuple[float, int, int]]:
    """Minus the IoU, and both labels, of all pairs that share pixels."""
    size_a, size_b, shared = Counter[int](), Counter[int](), Counter[int]()
    for a, b in bands:
        if a.shape != b.shape:
            raise ValueError(f"crops {a.shape}, {b.shape} differ in shape: they are to show the same ground")
        both = (a > 0) & (b > 0)
        size_a.update(_sizes(a[a > 0]))
        size_b.update(_sizes(b[b > 0]))
        shared.update(_sizes(a[both].astype(np.uint64) << 32 | b[both].astype(np.uint64)))
    for pair, pixels in shared.items():
        one, other = pair >> 32, pair & 0xFFFFFFFF
        yield -pixels / (size_a[one] + size_b[other] - pixels), one, other


def _sizes(values: NDArray[Any]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def counted_first(same: Iterable[Seen], cut: Collection[Seen]) -> list[Seen]:
    """Objects that are one and the same, the one that counts first; the others are its duplicates.

    It is the one of the earliest field that shows it whole; if none does, of the earliest field.

    Args:
        cut: objects that touch the border of their own image.
    """
    return sorted(same, key=lambda each: (each in cut, each))
