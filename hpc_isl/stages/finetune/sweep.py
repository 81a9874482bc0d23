"""Sweeps of fine-tuning runs: folds, arms that can start, and the final model of the best arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.recipes.base import Arrangement, Recipe
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import load_kept, read_kept
from hpc_isl.run import Run
from hpc_isl.stages.finetune.boxes import boxes_of, fields
from hpc_isl.stages.finetune.inputs import LEARN, FinetuneInputs, needs, resolve_inputs
from hpc_isl.stages.shared.following import FEW, FINAL, LEFT_OUT, MAIN, after_finetuning
from hpc_isl.stages.shared.plate_views import expanded
from hpc_isl.stages.shared.program import needs_training

ALL = {"n": "all", "draw": 0, "train_where": {}, "fold": None, "train_on_all": True}
NEEDS = ("random", "imagenet", "drafted", "random+isl", "imagenet+isl")
"""The arms by what they need: weights of others, a stain and a supervised run on drafts, a pretraining."""
Elements = dict[str, FinetuneRecipe]
FieldName = tuple[str, str, str]
"""Plate, well and name of a field."""


def arrange(elements: Mapping[str, Recipe], folder: Path) -> Arrangement:
    """Returns the elements that can be computed, with folds where few fields are annotated, and `final` last.

    Left out with a message: elements that ask for more boxes than there are, arms without a start, and
    N = 0 of arms that know nothing.
    """
    recipes = {name: recipe for name, recipe in elements.items() if isinstance(recipe, FinetuneRecipe)}
    # Elements share plates and labels, so that the first one stands for all.
    first_recipe = next(iter(recipes.values()))
    # The inputs of a run that learns from the boxes of all parts, so that none is missing.
    changes = {"plates": expanded(first_recipe.plates), "n": "all", "fold": None, "train_on_all": True}
    inputs = resolve_inputs(first_recipe.model_copy(update=changes))
    messages: list[str] = []
    kept_elements = _startable_elements(recipes, inputs, messages)
    boxes = boxes_of(inputs.study, first_recipe.labels)
    annotated = fields(boxes)
    if len(annotated) < FEW and all(recipe.fold is None for recipe in kept_elements.values()):
        messages.append(
            f"{len(annotated)} annotated fields, fewer than {FEW}: each is left out in turn, and tests"
        )
        if kept_elements and len(annotated) < 2:
            raise UserError(
                "sweep: one annotated field alone cannot both train and test; annotate another one"
            )
        kept_elements = {
            f"{name},fold={fold}": recipe.model_copy(update={"fold": fold})
            for name, recipe in kept_elements.items()
            for fold in range(len(annotated))
        }
    kept_elements = _with_enough_boxes(kept_elements, inputs, annotated, messages)
    if not kept_elements:
        raise UserError("\n".join(["sweep: no element can be computed", *(f"  {line}" for line in messages)]))
    folders = [folder / "finetune" / name for name in kept_elements]
    final = first_recipe.model_copy(update={"arm": "best", "among": folders, **ALL})
    messages.append(f"{FINAL}, the last element: the best arm learns from all {len(boxes)} boxes")
    return Arrangement({**kept_elements, FINAL: final}, tuple(messages), FINAL)


def _startable_elements(recipes: Elements, inputs: FinetuneInputs, messages: list[str]) -> Elements:
    startable, left_out_lines = {}, set()
    for name, recipe in recipes.items():
        arm, reason = recipe.arm, ""
        if arm == "imagenet":
            reason = "" if inputs.net.weights else "net.weights names no weights"
        elif arm != "random" and arm not in inputs.starts and recipe.program is None:
            reason = needs(arm)
        if reason:
            left_out_lines.add(f"arm {arm} is left out: {reason}")
        elif recipe.is_zero_shot and recipe.n != 0:
            left_out_lines.add(f"n={recipe.n} of arm {arm} is left out: {needs_training(arm)}")
        elif recipe.n == 0 and arm in ("random", "imagenet"):
            left_out_lines.add(f"n=0 of arm {arm} is left out: it knows nothing before an annotation")
        else:
            startable[name] = recipe
    messages += sorted(left_out_lines)
    return startable


def _with_enough_boxes(
    recipes: Elements, inputs: FinetuneInputs, annotated: list[FieldName], messages: list[str]
) -> Elements:
    def boxes_for(fold: int | None) -> int:
        """Returns the number of boxes that may be learnt from; a fold leaves out one field's."""
        if fold is not None:
            return sum(box.field != annotated[fold] for box in inputs.pool if fold < len(annotated))
        return sum(inputs.study.split.part(box.plate.name, box.key) in LEARN for box in inputs.pool)

    folds = {recipe.fold for recipe in recipes.values()}
    # An N is kept only if each fold has as many boxes: means over folds then compare.
    fewest_boxes = min(map(boxes_for, folds), default=0)
    kept_elements, lines = {}, {}
    for name, recipe in recipes.items():
        if recipe.n == "all" or recipe.n <= fewest_boxes:
            kept_elements[name] = recipe
        else:
            note = "" if folds == {None} else ", where the field with most boxes is left out"
            lines[recipe.n] = f"n={recipe.n} is left out: there are {fewest_boxes} annotation boxes{note}"
    messages += [lines[n] for n in sorted(lines)]
    return kept_elements


# ---------------------------------------------------------------- the best arm


def best(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """Returns the recipe of the best arm among the finished runs, for all annotations.

    Compared are the scores of training boxes that were left out in turn, at the most annotations; only where
    a run has none of them, the mean scores of test fields. Arms whose paired difference to the best one may
    be nothing (its 95 % interval holds 0) are a tie, which the one wins that needs least. `final` itself
    is scored nowhere.

    Raises:
        UserError: runs that are not done.
    """
    missing = [run.name for run in recipe.among if Run(run).summary() is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(recipe.among)} elements are not done ({', '.join(missing[:4])}"
            f"{', …' * (len(missing) > 4)}): the best arm is not known yet; retry the sweep"
        )
    if not recipe.among:
        raise UserError("arm=best: is for sweeps, which compare arms; name one")
    best_recipe = load_kept("finetune", _winner([Run(path) for path in recipe.among]).recipe)
    assert isinstance(best_recipe, FinetuneRecipe)
    n = 0 if best_recipe.is_zero_shot else "all"
    return best_recipe.model_copy(update={"among": recipe.among, **ALL, "n": n})


@dataclass
class _Candidate:
    """The runs of one arm and variant at the most annotations: they differ in draw, fold and seed alone."""

    arm: str
    runs: list[Run] = field(default_factory=list)
    test_scores: list[float] = field(default_factory=list)
    left_out: dict[tuple[object, ...], float] = field(default_factory=dict)


def _winner(runs: list[Run]) -> Run:
    candidates = _candidates(runs)
    if not all(rival.left_out for rival in candidates):
        scored = [rival for rival in candidates if rival.test_scores]
        return max(scored, key=lambda rival: sum(rival.test_scores) / len(rival.test_scores)).runs[0]
    leader = max(candidates, key=lambda rival: np.mean(list(rival.left_out.values())))

    def is_tie(rival: _Candidate) -> bool:
        deficits = [
            leader.left_out[key] - rival.left_out[key] for key in leader.left_out.keys() & rival.left_out
        ]
        if len(deficits) < 2:
            return rival is leader
        return bool(np.mean(deficits) <= 1.96 * np.std(deficits, ddof=1) / math.sqrt(len(deficits)))

    def needed(rival: _Candidate) -> int:
        return NEEDS.index(rival.arm) if rival.arm in NEEDS else len(NEEDS)  # a program needs to be installed

    return min(filter(is_tie, candidates), key=needed).runs[0]


def _candidates(runs: list[Run]) -> list[_Candidate]:
    groups: dict[str, dict[float, _Candidate]] = {}
    for run in runs:
        content = read_kept("finetune", run.recipe)
        figures = (read_json(run.done / "finetune.json") or {}).get("figures", {})
        value = figures.get(MAIN[content["objects"]["kind"]], math.nan)
        left_out = read_json(run.folder / LEFT_OUT) or {}
        # A program that learns nothing is as good at any N; other arms of N = 0 learn from all annotations.
        learns = all(
            program["train"] for program in content.get("programs", []) if program["name"] == content["arm"]
        )
        if (math.isnan(value) and not left_out.get("kept_scores")) or (content["n"] == 0 and learns):
            continue
        key = repr({k: v for k, v in content.items() if k not in ("n", "draw", "fold", "train")})
        train = {k: v for k, v in content["train"].items() if k != "seed"}
        n = math.inf if content["n"] == "all" else content["n"]  # folds differ in how many boxes `all` are
        candidate = groups.setdefault(f"{key} {train}", {}).setdefault(n, _Candidate(content["arm"]))
        candidate.runs.append(run)
        candidate.test_scores += [] if math.isnan(value) else [value]
        replicate = content["draw"], content["fold"], content["train"]["seed"]
        scores = zip(left_out.get("pieces", []), left_out.get("kept_scores", []), strict=True)
        candidate.left_out |= {(*replicate, piece): score for piece, score in scores}
    if not groups:
        raise UserError("no element has a score: no test field has labels to score by, so no arm is the best")
    return [by_size[max(by_size)] for by_size in groups.values()]


def after_sweep(run: Run) -> list[str]:
    """Returns the commands to type when a sweep is done: its report, and its model on the same plates."""
    final = {element.name: element for element in run.elements()}.get(FINAL)
    plates = read_kept("finetune", final.recipe)["plates"] if final and final.model.exists() else []
    return ["report {run}", *([after_finetuning([Path(path) for path in plates])] if plates else [])]
