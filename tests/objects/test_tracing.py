"""Outlines hold the pixels of their object and no others, and are polygons as the specification asks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Curve
from scipy.ndimage import label

from hpc_isl.objects.tracing import Ring, outlines


def area(ring: Ring) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def inside(ring: Ring, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres a ring surrounds, by matplotlib."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return Curve(ring).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(arrays(np.uint32, (7, 8), elements=st.sampled_from([0, 1, 1, 2])))
def test_polygons_rasterise_to_the_labels_again(labels: np.ndarray) -> None:
    """On maps of few pixels objects have holes, pieces, and corners that touch, far more than cells do."""
    again = np.zeros_like(labels)
    found = list(outlines(labels))
    assert [number for number, _ in found] == sorted({*labels.ravel().tolist()} - {0})
    for number, polygons in found:
        assert len(polygons) == label(labels == number)[1]
        for outer, *holes in polygons:
            assert area(outer) > 0
            mask = inside(outer, labels.shape)
            for hole in holes:
                assert area(hole) < 0
                mask &= ~inside(hole, labels.shape)
            assert area(outer) + sum(map(area, holes)) == mask.sum()
            assert not again[mask].any()
            again[mask] = number
            for ring in (outer, *holes):
                assert len({tuple(point) for point in ring.tolist()}) == len(ring)  # it never meets itself
                turns = np.diff(ring, axis=0, append=ring[:1]) != 0
                assert (turns.sum(1) == 1).all()  # along edges of pixels
                assert (turns[1:] != turns[:-1]).all()  # corners alone
    np.testing.assert_array_equal(again, labels)


def test_a_ring_with_a_hole_that_touches_the_outside_at_a_corner_is_one_polygon() -> None:
    labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint32)
    [(_, [polygon])] = list(outlines(labels))
    assert [abs(area(ring)) for ring in polygon] == [8, 1]
