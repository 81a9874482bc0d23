"""Scores against independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr
from skimage.metrics import structural_similarity

from hpc_isl.objects.scores import mae, mask_iou, pcc, pcc_by_object, ssim


def pair(seed=0, shape=(40, 50)):
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2, 100, shape).astype(np.float32)
    return (truth + rng.normal(0, 80, shape)).astype(np.float32), truth


@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 100), offset=st.floats(-1000, 1000))
def test_pcc_is_that_of_scipy_for_any_gain_and_offset(seed, gain, offset):
    prediction, truth = pair(seed)
    expected = pearsonr(prediction.ravel().astype(float), truth.ravel().astype(float)).statistic
    assert pcc(prediction * gain + offset, truth) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30, 60000.0])
def test_pcc_of_a_constant_prediction_is_nothing_and_of_a_constant_truth_not_a_number(value):
    """A user sees a dead network score 0 on each field that has a stain, and none on one that has none."""
    constant, truth = np.full((40, 50), value, np.float32), pair()[1]
    assert pcc(constant, truth) == 0
    assert math.isnan(pcc(truth, constant))
    assert math.isnan(pcc(constant, constant))


def test_pcc_of_large_counts_is_exact():
    truth = np.arange(64, dtype=np.uint16).reshape(8, 8) + 60000
    assert pcc(truth, truth) == pytest.approx(1, abs=1e-12)


def test_mae_is_in_the_unit_of_the_images():
    assert mae(np.zeros((2, 2), np.uint16), np.full((2, 2), 3, np.uint16)) == 3


def test_ssim_of_the_truth_is_one_and_falls_with_noise():
    prediction, truth = pair()
    assert ssim(truth, truth) == pytest.approx(1)
    assert ssim(prediction, truth) < 0.95
    low, high = np.percentile(truth, [0.1, 99.9])
    expected = structural_similarity(
        truth, prediction, data_range=high - low, gaussian_weights=True, use_sample_covariance=False
    )
    assert ssim(prediction, truth) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_a_constant_truth_is_not_a_number():
    assert math.isnan(ssim(np.ones((20, 20)), np.ones((20, 20))))
    assert math.isnan(ssim(*pair(shape=(5, 40))))


def test_pcc_by_object_sees_the_pixels_of_each_object_alone():
    prediction, truth = pair()
    labels = np.zeros(truth.shape, np.uint32)
    labels[2:10, 3:12], labels[20:30, 20:40], labels[35:37, 1:3] = 7, 300, 9
    result = pcc_by_object(prediction, truth, labels)
    assert list(result) == [7, 300]
    for name, value in result.items():
        inside = labels == name
        assert value == pytest.approx(pearsonr(prediction[inside], truth[inside]).statistic, abs=1e-5)


def test_objects_with_a_constant_prediction_count_as_nothing_those_with_a_constant_truth_not_at_all():
    prediction, truth = pair()
    labels = np.zeros(truth.shape, np.uint32)
    labels[:10, :10], labels[20:30, :10], labels[20:30, 20:30] = 1, 2, 3
    prediction[:10, :10], truth[20:30, :10] = 0.1, 0.1
    result = pcc_by_object(prediction, truth, labels)
    assert list(result) == [1, 3]
    assert result[1] == 0
    assert result[3] > 0
    assert pcc_by_object(prediction, truth, np.zeros_like(labels)) == {}


def test_mask_iou_is_the_shared_part_of_masks_or_labels():
    truth, prediction = np.zeros((4, 6), bool), np.zeros((4, 6), np.uint32)
    truth[:, :4], prediction[:, 2:] = True, 70000
    assert mask_iou(prediction, truth) == mask_iou(truth, prediction) == 8 / 24
    assert mask_iou(truth, truth) == 1


def test_mask_iou_of_empty_masks_is_one_and_of_one_empty_mask_nothing():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, full) == mask_iou(full, empty) == 0
