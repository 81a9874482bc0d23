"""`--dry-run --time`: ten seconds of the work, in a folder that is thrown away, say how long it takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hpc_isl.cluster.executors import allocation, local
from hpc_isl.cluster.executors.supervise import Requests
from hpc_isl.cluster.monitor import status_table
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import create, timings
from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.job import Job
from hpc_isl.cluster.submit import estimates
from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.run import Plan, Run
from hpc_isl.stages.stage_table import stage_named
from hpc_isl.timing import Estimate, Timed, estimate


def line(order: RunRequest, plans: Mapping[str, Plan], console: Console) -> str:
    """What to say of the time that an order takes, after a trial of its largest part.

    Raises:
        UserError: there is nothing to try, or it would be tried on another machine than computes.
    """
    works = {name: plan.workload for name, plan in plans.items() if plan.workload}
    if not works:
        raise UserError(f"--time: {order.stage} has no steps that could be tried")
    if order.site.executor == "slurm":
        raise UserError(
            "--time: this machine would be timed, not the nodes of the cluster; a first run there tells, or "
            "--site allocation inside a job"
        )
    largest = max(works, key=lambda name: sum(works[name].units.values()))
    console.log(f"trying {largest if order.elements else order.stage} for ten seconds …")
    timed = _tried(order, plans[largest], console)
    found: list[Estimate] = []
    for work in works.values():
        if (each := estimate(work, [("", timed)], estimates.processes(order))) is None:
            raise UserError("--time: the trial ended before every phase of the run was tried")
        found.append(replace(each, sources=()))
    return estimates.said(order, found)


def _tried(order: RunRequest, plan: Plan, console: Console) -> Timed:
    """The phases that the trial has timed."""
    with tempfile.TemporaryDirectory(prefix="hpc_isl-trial-") as folder:
        run = Run(Path(folder) / order.stage / "trial")
        shortened = getattr(stage_named(order.stage).load(), "trial_recipe", lambda recipe: recipe)
        site = order.site.model_copy(update={"tracking": "none", "group": None})
        single = replace(order, site=site, elements=None, last=None, after=())
        create.make(run, single, replace(plan, recipe=shortened(plan.recipe)), console.argv)
        run.trial.touch()
        job = Job.of(run)
        compute = allocation.compute if site.executor == "allocation" else local.compute
        with Requests().listening() as requests:
            compute(job, site, requests, console.log, lambda: None)
        if requests.interrupted:
            raise KeyboardInterrupt
        timed = read_json(run.attempts / str(job.attempt) / timings.FILE)
        if timed is None:
            raise UserError("\n".join(["--time: the trial failed:", *status_table.failure_text(run)]))
        phases: Timed = timed["phases"]
        return phases
