"""Groups of features against independent libraries."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from hpc_isl.objects import feature_groups as groups
from hpc_isl.objects.features import assigned


@pytest.fixture(scope="module")
def image() -> tuple[NDArray[np.uint32], dict[str, NDArray[np.float32] | None]]:
    """Objects of many sizes, some of one pixel, some that touch, with labels that have gaps."""
    rng = np.random.default_rng(1)
    noise = gaussian_filter(rng.normal(0, 1, (160, 200)), 4)
    labels = label(noise > 0.5 * noise.std())[0].astype(np.uint32) * 3
    labels[:, 100] = np.where(labels[:, 100] > 0, 1000, 0)
    labels[0, 0], labels[labels == 9] = 500, 0
    a = gaussian_filter(rng.normal(0, 1, labels.shape), 2) * 900 + 1000
    b = 0.6 * a + rng.normal(0, 90, labels.shape) - 200
    return labels, {"A": a.astype(np.float32), "B": b.astype(np.float32), "C": None}


def test_correlation_is_pearsons_of_numpy(image) -> None:  # type: ignore[no-untyped-def]
    labels, channels = image
    made = groups.correlations(labels, channels)
    assert list(made) == ["A_B_correlation", "A_C_correlation", "B_C_correlation"]
    names = np.unique(labels)[1:]
    for name, value in zip(names, made["A_B_correlation"], strict=True):
        own = labels == name
        if own.sum() > 1:
            expected = np.corrcoef(*(channels[c][own].astype(float) for c in "AB"))[0, 1]
            assert value == pytest.approx(expected, abs=1e-9)
        else:
            assert np.isnan(value)
    assert np.isnan(made["A_C_correlation"]).all()


def test_rings_are_those_of_scipys_distances(image) -> None:  # type: ignore[no-untyped-def]
    labels, channels = image
    made = groups.radial(labels, channels)
    assert len(made) == 4 * 3
    for row, name in enumerate(np.unique(labels)[1:]):
        own = labels == name
        # Nothing is known beyond the image, so that its edge bounds no object.
        depth = distance_transform_edt(np.pad(own, 200, mode="edge"))[200:-200, 200:-200]
        depth = depth[own] / depth[own].max()
        values = channels["A"][own].astype(float)
        for number in range(4):
            ring = np.clip(((1 - depth) * 4).astype(int), 0, 3) == number
            expected = values[ring].mean() / values.mean() if ring.any() and values.mean() > 0 else np.nan
            assert made[f"A_ring{number + 1}"][row] == pytest.approx(expected, rel=1e-5, nan_ok=True), name
    assert np.isnan(made["C_ring1"]).all()


def test_objects_without_light_have_no_rings() -> None:
    labels = np.ones((20, 20), np.uint32)
    made = groups.radial(labels, {"A": np.full((20, 20), -3, np.float32)})
    assert np.isnan(made["A_ring1"]).all()


def test_cytoplasm_is_what_of_a_cell_lies_outside_of_all_nuclei() -> None:
    cells, nuclei = np.zeros((40, 40), np.uint32), np.zeros((40, 40), np.uint32)
    cells[2:20, 2:20], cells[2:20, 20:38], cells[24:38, 2:12], cells[24:30, 20:26] = 4, 5, 8, 9
    nuclei[6:10, 6:10] = 1
    nuclei[12:16, 17:22] = 2  # three columns in cell 4, two in cell 5
    nuclei[22:32, 18:28] = 3  # covers all of cell 9
    nuclei[34:38, 30:34] = 4  # of no cell
    pixels = np.arange(1600, dtype=np.float32).reshape(40, 40)
    made = groups.cytoplasm(cells, nuclei, {"A": pixels, "B": None}, 0.5)
    assert made["nuclei_in_cell"].tolist() == [2, 0, 0, 1]
    outside = [(cells == name) & (nuclei == 0) for name in (4, 5, 8, 9)]
    assert made["cytoplasm_area_um2"].tolist() == [own.sum() / 4 for own in outside]
    assert made["cytoplasm_A_mean"][:3] == pytest.approx([pixels[own].mean() for own in outside[:3]])
    assert np.isnan(made["cytoplasm_A_mean"][3])
    assert np.isnan(made["cytoplasm_B_sum"]).all()
    assert assigned(nuclei, cells).tolist() == [4, 4, 9, 0]


@pytest.mark.filterwarnings("ignore:invalid escape")  # of cp_measure's own source
def test_texture_and_granularity_are_cellprofilers(image) -> None:  # type: ignore[no-untyped-def]
    """By cp_measure, of the optional extra `features`, on contiguous labels and pixels of 0 to 1."""
    get_texture = pytest.importorskip("cp_measure.core.measuretexture").get_texture
    from cp_measure.core.measuregranularity import get_granularity

    labels, channels = image
    masks = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    shown = np.clip(channels["A"].astype(float) / 4095, 0, 1)
    made = groups.texture(labels, {"A": channels["A"]}, 4095, 2, 64)
    made |= groups.granularity(labels, {"A": channels["A"]}, 4095)
    theirs = get_texture(masks, shown, 2, 64) | get_granularity(masks, shown)
    assert list(made) == [f"A_{name}" for name in theirs]
    for name, values in theirs.items():
        np.testing.assert_array_equal(made[f"A_{name}"], values)
    assert len(next(iter(made.values()))) == len(np.unique(labels)) - 1
    assert np.isfinite(made["A_Contrast_2_00_64"]).sum() > 10


@pytest.mark.filterwarnings("ignore:invalid escape")  # of cp_measure's own source
def test_of_no_object_there_are_the_same_columns() -> None:
    none, pixels = np.zeros((1, 1), np.uint32), np.zeros((1, 1), np.float32)
    some = np.kron(np.eye(3, dtype=np.uint32), np.ones((20, 20), np.uint32))
    kinds = [
        lambda labels, p: groups.correlations(labels, {"A": p, "B": p}),
        lambda labels, p: groups.radial(labels, {"A": p}),
        lambda labels, p: groups.cytoplasm(labels, labels, {"A": p}, 0.5),
    ]
    try:
        import cp_measure  # noqa: F401
    except ImportError:
        pass
    else:
        kinds.append(lambda labels, p: groups.texture(labels, {"A": p}, 255, 3, 256))
        kinds.append(lambda labels, p: groups.granularity(labels, {"A": p}, 255))
    for kind in kinds:
        empty, full = kind(none, pixels), kind(some, np.ones(some.shape, np.float32))
        assert list(empty) == list(full)
        assert {len(values) for values in empty.values()} == {0}
        types = [{name: values.dtype for name, values in made.items()} for made in (empty, full)]
        assert types[0] == types[1]
