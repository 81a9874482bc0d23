"""What a conversion finds before it starts: the export, the plate that may be there already, the costs."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.assemble import usual_types
from hpc_isl.plates.atomic_directory import free, full, unwritable
from hpc_isl.plates.change_metadata import as_converted, plate_of, words_for
from hpc_isl.plates.metadata import plate_facts
from hpc_isl.plates.plate import (
    TRANSMITTED,
    Export,
    Field,
    FieldKey,
    Plate,
    Problem,
    doubtful_size,
    well_name,
    well_position,
)
from hpc_isl.plates.plate_map import PlateMap, merged, read_plate_map
from hpc_isl.plates.readers import detect
from hpc_isl.plates.readers.folder import left_out_lines
from hpc_isl.plates.store import Index
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.stages.convert.costs import Costs, readable
from hpc_isl.stages.convert.field import FieldTask, converted
from hpc_isl.stages.convert.problems import counted, harmful, listing, refuse
from hpc_isl.stages.convert.record import State, finished_plate, recorded, state


@dataclass(frozen=True)
class Survey:
    """What there is and what is to be done.

    Attributes:
        export: with the chosen fields alone, damaged ones included.
        digest: of the plate to be made, as far as names, layout and recipe say; the same for a
            conversion that goes on.
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


def survey(recipe: ConvertRecipe) -> Survey:
    """Reads the export's index and looks at `out`; no pixel is decoded and nothing is written.

    Raises:
        UserError: for all that can be known now: no export, damaged fields (on_error: stop), another
            plate at `out`, a plate map that does not fit, fields that are not there.
    """
    _check_places(recipe)
    export = _complete(_chosen(detect.read(recipe), recipe.fields))
    digest = _digest(recipe, export)
    if there := finished_plate(recipe.out):
        digest = _digest_of(recipe, export, there, digest)
        export = replace(export, plate=plate_of(export.plate, export.plate, there.plate))
    plate = export.plate
    _check_names(plate)
    plate_map = merged(export.plate_map, {})
    if recipe.plate_map:
        size = len(plate.rows), len(plate.columns)
        plate_map = merged(plate_map, read_plate_map(recipe.plate_map, *size, export.plate_map))
    at_out = state(recipe.out, digest)
    todo = tuple(field for field in plate.fields if export.files.get(field.key))
    if there:
        written = _complete_fields(there, recipe, export)
        todo = tuple(field for field in todo if field.key not in written)
    return Survey(recipe, export, plate_map, digest, at_out, todo)


def field_tasks(found: Survey) -> list[FieldTask]:
    """The fields to do, as a process of the pool gets them."""
    types = usual_types(found.export.files)
    made = (_work(found.recipe, found.export, field) for field in found.todo)
    return [replace(work, types=types.get(work.field.key.acquisition)) for work in made]


def _work(recipe: ConvertRecipe, export: Export, field: Field) -> FieldTask:
    bare, skip = replace(export.plate, fields=()), recipe.on_error == "skip"
    files = export.files.get(field.key, ())
    return FieldTask(recipe.out, bare, field, files, recipe.codec, recipe.levels, skip)


def _complete_fields(index: Index, recipe: ConvertRecipe, export: Export) -> set[FieldKey]:
    """Those of a finished plate that need not be looked at again.

    One that lacks planes is, where its files have changed, or the index says otherwise than the image.
    """
    known = _texts(index.problems)
    told = _texts(export.problems)
    there = {field.key for field in index.plate.fields}
    for field in (field for field in export.plate.fields if field.key in known.keys() | told.keys()):
        work = _work(recipe, export, field)
        own = converted(work.image, work.inputs)
        if own is None or {*own, *told.get(field.key, ())} != known.get(field.key, set()):
            there.discard(field.key)
    return there


def _texts(problems: Iterable[Problem]) -> dict[FieldKey, set[str]]:
    texts: dict[FieldKey, set[str]] = {}
    for problem in problems:
        texts.setdefault(problem.key, set()).add(problem.text)
    return texts


def describe(found: Survey, costs: Costs) -> tuple[str, ...]:
    """What a person wants to know before it starts: what is there, what it takes, what is wrong."""
    plate, recipe = found.plate, found.recipe
    lines = [f"{plate.name}: {_counted(found.export)}", *_kinds(plate)]
    lines += [*found.export.remarks, *_left_out(found)]
    if plate.pixel_um is None:
        lines.append("pixel size unknown: positions are kept in pixels, no micrometres are invented")
    elif doubt := doubtful_size(plate):
        lines.append(f"warning: {doubt}")
    lines += _plate_map_lines(found)
    if found.state == "finished" and not found.todo:
        return (*lines, f"{recipe.out} holds this plate already: nothing to convert")
    if found.state == "unfinished":
        lines.append(f"{recipe.out} is half converted: fields that are there and unchanged are kept")
    room = free(recipe.out)
    lines.append(
        f"{_many(len(found.todo), 'field')} to convert: {readable(costs.bytes_in)} in, about "
        f"{readable(costs.bytes_out)} out (pixels take {100 * costs.share:.0f} % with {recipe.codec.name})"
        + (f", {readable(room)} free at {recipe.out}" if room is not None else "")
    )
    if found.export.problems:
        lines += [f"planes of these fields are not there: {counted(found.export.problems)}"]
        lines += listing(found.export.problems)
    return tuple(lines)


def check(found: Survey) -> None:
    """Raises what forbids the conversion: damaged fields that may not be skipped."""
    recipe, problems = found.recipe, harmful(found.export.problems)
    if recipe.on_error == "stop":
        refuse(problems, len(found.plate.fields), recipe.out.with_suffix(".problems.csv"))
    if not found.todo and found.state != "finished":
        raise UserError("\n".join(["no field can be converted:", *listing(found.export.problems)]))


def check_can_write_plate(found: Survey, costs: Costs) -> None:
    """Raises what forbids to write the plate where it is to lie, as far as that is known beforehand.

    Raises:
        AbortRun: too little room.
        UserError: it cannot be written.
    """
    if why := unwritable(found.recipe.out):
        raise UserError(f"out: {why}; choose another out")
    room = free(found.recipe.out)
    if found.state == "new" and room is not None and costs.bytes_out > room:
        raise full(found.recipe.out, costs.bytes_out)


def _digest(recipe: ConvertRecipe, export: Export) -> str:
    keys = {field.key for field in export.plate.fields} | {problem.key for problem in export.problems}
    parts = [plate_facts(export.plate), sorted(map(str, keys)), recipe.codec.model_dump(), recipe.levels]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _digest_of(recipe: ConvertRecipe, export: Export, there: Index, digest: str) -> str:
    """The digest of the plate that is there, where this export is the same but for metadata.

    Raises:
        UserError: they are others than `set` has left there; how to change them is said.
    """
    if len(export.plate.channels) != len(there.plate.channels):
        return digest
    converted = plate_of(export.plate, export.plate, as_converted(there))
    made_as = _digest(recipe, replace(export, plate=converted))
    if digest == made_as or recorded(recipe.out) != made_as:
        return digest
    if words := words_for(there.plate, export.plate):
        call = f"python -m hpc_isl.submit set {shlex.quote(str(recipe.out))} {' '.join(words)}"
        raise UserError(f"out: {recipe.out} holds this plate, with other metadata; to change them: {call}")
    return made_as


def _check_places(recipe: ConvertRecipe) -> None:
    out, source = recipe.out.absolute(), recipe.source.absolute()
    if out.suffix != ".zarr":
        raise UserError(f"out: {recipe.out}: the name of a plate ends in .zarr, as in {out.name}.zarr")
    if out == source or source in out.parents:
        raise UserError(f"out: {recipe.out} lies inside the export {recipe.source}; choose another folder")


def _check_names(plate: Plate) -> None:
    """Two fields must not share a folder, on disks that ignore case either."""
    folders: dict[tuple[str, str], FieldKey] = {}
    for field in plate.fields:
        other = folders.setdefault((field.key.well, field.key.image.lower()), field.key)
        if other != field.key:
            raise UserError(f"fields {other!r} and {field.key!r} would share a folder: name one otherwise")


def _chosen(export: Export, wanted: list[str] | None) -> Export:
    """The export with these fields alone; a well means all its fields."""
    if wanted is None:
        return export
    keys = [field.key for field in export.plate.fields]
    chosen: set[FieldKey] = set()
    for text in wanted:
        found = {key for key in keys if str(key) == _normal(text) or key.well == _normal(text)}
        if not found:
            names = [*map(str, keys), *export.plate.wells]
            raise UserError(f"fields: the export has no field or well {text!r}; {nearest(text, names)}")
        chosen |= found
    problems = tuple(problem for problem in export.problems if problem.key in chosen)
    return replace(export, plate=export.plate.keep(chosen), problems=problems)


def _complete(export: Export) -> Export:
    """Fields without any file are damaged too, whether or not the reader says so."""
    named = {problem.key for problem in export.problems}
    bare = (field.key for field in export.plate.fields if not export.files.get(field.key))
    more = [Problem(key, "none of its files is there", "missing") for key in bare if key not in named]
    return replace(export, problems=(*export.problems, *more))


def _normal(text: str) -> str:
    """ "b3/1" -> "B03/1"."""
    well, slash, name = text.partition("/")
    return well_name(*well_position(well)) + slash + name


def _counted(export: Export) -> str:
    plate = export.plate
    shapes = Counter(field.shape for field in plate.fields)
    (times, _, depth, height, width), _ = shapes.most_common(1)[0]
    planes = _many(depth, "plane") + (f" × {times} times" if times > 1 else "")
    files = len({file.path for field in plate.fields for file in export.files.get(field.key, ())})
    return (
        f"{_many(len(plate.fields), 'field')} in {_many(len(plate.wells), 'well')}, "
        f"{_many(len(plate.channels), 'channel')} ({', '.join(channel.name for channel in plate.channels)}), "
        f"{planes}, {height} × {width} pixels"
        + (" (fields differ)" if len(shapes) > 1 else "")
        + f", {_many(files, 'file')}"
    )


def _left_out(found: Survey) -> list[str]:
    """The lines that count the files which are not stored, by kind, channel and well."""
    lines = left_out_lines(found.export.left_out, found.recipe.source.resolve())
    count = _many(len(found.export.left_out), "file")
    return [f"{count} will not be stored:", *(f"  {line}" for line in lines)] if lines else []


def _kinds(plate: Plate) -> Iterator[str]:
    """Which channels a network may look at on plates without stains, and which it learns to predict."""
    free = [channel.name for channel in plate.channels if not channel.fluorescent]
    stains = [channel.name for channel in plate.channels if channel.fluorescent]
    yield f"label-free: {', '.join(free) or 'none'}; stains: {', '.join(stains) or 'none'}"
    doubted = [name for name in stains if TRANSMITTED.search(name)]
    if doubted and plate.details.get("reader") == "pattern":
        yield (
            f"warning: {', '.join(doubted)}: taken as stains, though the names say otherwise; "
            f"pattern.transmitted=[{', '.join([*free, *doubted])}] says that they are label-free"
        )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _plate_map_lines(found: Survey) -> list[str]:
    if not found.plate_map:
        return []
    columns = sorted({name for facts in found.plate_map.values() for name in facts})
    missing = [well for well in found.plate.wells if well not in found.plate_map]
    line = f"plate map: {len(found.plate_map)} wells, columns {', '.join(columns)}"
    return [line + (f"; not in it: {', '.join(missing[:10])}" if missing else "")]
