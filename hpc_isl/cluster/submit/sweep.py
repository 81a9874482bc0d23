"""An array of runs of one stage, which differ in what is swept over."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.submit.planning import site_of
from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import parsed, read, refuse_unused
from hpc_isl.recipes.many import SweepRecipe
from hpc_isl.recipes.strict import override, parse, plain, written
from hpc_isl.run import Run
from hpc_isl.site import Site
from hpc_isl.stages.stage_table import STAGES, stage_named

LONGEST = 80  # characters of an element's name


def sweep_request(
    path: Path | None, keys: list[str], site: Site, name: str | None, after: tuple[Run, ...] = ()
) -> RunRequest:
    """Returns the request for a sweep.

    `over` and `stage` are the sweep's own keys; all others are those of the stage's recipe. Without `stage`
    the recipe's file name tells it: `small_pretrain.yaml` is a recipe of pretrain.
    """
    if site.executor == "allocation":
        raise UserError(
            "sweep: inside a job there is one run at a time; use a site with executor: slurm, or "
            "slurm/array.sbatch"
        )
    content, origin = read("sweep", path, keys)
    over, stage = content.pop("over", None), content.pop("stage", None)
    if not stage:
        named = [word for word in re.split(r"[_\W]+", path.stem) if word in STAGES] if path else []
        if not named:
            raise UserError(f"sweep: say which stage varies, as stage=pretrain; {nearest('', STAGES)}")
        stage = named[-1]
    if over is None:
        raise UserError(f"{origin}: over: must be given, as in over='{{seed: [0, 1, 2]}}'")
    stage_named(stage)
    recipe = parse(SweepRecipe, {"stage": stage, "over": over, "base": content}, origin)
    elements: dict[str, Recipe] = {}
    for values in _combinations(recipe):
        label = _label(values)
        # Elements whose names are the same once shortened get a number.
        numbers = (f" ({number})" if number > 1 else "" for number in itertools.count(1))
        label = next(label + number for number in numbers if label + number not in elements)
        assignments = [f"{key}={written(value)}" for key, value in values.items()]
        where = f"{origin}, element {' '.join(assignments)}"
        elements[label] = parsed(recipe.stage, override(recipe.base, assignments), where)
    refuse_unused(list(elements.values()), origin)
    return RunRequest(stage, recipe, site_of(stage, site), name, after, elements)


def _combinations(recipe: SweepRecipe) -> Iterator[Mapping[str, Any]]:
    """Yields all combinations of each group; one that an earlier group has set does not come again."""
    seen: set[str] = set()
    for group in [recipe.over] if isinstance(recipe.over, dict) else recipe.over:
        sets = [values if isinstance(values, list) else [values] for values in group.values()]
        for chosen in itertools.product(*sets):
            values = dict(zip(group, chosen, strict=True))
            text = json.dumps(values, sort_keys=True, default=str)
            if text not in seen:
                seen.add(text)
                yield values


def _label(values: Mapping[str, Any]) -> str:
    """Returns `seed=0,train.crop=256`, of characters that a folder and a command line can have."""
    text = ",".join(f"{key}={plain(value)}" for key, value in values.items())
    legal = re.sub(r"[^\w.,=+\-]+", "_", text).strip("_.-") or "as-is"
    return legal[:LONGEST]
