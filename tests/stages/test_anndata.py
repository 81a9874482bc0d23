"""A table as AnnData: its numbers are those of the plain table, and all that is said of rows is in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from made_up_segmentation import MadeUp, made_up_segmentation

from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.stages.table import anndata_file
from hpc_isl.stages.table.anndata_file import about_features
from hpc_isl.stages.table.stage import table

CONTROLS = {well: {"control": "negative", "dose": ""} for well in ("B02", "B03", "C02")} | {
    "C03": {"control": "positive", "dose": "1 µM"}
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two plates with negative controls; of one the size of a pixel is the same."""
    plates = [MadeUp(name, plate_map=CONTROLS, channels=("DAPI 405",)) for name in ("P01", "P02")]
    return made_up_segmentation(tmp_path_factory.mktemp("anndata"), plates)


def written(run: Run, folder: Path, **form: str) -> tuple[anndata.AnnData, pd.DataFrame]:
    """The file, and the plain table of the same rows."""
    per = form.get("per", "well")
    table(run, folder / "t.h5ad", heat_maps=[], names="anndata", **form)
    table(run, folder / "t.parquet", per, [], normalise="none")
    return anndata.read_h5ad(folder / "t.h5ad"), pd.read_parquet(folder / "t.parquet")


@pytest.mark.parametrize("per", ["well", "field", "plate", "object"])
def test_features_are_those_of_the_plain_table(
    run: Run, tmp_path: Path, per: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anndata_file, "ROWS", 16)  # objects of a plate fill several chunks
    data, plain = written(run, tmp_path, per=per)
    assert data.X.dtype == np.float32
    assert data.shape == (len(plain), len(data.var_names))
    np.testing.assert_array_equal(data.X, plain[[*data.var_names]].to_numpy(np.float32))
    assert data.obs_names.is_unique
    assert data.obs["Metadata_Plate"].tolist() == plain["plate"].tolist()
    rest = {*plain} - {*data.var_names}
    assert len(data.obs.columns) == len(rest)  # no column of the table is lost
    if per in ("well", "object"):
        assert data.obs["Metadata_control"].isin(["negative", "positive"]).all()
        assert data.obs["Metadata_dose"].isna().sum() == (plain.dose.isna()).sum() > 0
        assert data.obs_names[0].startswith("P01_B02")


def test_columns_of_a_plate_map_that_are_called_as_features_describe_objects(tmp_path: Path) -> None:
    wells = ("B02", "B03")
    facts = {well: {"label": "mock", "area_um2": "large"} for well in wells}
    run = made_up_segmentation(tmp_path, [MadeUp(wells=wells, plate_map=facts)])
    data, plain = written(run, tmp_path, per="object")
    assert {*data.obs["Metadata_label_plate_map"]} == {"mock"}
    assert {*data.obs["Metadata_area_um2_plate_map"]} == {"large"}
    np.testing.assert_array_equal(data[:, "area_um2"].X.ravel(), plain.area_um2.to_numpy(np.float32))


def test_plain_and_relative_readouts_are_layers(run: Run, tmp_path: Path) -> None:
    data, plain = written(run, tmp_path)
    raw = plain[[*data.var_names]].to_numpy(np.float32)
    np.testing.assert_array_equal(data.layers["raw"], raw)
    table(run, tmp_path / "relative.parquet", heat_maps=[], normalise="negative_controls")
    relative = pd.read_parquet(tmp_path / "relative.parquet")[[*data.var_names]].to_numpy(np.float32)
    np.testing.assert_array_equal(data.layers["normalised"], relative)
    asked, _ = written(run, tmp_path, normalise="negative_controls")
    np.testing.assert_array_equal(asked.X, relative)
    np.testing.assert_array_equal(asked.layers["raw"], raw)
    bare, _ = written(run, tmp_path, normalise="none")
    assert not bare.layers
    assert set(data.uns["normalisation"].columns) >= {"plate", "readout", "median", "scale", "reason"}


def test_what_the_run_was_is_in_the_file(run: Run, tmp_path: Path) -> None:
    data, _ = written(run, tmp_path)
    assert data.uns["run"] == "nuc-P"
    assert data.uns["recipe"] == run.recipe.read_text()
    assert json.loads(data.uns["qc"])["leave_out"] == ["incomplete", "out_of_focus"]
    about = data.var.loc[["median_area_um2", "median_DAPI 405_mean", "objects_per_mm2"]]
    assert about.to_numpy().tolist() == [["shape", "um2"], ["intensity", "counts"], ["count", "1/mm2"]]


def test_every_group_of_features_is_known_by_its_names() -> None:
    names = {
        "solidity": ("shape", ""), "orientation_rad": ("shape", "rad"), "area_px": ("shape", "px"),
        "DAPI_sum": ("intensity", "counts"), "DAPI_saturated": ("intensity", ""),
        "DAPI_FITC_correlation": ("correlation", ""), "DAPI_ring4": ("radial", ""),
        "DAPI_Granularity_12": ("granularity", ""), "DAPI_Contrast_3_00_256": ("texture", ""),
        "cytoplasm_area_um2": ("cytoplasm", "um2"), "median_cytoplasm_DAPI_sd": ("cytoplasm", "counts"),
        "median_perimeter_um": ("shape", "um"), "something else": ("", ""),
    }  # fmt: skip
    assert [tuple(row) for row in about_features([*names]).to_numpy()] == [*names.values()]


def test_without_the_library_or_under_another_ending_it_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no such kind of table.*'.h5ad'"):
        table(run, tmp_path / "wells.csv", names="anndata")
    with pytest.raises(UserError, match=r"no such kind of table.*'.csv'"):
        table(run, tmp_path / "wells.h5ad")
    (tmp_path / "folder.h5ad").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        table(run, tmp_path / "folder.h5ad", names="anndata")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(UserError, match=r"pip install 'hpc-isl\[anndata\]'"):
        table(run, tmp_path / "wells.h5ad", names="anndata")
