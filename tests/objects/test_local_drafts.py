"""Drafts with a threshold for each object find discs of any brightness and size, and none in noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hpc_isl.objects.local_drafts import local_labels, typical_radius
from hpc_isl.objects.scores import mask_iou
from hpc_isl.objects.types import Image, Labels

SHAPE = (200, 240)
Discs = list[tuple[float, float, float, float]]
"""y, x, radius in pixels, brightness"""


def stain_of(discs: Discs, blur: float = 1.0, noise: float = 2.0, seed: int = 0) -> tuple[Image, Image]:
    """Returns discs on a background of 100, and their mask (y, x)."""
    y, x = np.indices(SHAPE)
    stain, mask = np.zeros(SHAPE), np.zeros(SHAPE, bool)
    for cy, cx, radius, brightness in discs:
        inside = np.hypot(y - cy, x - cx) < radius
        stain[inside] = brightness
        mask |= inside
    random = np.random.default_rng(seed)
    return ndimage.gaussian_filter(stain, blur) + 100 + random.normal(0, noise, SHAPE), mask


def grid_of(radius: float, seed: int) -> Discs:
    """Returns discs of up to tenfold brightness that do not touch."""
    random = np.random.default_rng(seed)
    step = 3.5 * radius
    places = [(y, x) for y in np.arange(step / 2, SHAPE[0] - radius, step)
              for x in np.arange(step / 2, SHAPE[1] - radius, step)]  # fmt: skip
    return [(y, x, radius, float(100 * 10 ** random.random())) for y, x in places]


def draft(stain: Image, min_area: int = 30, split: bool = True) -> Labels:
    return local_labels(stain, min_area=min_area, split=split)


@settings(max_examples=8, deadline=None)
@given(radius=st.sampled_from([5.0, 9.0, 16.0]), seed=st.integers(0, 2**31))
def test_bright_and_dim_discs_are_drawn_alike(radius: float, seed: int) -> None:
    discs = grid_of(radius, seed)
    stain, mask = stain_of(discs, seed=seed)
    labels = draft(stain)
    assert labels.max() == len(discs)
    assert mask_iou(labels, mask) > 0.85
    # In raster order: the first pixels of the objects follow each other.
    first = [np.flatnonzero(labels == name)[0] for name in range(1, int(labels.max()) + 1)]
    assert first == sorted(first)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([-100, 50, 4000]),
    gain=st.sampled_from([0.01, 3.0, 40.0]),
)
def test_offset_and_gain_of_the_camera_change_no_object(seed: int, offset: float, gain: float) -> None:
    stain, _ = stain_of(grid_of(10.0, seed), seed=seed)
    labels, other = draft(stain), draft(stain * gain + offset)
    assert other.max() == labels.max()
    assert np.count_nonzero(labels != other) <= 2  # sums are rounded


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), slope=st.floats(-0.5, 0.5), bend=st.floats(-50, 50))
def test_uneven_light_changes_few_pixels(seed: int, slope: float, bend: float) -> None:
    stain, _ = stain_of(grid_of(10.0, seed), seed=seed)
    y, x = np.indices(SHAPE)
    light = slope * x + bend * np.exp(-(y**2 + x**2) / (2 * 120**2))
    labels, other = draft(stain), draft(stain + light)
    assert other.max() == labels.max()
    assert mask_iou(labels, other) > 0.9


@pytest.mark.parametrize("radius", [6.0, 10.0, 16.0])
@pytest.mark.parametrize("brightness", [300.0, 900.0])
def test_touching_discs_of_several_sizes_are_split(radius: float, brightness: float) -> None:
    """Two and three in a row, the last of another brightness; the rest of the field is single discs."""
    step = 2 * radius  # the blur of a microscope joins them
    discs = [(40.0, 30 + n * step, radius, 300.0) for n in range(2)]
    discs += [(100.0, 30 + n * step, radius, brightness if n == 2 else 300.0) for n in range(3)]
    discs += [(160.0, 30.0, radius, 300.0), (160.0, 180.0, radius, brightness)]
    stain, _ = stain_of(discs)
    labels = draft(stain)
    assert labels.max() == len(discs)
    assert len({labels[round(y), round(x)] for y, x, *_ in discs} - {0}) == len(discs)
    # They do touch: one piece, unless the bright one, at its own higher threshold, ends a pixel earlier.
    if brightness == 300:
        assert draft(stain, split=False).max() == 4


@pytest.mark.parametrize("ratio", [0.6, 0.8, 1.4])
def test_a_small_and_a_large_disc_that_touch_are_two(ratio: float) -> None:
    discs = [(140.0, 60.0, 10.0, 300.0), (140.0, 60 + (1 + ratio) * 10, ratio * 10, 300.0)]
    discs += [(30.0, x, 10.0, 300.0) for x in (30.0, 80.0, 130.0, 180.0)]
    stain, _ = stain_of(discs)
    assert draft(stain).max() == 6
    assert draft(stain, split=False).max() == 5


def test_sizes_are_learnt_from_the_image() -> None:
    for radius in (5.0, 10.0, 20.0):
        stain, _ = stain_of(grid_of(radius, 3))
        found = typical_radius(stain.astype(np.float32))
        assert found is not None
        assert radius / 1.3 < found < radius * 1.3


@pytest.mark.parametrize("value", [0, 7, 65535])
@pytest.mark.parametrize("shape", [SHAPE, (10, 10), (1, 40)])
def test_a_constant_field_holds_no_objects(value: int, shape: tuple[int, int]) -> None:
    assert not draft(np.full(shape, value, np.uint16)).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.floats(5, 500))
def test_a_field_of_noise_holds_no_objects(seed: int, count: float) -> None:
    noise = np.random.default_rng(seed).poisson(count, SHAPE)
    assert not draft(noise.astype(np.uint16), min_area=50).any()


def test_small_objects_are_dropped() -> None:
    stain, _ = stain_of([(60.0, 60.0, 5.0, 500.0), (60.0, 120.0, 10.0, 500.0)])
    assert draft(stain, min_area=50).max() == 2
    assert draft(stain, min_area=150).max() == 1
    assert not draft(stain, min_area=5000).any()
