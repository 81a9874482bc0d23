"""Run folders are made here: records first, the recipe last, for a folder without one is no run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder import names, provenance
from hpc_isl.errors import UserError
from hpc_isl.files import make_folder, share_with_group, write_atomic
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
        last: name of the element that waits for all others; it comes last in `elements`.
        says: what the user should know of the elements.
        verify: share of the fields of a segmentation that are computed again and compared.
        update: elements whose inputs have changed are computed once more.
    """

    stage: str
    recipe: Recipe
    site: Site
    name: str | None = None
    after: tuple[Run, ...] = ()
    elements: Mapping[str, Recipe] | None = None
    last: str | None = None
    messages: tuple[str, ...] = ()
    verify: float = 0.0
    update: bool = False

    def run(self, root: Path) -> Run:
        """Where the run, or the array, will lie."""
        folder = "sweep" if self.elements else self.stage
        name = names.valid_name(self.name) if self.name else names.default_name(folder, root)
        return Run(root / folder / name)


def make(run: Run, order: RunRequest, plan: Plan, argv: tuple[str, ...]) -> None:
    """The folder of a single run."""
    content = provenance.record(plan.recipe, list(argv), plan)
    _fill(run, plan, order.site, content | _late(run, order))


def make_array(run: Run, order: RunRequest, plans: Mapping[str, Plan], argv: tuple[str, ...]) -> None:
    """The folders of an array and of its elements; the array's recipe comes last of all."""
    content = provenance.record(order.recipe, list(argv))
    _new(run, order.site)
    write_atomic(run.elements_file, json.dumps(elements(order, plans), indent=1))
    for name, plan in plans.items():
        make_element(element(run, order.stage, name), order, plan, content, late=name == order.last)
    after = {key: value for key, value in _late(run, order).items() if key == "after"}
    _describe(run, order.recipe, order.site, content | after)


def element(run: Run, stage: str, name: str) -> Run:
    """Where the element of this name lies in its array."""
    return Run(run.folder / stage / name)


def elements(order: RunRequest, names: Iterable[str]) -> dict[str, Any]:
    """The content of `elements.json`: which there are, and which of them waits for all others."""
    folders = {"elements": [f"{order.stage}/{name}" for name in names]}
    return folders | ({"last": f"{order.stage}/{order.last}"} if order.last else {})


def make_element(one: Run, order: RunRequest, plan: Plan, content: Mapping[str, Any], late: bool) -> None:
    """The folder of an element, with the record of its array; `late`: it is planned when its job starts."""
    own = provenance.again(content, plan) | _late(one, order)
    _fill(one, plan, order.site, own | ({"planned": False} if late else {}))


def make_chain(run: Run, chain: ChainRecipe, site: Site, members: list[str], argv: tuple[str, ...]) -> None:
    """The folder of a chain; those of its runs lie elsewhere and are made when they are started."""
    content = provenance.record(chain, list(argv))
    _new(run, site)
    write_atomic(run.elements_file, json.dumps({"elements": members}, indent=1))
    _describe(run, chain, site, content)


def _late(run: Run, order: RunRequest) -> dict[str, Any]:
    """The runs before are named from the run's own folder: they may be moved together."""
    before = [
        os.path.relpath(other.folder, run.folder) if other.root == run.root else str(other.folder)
        for other in order.after
    ]
    return {"planned": False, "after": before} if before else {}


def _fill(run: Run, plan: Plan, site: Site, content: Mapping[str, Any]) -> None:
    _new(run, site)
    _describe(run, plan.recipe, site, content)


def _describe(run: Run, recipe: Any, site: Site, content: Mapping[str, Any]) -> None:
    write_atomic(run.record, json.dumps(content, indent=1))
    if content["diff"] and run.array is None:
        write_atomic(run.folder / "code.diff", provenance.difference())
    write_atomic(run.site, to_yaml(site))
    write_atomic(run.recipe, to_yaml(recipe))


def _new(run: Run, site: Site) -> None:
    share_with_group(site.group)
    try:
        make_folder(run.folder, site.group)
    except FileExistsError:
        raise UserError(f"{run.folder} was made by someone else just now; choose another --name") from None
    except PermissionError:
        raise UserError(
            f"{run.folder}: {os.environ.get('USER', 'you')} may not write there; set site.runs"
        ) from None
