"""What a report says first: its figures as sentences, in which ISL's failures are as plain as its gains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hpc_isl.objects.bootstrap import Interval
from hpc_isl.stages.report.arms import Arm
from hpc_isl.stages.report.statistics import Design, Difference, Saving
from hpc_isl.stages.report.sweep_results import Cell, N, Sweep, Truth

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
"""What each score says, for readers; all lie from 0 to 1, higher is better, but for the count error."""
ONE_DRAW = (
    "One draw of boxes was made: no intervals are given, for its luck cannot be told from what the arm does."
)


def name_of_score(score: str) -> str:
    return NAMES.get(score, score)


def spelled_out(score: str) -> str:
    """The name of a score where it is read for the first time."""
    return SPELLED_OUT.get(score, name_of_score(score))


def number(value: float) -> str:
    """Two decimals, with a real minus sign; – where there is none."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:+.0f} %".replace("-", "−")


def bounded(found: Interval, write: object = number) -> str:
    """`0.61 [0.55, 0.66]`, or the value alone where there is no interval."""
    assert callable(write)
    if math.isnan(found.low):
        return str(write(found.value))
    return f"{write(found.value)} [{write(found.low)}, {write(found.high)}]"


def boxes(sweep: Sweep, n: N) -> str:
    """`1 annotated box (172 objects)`."""
    if n == 0:
        return "no annotation at all"
    objects = f"{'' if len(sweep.chances) == 1 else 'on average '}{sweep.trained(n, 'objects'):.0f} objects"
    if n == "all":
        return f"all {sweep.trained(n, 'boxes'):g} annotated boxes ({objects})"
    return f"{n} annotated box{'es' if n != 1 else ''} ({objects})"


def headline(
    sweep: Sweep, truth: Truth, found: Design, less: Sequence[Difference], saved: Sequence[Saving]
) -> list[str]:
    """The result in a few sentences."""
    n, lines = sweep.fewest, [*_warnings(truth)]
    arms = [arm for arm in sweep.arms if arm.name.endswith("+isl") and Cell(arm, n) in found.columns]
    for place, arm in enumerate(arms):
        own = [one for one in less if one.arm == arm]
        lines.append(_reached(sweep, found, arm, own, place == 0))
        lines += _beyond(own, n)
        lines += _saved([one for one in saved if one.arm == arm and one.n == n])
    if not arms:
        lines += _without_isl(sweep, found)
    return [*lines, *([ONE_DRAW] if len(sweep.chances) == 1 and sweep.counts else [])]


def _warnings(truth: Truth) -> Iterator[str]:
    if truth.circular:
        yield (
            f"Circular: the labels that score, {truth.name}, were drafted from a stain, the very thing that "
            "ISL learns. Score against labels drawn by people before believing what follows."
        )


def _reached(sweep: Sweep, found: Design, arm: Arm, own: Sequence[Difference], first: bool) -> str:
    n = sweep.fewest
    score = f"{name_of_score(sweep.score)} " if first else ""
    begin = f"With {boxes(sweep, n)}, " if first else ""
    parts = [f"{begin}{arm} reaches {score}{bounded(found.mean(Cell(arm, n)))}"]
    here = [one for one in own if one.n == n]
    for one in here:
        reached = bounded(found.mean(Cell(one.base, n)))
        if one.base.name == "drafted":
            parts.append(f"{one.base} reaches {reached}: {_against_drafted(one)}")
        else:
            parts.append(f"{one.base} {reached}, {_against(one)}")
    if not here:
        parts.append("no arm to compare it with is done")
    return "; ".join(parts) + "."


def _against(one: Difference) -> str:
    gain = f"gain {bounded(one.gain, percent)}" if math.isfinite(one.gain.value) else "gain not defined"
    return (
        gain
        + {
            "better": "",
            "worse": ": ISL lowers the score",
            "no difference shown": ": no benefit of ISL is shown, the interval of the difference "
            f"{bounded(one.value, signed)} includes 0",
            "not known": "",
        }[one.verdict]
    )


def _against_drafted(one: Difference) -> str:
    verdict = one.verdict
    if verdict == "not known":
        verdict = "better" if one.value.value > 0 else "worse"
    said = {
        "better": "ISL beats labels drafted from the stain",
        "worse": "ISL does not beat labels drafted from the stain",
        "no difference shown": "ISL is not shown to beat labels drafted from the stain",
    }[verdict]
    return f"{said} (difference {bounded(one.value, signed)})"


def _beyond(own: Sequence[Difference], n: N) -> Iterator[str]:
    """At which further numbers of boxes nothing is gained over the arm without ISL, or something lost."""
    for base in dict.fromkeys(one.base for one in own if one.base.name != "drafted"):
        later = [one for one in own if one.base == base and one.n not in (0, n)]
        for verdict, said in (
            ("no difference shown", "no benefit of {} over {} is shown at N = {}"),
            ("worse", "{} is worse than {} at N = {}"),
        ):
            where = ", ".join(str(one.n) for one in later if one.verdict == verdict)
            if where:
                text = said.format(own[0].arm, base, where)
                yield f"{text[0].upper()}{text[1:]}."


def _saved(here: Sequence[Saving]) -> Iterator[str]:
    for one in here:
        if one.base.name == "drafted":
            continue
        if one.factor is None:
            yield f"At a score of {number(one.score)} no annotations are saved over {one.base}."
            continue
        likely = f" [{one.likely}]" if one.likely else ""
        yield f"For that score, {one.base} needs {one.factor} × the annotated objects{likely}."


def _without_isl(sweep: Sweep, found: Design) -> Iterator[str]:
    cells = [cell for cell in found.columns if cell.n == sweep.fewest] or list(found.columns)
    reached = "; ".join(f"{cell.arm} {bounded(found.mean(cell))}" for cell in cells)
    yield f"With {boxes(sweep, cells[0].n)}, {name_of_score(sweep.score)}: {reached}."
    yield f"No arm with ISL is done at N = {cells[0].n}: what ISL brings cannot be said."
