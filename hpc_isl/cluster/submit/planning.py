"""A request is planned: its site, the runs it names, its elements, what each would do and how long it takes.

Times come from steps that were timed on the same machine, or that are tried for ten seconds.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

from hpc_isl import device
from hpc_isl.cluster.executors import local
from hpc_isl.cluster.executors.local import StopRequests
from hpc_isl.cluster.monitor import status_table
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.monitor.status_table import duration
from hpc_isl.cluster.run_folder import folders, status, submissions, uses
from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.run_folder.job import Job, in_allocation
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.errors import UserError
from hpc_isl.files import identity, read_json, same_place
from hpc_isl.recipes.base import Arrangement, Recipe
from hpc_isl.recipes.load import read_kept
from hpc_isl.recipes.strict import flatten, to_yaml
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site, cpus_here, gpus_here
from hpc_isl.stages.stage_table import is_alone, is_pooled, stage_named
from hpc_isl.tasks import Estimate, Timed, estimate


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
        name: folders.resolved(recipe, *roots) for name, recipe in request.elements.items()
    }
    return replace(request, recipe=folders.resolved(request.recipe, *roots), elements=elements)


def arranged(request: RunRequest, run: Run) -> RunRequest:
    """Returns an array with the elements that its stage makes of what is swept over."""
    arrange = getattr(stage_named(request.stage).load(), "arrange", None) if request.elements else None
    if arrange is None:
        return request
    arrangement: Arrangement = arrange(request.elements, run.folder)
    elements = {name: recipe for name, recipe in arrangement.elements.items() if name != arrangement.last}
    if arrangement.last:  # behind all others, as Slurm's job of it is submitted
        elements[arrangement.last] = arrangement.elements[arrangement.last]
    return replace(request, elements=elements, final_element=arrangement.last, messages=arrangement.messages)


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
    path_identity = cache(identity)  # it asks the file system, and elements share most of their paths
    for name, plan in by_name.items() if request.elements else ():
        for path, output in plan.claims():
            if (owner := owners.setdefault((path_identity(path), output), name)) != name:
                raise UserError(
                    f"elements {owner!r} and {name!r} would both write {output} in {path}: give each its own"
                )
    return by_name


def unfinished(after: tuple[Run, ...]) -> tuple[Run, ...]:
    """Returns those runs, or elements of arrays, that are not done.

    Raises:
        UserError: one of them will never be done.
    """
    statuses = status.statuses([member for run in after for member in run.elements() or [run]])
    for run, run_status in statuses.items():
        if run_status.state != RunState.DONE and not run_status.alive:
            raise UserError(
                f"--after {run.label}: it is {run_status.state}, so what waits for it would never start"
            )
    return tuple(run for run, run_status in statuses.items() if run_status.alive)


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
        # For the error alone that a CPU raises: what else the node is, is not known.
        list(device.remarks(key, precision, [device.Device("a node without GPUs")]))
    elif precision in ("bf16", "fp16"):
        yield f"{key}={precision}: the job tells, as it starts, whether its nodes compute that natively"


# ---------------------------------------------------------------- a name that exists


def differences(run: Run, plan: Plan) -> list[str]:
    """Returns lines such as `  train.steps: 20000 there, 300 here`, for recipe and inputs."""
    return [*recipe_differences(run, plan), *uses.differing_inputs([(run, plan)])]


def recipe_differences(run: Run, plan: Plan) -> list[str]:
    """Returns these lines for the recipe alone."""
    saved_values = flatten(read_kept(run.stage, run.recipe))
    requested_values = flatten(plan.recipe.model_dump(mode="json"))

    def is_same(key: str) -> bool:
        values = saved_values.get(key), requested_values.get(key)
        paths = [value for value in values if isinstance(value, str) and os.path.isabs(value)]
        return values[0] == values[1] or (len(paths) == 2 and same_place(*paths))

    keys = [key for key in {**saved_values, **requested_values} if not is_same(key)]
    return [f"  {key}: {saved_values.get(key)!r} there, {requested_values.get(key)!r} here" for key in keys]


def refuse_no_run(run: Run) -> None:
    """Checks that an existing folder holds a run, or an array.

    Raises:
        UserError: it does not, or another process is making it, or was killed while it did.
    """
    if not run.recipe.is_file():
        raise UserError(
            f"{run.folder} exists and is not a run, or one whose making was cut off; choose another --name"
        )


def refuse_other_run(run: Run, plan: Plan) -> None:
    """Checks that an existing folder holds just this run.

    Raises:
        UserError: it holds another one; with the differences.
    """
    if lines := differences(run, plan):
        other_recipe = recipe_differences(run, plan)
        refuse(run, lines, "with another recipe" if other_recipe else "from other inputs")


def refuse(run: Run, lines: list[str], how: str = "with another recipe") -> NoReturn:
    """Raises a `UserError` about a run that exists, with the first of these lines."""
    first_lines = "\n".join(lines[:8] + ["  …"] * (len(lines) > 8))
    raise UserError(f"{run.stage} {run.name!r} exists, {how}; choose another --name.\n{first_lines}")


# ---------------------------------------------------------------- what a dry run prints


def plan_lines(request: RunRequest, plan: Plan, run: Run) -> Iterator[str]:
    """Yields recipe, inputs, resources, and on Slurm the sbatch file and the start that it expects."""
    yield f"# recipe of {request.stage}"
    yield to_yaml(plan.recipe).rstrip()
    yield from ("", "# what would be done", *request.messages, *plan.messages)
    if request.elements:
        names = [name for name in request.elements if name != request.final_element]
        yield f"{len(names)} times, with {'; '.join(names[:12])}" + (" …" if len(names) > 12 else "")
    if request.final_element:
        yield f"then {request.final_element}, when all of these have ended"
    yield from (f"reads {name}, fingerprint {fingerprint}" for name, fingerprint in plan.inputs.items())
    yield from (f"makes {path}" for path in plan.makes)
    yield from ("", "# where", resources(request.site), f"run folder {run.folder}")
    if request.site.executor != "slurm":
        return
    from hpc_isl.cluster.executors import slurm

    runs = [request.element(run, name) for name in request.elements or ()] or [run]
    jobs = tuple(Job.of(member, 0) for member in runs)  # with a number, because a new attempt makes a folder
    batch = slurm.Batch(run, 0, jobs, has_final_job=request.final_element is not None)
    parts = slurm.parts(batch, request.site)
    parts_text = f", the first of {len(parts)}" if len(parts) > 1 else ""
    yield from ("", f"# sbatch{parts_text}", slurm.text(batch, request.site).rstrip())
    yield from ("", "# start", slurm.start_time(batch, request.site))


def resources(site: Site) -> str:
    """Returns `2 processes on this machine, 1 GPU, at most 12h`."""
    if site.workers is None:
        processes = count(site.ranks, "process", "es")
    elif site.workers:  # of a pooled stage its worker processes: as many as were asked for
        processes = count(site.workers, "worker process", "es") + (" each" if site.nodes > 1 else "")
    else:
        processes = f"a worker process for each {'GPU' if site.visible_gpus else 'CPU'}"
    parts = [
        f"{processes} on {'this machine' if site.executor == 'local' else count(site.nodes, 'Slurm node')}"
    ]
    parts += [f"{count(site.cpus, 'CPU')} each"] if site.cpus else []
    parts.append(f"{count(site.visible_gpus, 'GPU')} per node" if site.visible_gpus else "no GPU")
    parts += [f"{site.memory} per node"] if site.memory else []
    parts += [f"at most {site.time}"] if site.time else []
    return ", ".join(parts)


def count(number: int, noun: str, plural: str = "s") -> str:
    """Returns `1 GPU`, `2 GPUs`."""
    return f"{number} {noun}{plural if number > 1 else ''}"


# ---------------------------------------------------------------- how long it takes


def time_lines(request: RunRequest, plans: Mapping[str, Plan], roots: Sequence[Path]) -> Iterator[str]:
    """Yields what to say about the time that a request takes; nothing for stages that are not timed."""
    workloads = [plan.workload for plan in plans.values() if plan.workload]
    if not workloads:
        return
    machine = submissions.machine(request.site, _cpus(request.site))
    work_kinds = {json.dumps(work.like): work.like for work in workloads}  # often all elements of an array
    timings = {kind: submissions.timings(roots, like, machine) for kind, like in work_kinds.items()}
    estimates = [
        time
        for work in workloads
        if (time := estimate(work, timings[json.dumps(work.like)], _processes(request))) is not None
    ]
    if len(estimates) == len(workloads):
        yield _message(request, estimates)
    else:
        hint = "" if request.site.executor == "slurm" else "; --dry-run --time tries it for ten seconds"
        yield f"time: not known, because nothing like it was timed on such a machine yet{hint}"


def _message(request: RunRequest, times: Sequence[Estimate]) -> str:
    """Returns `time: about 12 min (…)`; of an array, of one element and of all."""
    sources = list(dict.fromkeys(source for time in times for source in time.sources))
    basis = f"timed in {', '.join(map(repr, sources[:3]))}" if sources else "tried just now"
    basis += ", without waiting in the queue" if request.site.executor == "slurm" else ""
    if not request.elements:
        parts = ", ".join(f"{phase} {duration(s)}" for phase, s in times[0].seconds.items() if s >= 1)
        return f"time: about {duration(times[0].total)} ({'; '.join(filter(None, [parts, basis]))})"
    site, total = request.site, sum(time.total for time in times)
    slots = local.slots(site) if site.executor == "local" else site.array or len(times)
    at_once = min(len(times), slots)
    # The final element is not planned yet: it is taken to be as long as the longest of the others.
    final = max(time.total for time in times) if request.final_element else 0.0
    average = f"{len(times)} elements, {duration(total / len(times))} each on average"
    return f"time: about {duration(total / at_once + final)}, {at_once} at once ({average}; {basis})"


def _processes(request: RunRequest) -> int:
    """Returns the number of processes that share the units of a run."""
    site = request.site
    if not is_pooled(request.stage):
        return site.ranks
    return site.nodes * (site.workers or site.visible_gpus or _cpus(site))


def _cpus(site: Site) -> int:
    """Returns the CPUs of each process."""
    default_cpus = max(1, cpus_here() // site.ranks) if site.executor == "local" else 1
    return site.cpus or default_cpus


# ---------------------------------------------------------------- a trial


def try_it(request: RunRequest, plans: Mapping[str, Plan], console: Console) -> str:
    """Tries the largest part of a request for ten seconds, in a folder that is removed afterwards.

    Returns:
        What to say about the time that the request takes.

    Raises:
        UserError: there is nothing to try, or it would be tried on another machine than computes.
    """
    workloads = {name: plan.workload for name, plan in plans.items() if plan.workload}
    if not workloads:
        raise UserError(f"--time: {request.stage} has no steps that could be tried")
    if request.site.executor == "slurm":
        raise UserError(
            "--time: this machine would be timed, not the nodes of the cluster; a first run there tells, or "
            "--site allocation inside a job"
        )
    largest = max(workloads, key=lambda name: sum(workloads[name].units.values()))
    console.log(f"trying {largest if request.elements else request.stage} for ten seconds …")
    trial_phases = _run_trial(request, plans[largest], console)
    times = [estimate(work, [("", trial_phases)], _processes(request)) for work in workloads.values()]
    if None in times:
        raise UserError("--time: the trial ended before every phase of the run was tried")
    return _message(request, [replace(time, sources=()) for time in times if time])


def _run_trial(request: RunRequest, plan: Plan, console: Console) -> Timed:
    """Returns the phases that a trial has timed."""
    with tempfile.TemporaryDirectory(prefix="hpc_isl-trial-") as folder:
        run = Run(Path(folder) / request.stage / "trial")
        shorten = getattr(stage_named(request.stage).load(), "trial_recipe", lambda recipe: recipe)
        site = request.site.model_copy(update={"tracking": "none", "group": None})
        trial_request = replace(request, site=site, elements=None, final_element=None, after=())
        folders.make(run, trial_request, replace(plan, recipe=shorten(plan.recipe)), console.argv)
        run.trial.touch()  # before its ranks start, which look at it
        job = Job.of(run)
        compute = local.compute_in_allocation if site.executor == "allocation" else local.compute
        with StopRequests().listening() as requests:
            compute(job, site, requests, console.log, lambda: None)
        if requests.interrupted:
            raise KeyboardInterrupt
        record = read_json(job.attempt_folder / submissions.FILE)
        if record is None:
            raise UserError("\n".join(["--time: the trial failed:", *status_table.failure_text(run)]))
        phases: Timed = record["phases"]
        return phases
