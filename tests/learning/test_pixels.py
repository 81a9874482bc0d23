from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_isl.errors import UserError
from hpc_isl.learning.data.augment import resize, shade, turn, zoom
from hpc_isl.learning.data.pixels import (
    choose_planes,
    grown,
    normalise,
    numbers,
    pad,
    project,
    subtract_box_mean,
)
from hpc_isl.recipes.training import AugmentRecipe
from hpc_isl.seeds import stream

FOCUS = {0: 1.0, 1: 2.0, 2: 5.0, 3: 4.0, 4: 0.5}


@pytest.mark.parametrize(
    ("spec", "planes"),
    [
        (3, (3,)),
        ("max", (0, 1, 2, 3, 4)),
        ("focus", (2,)),
        ("focus+2", (4,)),
        ("focus-1", (1,)),
        ("focus+4um", (4,)),
        ("focus-4.2 um", (0,)),
    ],
)
def test_a_plane_is_a_number_a_projection_or_an_offset_from_focus(
    spec: int | str, planes: tuple[int, ...]
) -> None:
    assert choose_planes(spec, FOCUS, plane_um=2.0) == planes
    assert choose_planes(spec, FOCUS, z_um=dict(enumerate((-4, -2, 0, 2, 4)))) == planes


def test_heights_that_fall_are_followed_downwards() -> None:
    assert choose_planes("focus+2um", FOCUS, z_um=dict(enumerate((4, 2, 0, -2, -4)))) == (1,)


def test_only_planes_that_exist_are_projected_or_in_focus() -> None:
    assert choose_planes("max", {1: 0.1, 3: 0.2}) == (1, 3)
    assert choose_planes("focus", {1: 0.1, 3: 0.2}) == (3,)
    assert choose_planes("focus", {0: 0.0, 1: 0.0}) == (0,)


@pytest.mark.parametrize(
    ("spec", "z_um", "said"),
    [
        (5, (), "plane 5; there are the planes 0, 1, 2, 3, 4"),
        ("focus-3", (), "plane focus-3 would be plane -1; there are"),
        ("focus+9um", (0, 2, 4, 6, 8), "would lie at 13 µm; the planes lie from 0 to 8 µm"),
        ("focus+4um", (), "the distance of planes is unknown; write planes, as in focus"),
    ],
)
def test_a_plane_beyond_the_stack_is_refused_with_the_planes_that_exist(
    spec: int | str, z_um: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        choose_planes(spec, FOCUS, dict(enumerate(z_um)))


def test_projections_are_numpys() -> None:
    stack = stream(0).integers(0, 65535, (3, 4, 5), np.uint16)
    assert np.array_equal(project(stack, "max"), stack.max(axis=0))
    assert np.allclose(project(stack, "mean"), stack.astype(float).mean(axis=0))
    assert np.array_equal(project(stack[1:2], ""), stack[1])
    assert project(stack, "min").dtype == np.float32


def test_the_box_mean_is_that_of_a_reflected_neighbourhood() -> None:
    plane = stream(1).random((9, 11), np.float32)
    padded = np.pad(plane, 2, mode="symmetric")
    means = [[padded[y : y + 5, x : x + 5].mean() for x in range(11)] for y in range(9)]
    assert np.allclose(subtract_box_mean(plane, 5), plane - np.array(means), atol=1e-6)


@given(
    start=st.tuples(st.integers(0, 30), st.integers(0, 30)), edge=st.integers(1, 15), side=st.integers(1, 10)
)
def test_the_box_mean_of_a_crop_with_margin_is_that_of_the_whole(
    start: tuple[int, int], edge: int, side: int
) -> None:
    plane = stream(2).random((40, 40), np.float32) * 1000
    box = (slice(start[0], start[0] + side), slice(start[1], start[1] + side))
    read, cut = grown(box, edge // 2 + 1, (40, 40))
    assert np.allclose(
        subtract_box_mean(plane[read], edge)[cut], subtract_box_mean(plane, edge)[box], atol=1e-3
    )


@given(kind=st.sampled_from(["standard", "percentile", "max16", "none"]), clip=st.sampled_from([None, 0.5]))
def test_normalised_pixels_have_the_statistics_of_their_kind(kind: str, clip: float | None) -> None:
    pixels = stream(3).normal(1000, 50, (64, 64)).astype(np.float32)
    result = normalise(pixels, *numbers(kind, pixels, 5, 99.5), clip)
    low, high = np.percentile(pixels, [5, 99.5])
    expected = {
        "standard": (pixels - pixels.mean()) / pixels.std(),
        "percentile": (pixels - low) / (high - low),
        "max16": pixels / 65535,
        "none": pixels,
    }[kind]
    expected = expected if clip is None else expected.clip(-clip, clip)
    assert result.dtype == np.float32
    assert np.allclose(result, expected, atol=1e-4)


def test_constant_pixels_become_zeros_not_nan() -> None:
    flat = np.full((4, 4), 7, np.float32)
    assert not normalise(flat, *numbers("standard", flat, 0, 0)).any()


@pytest.mark.parametrize("shape", [(1, 3, 40), (2, 64, 20), (1, 1, 1), (3, 64, 64)])
def test_padding_reflects_to_the_size_of_a_crop(shape: tuple[int, int, int]) -> None:
    pixels = stream(4).random(shape, np.float32)
    padded = pad(pixels, 64)
    assert padded.shape == (shape[0], 64, 64)
    top, left = [(64 - n) // 2 for n in shape[1:]]
    assert np.array_equal(padded[:, top : top + shape[1], left : left + shape[2]], pixels)
    assert set(np.unique(padded)) == set(np.unique(pixels))


def test_geometry_is_the_same_for_sources_and_targets_and_all_eight_occur() -> None:
    pixels = stream(5).random((2, 6, 6), np.float32)
    seen = set()
    for seed in range(60):
        first, second = turn(pixels, pixels[:1] * 2, stream(seed))
        assert np.array_equal(first[:1] * 2, second)
        assert first.flags.c_contiguous
        seen.add(first.tobytes())
    assert len(seen) == 8


def test_shading_draws_new_numbers_for_each_plane() -> None:
    pixels = np.ones((3, 8, 8), np.float32)
    recipe = AugmentRecipe(brightness=0.5, contrast=0.5)
    changed = shade(pixels, recipe, stream(6))
    assert changed.dtype == np.float32
    assert len(set(changed[:, 0, 0].tolist())) == 3
    assert np.ptp(changed, axis=(1, 2)).max() == 0
    assert (abs(changed - 1) <= 1).all()
    assert np.array_equal(pixels, np.ones((3, 8, 8)))
    nothing = AugmentRecipe(flip=False, brightness=0, contrast=0)
    assert np.array_equal(shade(pixels, nothing, stream(6)), pixels)


def test_noise_and_blur_have_the_strength_asked_for() -> None:
    still = {"brightness": 0, "contrast": 0}
    zeros = np.zeros((1, 200, 200), np.float32)
    noisy = [shade(zeros, AugmentRecipe(noise=2.0, **still), stream(seed)).std() for seed in range(50)]
    assert 0 <= min(noisy) < 0.4
    assert 1.6 < max(noisy) <= 2.05
    point = np.zeros((1, 41, 41), np.float32)
    point[0, 20, 20] = 1
    blurred: list[Any] = [shade(point, AugmentRecipe(blur=2.0, **still), stream(s)) for s in range(20)]
    assert all(abs(b.sum() - 1) < 1e-4 for b in blurred)
    assert min(b.max() for b in blurred) < 0.06


def test_a_zoom_keeps_a_ramp_a_ramp() -> None:
    recipe = AugmentRecipe(scale=0.2)
    factors = [zoom(recipe, stream(seed)) for seed in range(50)]
    assert 0.8 <= min(factors) < 0.85
    assert 1.15 < max(factors) <= 1.2
    assert zoom(AugmentRecipe(), stream(0)) == 1
    ramp = np.broadcast_to(np.arange(48, dtype=np.float32), (1, 48, 48))
    small = resize(ramp, 32)
    assert small.shape == (1, 32, 32)
    assert np.allclose(np.diff(small[0, :, 1:-1], axis=1), 1.5, atol=1e-4)
    assert np.allclose(small.mean(), ramp.mean(), atol=1e-3)
