"""What a sweep of fine-tuning runs has that others have not: folds, arms without a start, a final model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import load_kept, read_kept
from hpc_isl.recipes.many import Arrangement
from hpc_isl.run import Run
from hpc_isl.stages.finetune.boxes import boxes_of, fields
from hpc_isl.stages.finetune.inputs import LEARN, FinetuneInputs, needs, resolve_inputs
from hpc_isl.stages.shared.following import after_finetuning
from hpc_isl.stages.shared.plate_views import expanded
from hpc_isl.stages.shared.sweeps import FEW, FINAL, MAIN

ALL = {"n": "all", "draw": 0, "train_where": {}, "fold": None, "train_on_all": True}
FieldName = tuple[str, str, str]
"""Plate, well and name of a field."""


def arrange(elements: Mapping[str, Recipe], folder: Path) -> Arrangement:
    """The elements that can be computed, with folds where few fields are annotated, and `final` last.

    Left out, with a word: more boxes than there are, and N = 0 of arms that know nothing.
    """
    recipes = {name: each for name, each in elements.items() if isinstance(each, FinetuneRecipe)}
    first = next(iter(recipes.values()))
    setting = resolve_inputs(_plain(first))
    messages: list[str] = []
    kept = dict(_startable(recipes, setting, messages))
    boxes = boxes_of(setting.view, setting.indices, setting.split, first.labels)
    left_out = fields(boxes)
    if len(left_out) < FEW and all(each.fold is None for each in kept.values()):
        messages.append(
            f"{len(left_out)} annotated fields, fewer than {FEW}: each is left out in turn, and tests"
        )
        kept = dict(_folded(kept, len(left_out)))
    kept = dict(_enough(kept, setting, left_out, messages))
    if not kept:
        raise UserError("\n".join(["sweep: no element can be computed", *(f"  {line}" for line in messages)]))
    among = [folder / "finetune" / name for name in kept]
    final = first.model_copy(update={"arm": "best", "among": among, **ALL})
    messages.append(f"{FINAL}, the last element: the best arm learns from all {len(boxes)} boxes")
    return Arrangement({**kept, FINAL: final}, tuple(messages), FINAL)


def _plain(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """The same with the boxes of all parts, so that nothing is missing."""
    changes = {"plates": expanded(recipe.plates), "n": "all", "fold": None, "train_on_all": True}
    return recipe.model_copy(update=changes)


def _startable(
    recipes: Mapping[str, FinetuneRecipe], setting: FinetuneInputs, messages: list[str]
) -> Iterator[tuple[str, FinetuneRecipe]]:
    missing = set()
    for name, each in recipes.items():
        if why := _impossible(each, setting):
            missing.add(f"arm {each.arm} is left out: {why}")
        elif each.n == 0 and each.arm in ("random", "imagenet"):
            missing.add(f"n=0 of arm {each.arm} is left out: it knows nothing before an annotation")
        else:
            yield name, each
    messages += sorted(missing)


def _impossible(recipe: FinetuneRecipe, setting: FinetuneInputs) -> str:
    """Why the arm has nothing to start from; empty where it has."""
    if recipe.arm == "imagenet":
        return "" if setting.net.weights else "net.weights names no weights"
    return "" if recipe.arm == "random" or recipe.arm in setting.starts else needs(recipe.arm)


def _folded(recipes: Mapping[str, FinetuneRecipe], count: int) -> Iterator[tuple[str, FinetuneRecipe]]:
    """Each element once for each field that is left out."""
    if count < 2:
        raise UserError("sweep: one annotated field alone cannot both train and test; annotate another one")
    for name, each in recipes.items():
        for fold in range(count):
            yield f"{name},fold={fold}", each.model_copy(update={"fold": fold})


def _enough(
    recipes: Mapping[str, FinetuneRecipe],
    setting: FinetuneInputs,
    left_out: list[FieldName],
    messages: list[str],
) -> Iterator[tuple[str, FinetuneRecipe]]:
    """Those with as many boxes as they ask for; with folds in each of them, so that means compare."""
    folds = {each.fold for each in recipes.values()}
    least = min((_boxes_for(fold, setting, left_out) for fold in folds), default=0)
    missing = {}
    for name, each in recipes.items():
        if each.n == "all" or each.n <= least:
            yield name, each
        else:
            where = "" if folds == {None} else ", where the field with most boxes is left out"
            missing[each.n] = f"n={each.n} is left out: there are {least} annotation boxes{where}"
    messages += [missing[n] for n in sorted(missing)]


def _boxes_for(fold: int | None, setting: FinetuneInputs, left_out: list[FieldName]) -> int:
    """How many boxes may be learnt from, where the split decides or a field is left out."""
    if fold is not None:
        return sum(box.field != left_out[fold] for box in setting.pool if fold < len(left_out))
    return sum(setting.split.part(box.index.plate.name, box.key) in LEARN for box in setting.pool)


# ---------------------------------------------------------------- the best arm


def best(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """The recipe of the best arm among the finished runs, for all annotations.

    The best is whoever has the greatest mean score at the most annotations. It is chosen by the fields
    that test, so its own score there would be no estimate; `final` is scored nowhere.

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
    scores = _scores([Run(path) for path in recipe.among])
    winner = max(scores, key=lambda path: scores[path])
    chosen = load_kept("finetune", Run(winner).recipe)
    assert isinstance(chosen, FinetuneRecipe)
    return chosen.model_copy(update={"among": recipe.among, **ALL})


def _scores(runs: list[Run]) -> dict[Path, float]:
    """One run of each arm and variant -> mean main score at the most annotations."""
    groups: dict[str, dict[float, list[tuple[float, Path]]]] = {}
    for run in runs:
        content = read_kept("finetune", run.recipe)
        figures = (read_json(run.done / "finetune.json") or {}).get("figures", {})
        value = figures.get(MAIN[content["objects"]["kind"]])
        if value is None or math.isnan(value) or content["n"] == 0:
            continue
        key = repr({k: v for k, v in content.items() if k not in ("n", "draw", "fold", "train")})
        seed = {k: v for k, v in content["train"].items() if k != "seed"}
        n = math.inf if content["n"] == "all" else content["n"]  # folds differ in how many boxes `all` are
        groups.setdefault(f"{key} {seed}", {}).setdefault(n, []).append((value, run.folder))
    if not groups:
        raise UserError("no element has a score: no test field has labels to score by, so no arm is the best")
    most = {key: by_size[max(by_size)] for key, by_size in groups.items()}
    return {each[0][1]: sum(value for value, _ in each) / len(each) for each in most.values()}


# ---------------------------------------------------------------- what follows


def after_sweep(run: Run) -> list[str]:
    """What to type when a sweep is done: its page, and its model on the plates that it has seen."""
    final = {one.name: one for one in run.elements()}.get(FINAL)
    plates = read_kept("finetune", final.recipe)["plates"] if final and final.model.exists() else []
    return ["report {run}", *([after_finetuning([Path(path) for path in plates])] if plates else [])]
