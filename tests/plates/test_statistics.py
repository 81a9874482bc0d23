"""Statistics against numpy and scikit-image as oracles."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from scipy.ndimage import gaussian_filter

from hpc_isl.plates.statistics import (
    EMPTY_STRUCTURE,
    Histogram,
    digest,
    edges,
    from_dict,
    measure,
    sharpness,
    to_dict,
)

DTYPES = ["uint8", "uint16", "int16", "uint32", "int32", "float32"]


def gamma(dtype: str, scale: float = 200, shape: tuple[int, ...] = (1, 2, 2, 120, 90)) -> np.ndarray:
    values = np.random.default_rng(0).gamma(2, scale, shape)
    return np.minimum(values, 250).astype(dtype) if dtype == "uint8" else values.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_statistics_of_a_plane_are_numpys(dtype: str) -> None:
    pixels = gamma(dtype)
    statistics = measure(pixels)
    assert set(statistics.planes) == {(0, c, z) for c in range(2) for z in range(2)}
    for place, result in statistics.planes.items():
        plane = pixels[place].astype(float)
        expected = [
            plane.min(),
            plane.max(),
            plane.mean(),
            plane.std(),
            *np.percentile(plane, [1, 50, 99, 99.9]),
        ]
        assert [
            result.min,
            result.max,
            result.mean,
            result.sd,
            result.p1,
            result.p50,
            result.p99,
            result.p999,
        ] == (pytest.approx(expected))


@settings(deadline=None, max_examples=40)
@given(hn.arrays(np.uint16, hn.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_percentiles_are_numpys_for_any_plane(plane: np.ndarray) -> None:
    (result,) = measure(plane[None, None, None]).planes.values()
    assert [result.p1, result.p50, result.p99, result.p999] == pytest.approx(
        np.percentile(plane, [1, 50, 99, 99.9])
    )


@pytest.mark.parametrize(("dtype", "bins"), [("uint8", 256), ("uint16", 1280), ("uint32", 3328)])
def test_the_bins_depend_on_the_dtype_alone(dtype: str, bins: int) -> None:
    assert len(edges(dtype)) == bins + 1
    assert np.all(np.diff(edges(dtype)) > 0)
    assert edges(dtype)[-1] == np.iinfo(dtype).max + 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_histogram_counts_what_numpy_counts(dtype: str) -> None:
    pixels = gamma(dtype) - (np.asarray(90, dtype) if dtype in ("int16", "int32", "float32") else 0)
    result = measure(pixels).histograms[1]
    expected, _ = np.histogram(pixels[:, 1].astype(float), edges(dtype))
    np.testing.assert_array_equal(result.counts, expected)
    assert result.total == pixels[:, 1].size


@pytest.mark.parametrize("dtype", DTYPES)
def test_figures_from_a_histogram_are_close_to_those_from_pixels(dtype: str) -> None:
    pixels = gamma(dtype)[:, :1]
    histogram = measure(pixels).histograms[0]
    for q in (0, 1, 5, 50, 99, 99.5, 99.9, 100):
        assert histogram.percentile(q) == pytest.approx(np.percentile(pixels, q), rel=0.02, abs=0.6)
    assert histogram.mean() == pytest.approx(pixels.mean(), rel=0.01)
    assert histogram.sd() == pytest.approx(pixels.std(), rel=0.01)
    assert histogram.fraction_above(137.0) == pytest.approx((pixels > 137).mean(), abs=0.005)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40), st.floats(0, 100))
def test_a_percentile_lies_in_the_bins_around_numpys(values: list[int], q: float) -> None:
    pixels = np.array(values, "uint16").reshape(1, 1, 1, 1, -1)
    result = measure(pixels).histograms[0].percentile(q)
    below, above = (np.percentile(values, q, method=method) for method in ("lower", "higher"))
    assert below * (1 - 1 / 128) <= result <= above * (1 + 1 / 128)


def test_histograms_of_parts_merge_to_that_of_the_whole() -> None:
    pixels = gamma("uint16")
    parts = [measure(pixels[:, :1, z : z + 1]).histograms[0] for z in range(2)]
    assert parts[0] + parts[1] == measure(pixels[:, :1]).histograms[0]


def test_histograms_of_two_types_do_not_merge() -> None:
    with pytest.raises(ValueError, match="no bins in common"):
        measure(gamma("uint8")).histograms[0] + measure(gamma("uint16")).histograms[0]


def test_a_histogram_without_pixels_has_no_figures() -> None:
    with pytest.raises(ValueError, match="holds no pixels"):
        Histogram("uint8", np.zeros(256, np.int64)).percentile(50)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_survive_json(dtype: str) -> None:
    statistics = measure(gamma(dtype))
    assert from_dict(json.loads(json.dumps(to_dict(statistics)))) == statistics


def test_planes_that_were_not_imaged_are_not_measured() -> None:
    pixels = gamma("uint16")
    pixels[0, 1] = 0
    statistics = measure(pixels, {(0, 0, 0), (0, 0, 1)})
    assert set(statistics.planes) == {(0, 0, 0), (0, 0, 1)}
    assert set(statistics.histograms) == {0}
    assert not statistics.flags or all(flag.endswith(":0") for flag in statistics.flags)


def test_the_sharper_of_two_planes_has_the_greater_focus() -> None:
    from scipy.ndimage import gaussian_filter

    sharp = gaussian_filter(np.random.default_rng(0).random((200, 200)), 2) * 1e4
    pixels = np.stack([sharp, gaussian_filter(sharp, 2)])[None, None].astype("uint16")
    planes = measure(pixels).planes
    assert planes[0, 0, 0].focus > 2 * planes[0, 0, 1].focus


def test_noise_on_a_shaded_background_is_empty_and_cells_are_not() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    background = 300 * (1 - 0.2 * (x**2 + y**2))
    nucleus = 2000 * np.exp(-((x - 0.2) ** 2 + y**2) / 0.001)
    pixels = np.stack([rng.poisson(background), rng.poisson(background + nucleus)]).astype("uint16")
    assert measure(pixels[None, :, None]).flags == ("empty:0",)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_plane_at_the_cameras_limit_is_saturated(bits: int) -> None:
    pixels = gamma("uint16", scale=100, shape=(1, 1, 1, 128, 128))
    pixels[..., :20, :20] = 2**bits - 1
    assert "saturated:0" in measure(pixels).flags
    pixels[..., :20, :20] = 2**bits - 2
    assert "saturated:0" not in measure(pixels).flags


def test_the_digest_depends_on_pixels_shape_and_type_but_not_on_the_order_of_bytes() -> None:
    pixels = gamma("uint16")
    changed = pixels.copy()
    changed[0, 0, 0, 3, 4] ^= 1
    others = [changed, pixels.reshape(1, 4, 1, 120, 90), pixels.astype("uint32"), pixels.view("int16")]
    assert len({digest(pixels), *map(digest, others)}) == 5
    assert digest(pixels.astype(">u2")) == digest(pixels)
    assert digest(np.asfortranarray(pixels)) == digest(pixels)


def test_a_type_that_no_camera_writes_is_refused() -> None:
    with pytest.raises(ValueError, match="complex64"):
        measure(np.zeros((1, 1, 1, 4, 4), np.complex64))


# ---------------------------------------------------------------- sharpness


def discs(count: int, blur: float, noise: float = 12, shade: float = 0) -> np.ndarray:
    """Discs of a radius of 6 pixels, blurred, under light that falls off, with a camera's noise."""
    rng = np.random.default_rng(count)
    rows, columns = np.mgrid[:256, :256]
    image = np.zeros(rows.shape)
    for place in rng.permutation(144)[:count]:
        y, x = place // 12 * 21 + 12, place % 12 * 21 + 12
        image[(rows - y) ** 2 + (columns - x) ** 2 < 36] = 400
    light = (gaussian_filter(image, blur) + 1000) * (1 + shade * (columns / 255 - 0.5))
    return (light + rng.normal(0, noise, image.shape)).round().astype(np.uint16)


def test_sharpness_falls_with_blur_and_not_with_the_number_of_objects_light_or_noise() -> None:
    usual, contrast = sharpness(discs(50, 0.8))
    for alike in ((1,), (4,), (20,), (144,), (100, 12, 0.5), (8, 30), (8, 12, 0.5)):
        count, *more = alike
        assert sharpness(discs(count, 0.8, *more))[0] == pytest.approx(usual, rel=0.2), alike
    for count in (30, 100):
        assert sharpness(discs(count, 2))[0] < usual / 3
        assert sharpness(discs(count, 4))[0] < usual / 5
    assert sharpness(discs(4, 0.8))[1] < contrast / 5


def test_where_there_is_no_structure_nothing_is_blurred() -> None:
    assert sharpness(discs(0, 0, shade=0.5))[0] == 1
    assert sharpness(np.full((64, 64), 7, np.uint8)) == (1, 0)
    assert sharpness(np.zeros((4, 4), np.uint16)) == (1, 0)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_sharpness_is_that_of_its_formula_in_double_precision(rows: int, columns: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 2**16, (rows, columns)).astype(np.uint16)

    def bend(apart: int) -> float:
        long = [own for own in (image.astype(np.float64), image.T.astype(np.float64)) if len(own) > 2 * apart]
        ends = [own[2 * apart :] - 2 * own[apart:-apart] + own[: -2 * apart] for own in long]
        return float(np.mean([np.mean(own**2) for own in ends])) if ends else 0.0

    noise = max((16 * bend(1) - bend(2)) / 15, 0.0)
    structure = bend(8) - noise
    found, contrast = sharpness(image)
    assert contrast == pytest.approx(max(structure, 0.0) / max(image.mean(), 1e-9) ** 2, rel=1e-5, abs=1e-5)
    if structure > 1.01 * EMPTY_STRUCTURE * bend(8):
        expected = min(max(bend(2) - noise, 0.0) / structure, 1.0)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    elif structure < 0.99 * EMPTY_STRUCTURE * bend(8):
        assert found == 1
