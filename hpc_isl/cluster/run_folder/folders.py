"""Folders of runs: how they are named, found and made.

The records come first and the recipe last, because a folder without one is no run.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder import provenance
from hpc_isl.errors import UserError, nearest
from hpc_isl.files import make_folder, read_json, share_with_group, write_atomic
from hpc_isl.recipes.base import ChainRecipe, Recipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site, folders_of_runs

ELSEWHERE = "Runs elsewhere are found by --root DIR, --site NAME or HPC_ISL_RUNS"


class NameTaken(UserError):
    """Another process has made a run of this name since it was found to be free."""


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
    for folder in (Path(os.path.expanduser(name)), *(root / name for root in roots)):
        if os.path.isfile(folder / "recipe.yaml"):  # False also where a root is closed to this user
            # A link to a run folder has another name, and lies in no folder of a stage.
            run = Run(Path(os.path.realpath(folder) if folder.is_symlink() else os.path.abspath(folder)))
            refuse_removed(run.array or run)
            return run
    runs = [run for root in roots for run in all_runs(root)]
    array_name, _, element = name.partition("/")
    arrays = [
        run for run in runs if run.name == array_name and any(member.array for member in run.elements())
    ]
    if element and arrays:
        members = {
            member.name: member for member in _single_match(array_name, arrays, runs, roots).elements()
        }
        if element in members:
            return members[element]
        raise UserError(f"{name!r}: no such element; {nearest(element, members)}")
    return _single_match(name, [run for run in runs if run.name == name], runs, roots)


def _single_match(name: str, matches: Sequence[Run], runs: Sequence[Run], roots: Sequence[Path]) -> Run:
    candidates = [run for run in matches if run.root == roots[0]] or matches
    if not candidates:
        # A run that was removed keeps its folder: that it was is a better answer than that there is none.
        for word in (name, name.partition("/")[0]):
            for folder in (path for root in roots for path in root.glob(f"*/{glob.escape(word)}")):
                refuse_removed(Run(folder))
        names = dict.fromkeys(run.name for run in reversed(runs))
        raise UserError(f"{name!r}: no such run in {listed(roots)}; {nearest(name, names)}. {ELSEWHERE}")
    if len({run.root for run in candidates}) > 1:
        places = listed(list(dict.fromkeys(run.root for run in candidates)))
        raise UserError(f"{name!r}: there is such a run in {places}; add --site NAME, or write its folder")
    if len(candidates) > 1:
        raise UserError(
            f"{name!r}: two stages have such a run; write {' or '.join(map(_stage_and_name, candidates))}"
        )
    return candidates[0]


def refuse_removed(run: Run) -> None:
    """Checks that the files of the run were not removed.

    Raises:
        UserError: they were.
    """
    if facts := run.removed:
        day = facts["time"][:10]
        raise UserError(f"{run.stage} {run.name!r} was removed on {day}; {run.folder} tells what it was")


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
        value = getattr(recipe, key)
        if isinstance(value, list):
            changes[key] = [find(str(name), *roots).folder for name in value]
        elif value is not None:
            changes[key] = find(str(value), *roots).folder
    return recipe.model_copy(update=changes) if changes else recipe


def _stage_and_name(run: Run) -> str:
    return f"{run.stage}/{run.name}"


def address(run: Run, *roots: Path) -> str:
    """Returns how to write the run on a command line: its name where that is unique, else its path."""
    for name in (run.label, _stage_and_name(run)):
        with suppress(UserError):
            # A word with = and no slash before it would be read as key=value.
            if "=" not in name.partition("/")[0] and find(name, *roots).folder == run.folder:
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
    while os.path.lexists(root / stage / f"{stage}-{date.today():%Y%m%d}-{number}"):
        number += 1
    return f"{stage}-{date.today():%Y%m%d}-{number}"


# ---------------------------------------------------------------- made


@dataclass(frozen=True)
class RunRequest:
    """One run, or an array of runs, that is to be computed.

    Attributes:
        stage: that computes it, or each element.
        recipe: of the run; of an array, the recipe of the sweep.
        site: with the part that the stage can use.
        name: of the run folder; None: a free one.
        after: runs that must be done before.
        elements: name -> recipe, of an array; empty: a single run.
        final_element: name of the element that waits for all others; it comes last in `elements`.
        messages: what the user should know about the elements.
        verify: share of the fields of a segmentation that are computed again and compared.
        update: elements whose inputs have changed are computed once more.
    """

    stage: str
    recipe: Recipe
    site: Site
    name: str | None = None
    after: tuple[Run, ...] = ()
    elements: Mapping[str, Recipe] | None = None
    final_element: str | None = None
    messages: tuple[str, ...] = ()
    verify: float = 0.0
    update: bool = False

    def run(self, root: Path) -> Run:
        """Returns the run, or the array, below the folder `root` of all runs."""
        folder = "sweep" if self.elements else self.stage
        name = valid_name(self.name) if self.name else default_name(folder, root)
        return Run(root / folder / name)

    def element(self, run: Run, name: str) -> Run:
        """Returns the element of this name in the array `run`."""
        return Run(run.folder / self.stage / name)

    def elements_content(self, element_names: Iterable[str]) -> dict[str, Any]:
        """Returns the content of `elements.json`: all elements, and the one that waits for all others."""
        content = {"elements": [f"{self.stage}/{name}" for name in element_names]}
        return content | ({"last": f"{self.stage}/{self.final_element}"} if self.final_element else {})


def make(run: Run, request: RunRequest, plan: Plan, argv: tuple[str, ...]) -> None:
    """Makes the folder of a single run."""
    content = provenance.record(plan.recipe, list(argv), plan)
    with _new_folder(run, request.site):
        _write_records(run, plan.recipe, request.site, content | _deferred_entries(run, request))


def make_array(run: Run, request: RunRequest, plans: Mapping[str, Plan], argv: tuple[str, ...]) -> None:
    """Makes the folders of an array and of its elements; the array's recipe comes last of all."""
    content = provenance.record(request.recipe, list(argv))
    with _new_folder(run, request.site):
        write_atomic(run.elements_file, json.dumps(request.elements_content(plans), indent=1))
        for name, plan in plans.items():
            deferred = name == request.final_element
            make_element(request.element(run, name), request, plan, content, deferred=deferred)
        after = {key: value for key, value in _deferred_entries(run, request).items() if key == "after"}
        _write_records(run, request.recipe, request.site, content | after)


def make_element(
    element: Run, request: RunRequest, plan: Plan, content: Mapping[str, Any], deferred: bool
) -> None:
    """Makes the folder of an element, with the record of its array.

    `deferred`: it is planned when its job starts.
    """
    record = provenance.again(content, plan) | _deferred_entries(element, request)
    with _new_folder(element, request.site):
        _write_records(element, plan.recipe, request.site, record | ({"planned": False} if deferred else {}))


def make_chain(run: Run, chain: ChainRecipe, site: Site, members: list[str], argv: tuple[str, ...]) -> None:
    """Makes the folder of a chain; those of its runs lie elsewhere and are made when they are started."""
    content = provenance.record(chain, list(argv))
    with _new_folder(run, site):
        write_atomic(run.elements_file, json.dumps({"elements": members}, indent=1))
        _write_records(run, chain, site, content)


def _deferred_entries(run: Run, request: RunRequest) -> dict[str, Any]:
    # Named from the run's own folder: they may be moved together.
    paths = [
        os.path.relpath(earlier_run.folder, run.folder)
        if earlier_run.root == run.root
        else str(earlier_run.folder)
        for earlier_run in request.after
    ]
    return {"planned": False, "after": paths} if paths else {}


def _write_records(run: Run, recipe: Any, site: Site, content: Mapping[str, Any]) -> None:
    write_atomic(run.record, json.dumps(content, indent=1))
    if content["diff"] and run.array is None:
        write_atomic(run.folder / "code.diff", provenance.difference())
    write_atomic(run.site, to_yaml(site))
    # Last, because a folder without a recipe is no run: one that was cut off is not listed.
    write_atomic(run.recipe, to_yaml(recipe))


@contextmanager
def _new_folder(run: Run, site: Site) -> Iterator[None]:
    """Makes the folder of a run; it is removed where the block fails or is ended: it would hold the name.

    Raises:
        UserError: it cannot be made.
    """
    share_with_group(site.group)
    try:
        make_folder(run.folder, site.group)
    except FileExistsError:
        raise NameTaken(f"{run.folder} was made by someone else just now; choose another --name") from None
    except OSError as error:
        raise UserError(f"{run.folder} cannot be made: {error.strerror}; set site.runs") from None
    try:
        yield
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise


# ---------------------------------------------------------------- the final element of an array


def final_element(array: Run) -> Run | None:
    """Returns the element that waits until all others have ended, if the array has one."""
    name = (read_json(array.elements_file) or {}).get("last")
    return Run(array.folder / name) if name else None


def other_elements(array: Run) -> list[Run]:
    """Returns the elements of the array that its final element waits for."""
    final = final_element(array)
    return [element for element in array.elements() if element != final]


def is_final_element(run: Run) -> bool:
    """Returns whether the run is the final element of its array."""
    return run.array is not None and final_element(run.array) == run


def with_final_element(array: Run, members: Sequence[Run]) -> list[Run]:
    """Returns these elements of the array, and after them the final one unless it is done."""
    final = final_element(array)
    other_members = [member for member in members if member != final]
    return [*other_members, final] if final and final.summary() is None else other_members
