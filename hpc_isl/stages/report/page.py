"""The page of a report: what a biologist reads in two minutes first, what an expert looks for below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hpc_isl.files import now
from hpc_isl.stages.report import details
from hpc_isl.stages.report.pictures import Picture, facet_title
from hpc_isl.stages.report.sentences import (
    ONE_DRAW,
    bounded,
    boxes,
    name_of_score,
    number,
    percent,
    signed,
    spelled_out,
)
from hpc_isl.stages.report.statistics import Difference
from hpc_isl.stages.report.sweep_results import Sweep, Truth
from hpc_isl.stages.report.tables import Results
from hpc_isl.stages.shared.html import Html, join, page, picture, table, tag

Section = tuple[str, str, list[object]]
VERDICTS = {
    "better": "ISL scores higher", "worse": "ISL scores lower",
    "no difference shown": "no difference shown", "not known": "no interval",
}  # fmt: skip


def written(
    found: Results,
    said: Sequence[str],
    pictures: Sequence[Picture],
    shown: tuple[Sequence[Picture], Sequence[str]],
) -> str:
    """The whole file.

    Args:
        said: the headline.
        pictures: all figures but the panels.
        shown: the panels, and why others are missing.
    """
    sweep = found.sweep
    known = {one.name: one for one in pictures}
    sections: list[Section] = [
        ("fewest", f"At {boxes(sweep, sweep.fewest)}", list(_fewest(found, known))),
        ("curves", "Score against annotations", list(_curves(found, known))),
        ("savings", "Annotations saved at equal score", list(_savings(found))),
        ("panels", "Pictures", list(_panels(*shown))),
        ("scores", "All scores", list(_scores(found))),
        ("origin", "What this rests on", list(details.origin(sweep))),
    ]
    contents = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    parts = [
        tag("h1", f"Fine-tuning sweep: {sweep.run.name}"),
        tag("p", _about(sweep), class_="about"),
        tag("div", *[tag("p", line) for line in said], class_="headline"),
        *_warnings(sweep), *_final(found),
        tag("nav", tag("ol", *contents), **{"aria-label": "contents"}),
        *[tag("section", tag("h2", title), *inside, id=name) for name, title, inside in sections],
    ]  # fmt: skip
    return page(f"{sweep.run.name}: fine-tuning sweep", join(parts))


def figure(one: Picture) -> Html:
    return picture(one.png, one.alt, one.caption, one.width)


def _about(sweep: Sweep) -> str:
    whole = len(sweep.elements) + (sweep.final is not None)
    seeds = len({seed for _, seed in sweep.chances})
    draws = len({draw for draw, _ in sweep.chances})
    score = f"Main score: {spelled_out(sweep.score)} against {sweep.truths[0]}."
    return (
        f"{whole} of {len(sweep.names)} elements are done: "
        f"arms {len(sweep.arms)}, draws {draws}, seeds {seeds}. "
        f"{score} Square brackets hold 95 % intervals. Written {now()[:16].replace('T', ' ')} UTC by report."
    )


def _warnings(sweep: Sweep) -> Iterator[Html]:
    lines = details.warnings(sweep)
    if lines:
        yield tag("div", *[tag("p", line) for line in lines], class_="warning")


def _final(found: Results) -> Iterator[Html]:
    final = found.sweep.final
    if final is None:
        return
    scores = [
        f"{name_of_score(name)} {number(float(final.figures[name]))}"
        for name in ("iou", "mAP")
        if name in final.figures
    ]
    learnt = [f"{final.trained(what):g} {what}" for what in ("boxes", "objects")]
    facts = ", ".join([f"element {final.run.name}", f"arm {final.arm.name}", *learnt, *scores])
    yield tag(
        "p", tag("strong", "The model that the sweep ends with: "),
        f"{facts}. It is no part of the curves. ", tag("code", str(final.run.model)),
    )  # fmt: skip


# ---------------------------------------------------------------- sections


def _fewest(found: Results, known: dict[str, Picture]) -> Iterator[object]:
    sweep = found.sweep
    yield figure(known["scores.png"])
    for same in sweep.facets:
        here = [one for one in found.differences[found.truth, same] if one.n == sweep.fewest]
        if here:
            yield _differences(
                here, f"N = {sweep.fewest}, {facet_title(sweep, same)}. {_how(found, same)}", False
            )
    if not found.differences[found.truth, ""]:
        yield tag(
            "p", "No two arms of this sweep are meant to be compared: none with ISL has its like without."
        )


def _how(found: Results, same: str) -> str:
    if len(found.sweep.chances) == 1:
        return ONE_DRAW
    group = f"{found.sweep.group}, " if found.sweep.group else ""
    crossed = "draw and seed crossed with them" if not same else "draw and seed within the first"
    return f"Intervals: paired bootstrap over {group}well and test box, {crossed}, 2000 resamples."


def _differences(every: Sequence[Difference], caption: str, with_n: bool) -> Html:
    header = ["arm", "against", *(["N"] if with_n else []), "difference", "gain", "pairs", "in words"]
    rows = [
        [one.arm, one.base, *([one.n] if with_n else []), bounded(one.value, signed),
         bounded(one.gain, percent), one.pairs, VERDICTS[one.verdict]]
        for one in every
    ]  # fmt: skip
    return table(header, rows, caption, range(2, len(header) - 1))


def _curves(found: Results, known: dict[str, Picture]) -> Iterator[object]:
    if not found.sweep.counts:
        yield tag("p", "No element learnt from annotations: there is no curve.")
        return
    for place, truth in enumerate(found.sweep.truths):
        if place:
            yield tag("h3", f"Against {truth}", *_circular(truth))
        yield figure(known[f"curves-{place}.png"])
    if "differences.png" in known:
        yield tag("h3", "Where ISL helps, and where it does not")
        yield figure(known["differences.png"])
        every = found.differences[found.truth, ""]
        yield _differences(every, f"All numbers of boxes, all test boxes, {found.truth}.", True)


def _circular(truth: Truth) -> Iterator[str]:
    if truth.circular:
        yield ": circular, for these labels were drafted from a stain"


def _savings(found: Results) -> Iterator[object]:
    every = found.savings[found.truth]
    yield tag(
        "p", "How many times the annotated objects of an arm another arm needs to reach the same score. "
        "Curves are taken as rising, linear in the logarithm of the objects. Nothing is extrapolated: > "
        "means that the score was never reached, < that it was exceeded from the start. Above 1 the arm with "
        "ISL saves annotations; – where the score is 0.00, for which none are needed.",
    )  # fmt: skip
    rows = [
        [one.arm, one.n, f"{one.objects:.0f}", number(one.score), one.base,
         "–" if one.factor is None else f"{one.factor} ×", "–" if one.likely is None else str(one.likely)]
        for one in every
    ]  # fmt: skip
    header = [
        "arm",
        "N",
        "objects",
        name_of_score(found.sweep.score),
        "against",
        "factor saved",
        "95 % interval",
    ]
    if rows:
        yield table(header, rows, f"Against {found.truth}.", (1, 2, 3, 5, 6))
    else:
        yield tag("p", "No arm with ISL has an arm beside it to save annotations against.")


def _panels(pictures: Sequence[Picture], problems: Sequence[str]) -> Iterator[object]:
    yield from (figure(one) for one in pictures)
    if problems:
        yield tag("ul", *[tag("li", line) for line in problems])


def _scores(found: Results) -> Iterator[object]:
    sweep = found.sweep
    yield tag(
        "p", "Mean ± standard deviation over test boxes and draws. The files beside this page hold more: ",
        tag("code", "scores_all.csv"), " (each test box of each element), ", tag("code", "summary.csv"), ", ",
        tag("code", "differences.csv"), ", ", tag("code", "savings.csv"), ", ", tag("code", "boxes.csv"), ".",
    )  # fmt: skip
    yield details.legend()
    for truth in sweep.truths:
        for same in sweep.facets:
            yield details.scores(found, truth, same)
    undefined = any(math.isnan(v) for e in sweep.elements for s in e.scored for v in s.values.values())
    if undefined:
        yield tag("p", "A score that is not a number (SQ where no object was matched) counts in no mean.")
