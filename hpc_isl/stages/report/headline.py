"""The headline of a report: its figures as sentences, in which ISL's failures are as plain as its gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from hpc_isl.objects.bootstrap import Interval
from hpc_isl.stages.report.statistics import Design, Difference, Results, Saving
from hpc_isl.stages.report.sweep import Arm, Cell, N, Sweep

NAMES = {"iou": "IoU", "count_error": "count error"}
SPELLED_OUT = {"iou": "intersection over union (IoU)", "mAP": "mean average precision (mAP)"}
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


def name_of_score(score: str) -> str:
    return NAMES.get(score, score)


def spelled_out(score: str) -> str:
    """Returns the name of a score where it is read for the first time."""
    return SPELLED_OUT.get(score, name_of_score(score))


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


def headline(results: Results) -> list[str]:
    """Returns the result in a few sentences."""
    sweep, truth = results.sweep, results.truth
    design, n, lines = results.designs[truth, ""], sweep.fewest, []
    if truth.circular:
        lines.append(
            f"Circular: the labels that score, {truth.name}, were drafted from a stain, the very thing that "
            "ISL learns. Score against labels drawn by people before believing what follows."
        )
    arms = [arm for arm in sweep.arms if arm.name.endswith("+isl") and Cell(arm, n) in design.columns]
    for place, arm in enumerate(arms):
        own = [less for less in results.differences[truth, ""] if less.arm == arm]
        lines.append(_reached(sweep, design, arm, own, place == 0))
        lines += _beyond(own, n)
        savings = [saving for saving in results.savings[truth] if saving.arm == arm]
        lines += _saved([saving for saving in savings if saving.n == n])
    if not arms:
        cells = [cell for cell in design.columns if cell.n == n] or list(design.columns)
        reached = "; ".join(f"{cell.arm} {bounded(design.mean(cell))}" for cell in cells)
        lines.append(f"With {boxes(sweep, cells[0].n)}, {name_of_score(sweep.score)}: {reached}.")
        lines.append(f"No arm with ISL is done at N = {cells[0].n}: what ISL brings cannot be said.")
    return [*lines, *([ONE_DRAW] if len(sweep.replicates) == 1 and sweep.counts else [])]


def _reached(sweep: Sweep, design: Design, arm: Arm, own: Sequence[Difference], first: bool) -> str:
    n = sweep.fewest
    score = f"{name_of_score(sweep.score)} " if first else ""
    begin = f"With {boxes(sweep, n)}, " if first else ""
    parts = [f"{begin}{arm} reaches {score}{bounded(design.mean(Cell(arm, n)))}"]
    here = [less for less in own if less.n == n]
    for less in here:
        reached = bounded(design.mean(Cell(less.base, n)))
        if less.base.name == "drafted":
            parts.append(f"{less.base} reaches {reached}: {_against_drafted(less)}")
        else:
            parts.append(f"{less.base} {reached}, {_against(less)}")
    if not here:
        parts.append("no arm to compare it with is done")
    return "; ".join(parts) + "."


def _against(less: Difference) -> str:
    gain = f"gain {bounded(less.gain, percent)}" if math.isfinite(less.gain.value) else "gain not defined"
    remarks = {
        "worse": ": ISL lowers the score",
        "no difference shown": ": no benefit of ISL is shown, the interval of the difference "
        f"{bounded(less.value, signed)} includes 0",
    }
    return gain + remarks.get(less.verdict, "")


def _against_drafted(less: Difference) -> str:
    verdict = less.verdict
    if verdict == "not known":
        verdict = "better" if less.value.value > 0 else "worse"
    text = {
        "better": "ISL beats labels drafted from the stain",
        "worse": "ISL does not beat labels drafted from the stain",
        "no difference shown": "ISL is not shown to beat labels drafted from the stain",
    }[verdict]
    return f"{text} (difference {bounded(less.value, signed)})"


def _beyond(own: Sequence[Difference], n: N) -> Iterator[str]:
    """Yields the further numbers of boxes at which ISL gains nothing over the arm without, or loses."""
    for base in dict.fromkeys(less.base for less in own if less.base.name != "drafted"):
        later = [less for less in own if less.base == base and less.n not in (0, n)]
        for verdict, text in (
            ("no difference shown", "no benefit of {} over {} is shown at N = {}"),
            ("worse", "{} is worse than {} at N = {}"),
        ):
            where = ", ".join(str(less.n) for less in later if less.verdict == verdict)
            if where:
                line = text.format(own[0].arm, base, where)
                yield f"{line[0].upper()}{line[1:]}."


def _saved(here: Sequence[Saving]) -> Iterator[str]:
    for saving in here:
        if saving.base.name == "drafted":
            continue
        if saving.factor is None:
            yield f"At a score of {number(saving.score)} no annotations are saved over {saving.base}."
            continue
        likely = f" [{saving.likely}]" if saving.likely else ""
        yield f"For that score, {saving.base} needs {saving.factor} × the annotated objects{likely}."
