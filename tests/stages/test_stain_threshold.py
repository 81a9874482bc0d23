"""The threshold of a predicted stain: the best mean IoU of all, and the likeliest slope at it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from hpc_isl.stages.finetune.stain_threshold import threshold_of

EDGES = np.linspace(-1.0, 3.0, 257)


def drawn(seed, fields=3, pixels=400, centre=0.4, slope=12.0):
    """Stains (field, pixel), and masks as a sigmoid of them throws them."""
    rng = np.random.default_rng(seed)
    stains = rng.uniform(-0.5, 1.5, (fields, pixels))
    return stains, rng.random((fields, pixels)) < expit(slope * (stains - centre))


def histograms(stains, masks):
    return tuple(
        np.array([np.histogram(own[mask == side], EDGES)[0] for own, mask in zip(stains, masks, strict=True)])
        for side in (True, False)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_no_other_edge_of_a_bin_has_a_better_mean_iou(seed):
    stains, masks = drawn(seed, pixels=60)
    found = threshold_of(*map(np.asarray, histograms(stains, masks)), EDGES)

    def iou(centre):
        cut = [(own >= centre, mask) for own, mask in zip(stains, masks, strict=True)]
        return np.mean([(ours & mask).sum() / max((ours | mask).sum(), 1) for ours, mask in cut])

    assert found.iou == pytest.approx(max(map(iou, EDGES[:-1])))
    assert iou(found.centre) == pytest.approx(found.iou)


@pytest.mark.parametrize("slope", [3.0, 12.0, 60.0])
def test_centre_and_slope_are_those_that_threw_the_mask(slope):
    found = threshold_of(*histograms(*drawn(0, pixels=200_000, slope=slope)), EDGES)
    assert found.centre == pytest.approx(0.4, abs=0.7 / slope)
    assert found.slope == pytest.approx(slope, rel=0.2)


def test_a_mask_that_a_threshold_divides_exactly_has_an_iou_of_1():
    stains, _ = drawn(1)
    found = threshold_of(*histograms(stains, stains >= EDGES[100]), EDGES)
    assert (found.iou, found.centre) == (1.0, EDGES[100])
