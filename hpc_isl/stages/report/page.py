"""The page of a report: what a biologist reads in two minutes first, what an expert looks for below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from hpc_isl.files import now
from hpc_isl.objects.bootstrap import Interval
from hpc_isl.stages.report import left_out
from hpc_isl.stages.report.provenance import SHOWN, provenance, some, unlike_boxes
from hpc_isl.stages.report.score_figures import Picture, facet_title, name_of_score, spelled_out
from hpc_isl.stages.report.statistics import Design, Difference, Results, Saving, spreads
from hpc_isl.stages.report.sweep import Arm, Cell, N, Sweep, Truth
from hpc_isl.stages.shared.following import FINAL, SCORES
from hpc_isl.stages.shared.pictures import Html, join, page, picture, table, tag

Section = tuple[str, str, list[object]]
VERDICTS = {
    "better": "ISL scores higher", "worse": "ISL scores lower",
    "no difference shown": "no difference shown", "not known": "no interval",
}  # fmt: skip
LEGEND = {
    "N": "annotation boxes that an element learnt from.",
    "IoU": "intersection over union of all predicted and all annotated pixels; objects are not told apart.",
    "AP": "average precision at a threshold: a predicted object is right where it and one annotated object "
    "have an IoU of the threshold or more; right objects over the sum of right, wrong and missed ones.",
    "mAP": "mean of AP over the thresholds 0.50, 0.55, … 0.95.",
    "AP50, AP75": "AP at the thresholds 0.50 and 0.75.",
    "F1": "2 × right objects over predicted and annotated ones together, at the threshold 0.50.",
    "SQ": "segmentation quality: mean IoU of the right objects at 0.50; none where no object is right.",
    "RQ": "recognition quality: the same as F1.",
    "PQ": "panoptic quality: SQ × RQ.",
    "count error": "predicted less annotated objects.",
}
"""The meaning of each score; all but the count error lie from 0 to 1, and higher is better."""
ONE_DRAW = (
    "One draw of boxes was made: no intervals are given, because its luck cannot be told from what the arm "
    "does."
)
ONE_BOX = (
    "All scores are of one test box: no intervals are given, because its luck cannot be told from what the "
    "arm does."
)


def page_of(
    results: Results,
    headline: Sequence[str],
    pictures: Sequence[Picture],
    panels: Sequence[Picture],
    problems: Sequence[str],
) -> str:
    """Returns the whole page as HTML.

    Args:
        pictures: all figures but the panels.
        panels: pictures of test boxes; `problems`: why others are missing.
    """
    sweep = results.sweep
    by_name = {image.name: image for image in pictures}
    problem_list = [tag("ul", *[tag("li", line) for line in problems])] if problems else []
    evidence: list[object] = list(left_out.section(sweep, by_name.get(left_out.PICTURE)))
    sections: list[Section] = [
        ("fewest", f"At {boxes(sweep, sweep.fewest)}", list(_fewest_part(results, by_name))),
        ("curves", "Score against annotations", list(_curves(results, by_name))),
        ("savings", "Annotations saved at equal score", list(_savings(results))),
        *([("left-out", "Boxes left out in turn", evidence)] if evidence else []),
        ("panels", "Pictures", [*map(figure, panels), *problem_list]),
        ("scores", "All scores", list(_scores(results))),
        ("origin", "What this rests on", list(provenance(sweep))),
    ]
    contents = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    parts = [
        tag("h1", f"Fine-tuning sweep: {sweep.run.name}"),
        tag("p", _about(sweep), class_="about"),
        tag("div", *[tag("p", line) for line in headline], class_="headline"),
        *_warnings(sweep), *_final_part(results),
        tag("nav", tag("ol", *contents), **{"aria-label": "contents"}),
        *[tag("section", tag("h2", title), *content, id=name) for name, title, content in sections],
    ]  # fmt: skip
    return page(f"{sweep.run.name}: fine-tuning sweep", join(parts))


def figure(image: Picture) -> Html:
    return picture(image.png, image.alt, image.caption, image.width)


def _about(sweep: Sweep) -> str:
    seeds = len({seed for _, seed in sweep.replicates})
    draws = len({draw for draw, _ in sweep.replicates})
    score = f"Main score: {spelled_out(sweep.score)} against {sweep.truths[0]}."
    return (
        f"{sweep.done} of {len(sweep.names)} elements are done: "
        f"arms {len(sweep.arms)}, draws {draws}, seeds {seeds}. "
        f"{score} Square brackets hold 95 % intervals. Written {now()[:16].replace('T', ' ')} UTC by report."
    )


def _warnings(sweep: Sweep) -> Iterator[Html]:
    """Yields what a reader must know before believing a figure."""
    lines = []
    missing = [name for name in sweep.missing if name != FINAL]
    if missing:
        lines.append(
            f"Missing from this report, of {len(sweep.names)} elements: {some(missing, ', ', ' and ')}. Arms "
            "are compared only on draws that both have."
        )
    if FINAL in sweep.missing:
        lines.append(f"The final model is not done: it {sweep.missing[FINAL]}.")
    lines += unlike_boxes(sweep)[:SHOWN]
    if lines:
        yield tag("div", *[tag("p", line) for line in lines], class_="warning")


def _final_part(results: Results) -> Iterator[Html]:
    final = results.sweep.final
    if final is None:
        return
    scores = [
        f"{name_of_score(name)} {number(float(final.figures[name]))}"
        for name in ("iou", "mAP")
        if name in final.figures
    ]
    training_counts = [f"{final.trained(quantity):g} {quantity}" for quantity in ("boxes", "objects")]
    facts = ", ".join([f"element {final.run.name}", f"arm {final.arm.name}", *training_counts, *scores])
    yield tag(
        "p", tag("strong", "The model that the sweep ends with: "),
        f"{facts}. It is no part of the curves. ", tag("code", str(final.run.model)),
    )  # fmt: skip


# ---------------------------------------------------------------- sections


def _fewest_part(results: Results, by_name: Mapping[str, Picture]) -> Iterator[object]:
    sweep = results.sweep
    yield figure(by_name["scores.png"])
    for facet in sweep.facets:
        deltas = [delta for delta in results.differences[results.truth, facet] if delta.n == sweep.fewest]
        if deltas:
            yield _differences(
                deltas,
                f"N = {sweep.fewest}, {facet_title(sweep, facet)}. {_interval_note(results, facet)}",
                False,
            )
    if not results.differences[results.truth, ""]:
        yield tag(
            "p", "No two arms of this sweep are meant to be compared: none with ISL has its like without."
        )


def _interval_note(results: Results, facet: str) -> str:
    if len(results.sweep.replicates) == 1:
        return ONE_DRAW
    if results.designs[results.truth, facet].has_one_box:
        return ONE_BOX
    group = f"{results.sweep.group}, " if results.sweep.group else ""
    crossed = "draw and seed crossed with them" if not facet else "draw and seed within the first"
    return f"Intervals: paired bootstrap over {group}well and test box, {crossed}, 2000 resamples."


def _differences(differences: Sequence[Difference], caption: str, with_n: bool) -> Html:
    header = ["arm", "against", *(["N"] if with_n else []), "difference", "gain", "pairs", "in words"]
    rows = [
        [delta.arm, delta.base, *([delta.n] if with_n else []), bounded(delta.value, signed),
         bounded(delta.gain, percent), delta.pairs, VERDICTS[delta.verdict]]
        for delta in differences
    ]  # fmt: skip
    return table(header, rows, caption, range(2, len(header) - 1))


def _curves(results: Results, by_name: Mapping[str, Picture]) -> Iterator[object]:
    if not results.sweep.counts:
        yield tag("p", "No element learnt from annotations: there is no curve.")
        return
    for index, truth in enumerate(results.sweep.truths):
        if index:
            circular = ": circular, because these labels were drafted from a stain" if truth.circular else ""
            yield tag("h3", f"Against {truth}", circular)
        yield figure(by_name[f"curves-{index}.png"])
    if "differences.png" in by_name:
        yield tag("h3", "Where ISL helps, and where it does not")
        yield figure(by_name["differences.png"])
        differences = results.differences[results.truth, ""]
        yield _differences(differences, f"All numbers of boxes, all test boxes, {results.truth}.", True)


def _savings(results: Results) -> Iterator[object]:
    savings = results.savings[results.truth]
    yield tag(
        "p", "How many times the annotated objects of an arm another arm needs to reach the same score. "
        "Curves are taken as rising, linear in the logarithm of the objects. Nothing is extrapolated: > "
        "means that the score was never reached, < that it was exceeded from the start. Above 1 the arm with "
        "ISL saves annotations; – where the score is 0.00, for which none are needed.",
    )  # fmt: skip
    rows = [
        [saving.arm, saving.n, f"{saving.objects:.0f}", number(saving.score), saving.base,
         "–" if saving.factor is None else f"{saving.factor} ×",
         "–" if saving.interval is None else str(saving.interval)]
        for saving in savings
    ]  # fmt: skip
    score = name_of_score(results.sweep.score)
    header = ["arm", "N", "objects", score, "against", "factor saved", "95 % interval"]
    if rows:
        yield table(header, rows, f"Against {results.truth}.", (1, 2, 3, 5, 6))
    else:
        yield tag("p", "No arm with ISL has an arm beside it to save annotations against.")


def _scores(results: Results) -> Iterator[object]:
    sweep = results.sweep
    yield tag(
        "p", "Mean ± standard deviation over test boxes and draws. The files beside this page hold more: ",
        tag("code", "scores_all.csv"), " (each test box of each element), ", tag("code", "summary.csv"), ", ",
        tag("code", "differences.csv"), ", ", tag("code", "savings.csv"), ", ", tag("code", "boxes.csv"), ".",
    )  # fmt: skip
    yield table(["score", "meaning"], list(LEGEND.items()), "What the scores and N say.")
    for truth in sweep.truths:
        for facet in sweep.facets:
            yield _score_table(sweep, truth, facet)
    if sweep.scores[list(SCORES)].isna().any(axis=None):
        yield tag("p", "A score that is not a number (SQ where no object was matched) counts in no mean.")


def _score_table(sweep: Sweep, truth: Truth, facet: str) -> Html:
    """Returns all scores of one truth and facet: a row per arm and number of boxes."""
    rows = []
    for cell in sweep.cells:
        if spread_by_score := spreads(sweep, truth, cell, facet):
            objects = f"{sweep.trained(cell.n, 'objects', cell.arm):.0f}"
            image_count = max(spread.images for spread in spread_by_score.values())
            texts = [str(spread_by_score[score]).replace("nan", "–").replace("-", "−") for score in SCORES]
            rows.append([cell.arm, cell.n, objects, image_count, *texts])
    header = ["arm", "N", "objects", "scored", *map(name_of_score, SCORES)]
    return table(header, rows, f"Against {truth}, {facet_title(sweep, facet)}.", range(1, len(header)))


# ---------------------------------------------------------------- numbers in words


def number(value: float) -> str:
    """Returns two decimals, with a real minus sign; – where there is no number."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:+.0f} %".replace("-", "−")


def bounded(value: Interval, write: Callable[[float], str] = number) -> str:
    """Returns `0.61 [0.55, 0.66]`, or the value alone where there is no interval."""
    if math.isnan(value.low):
        return write(value.value)
    return f"{write(value.value)} [{write(value.low)}, {write(value.high)}]"


def boxes(sweep: Sweep, n: N) -> str:
    """Returns `1 annotated box (172 objects)`."""
    if n == 0:
        return "no annotation at all"
    objects = (
        f"{'' if len(sweep.replicates) == 1 else 'on average '}{sweep.trained(n, 'objects'):.0f} objects"
    )
    if n == "all":
        return f"all {sweep.trained(n, 'boxes'):g} annotated boxes ({objects})"
    return f"{n} annotated box{'es' if n != 1 else ''} ({objects})"


# ---------------------------------------------------------------- the headline


def headline(results: Results) -> list[str]:
    """Returns the result in a few sentences, in which ISL's failures are as plain as its gains."""
    sweep, truth = results.sweep, results.truth
    design, n, lines = results.designs[truth, ""], sweep.fewest, []
    if truth.circular:
        lines.append(
            f"Circular: the labels that score, {truth.name}, were drafted from a stain, the very thing that "
            "ISL learns. Score against labels drawn by people before believing what follows."
        )
    arms = [arm for arm in sweep.arms if arm.name.endswith("+isl") and Cell(arm, n) in design.columns]
    for index, arm in enumerate(arms):
        deltas = [delta for delta in results.differences[truth, ""] if delta.arm == arm]
        lines.append(_arm_sentence(sweep, design, arm, deltas, index == 0))
        lines += _later_remarks(deltas, n)
        savings = [saving for saving in results.savings[truth] if saving.arm == arm]
        lines += _savings_sentences([saving for saving in savings if saving.n == n])
    if not arms:
        cells = [cell for cell in design.columns if cell.n == n] or list(design.columns)
        scores_text = "; ".join(f"{cell.arm} {bounded(design.mean(cell))}" for cell in cells)
        lines.append(f"With {boxes(sweep, cells[0].n)}, {name_of_score(sweep.score)}: {scores_text}.")
        lines.append(f"No arm with ISL is done at N = {cells[0].n}: what ISL brings cannot be said.")
    lines += [ONE_DRAW] if len(sweep.replicates) == 1 and sweep.counts else []
    return [*lines, *([ONE_BOX] if design.has_one_box else [])]


def _arm_sentence(sweep: Sweep, design: Design, arm: Arm, deltas: Sequence[Difference], first: bool) -> str:
    n = sweep.fewest
    score = f"{name_of_score(sweep.score)} " if first else ""
    opening = f"With {boxes(sweep, n)}, " if first else ""
    parts = [f"{opening}{arm} reaches {score}{bounded(design.mean(Cell(arm, n)))}"]
    at_fewest = [delta for delta in deltas if delta.n == n]
    for delta in at_fewest:
        base_score = bounded(design.mean(Cell(delta.base, n)))
        if delta.base.name == "drafted":
            parts.append(f"{delta.base} reaches {base_score}: {_verdict_on_drafted(delta)}")
        else:
            parts.append(f"{delta.base} {base_score}, {_gain_text(delta)}")
    if not at_fewest:
        parts.append("no arm to compare it with is done")
    return "; ".join(parts) + "."


def _gain_text(delta: Difference) -> str:
    gain = f"gain {bounded(delta.gain, percent)}" if math.isfinite(delta.gain.value) else "gain not defined"
    remarks = {
        "worse": ": ISL lowers the score",
        "no difference shown": ": no benefit of ISL is shown, the interval of the difference "
        f"{bounded(delta.value, signed)} includes 0",
    }
    return gain + remarks.get(delta.verdict, "")


def _verdict_on_drafted(delta: Difference) -> str:
    verdict = delta.verdict
    # One draw has no interval: the sign decides, and a sentence says how little that means.
    if verdict == "not known":
        verdict = "better" if delta.value.value > 0 else "worse"
    text = {
        "better": "ISL beats labels drafted from the stain",
        "worse": "ISL does not beat labels drafted from the stain",
        "no difference shown": "ISL is not shown to beat labels drafted from the stain",
    }[verdict]
    return f"{text} (difference {bounded(delta.value, signed)})"


def _later_remarks(deltas: Sequence[Difference], n: N) -> Iterator[str]:
    """Yields the further numbers of boxes at which ISL gains nothing over the arm without, or loses."""
    for base in dict.fromkeys(delta.base for delta in deltas if delta.base.name != "drafted"):
        later = [delta for delta in deltas if delta.base == base and delta.n not in (0, n)]
        for verdict, template in (
            ("no difference shown", "no benefit of {} over {} is shown at N = {}"),
            ("worse", "{} is worse than {} at N = {}"),
        ):
            counts_text = ", ".join(str(delta.n) for delta in later if delta.verdict == verdict)
            if counts_text:
                line = template.format(deltas[0].arm, base, counts_text)
                yield f"{line[0].upper()}{line[1:]}."


def _savings_sentences(savings: Sequence[Saving]) -> Iterator[str]:
    for saving in savings:
        if saving.base.name == "drafted":
            continue
        if saving.factor is None:
            yield f"At a score of {number(saving.score)} no annotations are saved over {saving.base}."
            continue
        likely = f" [{saving.interval}]" if saving.interval else ""
        yield f"For that score, {saving.base} needs {saving.factor} × the annotated objects{likely}."
