"""Quality control that acts, and throws no hit away: three plates of two compounds in eight doses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hpc_isl.errors import UserError
from hpc_isl.objects.features import features
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.statistics import measure, sharpness
from hpc_isl.plates.store import finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.run import Run
from hpc_isl.stages.table.quality import out_of_focus
from hpc_isl.stages.table.stage import table

PLATES, FIELDS, EDGE, PIXEL_UM = ("P1", "P2", "P3"), ("1", "2", "3", "4"), 160, 0.5
DOSES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
CLEARED, BLURRED, EMPTY = ("P1", "C09"), ("P2", "D04", "2"), ("P3", "E03", "1")
CONTROLS = {"negative": [f"E{c:02d}" for c in range(2, 7)], "positive": [f"F{c:02d}" for c in range(2, 7)]}
X = np.linspace(-1, 1, EDGE)
SHADING = 1 - 0.15 * X[None] - 0.1 * X[:, None] ** 2


def wells() -> dict[str, dict[str, str]]:
    """The plate map: compound A in row C, B in row D, each in eight doses; controls in rows E and F."""
    treated = {
        f"{row}{column:02d}": {"compound": compound, "dose": str(dose)}
        for row, compound in (("C", "A"), ("D", "B"))
        for column, dose in enumerate(DOSES, 2)
    }
    return treated | {well: {"control": kind} for kind, own in CONTROLS.items() for well in own}


def cell_count(plate: str, well: str, field: str) -> int:
    """A falls to nothing at the top dose, B to a half; positive controls are as A at 10 µM."""
    facts = wells()[well]
    if (plate, well, field) == EMPTY or (plate, well) == CLEARED:
        return 0
    rng = np.random.default_rng([*f"{plate}{well}{field}".encode()])
    usual = 36
    if facts.get("control") == "positive":
        usual = 8
    elif (dose := float(facts.get("dose", 0))) > 0:
        usual = round(usual * (1 - (1 if facts["compound"] == "A" else 0.5) * dose / (dose + 3)))
    return int(usual + rng.integers(-2, 3))


def brightness(well: str) -> float:
    """The stain doubles over the doses of B, for medians to follow."""
    facts = wells()[well]
    return 1000 * (1 + (DOSES.index(float(facts["dose"])) / 7 if facts.get("compound") == "B" else 0))


def image_of(plate: str, well: str, field: str) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Bright-field and stain (c, y, x), and the cells in them, none touching another."""
    rng = np.random.default_rng([2, *f"{plate}{well}{field}".encode()])
    places = rng.permutation(64)[: cell_count(plate, well, field)]
    labels = np.zeros((EDGE, EDGE), np.uint32)
    rows, columns = np.mgrid[:EDGE, :EDGE]
    for number, place in enumerate(places, 1):
        y, x = divmod(int(place), 8)
        labels[(rows - 20 * y - 10) ** 2 + (columns - 20 * x - 10) ** 2 < rng.integers(5, 8) ** 2] = number
    inside = labels > 0
    light = gaussian_filter(1000 + 250.0 * inside - 200 * gaussian_filter(1.0 * inside, 2), 0.8)
    if (plate, well) == CLEARED:  # what is left of cells
        for y, x in rng.integers(10, EDGE - 10, (12, 2)):
            light[y : y + 3, x : x + 3] += 300
    if (plate, well, field) == BLURRED:
        light = gaussian_filter(light, 4)
    stain = 200 + brightness(well) * inside
    noisy = [layer * SHADING + rng.normal(0, 12, labels.shape) for layer in (light, stain)]
    return np.stack(noisy).round().astype(np.uint16), labels


def write(root: Path, name: str, run: Run) -> dict[str, object]:
    """Writes a plate, and what a run of `segment` leaves of it; returns its part of `plates.json`."""
    rows, columns = layout(set(wells()), 96)
    channels = (Channel("Brightfield", fluorescent=False), Channel("DAPI"))
    keys = [FieldKey(well, field) for well in wells() for field in FIELDS]
    fields = tuple(Field(key, (1, 2, 1, EDGE, EDGE), "uint16") for key in keys)
    plate = Plate(name, rows, columns, channels, fields, PIXEL_UM)
    tables = []
    for field in fields:
        key = field.key
        pixels, labels = image_of(name, key.well, key.name)
        statistics = measure(pixels[None, :, None])
        write_field(root / f"{name}.zarr", plate, field, pixels[None, :, None], statistics, CodecRecipe())
        own = features(labels, {"DAPI": pixels[1]}, PIXEL_UM)
        where = {"plate": name, "well": key.well, "field": key.name, "acquisition": np.int32(0),
                 "time": np.int32(0)}  # fmt: skip
        tables.append(pd.DataFrame(own).assign(**where))
        record = where | {
            "acquisition": 0,
            "shape": [EDGE, EDGE],
            "times": 1,
            "dropped": [0],
            "objects": len(own["label"]),
        }
        record |= {"focus": [{"Brightfield": sharpness(pixels[0])}], "saturated": []}
        record |= {"empty": True} if "empty:0" in statistics.flags else {}
        file = run.folder / "fields" / name / f"{key.well}-{key.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, default=int))
    whole = pa.Table.from_pandas(pd.concat(tables), preserve_index=False)
    (run.folder / "tables").mkdir(exist_ok=True)
    pq.write_table(whole.append_column("duplicate_of", pa.nulls(len(whole), pa.string())),
                   run.folder / "tables" / f"{name}.parquet")  # fmt: skip
    finalise(root / f"{name}.zarr", plate, wells())
    return {
        "plate": name, "slug": name, "path": str(root / f"{name}.zarr"), "rows": rows, "columns": columns,
        "pixel_um": PIXEL_UM, "kind": "nuclei", "plate_map": wells(),
        "incomplete": ["F02/4"] * (name == "P3"),
        "shown": "Brightfield",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("quality")
    run = Run(root / "runs" / "segment" / "nuc")
    run.folder.mkdir(parents=True)
    run.recipe.write_text("model: nuc\nplates: [P1, P2, P3]\n")
    (run.folder / "plates.json").write_text(json.dumps([write(root, name, run) for name in PLATES]))
    run.done.mkdir()
    (run.done / "segment.json").write_text("{}")
    return run


def rows(run: Run, tmp_path: Path, per: str = "well", qc: str = "", exclude: str = "") -> pd.DataFrame:
    paths = []
    for name, text in (("qc.yaml", qc), ("out.csv", exclude)):
        (tmp_path / name).write_text(text)
        paths.append((tmp_path / name if text != "none" else Path("none")) if text else None)
    table(run, tmp_path / "t.parquet", per, [], exclude=paths[1], qc=paths[0])
    return pd.read_parquet(tmp_path / "t.parquet").set_index(
        ["plate", "well", *(["field"] if per == "field" else [])]
    )


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return rows(run, tmp_path_factory.mktemp("whole"))


def test_the_blurred_field_is_left_out_and_no_other_but_the_incomplete(run: Run, whole: pd.DataFrame) -> None:
    with (run.folder / "left_out_fields.csv").open() as stream:
        left = {(line["plate"], line["well"], line["field"]): line["rule"] for line in csv.DictReader(stream)}
    assert left == {BLURRED: "out_of_focus", ("P3", "F02", "4"): "incomplete"}
    assert whole.excluded_fields.sum() == 2
    assert (whole.imaged_fields == 4).all()
    assert whole.fields[BLURRED[:2]] == 3


def test_the_cleared_well_stays_with_no_objects(whole: pd.DataFrame) -> None:
    cleared = whole.loc[CLEARED]
    assert (cleared.fields, cleared.objects, cleared.objects_per_field, cleared.objects_per_mm2) == (
        4,
        0,
        0,
        0,
    )
    assert cleared.flag_no_objects == 4


def test_the_empty_control_is_flagged_and_stays(run: Run, whole: pd.DataFrame, tmp_path: Path) -> None:
    assert whole.flag_no_objects[EMPTY[:2]] == 1
    assert whole.fields[EMPTY[:2]] == 4
    fields = rows(run, tmp_path, "field")
    assert fields.flag_no_objects[EMPTY]
    assert fields.flag_no_objects.sum() == 4 + 1
    assert fields.problem[BLURRED] == "left out: out of focus, and it shows structure"


def test_well_medians_follow_the_truth(whole: pd.DataFrame) -> None:
    for (plate, well), row in whole.iterrows():
        kept = [f for f in FIELDS if (plate, well, f) not in (BLURRED, ("P3", "F02", "4"))]
        assert row.objects == sum(cell_count(plate, well, field) for field in kept)
        assert row.objects_per_field == row.objects / len(kept)
        if row.objects >= 40:
            # A cell has its share of the shading: the median of many is that of the middle.
            expected = (200 + brightness(well)) * np.median(SHADING)
            assert row.median_DAPI_mean == pytest.approx(expected, rel=0.05)


def test_z_prime_is_that_of_readouts_per_field(run: Run, whole: pd.DataFrame) -> None:
    quality = pd.read_csv(run.folder / "assay_quality.csv").set_index(["plate", "readout"])
    for plate in PLATES:
        low, high = (whole.objects_per_field[plate][CONTROLS[kind]] for kind in ("negative", "positive"))
        by_hand = 1 - 3 * (low.std() + high.std()) / abs(low.mean() - high.mean())
        assert quality.z_prime[plate, "objects_per_field"] == pytest.approx(by_hand, rel=1e-4)


def test_a_persons_rule_leaves_flagged_fields_out_and_is_named_at_the_top(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qc.yaml").write_text("leave_out: [no_objects]\nmin_fields: 4\n")
    made = table(run, tmp_path / "t.csv", qc=tmp_path / "qc.yaml")
    assert any("by no_objects" in note and "treated" in note for note in made.notes), made.notes
    wells = pd.read_csv(tmp_path / "t.csv").set_index(["plate", "well"])
    assert np.isnan(wells.objects_per_mm2[CLEARED])
    assert np.isnan(wells.objects[EMPTY[:2]])  # three fields are fewer than four: not measured
    assert wells.fields[BLURRED[:2]] == 4
    page = (run.pictures / "plates.html").read_text()
    head = page[: page.index("<h2>")]
    assert "by no_objects" in head
    assert "plates-objects_per_field.png" in {path.name for path in run.pictures.glob("*.png")}


def test_without_rules_no_field_is_left_out(run: Run, tmp_path: Path) -> None:
    assert "excluded_fields" not in rows(run, tmp_path, qc="none")
    assert not (run.folder / "left_out_fields.csv").exists()


def test_leaving_out_a_field_like_its_neighbours_changes_no_readout_per_field(
    run: Run, tmp_path: Path
) -> None:
    """Well C02 of P1 with its first field four times."""
    path = run.folder / "tables" / "P1.parquet"
    before = pq.read_table(path)
    objects = before.to_pandas()
    first = objects[(objects.well == "C02") & (objects.field == "1")]
    others = objects[~((objects.well == "C02") & (objects.field != "1"))]
    copies = [first.assign(field=field) for field in FIELDS[1:]]
    try:
        pq.write_table(
            pa.Table.from_pandas(pd.concat([others, *copies]), before.schema, preserve_index=False), path
        )
        equal = rows(run, tmp_path).loc["P1", "C02"]
        less = rows(run, tmp_path, exclude="plate,well,field\nP1,C02,3\n").loc["P1", "C02"]
    finally:
        pq.write_table(before, path)
    assert (equal.fields, less.fields) == (4, 3)
    for name in ("objects_per_field", "objects_per_mm2", "median_area_um2", "median_DAPI_mean"):
        assert less[name] == pytest.approx(equal[name], rel=1e-12), name


def test_a_plate_of_mostly_cleared_wells_does_not_call_the_others_blurred() -> None:
    cells = [image_of(f"Q{number}", "C02", "1")[0][0] for number in range(12)]
    cleared = [image_of(*CLEARED, str(number))[0][0] for number in range(40)]
    images = pd.DataFrame({"focus": [{"Brightfield": sharpness(image)} for image in (*cells, *cleared)]})
    assert not out_of_focus(images).any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("leave_out: [blur]\n", "leave_out.0"),
        ("min_field: 2\n", "min_field.*min_fields"),
        ("debris: 3\n", "debris"),
    ],
)
def test_rules_that_there_are_not_are_refused(run: Run, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rows(run, tmp_path, qc=text)
    with pytest.raises(UserError, match=r"none.yaml: there is no such file"):
        table(run, tmp_path / "t.csv", qc=tmp_path / "none.yaml")
