"""Intensities that one may compare: equal cells are equal wherever in the field they lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from made_up_screen import save_model, write_screen
from numpy.typing import NDArray
from scipy.ndimage import label
from used_plates import Here, computed

from hpc_isl.errors import UserError
from hpc_isl.plates.metadata import plate_facts, plate_from
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment import stage
from hpc_isl.stages.segment.illumination import background, check_illumination, prepare_illumination
from hpc_isl.stages.segment.inputs import SegmentInputs, segment_inputs
from hpc_isl.stages.segment.measurements import CORRECTION, measured_columns
from hpc_isl.stages.segment.segmenter import FieldReader
from hpc_isl.stages.segment.stage import plan

EDGE, DARK, LIGHT, CELL = 128, 100, 300, 1500
WELLS = [f"{row}{column:02d}" for row in "BCDEFG" for column in range(2, 12)]
# Half as bright at the right as at the left, and darker at the top: no symmetry hides an exchange of axes.
X, Y = np.meshgrid(np.linspace(-1, 1, EDGE), np.linspace(-1, 1, EDGE))
SHADING = 1 - 0.3 * X - 0.1 * X**2 + 0.1 * Y
PROFILE = {"Type": "Polynomial", "Coefficients": [[1.0], [-0.3, 0.1], [-0.1, 0.0, 0.0]],
           "Origin": [63.5, 63.5], "Scale": [2 / 127, 2 / 127], "Dims": [EDGE, EDGE]}  # fmt: skip


def cells_of(well: str) -> NDArray[np.bool_]:
    """Discs of one size, at places of their own in each well."""
    rng = np.random.default_rng([*well.encode()])
    inside = np.zeros((EDGE, EDGE), bool)
    rows, columns = np.mgrid[:EDGE, :EDGE]
    for y, x in rng.uniform(6, EDGE - 6, (14, 2)):
        inside |= (rows - y) ** 2 + (columns - x) ** 2 < 25
    return inside


def write_shaded(path: Path, **of_stain: object) -> Index:
    rows, columns = layout(set(WELLS))
    channels = (Channel("Brightfield", fluorescent=False), replace(Channel("DAPI"), **of_stain))  # type: ignore[arg-type]
    fields = tuple(Field(FieldKey(well, "1"), (1, 2, 1, EDGE, EDGE), "uint16") for well in WELLS)
    plate = Plate(path.stem, rows, columns, channels, fields, 0.5)
    for field in fields:
        rng = np.random.default_rng([1, *field.key.well.encode()])
        stain = DARK + SHADING * (LIGHT + CELL * cells_of(field.key.well)) + rng.normal(0, 5, SHADING.shape)
        light = 1000 + 200 * cells_of(field.key.well) + rng.normal(0, 20, SHADING.shape)
        pixels = np.stack([light, stain])[None, :, None].round().astype(np.uint16)
        write_field(path, plate, field, pixels, measure(pixels), CodecRecipe(chunk=64))
    return finalise(path, plate, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("illumination")
    write_shaded(folder / "P1.zarr", flat_field={"Character": "NonFlat", "Profile": PROFILE})
    save_model(folder / "runs" / "finetune" / "cells")
    return folder


def inputs_of(folder: Path, *keys: str, plate: str = "P1") -> SegmentInputs:
    words = [f"model={folder}/runs/finetune/cells", f"plates=[{folder}/{plate}.zarr]", "labels=found", *keys]
    recipe = load("segment", None, words)
    assert isinstance(recipe, SegmentRecipe)
    planned = plan(recipe).recipe
    assert isinstance(planned, SegmentRecipe)
    return segment_inputs(planned)


def measured(folder: Path, run: Path, *keys: str) -> tuple[pd.DataFrame, list[str]]:
    """The true cells of all fields as `segment` measures them, and what it says of the illumination."""
    inputs = inputs_of(folder, *keys)
    run.mkdir(exist_ok=True)
    said = list(prepare_illumination(inputs, Run(run)))
    tables = []
    for key in inputs.plates[0].keys[::4]:
        reader = FieldReader(inputs.plates[0], key, run)
        cells = label(cells_of(key.well))[0].astype(np.uint32)
        tables.append(pd.DataFrame(measured_columns(reader, 0, None, cells)))
    return pd.concat(tables), said


def unevenness(table: pd.DataFrame) -> float:
    """How far the mean of cells in any ninth of the field lies from that of all, as a share of it."""
    edges = [0, EDGE / 3, 2 * EDGE / 3, EDGE]
    ninth = [pd.cut(table[f"centroid_{axis}_um"] / 0.5, edges, labels=False) for axis in "yx"]
    means = table.groupby(ninth).DAPI_mean.mean()
    assert len(means) == 9
    return float((means / table.DAPI_mean.mean() - 1).abs().max())


@pytest.mark.parametrize("kind", ["vendor", "estimated", "files"])
def test_equal_cells_are_equal_across_the_field(folder: Path, tmp_path: Path, kind: str) -> None:
    tifffile.imwrite(tmp_path / "flat.tif", (DARK + 20000 * SHADING).astype(np.uint16))
    tifffile.imwrite(tmp_path / "dark.tif", np.full(SHADING.shape, DARK, np.uint16))
    files = [f"measure.flat_field_files={{DAPI: {tmp_path}/flat.tif}}"] if kind == "files" else []
    dark = f"measure.dark_file={tmp_path}/dark.tif" if kind == "files" else f"measure.dark={DARK}"
    raw, _ = measured(folder, tmp_path / "raw")
    table, said = measured(
        folder, tmp_path / "run", f"measure.flat_field={kind}", dark, "measure.background_px=64", *files
    )
    assert unevenness(raw) > 0.2
    assert unevenness(table) < 0.02
    # In counts of a mean gain of 1, without dark and background.
    assert table.DAPI_mean.mean() == pytest.approx(CELL * SHADING.mean(), rel=0.02)
    assert (table.DAPI_saturated == 0).all()
    written = "dark.tif" if kind == "files" else DARK
    assert set(table[CORRECTION]) == {f"{kind} flat field, dark {written}, background 64 px"}
    if kind == "estimated":
        made = json.loads((tmp_path / "run" / "flat_field.json").read_text())
        (own,) = (plate["DAPI"] for plate in made.values())
        assert own["fields"] == len(WELLS)
        assert own["before"] == pytest.approx((SHADING.std() / SHADING.mean()), rel=0.1)
        assert own["after"] < 0.04
        assert said[0].startswith("P1 'DAPI': flat field estimated from 60 fields; light varies by 1")
        assert (tmp_path / "run" / "pictures" / "flat_field-P1.png").stat().st_size > 10_000


def test_saturation_is_that_of_raw_pixels(folder: Path, tmp_path: Path) -> None:
    inputs = inputs_of(folder, "measure.dark=100")
    reader = FieldReader(inputs.plates[0], inputs.plates[0].keys[0], tmp_path)
    bright = np.full(reader.shape, 1000, np.uint16)
    bright[:8, :4] = 4095
    reader.projected = lambda *_, **__: bright  # type: ignore[method-assign]
    cells = np.zeros(reader.shape, np.uint32)
    cells[:8, :8], cells[20:30, 20:30] = 1, 2
    table = measured_columns(reader, 0, None, cells)
    assert table["DAPI_saturated"].tolist() == [0.5, 0]
    assert table["DAPI_max"].tolist() == [3995, 900]


def test_a_background_follows_the_field_and_leaves_noise_around_zero() -> None:
    rng = np.random.default_rng(1)
    ground = 200 + 100 * X + rng.normal(0, 5, SHADING.shape)
    cells = cells_of("B02")
    left = (ground + 800 * cells).astype(np.float32)
    left -= background(left, cells.astype(np.uint32), 32)
    assert left.dtype == np.float32
    assert abs(left[~cells].mean()) < 3
    assert (left[~cells] < 0).mean() == pytest.approx(0.5, abs=0.1)
    assert left[cells].mean() == pytest.approx(800, rel=0.02)
    full = np.ones((64, 64), np.uint32)
    assert not background(left[:64, :64], full, 32).any()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            ["measure.flat_field=vendor"],
            r"S1 'Hoechst': the plate states no flat field.* estimated where each",
        ),
        (["measure.flat_field=estimated"], r"S1 'Hoechst': 4 fields show light, and an estimate needs 50"),
        (["measure={flat_field: files, flat_field_files: {DAPI: f.tif}}"], r"'Hoechst': no file in"),
        (["measure.dark_file=none.tif"], r"none.tif: cannot be read as a TIFF"),
        (
            ["measure.dark_file=small.tif"],
            r"small.tif: has \(4, 4\) pixels \(y, x\), and fields have \(96, 128\)",
        ),
    ],
)
def test_a_correction_that_a_plate_lacks_stops_the_plan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str], said: str
) -> None:
    if not (folder / "S1.zarr").exists():
        write_screen(folder / "S1.zarr")
    monkeypatch.chdir(tmp_path)
    for name in ("f.tif", "small.tif"):
        tifffile.imwrite(name, np.ones((96, 128) if name == "f.tif" else (4, 4), np.uint16))
    with pytest.raises(UserError, match=said):
        inputs_of(folder, *keys, plate="S1")


def test_images_that_the_instrument_corrected_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    [plate] = inputs_of(folder, "measure.flat_field=vendor", "measure.dark=100").plates
    stated = {"Ch1": {"Target": "DAPI", "ShadingCorrectionSource": "SC_BP445-45_10x_M10_CH01.tif"}}
    about = replace(plate.index.plate, details={"reader": "cellvoyager", "channels": stated})
    own = replace(plate.illumination, index=replace(plate.index, plate=about))
    raw = np.full((4, 4), 500, np.uint16)
    pixels = own.corrected(
        "DAPI", raw, (4, 4), (slice(0, 4), slice(0, 4)), np.zeros((4, 4), np.uint32), tmp_path
    )
    assert (pixels == 500).all()
    assert own.name.endswith("but DAPI as the instrument corrected them")


def test_what_metadata_call_corrected_is_left_alone_and_remarked(folder: Path, tmp_path: Path) -> None:
    [plate] = inputs_of(folder, "measure.flat_field=vendor", "measure.dark=100").plates
    channels = tuple(
        replace(c, corrected="ShadingCorrection On" if c.fluorescent else "")
        for c in plate.index.plate.channels
    )
    about = replace(plate.index, plate=replace(plate.index.plate, channels=channels))
    corrected = replace(plate, index=about)
    assert corrected.illumination.corrected_before == ["DAPI"]
    assert corrected.illumination.profile("DAPI", tmp_path) is None
    assert list(check_illumination([corrected])) == [
        f"{plate.name}: the instrument has corrected 'DAPI': no dark or flat field is used there"
    ]
    raw = plate_from(plate_facts(plate.index.plate), ())
    stored = plate_facts(about.plate)
    assert "corrected" not in plate_facts(raw)["channels"][1]  # as earlier versions wrote it
    assert plate_from(stored, ()).channels == channels


def test_a_run_under_one_correction_has_other_fingerprints_than_under_another(folder: Path) -> None:
    prints = []
    for keys in ([], ["measure.dark=100"], ["measure.flat_field=vendor", "measure.dark=100"],
                 ["measure.flat_field=estimated", "measure.dark=100"]):  # fmt: skip
        [plate] = inputs_of(folder, *keys).plates
        of_labels = plate.labels_fingerprint(plate.keys[0])
        prints.append((plate.fingerprint(plate.keys[0], of_labels), of_labels))
    assert len({whole for whole, _ in prints}) == 4
    assert len({labels for _, labels in prints}) == 1


def test_a_whole_run_has_the_columns_of_its_correction(folder: Path, tmp_path: Path) -> None:
    words = [f"model={folder}/runs/finetune/cells", f"plates=[{folder}/P1.zarr]", "labels=found"]
    keys = ["outputs=[mask]", "fields=[B02, C05]", "measure.flat_field=estimated", "measure.dark=100"]
    run = computed(stage, tmp_path, "even", *words, *keys, pools=Here())
    objects, wells = pd.read_parquet(run.folder / "tables"), pd.read_csv(run.folder / "wells.csv")
    assert set(objects[CORRECTION]) == set(wells[CORRECTION]) == {"estimated flat field, dark 100"}
    assert objects.DAPI_saturated.between(0, 1).all()
    assert (run.pictures / "flat_field-P1.png").exists()
