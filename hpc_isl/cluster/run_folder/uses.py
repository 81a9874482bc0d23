"""Which runs read a plate or use a model, and what of them rests on metadata that have changed since."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hpc_isl.cluster.run_folder import status
from hpc_isl.errors import UserError
from hpc_isl.files import among_readers, read_json
from hpc_isl.metadata_changes import LOCK, changed_since, changes_of, metadata_changed
from hpc_isl.recipes import former
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import RECIPES
from hpc_isl.run import Plan, Run

SHOWN = 6  # parts of an input that are named
PATIENCE_S = 120.0
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and many are read


def each(runs: Iterable[Run]) -> Iterator[Run]:
    """The runs that compute something: of an array its elements."""
    for run in runs:
        own = [one for one in run.elements() if one.array]
        yield from own or ([] if run.elements() else [run])


# ---------------------------------------------------------------- plates


def plates_of(run: Run) -> list[Path]:
    """The plates that a run reads; none for one whose recipe cannot be read."""
    keys = RECIPES[run.stage].PLATES if run.stage in RECIPES else ()
    record = read_json(run.record) or {}
    if "plates" in record and record.get("planned", True):
        return [Path(path) for path in record["plates"]]
    content = recipe_of(run)
    given = [content.get(key) for key in keys]
    paths = [str(path) for value in given for path in (value if isinstance(value, list) else [value]) if path]
    return expanded(paths, Path(record.get("cwd", ".")))


def expanded(paths: Iterable[str], folder: Path) -> list[Path]:
    """Absolute paths of what a recipe names that was typed in a folder, with globs expanded."""
    found = []
    for text in paths:
        path = os.path.join(folder, os.path.expanduser(text))
        found += sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    return [Path(os.path.abspath(path)) for path in found]


def readers(plate: Path, runs: Iterable[Run]) -> list[Run]:
    """The runs, and elements of arrays, that read this plate, by whatever path."""
    return [run for run in each(runs) if any(_same(plate, path) for path in plates_of(run))]


def refuse_used(plate: Path, runs: Iterable[Run]) -> None:
    """No run that reads the plate is queued or running.

    Raises:
        UserError: naming those that are.
    """
    found = status.statuses(readers(plate, runs))
    living = [f"{run.stage} {run.label!r} ({state.state})" for run, state in found.items() if state.alive]
    if living:
        more = f" and {len(living) - 5} more" if len(living) > 5 else ""
        raise UserError(f"{plate} is used by {', '.join(living[:5])}{more}; wait for the end, or cancel")


def resting_on(plate: Path, fingerprint: str, runs: Iterable[Run]) -> list[Run]:
    """The runs that were planned while the plate had this fingerprint; of an array itself, once."""
    found = [run for run in readers(plate, runs) if fingerprint in inputs_of(run).values()]
    return list(dict.fromkeys(run.array or run for run in found))


@contextmanager
def in_use(recipe: Recipe) -> Iterator[None]:
    """While the block lasts, no one changes the metadata of the plates that a recipe uses.

    Raises:
        UserError: someone does so just now.
    """
    with ExitStack() as stack:
        for plate in recipe.plates_read():
            if (plate / "zarr.json").exists() and not stack.enter_context(
                among_readers(plate / LOCK, PATIENCE_S)
            ):
                raise UserError(
                    f"{plate}: its metadata are being changed just now; resume this run after that"
                )
        yield


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


# ---------------------------------------------------------------- what has changed since


def inputs_of(run: Run) -> Mapping[str, str]:
    """Name -> fingerprint of what the run was planned from."""
    return dict((read_json(run.record) or {}).get("inputs", {}))


def changed(run: Run) -> list[str]:
    """`metadata of P01 changed: …`, for each plate of the run of which that is so since it was planned."""
    known = inputs_of(run)
    return metadata_changed(plates_of(run), known.values()) if known else []


def changed_of(run: Run) -> list[str]:
    """The same of a run or an array, each line once."""
    return list(dict.fromkeys(line for one in each([run]) for line in changed(one)))


def refuse_changed(run: Run) -> None:
    """Figures of a run never rest on metadata of before and after a change.

    Raises:
        UserError: metadata of one of its plates changed since it was planned.
    """
    if lines := changed(run):
        raise UserError(
            f"{'; '.join(lines)}, after {run.label!r} was planned: it would mix what it computed before with "
            "what it would now; start it again under another --name"
        )


def differing_inputs(pairs: Sequence[tuple[Run, Plan]]) -> Iterator[str]:
    """A line for each input that is not what these runs, taken together, were planned from."""
    changes = [
        changes_of(plate) for plate in {p: None for _, plan in pairs for p in plan.recipe.plates_read()}
    ]
    inputs = [(name, *pair) for run, plan in pairs for name, pair in _inputs_apart(run, plan).items()]
    parts = {name: list(lines) for name, lines in _differing_parts(pairs)}
    said: dict[str, None] = {}
    for name, there, here in inputs:
        if lines := [line for one in changes for line in changed_since(one, [there] if there else [])]:
            said[f"  metadata of {name} changed since: {'; '.join(lines)}"] = None
        elif name in parts:
            said |= dict.fromkeys(parts[name])
        else:
            said[f"  contents of {name}: {there!r} there, {here!r} here"] = None
    yield from said


def _inputs_apart(run: Run, plan: Plan) -> dict[str, tuple[str | None, str | None]]:
    """Name -> fingerprint there and here, where they differ; earlier versions noted some otherwise."""
    there = inputs_of(run)
    apart = {name: (there.get(name), plan.inputs.get(name)) for name in {**there, **plan.inputs}}
    apart = {name: pair for name, pair in apart.items() if pair[0] != pair[1]}
    former = plan.former() if apart else {}
    return {name: pair for name, pair in apart.items() if pair[0] is None or pair[0] != former.get(name)}


def _differing_parts(pairs: Sequence[tuple[Run, Plan]]) -> Iterator[tuple[str, Iterator[str]]]:
    """Inputs that consist of many, where that is known on both sides, and what became of their parts."""
    there, here = dict[str, dict[str, str]](), dict[str, dict[str, str]]()
    for run, plan in pairs:
        for name, own in (read_json(run.record) or {}).get("parts", {}).items():
            there.setdefault(name, {}).update(own)
        for name, parts in plan.parts.items():
            here.setdefault(name, {}).update(parts)
    for name in there.keys() & here.keys():
        yield name, _fates(name, there[name], here[name])


def _fates(name: str, there: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    fates = {
        "new": sorted(here.keys() - there.keys()),
        "gone": sorted(there.keys() - here.keys()),
        "changed": sorted(part for part in here.keys() & there.keys() if there[part] != here[part]),
    }
    for fate, parts in fates.items():
        if parts:
            more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
            yield f"  {name}: {len(parts)} {fate}: {'; '.join(parts[:SHOWN])}{more}"
    if not any(fates.values()):
        yield f"  {name}: others are taken than there"


def runs_named(run: Run) -> list[Path]:
    """The folders of the runs whose models a run uses, or takes the best of."""
    keys = RECIPES[run.stage].RUNS if run.stage in RECIPES else ()
    content = recipe_of(run)
    given = [content.get(key) for key in (*keys, "among")]
    return [Path(path) for value in given for path in (value if isinstance(value, list) else [value]) if path]


def recipe_of(run: Run) -> dict[str, Any]:
    """The recipe as it is kept; empty where it cannot be read."""
    with suppress(OSError, yaml.YAMLError):
        content = yaml.load(run.recipe.read_text(encoding="utf-8"), Loader)  # noqa: S506  (a safe loader)
        return former.kept(run.stage, content) if isinstance(content, dict) else {}
    return {}
