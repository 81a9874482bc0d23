"""An array of runs of one stage, which differ in what is swept over; one that exists is extended.

It takes in more elements, or other inputs, and only what that changes is computed. New elements are made
first, unseen; `widening.json` then lists all that is left to do, and each step of that can be done twice: a
kill at any moment leaves the sweep as it was, or one that is completed later.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster.run_folder import folders, provenance, submissions, uses
from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.submit import planning
from hpc_isl.cluster.submit.planning import site_of
from hpc_isl.errors import UserError, nearest
from hpc_isl.files import now, read_json, share_with_group, write_atomic
from hpc_isl.recipes.base import Recipe, SweepRecipe
from hpc_isl.recipes.load import digest, parsed, read, refuse_unused
from hpc_isl.recipes.strict import override, parse, plain, to_yaml, written
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site
from hpc_isl.stages.stage_table import STAGES, stage_named

LONGEST = 80  # characters of an element's name
UNSEEN = ".widening"  # holds new elements until all of them are made


def sweep_request(
    path: Path | None, keys: list[str], site: Site, name: str | None, after: tuple[Run, ...] = ()
) -> RunRequest:
    """Returns the request for a sweep.

    `over` and `stage` are the sweep's own keys; all others are those of the stage's recipe. Without `stage`
    the recipe's file name tells it: `small_pretrain.yaml` is a recipe of pretrain.
    """
    if site.executor == "allocation":
        raise UserError(
            "sweep: inside a job there is one run at a time; use a site with executor: slurm, or "
            "slurm/array.sbatch"
        )
    content, origin = read("sweep", path, keys)
    over, stage = content.pop("over", None), content.pop("stage", None)
    if not stage:
        stages_in_name = [word for word in re.split(r"[_\W]+", path.stem) if word in STAGES] if path else []
        if not stages_in_name:
            raise UserError(f"sweep: say which stage varies, as stage=pretrain; {nearest('', STAGES)}")
        stage = stages_in_name[-1]
    if over is None:
        raise UserError(f"{origin}: over: must be given, as in over='{{seed: [0, 1, 2]}}'")
    stage_named(stage)
    recipe = parse(SweepRecipe, {"stage": stage, "over": over, "base": content}, origin)
    elements: dict[str, Recipe] = {}
    for values in _combinations(recipe):
        label = _label(values)
        # Elements whose names are the same once shortened get a number.
        numbers = (f" ({number})" if number > 1 else "" for number in itertools.count(1))
        label = next(label + number for number in numbers if label + number not in elements)
        assignments = [f"{key}={written(value)}" for key, value in values.items()]
        element_origin = f"{origin}, element {' '.join(assignments)}"
        elements[label] = parsed(recipe.stage, override(recipe.base, assignments), element_origin)
    # All together: a key may matter to some elements alone, as `alpha` does where objects.kind varies.
    refuse_unused(list(elements.values()), origin)
    return RunRequest(stage, recipe, site_of(stage, site), name, after, elements)


def _combinations(recipe: SweepRecipe) -> Iterator[Mapping[str, Any]]:
    """Yields all combinations of each group; one that an earlier group has set does not come again."""
    seen: set[str] = set()
    for group in [recipe.over] if isinstance(recipe.over, dict) else recipe.over:
        value_lists = [values if isinstance(values, list) else [values] for values in group.values()]
        for combination in itertools.product(*value_lists):
            values = dict(zip(group, combination, strict=True))
            values_json = json.dumps(values, sort_keys=True, default=str)
            if values_json not in seen:
                seen.add(values_json)
                yield values


def _label(values: Mapping[str, Any]) -> str:
    """Returns `seed=0,train.crop=256`, of characters that a folder and a command line can have."""
    assignments = ",".join(f"{key}={plain(value)}" for key, value in values.items())
    label = re.sub(r"[^\w.,=+\-]+", "_", assignments).strip("_.-") or "as-is"
    return label[:LONGEST]


# ---------------------------------------------------------------- a sweep that exists


@dataclass(frozen=True)
class Extension:
    """The elements that a request adds to a sweep, or changes; the final element is not counted.

    Attributes:
        new_names: names of elements that the sweep does not have.
        changed_names: names of elements that it has, from other inputs than there are now.
        lines: what is different about these inputs.
    """

    new_names: tuple[str, ...] = ()
    changed_names: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new_names or self.changed_names)


def compare(run: Run, request: RunRequest, plans: Mapping[str, Plan]) -> Extension:
    """Returns how a request differs from the sweep that exists.

    Raises:
        UserError: existing elements would not be computed by this request, or by another recipe.
    """
    existing = {element.folder: element for element in folders.other_elements(run)}
    requested = {request.element(run, name).folder: name for name in plans if name != request.final_element}
    missing_elements = [element for path, element in existing.items() if path not in requested]
    final = folders.final_element(run)
    if final and final.name != request.final_element:
        missing_elements.append(final)
    shared: dict[str, tuple[Run, Plan]] = {}
    for path, element in existing.items():
        if name := requested.get(path):
            # An element that was never planned is compared as it was asked for.
            unplanned = not provenance.is_planned(element)
            shared[name] = element, Plan((request.elements or {})[name]) if unplanned else plans[name]
    recipe_lines = [line for pair in shared.values() for line in planning.recipe_differences(*pair)]
    changed_names = [name for name, pair in shared.items() if uses.differing_inputs([pair])]
    input_lines = uses.differing_inputs(list(shared.values())) if changed_names else []
    if missing_elements or recipe_lines:
        over_lines = planning.differences(run, Plan(request.recipe)) if missing_elements else []
        over_lines = [line for line in over_lines if line.startswith("  over")]
        missing_lines = [f"  element {element.name!r}: there, not here" for element in missing_elements]
        planning.refuse(run, [*input_lines, *dict.fromkeys(recipe_lines), *(over_lines or missing_lines)])
    new_names = tuple(name for path, name in requested.items() if path not in existing)
    return Extension(new_names, tuple(changed_names), tuple(input_lines))


def refuse_changed(run: Run, request: RunRequest, extension: Extension, command: str) -> None:
    """Checks that elements from other inputs are computed again only when that is asked for.

    `command`: that was typed.

    Raises:
        UserError: it was not; with what changed, how much of the sweep it changes, and what to type.
    """
    if not extension.changed_names or request.update:
        return
    final = f", and {request.final_element!r}" if request.final_element else ""
    share = f"{len(extension.changed_names)} of {_count(request)} elements{final}"
    lines = [
        f"{run.stage} {run.name!r} exists, from other inputs:",
        *extension.lines[:8],
        f"they change {share}. To compute these once more",
        "(what they were is kept in the sweep's folder, in `earlier`):",
        f"  {command} --update",
        "or choose another --name, to compute all of it",
    ]
    raise UserError("\n".join(lines))


def extension_message(run: Run, request: RunRequest, extension: Extension) -> str:
    """Returns `sweep 'nuc' is extended: 6 of 18 elements are new; then 'final' once more`."""
    count, new_count, changed_count = _count(request), len(extension.new_names), len(extension.changed_names)
    parts = [f"{new_count} of {count} elements are new"] if new_count else []
    parts += [f"{changed_count} of {count} are computed once more"] if changed_count else []
    final_text = f"; then {request.final_element!r} once more" if request.final_element else ""
    return f"{run.stage} {run.name!r} is extended: {', '.join(parts)}{final_text}"


def _count(request: RunRequest) -> int:
    return len(request.elements or {}) - bool(request.final_element)


# ---------------------------------------------------------------- taking it in


def extend(
    run: Run, request: RunRequest, plans: Mapping[str, Plan], extension: Extension, argv: tuple[str, ...]
) -> None:
    """Makes the new elements, those that changed, and the final one, whose recipe names all of them."""
    share_with_group(request.site.group)
    content = provenance.record(request.recipe, list(argv))
    remade_names = [*extension.changed_names, *([request.final_element] if request.final_element else [])]
    elements = [request.element(run, name) for name in extension.new_names]
    for element in [*elements, *(Run(run.folder / UNSEEN / name) for name in remade_names)]:
        shutil.rmtree(element.folder, ignore_errors=True)  # of an extension that was ended
        deferred = element.name == request.final_element
        folders.make_element(element, request, plans[element.name], content, deferred)
    record = read_json(run.record) or {}
    origin = {key: content[key] for key in ("argv", "user", "host", "commit", "diff", "code")}
    entry = {
        "time": now(),
        "elements": list(extension.new_names),
        "updated": list(extension.changed_names),
        **origin,
    }
    journal = {
        "elements": request.elements_content(plans),
        "replaced": [f"{request.stage}/{name}" for name in remade_names],
        "record": record | {"digest": digest(request.recipe), "widened": [*record.get("widened", []), entry]},
        "recipe": to_yaml(request.recipe),
    }
    write_atomic(_journal(run), json.dumps(journal, indent=1))
    _finish(run)


def finish_interrupted(run: Run) -> None:
    """Completes an extension that was ended in the middle."""
    if _journal(run).exists():
        with submissions.alone(run):
            _finish(run)


def _finish(run: Run) -> None:
    journal = read_json(_journal(run))
    if journal is None:
        return
    # Each step can be done twice; the journal goes last, so that a kill leaves it to be read again.
    for name in journal.get("replaced", [journal["elements"].get("last")]):
        if name:
            _replace(run, run.folder / name)
    shutil.rmtree(run.folder / UNSEEN, ignore_errors=True)
    write_atomic(run.elements_file, json.dumps(journal["elements"], indent=1))
    write_atomic(run.record, json.dumps(journal["record"], indent=1))
    write_atomic(run.recipe, journal["recipe"])
    _journal(run).unlink()


def _replace(run: Run, folder: Path) -> None:
    """Puts an element that was made anew in the place of the earlier one, which is kept: it may be in use."""
    new_folder = run.folder / UNSEEN / folder.name
    if not new_folder.exists():
        return
    if folder.exists():
        inside = Path(folder.parent.name, folder.name)  # `earlier/1/finetune/final`, or the first free number
        paths = (run.folder / "earlier" / str(number) / inside for number in itertools.count(1))
        kept_folder = next(path for path in paths if not path.exists())
        kept_folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, kept_folder)
    folder.parent.mkdir(exist_ok=True)
    os.rename(new_folder, folder)


def _journal(run: Run) -> Path:
    return run.folder / "widening.json"
