from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import estimate, gain, vendor_profile
from hpc_isl.seeds import stream

# Of the Hoechst channel of an Opera Phenix.
HOECHST = {
    "Type": "Polynomial",
    "Coefficients": [
        [1.2543],
        [-0.0365, -0.032],
        [-1.3621, -0.0908, -1.0758],
        [-0.2659, 0.2408, 0.0679, 0.0407],
        [-2.3042, 0.0537, 1.5665, 0.4683, -2.6611],
    ],
    "Origin": [539.5, 539.5],
    "Scale": [0.00092592593, 0.00092592593],
    "Dims": [1080, 1080],
}
WHOLE = (slice(0, 1080), slice(0, 1080))


def test_the_polynomial_is_that_of_the_coefficients_written_out() -> None:
    found = gain(HOECHST, (1080, 1080), WHOLE)
    y, x = 100, 900
    u, v = (x - 539.5) / 1080, (y - 539.5) / 1080
    c = HOECHST["Coefficients"]
    value = c[0][0] + c[1][0] * u + c[1][1] * v + c[2][0] * u**2 + c[2][1] * u * v + c[2][2] * v**2
    value += c[3][0] * u**3 + c[3][1] * u**2 * v + c[3][2] * u * v**2 + c[3][3] * v**3
    value += c[4][0] * u**4 + c[4][1] * u**3 * v + c[4][2] * u**2 * v**2 + c[4][3] * u * v**3 + c[4][4] * v**4
    assert found[y, x] == pytest.approx(value, rel=1e-3)
    assert found.dtype == np.float32
    assert found.mean() == pytest.approx(1, abs=1e-3)


def test_a_box_and_a_coarser_level_are_parts_of_the_same_profile() -> None:
    whole = gain(HOECHST, (1080, 1080), WHOLE)
    box = (slice(200, 300), slice(900, 1080))
    assert np.array_equal(gain(HOECHST, (1080, 1080), box), whole[box])
    half = gain(HOECHST, (540, 540), (slice(0, 540), slice(0, 540)))
    assert np.allclose(half, whole.reshape(540, 2, 540, 2).mean(axis=(1, 3)), atol=1e-4)


def test_an_identity_changes_nothing_and_a_missing_profile_is_an_error() -> None:
    assert (gain({"Type": "Identity"}, (8, 8), (slice(0, 8), slice(2, 4))) == 1).all()
    assert vendor_profile({"Character": "NonFlat", "Profile": HOECHST}, "Hoechst") == HOECHST
    with pytest.raises(UserError, match=r"channel 'DAPI'.*data\.flat_field=estimated"):
        vendor_profile(None, "DAPI")


def test_a_profile_is_estimated_from_fields_with_cells() -> None:
    shape = (135, 120)
    truth = gain(HOECHST, shape, (slice(0, 135), slice(0, 120)))
    rng = stream(0)
    planes = []
    for _ in range(24):
        cells = ndimage.gaussian_filter((rng.random(shape) > 0.995) * 60.0, 3)
        planes.append((rng.uniform(200, 900) * truth * (1 + cells)).astype(np.uint16))
    found = gain(estimate(planes), shape, (slice(0, 135), slice(0, 120)))
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.99
    assert abs(found - truth).max() < 0.12


@pytest.mark.parametrize("shape", [(5, 7), (1, 40), (200, 33)])
def test_planes_of_any_size_and_dark_ones_give_a_profile(shape: tuple[int, int]) -> None:
    profile = json.loads(json.dumps(estimate([np.zeros(shape), np.ones(shape)])))
    assert np.allclose(gain(profile, shape, (slice(0, shape[0]), slice(0, shape[1]))), 1)


@pytest.mark.realdata
def test_the_vendors_profile_follows_the_background_of_a_real_plate_best_as_it_is(realdata: Path) -> None:
    """Channel 6 holds hardly any cells, and a profile far steeper along x than along y."""
    folder = realdata / "vendor" / "phenix_phase" / "images"
    stated = re.findall(r"<FlatfieldProfile>(.*?)<", (folder / "Index.idx.xml").read_text("utf-8-sig"))
    for channel, least in ((3, 0.95), (5, 0.96), (6, 0.985)):
        text = next(text for text in stated if f"Channel: {channel}," in text)
        rows = json.loads(_found(r"Coefficients: (\[\[.*?]])", text))
        plane = tifffile.imread(folder / f"r01c01f01p01-ch{channel}sk1fk1fl1.tiff")
        background = ndimage.percentile_filter(plane[::8, ::8], 10, size=15).ravel()
        profile = gain(HOECHST | {"Coefficients": rows}, (1080, 1080), WHOLE)
        views = [profile, profile[::-1], profile[:, ::-1], profile[::-1, ::-1]]
        views += [view.T for view in views]
        agreement = [np.corrcoef(view[::8, ::8].ravel(), background)[0, 1] for view in views]
        assert np.argmax(agreement) == 0
        assert agreement[0] > least
        nonflatness = float(_found(r"Original: ([\d.]+)", text))
        assert np.diff(np.percentile(profile, [1, 99]))[0] < nonflatness < np.ptp(profile)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match
    return match[1]
