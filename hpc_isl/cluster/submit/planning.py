"""A request is planned: the site, the runs it names, the elements of an array, and the plan of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

from hpc_isl import device
from hpc_isl.cluster.rank.environment import in_allocation
from hpc_isl.cluster.run_folder import names, status, uses
from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.errors import UserError
from hpc_isl.files import identity, same_place
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import read_kept
from hpc_isl.recipes.many import Arrangement
from hpc_isl.recipes.strict import flatten
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site, gpus_here
from hpc_isl.stages.stage_table import is_alone, is_pooled, stage_named


def site_of(stage: str, site: Site) -> Site:
    """Returns the part of a site that the stage can use; in an allocation, what Slurm has given."""
    alone, pooled = is_alone(stage), is_pooled(stage)
    site = site.pooled() if pooled else site
    if site.executor == "allocation":
        return in_allocation(site, one_each=alone or pooled, one_node=alone)
    return site.alone() if alone else site


def with_run_folders(request: RunRequest, roots: Sequence[Path]) -> RunRequest:
    """Returns the request with the runs that its recipes name as folders."""
    elements = request.elements and {
        name: names.resolved(recipe, *roots) for name, recipe in request.elements.items()
    }
    return replace(request, recipe=names.resolved(request.recipe, *roots), elements=elements)


def arranged(request: RunRequest, run: Run) -> RunRequest:
    """Returns an array with the elements that its stage makes of what is swept over."""
    arrange = getattr(stage_named(request.stage).load(), "arrange", None) if request.elements else None
    if arrange is None:
        return request
    made: Arrangement = arrange(request.elements, run.folder)
    elements = {name: recipe for name, recipe in made.elements.items() if name != made.last}
    if made.last:
        elements[made.last] = made.elements[made.last]
    return replace(request, elements=elements, final_element=made.last, messages=made.messages)


def plans(request: RunRequest) -> dict[str, Plan]:
    """Returns the plan of each element, or of the run under its stage's name.

    Raises:
        UserError: two elements, which may be computed at the same time, would write the same.
    """
    by_name = {}
    for name, recipe in (request.elements or {request.stage: request.recipe}).items():
        deferred = bool(request.after) or name == request.final_element
        by_name[name] = planned(request.stage, recipe, request.site, deferred)
    owners: dict[tuple[object, str], str] = {}
    known = cache(identity)
    for name, plan in by_name.items() if request.elements else ():
        for path, what in plan.claims():
            if (other := owners.setdefault((known(path), what), name)) != name:
                raise UserError(
                    f"elements {other!r} and {name!r} would both write {what} in {path}: give each its own"
                )
    return by_name


def unfinished(after: tuple[Run, ...]) -> tuple[Run, ...]:
    """Returns those runs, or elements of arrays, that are not done.

    Raises:
        UserError: one of them will never be done.
    """
    statuses = status.statuses([member for run in after for member in run.elements() or [run]])
    for run, found in statuses.items():
        if found.state != RunState.DONE and not found.alive:
            raise UserError(
                f"--after {run.label}: it is {found.state}, so what waits for it would never start"
            )
    return tuple(run for run, found in statuses.items() if found.alive)


def planned(stage: str, recipe: Recipe, site: Site, deferred: bool = False) -> Plan:
    """Returns what the stage would do, on as many processes as the site gives it.

    `deferred`: its inputs are still being made; it is planned when its job starts.
    """
    if deferred:
        message = f"{stage} is planned when its job starts, once what it reads exists"
        return Plan(recipe, messages=(message,))
    plan: Plan = stage_named(stage).load().plan(recipe)
    plan.check_size(site.ranks)
    return replace(plan, messages=(*plan.messages, *_precision_messages(plan, site)))


def _precision_messages(plan: Plan, site: Site) -> Iterator[str]:
    """Yields what to say about the precision; of the nodes of a cluster it is not known from here."""
    if plan.precision is None:
        return
    key, precision = plan.precision
    if site.executor != "slurm":
        gpus = device.gpus(tuple(gpus_here()[: site.visible_gpus]))
        yield from device.remarks(key, precision, gpus or [device.cpu()])
    elif precision == "fp16" and not site.visible_gpus:
        list(device.remarks(key, precision, [device.Device("a node without GPUs")]))
    elif precision in ("bf16", "fp16"):
        yield f"{key}={precision}: the job tells, as it starts, whether its nodes compute that natively"


# ---------------------------------------------------------------- a name that exists


def differences(run: Run, plan: Plan) -> list[str]:
    """Returns lines such as `  train.steps: 20000 there, 300 here`, for recipe and inputs."""
    return [*recipe_differences(run, plan), *uses.differing_inputs([(run, plan)])]


def recipe_differences(run: Run, plan: Plan) -> list[str]:
    """Returns these lines for the recipe alone."""
    kept = flatten(read_kept(run.stage, run.recipe))
    asked = flatten(plan.recipe.model_dump(mode="json"))

    def is_same(key: str) -> bool:
        values = kept.get(key), asked.get(key)
        paths = [value for value in values if isinstance(value, str) and os.path.isabs(value)]
        return values[0] == values[1] or (len(paths) == 2 and same_place(*paths))

    keys = [key for key in {**kept, **asked} if not is_same(key)]
    return [f"  {key}: {kept.get(key)!r} there, {asked.get(key)!r} here" for key in keys]


def refuse_other_run(run: Run, plan: Plan) -> None:
    """Checks that an existing folder holds just this run.

    Raises:
        UserError: it holds another one; with the differences.
    """
    if not run.recipe.is_file():
        raise UserError(f"{run.folder} exists and is not a run; choose another --name")
    if lines := differences(run, plan):
        other_recipe = recipe_differences(run, plan)
        refuse(run, lines, "with another recipe" if other_recipe else "from other inputs")


def refuse(run: Run, lines: list[str], how: str = "with another recipe") -> NoReturn:
    """Raises a `UserError` about a run that exists, with the first of these lines."""
    shown = "\n".join(lines[:8] + ["  …"] * (len(lines) > 8))
    raise UserError(f"{run.stage} {run.name!r} exists, {how}; choose another --name.\n{shown}")
