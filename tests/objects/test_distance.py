"""Distance maps against scipy's distance transform of each object alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hpc_isl.errors import UserError
from hpc_isl.objects.distance import distance_map


def blocks(seed, zoom):
    """Labels that touch each other, the background and the edge."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, rng.integers(2, 6), rng.integers(1, 12, 2))
    return np.kron(coarse, np.ones((zoom, zoom), int))


def one_by_one(labels):
    distance = np.zeros(labels.shape)
    for name in np.unique(labels[labels > 0]):
        distance += ndimage.distance_transform_edt(labels == name)
    return distance.astype(np.float32)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), zoom=st.integers(1, 9))
def test_distances_are_those_of_each_object_alone(seed, zoom):
    labels = blocks(seed, zoom)
    if np.unique(labels).size > 1:
        np.testing.assert_array_equal(distance_map(labels, "pixels"), one_by_one(labels))


def test_objects_that_touch_have_a_valley_of_one_pixel_each():
    labels = np.ones((9, 12), int)
    labels[:, 6:] = 2
    assert (distance_map(labels, "pixels")[:, 5:7] == 1).all()


def test_the_edge_of_the_image_bounds_no_object():
    labels = np.zeros((3, 6), int)
    labels[:, 2:] = 1
    assert distance_map(labels, "pixels")[1].tolist() == [0, 0, 1, 2, 3, 4]


def test_an_object_that_fills_the_image_is_measured_to_its_edge():
    distance = distance_map(np.full((3, 5), 4), "pixels")
    assert distance.tolist() == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]


def test_each_object_rises_to_255():
    labels = np.zeros((40, 40), int)
    labels[2:5, 2:5], labels[10:35, 10:31], labels[38, 38] = 1, 2, 3
    distance = distance_map(labels)
    assert [distance[labels == name].max() for name in (0, 1, 2, 3)] == [0, 255, 255, 255]
    pixels = distance_map(labels, "pixels")
    np.testing.assert_allclose(distance[labels == 2], pixels[labels == 2] * 255 / 11, rtol=1e-6)


def test_pieces_of_one_label_are_one_object():
    labels = np.array([[1, 0, 1, 1, 1, 1, 0]])
    assert distance_map(labels, "pixels").tolist() == [[1, 0, 1, 2, 2, 1, 0]]
    assert distance_map(labels)[0, 0] == 127.5


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_any_integers_are_labels(dtype):
    labels = np.zeros((20, 30), dtype)
    labels[3:15, 4:20] = 1
    distance = distance_map(labels, "pixels")
    assert distance.dtype == np.float32
    np.testing.assert_array_equal(distance, one_by_one(labels))


def test_large_labels_need_no_large_table():
    labels = blocks(3, 4).astype(np.uint64)
    large = np.where(labels > 0, labels + 2**40, 0).astype(np.uint64)
    np.testing.assert_array_equal(distance_map(large), distance_map(labels))


@pytest.mark.parametrize("view", [np.s_[::2, ::3], np.s_[::-1], np.s_[:, 5:17]])
def test_views_of_an_array_are_read_as_they_are(view):
    labels = blocks(11, 5)
    labels = np.tile(labels, (3, 3))[view]
    np.testing.assert_array_equal(distance_map(labels.T), distance_map(np.ascontiguousarray(labels)).T)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (1, 9), (9, 1)])
def test_background_alone_is_zero(shape):
    assert not distance_map(np.zeros(shape, np.uint16)).any()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros((3, 3), np.float32), "whole numbers"),
        (np.zeros((2, 3, 3), int), "whole numbers"),
        (np.full((3, 3), -1), "0 is background"),
    ],
)
def test_what_is_not_labels_is_refused(labels, said):
    with pytest.raises(UserError, match=said):
        distance_map(labels)


def test_a_scale_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="'pixels' or 'object'"):
        distance_map(np.eye(3, dtype=int), "microns")
