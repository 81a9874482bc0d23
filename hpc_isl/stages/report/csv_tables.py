"""A report's tables as CSV, for people who compute further; the page shows the same figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from hpc_isl.objects.bootstrap import Interval
from hpc_isl.stages.report.statistics import Results, spreads
from hpc_isl.stages.report.sweep import Sweep, Truth, rank

Row = dict[str, Any]
WHERE = ["plate", "well", "field", "box", "origin", "objects"]


def tables(results: Results) -> dict[str, str]:
    """Returns file name -> CSV."""
    rows: dict[str, pd.DataFrame | Iterable[Row]] = {
        "scores_all.csv": results.sweep.scores, "summary.csv": _summary(results),
        "differences.csv": _differences(results), "savings.csv": _savings(results),
        "boxes.csv": training_boxes(results.sweep),
    }  # fmt: skip
    return {
        name: pd.DataFrame(table).to_csv(index=False, lineterminator="\n", float_format="%.6g")
        for name, table in rows.items()
    }


def _about(truth: Truth) -> Row:
    return {"truth": truth.name, "origin": truth.origin}


def _bounds(name: str, value: Interval) -> Row:
    return {f"{name}low": value.low, f"{name}high": value.high}


def _summary(results: Results) -> Iterator[Row]:
    sweep = results.sweep
    for (truth, same), design in results.designs.items():
        for cell in sweep.cells:
            for score, spread in spreads(sweep, truth, cell, same).items():
                is_main = score == sweep.score and cell in design.columns
                yield {
                    **_about(truth), "same": same, "arm": str(cell.arm), "n": cell.n,
                    "objects": sweep.trained(cell.n, "objects"), "score": score, "mean": spread.mean,
                    "sd": spread.sd, "scored": spread.images, "undefined": spread.undefined,
                    **(_bounds("", design.mean(cell)) if is_main else {}),
                }  # fmt: skip


def _differences(results: Results) -> Iterator[Row]:
    for (truth, same), differences in results.differences.items():
        for less in differences:
            yield {
                **_about(truth), "same": same, "arm": str(less.arm), "against": str(less.base), "n": less.n,
                "score": results.sweep.score, "pairs": less.pairs, "difference": less.value.value,
                **_bounds("difference_", less.value), "gain": less.gain.value,
                **_bounds("gain_", less.gain), "verdict": less.verdict,
            }  # fmt: skip


def _savings(results: Results) -> Iterator[Row]:
    for truth, savings in results.savings.items():
        for saving in savings:
            factor, likely = saving.factor, saving.likely
            yield {
                **_about(truth), "arm": str(saving.arm), "against": str(saving.base), "n": saving.n,
                "objects": saving.objects, "score": saving.score,
                "least": factor.least if factor else np.nan, "most": factor.most if factor else np.nan,
                "low": likely.least if likely else np.nan, "high": likely.most if likely else np.nan,
            }  # fmt: skip


def training_boxes(sweep: Sweep) -> pd.DataFrame:
    """Returns the boxes of each number, draw and fold, once: all arms learn from the same."""
    tables = [
        element.boxes.reindex(columns=WHERE, fill_value="").assign(
            n=element.recipe.n, draw=element.recipe.draw,
            fold="" if element.recipe.fold is None else element.recipe.fold,
        )
        for element in sorted(sweep.elements, key=lambda e: (rank(e.recipe.n), e.replicate))
        if len(element.boxes)
    ]  # fmt: skip
    boxes = (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=["n", "draw", "fold", *WHERE])
    )
    return boxes[["n", "draw", "fold", *WHERE]].drop_duplicates()
