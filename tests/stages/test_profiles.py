"""Readouts relative to controls, Z′ and pycytominer's names: against plain formulas, on a made-up run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_segmentation import MadeUp, made_up_segmentation

from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.stages.table.profiles import assay_quality, normalised, pycytominer_names
from hpc_isl.stages.table.stage import data_frame, table

LOW = [f"B{column:02}" for column in range(2, 7)]
HIGH = [f"C{column:02}" for column in range(7, 12)]
CONTROLS = {well: {"control": "negative", "treatment": "DMSO"} for well in LOW} | {
    well: {"control": "Positive", "treatment": "drug, 1 nM"} for well in HIGH
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two plates with five wells of each control, and three without a name."""
    wells = [*LOW, *HIGH, "D02", "D03", "D04"]
    plates = [MadeUp(name, wells, plate_map=CONTROLS, channels=("DAPI 405",)) for name in ("P01", "P02")]
    return made_up_segmentation(tmp_path_factory.mktemp("screen"), plates)


def wells_of(run: Run, tmp_path: Path, **form: str) -> pd.DataFrame:
    table(run, tmp_path / "wells.parquet", heat_maps=[], **form)
    return pd.read_parquet(tmp_path / "wells.parquet")


@pytest.mark.parametrize("method", ["negative_controls", "plate"])
def test_readouts_are_distances_from_the_median_in_robust_deviations(
    run: Run, tmp_path: Path, method: str
) -> None:
    plain, relative = (wells_of(run, tmp_path, normalise=how) for how in ("none", method))
    for name in ("objects", "objects_per_mm2", "median_area_um2", "median_DAPI 405_mean"):
        for _, own in plain.groupby("plate"):
            compared = own if method == "plate" else own[own.well.isin(LOW)]
            values = compared[name].astype(float)
            deviation = 1.4826 * (values - values.median()).abs().median()
            expected = (own[name].astype(float) - values.median()) / deviation
            assert relative.loc[own.index, name].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-12)
    assert relative.treatment.equals(plain.treatment)
    assert relative.fields.equals(plain.fields), "what was imaged is no readout"


@pytest.mark.parametrize("per", ["well", "field", "plate", "object"])
def test_a_script_gets_the_table_that_the_command_writes(run: Run, tmp_path: Path, per: str) -> None:
    pd.testing.assert_frame_equal(data_frame(run, per), wells_of(run, tmp_path, per=per), check_dtype=False)


def test_quality_of_an_assay_is_that_of_the_formula(run: Run, tmp_path: Path) -> None:
    made = table(run, tmp_path / "wells.csv", heat_maps=[])
    plain, quality = wells_of(run, tmp_path), pd.read_csv(made.paths["assay quality"])
    row = quality[(quality.plate == "P02") & (quality.readout == "objects")].iloc[0]
    own = plain[plain.plate == "P02"]
    low, high = (own[own.well.isin(wells)].objects.astype(float) for wells in (LOW, HIGH))
    z_prime = 1 - 3 * (low.std() + high.std()) / abs(low.mean() - high.mean())
    assert row.z_prime == pytest.approx(z_prime, rel=1e-5)
    ssmd = (high.mean() - low.mean()) / math.sqrt(low.var() + high.var())
    assert row.ssmd == pytest.approx(ssmd, rel=1e-5)
    robust = [1.4826 * (values - values.median()).abs().median() for values in (low, high)]
    expected = 1 - 3 * sum(robust) / abs(low.median() - high.median())
    assert row.robust_z_prime == pytest.approx(expected, rel=1e-5)
    assert (row.negative_wells, row.positive_wells) == (5, 5)
    assert f"P02: Z′ of objects {z_prime:.2f} (5 negative and 5 positive control wells)" in made.notes


def test_each_time_of_a_plate_has_a_quality_of_its_own(tmp_path: Path) -> None:
    plate = MadeUp("P01", [*LOW, *HIGH], plate_map=CONTROLS, times=2)
    made = table(made_up_segmentation(tmp_path, [plate]), tmp_path / "wells.csv", heat_maps=[])
    lines = [note.partition(":")[0] for note in made.notes if "Z′" in note]
    assert lines == ["P01 time 0", "P01 time 1"]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 100), st.floats(-1e3, 1e3), st.integers(0, 2**32 - 1))
def test_quality_depends_on_no_unit(gain: float, offset: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(5, 1, 12)
    values[6:] += 20
    wells = pd.DataFrame({"plate": "P", "control": ["negative"] * 6 + ["positive"] * 6, "objects": values})
    first = assay_quality(wells)
    second = assay_quality(wells.assign(objects=offset + gain * values))
    for name in ("z_prime", "robust_z_prime", "ssmd"):
        assert second[name][0] == pytest.approx(first[name][0], rel=1e-6)


def test_few_controls_have_no_quality_and_equal_ones_none() -> None:
    few = pd.DataFrame({"plate": "P", "control": ["negative"] * 4 + ["positive"] * 3, "objects": range(7)})
    assert assay_quality(few)[["z_prime", "robust_z_prime", "ssmd"]].isna().all(axis=None)
    equal = pd.DataFrame({"plate": "P", "control": ["negative"] * 4 + ["positive"] * 4, "objects": 1})
    assert assay_quality(equal)[["z_prime", "robust_z_prime", "ssmd"]].isna().all(axis=None)
    assert len(assay_quality(few.assign(control="negative"))) == 0


def test_a_readout_without_spread_is_null_and_named() -> None:
    wells = pd.DataFrame({
        "plate": "P", "well": ["A01", "A02", "A03"], "control": ["negative", "negative", None],
        "objects": [1, 2, 9], "confluence": [0.5, 0.5, 0.9],
    })  # fmt: skip
    relative = normalised(wells, "negative_controls")
    assert relative.wells.confluence.isna().all()
    assert relative.wells.objects.tolist() == pytest.approx([-1 / 1.4826, 1 / 1.4826, 15 / 1.4826])
    assert relative.notes == ["P: no spread among the wells compared with, so null: confluence"]
    assert wells.objects.tolist() == [1, 2, 9]
    scales = relative.scales.set_index("readout")
    assert scales.loc["objects", ["plate", "wells", "median", "reason"]].tolist() == ["P", 2, 1.5, ""]
    assert scales.scale["objects"] == pytest.approx(1.4826 / 2)
    assert scales.reason["confluence"] == "their MAD is 0"
    assert np.isnan(scales.scale["confluence"])


def test_where_each_plate_has_negative_controls_relative_readouts_stand_beside_the_plain_ones(
    run: Run, tmp_path: Path
) -> None:
    plain, relative = (wells_of(run, tmp_path, normalise=how) for how in ("none", "negative_controls"))
    made = table(run, tmp_path / "usual.parquet", heat_maps=["normalised_median_area_um2"])
    usual = pd.read_parquet(tmp_path / "usual.parquet")
    pd.testing.assert_frame_equal(usual[[*plain]], plain)
    names = [name for name in usual if name not in plain]
    assert set(names) == {
        f"normalised_{name}" for name in plain
        if name in ("objects", "objects_per_mm2", "confluence") or name.startswith("median_")
    }  # fmt: skip
    for name in names:
        expected = relative[name.removeprefix("normalised_")].astype(float).to_numpy()
        np.testing.assert_array_equal(usual[name].to_numpy(float), expected)
    scales = pd.read_csv(run.folder / "normalisation.csv")
    assert set(scales.plate) == {"P01", "P02"}
    assert (scales.wells == 5).all()
    assert any("normalised_median_area_um2" in str(path) for path in made.paths.values())
    objects = table(run, tmp_path / "fields.parquet", "field", []).paths
    assert "table of 52 fields" in objects


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({}, []),
        (
            {well: {"control": "negative"} for well in ("B02", "B03")},
            ["readouts are not compared with negative controls: each plate needs two, and P02 has 1"],
        ),
    ],
)
def test_where_a_plate_lacks_negative_controls_none_is_compared(
    controls: dict[str, dict[str, str]], said: list[str], tmp_path: Path
) -> None:
    few = {**controls, **({"B03": {"control": "positive"}} if controls else {})}
    plates = [MadeUp("P01", plate_map=controls), MadeUp("P02", plate_map=few)]
    bare = made_up_segmentation(tmp_path, plates)
    made = table(bare, tmp_path / "wells.parquet", heat_maps=[])
    names = pq.read_schema(tmp_path / "wells.parquet").names
    assert not [name for name in names if name.startswith("normalised_")]
    assert [note for note in made.notes if "are not compared" in note] == said
    assert not (bare.folder / "normalisation.csv").exists()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"normalise": "negative"}, "normalise=negative: no such way; did you mean 'negative_controls'"),
        ({"normalise": "plate", "per": "field"}, "compares wells, which are the units of a plate"),
        ({"names": "cytominer"}, "format=cytominer: no such form; did you mean 'pycytominer'"),
    ],
)
def test_what_no_table_has_is_refused(run: Run, tmp_path: Path, form: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        wells_of(run, tmp_path, **form)


def test_a_plate_without_negative_controls_says_how_to_name_them(tmp_path: Path) -> None:
    bare = made_up_segmentation(tmp_path, [MadeUp("P09")])
    with pytest.raises(UserError, match=r"plate P09 has 0 wells .* `control` in the plate map is `negative`"):
        wells_of(bare, tmp_path, normalise="negative_controls")
    assert not (bare.folder / "assay_quality.csv").exists()


@pytest.mark.parametrize("per", ["well", "field", "object"])
def test_pycytominers_columns_are_metadata_or_features_without_spaces(
    run: Run, tmp_path: Path, per: str
) -> None:
    plain = tmp_path / "plain.parquet"
    table(run, plain, per, [], normalise="none")
    named = tmp_path / "named.parquet"
    table(run, named, per, [], normalise="none", names="pycytominer")
    ours, theirs = pq.read_table(plain), pq.read_table(named)
    names = theirs.column_names
    assert names[:2] == ["Metadata_Plate", "Metadata_Well"]
    assert {"Metadata_control", "Metadata_treatment"} <= set(names)
    assert all(name.startswith(("Metadata_", "Objects_")) and " " not in name for name in names)
    eccentricity = "eccentricity" if per == "object" else "median_eccentricity"
    assert theirs["Objects_AreaShape_Eccentricity"].equals(ours[eccentricity])
    assert theirs.num_rows == ours.num_rows
    area = "area_um2" if per == "object" else "median_area_um2"
    assert theirs["Objects_area_um2"].equals(ours[area])


def test_a_number_of_objects_stays_one_where_readouts_are_relative(run: Run, tmp_path: Path) -> None:
    plain, relative = (wells_of(run, tmp_path, normalise=how) for how in ("none", "negative_controls"))
    named = wells_of(run, tmp_path, names="pycytominer")  # relative because there are controls
    assert named.Metadata_Object_Count.equals(plain.objects.rename("Metadata_Object_Count"))
    assert named.Objects_objects.to_numpy() == pytest.approx(relative.objects.to_numpy())


def test_how_an_object_was_found_is_no_readout_of_a_well() -> None:
    wells = pd.DataFrame(
        {"plate": ["P"] * 2, "control": "negative", "objects": [1, 2], "median_score": [0.5, 0.6]}
    )
    assert normalised(wells, "plate").wells.median_score.tolist() == [0.5, 0.6]
    assert pycytominer_names(list(wells), "cells", [])["median_score"] == "Metadata_score"


def test_two_channels_that_would_be_one_are_refused() -> None:
    with pytest.raises(UserError, match="two columns would be called Nuclei_DAPI_405_mean"):
        pycytominer_names(["plate", "DAPI 405_mean", "DAPI_405_mean"], "nuclei", [])
