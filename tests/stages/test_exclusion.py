"""Fields left out of a table by a list: what is left is as if they had not been imaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_segmentation import MadeUp, made_up_segmentation

from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.stages.table.stage import table

CONTROL = {"B02": {"control": "negative"}, "B03": {"control": "negative"}}
PLATE = MadeUp("P01", fields=("1", "2", "3", "4"), plate_map=CONTROL, truth=("B02", "C02"))
OUT = "well;field;reason\nC02;3;out of focus\nC03;1;a hair\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_up_segmentation(tmp_path, [PLATE])


def rows(run: Run, tmp_path: Path, per: str = "well", listed: str | None = None) -> pd.DataFrame:
    (tmp_path / "out.csv").write_text(listed or OUT)
    exclude = tmp_path / "out.csv" if listed != "" else None
    table(run, tmp_path / "t.parquet", per, [], exclude=exclude)
    return pd.read_parquet(tmp_path / "t.parquet")


def test_readouts_are_those_of_the_fields_that_stay(run: Run, tmp_path: Path) -> None:
    kept = rows(run, tmp_path).set_index("well")
    fields = rows(run, tmp_path, "field", "").set_index(["well", "field"])
    objects = rows(run, tmp_path, "object", "")
    for well, out in (("C02", ["3"]), ("C03", ["1"]), ("B02", [])):
        own = fields.loc[well].drop(index=out)
        assert kept.objects[well] == own.objects.sum()
        assert kept.objects_per_field[well] == own.objects.mean()
        assert kept.confluence[well] == pytest.approx(own.confluence.mean())
        assert kept.objects_per_mm2[well] == pytest.approx(own.objects_per_mm2.mean())
        inside = objects[(objects.well == well) & ~objects.field.isin(out)]
        assert kept.median_area_um2[well] == inside[~inside.touches_border].area_um2.median()
        assert (kept.fields[well], kept.excluded_fields[well], kept.lost_fields[well]) == (
            len(own),
            len(out),
            0,
        )
        if well != "C03":
            assert kept.truth_objects[well] == own.truth_objects.sum()


def test_objects_and_fields_say_the_same(run: Run, tmp_path: Path) -> None:
    objects = rows(run, tmp_path, "object")
    assert not ((objects.well == "C02") & (objects.field == "3")).any()
    assert len(objects) == rows(run, tmp_path).objects.sum()
    fields = rows(run, tmp_path, "field").set_index(["well", "field"])
    assert fields.problem["C02", "3"] == "left out: out of focus"
    assert pd.isna(fields.objects["C02", "3"])


def test_a_field_like_its_neighbours_changes_no_readout_per_field(tmp_path: Path) -> None:
    """Four equal fields, of which one is left out."""
    run = made_up_segmentation(tmp_path, [replace(PLATE, wells=("B02", "C02"), fields=("1",))])
    (tablefile,) = (run.folder / "tables").glob("*.parquet")
    table_of, record = pq.read_table(tablefile), (run.folder / "fields/P01/C02-1.json").read_text()
    one = table_of.to_pandas()
    copies = [one[one.well == "C02"].assign(field=name) for name in ("2", "3", "4")]
    pq.write_table(pa.Table.from_pandas(pd.concat([one, *copies]), table_of.schema), tablefile)
    for name in ("2", "3", "4"):
        copy = record.replace('"field": "1"', f'"field": "{name}"')
        (run.folder / f"fields/P01/C02-{name}.json").write_text(copy)
    whole = rows(run, tmp_path, listed="well,field\nB02,1\n").set_index("well").loc["C02"]
    less = rows(run, tmp_path, listed="well,field\nB02,1\nC02,3\n").set_index("well").loc["C02"]
    for name in ("objects_per_field", "objects_per_mm2", "confluence", "median_area_um2"):
        assert less[name] == pytest.approx(whole[name], rel=1e-12), name
    assert less.objects == whole.objects * 3 / 4


def test_an_object_that_two_fields_show_counts_where_its_field_stays(tmp_path: Path) -> None:
    """Of four fields the first shows an object that the second and third show again."""
    twice = {("B02", "2", 1): "B02/1:2", ("B02", "3", 2): "B02/1:2", ("B02", "2", 3): "B02/4:1"}
    run = made_up_segmentation(tmp_path, [replace(PLATE, twice=twice)])
    whole, less = (
        rows(run, tmp_path, listed=listed).set_index("well")
        for listed in ("well,field\nC03,1\n", "well,field\nC03,1\nB02,1\n")
    )
    fields = rows(run, tmp_path, "field", "well,field\nB02,1\n").set_index(["well", "field"]).objects["B02"]
    raw = pd.concat(pd.read_parquet(path) for path in (run.folder / "objects/P01").glob("B02-*.parquet"))
    found = raw.groupby("field").label.count()
    assert whole.objects["B02"] == found.sum() - 3
    # One of the two that showed it again counts now; what field 4 shows is still counted there.
    assert less.objects["B02"] == found[["2", "3", "4"]].sum() - 2
    assert fields[["2", "3", "4"]].to_list() == [found["2"] - 1, found["3"] - 1, found["4"]]
    objects = rows(run, tmp_path, "object", "well,field\nB02,1\n")
    assert (objects.well == "B02").sum() == less.objects["B02"]


def test_much_that_is_left_out_and_more_of_treated_wells_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text(OUT)
    made = table(run, tmp_path / "t.csv", heat_maps=[], exclude=tmp_path / "out.csv")
    assert made.headline.startswith("1 plate, 4 wells, 16 fields, 2 of them left out, ")
    assert made.notes[0] == "warning: 2 of 16 fields are left out by exclude=out.csv (12%)"
    assert made.notes[1].startswith(
        "warning: 25% of the fields of treated wells are left out by exclude=out.csv, and 0% of those"
    )


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("well,feild\nB02,1\n", "has no column 'field'; did you mean 'feild'"),
        ("well,field\nB02,1\nB02,9\n", "line 3: no field B02/9"),
        ("well,field,reason\n\nB02\n", "line 3: no field B02/;"),
        ("well\nB02\n", "has no column 'field'"),
        ("\n", "has no column 'well'"),
        ("plate,well,field\nP02,B02,1\n", "line 2: no plate 'P02' in this run; did you mean 'P01'"),
    ],
)
def test_a_list_that_fits_no_field_is_refused_with_its_line(
    run: Run, tmp_path: Path, listed: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        rows(run, tmp_path, listed=listed)
    with pytest.raises(UserError, match="there is no such file"):
        table(run, tmp_path / "t.csv", exclude=tmp_path / "none.csv")
