"""How runs are named: by folder, by short name, or by stage and name."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.recipes.base import Recipe
from hpc_isl.run import Run


def all_runs(root: Path) -> list[Run]:
    """Every run folder `<stage>/<name>/` below `root`, oldest first."""
    runs = [Run(path.parent) for path in root.glob("*/*/recipe.yaml")]
    return sorted(runs, key=lambda run: (run.origin(), run.name))


def find(name: str, root: Path) -> Run:
    """A run by path, by name, or by `stage/name` where two stages have runs of one name.

    An element of an array is found by the array's name and its own: `seeds/seed=0`.
    """
    for folder in (Path(name), root / name):
        if (folder / "recipe.yaml").is_file():
            # A link to a run folder has another name, and lies in no folder of a stage.
            return Run(Path(os.path.realpath(folder) if folder.is_symlink() else os.path.abspath(folder)))
    array, _, element = name.partition("/")
    if element and (members := _elements(array, root)):
        labels = {run.name: run for run in members}
        if element in labels:
            return labels[element]
        raise Mistake(f"{name!r}: no such element; {nearest(element, labels)}")
    found = [run for run in all_runs(root) if run.name == name]
    if len(found) > 1:
        raise Mistake(
            f"{name!r}: two stages have such a run; write {' or '.join(map(str, map(_long, found)))}"
        )
    if not found:
        known = [run.name for run in reversed(all_runs(root))]
        raise Mistake(f"{name!r}: no such run in {root}; {nearest(name, known)}")
    return found[0]


def resolved(recipe: Recipe, root: Path) -> Recipe:
    """The same with the runs that it names as folders: whoever computes it does not know `root`."""
    changes: dict[str, Any] = {}
    for key in recipe.RUNS:
        given = getattr(recipe, key)
        if isinstance(given, list):
            changes[key] = [find(str(name), root).folder for name in given]
        elif given is not None:
            changes[key] = find(str(given), root).folder
    return recipe.model_copy(update=changes) if changes else recipe


def _elements(array: str, root: Path) -> list[Run]:
    return [
        member for run in all_runs(root) if run.name == array for member in run.elements() if member.array
    ]


def _long(run: Run) -> str:
    return f"{run.stage}/{run.name}"


def address(run: Run, root: Path) -> str:
    """How to write the run on a command line: its name where that finds it, else its path."""
    for name in (run.label, _long(run)):
        with suppress(Mistake):
            if find(name, root).folder == run.folder:
                return shlex.quote(name)
    return shlex.quote(str(run.folder))


def some(names: list[str], root: Path) -> list[Run]:
    """The runs that are named, or all below `root`."""
    return [find(name, root) for name in names] if names else all_runs(root)


def valid_name(name: str) -> str:
    """A name that can be a folder, a job's name and a word on a command line."""
    if not re.fullmatch(r"[^\s./%-][^/%\x00-\x1f]{0,99}", name) or name != name.strip():
        raise Mistake(
            f"--name {name!r}: a run's name begins with a letter or digit, holds no '/', '%' or line break "
            "and at most 100 characters"
        )
    return name


def default_name(stage: str, root: Path) -> str:
    """`pretrain-20260131-2`: stage, day, and a number that is free."""
    number = 1
    while (root / stage / f"{stage}-{date.today():%Y%m%d}-{number}").exists():
        number += 1
    return f"{stage}-{date.today():%Y%m%d}-{number}"
