"""Names of runs: by folder, by short name, or by stage and name."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes.base import Recipe
from hpc_isl.run import Run
from hpc_isl.site import folders_of_runs

ELSEWHERE = "Runs elsewhere are found by --root DIR, --site NAME or HPC_ISL_RUNS"


def all_runs(root: Path) -> list[Run]:
    """Returns every run folder `<stage>/<name>/` below `root`, oldest first; none that was removed."""
    runs = (Run(path.parent) for path in root.glob("*/*/recipe.yaml"))
    existing = [run for run in runs if not run.removed_file.exists()]
    return sorted(existing, key=lambda run: (run.origin(), run.name))


def find(name: str, *roots: Path) -> Run:
    """Returns a run by path, by name, or by `stage/name` where two stages have runs of one name.

    An element of an array is found by the array's name and its own: `seeds/seed=0`.

    Args:
        roots: folders of runs. A run in the first one is meant before runs in others.

    Raises:
        UserError: there is no such run, with the folders that were looked into; or there are several.
    """
    for folder in (Path(name), *(root / name for root in roots)):
        if (folder / "recipe.yaml").is_file():
            # A link to a run folder has another name, and lies in no folder of a stage.
            run = Run(Path(os.path.realpath(folder) if folder.is_symlink() else os.path.abspath(folder)))
            refuse_removed(run.array or run)
            return run
    known = [run for root in roots for run in all_runs(root)]
    array, _, element = name.partition("/")
    arrays = [run for run in known if run.name == array]
    labels = {member.name: member for run in arrays for member in run.elements() if member.array}
    if element and labels:
        if element in labels:
            return labels[element]
        raise UserError(f"{name!r}: no such element; {nearest(element, labels)}")
    return _only_one(name, [run for run in known if run.name == name], known, roots)


def _only_one(name: str, named: Sequence[Run], known: Sequence[Run], roots: Sequence[Path]) -> Run:
    own = [run for run in named if run.root == roots[0]] or named
    if not own:
        for word in (name, name.partition("/")[0]):
            for folder in (path for root in roots for path in root.glob(f"*/{glob.escape(word)}")):
                refuse_removed(Run(folder))
        names = dict.fromkeys(run.name for run in reversed(known))
        raise UserError(f"{name!r}: no such run in {listed(roots)}; {nearest(name, names)}. {ELSEWHERE}")
    if len({run.root for run in own}) > 1:
        where = listed(list(dict.fromkeys(run.root for run in own)))
        raise UserError(f"{name!r}: there is such a run in {where}; add --site NAME, or write its folder")
    if len(own) > 1:
        raise UserError(f"{name!r}: two stages have such a run; write {' or '.join(map(_long, own))}")
    return own[0]


def refuse_removed(run: Run) -> None:
    """Checks that the files of the run were not removed.

    Raises:
        UserError: they were.
    """
    if facts := run.removed:
        when = facts["time"][:10]
        raise UserError(f"{run.stage} {run.name!r} was removed on {when}; {run.folder} tells what it was")


def listed(roots: Sequence[Path]) -> str:
    """Returns `/home/me/runs, /shared/runs (site mycluster)`."""
    sites = folders_of_runs()
    return ", ".join(
        f"{root} (site {', '.join(sites[root])})" if sites.get(root) else str(root) for root in roots
    )


def resolved(recipe: Recipe, *roots: Path) -> Recipe:
    """Returns the recipe with the runs that it names as folders: its stage does not know `roots`."""
    changes: dict[str, Any] = {}
    for key in recipe.RUNS:
        given = getattr(recipe, key)
        if isinstance(given, list):
            changes[key] = [find(str(name), *roots).folder for name in given]
        elif given is not None:
            changes[key] = find(str(given), *roots).folder
    return recipe.model_copy(update=changes) if changes else recipe


def _long(run: Run) -> str:
    return f"{run.stage}/{run.name}"


def address(run: Run, *roots: Path) -> str:
    """Returns how to write the run on a command line: its name where that is unique, else its path."""
    for name in (run.label, _long(run)):
        with suppress(UserError):
            if find(name, *roots).folder == run.folder:
                return shlex.quote(name)
    return shlex.quote(str(run.folder))


def some(names: list[str], *roots: Path) -> list[Run]:
    """Returns the runs that are named, or all below `roots`."""
    if names:
        return [find(name, *roots) for name in names]
    return [run for root in roots for run in all_runs(root)]


def valid_name(name: str) -> str:
    """Returns the name, if it can be a folder, a job's name and a word on a command line."""
    if not re.fullmatch(r"[^\s./%-][^/%\x00-\x1f]{0,99}", name) or name != name.strip():
        raise UserError(
            f"--name {name!r}: a run's name begins with a letter or digit, holds no '/', '%' or line break "
            "and at most 100 characters"
        )
    return name


def default_name(stage: str, root: Path) -> str:
    """Returns `pretrain-20260131-2`: stage, day, and a number that is free."""
    number = 1
    while (root / stage / f"{stage}-{date.today():%Y%m%d}-{number}").exists():
        number += 1
    return f"{stage}-{date.today():%Y%m%d}-{number}"
