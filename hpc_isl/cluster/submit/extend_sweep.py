"""A sweep that is there takes in more elements, or other inputs: only what that changes is computed.

What is new is made first, unseen; `widening.json` then says all that is left to do, and each step of that can
be done twice: a kill at any moment leaves the sweep as it was, or one that goes on to what it was to become.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.cluster.rank import deferred_planning
from hpc_isl.cluster.run_folder import arrays, create, provenance, submissions, uses
from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.submit import request
from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json, share_with_group, write_atomic
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Plan, Run

UNSEEN = ".widening"

# ---------------------------------------------------------------- what is new


@dataclass(frozen=True)
class Extension:
    """What an order asks for beyond what a sweep has; what waits for all others is not counted.

    Attributes:
        new: names of elements that the sweep does not have.
        changed: names of elements that it has, from other inputs than there are now.
        lines: what is different about these inputs.
    """

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.changed)


def compare(run: Run, order: RunRequest, plans: Mapping[str, Plan]) -> Extension:
    """How an order differs from the sweep that is there.

    Raises:
        UserError: elements that are there would not be computed by this order, or by another recipe.
    """
    there = {str(one.folder.relative_to(run.folder)): one for one in arrays.other_elements(run)}
    asked = {f"{order.stage}/{name}": name for name in plans if name != order.last}
    gone = [f"  element {one.name!r}: there, not here" for key, one in there.items() if key not in asked]
    final = arrays.of(run)
    if final and final.name != order.last:
        gone.append(f"  element {final.name!r}: there, not here")
    both = {
        asked[key]: (one, _plan(one, asked[key], order, plans)) for key, one in there.items() if key in asked
    }
    wrong = list(dict.fromkeys(line for one, plan in both.values() for line in request.in_recipe(one, plan)))
    changed = [name for name, pair in both.items() if any(uses.differing_inputs([pair]))]
    lines = tuple(uses.differing_inputs(list(both.values()))) if changed else ()
    if gone or wrong:
        over = [line for line in request.differences(run, Plan(order.recipe)) if line.startswith("  over")]
        request.refuse(run, [*lines, *wrong, *((over or gone) if gone else [])])
    return Extension(tuple(name for key, name in asked.items() if key not in there), tuple(changed), lines)


def _plan(one: Run, name: str, order: RunRequest, plans: Mapping[str, Plan]) -> Plan:
    """What an element that is there would be now; one that was never planned is as it was asked for."""
    return Plan((order.elements or {})[name]) if deferred_planning.is_deferred(one) else plans[name]


def refuse_changed(run: Run, order: RunRequest, wider: Extension, command: str) -> None:
    """Elements that would be others now are computed again when that is asked for.

    `command`: that was typed.

    Raises:
        UserError: it was not; with what changed, how much of the sweep it changes, and what to type.
    """
    if not wider.changed or order.update:
        return
    final = f", and {order.last!r}" if order.last else ""
    lines = [
        f"{run.stage} {run.name!r} is there, from other inputs:",
        *wider.lines[:8],
        f"they change {len(wider.changed)} of {_number(order)} elements{final}. To compute these once more",
        "(what they were is kept in the sweep's folder, in `earlier`):",
        f"  {command} --update",
        "or choose another --name, to compute all of it",
    ]
    raise UserError("\n".join(lines))


def extension_messages(run: Run, order: RunRequest, wider: Extension) -> str:
    """`sweep 'nuc' is widened: 6 of 18 elements are new; then 'final' once more`."""
    parts = [f"{len(wider.new)} of {_number(order)} elements are new"] if wider.new else []
    parts += [f"{len(wider.changed)} of {_number(order)} are computed once more"] if wider.changed else []
    again = f"; then {order.last!r} once more" if order.last else ""
    return f"{run.stage} {run.name!r} is widened: {', '.join(parts)}{again}"


def _number(order: RunRequest) -> int:
    return len(order.elements or {}) - bool(order.last)


# ---------------------------------------------------------------- taking it in


def extend(
    run: Run, order: RunRequest, plans: Mapping[str, Plan], wider: Extension, argv: tuple[str, ...]
) -> None:
    """Makes the new elements, those that changed, and what waits for all others once more: it names them."""
    share_with_group(order.site.group)
    content = provenance.record(order.recipe, list(argv))
    for name in wider.new:
        one = create.element(run, order.stage, name)
        shutil.rmtree(one.folder, ignore_errors=True)  # of a widening that was ended
        create.make_element(one, order, plans[name], content, late=False)
    again = [*wider.changed, *([order.last] if order.last else [])]
    for name in again:
        shutil.rmtree(_unseen(run, name).folder, ignore_errors=True)
        create.make_element(_unseen(run, name), order, plans[name], content, late=name == order.last)
    kept = read_json(run.record) or {}
    step = {key: content[key] for key in ("argv", "user", "host", "commit", "diff", "code")}
    said = {"time": now(), "elements": list(wider.new), "updated": list(wider.changed), **step}
    left = {
        "elements": create.elements(order, plans),
        "replaced": [f"{order.stage}/{name}" for name in again],
        "record": kept | {"digest": digest(order.recipe), "widened": [*kept.get("widened", []), said]},
        "recipe": to_yaml(order.recipe),
    }
    write_atomic(_journal(run), json.dumps(left, indent=1))
    _finish(run)


def finish_interrupted(run: Run) -> None:
    """A widening that was ended in the middle comes to its end."""
    if _journal(run).exists():
        with submissions.alone(run):
            _finish(run)


def _finish(run: Run) -> None:
    left = read_json(_journal(run))
    if left is None:
        return
    for name in left.get("replaced", [left["elements"].get("last")]):
        if name:
            _replace(run, run.folder / name)
    shutil.rmtree(run.folder / UNSEEN, ignore_errors=True)
    write_atomic(run.elements_file, json.dumps(left["elements"], indent=1))
    write_atomic(run.record, json.dumps(left["record"], indent=1))
    write_atomic(run.recipe, left["recipe"])
    _journal(run).unlink()


def _replace(run: Run, folder: Path) -> None:
    """An element that was made anew takes the place of the earlier one, which is kept: it may be in use."""
    unseen = _unseen(run, folder.name).folder
    if not unseen.exists():
        return
    if folder.exists():
        kept = _free(run, folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, kept)
    folder.parent.mkdir(exist_ok=True)
    os.rename(unseen, folder)


def _free(run: Run, folder: Path) -> Path:
    """`earlier/1/finetune/final`, or the first such that is free."""
    inside = Path(folder.parent.name, folder.name)
    paths = (run.folder / "earlier" / str(number) / inside for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def _unseen(run: Run, name: str) -> Run:
    """Where an element that is there is made anew, out of sight."""
    return Run(run.folder / UNSEEN / name)


def _journal(run: Run) -> Path:
    return run.folder / "widening.json"
