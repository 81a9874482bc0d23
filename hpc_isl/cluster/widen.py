"""A sweep that is there takes in more elements: only what is new is made and computed.

What is new is made first, unseen; `widening.json` then says all that is left to do, and each step of that can
be done twice: a kill at any moment leaves the sweep as it was, or one that goes on to what it was to become.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hpc_isl.cluster import folders, last, late, orders, record, submissions
from hpc_isl.cluster.orders import Order
from hpc_isl.files import now, read_json, share_with_group, write_atomic
from hpc_isl.recipe import digest
from hpc_isl.run import Plan, Run
from hpc_isl.strict import to_yaml

UNSEEN = ".widening"

# ---------------------------------------------------------------- what is new


def new_elements(run: Run, order: Order, plans: Mapping[str, Plan]) -> list[str]:
    """Names of the elements that the sweep does not have; what waits for all others is none of them.

    Raises:
        Mistake: what is there would not be computed by this order, or not just so.
    """
    there = {str(one.folder.relative_to(run.folder)): one for one in last.others(run)}
    asked = {f"{order.stage}/{name}": name for name in plans if name != order.last}
    gone = [f"  element {one.name!r}: there, not here" for key, one in there.items() if key not in asked]
    final = last.of(run)
    if final and final.name != order.last:
        gone.append(f"  element {final.name!r}: there, not here")
    both = [(one, asked[key]) for key, one in there.items() if key in asked]
    wrong = list(dict.fromkeys(line for one, name in both for line in _wrong(one, name, order, plans)))
    if gone or wrong:
        over = [line for line in orders.differences(run, Plan(order.recipe)) if line.startswith("  over")]
        orders.refuse(run, [*wrong, *((over or gone) if gone else [])])
    return [name for key, name in asked.items() if key not in there]


def _wrong(one: Run, name: str, order: Order, plans: Mapping[str, Plan]) -> list[str]:
    """How an element that is there differs from what is asked for."""
    # One that was never planned is kept as it was asked for.
    plan = Plan((order.elements or {})[name]) if late.is_late(one) else plans[name]
    return orders.differences(one, plan)


def says(run: Run, order: Order, new: list[str]) -> str:
    """`sweep 'nuc' is widened: 6 of 18 elements are new`."""
    number = len(order.elements or {}) - bool(order.last)
    again = f"; then {order.last!r} once more" if order.last else ""
    return f"{run.stage} {run.name!r} is widened: {len(new)} of {number} elements are new{again}"


# ---------------------------------------------------------------- taking it in


def widen(run: Run, order: Order, plans: Mapping[str, Plan], new: list[str], argv: tuple[str, ...]) -> None:
    """Makes the new elements, and what waits for all others once more: it names them."""
    share_with_group(order.site.group)
    content = record.record(order.recipe, {}, list(argv))
    for name in new:
        one = folders.element(run, order.stage, name)
        shutil.rmtree(one.folder, ignore_errors=True)  # of a widening that was ended
        folders.make_element(one, order, plans[name], content, late=False)
    if order.last:
        shutil.rmtree(_unseen(run, order.last).folder, ignore_errors=True)
        folders.make_element(_unseen(run, order.last), order, plans[order.last], content, late=True)
    kept = read_json(run.record) or {}
    step = {key: content[key] for key in ("argv", "user", "host", "commit", "diff", "code")}
    kept["widened"] = [*kept.get("widened", []), {"time": now(), "elements": new, **step}]
    left = {
        "elements": folders.elements(order, plans),
        "record": kept | {"digest": digest(order.recipe)},
        "recipe": to_yaml(order.recipe),
    }
    write_atomic(_journal(run), json.dumps(left, indent=1))
    _finish(run)


def settle(run: Run) -> None:
    """A widening that was ended in the middle comes to its end."""
    if _journal(run).exists():
        with submissions.alone(run):
            _finish(run)


def _finish(run: Run) -> None:
    left = read_json(_journal(run))
    if left is None:
        return
    if left["elements"].get("last"):
        _replace(run, run.folder / left["elements"]["last"])
        shutil.rmtree(run.folder / UNSEEN, ignore_errors=True)
    write_atomic(run.elements_file, json.dumps(left["elements"], indent=1))
    write_atomic(run.record, json.dumps(left["record"], indent=1))
    write_atomic(run.recipe, left["recipe"])
    _journal(run).unlink()


def _replace(run: Run, folder: Path) -> None:
    """The new last element takes the place of the earlier one, which is kept: its model may be in use."""
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
    """Where the new last element is made, out of sight."""
    return Run(run.folder / UNSEEN / name)


def _journal(run: Run) -> Path:
    return run.folder / "widening.json"
