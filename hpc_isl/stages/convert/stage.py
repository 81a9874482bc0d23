"""The stage `convert`: a vendor's export becomes one OME-Zarr plate."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from hpc_isl.errors import AbortRun, UserError, many
from hpc_isl.plates.atomic_directory import remove_partial, translate_write_errors
from hpc_isl.plates.plate import FieldKey, Problem
from hpc_isl.plates.registration import PICTURE, summary_lines
from hpc_isl.plates.store import Index, finalise, open_plate
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.convert.field import convert_field
from hpc_isl.stages.convert.record import (
    counted,
    harmful,
    listing,
    locked,
    refuse,
    write_left_out,
    write_table,
)
from hpc_isl.stages.convert.survey import (
    Survey,
    check,
    check_can_write_plate,
    describe,
    estimate,
    field_tasks,
    survey_export,
    uncompressed,
)
from hpc_isl.stages.shared.parallel import in_parallel

TABLE = "problems.csv"
"""In a run folder: every field and plane that could not be stored, and why."""
LEFT_OUT = "not_stored.csv"
"""In a run folder: every file that is not stored by design, as a copy of another one."""


def plan(recipe: ConvertRecipe) -> Plan:
    """Returns what converting would do; writes nothing.

    Raises:
        UserError: for all that can be known before pixels are decoded; see `survey_export` and `check`.
    """
    recipe = _absolute(recipe)
    survey = survey_export(recipe)
    costs = estimate(survey.todo, survey.export.files, recipe.codec)
    check(survey)
    messages = describe(survey, costs)
    try:
        check_can_write_plate(survey)
    except AbortRun:
        raise
    except UserError as error:  # the node that computes may see another disk
        messages = (*messages, f"warning: from this machine {error}")
    return Plan(recipe=recipe, messages=messages, inputs={"export": survey.digest[:16]}, makes=(recipe.out,))


def convert(recipe: ConvertRecipe, attempt: Attempt) -> None:
    """Converts all fields that are not converted yet and makes them a plate, last of all.

    Killed or stopped at any moment and started again, it resumes and makes the same plate. One process per
    CPU converts fields; other ranks do nothing.

    Raises:
        UserError: naming all damaged fields (on_error: stop), or a disk that is full or may not be written;
            the plate is not finished.
    """
    if attempt.rank:
        return
    # Again, because the export may have changed since it was planned.
    survey = survey_export(_absolute(recipe))
    out = survey.recipe.out
    check(survey)
    if survey.state == "finished" and not survey.todo and _is_up_to_date(survey):
        attempt.log(f"{out} holds this plate already: nothing to do")
        _finish(open_plate(out), attempt, 0)
        return
    check_can_write_plate(survey)
    start = time.monotonic()
    with locked(out, survey.digest, survey.recipe):
        if removed := remove_partial(out):
            attempt.log(f"removed {removed} unfinished files and folders of an earlier attempt")
        result = _convert_all(survey, attempt)
        if result is None:
            attempt.log("stopped between fields; what is written is kept")
            return
        with translate_write_errors(out, uncompressed(survey.todo)):
            index = _finalise(survey, attempt, *result)
        if index is None:
            attempt.log("stopped while shifts were measured; fields that are written are kept")
            return
    _finish(index, attempt, time.monotonic() - start)


def _is_up_to_date(survey: Survey) -> bool:
    """Returns whether plate map and problems of the finished plate are those of the export."""
    index = open_plate(survey.recipe.out)
    indexed = {problem.key for problem in index.problems}
    reported = {problem.key for problem in survey.export.problems}
    return index.plate_map == survey.plate_map and reported <= indexed


def _convert_all(survey: Survey, attempt: Attempt) -> tuple[list[Problem], set[FieldKey]] | None:
    """Converts the fields to do; returns all problems and the failed fields, or None if it was stopped."""
    tasks = field_tasks(survey)
    problems = list(survey.export.problems)
    failed = {field.key for field in survey.plate.fields if not survey.export.files.get(field.key)}
    repeated: dict[FieldKey, int] = {}
    kept = done = 0
    outcomes = in_parallel(convert_field, tasks, attempt.cpus, attempt.stopping)
    for done, outcome in enumerate(outcomes, start=1):
        kept += outcome.is_kept
        if outcome.failed:
            failed.add(outcome.key)
        if outcome.repeated:
            repeated[outcome.key] = outcome.repeated
        for text in outcome.problems:
            problems.append(Problem(outcome.key, text))
            attempt.log(f"{outcome.key}: {text}")
        damaged = len({problem.key for problem in problems})
        attempt.progress(done, len(tasks), "fields", kept, kept=kept, damaged=damaged)
    if kept:
        attempt.log(f"kept: {many(kept, 'field')} that the plate had already")
    if repeated:
        attempt.log(
            f"{many(sum(repeated.values()), 'plane')} of {many(len(repeated), 'field')}, "
            f"as {min(repeated, key=str)}, bit for bit like another plane of the field: dark, or copies "
            "of which the export says nothing; stored as they are"
        )
    return (problems, failed) if done == len(tasks) else None


def _finalise(
    survey: Survey, attempt: Attempt, problems: list[Problem], failed: set[FieldKey]
) -> Index | None:
    plate, out, table = survey.plate, survey.recipe.out, attempt.run.folder / TABLE
    if survey.recipe.on_error == "stop":
        refuse(harmful(problems), len(plate.fields), table)
    stored = {field.key for field in plate.fields} - failed
    if not stored:
        raise UserError("\n".join(["all fields are damaged, there is no plate to make:", *listing(problems)]))
    if problems:
        write_table(problems, table)
    write_left_out(survey.export, attempt.run.folder / LEFT_OUT)
    if survey.state == "finished":  # a plate that takes in further fields keeps what was known of the others
        former_problems = {problem for problem in open_plate(out).problems if problem.key in stored}
        redone = {field.key for field in survey.todo}
        problems += sorted(p for p in former_problems if p.key not in redone and p not in problems)
    stored_plate = plate.keep(stored)
    registration = open_plate(out).registration if survey.state == "finished" else None
    registered = None
    # A plate that was finished without shifts stays so: its fingerprint, and the runs on it, rest on that.
    if len(plate.acquisitions) > 1 and (survey.state != "finished" or registration):
        from hpc_isl.stages.convert.register import register  # a plan need not wait for scipy

        registered = register(out, stored_plate, registration, attempt)
        if registered is None:
            return None
        for line in summary_lines(registered):
            attempt.log(line)
        if not registered.models:  # no field was imaged twice
            registered = None
        elif registered.shifts:
            from hpc_isl.stages.convert.shift_picture import draw_shifts  # matplotlib is slow to import

            draw_shifts(stored_plate, registered, out / PICTURE)
    return finalise(out, stored_plate, survey.plate_map, problems, registered=registered)


def _finish(index: Index, attempt: Attempt, seconds: float) -> None:
    # Here, because a plan need not wait for the recipes of training.
    from hpc_isl.stages.shared.following import pretrain_line

    fields, out = {field.key for field in index.plate.fields}, shlex.quote(str(index.path))
    damaged = {problem.key for problem in index.problems}
    skipped, incomplete = len(damaged - fields), len(damaged & fields)
    files = {"problems": attempt.run.folder / TABLE, "files not stored": attempt.run.folder / LEFT_OUT}
    if index.registration:
        files |= {"shifts": index.path / index.registration.file, "shifts as arrows": index.path / PICTURE}
    created_files = {description: str(path) for description, path in files.items() if path.exists()}
    if damaged:
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
        "made": {"plate": str(index.path), **created_files},
        "next": [f"inspect {out}", *filter(None, [pretrain_line(index)])],
    })  # fmt: skip


def _absolute(recipe: ConvertRecipe) -> ConvertRecipe:
    def absolute(path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    table = recipe.pattern and recipe.pattern.model_copy(update={"table": absolute(recipe.pattern.table)})
    paths: dict[str, object] = {name: absolute(getattr(recipe, name)) for name in ("out", "plate_map")}
    sources = [source.expanduser().absolute() for source in recipe.sources]
    paths["source"] = sources if len(sources) > 1 else sources[0]
    return recipe.model_copy(update=paths | {"pattern": table})
