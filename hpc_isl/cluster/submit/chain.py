"""A chain of stages: each starts when those before it are done; at a stop it waits for a person."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_isl import site as sites
from hpc_isl.cluster.monitor import follow, messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import create, names, provenance, status
from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.job import FAILED
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.submit import dry_run, launch, request
from hpc_isl.errors import UserError, nearest
from hpc_isl.files import read_json, write_atomic
from hpc_isl.recipes import load as recipes
from hpc_isl.recipes.many import ChainRecipe, StepRecipe
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


def links(chain: ChainRecipe, name: str) -> list[Link]:
    """The steps with their names, each after earlier ones only: no circle can be written."""
    found: list[Link] = []
    for number, step in enumerate(chain.steps, start=1):
        own = step.name or (f"{name}-{step.stage}" if step.stage else f"stop {number}")
        known = [link.name for link in found]
        after = step.after if step.after is not None else known[-1:]
        for wanted in after:
            if wanted not in known:
                raise UserError(
                    f"steps.{number - 1}.after: {wanted!r} is no earlier step; {nearest(wanted, known)}"
                )
        if own in known:
            raise UserError(
                f"steps.{number - 1}: two steps are called {own!r}; give one of them another name"
            )
        if step.stage:
            stage_named(step.stage)
        found.append(Link(step, own, tuple(after)))
    return found


# ---------------------------------------------------------------- start and go on


def start(path: Path, keys: list[str], site: Site, name: str | None, console: Console, wait: bool) -> int:
    """Makes the chain's folder and starts all steps up to the first stop; the exit code."""
    run, chain = _new(path, keys, name, console)
    chained = links(chain, run.name)
    for link in (link for link in chained if link.step.stage):
        _refuse_taken(_order(link, site, ()), console)
    members = [os.path.relpath(_run_of(link, run), run.folder) for link in chained if link.step.stage]
    create.make_chain(run, chain, site, members, console.argv)
    return continue_chain(run, console, wait)


def show_plan(path: Path, keys: list[str], site: Site, name: str | None, console: Console, wait: bool) -> int:
    """One line per step: what, where, after what; writes nothing."""
    run, chain = _new(path, keys, name, console)
    for number, link in enumerate(links(chain, run.name), start=1):
        after = f", after {' and '.join(link.after)}" if link.after else ""
        if link.step.stop:
            console.log(f"{number}. stop{after}: {link.step.stop}")
            continue
        order = _order(link, site, ())
        _refuse_taken(order, console)
        console.log(f"{number}. {order.stage} {link.name!r}{after}: {dry_run.resources(order.site)}")
    return 0


def _new(path: Path, keys: list[str], name: str | None, console: Console) -> tuple[Run, ChainRecipe]:
    """The folder that the chain will have, and its recipe; a name that is taken is a `UserError`."""
    content, origin = recipes.read("chain", path, keys)
    folder = names.valid_name(name) if name else names.default_name("chain", console.root)
    run = Run(console.root / "chain" / folder)
    names.refuse_removed(run)
    if run.folder.exists():
        next_line = console.command("resume", run)
        raise UserError(f"chain {run.name!r} is there; go on with {next_line}, or choose another --name")
    asked = parse(ChainRecipe, content, origin)
    recipes.refuse_unused([asked], origin)
    return run, _absolute(asked)


def resume(run: Run, console: Console, wait: bool) -> int:
    """Passes the stop that the chain has come to, and starts again what failed."""
    waits = read_json(_waits(run))
    if waits:
        _pass(run, str(waits["name"]), str(waits["stop"]), console)
    return continue_chain(run, console, wait)


def _pass(run: Run, name: str, stop: str, console: Console) -> None:
    chained = {link.name: link for link in links(_chain(run), run.name)}
    before = _runs_before(chained[name], chained, run)
    left = [one.label for one, each in status.statuses(before).items() if each.state != RunState.DONE]
    if left:
        console.log(f"the stop is not passed ({stop}): {', '.join(left)} before it is not done")
        return
    passed = [*(read_json(_passed(run)) or {}).get("stops", []), name]
    write_atomic(_passed(run), json.dumps({"stops": passed}))
    _waits(run).unlink()


def continue_chain(run: Run, console: Console, wait: bool) -> int:
    """Starts each step whose stops are passed, after those before it; one that failed starts again."""
    made = read_json(run.record) or {}
    site, chained = sites.kept(run.site), links(_chain(run), run.name)
    by_name = {link.name: link for link in chained}
    passed, closed = set((read_json(_passed(run)) or {}).get("stops", [])), set[str]()
    with provenance.standing_in(Path(made["cwd"])):
        for link in chained:
            if closed.intersection(link.after):
                closed.add(link.name)
            elif link.step.stop is not None:
                if link.name not in passed:
                    closed.add(link.name)
                    _wait_for_a_person(run, link, console)
            elif code := _start(link, site, _runs_before(link, by_name, run), console):
                console.log(f"the chain goes on with: {console.command('resume', run)}")
                return code
    console.log(f"chain {run.name!r}: {status.status_of(run).detail}")
    console.log(f"next: {console.command('resume' if closed else 'status', run)}")
    return _waited(run, console) if wait else 0


def _start(link: Link, site: Site, before: list[Run], console: Console) -> int:
    order = _order(link, site, tuple(before))
    run = order.run(console.root)
    if not run.folder.exists():
        return launch.launch(request.named(order, console.roots), console, wait=False)
    found = status.status_of(run)
    if found.state == RunState.DONE or found.alive:
        console.log(f"{run.stage} {run.name!r} is {found.state}")
        return 0
    return launch.resume(run, order.site, console, False, order.after)


def _wait_for_a_person(run: Run, link: Link, console: Console) -> None:
    """Of several open stops the first is the one that a `resume` passes."""
    if not _waits(run).exists():
        write_atomic(_waits(run), json.dumps({"name": link.name, "stop": link.step.stop}))
    console.log(f"then a stop: {link.step.stop}; after that: {console.command('resume', run)}")


def _waited(run: Run, console: Console) -> int:
    for member in run.elements():
        follow.until_ended(member)
    bad = {
        one: each
        for one, each in status.statuses(run.elements()).items()
        if each.state not in (RunState.DONE, RunState.NEW)
    }
    for one, each in bad.items():
        console.log(f"{one.stage} {one.label!r} is {each.state}: {each.detail}")
    return FAILED if bad else messages.chained(run, console)


# ---------------------------------------------------------------- a chain and its runs


def _chain(run: Run) -> ChainRecipe:
    return parse(ChainRecipe, recipes.read_kept("chain", run.recipe), str(run.recipe))


def _absolute(chain: ChainRecipe) -> ChainRecipe:
    steps = [
        step.model_copy(update={"recipe": Path(os.path.abspath(step.recipe))})
        if step.recipe and step.recipe.exists() else step
        for step in chain.steps
    ]  # fmt: skip
    return chain.model_copy(update={"steps": steps})


def _order(link: Link, site: Site, after: tuple[Run, ...]) -> RunRequest:
    stage = str(link.step.stage)
    recipe = recipes.load(stage, link.step.recipe, _assignments(link.step.set))
    if link.step.site:
        site = sites.load(link.step.site, _assignments(link.step.site_set))
    elif link.step.site_set:
        keys = override(site.model_dump(mode="json"), _assignments(link.step.site_set))
        site = parse(Site, keys, f"site of the step {link.name}")
    return RunRequest(stage, recipe, request.site_of(stage, site), link.name, after)


def _assignments(keys: dict[str, object]) -> list[str]:
    return [f"{key}={written(value)}" for key, value in keys.items()]


def _refuse_taken(order: RunRequest, console: Console) -> None:
    run = order.run(console.root)
    if not run.folder.exists():
        return
    word = status.status_of(run).state
    if word != "done":
        raise UserError(f"{run.stage} {run.name!r} is there and {word}; give the step another name")
    request.refuse_another(run, request.planned(order.stage, order.recipe, order.site))


def _run_of(link: Link, run: Run) -> Path:
    return run.root / str(link.step.stage) / link.name


def _runs_before(link: Link, chained: dict[str, Link], run: Run) -> list[Run]:
    """What the step waits for; a stop that is passed stands for what was before it."""
    return list(dict.fromkeys(_before(link, chained, run)))


def _before(link: Link, chained: dict[str, Link], run: Run) -> Iterator[Run]:
    for name in link.after:
        if chained[name].step.stage:
            yield Run(_run_of(chained[name], run))
        else:
            yield from _before(chained[name], chained, run)


def _passed(run: Run) -> Path:
    return run.folder / "passed.json"


def _waits(run: Run) -> Path:
    return run.folder / "waits.json"
