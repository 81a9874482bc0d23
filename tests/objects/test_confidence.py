"""Measures of an object against scipy and plain loops, and the probability against simulated truth."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.special import expit

from hpc_isl.objects.confidence import ENOUGH, calibrate, confidence, learn, measures, probability
from hpc_isl.objects.watershed import watershed

quickly = settings(deadline=None, max_examples=40)


def maps(seed, shape=(60, 80)):
    """A distance map and a mask's logits with many touching objects, and their labels."""
    rng = np.random.default_rng(seed)
    distance = 255 * expit(ndimage.gaussian_filter(rng.standard_normal(shape), 2) * 12).astype(np.float32)
    logits = (ndimage.gaussian_filter(rng.standard_normal(shape), 4) * 40 + 1).astype(np.float32)
    return watershed(distance, logits > 0, 20), np.stack([distance, logits])


def sharpness_by_hand(labels, distance, name):
    own = labels == name
    others = ndimage.binary_dilation((labels > 0) & ~own, np.ones((3, 3))) & own
    return 1 - distance[others].max() / distance[own].max() if others.any() else 1


@quickly
@given(st.integers(0, 2**32 - 1))
def test_measures_are_those_of_a_plain_definition(seed):
    labels, prediction = maps(seed)
    names = np.unique(labels[labels > 0])
    values = measures(labels, prediction, threshold=0.3, pixels=0.25)
    assert values[:, 0] == pytest.approx(ndimage.mean(expit(prediction[1] - 0.3), labels, names), rel=1e-5)
    sharpness = [sharpness_by_hand(labels, prediction[0], name) for name in names]
    assert values[:, 1] == pytest.approx(sharpness, rel=1e-5, abs=1e-6)
    assert np.exp(values[:, 2]) == pytest.approx(ndimage.sum(labels > 0, labels, names) / 4)


def test_nuclei_have_no_cuts_and_a_field_may_be_empty():
    labels, prediction = maps(1)
    assert (measures(labels, prediction[1:], 0)[:, 1] == 1).all()
    assert measures(np.zeros_like(labels), prediction, 0).shape == (0, 3)


def simulated(seed, objects=4000, weights=(-2.0, 3.0, 1.5, 0.0)):
    rng = np.random.default_rng(seed)
    values = np.stack([rng.random(objects), rng.random(objects), rng.normal(5, 1, objects)], 1)
    return values, rng.random(objects) < probability(values, weights)


def test_a_probability_is_as_often_right_as_it_says():
    values, found = simulated(0, objects=40_000)
    fresh, truth = simulated(1, objects=40_000)
    chance = confidence("confidence", fresh, learn(values, found))
    for low in np.arange(0.2, 0.8, 0.1):
        inside = (chance >= low) & (chance < low + 0.1)
        # Three standard errors of a share.
        error = 3 * np.sqrt(0.25 / inside.sum())
        assert truth[inside].mean() == pytest.approx(chance[inside].mean(), abs=error)


def test_what_is_learnt_is_told_with_area_alone_as_the_baseline():
    values, found = simulated(2)
    made = calibrate(np.split(values, 8), np.split(found, 8))
    assert len(made.weights) == 4
    assert made.figures["objects"] == 4000
    # The area says nothing here; a coin has AUROC 0.5 and a Brier score of the variance.
    assert made.figures["area_auroc"] == pytest.approx(0.5, abs=0.05)
    assert made.figures["area_brier"] == pytest.approx(found.var(), abs=0.005)
    truth = probability(values, (-2, 3, 1.5, 0))
    assert made.figures["auroc"] == pytest.approx(auroc(truth, found), abs=0.01)
    assert made.figures["brier"] == pytest.approx(np.mean((truth - found) ** 2), abs=0.005)
    json.dumps(made.figures)


def auroc(chance, found):
    """The share of pairs in which the found object has the higher chance."""
    return np.mean(chance[found][:, None] > chance[~found][None])


@pytest.mark.parametrize("kind", ["few", "all found", "none"])
def test_without_enough_objects_of_both_kinds_there_is_only_a_score(kind):
    values, found = simulated(3, objects=ENOUGH - 1 if kind == "few" else 0 if kind == "none" else 500)
    found = found | (kind == "all found")
    made = calibrate([values], [found])
    assert made.weights == ()
    assert confidence("score", values, made.weights) == pytest.approx(values[:, 0] * values[:, 1])


def test_one_box_teaches_but_is_not_scored_by_what_it_taught():
    values, found = simulated(4, objects=500)
    made = calibrate([values], [found])
    assert made.weights
    assert "auroc" not in made.figures
