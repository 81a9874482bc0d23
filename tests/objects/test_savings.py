"""Annotations saved at equal score: read off the curves where they tell, bounded where they do not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_isl.objects.bootstrap import resampled_means
from hpc_isl.objects.savings import Between, Curve, saved, saved_interval

OBJECTS = (10, 100, 1000)


def test_between_two_points_the_curve_is_straight_over_the_logarithm():
    assert Curve((10, 1000), (0.2, 0.6)).needed(0.4) == Between(*[pytest.approx(100)] * 2)


def test_an_arm_that_needs_a_tenth_saves_a_factor_of_ten_at_every_score():
    scores = (0.3, 0.5, 0.8)
    arm, baseline = Curve((1, 10, 100), scores), Curve(OBJECTS, scores)
    for score in (0.3, 0.37, 0.5, 0.79, 0.8):
        assert saved(arm, baseline, score).least == pytest.approx(10)
        assert saved(arm, baseline, score).most == pytest.approx(10)


def test_a_score_the_baseline_never_reaches_prints_more_than():
    arm, baseline = Curve(OBJECTS, (0.6, 0.8, 0.9)), Curve(OBJECTS, (0.2, 0.4, 0.7))
    assert saved(arm, baseline, 0.8) == Between(10, math.inf)
    assert str(saved(arm, baseline, 0.8)) == "> 10"


def test_a_score_the_baseline_exceeds_from_the_start_prints_less_than():
    arm, baseline = Curve(OBJECTS, (0.2, 0.4, 0.7)), Curve(OBJECTS, (0.6, 0.8, 0.9))
    assert saved(arm, baseline, 0.4) == Between(0, 0.1)
    assert str(saved(arm, baseline, 0.4)) == "< 0.1"
    assert str(saved(arm, baseline, 0.85)) == "< 0.316"  # never reached by the arm


def test_a_score_that_neither_reaches_gives_no_factor():
    curve = Curve(OBJECTS, (0.2, 0.4, 0.7))
    assert str(saved(curve, curve, 0.9)) == "?"
    assert str(saved(curve, curve, 0.1)) == "?"


def test_a_score_that_falls_by_chance_is_levelled_before_it_is_read():
    curve = Curve((10, 100, 1000, 10_000), (0.2, 0.6, 0.5, 0.8))
    assert curve.monotone() == pytest.approx([0.2, 0.55, 0.55, 0.8])
    assert curve.needed(0.55).most == pytest.approx(100)


def test_a_level_stretch_is_reached_where_it_begins():
    assert Curve(OBJECTS, (0.5, 0.5, 0.9)).needed(0.5) == Between(10, 10)


CURVES = st.lists(st.floats(0, 1), min_size=1, max_size=5).map(
    lambda scores: Curve([10.0**place for place in range(len(scores))], scores)
)


@given(curve=CURVES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_score_never_needs_fewer_objects(curve, low, high):
    less, more = curve.needed(min(low, high)), curve.needed(max(low, high))
    assert less.least <= more.least * (1 + 1e-9)
    assert less.most <= more.most * (1 + 1e-9)


@given(arm=CURVES, baseline=CURVES, score=st.floats(0, 1))
def test_arms_that_change_places_save_the_inverse(arm, baseline, score):
    there, back = saved(arm, baseline, score), saved(baseline, arm, score)
    assert there.least <= there.most
    assert there.least == pytest.approx(1 / back.most if back.most else math.inf)
    assert there.most == pytest.approx(1 / back.least if back.least else math.inf)


def test_an_interval_is_as_open_as_its_resamples():
    known = [Between(factor, factor) for factor in range(1, 101)]
    assert str(saved_interval(known)) == "3–98"
    never = [Between(5, math.inf)] * 5
    assert str(saved_interval(known + never)) == "> 3"
    assert str(saved_interval([*known, *[Between(0, 0.5)] * 5])) == "< 98"
    assert str(saved_interval([Between(0, math.inf)] * 9)) == "?"


def test_from_scores_of_fields_to_a_factor_and_its_interval():
    """Two arms at three counts, six columns of one table: all see the same resamples of 40 fields."""
    chance = np.random.default_rng(0).normal(0, 0.05, (40, 6))
    table = np.array([0.6, 0.7, 0.8, 0.5, 0.6, 0.7]) + chance
    means = resampled_means(table, [(field,) for field in range(40)], seed=0, resamples=200)

    def factor(row):
        arm, baseline = Curve(OBJECTS, row[:3]), Curve(OBJECTS, row[3:])
        return saved(arm, baseline, 0.65)

    assert factor(table.mean(0)).least == pytest.approx(10, rel=0.3)
    result = saved_interval([factor(row) for row in means])
    assert 4 < result.least < factor(table.mean(0)).least < result.most < 25


@pytest.mark.parametrize("objects", [(), (0, 10), (10, 10), (100, 10), (10,)])
def test_counts_that_have_no_place_on_a_logarithm_are_refused(objects):
    with pytest.raises(ValueError, match="above 0 and rising"):
        Curve(objects, (0.1, 0.2)[: max(len(objects), 2)])


def test_a_score_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="a number for each"):
        Curve((10, 100), (0.1, float("nan")))
