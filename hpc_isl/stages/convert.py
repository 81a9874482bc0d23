"""The stage `convert`: a vendor's export becomes one OME-Zarr plate, where the house's flow begins."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

from hpc_isl.mistake import Blocked, Mistake
from hpc_isl.plates.partial import naming_unwritable, sweep
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, finalise, open_plate
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.conversion.costs import costs
from hpc_isl.stages.conversion.record import held
from hpc_isl.stages.conversion.survey import Survey, check, check_place, damage, describe, listing, survey
from hpc_isl.stages.conversion.work import Work, convert_fields
from hpc_isl.stages.shared.following import pretrain_line

Damaged = dict[FieldKey, list[str]]


def plan(recipe: ConvertRecipe) -> Plan:
    """What converting would do; writes nothing.

    Raises:
        Mistake: for all that can be known before pixels are decoded; see `survey` and `check`.
    """
    recipe = _absolute(recipe)
    found = survey(recipe)
    takes = costs(found.todo, found.export.files, recipe.codec)
    check(found)
    says = describe(found, takes)
    try:
        check_place(found, takes)
    except Blocked:
        raise
    except Mistake as mistake:  # the node that computes may see another disk
        says = (*says, f"warning: from this machine {mistake}")
    return Plan(recipe=recipe, says=says, inputs={"export": found.digest[:16]}, makes=(recipe.out,))


def convert(recipe: ConvertRecipe, attempt: Attempt) -> None:
    """Converts all fields that are not there yet and makes them a plate, last of all.

    Killed or stopped at any moment and started again, it goes on and makes the same plate. One
    process per CPU converts fields; those of other ranks do nothing.

    Raises:
        Mistake: naming all damaged fields (on_error: stop), or a disk that is full or may not be written; the
            plate is not finished.
    """
    if attempt.rank:
        return
    found = survey(_absolute(recipe))
    takes = costs(found.todo, found.export.files, recipe.codec)
    check(found)
    if found.state == "finished" and _settled(found):
        attempt.say(f"{found.recipe.out} holds this plate already: nothing to do")
        _finish(open_plate(found.recipe.out), attempt, 0)
        return
    check_place(found, takes)
    start = time.monotonic()
    with held(found.recipe.out, found.digest, found.recipe.source):
        if swept := sweep(found.recipe.out):
            attempt.say(f"removed {swept} unfinished files and folders of an earlier attempt")
        damaged = _convert_all(found, attempt)
        if damaged is None:
            attempt.say("stopped between fields; what is written is kept")
            return
        with naming_unwritable(found.recipe.out, takes.bytes_out):
            index = _finalise(found, damaged)
    _finish(index, attempt, time.monotonic() - start)


def _settled(found: Survey) -> bool:
    """Whether the finished plate is all that this conversion could make it."""
    index = open_plate(found.recipe.out)
    left_out = {key for key, _ in index.problems}
    return not found.todo and index.plate_map == found.plate_map and left_out == set(found.damaged)


def _convert_all(found: Survey, attempt: Attempt) -> Damaged | None:
    """Converts the fields to do: what is wrong with those that cannot be, or None where it was stopped."""
    recipe, bare = found.recipe, replace(found.plate, fields=())
    todo = [
        Work(recipe.out, bare, field, found.export.files[field.key], recipe.codec, recipe.levels)
        for field in found.todo
    ]
    damaged, kept, done = found.damaged, 0, 0
    for done, outcome in enumerate(convert_fields(todo, attempt.cpus, attempt.stopping), start=1):
        kept += outcome.kept
        if outcome.problem:
            damaged[outcome.key] = [outcome.problem]
            attempt.say(f"{outcome.key}: {outcome.problem}")
        attempt.progress(done, len(todo), "fields", kept, kept=kept, damaged=len(damaged))
    if kept:
        attempt.say(f"{kept} fields were there already and kept")
    return damaged if done == len(todo) else None


def _finalise(found: Survey, damaged: Damaged) -> Index:
    recipe = found.recipe
    if damaged and recipe.on_error == "stop":
        raise Mistake(damage(damaged, len(found.plate.fields)))
    whole = {field.key for field in found.plate.fields} - set(damaged)
    if not whole:
        raise Mistake("\n".join(["all fields are damaged, there is no plate to make:", *listing(damaged)]))
    problems = tuple((key, text) for key, texts in sorted(damaged.items()) for text in texts)
    return finalise(recipe.out, found.plate.keep(whole), found.plate_map, problems)


def _finish(index: Index, attempt: Attempt, seconds: float) -> None:
    fields, out = len(index.plate.fields), shlex.quote(str(index.path))
    skipped = len({key for key, _ in index.problems})
    if skipped:
        attempt.say(f"{skipped} damaged fields were left out; inspect {out} names them")
    attempt.say(f"{index.path}: fields: {fields}, fingerprint {index.fingerprint}")
    attempt.finish({
        "fields": fields,
        "skipped": skipped,
        "seconds": round(seconds, 1),
        "fingerprint": index.fingerprint,
        "made": {"plate": str(index.path)},
        "next": [f"inspect {out}", *filter(None, [pretrain_line(index)])],
    })  # fmt: skip


def _absolute(recipe: ConvertRecipe) -> ConvertRecipe:
    def there(path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    table = recipe.pattern and recipe.pattern.model_copy(update={"table": there(recipe.pattern.table)})
    places = {name: there(getattr(recipe, name)) for name in ("source", "out", "plate_map")}
    return recipe.model_copy(update=places | {"pattern": table})
