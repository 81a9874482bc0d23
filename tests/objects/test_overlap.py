"""Objects that two fields show count once: views of one scene, cut as a stage cuts it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label, regionprops

from hpc_isl.objects.overlap import Overlap, counted_first, duplicates, overlapping

SHAPE = (80, 100)


def scene(seed, shape=(140, 180)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4)
    return label(noise > 0.5 * noise.std()).astype(np.uint32)


def view(ground, y, x, shape=SHAPE):
    """What a field at (y, x) shows, numbered by itself, and its label -> label of the scene."""
    part = ground[y : y + shape[0], x : x + shape[1]]
    # A border may cut an object into pieces, which a field cannot know to be one.
    pieces = np.zeros(part.shape, np.uint32)
    for name in np.unique(part[part > 0]):
        result = label(part == name)
        pieces += np.where(result > 0, result + pieces.max(), 0).astype(np.uint32)
    return pieces, {int(k): int(part[pieces == k][0]) for k in np.unique(pieces[pieces > 0])}


# ---------------------------------------------------------------- which fields


def test_the_crops_of_neighbours_show_the_same_ground():
    ground = np.arange(140 * 180).reshape(140, 180)
    places = [(0, 0), (0, 80), (60, 0), (60, 80), (3, 79)]
    images = [ground[y : y + 80, x : x + 100] for y, x in places]
    result = overlapping(places, [SHAPE] * 5)
    assert [(one.a, one.b) for one in result] == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    for one in result:
        np.testing.assert_array_equal(images[one.a][one.in_a], images[one.b][one.in_b])
        assert images[one.a][one.in_a].size


@settings(deadline=None)
@given(
    way=st.tuples(st.integers(-90, 90), st.integers(-90, 90)),
    shapes=st.tuples(*[st.tuples(st.integers(1, 60), st.integers(1, 60))] * 2),
)
def test_two_fields_overlap_where_each_pixel_is_in_both(way, shapes):
    painted = np.zeros((300, 300), int)
    for (y, x), (height, width) in zip(((100, 100), (100 + way[0], 100 + way[1])), shapes, strict=True):
        painted[y : y + height, x : x + width] += 1
    result = overlapping([(0.0, 0.0), way], shapes)
    assert len(result) == (painted == 2).any()
    for _, _, in_a, in_b in result:
        assert np.ones(shapes[0])[in_a].shape == np.ones(shapes[1])[in_b].shape
        assert np.ones(shapes[0])[in_a].size == (painted == 2).sum()


def test_the_way_between_two_fields_is_rounded_and_not_their_places():
    (one,) = overlapping([(0.4, 1000.4), (0.0, 1089.6)], [SHAPE, SHAPE])
    assert one == Overlap(0, 1, (slice(0, 80), slice(89, 100)), (slice(0, 80), slice(0, 11)))


def test_fields_side_by_side_or_far_apart_do_not_overlap():
    assert overlapping([(0, 0), (0, 100), (80, 0), (500, 500)], [SHAPE] * 4) == []
    assert overlapping([], []) == []


def test_fields_may_differ_in_size():
    (one,) = overlapping([(0, 0), (-10, -10)], [(5, 5), (50, 60)])
    assert one == (0, 1, (slice(0, 5), slice(0, 5)), (slice(10, 15), slice(10, 15)))


# ---------------------------------------------------------------- which objects


@pytest.mark.parametrize("seed", range(4))
def test_objects_in_two_views_of_one_scene_are_found(seed):
    ground = scene(seed)
    first, names = view(ground, 0, 0)
    second, others = view(ground, 3, 60)
    (one,) = overlapping([(0, 0), (3, 60)], [SHAPE, SHAPE])
    pairs = duplicates([(first[one.in_a], second[one.in_b])], 0.5)
    assert pairs
    assert [names[a] for a, _ in pairs] == [others[b] for _, b in pairs]
    seen = set(np.unique(ground[3:80, 60:100])) - {0}
    whole = {r.label for r in regionprops(ground[3:80, 60:100].astype(int)) if label(r.image).max() == 1}
    assert whole & seen <= {names[a] for a, _ in pairs}


def test_an_object_that_a_border_cuts_is_the_same_by_what_both_fields_show():
    """Of 40 columns the second field shows 4."""
    ground = np.zeros((80, 200), np.uint32)
    ground[20:50, 50:90] = 1
    first, second = ground[:, :100], ground[:, 86:186]
    (one,) = overlapping([(0, 0), (0, 86)], [SHAPE, SHAPE])
    assert duplicates([(first[one.in_a], second[one.in_b])], 0.99) == [(1, 1)]
    assert duplicates([(first, second)], 0.5) == []


def test_the_best_pairs_are_matched_first_and_each_object_once():
    a, b = np.zeros((1, 30), int), np.zeros((1, 30), int)
    a[0, :10], a[0, 10:14] = 1, 2
    b[0, 1:14] = 7
    assert duplicates([(a, b)], 0.2) == [(1, 7)]
    b[0, 10:14] = 8
    assert duplicates([(a, b)], 0.2) == [(2, 8), (1, 7)]


def test_of_equal_pairs_the_smaller_labels_are_matched():
    a, b = np.array([[4, 4, 3, 3]]), np.array([[9, 9, 9, 9]])
    assert duplicates([(a, b)], 0.5) == [(3, 9)]
    assert duplicates([(b, a)], 0.5) == [(9, 3)]


@pytest.mark.parametrize(("iou", "result"), [(0.5, [(1, 1)]), (0.5000001, [])])
def test_a_pair_that_just_reaches_the_threshold_is_a_pair(iou, result):
    assert duplicates([(np.array([[1, 1, 0]]), np.array([[1, 0, 0]]))], iou) == result


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), iou=st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_pairs_depend_neither_on_the_order_of_fields_nor_on_bands_and_hold_no_object_twice(seed, iou):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, (2, 7, 8)).astype(np.uint32)
    pairs = duplicates([(a, b)], iou)
    assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)
    for one, other in pairs:
        both, either = ((a == one) & (b == other)).sum(), ((a == one) | (b == other)).sum()
        assert both / either >= iou
    assert pairs == duplicates([(a[:3], b[:3]), (a[3:], b[3:])], iou)
    if iou >= 0.5:
        assert sorted(pairs) == sorted((one, other) for other, one in duplicates([(b, a)], iou))


def test_nothing_is_twice_where_one_shows_nothing():
    assert duplicates([(np.zeros((4, 4), int), np.ones((4, 4), int))], 0.5) == []
    assert duplicates([(np.zeros((0, 4), int), np.zeros((0, 4), int))], 0.5) == []


def test_labels_up_to_the_largest_are_kept_apart():
    most = np.full((2, 2), 2**32 - 1, np.uint32)
    assert duplicates([(most, most)], 0.5) == [(2**32 - 1, 2**32 - 1)]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="the same ground"):
        duplicates([(np.zeros((2, 3), int), np.zeros((3, 2), int))], 0.5)
    with pytest.raises(ValueError, match="iou=0"):
        duplicates([(np.zeros((2, 3), int), np.zeros((2, 3), int))], 0)


# ---------------------------------------------------------------- which of them counts


@pytest.mark.parametrize(
    ("cut", "counts"),
    [([], (0, 5)), ([(0, 5)], (1, 2)), ([(1, 2)], (0, 5)), ([(0, 5), (1, 2)], (0, 5))],
)
def test_of_a_pair_the_one_that_is_whole_counts_else_the_one_of_the_earlier_field(cut, counts):
    for pair in ([(0, 5), (1, 2)], [(1, 2), (0, 5)]):
        assert counted_first(pair, cut)[0] == counts


def test_of_an_object_in_the_corner_of_four_fields_one_counts():
    four = [(3, 1), (0, 4), (2, 1), (1, 9)]
    assert counted_first(four, [(0, 4), (1, 9)]) == [(2, 1), (3, 1), (0, 4), (1, 9)]
