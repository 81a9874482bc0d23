"""An array of runs of one stage, which differ in what is swept over."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.submit.request import site_of
from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import parsed, read, refuse_unused
from hpc_isl.recipes.many import SweepRecipe
from hpc_isl.recipes.strict import override, parse, plain, written
from hpc_isl.run import Run
from hpc_isl.site import Site
from hpc_isl.stages.stage_table import STAGES, stage_named

LONGEST = 80  # of an element's name


def order(
    path: Path | None, keys: list[str], site: Site, name: str | None, after: tuple[Run, ...] = ()
) -> RunRequest:
    """`over` and `stage` are the sweep's own keys; all others are those of the stage's recipe."""
    if site.executor == "allocation":
        raise UserError(
            "sweep: inside a job there is one run at a time; use a site with executor: slurm, or "
            "slurm/array.sbatch"
        )
    content, origin = read("sweep", path, keys)
    over, stage = content.pop("over", None), content.pop("stage", None) or _stage_of(path)
    if over is None:
        raise UserError(f"{origin}: over: must be given, as in over='{{seed: [0, 1, 2]}}'")
    stage_named(stage)
    recipe = parse(SweepRecipe, {"stage": stage, "over": over, "base": content}, origin)
    elements = {label: _element(recipe, values, origin) for label, values in _labelled(recipe)}
    refuse_unused(list(elements.values()), origin)
    return RunRequest(stage, recipe, site_of(stage, site), name, after, elements)


def _stage_of(path: Path | None) -> str:
    """`small_pretrain.yaml` is a recipe of pretrain."""
    words = re.split(r"[_\W]+", path.stem) if path else []
    found = [word for word in words if word in STAGES]
    if not found:
        raise UserError(f"sweep: say which stage varies, as stage=pretrain; {nearest('', STAGES)}")
    return found[-1]


def _element(recipe: SweepRecipe, values: Mapping[str, Any], origin: str) -> Recipe:
    keys = [f"{key}={written(value)}" for key, value in values.items()]
    return parsed(recipe.stage, override(recipe.base, keys), f"{origin}, element {' '.join(keys)}")


def _labelled(recipe: SweepRecipe) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each element's name and what it sets; two of one name are told apart by a number."""
    seen: dict[str, int] = {}
    for values in _combinations(recipe):
        label = _label(values)
        seen[label] = seen.get(label, 0) + 1
        yield label if seen[label] == 1 else f"{label} ({seen[label]})", values


def _combinations(recipe: SweepRecipe) -> Iterator[Mapping[str, Any]]:
    """All of each group; what an earlier one has set just so does not come again."""
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
    """`seed=0,train.crop=256`, of characters that a folder and a command line can have."""
    text = ",".join(f"{key}={plain(value)}" for key, value in values.items())
    legal = re.sub(r"[^\w.,=+\-]+", "_", text).strip("_.-") or "as-is"
    return legal[:LONGEST]
