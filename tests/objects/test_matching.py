"""Matching and its scores against the definitions that StarDist and Cellpose publish, written out densely."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from hpc_isl.objects.matching import THRESHOLDS, inside, match, object_scores, splits_and_merges

SMALL = arrays(np.uint8, (6, 7), elements=st.integers(0, 4))
SEEDS = range(12)


def nuclei(seed, size=64, count=25, spoil=0):
    """Discs, some touching; the higher `spoil`, the more of them are shifted, swollen, missing or made up."""
    rng = np.random.default_rng(seed)
    middle, radius = rng.uniform(0, size, (count, 2)), rng.uniform(3, 7, count)
    other = np.random.default_rng(seed + 1000)
    middle = middle + other.normal(0, spoil, middle.shape)
    radius = np.where(other.random(count) < 0.05 * spoil, 0, radius + other.normal(0, spoil / 2, count))
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint32)
    for k, ((cy, cx), r) in enumerate(zip(middle, radius, strict=True), start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < max(r, 0) ** 2] = 3 * k
    return labels


def dense_iou(prediction, truth):
    """IoU of all true by all predicted objects, one pair of masks at a time."""
    ours, theirs = np.unique(prediction[prediction > 0]), np.unique(truth[truth > 0])
    iou = np.zeros((len(theirs), len(ours)))
    for i, a in enumerate(theirs):
        for j, b in enumerate(ours):
            iou[i, j] = ((truth == a) & (prediction == b)).sum() / ((truth == a) | (prediction == b)).sum()
    return iou


def assigned(iou, threshold):
    """As both publish it: the assignment with most pairs at or above the threshold, IoU breaking ties."""
    if not iou.size:
        return np.zeros(0)
    gain = (iou >= threshold) + iou / (2 * min(iou.shape))
    pairs = iou[linear_sum_assignment(gain, maximize=True)]
    return pairs[pairs >= threshold]


def names(rng):
    """A number for each of 0, 1, …, 4: background stays, objects get any four up to the ceiling of uint32."""
    drawn = rng.choice(2**31, 4, replace=False).astype(np.uint32) * 2 + 1
    return np.concatenate([np.zeros(1, np.uint32), drawn])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spoil", [0.5, 1, 2])
def test_ap_is_the_average_precision_of_cellpose(seed, spoil):
    prediction, truth = nuclei(seed, spoil=spoil), nuclei(seed)
    iou, result = dense_iou(prediction, truth), match(prediction, truth)
    for threshold in THRESHOLDS:
        tp = len(assigned(iou, threshold))
        assert result.hits(threshold) == tp
        assert result.ap(threshold) == tp / (iou.shape[0] + iou.shape[1] - tp)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_other_scores_are_those_of_stardist(seed):
    prediction, truth = nuclei(seed, spoil=1), nuclei(seed)
    iou, result = dense_iou(prediction, truth), object_scores(prediction, truth)
    pairs = assigned(iou, 0.5)
    tp, fp, fn = len(pairs), iou.shape[1] - len(pairs), iou.shape[0] - len(pairs)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert tp > 3
    assert result["F1"] == result["RQ"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert result["SQ"] == pytest.approx(pairs.sum() / tp)
    assert result["PQ"] == pytest.approx(pairs.sum() / (tp + fp / 2 + fn / 2))
    assert result["count_error"] == fp - fn


@given(prediction=SMALL, truth=SMALL)
def test_no_assignment_finds_more_pairs_however_odd_the_objects(prediction, truth):
    iou, result = dense_iou(prediction, truth), match(prediction, truth)
    for threshold in THRESHOLDS:
        pairs = assigned(iou, threshold)
        assert result.hits(threshold) == len(pairs)
        assert result.iou[result.iou >= threshold].sum() == pytest.approx(pairs.sum())


@given(prediction=SMALL, truth=SMALL)
def test_each_pair_has_the_iou_of_its_masks_and_each_object_one_pair(prediction, truth):
    result = match(prediction, truth)
    assert len(set(result.prediction)) == len(set(result.truth)) == len(result.iou)
    for ours, theirs, iou in zip(result.prediction, result.truth, result.iou, strict=True):
        a, b = prediction == ours, truth == theirs
        assert iou == (a & b).sum() / (a | b).sum() >= 0.5


@given(prediction=SMALL, truth=SMALL, seed=st.integers(0, 100))
def test_other_numbers_for_the_objects_change_no_score(prediction, truth, seed):
    rng = np.random.default_rng(seed)
    ours, theirs = names(rng), names(rng)
    again = object_scores(ours[prediction], theirs[truth])
    assert again == pytest.approx(object_scores(prediction, truth), nan_ok=True)


@given(labels=SMALL)
def test_a_perfect_prediction_scores_one(labels):
    result = object_scores(labels, labels.astype(np.int64))
    assert result.pop("count_error") == 0
    assert set(result.values()) == {1.0}


@given(prediction=SMALL, truth=SMALL)
def test_truth_and_prediction_change_places_and_ap_stays(prediction, truth):
    there, back = object_scores(prediction, truth), object_scores(truth, prediction)
    assert back.pop("count_error") == -there.pop("count_error")
    assert back == pytest.approx(there, nan_ok=True)


@given(prediction=SMALL, truth=SMALL)
def test_a_higher_threshold_never_raises_a_score(prediction, truth):
    result = match(prediction, truth)
    for score in (result.ap, result.f1):
        row = [score(threshold) for threshold in THRESHOLDS]
        assert row == sorted(row, reverse=True)
    assert result.ap(0.95) - 1e-12 <= result.mean_ap() <= result.ap(0.5) + 1e-12


def test_thresholds_are_the_ten_of_the_paper():
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize("twentieths", range(10, 20))
def test_an_iou_of_exactly_the_threshold_is_a_hit(twentieths):
    """Where thresholds come from repeated addition, 0.6 is a little more than 3/5 and the hit is lost."""
    truth = np.ones((1, 20), np.uint8)
    prediction = (np.arange(20) < twentieths).astype(np.uint8)[None]
    result = match(prediction, truth)
    assert sum(result.hits(threshold) for threshold in THRESHOLDS) == twentieths - 9


def test_an_object_cut_in_exact_halves_is_found_once():
    whole, halves = np.full((2, 4), 5), np.repeat([[9, 9, 2, 2]], 2, axis=0)
    result = match(halves, whole)
    assert (result.hits(0.5), result.hits(0.55), result.prediction.tolist()) == (1, 0, [2])
    assert result.ap() == 1 / 2
    assert match(whole, halves).ap() == 1 / 2
    assert match(whole, halves).truth.tolist() == [2]


def test_two_objects_melted_into_one_cost_one_hit_and_one_object():
    truth = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 0, 3]])
    melted = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 0, 3]])
    result = match(melted, truth)
    assert result.ap(0.6) == 2 / 3
    assert result.ap(0.65) == 1 / 4
    assert result.count_error() == -1


def test_an_image_empty_in_truth_and_prediction_scores_one():
    nothing = np.zeros((4, 4), np.uint16)
    result = object_scores(nothing, nothing)
    assert result.pop("count_error") == 0
    assert set(result.values()) == {1.0}


@pytest.mark.parametrize("empty", ["truth", "prediction"])
def test_an_image_empty_in_one_of_both_scores_nothing(empty):
    nothing, one = np.zeros((4, 4), np.uint16), np.eye(4, dtype=np.uint16)
    result = object_scores(*((one, nothing) if empty == "truth" else (nothing, one)))
    assert result.pop("count_error") == (1 if empty == "truth" else -1)
    assert math.isnan(result.pop("SQ"))
    assert set(result.values()) == {0.0}


def test_an_image_without_pixels_is_an_empty_image():
    assert match(np.zeros((0, 5), np.uint8), np.zeros((0, 5), np.uint8)).mean_ap() == 1


def test_below_one_half_matching_would_need_a_search_and_is_refused():
    with pytest.raises(ValueError, match=r"threshold 0\.3"):
        match(nuclei(0), nuclei(0)).ap(0.3)


def test_what_cannot_be_labels_is_refused():
    labels = nuclei(0)
    with pytest.raises(ValueError, match=r"\(63, 64\) and truth \(64, 64\)"):
        match(labels[1:], labels)
    with pytest.raises(ValueError, match="prediction is float32"):
        match(labels.astype(np.float32), labels)
    with pytest.raises(ValueError, match="truth is bool"):
        match(labels, labels > 0)
    with pytest.raises(ValueError, match="truth holds -1"):
        match(labels, labels.astype(int) - 1)


def test_a_box_as_large_as_the_field_scores_what_the_field_scores():
    prediction, truth = nuclei(3, spoil=1), nuclei(3)
    box = (0, 0, 64, 64)
    assert object_scores(inside(prediction, box), inside(truth, box)) == object_scores(prediction, truth)


@given(y0=st.integers(0, 40), x0=st.integers(0, 40), seed=st.integers(0, 3))
def test_pixels_outside_of_a_box_change_no_score(y0, x0, seed):
    box = (y0, x0, y0 + 20, x0 + 24)
    prediction, truth = nuclei(seed, spoil=1), nuclei(seed)
    before = object_scores(inside(prediction, box), inside(truth, box))
    outside = np.ones_like(truth, bool)
    inside(outside, box)[:] = False
    prediction[outside], truth[outside] = 99, 0
    assert object_scores(inside(prediction, box), inside(truth, box)) == pytest.approx(before, nan_ok=True)


def test_what_a_box_leaves_of_an_object_is_one_object_even_in_two_pieces():
    arch = np.zeros((6, 7), np.uint8)
    arch[1:, 1], arch[1:, 5], arch[1, 1:6] = 4, 4, 4
    result = match(inside(arch, (3, 0, 6, 7)), inside(arch, (3, 0, 6, 7)))
    assert (result.predictions, result.truths, result.iou.tolist()) == (1, 1, [1.0])


@pytest.mark.parametrize("box", [(0, 0, 65, 10), (5, 5, 5, 9), (-1, 0, 5, 5)])
def test_a_box_that_is_empty_or_outside_is_refused(box):
    with pytest.raises(ValueError, match="64 × 64"):
        inside(nuclei(0), box)


def test_a_hundred_thousand_objects_need_no_table_of_all_by_all():
    """Dense, the overlaps of 100,489 by 100,489 objects would take 80 GB."""
    blocks = np.arange(1, 317**2 + 1, dtype=np.uint32).reshape(317, 317)
    truth = np.kron(blocks, np.ones((4, 4), np.uint32))
    prediction = np.roll(truth, 1, axis=1)
    tracemalloc.start()
    result = match(prediction, truth)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.truths == 317**2
    assert result.hits(0.6) == 317**2  # each shifted by a quarter, so 12 of 20 pixels are shared
    assert result.hits(0.65) == 0
    assert peak < 30 * truth.nbytes


@given(SMALL, SMALL)
def test_splits_and_merges_are_those_of_a_dense_count(prediction, truth):
    def share(mine, theirs):
        return ((prediction == mine) & (truth == theirs)).sum() / (truth == theirs).sum()

    ours, theirs = (np.setdiff1d(labels, [0]) for labels in (prediction, truth))
    splits = sum(sum(share(mine, own) >= 0.1 for mine in ours) > 1 for own in theirs)
    merges = sum(sum(share(mine, own) >= 0.5 for own in theirs) > 1 for mine in ours)
    assert splits_and_merges(prediction, truth) == (splits, merges)
    assert splits_and_merges(truth, truth) == (0, 0)
