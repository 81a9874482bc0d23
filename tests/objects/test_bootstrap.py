"""Spread and intervals: what is resampled, arms in pairs, and bounds that hold what they promise."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from hpc_isl.objects.bootstrap import interval, resampled_means, spread

FIELDS = [(f"B{well:02}", f"{field}") for well, field in product(range(6), range(4))]


def scores(seed, rows=24, arms=2):
    return np.random.default_rng(seed).uniform(0, 1, (rows, arms))


def test_mean_and_deviation_are_over_images_and_print_as_in_the_paper():
    result = spread([0.2, 0.4, 0.9])
    assert (result.mean, result.sd) == (pytest.approx(0.5), pytest.approx(0.36055512754639896))
    assert str(result) == "0.50 ± 0.36"


def test_images_without_a_score_are_left_out_and_counted():
    result = spread([0.2, float("nan"), 0.4])
    assert (result.mean, result.images, result.undefined) == (pytest.approx(0.3), 2, 1)


def test_one_image_has_no_deviation_and_no_image_has_no_mean():
    assert math.isnan(spread([0.5]).sd)
    assert math.isnan(spread([]).mean)
    assert spread([float("nan")]).undefined == 1


def test_equal_seeds_give_equal_resamples_and_other_seeds_others():
    one, again, other = (resampled_means(scores(0), FIELDS, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@given(seed=st.integers(0, 20))
def test_the_order_of_the_rows_plays_no_part(seed):
    order, table = np.random.default_rng(seed).permutation(24), scores(0)
    shuffled = resampled_means(table[order], [FIELDS[row] for row in order], seed=3, resamples=50)
    assert shuffled == pytest.approx(resampled_means(table, FIELDS, seed=3, resamples=50))


def test_arms_share_their_resamples_so_a_constant_gain_has_no_spread():
    base = scores(0, arms=1)
    means = resampled_means(np.hstack([base, base + 0.1]), FIELDS, seed=0)
    assert means[:, 1] - means[:, 0] == pytest.approx(0.1)
    assert means[:, 0].std() > 0.01


def test_an_arm_added_leaves_the_resamples_of_the_others():
    table = scores(0, arms=3)
    both = resampled_means(table[:, :2], FIELDS, seed=0)
    assert resampled_means(table, FIELDS, seed=0)[:, :2] == pytest.approx(both)


def test_one_level_is_the_ordinary_bootstrap():
    table = scores(5, rows=40, arms=1)
    means = resampled_means(table, [(row,) for row in range(40)], seed=0, resamples=20_000)
    result = interval(float(table.mean()), means[:, 0])
    rng = np.random.default_rng(0)
    expected = bootstrap((table[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=rng)
    assert result.value == table.mean()
    assert result.low == pytest.approx(expected.confidence_interval.low, abs=0.005)
    assert result.high == pytest.approx(expected.confidence_interval.high, abs=0.005)


def test_resampling_by_hand_gives_the_same_distribution():
    """Wells are drawn, then fields anew in each well drawn, also where a well is drawn twice."""
    table, rng = scores(7)[:, :1], np.random.default_rng(0)
    wells = table.reshape(6, 4)
    drawn = [[rng.choice(wells[well], 4) for well in rng.integers(0, 6, 6)] for _ in range(5000)]
    by_hand = np.mean(drawn, axis=(1, 2))
    means = resampled_means(table, FIELDS, seed=0, resamples=5000)[:, 0]
    assert means.mean() == pytest.approx(by_hand.mean(), abs=0.005)
    assert means.std() == pytest.approx(by_hand.std(), rel=0.05)


def test_fields_of_one_well_count_as_little_as_they_differ():
    """Equal scores in a well: its fields add nothing, and resampling fields alone would promise too much."""
    table = np.repeat(scores(1, rows=6, arms=1), 4, axis=0)
    by_well = resampled_means(table, FIELDS, seed=0)
    by_field = resampled_means(table, [("plate", *path) for path in enumerate(FIELDS)], seed=0)
    wells_alone = resampled_means(table[::4], [path[:1] for path in FIELDS[::4]], seed=0)
    assert by_well.std() == pytest.approx(wells_alone.std(), rel=0.05)
    assert by_field.std() < 0.6 * by_well.std()


def test_scores_that_share_all_labels_stay_together():
    table = scores(2)
    by_well = [path[:1] for path in FIELDS]
    means = resampled_means(table, by_well, seed=0, resamples=100)
    joined = resampled_means(table.reshape(6, 4, 2).mean(1), by_well[::4], seed=0, resamples=100)
    assert means == pytest.approx(joined)


def test_wells_of_few_fields_weigh_as_many_images_as_they_have():
    paths = [("A", "1"), ("A", "2"), ("A", "3"), ("B", "1")]
    means = resampled_means(np.array([[1.0], [1], [1], [0]]), paths, seed=0)
    assert set(np.round(means[:, 0], 3)) == {0, 0.75, 1}


def crossed_design():
    """Two draws of the annotations, each scored on every field: the draw makes all the difference."""
    paths = [path for path in FIELDS for _ in range(2)]
    draws = [0, 1] * len(FIELDS)
    return np.array(draws, float)[:, None], paths, draws


def test_an_unlucky_draw_lowers_all_fields_together():
    table, paths, draws = crossed_design()
    crossed = resampled_means(table, paths, crossed=draws, seed=0)[:, 0]
    nested = resampled_means(table, [(*path, draw) for path, draw in zip(paths, draws, strict=True)], seed=0)[
        :, 0
    ]
    assert set(crossed) == {0, 0.5, 1}
    assert nested.std() < 0.3 * crossed.std()


def test_a_design_with_gaps_cannot_be_crossed():
    table, paths, draws = crossed_design()
    with pytest.raises(ValueError, match="24 units and 2 crossed labels, but 47 pairs"):
        resampled_means(table[1:], paths[1:], crossed=draws[1:], seed=0)


def test_about_95_of_100_intervals_hold_the_truth():
    """Wells differ by 0.1, fields in a well by 0.05; 30 wells of 4 fields; the truth is 0.5."""
    paths, held = [(well, field) for well in range(30) for field in range(4)], 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        table = 0.5 + np.repeat(rng.normal(0, 0.1, 30), 4) + rng.normal(0, 0.05, 120)
        means = resampled_means(table[:, None], paths, seed=trial, resamples=300)
        result = interval(float(table.mean()), means[:, 0])
        held += result.low <= 0.5 <= result.high
    assert 88 <= held <= 99


def test_with_one_unit_no_bounds_are_made_up():
    means = resampled_means(np.array([[0.3], [0.5]]), [("B03", "1")] * 2, seed=0)
    result = interval(0.4, means[:, 0])
    assert result.value == 0.4
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_a_narrower_level_gives_a_narrower_interval():
    means = resampled_means(scores(0), FIELDS, seed=0)[:, 0]
    wide, narrow = interval(0.5, means, 0.95), interval(0.5, means, 0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_what_cannot_be_paired_is_refused():
    table = scores(0)
    table[3, 1] = float("nan")
    with pytest.raises(ValueError, match="1 rows hold NaN"):
        resampled_means(table, FIELDS, seed=0)
    with pytest.raises(ValueError, match=r"scores \(24, 2\), 23 paths"):
        resampled_means(scores(0), FIELDS[1:], seed=0)
    with pytest.raises(ValueError, match="paths differ in length"):
        resampled_means(scores(0), [*FIELDS[1:], ("B00",)], seed=0)
