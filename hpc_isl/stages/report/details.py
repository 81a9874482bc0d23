"""The lower half of a report's page: tables for whoever wants to check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpc_isl.learning.data.split import PARTS
from hpc_isl.objects.bootstrap import Spread
from hpc_isl.recipes.strict import flatten
from hpc_isl.stages.report import origin as rests_on
from hpc_isl.stages.report.pictures import facet_title
from hpc_isl.stages.report.sentences import LEGEND, name_of_score
from hpc_isl.stages.report.sweep_results import Sweep, Truth
from hpc_isl.stages.report.tables import Results, spreads, training_boxes
from hpc_isl.stages.shared.html import Html, table, tag
from hpc_isl.stages.shared.sweeps import FINAL, SCORES

SHOWN = 12


def warnings(sweep: Sweep) -> list[str]:
    """What a reader must know before believing a figure."""
    lines = []
    missing = [name for name in sweep.missing if name != FINAL]
    if missing:
        lines.append(
            f"Missing from this report, of {len(sweep.names)} elements: {_some(missing)}. Arms are "
            "compared only on draws that both have."
        )
    if FINAL in sweep.missing:
        lines.append(f"The final model is not done: it {sweep.missing[FINAL]}.")
    return [*lines, *rests_on.unlike_boxes(sweep)[:SHOWN]]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def scores(found: Results, truth: Truth, same: str) -> Html:
    """All scores of one truth and facet: a row per arm and number of boxes."""
    sweep, rows = found.sweep, []
    for cell in sweep.cells:
        each = spreads(sweep, truth, cell, same)
        if each:
            objects = f"{sweep.trained(cell.n, 'objects'):.0f}"
            most = max(spread.images for spread in each.values())
            rows.append([cell.arm, cell.n, objects, most, *(_pair(each[score]) for score in SCORES)])
    header = ["arm", "N", "objects", "scored", *map(name_of_score, SCORES)]
    return table(header, rows, f"Against {truth}, {facet_title(sweep, same)}.", range(1, len(header)))


def legend() -> Html:
    """What each score says."""
    return table(["score", "meaning"], list(LEGEND.items()), "What the scores and N say.")


def _pair(one: Spread) -> str:
    return str(one).replace("nan", "–").replace("-", "−")


# ---------------------------------------------------------------- what it rests on


def origin(sweep: Sweep) -> Iterator[object]:
    yield from _split(sweep)
    yield from _boxes(sweep)
    yield from _recipes(sweep)
    yield tag("h3", "Code, data and models")
    yield table(
        ["what", "value"], rests_on.provenance(sweep), "Where elements differ, all values are listed."
    )
    yield from _cost(sweep)
    yield tag("h3", "Elements that are missing")
    if sweep.missing:
        yield table(["element", "why"], list(sweep.missing.items()), "Not done, failed, or not readable.")
    else:
        yield tag("p", "None.")


def _split(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Split")
    rows = rests_on.split_rows(sweep)
    if not rows:
        yield tag("p", "The split's file was not found: neither in the ISL run nor in an element.")
        return
    group = [sweep.group] if sweep.group else []
    body = [
        [row.plate, *([row.group] if group else []), *(_wells(row.wells[part]) for part in PARTS)]
        for row in rows
    ]
    yield table(["plate", *group, *PARTS], body, "Wells by part, made before pretraining.")


def _wells(wells: list[str]) -> str:
    return f"{len(wells)}: {', '.join(wells)}" if wells else "0"


def _boxes(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Annotation boxes that trained")
    drawn: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for box in training_boxes(sweep):
        drawn.setdefault((box["n"], box["draw"], box["fold"]), []).append(box)
    rows = []
    for (n, draw, fold), boxes in drawn.items():
        places = [
            f"{box['plate']} {box['well']}/{box['field']} ({box['box']}): {box['objects']}" for box in boxes
        ]
        shown = "; ".join(places[:SHOWN]) + (
            f"; and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        )
        origins = ", ".join(sorted({box["origin"] for box in boxes}))
        rows.append(
            [n, draw, fold, len(boxes), sum(float(box["objects"] or 0) for box in boxes), origins, shown]
        )
    folds = any(row[2] != "" for row in rows)
    header = ["N", "draw", "fold", "boxes", "objects", "origin", "which: objects"]
    body = [
        [f"{v:g}" if isinstance(v, float) else v for at, v in enumerate(row) if folds or at != 2]
        for row in rows
    ]
    kept = [name for at, name in enumerate(header) if folds or at != 2]
    numbers = range(len(kept) - 2)
    yield table(
        kept, body, "Boxes as y0 x0 y1 x1 in pixels; those of a draw hold those of every smaller N.", numbers
    )


def _recipes(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Recipes")
    yield table(["key", "values"], rests_on.swept(sweep), "What is swept.")
    yield table(["arm", "differs in"], rests_on.arm_differences(sweep), "In what the arms' recipes differ.")
    base = "\n".join(f"{key}: {value}" for key, value in flatten(sweep.recipe.base).items())
    yield tag("p", "The base, without what varies:")
    yield tag("pre", base)


def _cost(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Cost")
    rows = rests_on.cost(sweep)
    body = [
        [arm, n, count, steps, f"{each:.0f}", f"{total / 60:.1f}"]
        for arm, n, count, steps, each, total in rows
    ]
    whole = sum(row[-1] for row in rows) / 60
    header = ["arm", "N", "elements", "steps", "seconds each", "minutes together"]
    yield table(header, body, f"All elements together: {whole:.0f} minutes.", range(1, 6))
