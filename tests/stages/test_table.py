"""The verb `table` on a made-up run of segment: rows against pandas, pictures against what they show."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_segmentation import MadeUp, labels_of, made_up_segmentation, many_wells
from PIL import Image

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.stages.shared.heat_maps import MISSING, PlateValues, draw_plates
from hpc_isl.stages.table.plate_maps import agreement, draw_agreement, unit_of
from hpc_isl.stages.table.stage import after_segmenting, table

DRUGS = {"B02": {"treatment": "DMSO", "dose": "0"}, "B03": {"treatment": "Taxol, 1 nM", "dose": "1.5"}}
FIRST = MadeUp(
    "P01", plate_map=DRUGS, truth=("B02", "B03"), empty=("C03",),
    lost={("B03", "2"): "plane 3 is truncated", ("C02", "1"): "gone", ("C02", "2"): "gone"},
    twice={("B02", "2", 1): "B02/1:3", ("B02", "2", 4): "B02/1:5"},
)  # fmt: skip
SECOND = MadeUp("P 02/b", ("A01", "H12"), ("1",), (80, 80), 0.25, channels=("DAPI", "Cy5"))


def objects_of(run: Run) -> pd.DataFrame:
    """All objects, as someone reads the folder who does not know of us."""
    frames = [pd.read_parquet(path) for path in sorted((run.folder / "tables").glob("*.parquet"))]
    return pd.concat(frames, ignore_index=True)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"dose": str, "field": str})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, pd.DataFrame]:
    """Two plates that differ in all they can; `wells.csv` by well."""
    run = made_up_segmentation(tmp_path_factory.mktemp("whole"), [FIRST, SECOND])
    made = table(run)
    assert made.headline.startswith("2 plates, 6 wells, 10 fields, 3 of them failed, ")
    shutil.copy(made.paths["plates, to look at"], run.root)  # later calls write the page anew
    return run, read(run.folder / "wells.csv").set_index(["plate", "well"])


# ---------------------------------------------------------------- wells


def test_each_well_that_was_imaged_has_a_row_in_plate_order(whole: tuple[Run, pd.DataFrame]) -> None:
    wells = [("P01", well) for well in ("B02", "B03", "C02", "C03")] + [("P 02/b", "A01"), ("P 02/b", "H12")]
    assert whole[1].index.tolist() == wells


def test_counts_and_medians_are_those_of_pandas(whole: tuple[Run, pd.DataFrame]) -> None:
    run, wells = whole
    objects = objects_of(run)
    groups = objects[objects.duplicate_of.isna()].groupby(["plate", "well"])
    assert groups.size().to_dict() == {k: int(n) for k, n in wells.objects.items() if n > 0}
    whole_objects = objects[objects.duplicate_of.isna() & ~objects.touches_border]
    groups = whole_objects.groupby(["plate", "well"])  # of those at a border a part is missing
    for name in ("area_um2", "perimeter_um", "eccentricity", "solidity", "DAPI_mean", "DAPI_sum", "Cy5_sd"):
        expected = groups[name].median().dropna().to_dict()
        assert wells[f"median_{name}"].dropna().to_dict() == pytest.approx(expected, rel=1e-5), name


def test_places_and_angles_have_no_median(whole: tuple[Run, pd.DataFrame]) -> None:
    medians = [name for name in whole[1] if name.startswith("median_")]
    assert not [name for name in medians if re.search("centroid|orientation|label|x0|touches|time", name)]


def test_an_object_that_two_fields_show_counts_once(whole: tuple[Run, pd.DataFrame]) -> None:
    run, wells = whole
    objects = objects_of(run)
    assert len(objects[(objects.plate == "P01") & (objects.well == "B02")]) == wells.objects["P01", "B02"] + 2


def test_what_was_lost_is_not_known_and_what_is_empty_is_zero(whole: tuple[Run, pd.DataFrame]) -> None:
    lost, empty = whole[1].loc[("P01", "C02")], whole[1].loc[("P01", "C03")]
    assert (lost.fields, lost.lost_fields, empty.fields, empty.lost_fields) == (0, 2, 2, 0)
    assert lost[["objects", "confluence", "objects_per_mm2"]].isna().all()
    assert (empty.objects, empty.confluence, empty.objects_per_mm2) == (0, 0, 0)
    assert math.isnan(empty.median_area_um2)
    assert whole[1].loc[("P01", "B03")][["fields", "lost_fields"]].tolist() == [1, 1]


@pytest.mark.parametrize(("well", "fields"), [("B02", ("1", "2")), ("B03", ("1",))])
def test_confluence_and_density_are_those_of_the_labels(
    whole: tuple[Run, pd.DataFrame], well: str, fields: tuple[str, ...]
) -> None:
    labels = np.stack([labels_of(FIRST, well, name) for name in fields])
    row = whole[1].loc[("P01", well)]
    assert row.confluence == pytest.approx((labels > 0).mean(), rel=1e-5)
    seen = sum(int(one.max()) for one in labels)  # those seen twice too, as their ground is
    assert row.objects_per_mm2 == pytest.approx(seen / (labels.size * 0.5**2) * 1e6, rel=1e-5)


def test_the_plate_map_joins_and_words_with_commas_stay_whole(whole: tuple[Run, pd.DataFrame]) -> None:
    wells = whole[1]
    assert wells.treatment.dropna().to_dict() == {("P01", "B02"): "DMSO", ("P01", "B03"): "Taxol, 1 nM"}
    assert wells.dose.dropna().tolist() == ["0", "1.5"]
    assert list(wells)[:3] == ["treatment", "dose", "fields"]


def test_true_counts_stand_beside_those_of_the_same_fields(whole: tuple[Run, pd.DataFrame]) -> None:
    row = whole[1].loc[("P01", "B02")]
    seen = sum(int(labels_of(FIRST, "B02", name).max()) for name in ("1", "2"))
    # The made-up truth has one object more in each field of column 02 -> (2 - 1) % 3.
    assert (row.truth_fields, row.objects_in_truth_fields, row.truth_objects) == (2, seen, seen + 2)
    assert whole[1].loc[("P 02/b", "A01")][["truth_fields", "truth_objects"]].isna().all()


def test_without_a_pixel_size_there_is_no_density_and_no_micrometre(tmp_path: Path) -> None:
    run = made_up_segmentation(tmp_path, [MadeUp(pixel_um=None)])
    table(run, heat_maps=["area_px"])
    wells = read(run.folder / "wells.csv")
    assert not [name for name in wells if re.search("_um2?$|mm2", name)]
    labels = np.stack([labels_of(MadeUp(), "B02", name) for name in ("1", "2")])
    assert wells.confluence[0] == pytest.approx((labels > 0).mean(), rel=1e-5)
    areas = []
    for image in labels:
        ends = {*image[0], *image[-1], *image[:, 0], *image[:, -1]}
        areas += [area for name, area in enumerate(np.bincount(image.ravel())) if name not in {0, *ends}]
    assert wells.median_area_px[0] == np.median(areas)


def test_times_and_acquisitions_have_rows_of_their_own(tmp_path: Path) -> None:
    run = made_up_segmentation(tmp_path, [MadeUp(wells=("B02", "B03"), times=3, acquisitions=(0, 1))])
    table(run, heat_maps=["count"])
    wells = read(run.folder / "wells.csv")
    assert len(wells) == 2 * 3 * 2
    expected = objects_of(run).groupby(["well", "acquisition", "time"]).size().to_dict()
    assert wells.set_index(["well", "acquisition", "time"]).objects.to_dict() == expected
    assert (wells.fields == 2).all()
    assert wells.confluence.max() < 1


def test_a_time_line_without_any_object_has_a_table(tmp_path: Path) -> None:
    """No object says how many times there are, and empty fields have no focus: their records do."""
    wells = ("B02", "B03")
    run = made_up_segmentation(tmp_path, [MadeUp(wells=wells, empty=wells, lost={("B03", "1"): "torn"})])
    for path in (run.folder / "fields").rglob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record if "problem" in record else record | {"times": 3, "empty": True}))
    table(run, heat_maps=[])
    rows = read(run.folder / "wells.csv")
    assert rows[["well", "time", "fields", "lost_fields", "objects"]].to_numpy().tolist() == [
        *(["B02", time, 2, 0, 0] for time in range(3)), *(["B03", time, 1, 1, 0] for time in range(3)),
    ]  # fmt: skip


def test_drift_of_an_earlier_version_flags_wells_too(tmp_path: Path) -> None:
    run = made_up_segmentation(tmp_path, [MadeUp(wells=("B02", "B03"))])
    (run.folder / "drift.csv").write_text("plate,well,fields,largest,where\nP01,B02,2,9.5,a\nP01,B03,2,1,a\n")
    table(run, heat_maps=[])
    assert read(run.folder / "wells.csv").flag_drifted.tolist() == [2, 0]


def test_a_plate_map_may_use_our_names(tmp_path: Path) -> None:
    facts = {"B02": {"objects": "tip 3", "area_um2": "x", "well": "b2", "median_age": "9",
                     "normalised_objects": "0.5", "flag_edge": "yes"}}  # fmt: skip
    controls = {well: facts.get(well, {}) | {"control": "negative"} for well in ("B02", "B03", "C02")}
    run = made_up_segmentation(tmp_path, [MadeUp(plate_map=controls)])
    table(run, heat_maps=[])
    wells = read(run.folder / "wells.csv")
    assert wells["objects (plate map)"][0] == "tip 3"
    assert wells["normalised_objects (plate map)"][0] == 0.5
    assert wells["flag_edge (plate map)"][0] == "yes"
    assert wells["median_age (plate map)"][0] == 9
    assert wells.objects.dtype.kind == "i"
    table(run, tmp_path / "objects.csv", "object", [])
    objects = read(tmp_path / "objects.csv")
    assert objects.area_um2.dtype.kind == "f"
    assert set(objects[objects.well == "B02"]["area_um2 (plate map)"]) == {"x"}


# ---------------------------------------------------------------- fields, plates, objects


def test_fields_and_plates_add_up_to_the_wells(whole: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    run, wells = whole
    for per, rows in (("field", 10), ("plate", 2)):
        table(run, tmp_path / f"{per}.csv", per, [])
        found = read(tmp_path / f"{per}.csv")
        assert len(found) == rows
        for name in ("objects", "truth_objects", "objects_in_truth_fields"):
            assert found[name].sum() == wells[name].sum()
    plates = read(tmp_path / "plate.csv").set_index("plate")
    assert plates.loc["P01", ["wells", "fields", "lost_fields"]].tolist() == [4, 5, 3]
    assert "treatment" not in plates
    fields = read(tmp_path / "field.csv").set_index(["plate", "well", "field"])
    assert fields.loc[("P01", "B03", "2"), "problem"] == "plane 3 is truncated"
    assert math.isnan(fields.loc[("P01", "B03", "2"), "objects"])
    assert fields.loc[("P01", "B03", "1"), "treatment"] == "Taxol, 1 nM"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_objects_of_all_plates_are_one_table(
    whole: tuple[Run, pd.DataFrame], tmp_path: Path, ending: str
) -> None:
    run, wells = whole
    path = tmp_path / "new folder" / f"objects.{ending}"
    made = table(run, path, "object", [])
    found = read(path) if ending == "csv" else pd.read_parquet(path)
    assert f"table of {len(found):,} objects" in made.paths
    assert len(found) == wells.objects.sum()
    assert list(found)[:5] == ["plate", "well", "treatment", "dose", "field"]
    assert "duplicate_of" not in found
    expected = objects_of(run)
    expected = expected[expected.duplicate_of.isna()]
    keys = ["plate", "well", "field", "label"]
    both = found.merge(expected, on=keys, suffixes=("", "_expected"))
    assert len(both) == len(found)
    for name in ("area_um2", "DAPI_mean", "Cy5_mean", "solidity", "x0"):
        np.testing.assert_allclose(both[name], both[f"{name}_expected"])
    assert set(found[found.well == "B03"].treatment) == {"Taxol, 1 nM"}
    assert found[found.plate == "P01"].Cy5_mean.isna().all()


def test_parquet_holds_the_figures_of_the_csv(whole: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    run, wells = whole
    table(run, tmp_path / "w.parquet", heat_maps=[])
    found = pd.read_parquet(tmp_path / "w.parquet").set_index(["plate", "well"])
    assert list(found) == list(wells)
    for name in wells.select_dtypes("number"):
        np.testing.assert_allclose(found[name].astype(float), wells[name], rtol=1e-5)


def test_a_table_that_cannot_be_completed_leaves_the_old_one(tmp_path: Path) -> None:
    run = made_up_segmentation(tmp_path, [FIRST])
    out = tmp_path / "objects.parquet"
    table(run, out, "object", [])
    before = out.read_bytes()
    path = run.folder / "tables" / "P01.parquet"
    content = bytearray(path.read_bytes())
    content[100:3000] = bytes(2900)
    path.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        table(run, out, "object", [])
    assert out.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"runs", "objects.parquet"}


# ---------------------------------------------------------------- pictures


class Page(HTMLParser):
    """Wells of each plate as squares with their hover texts, and whatever a page could fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fills: list[str] = []
        self.edged: list[str] = []
        self.titles: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given: dict[str, Any] = dict(attrs)
        self.inside = tag
        if given.get("class") == "well":
            self.fills.append(given["fill"])
            self.edged += [self.titles[-1]] if "stroke" in given else []
        if tag == "title":
            self.titles.append("")
        if tag in ("script", "link", "iframe", "object") or any(key.startswith("on") for key in given):
            self.fetched.append(tag)
        self.fetched += [v for k, v in given.items() if k in ("src", "href") and not v.startswith("data:")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside == "title":
            self.titles[-1] += data


def test_the_page_shows_every_physical_well_and_fetches_nothing(whole: tuple[Run, pd.DataFrame]) -> None:
    page = Page(whole[0].root / "plates.html")
    assert page.fetched == []
    assert len(page.fills) == len(page.titles) - 1 == 96 * 2 * 2  # two plates, count and confluence
    # Four plus two wells, of which one is lost.
    assert len(page.fills) - page.fills.count(MISSING) == 2 * (4 + 2 - 1)


def test_wells_of_which_fields_are_lost_have_a_red_edge(whole: tuple[Run, pd.DataFrame]) -> None:
    page = Page(whole[0].root / "plates.html")
    assert [title.split()[0] for title in page.edged] == ["B03", "B03"], "in the maps of count and confluence"


def test_hovering_tells_what_is_known_of_a_well(whole: tuple[Run, pd.DataFrame]) -> None:
    run, wells = whole
    titles = Page(run.root / "plates.html").titles
    told = next(title for title in titles if title.startswith("B03\ntreatment"))
    assert "treatment: Taxol, 1 nM\ndose: 1.5\nfields: 1\nlost_fields: 1" in told
    assert f"objects: {wells.objects['P01', 'B03']:.0f}" in told
    assert "A05: not imaged" in titles


def test_names_of_people_cannot_break_the_page(tmp_path: Path) -> None:
    plate = MadeUp('<img src="x">', ("B02",), ("1",), plate_map={"B02": {"a": "</title><script>1</script>"}})
    run = made_up_segmentation(tmp_path, [plate])
    table(run)
    page = Page(run.pictures / "plates.html")
    assert page.fetched == []
    assert '<img src="x">' in page.text


def pixels_of(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_a_relative_readout_has_no_unit_of_the_plain_one() -> None:
    assert unit_of("median_area_um2") == "µm²"
    assert unit_of("normalised_median_area_um2") == "robust standard deviations"


def test_colours_go_from_none_to_most(tmp_path: Path) -> None:
    values = {"A01": 0.0, "A02": 5.0, "B03": 10.0, "B01": math.nan}
    plate = PlateValues("", "AB", ("01", "02", "03"), values)
    draw_plates([plate], "Objects per well", "objects", tmp_path / "six.png")
    pixels = pixels_of(tmp_path / "six.png").reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    colors = {tuple(color): n for color, n in zip(found.tolist(), counts, strict=True)}
    square = colors[68, 1, 84]  # the dark end of viridis: A01 and a sliver of the colour bar
    assert colors[253, 231, 37] == pytest.approx(square, rel=0.1)
    assert colors[227, 227, 227] == pytest.approx(3 * square, rel=0.15)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (8, 12), (16, 24), (32, 48)])
def test_plates_of_all_formats_are_drawn(tmp_path: Path, rows: int, columns: int) -> None:
    names = [f"{'A' if row >= 26 else ''}{chr(65 + row % 26)}" for row in range(rows)]
    values = {well: float(number) for number, well in enumerate(many_wells(rows + 2, columns + 2))}
    one = PlateValues("P", names, [f"{c + 1:02d}" for c in range(columns)], values)
    draw_plates([one, one, one], "three", "counts", tmp_path / "three.png")
    height, width, _ = pixels_of(tmp_path / "three.png").shape
    assert 500 < width < 4000
    assert 300 < height < 4000


def test_plates_without_a_single_value_are_drawn_grey(tmp_path: Path) -> None:
    draw_plates([PlateValues("", "AB", ("01", "02", "03"), {})], "nothing", "", tmp_path / "none.png")
    assert pixels_of(tmp_path / "none.png").shape[1] > 500


def test_a_second_call_takes_the_place_of_the_first(tmp_path: Path) -> None:
    run = made_up_segmentation(tmp_path, [FIRST])
    table(run, heat_maps=["count", "DAPI_mean", "dose"])
    assert len(list(run.pictures.glob("plates-*.png"))) == 3
    made = after_segmenting(run)
    names = {path.name for path in run.pictures.iterdir()}
    assert names == {"plates-count.png", "plates-confluence.png", "plates.html", "counts.png"}
    assert {path.name for path in made.values()} == names | {"wells.csv"}


# ---------------------------------------------------------------- against the truth

amounts = st.integers(0, 5000).map(float)


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(amounts, amounts), min_size=3, max_size=30))
def test_agreement_is_that_of_numpy(pairs: list[tuple[float, float]]) -> None:
    found, (ours, theirs) = agreement(pairs), np.array(pairs).T
    assert found["n"] == len(pairs)
    assert found["bias"] == pytest.approx((ours - theirs).mean(), abs=1e-9)
    if np.ptp(theirs) > 0:
        assert found["slope"] == pytest.approx(np.polyfit(theirs, ours, 1)[0], rel=1e-6, abs=1e-6)
    assert math.isnan(found["slope"]) == (np.ptp(theirs) == 0)
    if np.ptp(theirs) > 0 and np.ptp(ours) > 0:
        assert found["r"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1], abs=1e-6)
    if (theirs > 0).any():
        assert found["median_ratio"] == pytest.approx(np.median(ours[theirs > 0] / theirs[theirs > 0]))


def test_counts_that_are_equal_agree_wholly(tmp_path: Path) -> None:
    found = draw_agreement([(4.0, 4.0), (90.0, 90.0), (7.0, 7.0)], tmp_path / "s.png", "P01")
    assert (found["r"], found["slope"], found["bias"], found["median_ratio"]) == pytest.approx((1, 1, 0, 1))
    assert pixels_of(tmp_path / "s.png").shape[1] > 500


def test_wells_that_the_model_was_taught_with_are_drawn_hollow_and_counted_apart(tmp_path: Path) -> None:
    pairs = [(50.0, 10.0), (4.0, 4.0), (90.0, 90.0), (7.0, 7.0)]
    found = draw_agreement(pairs, tmp_path / "s.png", "P01", [True, False, False, False])
    assert (found["r"], found["bias"], found["n"]) == pytest.approx((1, 0, 3))
    assert draw_agreement(pairs, tmp_path / "t.png", "P01", [True] * 4)["n"] == 4, "there are no others"
    plain = draw_agreement(pairs, tmp_path / "u.png", "P01")
    assert plain["n"] == 4
    shown = [pixels_of(tmp_path / f"{name}.png") for name in "stu"]
    assert len({picture.tobytes() for picture in shown}) == 3


@pytest.mark.parametrize("pairs", [[], [(3.0, 0.0)], [(0.0, 0.0), (0.0, 0.0)]])
def test_too_few_counts_have_no_correlation_and_a_picture_all_the_same(
    tmp_path: Path, pairs: list[tuple[float, float]]
) -> None:
    found = draw_agreement(pairs, tmp_path / "s.png", "P01")
    assert math.isnan(found["r"])
    assert (tmp_path / "s.png").exists()


# ---------------------------------------------------------------- mistakes, and the door


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"per": "wells"}, r"^per=wells: no such table; did you mean 'well'\?"),
        ({"out": Path("wells.xlsx")}, r"^out=wells.xlsx: no such kind of table; .*'.csv', '.parquet'"),
        ({"heat_maps": ["confluense"]}, r"^heatmap=confluense: no such column of numbers; did you"),
        ({"heat_maps": ["DAPI_maen"]}, "did you mean 'DAPI_mean'"),
        ({"heat_maps": ["treatment"]}, "heatmap=treatment: no such column of numbers"),
    ],
)  # fmt: skip
def test_mistakes_are_named_in_one_line(
    whole: tuple[Run, pd.DataFrame], given_: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        table(whole[0], **given_)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_to_write(whole: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; name a file, as in out=.*wells\.csv"):
        table(whole[0], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: "):
        table(whole[0], tmp_path / "file" / "wells.csv")
    with pytest.raises(UserError, match="cannot be written: "):
        table(whole[0], tmp_path / "file" / "objects.parquet", "object")


def test_only_a_run_of_segment_that_is_done_has_tables(tmp_path: Path) -> None:
    run = made_up_segmentation(tmp_path, [FIRST])
    with pytest.raises(UserError, match="table: 'S12' is a pretrain run; name a run of segment"):
        table(Run(tmp_path / "runs" / "pretrain" / "S12"))
    (run.done / "segment.json").unlink()
    with pytest.raises(
        UserError, match=r"'nuc-P' is not done, and its tables are not whole: .* resume nuc-P"
    ):
        table(run)


def test_a_plate_of_which_every_field_is_lost_is_told_too(tmp_path: Path) -> None:
    gone = MadeUp("P02", ("B02",), ("1",), lost={("B02", "1"): "gone"})
    run = made_up_segmentation(tmp_path, [FIRST, gone])
    made = table(run, heat_maps=["count"])
    wells = read(run.folder / "wells.csv").set_index(["plate", "well"])
    assert math.isnan(wells.objects["P02", "B02"])
    assert "4 of them failed" in made.headline
    assert table(run, tmp_path / "o.parquet", "object", []).headline == made.headline


def command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = run_command(["table", *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_command_says_what_it_made_and_what_to_type_next(
    whole: tuple[Run, pd.DataFrame], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole[0].root.parent)
    monkeypatch.delenv("HPC_ISL_RUNS", raising=False)
    code, told = command_line(["nuc-P", "heatmap=count,area_um2"], capsys)
    lines = told.splitlines()
    assert code == 0
    assert lines[0].startswith("2 plates, 6 wells, 10 fields, 3 of them failed, ")
    assert "  table of 6 wells          runs/segment/nuc-P/wells.csv" in lines
    assert any(line.endswith("pictures/plates-median_area_um2.png") for line in lines)
    assert lines[-1].startswith("next: ")
    assert lines[-1].endswith("table nuc-P per=object out=objects.parquet")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nuc-p"], "did you mean 'nuc-P'?"),
        (["nuc-P", "pre=well"], "table pre=: no such key; did you mean 'per'?"),
        (["nuc-P", "out="], "table out=: a value is missing; out is a file, .csv or .parquet"),
        ([], "table: name one run"),
    ],
)
def test_what_is_mistyped_is_named(
    whole: tuple[Run, pd.DataFrame], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, told = command_line([*words, "--root", str(whole[0].root)], capsys)
    assert code == 2
    assert said in told


def test_the_manual_tells_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = command_line(["--help"], capsys)
    assert code == 0
    for word in ("out=…", "per=…", "heatmap=…", "well | field | plate | object", "--root"):
        assert word in told


def test_a_copied_run_folder_has_the_same_table(whole: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(whole[0].folder, tmp_path / "segment" / "copy")))
    shutil.rmtree(copy.pictures)
    table(copy, tmp_path / "wells.csv", heat_maps=[])
    table(whole[0], tmp_path / "again.csv", heat_maps=[])
    assert (tmp_path / "wells.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
