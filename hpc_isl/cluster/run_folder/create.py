"""Run folders are made here: records first, the recipe last, because a folder without one is no run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder import names, provenance
from hpc_isl.errors import UserError
from hpc_isl.files import make_folder, read_json, share_with_group, write_atomic
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.many import ChainRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site


@dataclass(frozen=True)
class RunRequest:
    """One run, or an array of runs, that is to be computed.

    Attributes:
        stage: that computes it, or each element.
        recipe: of the run; of an array, what was swept over what.
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
        name = names.valid_name(self.name) if self.name else names.default_name(folder, root)
        return Run(root / folder / name)

    def element(self, run: Run, name: str) -> Run:
        """Returns the element of this name in the array `run`."""
        return Run(run.folder / self.stage / name)

    def elements_content(self, element_names: Iterable[str]) -> dict[str, Any]:
        """Returns the content of `elements.json`: all elements, and the one that waits for all others."""
        folders = {"elements": [f"{self.stage}/{name}" for name in element_names]}
        return folders | ({"last": f"{self.stage}/{self.final_element}"} if self.final_element else {})


def make(run: Run, request: RunRequest, plan: Plan, argv: tuple[str, ...]) -> None:
    """Makes the folder of a single run."""
    content = provenance.record(plan.recipe, list(argv), plan)
    _make_folder(run, request.site)
    _write_records(run, plan.recipe, request.site, content | _deferred(run, request))


def make_array(run: Run, request: RunRequest, plans: Mapping[str, Plan], argv: tuple[str, ...]) -> None:
    """Makes the folders of an array and of its elements; the array's recipe comes last of all."""
    content = provenance.record(request.recipe, list(argv))
    _make_folder(run, request.site)
    write_atomic(run.elements_file, json.dumps(request.elements_content(plans), indent=1))
    for name, plan in plans.items():
        deferred = name == request.final_element
        make_element(request.element(run, name), request, plan, content, deferred=deferred)
    after = {key: value for key, value in _deferred(run, request).items() if key == "after"}
    _write_records(run, request.recipe, request.site, content | after)


def make_element(
    element: Run, request: RunRequest, plan: Plan, content: Mapping[str, Any], deferred: bool
) -> None:
    """Makes the folder of an element, with the record of its array.

    `deferred`: it is planned when its job starts.
    """
    own = provenance.again(content, plan) | _deferred(element, request)
    _make_folder(element, request.site)
    _write_records(element, plan.recipe, request.site, own | ({"planned": False} if deferred else {}))


def make_chain(run: Run, chain: ChainRecipe, site: Site, members: list[str], argv: tuple[str, ...]) -> None:
    """Makes the folder of a chain; those of its runs lie elsewhere and are made when they are started."""
    content = provenance.record(chain, list(argv))
    _make_folder(run, site)
    write_atomic(run.elements_file, json.dumps({"elements": members}, indent=1))
    _write_records(run, chain, site, content)


def _deferred(run: Run, request: RunRequest) -> dict[str, Any]:
    # Named from the run's own folder: they may be moved together.
    before = [
        os.path.relpath(other.folder, run.folder) if other.root == run.root else str(other.folder)
        for other in request.after
    ]
    return {"planned": False, "after": before} if before else {}


def _write_records(run: Run, recipe: Any, site: Site, content: Mapping[str, Any]) -> None:
    write_atomic(run.record, json.dumps(content, indent=1))
    if content["diff"] and run.array is None:
        write_atomic(run.folder / "code.diff", provenance.difference())
    write_atomic(run.site, to_yaml(site))
    # Last, because a folder without a recipe is no run: one that was cut off is not listed.
    write_atomic(run.recipe, to_yaml(recipe))


def _make_folder(run: Run, site: Site) -> None:
    share_with_group(site.group)
    try:
        make_folder(run.folder, site.group)
    except FileExistsError:
        raise UserError(f"{run.folder} was made by someone else just now; choose another --name") from None
    except PermissionError:
        user = os.environ.get("USER", "you")
        raise UserError(f"{run.folder}: {user} may not write there; set site.runs") from None


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
    others = [member for member in members if member != final]
    return [*others, final] if final and final.summary() is None else others
