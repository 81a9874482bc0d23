"""The state before a conversion: the export, the plate that may exist already, the fields to do."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.assemble import usual_types
from hpc_isl.plates.atomic_directory import free, full, unwritable
from hpc_isl.plates.change_metadata import as_converted, plate_of, words_for
from hpc_isl.plates.metadata import plate_facts
from hpc_isl.plates.plate import Export, Field, FieldKey, Plate, Problem, well_name, well_position
from hpc_isl.plates.plate_map import PlateMap, merged, read_plate_map
from hpc_isl.plates.readers import detect
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.stages.convert.field import FieldTask, recorded_problems
from hpc_isl.stages.convert.problems import harmful, listing, refuse
from hpc_isl.stages.convert.record import State, recorded_digest, state_of


@dataclass(frozen=True)
class Survey:
    """The export, the state of the plate, and the fields to convert.

    Attributes:
        export: with the chosen fields alone, damaged ones included.
        digest: of the plate to be made, as far as names, layout and recipe say; the same when a conversion is
            resumed.
        todo: fields to convert; those of an unfinished plate are looked at one by one.
    """

    recipe: ConvertRecipe
    export: Export
    plate_map: PlateMap
    digest: str
    state: State
    todo: tuple[Field, ...]

    @property
    def plate(self) -> Plate:
        return self.export.plate


def survey_export(recipe: ConvertRecipe) -> Survey:
    """Reads the export's index and looks at `out`; no pixel is decoded and nothing is written.

    Raises:
        UserError: no export, another plate at `out`, a plate map that does not fit, fields that do not exist.
    """
    export = _with_missing_fields(_chosen(detect.read(recipe), recipe.fields))
    digest = _digest(recipe, export)
    finished = recorded_digest(recipe.out) and (recipe.out / "zarr.json").exists()
    if existing := open_plate(recipe.out) if finished else None:
        # Metadata that `set` has corrected since stay: the plate keeps them, and the digest that it has.
        digest = _digest_of_existing(recipe, export, existing, digest)
        export = replace(export, plate=plate_of(export.plate, export.plate, existing.plate))
    plate = export.plate
    _check_names(plate)
    plate_map = merged(export.plate_map, {})
    if recipe.plate_map:
        size = len(plate.rows), len(plate.columns)
        plate_map = merged(plate_map, read_plate_map(recipe.plate_map, *size, export.plate_map))
    state = state_of(recipe.out, digest)
    written = _complete_fields(existing, recipe, export) if existing else set()
    todo = (field for field in plate.fields if export.files.get(field.key) and field.key not in written)
    return Survey(recipe, export, plate_map, digest, state, tuple(todo))


def field_tasks(survey: Survey) -> list[FieldTask]:
    """Returns the fields to convert, as a process of the pool gets them."""
    types = usual_types(survey.export.files)
    tasks = (_task(survey.recipe, survey.export, field) for field in survey.todo)
    return [replace(task, types=types.get(task.field.key.acquisition)) for task in tasks]


def _task(recipe: ConvertRecipe, export: Export, field: Field) -> FieldTask:
    # Without its fields: the plate goes to another process with each of thousands of tasks.
    bare, skip = replace(export.plate, fields=()), recipe.on_error == "skip"
    files = export.files.get(field.key, ())
    return FieldTask(recipe.out, bare, field, files, recipe.codec, recipe.levels, skip)


def _complete_fields(index: Index, recipe: ConvertRecipe, export: Export) -> set[FieldKey]:
    """Returns the fields of a finished plate that need not be looked at again.

    One that lacks planes is, where its files have changed, or the index differs from the image.
    """

    def texts(problems: Iterable[Problem]) -> dict[FieldKey, set[str]]:
        by_field: dict[FieldKey, set[str]] = {}
        for problem in problems:
            by_field.setdefault(problem.key, set()).add(problem.text)
        return by_field

    indexed, reported = texts(index.problems), texts(export.problems)
    complete = {field.key for field in index.plate.fields}
    for field in (field for field in export.plate.fields if field.key in indexed.keys() | reported.keys()):
        task = _task(recipe, export, field)
        own = recorded_problems(task.image, task.inputs)
        if own is None or {*own, *reported.get(field.key, ())} != indexed.get(field.key, set()):
            complete.discard(field.key)
    return complete


# ---------------------------------------------------------------- checks


def check(survey: Survey) -> None:
    """Raises a `UserError` for damaged fields that may not be skipped, or if no field can be converted."""
    recipe, problems = survey.recipe, harmful(survey.export.problems)
    if recipe.on_error == "stop":
        refuse(problems, len(survey.plate.fields), recipe.out.with_suffix(".problems.csv"))
    if not survey.todo and survey.state != "finished":
        raise UserError("\n".join(["no field can be converted:", *listing(survey.export.problems)]))


def check_can_write_plate(survey: Survey, bytes_out: int) -> None:
    """Checks that the plate can be written to `out`.

    Raises:
        AbortRun: too little room.
        UserError: it cannot be written.
    """
    if why := unwritable(survey.recipe.out):
        raise UserError(f"out: {why}; choose another out")
    # A conversion that is resumed has written a part already, which the estimate still counts.
    room = free(survey.recipe.out)
    if survey.state == "new" and room is not None and bytes_out > room:
        raise full(survey.recipe.out, bytes_out)


def _check_names(plate: Plate) -> None:
    """Raises where two fields would share a folder, on disks that ignore case too."""
    folders: dict[tuple[str, str], FieldKey] = {}
    for field in plate.fields:
        other = folders.setdefault((field.key.well, field.key.image.lower()), field.key)
        if other != field.key:
            raise UserError(f"fields {other!r} and {field.key!r} would share a folder: name one otherwise")


# ---------------------------------------------------------------- the digest and the fields


def _digest(recipe: ConvertRecipe, export: Export) -> str:
    keys = {field.key for field in export.plate.fields} | {problem.key for problem in export.problems}
    parts = [plate_facts(export.plate), sorted(map(str, keys)), recipe.codec.model_dump(), recipe.levels]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _digest_of_existing(recipe: ConvertRecipe, export: Export, existing: Index, digest: str) -> str:
    """Returns the digest of the plate that exists, where this export is the same but for metadata.

    Raises:
        UserError: the metadata are others than `set` has left there; the message says how to change them.
    """
    if len(export.plate.channels) != len(existing.plate.channels):
        return digest
    converted = plate_of(export.plate, export.plate, as_converted(existing))
    made_as = _digest(recipe, replace(export, plate=converted))
    if digest == made_as or recorded_digest(recipe.out) != made_as:
        return digest
    if words := words_for(existing.plate, export.plate):
        call = f"python -m hpc_isl.submit set {shlex.quote(str(recipe.out))} {' '.join(words)}"
        raise UserError(f"out: {recipe.out} holds this plate, with other metadata; to change them: {call}")
    return made_as


def _chosen(export: Export, wanted: list[str] | None) -> Export:
    """Returns the export with these fields alone; a well, as b3 or B03, means all its fields."""
    if wanted is None:
        return export
    keys = [field.key for field in export.plate.fields]
    chosen: set[FieldKey] = set()
    for text in wanted:
        well, slash, name = text.partition("/")
        normal = well_name(*well_position(well)) + slash + name
        named = {key for key in keys if normal in (str(key), key.well)}
        if not named:
            names = [*map(str, keys), *export.plate.wells]
            raise UserError(f"fields: the export has no field or well {text!r}; {nearest(text, names)}")
        chosen |= named
    problems = tuple(problem for problem in export.problems if problem.key in chosen)
    return replace(export, plate=export.plate.keep(chosen), problems=problems)


def _with_missing_fields(export: Export) -> Export:
    """Returns the export with fields that have no file among the damaged ones."""
    # Readers report the planes that they miss; a field of which all are missing may escape them.
    named = {problem.key for problem in export.problems}
    bare = (field.key for field in export.plate.fields if not export.files.get(field.key))
    more = [Problem(key, "none of its files is there", "missing") for key in bare if key not in named]
    return replace(export, problems=(*export.problems, *more))
