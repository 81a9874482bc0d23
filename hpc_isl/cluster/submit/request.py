"""What is asked for: a stage's recipe, where to compute it, under which name, after which runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
    """The part of a site that the stage can use; in an allocation, what Slurm has given."""
    alone, pooled = is_alone(stage), is_pooled(stage)
    site = site.pooled() if pooled else site
    if site.executor == "allocation":
        return in_allocation(site, one_each=alone or pooled, one_node=alone)
    return site.alone() if alone else site


def named(order: RunRequest, roots: Sequence[Path]) -> RunRequest:
    """The same with the runs that its recipes name as folders."""
    elements = order.elements and {n: names.resolved(each, *roots) for n, each in order.elements.items()}
    return replace(order, recipe=names.resolved(order.recipe, *roots), elements=elements)


def arranged(order: RunRequest, run: Run) -> RunRequest:
    """An array with the elements that its stage makes of what is swept over."""
    arrange = getattr(stage_named(order.stage).load(), "arrange", None) if order.elements else None
    if arrange is None:
        return order
    made: Arrangement = arrange(order.elements, run.folder)
    elements = {name: recipe for name, recipe in made.elements.items() if name != made.last}
    if made.last:
        elements[made.last] = made.elements[made.last]
    return replace(order, elements=elements, last=made.last, messages=made.messages)


def plans(order: RunRequest) -> dict[str, Plan]:
    """The plan of each element, or of the run under its stage's name."""
    recipes = order.elements or {order.stage: order.recipe}
    found = {
        name: planned(order.stage, each, order.site, late=bool(order.after) or name == order.last)
        for name, each in recipes.items()
    }
    if order.elements:
        _refuse_shared(found)
    return found


def _refuse_shared(found: Mapping[str, Plan]) -> None:
    """Elements may be computed at the same time: no two of them write the same."""
    owners: dict[tuple[object, str], str] = {}
    known = cache(identity)
    for name, plan in found.items():
        for place, what in plan.claims():
            if (other := owners.setdefault((known(place), what), name)) != name:
                raise UserError(
                    f"elements {other!r} and {name!r} would both write {what} in {place}: give each its own"
                )


def unfinished(after: tuple[Run, ...]) -> tuple[Run, ...]:
    """Those runs, or elements of arrays, that are not done; one that will never be is a `UserError`."""
    found = status.statuses([member for run in after for member in run.elements() or [run]])
    for run, each in found.items():
        if each.state != RunState.DONE and not each.alive:
            raise UserError(
                f"--after {run.label}: it is {each.state}, so what waits for it would never start"
            )
    return tuple(run for run, each in found.items() if each.alive)


def planned(stage: str, recipe: Recipe, site: Site, late: bool = False) -> Plan:
    """What the stage would do, on as many processes as the site gives it.

    `late`: its inputs are still being made; it is planned when its job starts.
    """
    if late:
        return Plan(
            recipe, messages=(f"{stage} is planned when its job starts, once what it reads is there",)
        )
    plan: Plan = stage_named(stage).load().plan(recipe)
    plan.check_size(site.ranks)
    return replace(plan, messages=(*plan.messages, *_numbers(plan, site)))


def _numbers(plan: Plan, site: Site) -> Iterator[str]:
    """In which numbers a network will compute there; of the nodes of a cluster it is not known from here."""
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
    """`  train.steps: 20000 there, 300 here`, for recipe and inputs."""
    return [*in_recipe(run, plan), *uses.differing_inputs([(run, plan)])]


def in_recipe(run: Run, plan: Plan) -> list[str]:
    """The same for the recipe alone."""
    there = flatten(read_kept(run.stage, run.recipe))
    here = flatten(plan.recipe.model_dump(mode="json"))
    keys = [key for key in {**there, **here} if not _is_same(there.get(key), here.get(key))]
    return [f"  {key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys]


def _is_same(there: object, here: object) -> bool:
    """Equal, or absolute paths to one file or folder."""
    paths = [value for value in (there, here) if isinstance(value, str) and os.path.isabs(value)]
    return there == here or (len(paths) == 2 and same_place(*paths))


def refuse_another(run: Run, plan: Plan) -> None:
    """A folder that is there must hold just this run."""
    if not run.recipe.is_file():
        raise UserError(f"{run.folder} is there and is not a run; choose another --name")
    found = differences(run, plan)
    if found:
        refuse(run, found, "with another recipe" if in_recipe(run, plan) else "from other inputs")


def refuse(run: Run, found: list[str], what: str = "with another recipe") -> NoReturn:
    raise UserError(
        f"{run.stage} {run.name!r} is there, {what}; choose another --name.\n"
        + "\n".join(found[:8] + ["  …"] * (len(found) > 8))
    )
