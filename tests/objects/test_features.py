"""Every column against scikit-image's regionprops, on objects of any shape."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.measure import label, regionprops

from hpc_isl.errors import UserError
from hpc_isl.objects.features import assigned, features

OURS = {  # column -> regionprops' name, and how close; areas and counts are equal to the bit
    "area_um2": ("area", 1e-14), "perimeter_um": ("perimeter", 1e-12), "eccentricity": ("eccentricity", 1e-7),
    "solidity": ("solidity", 1e-15), "equivalent_diameter_um": ("equivalent_diameter_area", 1e-14),
}  # fmt: skip
quickly = settings(deadline=None, max_examples=80)


def blobs(seed, shape=(90, 120), size=3.0):
    """Objects as a threshold finds them, and the image that was thresholded, in counts."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), size)
    counts = np.round(2000 + 4000 * noise / noise.std()).clip(0, 65535).astype(np.uint16)
    return label(noise > 0.4 * noise.std()).astype(np.uint32), counts


def assert_as_regionprops(labels, channels, pixel_um):
    result = features(labels, channels, pixel_um)
    stack = np.stack([*channels.values(), np.zeros(labels.shape)], -1).astype(np.float64)
    for row, region in enumerate(regionprops(labels.astype(int), stack, spacing=pixel_um)):
        ours = {name: column[row] for name, column in result.items()}
        assert ours["label"] == region.label
        assert tuple(ours[name] for name in ("y0", "x0", "y1", "x1")) == region.bbox
        assert (ours["centroid_y_um"], ours["centroid_x_um"]) == pytest.approx(region.centroid, rel=1e-12)
        for name, (theirs, close) in OURS.items():
            assert ours[name] == pytest.approx(getattr(region, theirs), rel=close, abs=close), name
        if region.eccentricity > 1e-3:  # a round object lies in no direction
            assert turn(ours["orientation_rad"], region.orientation) < 1e-6
        for place, name in enumerate(channels):
            for of, theirs in (("mean", "mean"), ("sd", "std"), ("min", "min"), ("max", "max")):
                expected = getattr(region, f"intensity_{theirs}")[place]
                assert ours[f"{name}_{of}"] == pytest.approx(expected, rel=1e-12, abs=1e-9), (name, of)
            assert ours[f"{name}_sum"] == stack[..., place][labels == region.label].sum()
    assert {len(column) for column in result.values()} == {np.count_nonzero(np.unique(labels))}
    return result


def turn(a, b):
    """Angle between two axes, which have no head and no tail."""
    return abs((a - b + np.pi / 2) % np.pi - np.pi / 2)


# ---------------------------------------------------------------- as regionprops


@quickly
@given(
    seed=st.integers(0, 10**6), size=st.sampled_from([0.7, 1.5, 4.0]), pixel_um=st.sampled_from([1, 0.299])
)
def test_objects_of_a_threshold_have_the_features_of_regionprops(seed, size, pixel_um):
    labels, counts = blobs(seed, (60, 70), size)
    assert_as_regionprops(labels, {"DAPI": counts, "ratio": np.float32(counts / 7)}, pixel_um)


@quickly
@given(labels=arrays.arrays(np.uint32, (8, 9), elements=st.integers(0, 3)))
def test_so_have_objects_in_pieces_that_touch_each_other_and_the_border(labels):
    assert_as_regionprops(labels, {}, 1)


@quickly
@given(mask=arrays.arrays(bool, (9, 9)))
def test_the_hull_is_that_of_regionprops_to_the_pixel(mask):
    result = features(mask.astype(np.uint32), {}, None)
    for region in regionprops(mask.astype(int)):
        assert result["area_px"][0] / result["solidity"][0] == pytest.approx(region.area_convex, rel=1e-12)


@pytest.mark.parametrize("turned", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "rows", [["1"], ["1111"], ["100", "010", "001"], ["11", "01"], ["101"], ["111", "101", "111"], ["10001"]]
)
def test_lines_corners_rings_and_single_pixels_are_objects_too(rows, turned):
    labels = np.rot90(np.array([list(row) for row in rows], np.uint32), turned)
    assert_as_regionprops(labels, {}, 1)
    assert_as_regionprops(np.pad(labels, 3), {}, 1)


def test_a_diagonal_line_has_exactly_the_orientation_of_regionprops():
    for labels in (np.eye(7, dtype=np.uint32), np.eye(7, dtype=np.uint32)[::-1].copy()):
        (region,) = regionprops(labels.astype(int))
        assert features(labels, {}, 1)["orientation_rad"][0] == pytest.approx(region.orientation, abs=1e-12)


def test_an_ellipse_has_the_figures_of_geometry():
    y, x = np.mgrid[:400, :400] - 200.0
    along, across = x * np.cos(0.6) + y * np.sin(0.6), y * np.cos(0.6) - x * np.sin(0.6)
    labels = ((along / 150) ** 2 + (across / 75) ** 2 <= 1).astype(np.uint32)
    result = {name: column[0] for name, column in features(labels, {}, 0.5).items()}
    assert result["area_um2"] == pytest.approx(np.pi * 75 * 37.5, rel=1e-3)
    assert (result["centroid_y_um"], result["centroid_x_um"]) == pytest.approx((100, 100))
    assert result["eccentricity"] == pytest.approx(np.sqrt(1 - 0.25), rel=1e-3)
    assert result["solidity"] > 0.99
    assert turn(result["orientation_rad"], np.pi / 2 - 0.6) < 1e-3


# ---------------------------------------------------------------- the table


def test_without_a_pixel_size_no_micrometre_is_invented():
    labels, counts = blobs(3)
    micro, pixels = features(labels, {"DAPI": counts}, 0.5), features(labels, {"DAPI": counts}, None)
    assert [name.replace("_um2", "_px").replace("_um", "_px") for name in micro] == list(pixels)
    np.testing.assert_array_equal(pixels["area_px"], np.bincount(labels.ravel())[1:])
    np.testing.assert_allclose(micro["area_um2"], pixels["area_px"] / 4)
    np.testing.assert_allclose(micro["perimeter_um"], pixels["perimeter_px"] / 2)
    np.testing.assert_array_equal(micro["eccentricity"], pixels["eccentricity"])


def test_labels_may_leave_numbers_out_and_rows_ascend():
    labels, counts = blobs(4)
    far = np.where(labels > 0, 2**32 - 1 - np.uint32(2) * labels, 0).astype(np.uint32)
    near, away = features(labels, {"c": counts}, None), features(far, {"c": counts}, None)
    assert (np.diff(away["label"].astype(np.int64)) > 0).all()
    for name in set(near) - {"label"}:
        np.testing.assert_array_equal(away[name], near[name][::-1])


def test_an_image_without_objects_has_a_table_of_the_same_columns_and_types():
    labels, counts = blobs(5)
    some, none = features(labels, {"c": counts}, 1.0), features(np.zeros_like(labels), {"c": counts}, 1.0)
    assert {name: column.dtype for name, column in some.items()} == {n: c.dtype for n, c in none.items()}
    assert {len(column) for column in none.values()} == {0}
    assert len(features(np.zeros((0, 0), np.uint32), {}, None)["label"]) == 0


def test_objects_at_the_edge_touch_the_border_and_others_do_not():
    labels = np.zeros((9, 9), np.uint32)
    labels[0, 4], labels[4, 0], labels[8, 4], labels[4, 8], labels[1:8, 4] = 1, 2, 3, 4, 5
    assert features(labels, {}, None)["touches_border"].tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float16, np.uint32, np.float64, ">u2"])
def test_channels_are_measured_as_they_are_stored(dtype):
    labels, counts = blobs(6)
    stored = (counts % 200).astype(dtype)
    result = features(labels, {"c": stored}, None)
    names = result["label"]
    np.testing.assert_array_equal(result["c_sum"], ndimage.sum(stored.astype(float), labels, names))
    np.testing.assert_array_equal(result["c_max"], ndimage.maximum(stored.astype(float), labels, names))
    np.testing.assert_allclose(
        result["c_sd"], ndimage.standard_deviation(stored.astype(float), labels, names)
    )


def test_a_spread_far_below_the_mean_is_not_lost():
    labels = np.ones((300, 300), np.uint32)
    pixels = 1e9 + np.arange(90000).reshape(300, 300) % 2
    assert features(labels, {"c": pixels}, None)["c_sd"][0] == pytest.approx(0.5, rel=1e-9)


def test_views_are_read_as_they_are_and_nothing_is_changed():
    labels, counts = blobs(7)
    labels.flags.writeable = counts.flags.writeable = False
    turned = features(labels[::2, ::-1].T, {"c": counts[::2, ::-1].T}, None)
    copied = features(labels[::2, ::-1].T.copy(), {"c": counts[::2, ::-1].T.copy()}, None)
    for name in turned:
        np.testing.assert_array_equal(turned[name], copied[name])


def test_threads_measure_side_by_side_what_one_measures_alone():
    images = [blobs(seed) for seed in range(6)]
    alone = [features(labels, {"c": counts}, 1.0) for labels, counts in images]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: features(image[0], {"c": image[1]}, 1.0), images))
    for one, other in zip(alone, together, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_what_are_no_labels_is_refused():
    labels, counts = blobs(8)
    with pytest.raises(UserError, match=r"float64: \(y, x\) of whole numbers"):
        features(labels.astype(float), {}, None)
    with pytest.raises(UserError, match="whole numbers from 0 on"):
        features(labels.astype(int) - 1, {}, None)
    with pytest.raises(UserError, match=r"shape \(1, 90, 120\)"):
        features(labels[None], {}, None)
    with pytest.raises(ValueError, match=r"channel 'c' \(89, 120\) and labels \(90, 120\)"):
        features(labels, {"c": counts[1:]}, None)


# ---------------------------------------------------------------- nuclei in cells


def slowly_assigned(nuclei, cells):
    result = []
    for name in np.unique(nuclei[nuclei > 0]):
        inside = cells[(nuclei == name) & (cells > 0)]
        result.append(np.bincount(inside).argmax() if inside.size else 0)
    return result


@quickly
@given(
    nuclei=arrays.arrays(np.uint32, (6, 7), elements=st.integers(0, 4)),
    cells=arrays.arrays(np.uint32, (6, 7), elements=st.integers(0, 4)),
)
def test_a_nucleus_belongs_to_the_cell_that_holds_most_of_it(nuclei, cells):
    assert assigned(nuclei, cells).tolist() == slowly_assigned(nuclei, cells)


def test_of_two_cells_that_halve_a_nucleus_the_smaller_label_has_it():
    nuclei = np.array([[7, 7, 7, 7, 0, 9, 9]], np.uint32)
    assert assigned(nuclei, np.array([[5, 5, 3, 3, 3, 0, 0]], np.uint32)).tolist() == [3, 0]


def test_a_nucleus_mostly_outside_belongs_to_the_cell_that_holds_some_of_it():
    nuclei, cells = np.ones((1, 9), np.uint32), np.zeros((1, 9), np.uint32)
    cells[0, 8] = 4_000_000_000
    assert assigned(nuclei, cells).tolist() == [4_000_000_000]


def test_nuclei_and_cells_are_of_one_image():
    with pytest.raises(ValueError, match="differ in shape"):
        assigned(np.ones((2, 2), np.uint32), np.ones((2, 3), np.uint32))
