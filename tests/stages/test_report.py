"""A report says what the scores say, in the open where ISL fails, on one page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import seen
from made_up_sweep import START, Shape, label_plate, made_up_sweep
from PIL import Image

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.plates.store import Index
from hpc_isl.run import Run
from hpc_isl.stages.report.example_panels import EXTRA, MATCHED, MISSED, panels
from hpc_isl.stages.report.page import LEGEND, headline
from hpc_isl.stages.report.stage import Report, mean_scores, report, tables
from hpc_isl.stages.report.statistics import Results, results
from hpc_isl.stages.report.sweep import read_sweep
from hpc_isl.stages.shared.following import SCORES

NASTY = """<i>it's a "sweep" & more"""
LOST = "arm=imagenet+isl,n=2,draw=1"
WHOLE = Shape(
    ns=(1, 2, "all"), truth=(("nuc<lei>", "human"), ("drafts", "drafted")),
    missing={LOST: 'MemoryError: <b>no</b> "room" & none', "arm=drafted,n=2,draw=0": None},
)  # fmt: skip
PAIR = Shape(arms=("random", "random+isl"), ns=(1, 4), zero=False, final=False, truth=(("nuclei", "human"),))


def having(shape: Shape, **facts: Any) -> Shape:
    return Shape(**{**vars(shape), **facts})


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory, write_stained_plate: Callable[..., Index]) -> Index:
    path = tmp_path_factory.mktemp("plates") / "P01.zarr"
    index = write_stained_plate(path, wells=("B02", "B03", "C02", "D02"))
    label_plate(index, ("nuclei", "nuc<lei>"))
    return index


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plate: Index) -> tuple[Run, Report]:
    """A sweep with nearly all there can be in it, and its report."""
    run = made_up_sweep(tmp_path_factory.mktemp("whole"), plate, WHOLE, NASTY)
    return run, report(run)


def said(run: Run) -> str:
    """The headline, without pictures and page."""
    return "\n".join(headline(results(read_sweep(run))))


def of(run: Run) -> Results:
    return results(read_sweep(run))


def scores(run: Run, arm: str, n: object, truth: str, score: str = "iou", same: str = "") -> dict[Any, float]:
    """(draw, well, box) -> score, from the elements' own tables."""
    found = {}
    for folder in (run.folder / "finetune").glob(f"arm={arm},n={n},*"):
        for row in lines(folder / "scores.csv") if (folder / "done").is_dir() else []:
            if row["truth"] == truth and same in ("", row["same"]):
                found[folder.name.split("draw=")[1], row["well"], row["box"]] = float(row[score])
    return found


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def line(path: Path, **facts: object) -> dict[str, str]:
    """The one line of a table that has these values."""
    (found,) = [row for row in lines(path) if all(row[name] == str(value) for name, value in facts.items())]
    return found


class Parsed(HTMLParser):
    """Tags in order, those left open, and the text of the page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.texts: list[str] = []
        self.feed(page.read_text())
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# ---------------------------------------------------------------- the page


def test_the_page_is_one_sound_file_that_asks_for_nothing(whole: tuple[Run, Report]) -> None:
    page = Parsed(whole[1].page)
    assert page.open == page.wrong == []
    assert {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags} == set()
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"] for attributes in page.having("a")} == {f"#{name}" for name in ids}
    assert len(ids) == 6
    assert "url(" not in whole[1].page.read_text()


def test_the_pictures_in_the_page_are_those_beside_it(whole: tuple[Run, Report]) -> None:
    folder = whole[1].page.parent
    images = Parsed(whole[1].page).having("img")
    shown = [base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) for image in images]
    beside = [path.read_bytes() for path in folder.glob("*.png")]
    assert sorted(shown) == sorted(beside)
    assert len(shown) == 6
    assert all(len(str(image["alt"])) > 30 for image in images)


def test_names_from_outside_are_shown_and_never_taken_for_markup(whole: tuple[Run, Report]) -> None:
    page = Parsed(whole[1].page)
    for text in (NASTY, "nuc<lei>", 'MemoryError: <b>no</b> "room" & none'):
        assert text in page.text
    assert page.having("i") == page.having("b") == page.having("lei") == []


def test_what_is_missing_is_named_with_its_reason(whole: tuple[Run, Report]) -> None:
    text = Parsed(whole[1].page).text
    assert f"Missing from this report, of 47 elements: {LOST}, arm=drafted,n=2,draw=0." in text
    assert re.fullmatch(
        r"4[45] of 47 elements are done, and these are in the report\.", whole[1].headline[-1]
    )
    assert f"{LOST} failed: MemoryError" in text
    assert "arm=drafted,n=2,draw=0 has not started" in text


def test_the_page_tells_split_boxes_recipes_code_and_cost(whole: tuple[Run, Report]) -> None:
    run, made = whole
    text = Parsed(made.page).text
    boxes = lines(run.folder / "finetune" / "arm=random,n=2,draw=1" / "boxes.csv")
    which = "; ".join(f"P01 {box['well']}/1 ({box['box']}): {box['objects']}" for box in boxes)
    assert which in text
    for part in (
        "P01 HeLa 2: B02, B03 0 2: B04, B05",
        "arm random, random+isl, imagenet, imagenet+isl, drafted",
        "commit c0ffee",
        "torch 2.15.0",
        "segmentation_models_pytorch 0.5.0",
        "weights abababababababab",
        "fingerprint of P01 5eed5eed5eed5eed",
        "All elements together: 45 minutes",
    ):
        assert part in text, part


def test_the_final_model_is_shown_and_no_part_of_the_curves(whole: tuple[Run, Report]) -> None:
    run, made = whole
    text = Parsed(made.page).text
    assert "The model that the sweep ends with: element final, arm random+isl, 12 boxes" in text
    assert "final" not in {row["element"] for row in lines(made.page.parent / "scores_all.csv")}
    sweep = read_sweep(run)
    assert {cell.arm.name for cell in sweep.cells} == {
        "random",
        "random+isl",
        "imagenet",
        "imagenet+isl",
        "drafted",
    }


# ---------------------------------------------------------------- numbers against an oracle


def test_the_headline_and_tables_hold_the_mean_of_the_elements_scores(whole: tuple[Run, Report]) -> None:
    run, made = whole
    for arm in START:
        mean = float(np.mean(list(scores(run, arm, 1, "nuc<lei>").values())))
        assert re.search(
            rf"(^|[ ;]){re.escape(arm)}( reaches)?( IoU)? {mean:.2f} \[", " ".join(made.headline)
        ), arm
        row = line(made.page.parent / "summary.csv", arm=arm, n=1, truth="nuc<lei>", score="iou", same="")
        assert float(row["mean"]) == pytest.approx(mean, abs=1e-5)
        assert float(row["low"]) < mean < float(row["high"])


def test_all_scores_come_with_their_spread_and_sq_leaves_out_what_is_no_number(
    whole: tuple[Run, Report],
) -> None:
    run, made = whole
    rows = [row for draw in range(3)
            for row in lines(run.folder / "finetune" / f"arm=random,n=1,draw={draw}" / "scores.csv")
            if row["truth"] == "nuc<lei>"]  # fmt: skip
    known = [float(row["SQ"]) for row in rows if row["SQ"]]
    found = line(made.page.parent / "summary.csv", arm="random", n=1, truth="nuc<lei>", score="SQ", same="")
    assert int(found["undefined"]) == len(rows) - len(known) > 0
    assert float(found["mean"]) == pytest.approx(np.mean(known), rel=1e-5)
    assert float(found["sd"]) == pytest.approx(np.std(known, ddof=1), rel=1e-4)
    assert f"{np.mean(known):.2f} ± {np.std(known, ddof=1):.2f}" in Parsed(made.page).text


def test_differences_and_gains_are_those_of_pairs(whole: tuple[Run, Report]) -> None:
    run, made = whole
    ours, theirs = (scores(run, arm, 1, "nuc<lei>") for arm in ("random+isl", "random"))
    less = float(np.mean([ours[key] - theirs[key] for key in theirs]))
    gain = less / float(np.mean(list(theirs.values())))
    row = line(
        made.page.parent / "differences.csv",
        arm="random+isl",
        against="random",
        n=1,
        truth="nuc<lei>",
        same="",
    )
    assert float(row["difference"]) == pytest.approx(less, rel=1e-4)
    assert float(row["gain"]) == pytest.approx(gain, rel=1e-4)
    assert f"random+isl random {less:+.2f} [" in Parsed(made.page).text
    assert f"gain {100 * gain:+.0f} % [" in made.headline[0]


def test_arms_are_compared_on_the_draws_that_both_have(whole: tuple[Run, Report]) -> None:
    run, made = whole
    ours, theirs = (scores(run, arm, 2, "nuc<lei>") for arm in ("imagenet+isl", "imagenet"))
    assert {draw for draw, *_ in ours} == {"0", "2"}
    row = line(
        made.page.parent / "differences.csv",
        arm="imagenet+isl",
        against="imagenet",
        n=2,
        truth="nuc<lei>",
        same="",
    )
    assert int(row["pairs"]) == len(ours) == 24
    less = np.mean([ours[key] - theirs[key] for key in ours])
    assert float(row["difference"]) == pytest.approx(float(less), rel=1e-4)


def test_intervals_agree_with_resampling_by_hand(whole: tuple[Run, Report]) -> None:
    """Lines, wells in them, boxes in these, and draws crossed with all, one resample after the other."""
    run, made = whole
    ours, theirs = (scores(run, arm, 1, "nuc<lei>") for arm in ("random+isl", "random"))
    less = {key: ours[key] - theirs[key] for key in theirs}
    rng, found = np.random.default_rng(5), []
    for _ in range(2000):
        draws = rng.choice(["0", "1", "2"], 3)
        boxes = [
            (f"{row}{column}", box)
            for row in rng.choice(["B", "C", "D"], 3)
            for column in rng.choice(["04", "05"], 2)
            for box in rng.choice(["0 0 96 48", "0 48 96 96"], 2)
        ]
        found.append(np.mean([less[draw, *box] for draw in draws for box in boxes]))
    row = line(
        made.page.parent / "differences.csv",
        arm="random+isl",
        against="random",
        n=1,
        truth="nuc<lei>",
        same="",
    )
    low, high = np.percentile(found, [2.5, 97.5])
    assert float(row["difference_low"]) == pytest.approx(low, abs=0.002)
    assert float(row["difference_high"]) == pytest.approx(high, abs=0.002)


def test_annotations_saved_are_read_off_the_other_arms_curve(whole: tuple[Run, Report]) -> None:
    run, made = whole
    objects = [np.mean([sum(float(box["objects"]) for box in lines(folder / "boxes.csv"))
                        for folder in (run.folder / "finetune").glob(f"arm=random,n={n},*")])
               for n in (1, 2, "all")]  # fmt: skip
    curve = [np.mean(list(scores(run, "random", n, "nuc<lei>").values())) for n in (1, 2, "all")]
    reached = np.mean(list(scores(run, "random+isl", 1, "nuc<lei>").values()))
    assert curve[0] < reached < curve[-1]
    needed = np.exp(np.interp(reached, curve, np.log(objects)))
    row = line(made.page.parent / "savings.csv", arm="random+isl", against="random", n=1, truth="nuc<lei>")
    assert float(row["least"]) == float(row["most"]) == pytest.approx(needed / objects[0], rel=1e-4)
    assert float(row["low"]) < needed / objects[0] < float(row["high"])
    assert f"random needs {needed / objects[0]:.3g} × the annotated objects" in " ".join(made.headline)


# ---------------------------------------------------------------- what is said in the open


def test_where_isl_does_not_beat_drafted_labels_the_headline_says_so(whole: tuple[Run, Report]) -> None:
    assert "ISL is not shown to beat labels drafted from the stain (difference " in whole[1].headline[0]


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.0, "no benefit of ISL is shown, the interval of the difference"), (-0.2, ": ISL lowers the score")],
)
def test_where_isl_does_not_help_the_headline_says_so(
    tmp_path: Path, plate: Index, gain: float, words: str
) -> None:
    text = said(made_up_sweep(tmp_path, plate, having(PAIR, gain=gain)))
    assert words in text
    where = (
        "No benefit of random+isl over random is shown at N = 4" if gain == 0 else "Random+isl is worse than"
    )
    assert where in text


def test_one_draw_of_two_arms_gives_no_interval_and_says_why(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, draws=(0,)))
    made = report(run)
    assert "One draw of boxes was made: no intervals" in made.headline[-1]
    assert "One draw of boxes was made: no intervals" in Parsed(made.page).text
    assert "[" not in " ".join(made.headline)
    assert {row["verdict"] for row in lines(made.page.parent / "differences.csv")} == {"not known"}
    for name in ("differences.csv", "savings.csv", "summary.csv"):
        assert {value for row in lines(made.page.parent / name) for key, value in row.items()
                if key.endswith(("low", "high"))} == {""}  # fmt: skip


def test_one_test_box_gives_no_interval_and_says_why(tmp_path: Path, plate: Index) -> None:
    """Resampled draws would show how steady the score of that box is, and not what holds for others."""
    run = made_up_sweep(tmp_path, plate, PAIR)
    for path in run.folder.glob("finetune/*/scores.csv"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    made = report(run)
    assert "All scores are of one test box: no intervals" in made.headline[-1]
    assert "All scores are of one test box: no intervals" in Parsed(made.page).text
    assert "[" not in " ".join(made.headline)
    assert {row["verdict"] for row in lines(made.page.parent / "differences.csv")} == {"not known"}


def test_without_annotation_the_interval_needs_no_draws(tmp_path: Path, plate: Index) -> None:
    found = of(made_up_sweep(tmp_path, plate, having(PAIR, draws=(0,), zero=True)))
    (zero,) = [cell for cell in found.sweep.cells if cell.n == 0]
    mean = found.designs[found.truth, ""].mean(zero)
    assert mean.low < mean.value < mean.high


def test_without_an_arm_of_isl_nothing_is_claimed_for_it(tmp_path: Path, plate: Index) -> None:
    text = said(made_up_sweep(tmp_path, plate, having(PAIR, arms=("random", "imagenet"))))
    assert "No arm with ISL is done" in text
    assert "imagenet 0.5" in text


def test_truth_drafted_from_the_stain_is_called_circular(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, truth=(("drafts", "drafted"), ("nuclei", "human"))))
    assert said(run).startswith("Circular: the labels that score, drafts,")


def test_an_arm_without_a_test_box_of_the_main_labels_has_no_mean(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, truth=Shape().truth))
    for path in run.folder.glob("finetune/arm=random,*/scores.csv"):
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if ",human," not in row))
    assert {*mean_scores(run).curves} == {"random+isl"}


def test_of_one_truth_what_people_drew_comes_first(tmp_path: Path, plate: Index) -> None:
    shape = having(PAIR, truth=(("nuclei", "drafted"), ("nuclei", "human")))
    assert [truth.origin for truth in of(made_up_sweep(tmp_path, plate, shape)).sweep.truths] == [
        "human",
        "drafted",
    ]


def test_cells_are_judged_by_map(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, kind="cells"))
    mean = np.mean(list(scores(run, "random+isl", 1, "nuclei", "mAP").values()))
    assert f"random+isl reaches mAP {mean:.2f} [" in said(run)


def test_scores_of_next_to_nothing_save_nothing_and_are_no_base_of_a_gain(
    tmp_path: Path, plate: Index
) -> None:
    """A user whose arms all fail at N = 1 reads that no annotations are saved there and that a gain is not
    defined, not how many times the annotations of the other arm a score of 0.00 is worth."""
    run = made_up_sweep(tmp_path, plate, having(PAIR, kind="cells"))
    for folder in (run.folder / "finetune").glob("arm=*,n=1,*"):
        text = lines(folder / "scores.csv")
        for row in text:
            row["mAP"] = "0.004" if "isl" in folder.name else "0.001"
        with (folder / "scores.csv").open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(text[0]))
            table.writeheader()
            table.writerows(text)
    first = said(run)
    assert "random+isl reaches mAP 0.00 [0.00, 0.00]; random 0.00 [0.00, 0.00], gain not defined" in first
    assert "At a score of 0.00 no annotations are saved over random." in first
    assert "needs >" not in first
    made = report(run)
    row = line(made.page.parent / "savings.csv", arm="random+isl", n=1)
    assert (row["least"], row["most"], row["low"], row["high"]) == ("", "", "", "")
    later = line(made.page.parent / "savings.csv", arm="random+isl", n=4)
    assert float(later["least"]) > 0


def test_the_page_says_what_its_scores_mean(whole: tuple[Run, Report]) -> None:
    """A biologist reads what mAP, AP50, PQ, SQ and RQ are on the page, and the main score in full."""
    text = Parsed(whole[1].page).text
    assert "Main score: intersection over union (IoU) against" in text
    for name in ("mAP", "AP50, AP75", "F1", "PQ", "SQ", "RQ", "IoU", "N", "count error"):
        assert f"{name} {LEGEND[name]}" in text
    assert set(SCORES) - {"iou", "count_error"} <= set(" ".join(LEGEND).replace(",", "").split())


def test_boxes_of_the_training_line_and_of_others_are_told_apart(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, within="cell_line"))
    found = of(run)
    assert found.sweep.facets == ("", "within", "across")
    table = tmp_path / "differences.csv"
    table.write_text(tables(found)["differences.csv"])
    for same, pairs in (("within", 12), ("across", 24)):
        ours, theirs = (scores(run, arm, 1, "nuclei", same=same) for arm in ("random+isl", "random"))
        row = line(table, n=1, same=same)
        assert int(row["pairs"]) == len(ours) == pairs
        less = np.mean([ours[key] - theirs[key] for key in ours])
        assert float(row["difference"]) == pytest.approx(float(less), rel=1e-4)
        assert float(row["difference_low"]) < less < float(row["difference_high"])


def test_test_boxes_are_grouped_by_a_column_of_the_plate_map_that_is_called_as_ours(
    tmp_path: Path, plate: Index
) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, within="origin"))
    for path in (tmp_path / "runs").rglob("scores.csv"):
        path.write_text(path.read_text().replace("cell_line", "origin (plate map)", 1))
    found = of(run)
    assert found.sweep.group == "origin (plate map)"
    groups = {path[0] for path, _ in next(iter(found.designs[found.truth, ""].columns.values()))}
    assert groups == {"HeLa", "3T3", "MCF10A"}


def test_whatever_else_is_swept_makes_another_arm(tmp_path: Path, plate: Index) -> None:
    shape = having(PAIR, over={"train.steps": (400, 1600)})
    found = of(made_up_sweep(tmp_path, plate, shape))
    assert [str(arm) for arm in found.sweep.arms] == [
        "random, train.steps=400", "random, train.steps=1600",
        "random+isl, train.steps=400", "random+isl, train.steps=1600",
    ]  # fmt: skip
    pairs = {(str(one.arm), str(one.base)) for one in found.differences[found.truth, ""]}
    assert pairs == {
        ("random+isl, train.steps=400", "random, train.steps=400"),
        ("random+isl, train.steps=1600", "random, train.steps=1600"),
    }


def test_objects_are_those_of_an_arms_own_boxes(tmp_path: Path, plate: Index) -> None:
    """What else is swept, as `train_where` or `labels`, may decide what there is to learn from."""
    run = made_up_sweep(tmp_path, plate, having(PAIR, over={"train.steps": (400, 1600)}))
    for path in run.folder.glob("finetune/*steps=1600*/done/finetune.json"):
        summary = json.loads(path.read_text())
        summary["figures"]["objects"] *= 10
        path.write_text(json.dumps(summary))
    found, table = of(run), tmp_path / "summary.csv"
    table.write_text(tables(found)["summary.csv"])
    arms = [f"random+isl, train.steps={steps}" for steps in (400, 1600)]
    kinds = {"score": "iou", "truth": "nuclei", "same": "", "n": 1}
    few, many = (float(line(table, arm=arm, **kinds)["objects"]) for arm in arms)
    assert many == pytest.approx(10 * few)
    objects = {str(one.arm): one.objects for one in found.savings[found.truth] if one.n == 1}
    assert objects == dict(zip(arms, (pytest.approx(few), pytest.approx(many)), strict=True))


def test_seeds_are_chance_and_no_arms(tmp_path: Path, plate: Index) -> None:
    found = of(made_up_sweep(tmp_path, plate, having(PAIR, draws=(0,), over={"train.seed": (0, 1)})))
    assert [str(arm) for arm in found.sweep.arms] == ["random", "random+isl"]
    assert found.sweep.replicates == ((0, 0), (0, 1))


def test_fields_that_were_left_out_in_turn_are_scored_together(tmp_path: Path, plate: Index) -> None:
    """Each of four fields tests once in each draw: its fold's element alone has scored it."""
    run = made_up_sweep(tmp_path, plate, having(PAIR, over={"fold": (0, 1, 2)}, ns=(1,)))
    for folder in (run.folder / "finetune").glob("*,fold=*"):
        row = "BCD"[int(folder.name[-1])]
        header, *rest = (folder / "scores.csv").read_text().splitlines(keepends=True)
        (folder / "scores.csv").write_text("".join([header, *(one for one in rest if f",{row}0" in one)]))
    found = of(run)
    (one,) = found.differences[found.truth, ""]
    assert (str(one.arm), str(one.base), one.pairs) == ("random+isl", "random", 36)
    assert one.value.low < one.value.value < one.value.high


def test_a_sweep_without_any_annotation_is_reported_too(tmp_path: Path, plate: Index) -> None:
    made = report(made_up_sweep(tmp_path, plate, having(PAIR, arms=("random+isl",), ns=(0,), draws=(0,))))
    assert made.headline[0].startswith("With no annotation at all, random+isl reaches IoU 0.3")


def test_arms_that_learnt_from_different_boxes_are_found_out(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, PAIR)
    path = run.folder / "finetune" / "arm=random+isl,n=1,draw=0" / "boxes.csv"
    path.write_text(path.read_text().replace("B02", "B03"))
    assert "arm=random,n=1,draw=0 learnt from different boxes" in Parsed(report(run).page).text


# ---------------------------------------------------------------- pictures of test boxes


def test_a_box_is_shown_with_what_was_met_missed_and_made_up(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, ns=(1,)))
    drawn, problems = panels(read_sweep(run))
    assert problems == []
    counts = re.findall(r"(\S+) at N = 1: TP (\d+), FP (\d+), FN (\d+)", drawn[0].alt)
    assert [arm for arm, *_ in counts] == ["random", "random+isl"]
    assert len({int(hit) + int(missed) for _, hit, _, missed in counts}) == 1
    pixels = {tuple(pixel) for pixel in _rgb(drawn[0].png).reshape(-1, 3)}
    for shade in (MATCHED, EXTRA, MISSED):
        assert tuple(bytes.fromhex(shade[1:])) in pixels


def _rgb(png: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_plate_that_has_gone_costs_the_pictures_and_no_more(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, ns=(1,)))
    for path in run.folder.rglob("panels.json"):
        path.write_text(path.read_text().replace(str(plate.path), "/gone/P01.zarr"))
    text = Parsed(report(run).page).text
    assert (
        "P01 B02/1, rows 8 to 88, columns 0 to 96: not drawn. /gone/P01.zarr: there is no such plate" in text
    )


def test_an_element_without_kept_boxes_is_left_out_of_the_pictures(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, ns=(1,), draws=(0,)))
    element = run.folder / "finetune" / "arm=random,n=1,draw=0"
    (element / "panels.npz").write_bytes((element / "panels.npz").read_bytes()[:100])
    (first, *_), problems = panels(read_sweep(run))
    assert problems == []
    assert "random+isl at N = 1" in first.alt
    assert "random at N = 1" not in first.alt


# ---------------------------------------------------------------- the verb


def test_the_verb_prints_the_headline_and_where_the_page_lies(
    tmp_path: Path, plate: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_up_sweep(tmp_path, plate, having(PAIR, draws=(0,)))
    (run.folder / "site.yaml").write_text("tracking: none\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPC_ISL_RUNS", raising=False)
    assert run_command(["report", "nuc"]) == 0
    said = capsys.readouterr().out
    assert "random+isl reaches IoU 0.6" in said
    assert said.rstrip().endswith("runs/sweep/nuc/report/report.html")


def forwarded_sweep(root: Path, plate: Index, shape: Shape) -> Run:
    """A sweep that can be forwarded, but for its elements, which are not looked at here."""
    run = made_up_sweep(root, plate, shape)
    (run.folder / "site.yaml").write_text("executor: local\n")
    (run.folder / "record.json").write_text(json.dumps({"key": "of this sweep", "digest": "0"}))
    return run


def in_mlflow(root: Path) -> tuple[Any, Any]:
    """MLflow's client, and the one run of the experiment `finetune`."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/runs/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("finetune").experiment_id])
    return client, found


@pytest.mark.filterwarnings("ignore")  # of MLflow, about its own libraries
def test_the_page_reaches_mlflow(
    tmp_path: Path, plate: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarded_sweep(tmp_path, plate, having(PAIR, draws=(0,)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPC_ISL_RUNS", raising=False)
    assert run_command(["report", "nuc"]) == 0
    client, found = in_mlflow(tmp_path)
    kept = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "report")}
    assert {"report/report.html", "report/summary.csv"} <= kept, capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # of MLflow, about its own libraries
def test_a_sweeps_own_run_in_mlflow_has_its_scores_by_arm_and_n_and_its_report(
    tmp_path: Path, plate: Index
) -> None:
    """A user who opens a sweep's run sees a chart for each arm, mean score over N, a table of them and the
    report, without opening its elements or typing `report`; a widened sweep has its scores beside those."""
    from hpc_isl.cluster.tracking.mlflow_run import sync

    run = forwarded_sweep(tmp_path, plate, having(PAIR, draws=(0, 1)))
    assert "nothing new" not in sync(run)
    client, found = in_mlflow(tmp_path)
    for arm in ("random", "random+isl"):
        points = client.get_metric_history(found.info.run_id, f"iou/{arm.replace('+', '_')}")
        assert [point.step for point in points] == [1, 4]
        means = [np.mean(list(scores(run, arm, n, "nuclei").values())) for n in (1, 4)]
        assert [point.value for point in points] == pytest.approx(means)
        shown = f"| {arm} | {means[0]:.3f} | {means[1]:.3f} |"
        assert shown in found.data.tags["mlflow.note.content"]
    kept = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "report")}
    assert {"report/report.html", "report/curves-0.png"} <= kept
    assert "nothing new" in sync(run)

    forwarded_sweep(tmp_path, plate, having(PAIR, draws=(0, 1, 2), ns=(1, 4, 8)))
    sync(run)
    client, found = in_mlflow(tmp_path)
    points = client.get_metric_history(found.info.run_id, "iou of 18 elements/random")
    assert [point.step for point in points] == [1, 4, 8]
    before = client.get_metric_history(found.info.run_id, "iou/random")
    assert [point.step for point in before] == [1, 4], "no line runs through old and new scores"


def test_a_second_report_takes_the_place_of_the_first(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(
        tmp_path, plate, having(PAIR, draws=(0,), missing={"arm=random+isl,n=4,draw=0": None})
    )
    first = report(run)
    (first.page.parent / "panel-7.png").write_bytes(b"of an earlier report")
    before = set(first.page.parent.iterdir())
    run = made_up_sweep(tmp_path, plate, having(PAIR, draws=(0,)))
    second = report(run)
    assert second.headline != first.headline or "arm=random+isl,n=4" not in Parsed(second.page).text
    assert {path.name for path in second.page.parent.iterdir()} == {path.name for path in before} - {
        "panel-7.png"
    }


def test_only_a_sweep_of_finetune_has_a_report(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, PAIR)
    with pytest.raises(UserError, match=r"^report: 'S12' is a pretrain run; name a sweep of finetune$"):
        report(Run(tmp_path / "runs" / "pretrain" / "S12"))
    with pytest.raises(UserError, match="'nuc/arm=random,n=1,draw=0' is a finetune run; name a sweep"):
        report(run.elements()[0])
    run.recipe.write_text("stage: pretrain\nover: {seed: [0, 1]}\n")
    with pytest.raises(UserError, match=r"^report: 'nuc' is a sweep of pretrain; name a sweep of finetune$"):
        report(run)


def test_a_sweep_of_which_nothing_is_done_has_no_report_yet(tmp_path: Path, plate: Index) -> None:
    names = ("arm=random,n=1,draw=0", "arm=random+isl,n=1,draw=0")
    run = made_up_sweep(tmp_path, plate, having(PAIR, ns=(1,), draws=(0,), missing=dict.fromkeys(names)))
    with pytest.raises(UserError, match="no element of 'nuc' is done yet"):
        report(run)
    assert not (run.folder / "report").exists()


def test_an_element_whose_table_is_torn_is_missing_and_not_the_end(tmp_path: Path, plate: Index) -> None:
    run = made_up_sweep(tmp_path, plate, PAIR)
    path = run.folder / "finetune" / "arm=random,n=1,draw=0" / "scores.csv"
    path.write_text(path.read_text().replace("iou", "eye", 1))
    (name, why), *_ = read_sweep(run).missing.items()
    assert name == "arm=random,n=1,draw=0"
    assert "tables cannot be read" in why


# ---------------------------------------------------------------- in a browser

PROBE = """(() => {
const all = [...document.querySelectorAll("body > *, section > *")];
const blocks = all.filter(e => !["SECTION", "SCRIPT"].includes(e.tagName));
const boxes = blocks.map(e => e.getBoundingClientRect());
return {
  images: document.images.length,
  decoded: [...document.images].filter(i => i.complete && i.naturalWidth > 100).length,
  asked: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
  wide: document.documentElement.scrollWidth - window.innerWidth,
  overlaps: boxes.filter((b, i) => i && b.top < boxes[i - 1].bottom - 1).length,
  blocks: blocks.length,
}})()"""


@pytest.mark.parametrize("width", [1000, 1600])
def test_a_browser_without_network_shows_every_picture_and_nothing_overlaps(
    whole: tuple[Run, Report], tmp_path: Path, width: int
) -> None:
    found = seen(whole[1].page, PROBE, tmp_path, width)
    assert found["images"] == found["decoded"] == 6
    assert found["blocks"] > 20
    assert (found["asked"], found["overlaps"]) == (0, 0)
    assert found["wide"] <= 0


def test_heights_and_starts_of_boxes_left_out_have_a_section(tmp_path: Path, plate: Index) -> None:
    """A user sees which h parts the cells best, and how often training was no better than its start."""
    run = made_up_sweep(tmp_path, plate, having(PAIR, kind="cells"))
    assert "Boxes left out in turn" not in Parsed(report(run).page).text
    assert not (run.folder / "report/heights.png").exists()
    for number, folder in enumerate(sorted((run.folder / "finetune").glob("arm=random+isl,*"))):
        by_height = [[10.0, 0.1], [40.0, 0.5 + 0.01 * number], [80.0, 0.4]]
        fit = {"h_maxima": 40.0, "mAP_by_h": by_height}
        trust = {
            "objects": 250,
            "found": 0.8,
            "auroc": 0.91,
            "area_auroc": 0.6,
            "brier": 0.1,
            "area_brier": 0.16,
        }
        (folder / "left_out.json").write_text(json.dumps({"fit": fit, "confidence": trust}))
        done = json.loads((folder / "done/finetune.json").read_text())
        done["figures"] |= {"start_kept": number % 2, "mAP": 0.6, "unguarded_mAP": 0.35}
        (folder / "done/finetune.json").write_text(json.dumps(done))
    page = Parsed(report(run).page)
    assert "Boxes left out in turn" in page.text
    assert "random+isl: h 40" in (run.folder / "report/report.html").read_text()
    with Image.open(run.folder / "report/heights.png") as picture:
        assert min(picture.size) > 300
    assert "random+isl 1 250 0.80 0.91 0.60 0.10 0.16" in page.text
    kept = list((run.folder / "finetune").glob("arm=random+isl,n=1,*"))
    assert f"random+isl 1 0.35 0.60 {sum(start_kept(folder) for folder in kept)} of {len(kept)}" in page.text


def start_kept(folder: Path) -> int:
    return int(json.loads((folder / "done/finetune.json").read_text())["figures"]["start_kept"])
