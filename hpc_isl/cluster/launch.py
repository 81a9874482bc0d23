"""Recipe and site become a run folder and a submitted job."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from hpc_isl.cluster import names, record, report, status
from hpc_isl.cluster.follow import View
from hpc_isl.cluster.forward import forwarding
from hpc_isl.cluster.jobs import ALONE, Job, module_of, stage_module
from hpc_isl.cluster.report import Caller
from hpc_isl.mistake import Mistake
from hpc_isl.recipe import Recipe
from hpc_isl.run import Plan, Run, now, read_json, write_atomic
from hpc_isl.site import Site
from hpc_isl.strict import flatten, read_yaml, to_yaml

LOOK_S = 0.5
ASK_S = 5.0  # between questions to the queue


@dataclass(frozen=True)
class Order:
    """What is asked for: a stage's recipe, where to compute it, and under which name."""

    stage: str
    recipe: Recipe
    site: Site
    name: str | None = None

    def folder(self, root: Path) -> Run:
        """Where the run will lie."""
        name = names.valid_name(self.name) if self.name else names.default_name(self.stage, root)
        return Run(root / self.stage / name)


def order(stage: str, recipe: Recipe, site: Site, name: str | None) -> Order:
    """The order with the part of the site that the stage can use."""
    return Order(stage, recipe, site.alone() if stage in ALONE else site, name)


def dry_run(order: Order, caller: Caller) -> int:
    """Says exactly what would be done, and writes nothing."""
    plan = _planned(order)
    run = order.folder(caller.root)
    finished = _is_finished(run, plan, caller)
    for line in _dry_lines(order, plan, run):
        caller.say(line)
    if finished:
        caller.say(f"nothing would be done: {run.stage} {run.name!r} is finished, with this recipe")
    return 0


def _planned(order: Order) -> Plan:
    """What the stage would do, on as many processes as the site gives it."""
    plan: Plan = stage_module(order.stage).plan(order.recipe)
    plan.check_size(order.site.ranks)
    return plan


def _dry_lines(order: Order, plan: Plan, run: Run) -> Iterator[str]:
    yield f"# recipe of {order.stage}"
    yield to_yaml(plan.recipe).rstrip()
    yield from ("", "# what would be done", *plan.says)
    yield from (f"reads {name}, fingerprint {fingerprint}" for name, fingerprint in plan.inputs.items())
    yield from (f"makes {path}" for path in plan.makes)
    yield from ("", "# where", resources(order.site), f"run folder {run.folder}")
    if order.site.executor == "slurm":
        from hpc_isl.cluster import slurm

        job = Job(order.stage, module_of(order.stage), run.folder, 0)
        yield from ("", "# sbatch", slurm.text(job, order.site).rstrip())
        yield from ("", "# start", slurm.start_time(job, order.site))


def resources(site: Site) -> str:
    """`2 processes on this machine, 1 GPU, at most 12h`."""
    machines = "this machine" if site.executor == "local" else _some(site.nodes, "Slurm node")
    parts = [f"{_some(site.ranks, 'process', 'es')} on {machines}"]
    parts += [f"{_some(site.cpus, 'CPU')} each"] if site.cpus else []
    parts.append(f"{_some(site.visible_gpus, 'GPU')} per node" if site.visible_gpus else "no GPU")
    parts += [f"{site.memory} per node"] if site.memory else []
    parts += [f"at most {site.time}"] if site.time else []
    return ", ".join(parts)


def _some(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number > 1 else ''}"


def launch(order: Order, caller: Caller, wait: bool) -> int:
    """Plans, makes the run folder, submits; the exit code."""
    plan = _planned(order)
    run = order.folder(caller.root)
    for line in plan.says:
        caller.say(line)
    if _is_finished(run, plan, caller):
        caller.say("nothing to do: this run is finished, with this recipe")
        return report.done(run, caller)
    if order.site.executor == "slurm":
        _needs_slurm()
    _make(run, plan, order.site, caller)
    caller.say(f"{order.stage} {run.name!r}: {resources(order.site)}")
    return _submit(run, order.site, caller, wait)


def resume(run: Run, site: Site, caller: Caller, wait: bool) -> int:
    """A new attempt in the same folder, with its recipe."""
    found = status.state(run)
    if found.word == "done":
        caller.say("nothing to do: this run is finished")
        return report.done(run, caller)
    if found.alive:
        raise Mistake(f"{run.name!r} is {found.word} already; follow it: {caller.command('logs', run, '-f')}")
    if site.executor == "slurm":
        _needs_slurm()
    was = (read_json(run.record) or {}).get("code")
    if was != record.code_digest():
        caller.say("the code has changed since this run was made; it goes on with the present code")
    status.cancelled(run).unlink(missing_ok=True)
    caller.say(f"{run.stage} {run.name!r} goes on: {resources(site)}")
    return _submit(run, site, caller, wait)


# ---------------------------------------------------------------- a name that exists


def _is_finished(run: Run, plan: Plan, caller: Caller) -> bool:
    """Whether just this was computed under this name; a name that is taken otherwise is a `Mistake`."""
    if not run.folder.exists():
        return False
    if not run.recipe.is_file():
        raise Mistake(f"{run.folder} is there and is not a run; choose another --name")
    differs = _differences(run, plan)
    if differs:
        raise Mistake(
            f"{run.stage} {run.name!r} is there, with another recipe; choose another --name.\n"
            + "\n".join(differs[:8] + ["  …"] * (len(differs) > 8))
        )
    found = status.state(run)
    if found.word == "done":
        return True
    if found.alive:
        raise Mistake(f"{run.name!r} is {found.word} already; follow it: {caller.command('logs', run, '-f')}")
    raise Mistake(
        f"{run.stage} {run.name!r} is there and {found.word}; go on with {caller.command('resume', run)}, "
        "or choose another --name"
    )


def _differences(run: Run, plan: Plan) -> list[str]:
    """`  train.steps: 20000 there, 300 here`, for recipe and inputs."""
    there = flatten(read_yaml(run.recipe))
    here = flatten(plan.recipe.model_dump(mode="json"))
    known = (read_json(run.record) or {}).get("inputs", {})
    there |= {f"contents of {name}": value for name, value in known.items()}
    here |= {f"contents of {name}": value for name, value in plan.inputs.items()}
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return [f"  {key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys]


# ---------------------------------------------------------------- the run folder and the job


def _make(run: Run, plan: Plan, site: Site, caller: Caller) -> None:
    """The run folder; its recipe last, for a folder without one is no run."""
    try:
        run.folder.mkdir(parents=True)
    except FileExistsError:
        raise Mistake(f"{run.folder} was made by someone else just now; choose another --name") from None
    content = record.record(plan.recipe, plan.inputs, list(caller.argv))
    write_atomic(run.record, json.dumps(content, indent=1))
    if content["diff"]:
        write_atomic(run.folder / "code.diff", record.difference())
    write_atomic(run.site, to_yaml(site))
    write_atomic(run.recipe, to_yaml(plan.recipe))


def _submit(run: Run, site: Site, caller: Caller, wait: bool) -> int:
    job = Job(run.stage, module_of(run.stage), run.folder, run.next_attempt())
    return _to_slurm(job, site, caller, wait) if site.executor == "slurm" else _here(job, site, caller)


def _here(job: Job, site: Site, caller: Caller) -> int:
    """In the foreground, while a process of its own forwards the metrics."""
    from hpc_isl.cluster import local

    run = Run(job.folder)
    me = psutil.Process()
    _note_submission(run, job.attempt, executor="local", pid=me.pid, pid_started=me.create_time())
    with forwarding(run, site):
        ending = local.compute(job, site)
        _note_submission(run, job.attempt, executor="local", ended=now())
    return report.ended(run, ending, caller)


def _to_slurm(job: Job, site: Site, caller: Caller, wait: bool) -> int:
    from hpc_isl.cluster import slurm

    run = Run(job.folder)
    try:
        number = slurm.submit(job, site)
    except Mistake:  # refused: it is as if it had not been asked for
        shutil.rmtree(run.attempts / str(job.attempt) if job.attempt else run.folder, ignore_errors=True)
        raise
    _note_submission(run, job.attempt, executor="slurm", job=number)
    report.queued(run, number, caller)
    return follow(run, caller) if wait else 0


def _note_submission(run: Run, attempt: int, **facts: object) -> None:
    content = {"time": now(), "host": socket.gethostname(), "code": record.code_digest(), **facts}
    write_atomic(run.attempts / str(attempt) / "submission.json", json.dumps(content, indent=1))


def _needs_slurm() -> None:
    if shutil.which("sbatch") is None:
        raise Mistake(
            "this site needs Slurm, and there is no sbatch on this machine; type it on a login node"
        )


def follow(run: Run, caller: Caller, rank: int = 0, everything: bool = False) -> int:
    """Shows what the run says until it has ended; Ctrl-C leaves it running."""
    try:
        _until_ended(run, rank, everything)
    except KeyboardInterrupt:
        caller.say(f"{run.name!r} goes on; to end it: {caller.command('cancel', run)}")
        return report.INTERRUPTED
    return report.waited(run, caller)


def _until_ended(run: Run, rank: int, everything: bool) -> None:
    view = View(run, run.attempt_numbers()[-1], rank, everything)
    asked, alive = -1e9, True
    while alive:
        if run.attempt_numbers()[-1] != view.attempt:  # Slurm has started it again
            view.close()
            view = View(run, run.attempt_numbers()[-1], rank, everything)
        view.tick()
        if time.monotonic() - asked > ASK_S:
            asked, alive = time.monotonic(), status.state(run).alive
        time.sleep(LOOK_S)
    view.close()
