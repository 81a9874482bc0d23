"""A model on a plate that it was not made for: names of channels, sizes of pixels, and back to level 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hpc_isl.errors import UserError
from hpc_isl.learning.data.rescale import (
    Scale,
    read_sources,
    renamed,
    resampled,
    scale_on,
    to_full,
    to_full_box,
)
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.data.view import Foreground, Role, View
from hpc_isl.plates.plate import Channel, FieldKey
from hpc_isl.plates.pyramid import read_box
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import NormalizeRecipe
from hpc_isl.seeds import stream

MakePlate = Callable[..., Index]
KEY = FieldKey("B03", "1")
RAW = NormalizeRecipe(source="none", target="none")
VIEW = View(sources=(Role("Phase", 0), Role("Phase", 2)), targets=(Role("Hoechst", "max"),), pixel_um=0.5)


def image(y: int, x: int, channels: int = 2) -> np.ndarray[Any, Any]:
    return stream(y * 1000 + x).normal(size=(channels, y, x)).astype(np.float32)


# ---------------------------------------------------------------- names of channels


def test_roles_are_found_under_the_plates_names(make_plate: MakePlate) -> None:
    index = make_plate()
    there = make_plate(name="P02", channels=(Channel("Brightfield", fluorescent=False), Channel("DAPI")))
    view = renamed(VIEW, {"Phase": "Brightfield", "Hoechst": "DAPI"})
    expected = read(VIEW, index, KEY)
    for found, own in zip(read(view, there, KEY), expected, strict=True):
        np.testing.assert_array_equal(found, own)


def test_everything_named_by_a_channel_is_renamed() -> None:
    shown = Foreground(Role("Hoechst", "max"), None, 0.01)
    profile = {"Type": "Identity"}
    view = replace(VIEW, profiles={"Phase": profile, "Hoechst": profile}, foreground=shown)
    found = renamed(view, {"Hoechst": "DAPI"})
    assert [role.channel for role in found.sources + found.targets] == ["Phase", "Phase", "DAPI"]
    assert set(found.profiles) == {"Phase", "DAPI"}
    assert found.foreground
    assert found.foreground.role.channel == "DAPI"
    assert renamed(view, {}) == view


def test_names_may_be_exchanged_but_not_merged() -> None:
    found = renamed(VIEW, {"Phase": "Hoechst", "Hoechst": "Phase"})
    assert (found.sources[0].channel, found.targets[0].channel) == ("Hoechst", "Phase")
    with pytest.raises(UserError, match="'Hoechst' would be both 'Phase' and 'Hoechst' of the model"):
        renamed(VIEW, {"Phase": "Hoechst"})


def test_a_name_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"'Phasse' is no channel of the model; did you mean 'Phase'\?"):
        renamed(VIEW, {"Phasse": "Brightfield"})


# ---------------------------------------------------------------- which level, which factor


@pytest.mark.parametrize(
    ("model_um", "plate_um", "level", "factor", "shape"),
    [
        (0.5, 0.5, 0, 1, (96, 80)),
        (0.5, 0.51, 0, 1, (96, 80)),
        (1.0, 0.5, 1, 1, (48, 40)),
        (0.65, 0.5, 0, 1.3, (74, 62)),
        (1.5, 0.5, 1, 1.5, (32, 27)),
        (6.0, 0.5, 2, 3, (8, 7)),  # there are three levels
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(
    make_plate: MakePlate, model_um: float, plate_um: float, level: int, factor: float, shape: tuple[int, int]
) -> None:
    scale = scale_on(replace(VIEW, pixel_um=model_um), make_plate(pixel_um=plate_um), KEY)
    assert (scale.level, scale.shape) == (level, shape)
    assert scale.factor == pytest.approx(factor)
    assert scale.to_level_0 == pytest.approx(factor * 2**level)
    assert scale.pixel_um == pytest.approx(plate_um * factor * 2**level)


def test_where_a_size_is_unknown_the_models_level_is_read_unless_the_size_is_given(
    make_plate: MakePlate,
) -> None:
    index, unknown = make_plate(), replace(VIEW, pixel_um=None, level=1)
    assert scale_on(unknown, index, KEY) == Scale(1, 1.0, (48, 40), (48, 40), 1.0)
    assert scale_on(unknown, index, KEY, pixel_um=0.75).factor == pytest.approx(1.5)
    blind = make_plate(name="P02", pixel_um=None)
    assert scale_on(VIEW, blind, KEY) == Scale(0, 1.0, (96, 80), (96, 80), 0.5)
    with pytest.raises(UserError, match="no pixels of level 3"):
        scale_on(replace(unknown, level=3), index, KEY)


def test_coarser_pixels_are_warned_of_and_refused_beyond_twice_the_size(make_plate: MakePlate) -> None:
    view = replace(VIEW, pixel_um=0.25)
    with pytest.warns(UserWarning, match=r"pixels of 0\.4 µm are larger than the 0\.25 µm that the model"):
        scale = scale_on(view, make_plate(pixel_um=0.4), KEY)
    assert (scale.level, scale.shape) == (0, (154, 128))
    with pytest.warns(UserWarning, match="what is finer is not there"):
        scale_on(view, make_plate(name="P02", pixel_um=0.5), KEY)
    with pytest.raises(
        UserError, match=r"by more than 2; image with pixels of 0\.25 µm, or take a model that"
    ):
        scale_on(view, make_plate(name="P03", pixel_um=0.6), KEY)


# ---------------------------------------------------------------- reading


def test_pixels_of_the_models_size_are_read_as_they_are(make_plate: MakePlate) -> None:
    index = make_plate()
    for model_um in (0.5, 1.0):
        view = replace(VIEW, pixel_um=model_um)
        found = read_sources(view, index, KEY, 0, scale_on(view, index, KEY))
        np.testing.assert_array_equal(found, read(view, index, KEY)[0])
    box = (slice(7, 31), slice(2, 9))
    part = read_sources(view, index, KEY, 0, scale_on(view, index, KEY), box)
    np.testing.assert_array_equal(part, read(view, index, KEY, box=box)[0])


@pytest.mark.parametrize("model_um", [0.4, 0.65, 0.75, 1.4])
def test_other_pixels_are_resampled_as_torch_does(make_plate: MakePlate, model_um: float) -> None:
    index = make_plate(pixel_um=0.5)
    view = replace(VIEW, pixel_um=model_um, normalize=RAW)
    if model_um < 0.5:
        with pytest.warns(UserWarning, match="larger"):
            scale = scale_on(view, index, KEY)
    else:
        scale = scale_on(view, index, KEY)
    found = read_sources(view, index, KEY, 0, scale)
    pixels = read_box(index.image(KEY), scale.level, 0, 0, [0, 2], slice(None), slice(None)).astype(
        np.float32
    )
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None], scale_factor=1 / scale.factor, mode="bilinear", antialias=True,
        recompute_scale_factor=False,
    )[0].numpy()  # fmt: skip
    whole = expected.shape[1:]  # torch leaves the last pixel out where the image covers a part of it
    assert [math.ceil(n / scale.factor - 1e-9) for n in pixels.shape[1:]] == list(found.shape[1:])
    np.testing.assert_allclose(found[:, : whole[0] - 1, : whole[1] - 1], expected[:, :-1, :-1], rtol=1e-5)


def test_a_box_is_read_as_it_is_in_the_whole(make_plate: MakePlate) -> None:
    index = make_plate()
    view = replace(VIEW, pixel_um=0.65)
    scale = scale_on(view, index, KEY)
    whole = read_sources(view, index, KEY, 0, scale)
    for y, x in [((0, 74), (0, 62)), ((3, 20), (40, 62)), ((73, 74), (0, 1))]:
        part = read_sources(view, index, KEY, 0, scale, (slice(*y), slice(*x)))
        np.testing.assert_array_equal(part, whole[:, slice(*y), slice(*x)])


def test_the_width_of_a_box_mean_is_that_of_the_models_pixels(make_plate: MakePlate) -> None:
    index = make_plate()
    rule = NormalizeRecipe(source="none", local_px=20)
    view = replace(VIEW, pixel_um=0.75, normalize=rule)
    found = read_sources(view, index, KEY, 0, scale_on(view, index, KEY))
    wide = replace(VIEW, normalize=rule.model_copy(update={"local_px": 30}))
    expected = read(wide, index, KEY)[0]
    scale = Scale(0, 1.5, (64, 54), (96, 80))
    np.testing.assert_array_equal(
        found, resampled(lambda box: expected[:, *box], (slice(0, 64), slice(0, 54)), 1.5, scale.stored)
    )


def test_the_stain_may_be_absent(make_plate: MakePlate) -> None:
    index = make_plate(channels=(Channel("Phase", fluorescent=False),), shape=(1, 1, 3, 96, 80))
    assert read_sources(VIEW, index, KEY, 0, scale_on(VIEW, index, KEY)).shape == (2, 96, 80)


# ---------------------------------------------------------------- back to level 0


def halved(length: int, levels: int) -> int:
    return reduce(lambda n, _: -(-n // 2), range(levels), length)


@settings(max_examples=40, deadline=None)
@given(y=st.integers(1, 70), x=st.integers(1, 70), level=st.integers(0, 3))
def test_a_pixel_of_a_level_lies_where_the_pyramid_has_it(y: int, x: int, level: int) -> None:
    """The centre of pixel i of level k is pixel (i + 1/2) 2^k - 1/2 of level 0, at any size."""
    shape = (halved(y, level), halved(x, level))
    scale = Scale(level, 1.0, shape, shape)
    coarse = image(*shape, channels=1)
    places = [(np.arange(n) + 0.5) / 2**level - 0.5 for n in (y, x)]
    grid = np.meshgrid(*places, indexing="ij")
    expected = ndimage.map_coordinates(coarse[0].astype(float), grid, order=1, mode="nearest")
    np.testing.assert_allclose(to_full(coarse, scale, (y, x))[0], expected, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_ramp_goes_up_the_pyramid_and_comes_back_where_it_was(make_plate: MakePlate, level: int) -> None:
    ramp = (np.mgrid[:97, :83][1] * 40 + 100).astype(np.uint16)
    pixels = np.broadcast_to(ramp, (1, 2, 3, 97, 83))
    index = make_plate(pixels={KEY: np.ascontiguousarray(pixels)})
    view = replace(VIEW, pixel_um=0.5 * 2**level * 1.3, normalize=RAW)
    scale = scale_on(view, index, KEY)
    full = to_full(read_sources(view, index, KEY, 0, scale), scale, (97, 83))
    shift = (full[0] - ramp)[8:-8, 8:-8] / 40  # in pixels
    assert abs(shift.mean()) < 0.02
    assert abs(shift).max() < 0.25  # a triangle over a few pixels is not quite straight


@settings(max_examples=60, deadline=None)
@given(
    y=st.integers(1, 90),
    x=st.integers(1, 90),
    level=st.integers(0, 2),
    factor=st.sampled_from([0.5, 0.7, 1.0, 1.3, 1.5, 2.9]),
    data=st.data(),
)
def test_a_box_of_the_full_size_is_the_same_bits_as_the_whole(
    y: int, x: int, level: int, factor: float, data: st.DataObject
) -> None:
    stored = (halved(y, level), halved(x, level))
    shape = (math.ceil(stored[0] / factor - 1e-9), math.ceil(stored[1] / factor - 1e-9))
    scale = Scale(level, factor, shape, stored)
    prediction = image(*shape)
    asked = []

    def part(box: tuple[slice, slice]) -> Any:
        asked.append(box)
        return prediction[:, *box].copy()

    sides = [sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n)))) for n in (y, x)]
    box = tuple(slice(low, max(high, low + 1)) for low, high in sides)
    found = to_full_box(part, scale, (box[0], box[1]))
    np.testing.assert_array_equal(found, to_full(prediction, scale, (y, x))[:, *box])
    for side, own in zip(asked[0], box, strict=True):
        reach = 1 + max(1, 1 / scale.to_level_0)
        assert side.start >= own.start / scale.to_level_0 - reach
        assert side.stop <= own.stop / scale.to_level_0 + reach + 1


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), step=st.floats(0.2, 5))
def test_what_is_even_stays_even_to_the_last_pixel(n: int, step: float) -> None:
    size = math.ceil(n / step - 1e-9)
    even = np.full((1, n, n), 7, np.float32)
    whole = (slice(0, size), slice(0, size))
    found = resampled(lambda box: even[:, *box], whole, step, (n, n))
    assert found.shape == (1, size, size)
    np.testing.assert_allclose(found, 7, rtol=1e-6)
