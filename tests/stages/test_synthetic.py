"""A synthetic plate is what it says: a vendor's layout, physics that can be checked, truth that fits."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from defusedxml import ElementTree
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hpc_isl.errors import UserError
from hpc_isl.seeds import stream
from hpc_isl.stages.synthetic import layout
from hpc_isl.stages.synthetic import stage as synthetic
from hpc_isl.stages.synthetic.cells import Condition, grow
from hpc_isl.stages.synthetic.layout import HOECHST, lay_out

NAMESPACE = "{http://www.perkinelmer.com/PEHH/HarmonyV5}"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "export"
    synthetic.write(folder, wells=2, fields=2, size=128, phase=True, seed=3)
    return folder


def planes(folder: Path, channel: int, well: str = "r02c02") -> list[np.ndarray]:
    return [tifffile.imread(p) for p in sorted((folder / "Images").glob(f"{well}f01*-ch{channel}sk*"))]


def test_the_index_names_each_file_once_and_nothing_else(export: Path) -> None:
    tree = ElementTree.parse(export / "Images" / "Index.idx.xml")
    named = [element.text for element in tree.iter(f"{NAMESPACE}URL")]
    assert sorted(named) == sorted(p.name for p in (export / "Images").glob("*.tiff"))
    assert len(named) == 2 * 2 * 3 * 4


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(export: Path, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "same", wells=2, fields=2, size=128, phase=True, seed=3)
    synthetic.write(tmp_path / "other", wells=2, fields=2, size=128, phase=True, seed=4)
    names = [p.relative_to(export) for p in export.rglob("*") if p.is_file()]
    assert all((tmp_path / "same" / n).read_bytes() == (export / n).read_bytes() for n in names)
    other = tmp_path / "other" / "Images" / "r02c02f01p01-ch1sk1fk1fl1.tiff"
    assert other.read_bytes() != (export / "Images" / other.name).read_bytes()


def test_a_field_does_not_depend_on_how_many_wells_are_made(export: Path, tmp_path: Path) -> None:
    synthetic.write(tmp_path, wells=1, fields=1, size=128, seed=3)
    np.testing.assert_array_equal(planes(tmp_path, 1), planes(export, 1))


def test_contrast_of_brightfield_inverts_through_focus(export: Path) -> None:
    below, focus, above = planes(export, 1)
    assert np.corrcoef(below.ravel(), above.ravel())[0, 1] < -0.2
    assert focus.std() < 0.7 * min(below.std(), above.std())


def test_defocus_follows_the_transport_of_intensity() -> None:
    rng = stream(0, "phase")
    phase = ndimage.gaussian_filter(rng.standard_normal((128, 128)), 6) * 2
    z, um = 0.5, 0.6
    seen = layout.brightfield(phase, np.zeros_like(phase), z, um) - 1
    predicted = -z * layout.WAVELENGTH_UM / (2 * np.pi) * ndimage.laplace(phase, mode="wrap") / um**2
    inner = (slice(20, -20), slice(20, -20))
    assert np.corrcoef(seen[inner].ravel(), predicted[inner].ravel())[0, 1] > 0.99


def test_stained_light_falls_on_nuclei_and_is_even_after_the_stated_profile(tmp_path: Path) -> None:
    synthetic.write(tmp_path, wells=1, fields=2, size=256, planes=1, seed=1)
    stain = tifffile.imread(tmp_path / "Images" / "r02c02f01p01-ch2sk1fk1fl1.tiff").astype(float)
    nuclei = tifffile.imread(tmp_path / "truth" / "nuclei" / "B02_1.tiff") > 0
    assert stain[nuclei].mean() > 5 * stain[~nuclei].mean()
    empty = tifffile.imread(tmp_path / "Images" / "r02c02f02p01-ch2sk1fk1fl1.tiff").astype(float)
    assert not tifffile.imread(tmp_path / "truth" / "nuclei" / "B02_2.tiff").any()
    light = (empty - layout.PEDESTAL) / layout.illumination(HOECHST.profile, 256)
    corner, middle = light[:64, :64].mean(), light[96:160, 96:160].mean()
    assert corner == pytest.approx(middle, rel=0.03)
    assert empty[:64, :64].mean() < 0.95 * empty[96:160, 96:160].mean()


def test_the_stated_profile_is_the_polynomial_that_was_used(export: Path) -> None:
    text = (export / "Images" / "Index.idx.xml").read_text()
    stated = re.search(r"Coefficients: (\[\[.*?\]\]), Dims: \[128, 128\].*?ChannelName: HOECHST", text)
    assert stated
    assert stated[1] == str([list(order) for order in HOECHST.profile])
    assert layout.illumination(((1.0,), (0.5, 0.0)), 4)[0].tolist() == [
        0.8125, 0.9375, 1.0625, 1.1875,
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), density=st.floats(0, 1), size=st.integers(64, 160))
def test_nuclei_lie_inside_their_cells(seed: int, density: float, size: int) -> None:
    truth = grow(stream(seed), size, Condition(density=density))
    inside = truth.nuclei > 0
    np.testing.assert_array_equal(truth.nuclei[inside], truth.cells[inside])
    assert not truth.dna[~inside].any()
    assert all(np.isfinite(a).all() for a in (truth.phase, truth.density, truth.dna, truth.membrane))


def test_treatments_change_the_cells_by_the_plate_map(export: Path) -> None:
    with (export / "plate_map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["well"], r["treatment"], r["control"]) for r in rows] == [
        ("B02", "DMSO", "negative"),
        ("B03", "compound A", ""),
    ]
    wells, plate_format = lay_out(24)
    assert plate_format == 96
    usual, halted, killed = (wells[n].condition(0) for n in (0, 2, 5))
    assert killed.nucleus_px < usual.nucleus_px < halted.nucleus_px
    assert killed.rounded > usual.rounded

    def area(condition: Condition) -> float:
        nuclei = grow(stream(5), 400, condition).nuclei
        return float(np.median(np.bincount(nuclei.ravel())[np.unique(nuclei)[1:]]))

    assert area(killed) < 0.8 * area(usual) < 0.8 * area(halted)


def test_an_export_is_not_written_over(export: Path) -> None:
    with pytest.raises(UserError, match="holds an export already"):
        synthetic.write(export, wells=1)
    with pytest.raises(UserError, match="at most 308"):
        synthetic.write(export / "new", wells=309)


def test_the_command_writes_the_plate_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--wells", "1", "--fields", "1", "--size", "64"]
    assert synthetic.main([str(tmp_path / "e"), *small]) == 0
    assert "1 well × 1 field of 64²" in capsys.readouterr().out
    assert synthetic.main([str(tmp_path / "e"), *small]) == 2
    assert "holds an export already" in capsys.readouterr().err
