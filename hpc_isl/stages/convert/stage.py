"""The stage `convert`: a vendor's export becomes one OME-Zarr plate, where the house's flow begins."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from hpc_isl.errors import AbortRun, UserError
from hpc_isl.plates.atomic_directory import remove_partial, translate_write_errors
from hpc_isl.plates.plate import FieldKey, Problem
from hpc_isl.plates.store import Index, finalise, open_plate
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.convert.costs import costs
from hpc_isl.stages.convert.field import convert_fields
from hpc_isl.stages.convert.problems import counted, harmful, listing, refuse, write_left_out, write_table
from hpc_isl.stages.convert.record import held
from hpc_isl.stages.convert.survey import Survey, check, check_can_write_plate, describe, field_tasks, survey
from hpc_isl.stages.shared.following import pretrain_line

TABLE = "problems.csv"
"""In a run folder: every field and plane that could not be stored, and why."""
LEFT_OUT = "not_stored.csv"
"""The same of every file that is not stored by design, as a copy of another one."""


def plan(recipe: ConvertRecipe) -> Plan:
    """What converting would do; writes nothing.

    Raises:
        UserError: for all that can be known before pixels are decoded; see `survey` and `check`.
    """
    recipe = _absolute(recipe)
    found = survey(recipe)
    takes = costs(found.todo, found.export.files, recipe.codec)
    check(found)
    messages = describe(found, takes)
    try:
        check_can_write_plate(found, takes)
    except AbortRun:
        raise
    except UserError as mistake:  # the node that computes may see another disk
        messages = (*messages, f"warning: from this machine {mistake}")
    return Plan(recipe=recipe, messages=messages, inputs={"export": found.digest[:16]}, makes=(recipe.out,))


def convert(recipe: ConvertRecipe, attempt: Attempt) -> None:
    """Converts all fields that are not there yet and makes them a plate, last of all.

    Killed or stopped at any moment and started again, it goes on and makes the same plate. One
    process per CPU converts fields; those of other ranks do nothing.

    Raises:
        UserError: naming all damaged fields (on_error: stop), or a disk that is full or may not be written;
            the     plate is not finished.
    """
    if attempt.rank:
        return
    found = survey(_absolute(recipe))
    takes = costs(found.todo, found.export.files, recipe.codec)
    check(found)
    if found.state == "finished" and _settled(found):
        attempt.log(f"{found.recipe.out} holds this plate already: nothing to do")
        _finish(open_plate(found.recipe.out), attempt, 0)
        return
    check_can_write_plate(found, takes)
    start = time.monotonic()
    with held(found.recipe.out, found.digest, found.recipe.source):
        if swept := remove_partial(found.recipe.out):
            attempt.log(f"removed {swept} unfinished files and folders of an earlier attempt")
        result = _convert_all(found, attempt)
        if result is None:
            attempt.log("stopped between fields; what is written is kept")
            return
        with translate_write_errors(found.recipe.out, takes.bytes_out):
            index = _finalise(found, attempt, *result)
    _finish(index, attempt, time.monotonic() - start)


def _settled(found: Survey) -> bool:
    """Whether the finished plate is all that this conversion could make it."""
    index = open_plate(found.recipe.out)
    known = {problem.key for problem in index.problems}
    told = {problem.key for problem in found.export.problems}
    return not found.todo and index.plate_map == found.plate_map and told <= known


def _convert_all(found: Survey, attempt: Attempt) -> tuple[list[Problem], set[FieldKey]] | None:
    """Converts the fields to do: all problems, and the fields that are lost; None where it was stopped."""
    todo = field_tasks(found)
    problems = list(found.export.problems)
    lost = {field.key for field in found.plate.fields if not found.export.files.get(field.key)}
    repeated: dict[FieldKey, int] = {}
    kept = done = 0
    for done, outcome in enumerate(convert_fields(todo, attempt.cpus, attempt.stopping), start=1):
        kept += outcome.kept
        lost |= {outcome.key} if outcome.lost else set()
        if outcome.repeated:
            repeated[outcome.key] = outcome.repeated
        for text in outcome.problems:
            problems.append(Problem(outcome.key, text))
            attempt.log(f"{outcome.key}: {text}")
        damaged = len({problem.key for problem in problems})
        attempt.progress(done, len(todo), "fields", kept, kept=kept, damaged=damaged)
    if kept:
        attempt.log(f"{kept} fields were there already and kept")
    if repeated:
        attempt.log(
            f"{sum(repeated.values()):,} planes of {len(repeated):,} fields, as {min(repeated, key=str)}, "
            "equal another plane of their field bit for bit: dark, or copies of which the export says "
            "nothing; they are stored"
        )
    return (problems, lost) if done == len(todo) else None


def _finalise(found: Survey, attempt: Attempt, problems: list[Problem], lost: set[FieldKey]) -> Index:
    plate, table = found.plate, attempt.run.folder / TABLE
    if found.recipe.on_error == "stop":
        refuse(harmful(problems), len(plate.fields), table)
    whole = {field.key for field in plate.fields} - lost
    if not whole:
        raise UserError("\n".join(["all fields are damaged, there is no plate to make:", *listing(problems)]))
    if problems:
        write_table(problems, table)
    write_left_out(found.export, attempt.run.folder / LEFT_OUT)
    if found.state == "finished":
        before = {problem for problem in open_plate(found.recipe.out).problems if problem.key in whole}
        redone = {field.key for field in found.todo}
        problems += sorted(p for p in before if p.key not in redone and p not in problems)
    return finalise(found.recipe.out, plate.keep(whole), found.plate_map, problems)


def _finish(index: Index, attempt: Attempt, seconds: float) -> None:
    fields, out = {field.key for field in index.plate.fields}, shlex.quote(str(index.path))
    told = {problem.key for problem in index.problems}
    skipped, incomplete = len(told - fields), len(told & fields)
    lists = {"problems": attempt.run.folder / TABLE, "files not stored": attempt.run.folder / LEFT_OUT}
    made = {what: str(path) for what, path in lists.items() if path.exists()}
    if told:
        attempt.log(
            f"{counted(index.problems)}: {skipped} fields were left out and {incomplete} lack planes; "
            f"inspect {out} names them"
        )
    attempt.log(f"{index.path}: fields: {len(fields)}, fingerprint {index.fingerprint}")
    attempt.finish({
        "fields": len(fields),
        "skipped": skipped,
        "incomplete": incomplete,
        "seconds": round(seconds, 1),
        "fingerprint": index.fingerprint,
        "made": {"plate": str(index.path), **made},
        "next": [f"inspect {out}", *filter(None, [pretrain_line(index)])],
    })  # fmt: skip


def _absolute(recipe: ConvertRecipe) -> ConvertRecipe:
    def there(path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    table = recipe.pattern and recipe.pattern.model_copy(update={"table": there(recipe.pattern.table)})
    places = {name: there(getattr(recipe, name)) for name in ("source", "out", "plate_map")}
    return recipe.model_copy(update=places | {"pattern": table})
