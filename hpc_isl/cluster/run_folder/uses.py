"""The runs that read a plate or use a model, and what changed since they were planned."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hpc_isl.cluster.run_folder import status
from hpc_isl.errors import UserError
from hpc_isl.files import among_readers, read_json
from hpc_isl.metadata_changes import LOCK, MetadataChange, changed_since, changes_of, metadata_changed
from hpc_isl.plate_home import home_of
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import RECIPES, kept_keys
from hpc_isl.run import Plan, Run

SHOWN = 6  # parts of an input that are named
PATIENCE_S = 120.0
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and many files are read


def computing_runs(runs: Iterable[Run]) -> Iterator[Run]:
    """Yields the runs that compute something: of an array its elements."""
    for run in runs:
        elements = [element for element in run.elements() if element.array]
        yield from elements or ([] if run.elements() else [run])


def recipe_of(run: Run) -> dict[str, Any]:
    """Returns the recipe in the run folder; empty where it cannot be read."""
    with suppress(OSError, yaml.YAMLError):
        content = yaml.load(run.recipe.read_text(encoding="utf-8"), Loader)  # noqa: S506  (a safe loader)
        return kept_keys(run.stage, content) if isinstance(content, dict) else {}
    return {}


def _paths(content: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Returns the paths that some keys of a recipe hold, one or a list each."""
    values = [content.get(key) for key in keys]
    return [str(path) for value in values for path in (value if isinstance(value, list) else [value]) if path]


def models_used(run: Run) -> list[Path]:
    """Returns the folders of the runs whose models a run uses, or takes the best of."""
    keys = RECIPES[run.stage].RUNS if run.stage in RECIPES else ()
    return [Path(path) for path in _paths(recipe_of(run), (*keys, "among"))]


def plates_of(run: Run) -> list[Path]:
    """Returns the plates that a run reads; none for one whose recipe cannot be read."""
    record = read_json(run.record) or {}
    if "plates" in record and record.get("planned", True):
        return [Path(path) for path in record["plates"]]
    keys = RECIPES[run.stage].PLATES if run.stage in RECIPES else ()
    return expanded(_paths(recipe_of(run), keys), Path(record.get("cwd", ".")))


def expanded(paths: Iterable[str], folder: Path) -> list[Path]:
    """Returns absolute paths of what a recipe names that was typed in `folder`, with globs expanded."""
    absolute = []
    for pattern in paths:
        path = os.path.join(folder, os.path.expanduser(pattern))
        absolute += sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    return [Path(os.path.abspath(path)) for path in absolute]


def readers(plate: Path, runs: Iterable[Run]) -> list[Run]:
    """Returns the runs, and elements of arrays, that read this plate, by whatever path."""

    def is_plate(path: Path) -> bool:
        with suppress(OSError):
            return os.path.samefile(home_of(plate), home_of(path))
        return False

    return [run for run in computing_runs(runs) if any(map(is_plate, plates_of(run)))]


def refuse_used(plate: Path, runs: Iterable[Run]) -> None:
    """Checks that no run that reads the plate is queued or running.

    Raises:
        UserError: naming those that are.
    """
    statuses = status.statuses(readers(plate, runs))
    living = [
        f"{run.stage} {run.label!r} ({run_status.state})"
        for run, run_status in statuses.items()
        if run_status.alive
    ]
    if living:
        suffix = f" and {len(living) - 5} more" if len(living) > 5 else ""
        raise UserError(f"{plate} is used by {', '.join(living[:5])}{suffix}; wait for the end, or cancel")


def refuse_label_writers(plate: Path, labels: str, runs: Iterable[Run]) -> None:
    """Checks that no run that may write these labels of a plate is queued or running.

    Raises:
        UserError: naming those that are.
    """

    def may_write(run: Run) -> bool:
        recipe = recipe_of(run)
        if run.stage == "annotate":
            return recipe.get("action") in ("import", "draft") and recipe.get("labels") == labels
        # A run of segment may be named after the labels that its model learnt from, and where people draw
        # meanwhile it adds a word.
        return run.stage == "segment" and (
            not recipe.get("labels") or labels.startswith(str(recipe["labels"]))
        )

    statuses = status.statuses([run for run in readers(plate, runs) if may_write(run)])
    if living := [run for run, run_status in statuses.items() if run_status.alive]:
        names = ", ".join(f"{run.stage} {run.label!r} ({statuses[run].state})" for run in living[:5])
        raise UserError(
            f"{plate}: labels {labels!r} may be written by {names}; wait for the end, cancel, or edit others"
        )


def resting_on(plate: Path, fingerprint: str, runs: Iterable[Run]) -> list[Run]:
    """Returns the runs that were planned while the plate had this fingerprint; an array itself, once."""
    planned = [run for run in readers(plate, runs) if fingerprint in inputs_of(run).values()]
    return list(dict.fromkeys(run.array or run for run in planned))


@contextmanager
def in_use(recipe: Recipe) -> Iterator[None]:
    """Keeps the metadata of the plates that a recipe uses from being changed while the block lasts.

    Raises:
        UserError: they are being changed just now.
    """
    with ExitStack() as stack:
        for plate in map(home_of, recipe.plates_read()):
            # A plate that convert is about to make has no metadata to keep yet.
            if (plate / "zarr.json").exists() and not stack.enter_context(
                among_readers(plate / LOCK, PATIENCE_S)
            ):
                raise UserError(
                    f"{plate}: its metadata are being changed just now; resume this run after that"
                )
        yield


# ---------------------------------------------------------------- what has changed since


def inputs_of(run: Run) -> Mapping[str, str]:
    """Returns name -> fingerprint of what the run was planned from."""
    return dict((read_json(run.record) or {}).get("inputs", {}))


def changed(run: Run, changes: Callable[[Path], Iterable[MetadataChange]] = changes_of) -> list[str]:
    """Returns `metadata of P01 changed: …` for each plate of the run or of its elements, each line once.

    `changes`: `changes_of`, or what remembers its answers: many runs share a plate.
    """
    lines: dict[str, None] = {}
    for member in computing_runs([run]):
        if inputs := inputs_of(member):
            lines |= dict.fromkeys(metadata_changed(plates_of(member), inputs.values(), changes))
    return list(lines)


def refuse_changed(run: Run) -> None:
    """Checks that figures of a run do not rest on metadata of before and after a change.

    Raises:
        UserError: metadata of one of its plates changed since it was planned.
    """
    if lines := changed(run):
        raise UserError(
            f"{'; '.join(lines)}, after {run.label!r} was planned: it would mix what it computed before with "
            "what it would now; start it again under another --name"
        )


def differing_inputs(pairs: Sequence[tuple[Run, Plan]]) -> list[str]:
    """Returns a line for each input that is not what these runs, taken together, were planned from."""
    plates = dict.fromkeys(plate for _, plan in pairs for plate in plan.recipe.plates_read())
    changes = [changes_of(plate) for plate in plates]
    parts = _differing_parts(pairs)
    lines: dict[str, None] = {}  # as a set in order: many elements share an input
    for run, plan in pairs:
        for name, (before, here) in _differing_fingerprints(run, plan).items():
            fingerprints = [before] if before else []
            if metadata := [line for change in changes for line in changed_since(change, fingerprints)]:
                lines[f"  metadata of {name} changed since: {'; '.join(metadata)}"] = None
            elif name in parts:
                lines |= dict.fromkeys(parts[name])
            else:
                lines[f"  contents of {name}: {before!r} there, {here!r} here"] = None
    return list(lines)


def _differing_fingerprints(run: Run, plan: Plan) -> dict[str, tuple[str | None, str | None]]:
    """Returns name -> fingerprint when planned and now, where they differ."""
    before = inputs_of(run)
    pairs = {name: (before.get(name), plan.inputs.get(name)) for name in {**before, **plan.inputs}}
    pairs = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    former_inputs = plan.former_fingerprints() if pairs else {}  # earlier versions noted some otherwise
    return {
        name: pair for name, pair in pairs.items() if pair[0] is None or pair[0] != former_inputs.get(name)
    }


def _differing_parts(pairs: Sequence[tuple[Run, Plan]]) -> dict[str, list[str]]:
    """Returns what became of the parts of inputs that consist of many, where both sides know them."""
    before, here = dict[str, dict[str, str]](), dict[str, dict[str, str]]()
    for run, plan in pairs:
        for name, saved_parts in (read_json(run.record) or {}).get("parts", {}).items():
            before.setdefault(name, {}).update(saved_parts)
        for name, parts in plan.parts.items():
            here.setdefault(name, {}).update(parts)
    return {name: _part_lines(name, before[name], here[name]) for name in before.keys() & here.keys()}


def _part_lines(name: str, before: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    fates = {
        "new": sorted(here.keys() - before.keys()),
        "gone": sorted(before.keys() - here.keys()),
        "changed": sorted(part for part in here.keys() & before.keys() if before[part] != here[part]),
    }
    lines = []
    for fate, parts in fates.items():
        if parts:
            suffix = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
            lines.append(f"  {name}: {len(parts)} {fate}: {'; '.join(parts[:SHOWN])}{suffix}")
    return lines or [f"  {name}: others are taken than there"]
