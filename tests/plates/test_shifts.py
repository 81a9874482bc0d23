"""Shifts between images, and the rigid model of a plate that they make."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hpc_isl.plates.shifts import Correlation, best_shift, outlines, pcc_at, plate_model, residuals

RNG = np.random.default_rng(0)


def smooth(seed: int, size: int = 200) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    return ndimage.gaussian_filter(noise, 3)


@pytest.mark.parametrize("shift", [(0, 0), (17, -9), (-40, 33)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_is_found_to_half_a_pixel_under_noise(shift: tuple[int, int], sign: int) -> None:
    whole = smooth(1)
    first = whole[50:150, 50:150]
    second = sign * whole[50 - shift[0] : 150 - shift[0], 50 - shift[1] : 150 - shift[1]]
    second = second + 0.05 * whole.std() * RNG.normal(size=second.shape).astype(np.float32)
    peak = best_shift(first - first.mean(), second - second.mean(), either_sign=True)
    assert np.abs(np.subtract(peak.shift, shift)).max() < 0.5
    assert peak.ratio > 1.5
    assert peak.pcc * sign > 0.9
    assert pcc_at(first, second, shift) == pytest.approx(peak.pcc)


def test_strangers_have_no_peak_that_stands_out() -> None:
    first, second = outlines(smooth(1)[None]), outlines(smooth(2)[None])
    assert best_shift(first, second).ratio < 1.4
    assert Correlation.of(first, second).support((5, 5)) < 4
    assert Correlation.of(first, first).support((0, 0)) > 10


def test_images_without_structure_correlate_with_nothing() -> None:
    flat = outlines(np.full((1, 64, 64), 7, np.uint16))
    assert not flat.any()
    peak = best_shift(flat, outlines(smooth(1, 64)[None]))
    assert (peak.ratio, peak.pcc) == (1.0, 0.0)


def test_a_turned_plate_is_modelled_though_some_fields_are_wrong() -> None:
    places = np.stack(np.meshgrid(np.arange(8.0), np.arange(12.0), indexing="ij"), -1).reshape(-1, 2) * 15000
    angle = np.deg2rad(0.3)
    turned = places @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]).T
    moved = turned + np.array([12, -700]) - places + RNG.normal(0, 0.3, places.shape)
    moved[::5] += RNG.uniform(-300, 300, moved[::5].shape)
    model = plate_model(places, moved)
    assert model is not None
    assert model.degrees == pytest.approx(0.3, abs=0.001)
    right = np.arange(len(places)) % 5 > 0
    assert residuals(model, places, moved)[right].max() < 2
    assert model.fitted == right.sum()


def test_a_plate_that_was_only_moved_is_modelled_without_a_turn() -> None:
    places = RNG.uniform(0, 1e5, (20, 2))
    model = plate_model(places, np.full((20, 2), (3.0, -4.0)))
    assert model is not None
    assert (model.degrees, model.offset, model.fitted) == (0.0, (3.0, -4.0), 20)
    unknown = plate_model(np.zeros((20, 2)), np.full((20, 2), (3.0, -4.0)))
    assert unknown == model


def test_shifts_that_do_not_agree_make_no_model() -> None:
    places = RNG.uniform(0, 1e5, (20, 2))
    assert plate_model(places, RNG.uniform(-400, 400, (20, 2))) is None
    assert plate_model(places[:2], np.zeros((2, 2))) is None
