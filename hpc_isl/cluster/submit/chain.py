"""A chain of stages: each starts when those before it are done; at a stop it waits for a person."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from hpc_isl import site as sites
from hpc_isl.cluster.monitor import follow, messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import folders, provenance, status
from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.run_folder.job import FAILED
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.submit import launch, planning
from hpc_isl.errors import UserError, nearest
from hpc_isl.files import read_json, write_atomic
from hpc_isl.recipes import load as recipes
from hpc_isl.recipes.base import ChainRecipe, StepRecipe
from hpc_isl.recipes.strict import override, parse, written
from hpc_isl.run import Run
from hpc_isl.site import Site
from hpc_isl.stages.stage_table import stage_named


@dataclass(frozen=True)
class Link:
    """One step of a chain in its place.

    Attributes:
        step: what is asked for.
        name: by which later steps know it.
        after: names of the steps that it waits for.
    """

    step: StepRecipe
    name: str
    after: tuple[str, ...]

    def run(self, chain: Run) -> Run:
        """Returns the run of the step, beside the folder of the chain."""
        return Run(chain.root / str(self.step.stage) / self.name)

    def request(self, site: Site, after: tuple[Run, ...] = ()) -> RunRequest:
        """Returns the run that is asked for; `site` is the chain's, where the step names none."""
        step, stage = self.step, str(self.step.stage)
        recipe = recipes.load(stage, step.recipe, _assignments(step.set))
        if step.site:
            site = sites.load(step.site, _assignments(step.site_set))
        elif step.site_set:
            keys = override(site.model_dump(mode="json"), _assignments(step.site_set))
            site = parse(Site, keys, f"site of the step {self.name}")
        return RunRequest(stage, recipe, planning.site_of(stage, site), self.name, after)


def _assignments(keys: dict[str, object]) -> list[str]:
    return [f"{key}={written(value)}" for key, value in keys.items()]


def links(chain: ChainRecipe, name: str) -> list[Link]:
    """Returns the steps with their names, each after earlier ones only: no circle can be written."""
    step_links: list[Link] = []
    for number, step in enumerate(chain.steps, start=1):
        step_name = step.name or (f"{name}-{step.stage}" if step.stage else f"stop {number}")
        names = [link.name for link in step_links]
        after = step.after if step.after is not None else names[-1:]
        for earlier in after:
            if earlier not in names:
                raise UserError(
                    f"steps.{number - 1}.after: {earlier!r} is no earlier step; {nearest(earlier, names)}"
                )
        if step_name in names:
            raise UserError(
                f"steps.{number - 1}: two steps are called {step_name!r}; give one of them another name"
            )
        if step.stage:
            stage_named(step.stage)
        step_links.append(Link(step, step_name, tuple(after)))
    return step_links


# ---------------------------------------------------------------- start and continue


def start(path: Path, keys: list[str], site: Site, name: str | None, console: Console, wait: bool) -> int:
    """Makes the chain's folder and starts all steps up to the first stop; returns the exit code."""
    run, chain = _new_chain(path, keys, name, console)
    steps = [link for link in links(chain, run.name) if link.step.stage]
    # All of them, before the first is started: a mistake in the last step would come days later.
    for link in steps:
        _refuse_taken(link.request(site), console)
    members = [os.path.relpath(link.run(run).folder, run.folder) for link in steps]
    folders.make_chain(run, chain, site, members, console.argv)
    return continue_chain(run, console, wait)


def show_plan(path: Path, keys: list[str], site: Site, name: str | None, console: Console, wait: bool) -> int:
    """Prints one line per step: what, where, after what; writes nothing. Returns the exit code."""
    run, chain = _new_chain(path, keys, name, console)
    for number, link in enumerate(links(chain, run.name), start=1):
        after = f", after {' and '.join(link.after)}" if link.after else ""
        if link.step.stop:
            console.log(f"{number}. stop{after}: {link.step.stop}")
            continue
        request = link.request(site)
        _refuse_taken(request, console)
        console.log(f"{number}. {request.stage} {link.name!r}{after}: {planning.resources(request.site)}")
    return 0


def _new_chain(path: Path, keys: list[str], name: str | None, console: Console) -> tuple[Run, ChainRecipe]:
    """Returns the folder that the chain will have, and its recipe; a name that is taken is a `UserError`."""
    content, origin = recipes.read("chain", path, keys)
    folder = folders.valid_name(name) if name else folders.default_name("chain", console.root)
    run = Run(console.root / "chain" / folder)
    folders.refuse_removed(run)
    if run.folder.exists():
        next_line = console.command("resume", run)
        raise UserError(f"chain {run.name!r} exists; resume it with {next_line}, or choose another --name")
    chain = parse(ChainRecipe, content, origin)
    recipes.refuse_unused([chain], origin)
    steps = [
        step.model_copy(update={"recipe": Path(os.path.abspath(step.recipe))})
        if step.recipe and step.recipe.exists() else step
        for step in chain.steps
    ]  # fmt: skip
    return run, chain.model_copy(update={"steps": steps})


def _refuse_taken(request: RunRequest, console: Console) -> None:
    """Checks that a run of this name, if there is one, is done and computes the same."""
    run = request.run(console.root)
    if not run.folder.exists():
        return
    if (state := status.status_of(run).state) != RunState.DONE:
        raise UserError(f"{run.stage} {run.name!r} exists and is {state}; give the step another name")
    request = planning.with_run_folders(request, console.roots)
    planning.refuse_other_run(run, planning.planned(request.stage, request.recipe, request.site))


def resume(run: Run, console: Console, wait: bool) -> int:
    """Passes the stop that the chain has come to, and starts again what failed; returns the exit code."""
    if stop := read_json(_open_stop_file(run)):
        by_name = {link.name: link for link in _links(run)}
        runs_before = _runs_before(by_name[str(stop["name"])], by_name, run)
        statuses = status.statuses(runs_before)
        labels = [
            member.label for member, run_status in statuses.items() if run_status.state != RunState.DONE
        ]
        if labels:
            console.log(f"the stop is not passed ({stop['stop']}): {', '.join(labels)} before it is not done")
        else:
            # In this order: a kill between the two does not ask a person for the same stop again.
            write_atomic(_passed_file(run), json.dumps({"stops": [*_stops_passed(run), str(stop["name"])]}))
            _open_stop_file(run).unlink()
    return continue_chain(run, console, wait)


def continue_chain(run: Run, console: Console, wait: bool) -> int:
    """Starts each step whose stops are passed, after those before it; one that failed starts again.

    Returns the exit code.
    """
    record = read_json(run.record) or {}
    site, by_name = sites.saved_site(run.site), {link.name: link for link in _links(run)}
    passed_stops, closed_steps = set(_stops_passed(run)), set[str]()
    with provenance.standing_in(Path(record["cwd"])):
        for link in by_name.values():
            if closed_steps.intersection(link.after):
                closed_steps.add(link.name)
            elif link.step.stop is None:
                if code := _start(link, site, _runs_before(link, by_name, run), console):
                    console.log(f"the chain is resumed with: {console.command('resume', run)}")
                    return code
            elif link.name not in passed_stops:
                closed_steps.add(link.name)
                if not _open_stop_file(run).exists():  # of several open stops, a `resume` passes the first
                    write_atomic(
                        _open_stop_file(run), json.dumps({"name": link.name, "stop": link.step.stop})
                    )
                console.log(f"then a stop: {link.step.stop}; after that: {console.command('resume', run)}")
    console.log(f"chain {run.name!r}: {status.status_of(run).detail}")
    console.log(f"next: {console.command('resume' if closed_steps else 'status', run)}")
    return _wait(run, console) if wait else 0


def _start(link: Link, site: Site, runs_before: list[Run], console: Console) -> int:
    request = link.request(site, tuple(runs_before))
    run = request.run(console.root)
    if not run.folder.exists():
        return launch.launch(planning.with_run_folders(request, console.roots), console, wait=False)
    planning.refuse_no_run(run)
    run_status = status.status_of(run)
    if run_status.state == RunState.DONE or run_status.alive:
        console.log(f"{run.stage} {run.name!r} is {run_status.state}")
        return 0
    return launch.resume(run, request.site, console, False, request.after)


def _wait(run: Run, console: Console) -> int:
    for member in run.elements():
        follow.until_ended(member)
    good_states = (RunState.DONE, RunState.NEW)
    unfinished = {
        element: run_status
        for element, run_status in status.statuses(run.elements()).items()
        if run_status.state not in good_states
    }
    for member, run_status in unfinished.items():
        console.log(f"{member.stage} {member.label!r} is {run_status.state}: {run_status.detail}")
    return FAILED if unfinished else messages.chained(run, console)


# ---------------------------------------------------------------- a chain's folder


def _links(run: Run) -> list[Link]:
    chain = parse(ChainRecipe, recipes.read_kept("chain", run.recipe), str(run.recipe))
    return links(chain, run.name)


def _runs_before(link: Link, by_name: dict[str, Link], run: Run) -> list[Run]:
    """Returns the runs that the step waits for; a passed stop stands for the runs before it."""
    runs_before: dict[Run, None] = {}
    for name in link.after:
        earlier = by_name[name]
        runs = [earlier.run(run)] if earlier.step.stage else _runs_before(earlier, by_name, run)
        runs_before |= dict.fromkeys(runs)
    return list(runs_before)


def _stops_passed(run: Run) -> list[str]:
    return list((read_json(_passed_file(run)) or {}).get("stops", []))


def _passed_file(run: Run) -> Path:
    return run.folder / "passed.json"


def _open_stop_file(run: Run) -> Path:
    return run.folder / "waits.json"
