"""Maps towards one centre: scipy's shortest paths between all pixels are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from skimage.measure import label
from skimage.morphology import local_maxima

from hpc_isl.errors import UserError
from hpc_isl.objects.geodesic import geodesic_map
from hpc_isl.objects.watershed import watershed

random_labels = st.tuples(
    st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 14), st.integers(1, 4), st.floats(0.3, 1)
)


def drawn(seed, height, width, names, share):
    rng = np.random.default_rng(seed)
    return rng.integers(1, names + 1, (height, width)) * (rng.random((height, width)) < share)


def by_all_paths(labels):
    """The map in pixels, from the shortest paths between all pairs of pixels of an object."""
    height, width = labels.shape
    number = np.arange(labels.size).reshape(labels.shape)
    ends, lengths = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        there = (slice(dy, None), slice(max(dx, 0), width + min(dx, 0)))
        here = (slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
        same = (labels[here] == labels[there]) & (labels[here] > 0)
        ends.append(np.stack([number[here][same], number[there][same]]))
        lengths.append(np.full(same.sum(), 7 if dy and dx else 5))
    rows, columns = np.concatenate(ends, axis=1)
    graph = coo_matrix((np.concatenate(lengths), (rows, columns)), (labels.size, labels.size)).tocsr()
    paths = dijkstra(graph, directed=False)
    expected = np.zeros(labels.size)
    for pixel in np.flatnonzero(labels):
        piece = np.flatnonzero(np.isfinite(paths[pixel]))
        if labels.ravel()[piece[0]] and not expected[pixel]:
            between = paths[np.ix_(piece, piece)]
            largest = between.max(axis=1)
            centre = int(np.argmin(largest))  # the first in raster order
            expected[piece] = (largest[centre] + 5 - between[centre]) / 5
    return expected.reshape(labels.shape)


@settings(max_examples=80, deadline=None)
@given(random_labels)
def test_it_is_the_shortest_way_to_the_pixel_with_the_smallest_largest_distance(content):
    labels = drawn(*content)
    np.testing.assert_allclose(geodesic_map(labels, "pixels"), by_all_paths(labels), rtol=1e-6)


@settings(max_examples=80, deadline=None)
@given(random_labels)
def test_every_piece_has_one_peak_of_255(content):
    labels = drawn(*content)
    heights = geodesic_map(labels)
    pieces = label(labels, connectivity=2)
    for piece in range(1, pieces.max() + 1):
        own = np.where(pieces == piece, heights, 0)
        assert (own == 255).sum() == 1
        assert label(local_maxima(np.pad(own, 1), connectivity=2), connectivity=2).max() == 1
    assert ((heights > 0) == (labels > 0)).all()


def snake(height=9, width=40):
    """One object that winds: the Euclidean map has a ridge of equal peaks in it."""
    labels = np.zeros((height, width), int)
    labels[1:-1, 1::4] = 1
    labels[1, 1:-1:8], labels[1, 2:-1] = 1, 1
    labels[1, 6::8] = labels[1, 7::8] = labels[1, 8::8] = 0
    labels[-2, 5:-1] = np.where(np.arange(5, width - 1) % 8 < 5, labels[-2, 5:-1], 1)
    return labels


@pytest.mark.parametrize("h", [0, 1, 5, 20, 60])
def test_a_long_bent_object_comes_back_whole_at_any_height(h):
    long = np.zeros((60, 60), int)
    y, x = np.mgrid[:60, :60]
    radius = np.hypot(y - 30, x - 30)
    long[(radius > 18) & (radius < 26) & ~((x > 30) & (abs(y - 30) < 8))] = 1
    for labels in (long, snake()):
        labels = label(labels, connectivity=2)
        found = watershed(geodesic_map(labels), labels > 0, h)
        assert found.max() == labels.max()
        np.testing.assert_array_equal(found, labels)


def test_labels_of_any_type_and_number_and_none_at_all():
    labels = np.zeros((6, 7), np.uint16)
    labels[1:3, 1:4], labels[4:, 2:6] = 60000, 3
    np.testing.assert_array_equal(geodesic_map(labels), geodesic_map(np.where(labels == 60000, 1, labels)))
    assert not geodesic_map(np.zeros((4, 5), int)).any()
    assert geodesic_map(np.zeros((0, 5), int)).shape == (0, 5)
    assert geodesic_map(labels).dtype == np.float32
    with pytest.raises(UserError, match="whole numbers"):
        geodesic_map(labels.astype(float))


def test_the_centre_of_a_disc_is_its_middle():
    y, x = np.mgrid[:120, :120]
    heights = geodesic_map((np.hypot(y - 60, x - 60) < 55).astype(int), "pixels")
    assert np.argwhere(heights == heights.max()).tolist() == [[60, 60]]
