"""The watershed against scikit-image, and against itself on crops."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import h_maxima

from hpc_isl.errors import UserError
from hpc_isl.objects.distance import distance_map
from hpc_isl.objects.watershed import reference, watershed

TOUCHING = np.ones((3, 3), int)
seeds = st.integers(0, 10**6)
heights = st.sampled_from([0.0, 0.01, 0.1, 0.4, 1.0, 1e30])
quickly = settings(deadline=None, max_examples=60)


def smooth(seed, shape=(48, 60), dtype=np.float32):
    """Hills of some size between 0 and 1, hardly two pixels of them equal, and a mask of some density."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.choice([0, 1, 2, 4]))
    hills = (noise - noise.min()) / np.ptp(noise)
    return hills.astype(dtype), hills > np.quantile(hills, rng.uniform(0, 0.9))


def hills(*peaks, width):
    """A line that falls by 1 per pixel from each peak (place, height)."""
    x = np.arange(width)
    return np.max([high - abs(x - place) for place, high in peaks], axis=0)[None].astype(np.float32)


def everywhere(distance):
    return np.ones(distance.shape, bool)


def digest(labels):
    return hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()


# ---------------------------------------------------------------- as scikit-image


@quickly
@given(seed=seeds, h=heights, dtype=st.sampled_from([np.float32, np.float64]))
def test_labels_are_those_of_scikit_image(seed, h, dtype):
    distance, mask = smooth(seed, dtype=dtype)
    np.testing.assert_array_equal(watershed(distance, mask, h), reference(distance, mask, h))


@quickly
@given(order=st.permutations(range(36)), mask=arrays.arrays(bool, (6, 6)), h=st.integers(0, 36))
def test_labels_are_those_of_scikit_image_on_any_order_of_levels(order, mask, h):
    distance = np.reshape(order, (6, 6))
    np.testing.assert_array_equal(watershed(distance, mask, h), reference(distance, mask, h))


@quickly
@given(distance=arrays.arrays(np.uint8, (9, 9), elements=st.integers(0, 5)), h=st.integers(0, 4))
def test_plateaus_have_the_seeds_of_scikit_image(distance, h):
    mask = distance > 0
    ours, theirs = watershed(distance, mask, h), reference(distance, mask, h)
    assert ours.max() == theirs.max()
    np.testing.assert_array_equal(ours > 0, mask)


def test_the_reference_has_the_seeds_of_h_maxima_where_no_peaks_are_equal():
    distance, mask = smooth(4, (200, 200), np.float64)
    inside = np.where(mask, distance, 0)
    assert watershed(distance, mask, 0.2).max() == label(h_maxima(inside, 0.2), connectivity=2).max()


# ---------------------------------------------------------------- which peaks are objects


def test_two_equal_peaks_that_meet_within_h_are_one_object():
    distance = hills((5, 20), (11, 20), width=17)  # they meet 3 below
    assert watershed(distance, everywhere(distance), 4).max() == 1
    assert reference(distance, everywhere(distance), 4).max() == 1
    assert label(h_maxima(distance, 4)).max() == 2  # why h_maxima itself is not used


@pytest.mark.parametrize(("h", "objects"), [(2.5, 2), (3, 1), (3.5, 1)])
@pytest.mark.parametrize("higher", [20, 26])
def test_a_peak_exactly_h_above_its_pass_is_no_object(h, objects, higher):
    distance = np.maximum(hills((5, 20), width=30), hills((8 + higher - 17, higher), width=30))
    assert distance[0, 8] == 17
    assert watershed(distance, everywhere(distance), h).max() == objects
    assert reference(distance, everywhere(distance), h).max() == objects


def test_a_low_hill_goes_to_the_object_whose_flood_reaches_it_first():
    """Of the pixels beside level 10 that of 21 is flooded before that of 22, which lies behind 20."""
    distance = np.array([[50, 40, 20, 25, 22, 10, 21, 45]])
    assert watershed(distance, everywhere(distance), 10).tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]
    assert reference(distance, everywhere(distance), 10).tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]


def test_a_component_whose_relief_is_below_h_is_one_object():
    distance = np.array([[3.0, 2.0, 3.0, 0.0, 1.0]])
    assert watershed(distance, np.array([[1, 1, 1, 0, 1]]), 100).tolist() == [[1, 1, 1, 0, 2]]


def test_a_peak_outside_the_mask_hides_none_inside():
    distance = hills((4, 20), (8, 30), width=12)
    mask = np.arange(12)[None] < 6
    assert watershed(distance, mask, 25).tolist() == [[1] * 6 + [0] * 6]


def test_pixels_touch_in_eight_directions():
    distance = np.eye(5)
    assert watershed(distance, distance > 0, 0).max() == 1
    np.testing.assert_array_equal(watershed(distance, distance > 0, 0), np.eye(5))


def test_levels_below_zero_are_levels():
    distance, mask = smooth(8)
    np.testing.assert_array_equal(watershed(distance - 2, mask, 0.1), reference(distance - 2, mask, 0.1))
    shifted = np.where(np.arange(60) % 2, distance - 0.5, distance)
    np.testing.assert_array_equal(watershed(shifted, mask, 0.1), reference(shifted, mask, 0.1))


def test_zero_and_minus_zero_are_one_level():
    distance = np.zeros((1, 9), np.float32)
    distance[0, ::2] = -0.0
    assert watershed(distance, everywhere(distance), 0).max() == 1


def test_objects_come_back_from_their_distance_map():
    y, x = np.mgrid[:60, :90]
    labels = np.zeros((60, 90), int)
    for number, (cy, cx) in enumerate([(20, 20), (25, 70), (30, 45)], 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 14**2] = number
    found = watershed(distance_map(labels), labels > 0, 10)
    assert found.max() == 3
    assert np.mean(found[labels > 0] == labels[labels > 0]) > 0.97


# ---------------------------------------------------------------- one result, however the work is cut


@quickly
@given(seed=seeds, h=heights, levels=st.sampled_from([4, 16, 2**20]))
def test_each_component_alone_gives_the_labels_of_the_whole_image(seed, h, levels):
    """With few levels nearly all pixels are ties."""
    distance, mask = smooth(seed)
    distance = np.floor(distance * levels)
    whole, pasted = watershed(distance, mask, h / 4 * levels), np.zeros(mask.shape, np.int64)
    components, count = ndimage.label(mask, TOUCHING)
    for name, box in enumerate(ndimage.find_objects(components), 1):
        part = watershed(distance[box], components[box] == name, h / 4 * levels)
        pasted[box] += np.where(part > 0, part + name * mask.size, 0)
    assert digest(renumbered(pasted)) == digest(whole)
    assert count <= whole.max()


@quickly
@given(seed=seeds, data=st.data())
def test_a_crop_that_holds_whole_components_gives_the_same_hash(seed, data):
    distance, mask = smooth(seed, (30, 30))
    distance = np.round(distance * 8)
    framed, height, width = np.zeros((50, 50), bool), *data.draw(st.tuples(*[st.integers(30, 50)] * 2))
    framed[10:40, 10:40] = mask
    y, x = data.draw(st.tuples(st.integers(40 - height, 10), st.integers(40 - width, 10)))
    y, x = max(y, 0), max(x, 0)
    crop = np.s_[y : y + height, x : x + width]
    deep = np.pad(distance, 10, constant_values=99)
    labels = np.zeros((50, 50), np.uint32)
    labels[crop] = watershed(deep[crop], framed[crop], 1)
    assert digest(labels) == digest(watershed(deep, framed, 1))


def renumbered(labels):
    """By first pixel, in plain Python."""
    numbers = {0: 0}
    return np.array([numbers.setdefault(one, len(numbers)) for one in labels.ravel()], np.uint32).reshape(
        labels.shape
    )


def test_objects_are_numbered_by_their_first_pixel():
    distance, mask = smooth(21, (90, 90))
    found = watershed(distance, mask, 0.05)
    assert found.max() > 5
    np.testing.assert_array_equal(found, renumbered(found))


def test_a_component_may_wind_through_the_whole_image():
    mask = np.zeros((61, 61), bool)
    mask[::4] = True
    mask[1::8, -1] = mask[2::8, -1] = mask[3::8, -1] = True
    mask[5::8, 0] = mask[6::8, 0] = mask[7::8, 0] = True
    distance = smooth(5, (61, 61))[0]
    assert watershed(distance, mask, 1e30).max() == 1
    np.testing.assert_array_equal(watershed(distance, mask, 0.2), reference(distance, mask, 0.2))


def test_every_object_is_in_one_piece():
    distance, mask = smooth(13, (120, 120))
    found = watershed(np.floor(distance * 20), mask, 2)
    for name in range(1, found.max() + 1):
        assert ndimage.label(found == name, TOUCHING)[1] == 1


def test_more_than_65535_objects_have_their_numbers():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True
    found = watershed(np.ones(mask.shape, np.float32), mask, 1)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found[mask], np.arange(1, 90001))


# ---------------------------------------------------------------- what is given


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (1, 1), (1, 8), (8, 1), (5, 6)])
@pytest.mark.parametrize("method", [watershed, reference])
def test_background_alone_has_no_objects_and_a_flat_foreground_has_one(shape, method):
    nothing, flat = np.zeros(shape, bool), np.full(shape, 7.0)
    assert method(flat, nothing, 1).tolist() == np.zeros(shape).tolist()
    assert method(flat, ~nothing, 1).tolist() == np.ones(shape).tolist()
    assert method(flat, ~nothing, 0).shape == shape


@pytest.mark.parametrize("shape", [(1, 200), (200, 1)])
def test_images_one_pixel_wide(shape):
    distance, mask = smooth(2, shape)
    np.testing.assert_array_equal(watershed(distance, mask, 0.1), reference(distance, mask, 0.1))


def test_single_pixels_are_objects():
    mask = np.zeros((5, 5), bool)
    mask[[0, 0, 2, 4, 4], [0, 4, 2, 0, 4]] = True
    assert watershed(np.zeros((5, 5)), mask, 10)[mask].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.uint16, np.int32])
def test_any_real_numbers_are_levels(dtype):
    distance, mask = smooth(17)
    given = (distance * 200).astype(dtype)
    np.testing.assert_array_equal(watershed(given, mask, 10), watershed(given.astype(np.float64), mask, 10))


def test_levels_that_differ_in_float64_alone_stay_apart():
    distance = 1 + np.array([[3.0, 1, 2]]) * 1e-12
    assert watershed(distance, everywhere(distance), 0.5e-12).max() == 2
    assert watershed(distance.astype(np.float32), everywhere(distance), 0).max() == 1


@pytest.mark.parametrize("view", [np.s_[::2, ::3], np.s_[::-1], np.s_[:, 5:40]])
def test_views_of_an_array_are_read_as_they_are(view):
    distance, mask = (one[view].T for one in smooth(6, dtype=np.float64))
    expected = watershed(np.ascontiguousarray(distance), np.ascontiguousarray(mask), 0.1)
    np.testing.assert_array_equal(watershed(distance, mask, 0.1), expected)


def test_what_is_given_is_not_changed():
    distance, mask = smooth(6)
    distance.flags.writeable = mask.flags.writeable = False
    watershed(distance, mask, 0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [watershed, reference])
def test_a_map_that_is_not_finite_is_refused(value, method):
    distance, mask = smooth(1)
    distance[3, 4:6] = value
    with pytest.raises(UserError, match="2 pixels of the distance map are NaN or infinite"):
        method(distance, mask, 1)


@pytest.mark.parametrize(
    ("mask", "h", "said"),
    [
        (np.ones((48, 59), bool), 1, r"\(48, 60\), mask of shape \(48, 59\)"),
        (np.ones((48, 60), np.float32), 1, "logits > 0"),
        (np.ones((48, 60), bool), -1, "h=-1"),
        (np.ones((48, 60), bool), np.nan, "h=nan"),
        (np.ones((48, 60), bool), np.inf, "h=inf"),
    ],
)
def test_other_mistakes_are_named(mask, h, said):
    with pytest.raises(UserError, match=said):
        watershed(smooth(1)[0], mask, h)
