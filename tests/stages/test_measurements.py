"""What a run measures of its objects on request, and which of them the medians of a well are of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_screen import save_model, write_screen
from used_plates import Here, computed

from hpc_isl.errors import UserError
from hpc_isl.recipes.load import load
from hpc_isl.run import Run
from hpc_isl.stages.segment import stage
from hpc_isl.stages.table.stage import table

# Of every run before features were in groups.
USUAL = [
    "plate", "well", "field", "acquisition", "time", "label", "y0", "x0", "y1", "x1", "centroid_y_um",
    "centroid_x_um", "area_um2", "perimeter_um", "eccentricity", "solidity", "orientation_rad",
    "equivalent_diameter_um", "touches_border", "Hoechst_mean", "Hoechst_sd", "Hoechst_min", "Hoechst_max",
    "Hoechst_sum", "duplicate_of",
]  # fmt: skip
GROUPS = "measure.features=[shape, intensity, correlation, radial]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate of which nuclei and cells are segmented, each beside the other."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("measurements")
    write_screen(folder / "S1.zarr", fields=1)
    for kind in ("cells", "nuclei"):
        save_model(folder / "runs" / "finetune" / kind, kind=kind)
    segmented(folder, "first", "nuclei", "labels=nuclei")
    segmented(
        folder,
        "cells",
        "cells",
        "labels=cells",
        "nuclei=nuclei",
        "measure.channels=[Brightfield, Hoechst]",
        GROUPS,
    )
    segmented(folder, "held", "nuclei", "labels=nuclei2", "cells=cells")
    return folder


def segmented(folder: Path, name: str, model: str, *keys: str) -> Run:
    words = [f"model={folder}/runs/finetune/{model}", f"plates=[{folder}/S1.zarr]", *keys]
    return computed(stage, folder, name, *words, pools=Here())


def objects_of(lab: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(lab / "runs" / "segment" / name / "tables" / "S1.parquet")


def test_as_it_is_by_default_a_run_has_the_columns_that_it_always_had(lab: Path) -> None:
    assert objects_of(lab, "first").columns.to_list() == USUAL


def test_groups_add_columns_and_change_no_other(lab: Path) -> None:
    cells = objects_of(lab, "cells")
    more = [name for name in cells if "ring" in name or "correlation" in name]
    assert more == [
        "Brightfield_Hoechst_correlation",
        *(f"{c}_ring{n}" for c in ("Brightfield", "Hoechst") for n in range(1, 5)),
    ]
    assert {*USUAL} < {*cells}
    assert cells.Brightfield_Hoechst_correlation.dropna().between(-1, 1).all()


def test_a_field_too_large_for_memory_has_the_same_groups(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "S1.zarr", tmp_path / "S1.zarr")
    keys = ["labels=again", GROUPS, "predict={tile: 64}", "outputs=[labels]"]
    words = [f"model={lab}/runs/finetune/cells", f"plates=[{tmp_path}/S1.zarr]", *keys]
    whole = computed(stage, tmp_path, "whole", *words, "labels=other", pools=Here())
    large = computed(
        stage, tmp_path, "large", *words, "max_pixels_in_memory=1000", "block_size=32", pools=Here()
    )
    tables = [pd.read_parquet(run.folder / "tables" / "S1.parquet") for run in (whole, large)]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0].Hoechst_ring1.notna().any()


def test_wells_count_orphans_and_cells_without_one_nucleus(lab: Path) -> None:
    cells, nuclei = objects_of(lab, "cells"), objects_of(lab, "held")
    made = [
        pd.read_csv(lab / "runs" / "segment" / name / "wells.csv").set_index("well")
        for name in ("cells", "held")
    ]
    for well in ("B02", "B03"):
        own, held = cells[cells.well == well], nuclei[nuclei.well == well].cell
        assert made[0].cells_without_nucleus[well] == (own.nuclei_in_cell == 0).sum()
        assert made[0].cells_with_several_nuclei[well] == (own.nuclei_in_cell > 1).sum()
        assert made[1].orphans[well] == (held == 0).sum()
        # What a nucleus says of its cell, the cell says of its nuclei.
        said = held[held > 0].value_counts()
        assert own.set_index("label").nuclei_in_cell[said.index].to_list() == said.to_list()


def test_border_objects_count_but_are_in_no_median_and_cytoplasm_is_of_cells_with_one_nucleus(
    lab: Path,
) -> None:
    cells = objects_of(lab, "cells")
    wells = pd.read_csv(lab / "runs" / "segment" / "cells" / "wells.csv").set_index("well")
    for well, own in cells.groupby("well"):
        inside = own[~own.touches_border]
        assert 0 < len(inside) < len(own) == wells.objects[well]
        for name in ("area_um2", "Hoechst_mean", "Hoechst_ring1"):
            assert wells[f"median_{name}"][well] == pytest.approx(inside[name].median(), rel=1e-5)
        single = inside[inside.nuclei_in_cell == 1]
        name = "cytoplasm_Hoechst_mean"
        assert wells[f"median_{name}"][well] == pytest.approx(single[name].median(), rel=1e-5, nan_ok=True)
        assert np.isnan(single[name].median()) or single[name].median() != own[name].median()


def test_pycytominer_is_told_which_columns_are_no_features(lab: Path, tmp_path: Path) -> None:
    run = Run(lab / "runs" / "segment" / "cells")
    table(run, tmp_path / "t.csv", heat_maps=[], names="pycytominer")
    names = pd.read_csv(tmp_path / "t.csv").columns
    assert "Metadata_cells_without_nucleus" in names
    assert "Metadata_flag_no_objects" in names
    assert all(name.startswith(("Metadata_", "Cells_")) for name in names)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["measure.features=[shapes]"], r"measure.features.0"),
        (
            ["measure.texture_px=2"],
            r"measure.texture_px: changes nothing because measure.features has no texture",
        ),
        (["nuclei=nucleus"], r"nuclei: 2 of 2 fields have no labels 'nucleus'.*'nuclei'"),
        (["nuclei=nuclei", "max_pixels_in_memory=1000", "predict={tile: 64}"], r"leave out cells, nuclei"),
        (
            ["measure.features=[granularity]", "max_pixels_in_memory=1000", "predict={tile: 64}"],
            r"granularity and maps",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(lab: Path, keys: list[str], said: str) -> None:
    words = [f"model={lab}/runs/finetune/cells", f"plates=[{lab}/S1.zarr]", "labels=new", *keys]
    with pytest.raises(UserError, match=said):
        stage.plan(load("segment", None, words))


def test_texture_says_which_library_it_needs(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc_isl.stages.segment import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    words = [f"model={lab}/runs/finetune/cells", f"plates=[{lab}/S1.zarr]", "labels=new"]
    with pytest.raises(UserError, match=r"texture need cp_measure: pip install 'hpc-isl\[features\]'"):
        stage.plan(load("segment", None, [*words, "measure.features=[texture]"]))


@pytest.mark.filterwarnings("ignore:invalid escape")  # of cp_measure's own source
def test_texture_and_granularity_are_columns_of_a_run(lab: Path) -> None:
    pytest.importorskip("cp_measure")
    run = segmented(
        lab, "texture", "cells", "labels=t", "measure={features: [texture, granularity], white: 20000}"
    )
    objects = objects_of(lab, run.name)
    assert objects["Hoechst_Contrast_3_00_256"].notna().any()
    assert sum("Granularity_" in name for name in objects) == 16
    assert "solidity" not in objects
    assert "Hoechst_mean" not in objects
