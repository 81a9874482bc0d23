"""Before a conversion: the export, the plate that may exist already, the fields to do, and their costs."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import blosc_encode

from hpc_isl.errors import UserError, many
from hpc_isl.plates.assemble import usual_types
from hpc_isl.plates.atomic_directory import free, full, unwritable
from hpc_isl.plates.change_metadata import as_converted, plate_of, words_for
from hpc_isl.plates.metadata import plate_facts
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import (
    Export,
    Field,
    FieldKey,
    PlaneFile,
    Plate,
    Problem,
    doubtful_size,
    is_transmitted,
)
from hpc_isl.plates.plate_map import PlateMap, merged, read_plate_map
from hpc_isl.plates.readers import detect
from hpc_isl.plates.readers.choice import Choice, chosen_part
from hpc_isl.plates.readers.folder import left_out_lines
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.plates import CodecRecipe, ConvertRecipe
from hpc_isl.stages.convert.field import FieldTask, recorded_problems
from hpc_isl.stages.convert.record import State, counted, harmful, listing, recorded_digest, refuse, state_of

SAMPLED_FILES = 1000
PYRAMID = 4 / 3  # levels below the first add a third

Files = Mapping[FieldKey, tuple[PlaneFile, ...]]


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
    choice = Choice(recipe.fields, recipe.channels, recipe.times, recipe.planes)
    export = _with_missing_fields(chosen_part(detect.read(recipe), choice))
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
    plate, skip = replace(export.plate, fields=()), recipe.on_error == "skip"
    files = export.files.get(field.key, ())
    return FieldTask(recipe.out, plate, field, files, recipe.codec, recipe.levels, skip)


def _complete_fields(index: Index, recipe: ConvertRecipe, export: Export) -> set[FieldKey]:
    """Returns the fields of a finished plate that need not be looked at again.

    One that lacks planes is looked at if its files have changed, or the index differs from the image.
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
        recorded = recorded_problems(task.image, task.inputs)
        if recorded is None or {*recorded, *reported.get(field.key, ())} != indexed.get(field.key, set()):
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


def check_can_write_plate(survey: Survey) -> None:
    """Checks that the plate can be written to `out`.

    Raises:
        AbortRun: too little room.
        UserError: it cannot be written.
    """
    if reason := unwritable(survey.recipe.out):
        raise UserError(f"out: {reason}; choose another out")
    # A conversion that is resumed has written a part already, which the estimate still counts.
    room = free(survey.recipe.out)
    # The estimate decodes planes: only where all of them might not fit.
    if survey.state == "new" and room is not None and uncompressed(survey.todo) > room:
        bytes_out = estimate(survey.todo, survey.export.files, survey.recipe.codec).bytes_out
        if bytes_out > room:
            raise full(survey.recipe.out, bytes_out)


def _check_names(plate: Plate) -> None:
    """Raises where two fields would share a folder, on disks that ignore case too."""
    folders: dict[tuple[str, str], FieldKey] = {}
    for field in plate.fields:
        first = folders.setdefault((field.key.well, field.key.image.lower()), field.key)
        if first != field.key:
            raise UserError(f"fields {first} and {field.key} would share a folder: name one otherwise")


# ---------------------------------------------------------------- the digest and the fields


def _digest(recipe: ConvertRecipe, export: Export) -> str:
    keys = {field.key for field in export.plate.fields} | {problem.key for problem in export.problems}
    # Earlier versions left out whether images are corrected: one more statement about the same plate.
    plate = replace(
        export.plate, channels=tuple(replace(channel, corrected="") for channel in export.plate.channels)
    )
    parts: list[Any] = [plate_facts(plate), sorted(map(str, keys)), recipe.codec.model_dump(), recipe.levels]
    # The plate's own facts tell neither times nor planes. Without a choice the digest is the one that earlier
    # versions gave to the same plate.
    options = {"times": recipe.times, "planes": recipe.planes}
    if chosen := {name: sorted(set(numbers)) for name, numbers in options.items() if numbers is not None}:
        parts.append(chosen)
    if len(recipe.sources) > 1:  # the same names may be other places
        parts.append(recipe.match)
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
        raise UserError(
            f"out: {recipe.out} holds this plate, with other metadata; to keep them, type the keys that it "
            f"was converted with; to change them: {call}"
        )
    return made_as


def _with_missing_fields(export: Export) -> Export:
    """Returns the export with fields that have no file among the damaged ones."""
    # Readers report the planes that they miss; a field of which all are missing may escape them.
    reported = {problem.key for problem in export.problems}
    keys = (field.key for field in export.plate.fields if not export.files.get(field.key))
    missing = [Problem(key, "none of its files is there", "missing") for key in keys if key not in reported]
    return replace(export, problems=(*export.problems, *missing))


# ---------------------------------------------------------------- costs


@dataclass(frozen=True)
class Costs:
    """Estimated bytes.

    Attributes:
        compressed: compressed over raw size, at most 1.
    """

    bytes_in: int
    bytes_out: int
    compressed: float


def estimate(fields: tuple[Field, ...], files: Files, codec: CodecRecipe) -> Costs:
    """Returns what converting these fields takes, from file sizes and one compressed plane per channel."""
    compressed = _compressed_share(fields, files, codec)
    paths = sorted({file.path for field in fields for file in files[field.key]})
    # Of many files from a sample: asking for the size of all takes minutes on a network disk.
    sizes = [_size(path) for path in paths[:: max(len(paths) // SAMPLED_FILES, 1)] if path.exists()]
    return Costs(
        sum(sizes) * len(paths) // max(len(sizes), 1), int(uncompressed(fields) * compressed), compressed
    )


def uncompressed(fields: Iterable[Field]) -> int:
    """Returns the bytes of these fields' pixels with their pyramids, at most, without compression."""
    return int(PYRAMID * sum(prod(field.shape) * np.dtype(field.dtype).itemsize for field in fields))


def _size(path: Path) -> int:
    if path.is_dir():  # an array of OME-Zarr
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _compressed_share(fields: tuple[Field, ...], files: Files, codec: CodecRecipe) -> float:
    """Returns compressed over raw size of one plane per channel of two fields apart from each other."""
    if codec.name == "none" or not fields:
        return 1.0
    sampled = {
        (field.key, file.channel): file
        for field in (fields[len(fields) // 4], fields[3 * len(fields) // 4])
        for file in files[field.key]
    }
    shares = []
    for file in sampled.values():
        try:
            plane = read_plane(file.path, file.page)
        except UserError:
            continue  # the conversion itself will name it
        edge, packed = codec.chunk, 0
        for y in range(0, plane.shape[0], edge):
            for x in range(0, plane.shape[1], edge):
                # The array itself, because bytes have no item size to shuffle by.
                chunk: Any = np.ascontiguousarray(plane[y : y + edge, x : x + edge])
                packed += len(blosc_encode(chunk, codec.level, compressor=codec.name, shuffle="bitshuffle"))
        shares.append(packed / plane.nbytes)
    return min(sum(shares) / len(shares), 1.0) if shares else 1.0


def readable(size: float) -> str:
    """Returns a number of bytes as text, as in "1.5 GB"."""
    unit, scale = ("GB", 1e9) if size >= 1e8 else ("MB", 1e6)
    return f"{size / scale:.{1 if size >= 10 * scale else 2}f} {unit}"


# ---------------------------------------------------------------- messages


def describe(survey: Survey, costs: Costs) -> tuple[str, ...]:
    """Returns lines for the user: what there is, what it takes, what is wrong."""
    plate, out = survey.plate, survey.recipe.out
    lines = [f"{plate.name}: {_counts(survey)}", *_kinds_of_channels(survey), *survey.export.remarks]
    if omitted := left_out_lines(survey.export.left_out, survey.recipe.sources[0].resolve()):
        count = many(len(survey.export.left_out), "file")
        lines += [f"{count} will not be stored:", *(f"  {line}" for line in omitted)]
    if plate.pixel_um is None:
        lines.append("pixel size unknown: positions are kept in pixels, no micrometres are invented")
    elif doubt := doubtful_size(plate):
        lines.append(f"warning: {doubt}")
    if survey.plate_map:
        columns = sorted({name for facts in survey.plate_map.values() for name in facts})
        missing = [well for well in plate.wells if well not in survey.plate_map]
        line = f"plate map: {many(len(survey.plate_map), 'well')}, columns {', '.join(columns)}"
        lines.append(line + (f"; not in it: {', '.join(missing[:10])}" if missing else ""))
    if survey.state == "finished" and not survey.todo:
        return (*lines, f"{out} holds this plate already: nothing to convert")
    if survey.state == "unfinished":
        lines.append(f"{out} is half converted: fields that are there and unchanged are kept")
    room = free(out)
    lines.append(
        f"{many(len(survey.todo), 'field')} to convert: {readable(costs.bytes_in)} in, about "
        f"{readable(costs.bytes_out)} out (pixels take {100 * costs.compressed:.0f} % with "
        f"{survey.recipe.codec.name})" + (f", {readable(room)} free at {out}" if room is not None else "")
    )
    if survey.export.problems:
        lines += [f"planes of these fields are not there: {counted(survey.export.problems)}"]
        lines += listing(survey.export.problems)
    return tuple(lines)


def _counts(survey: Survey) -> str:
    plate = survey.plate
    shapes = Counter(field.shape for field in plate.fields)
    (times, _, depth, height, width), _ = shapes.most_common(1)[0]
    planes = many(depth, "plane") + (f" × {times} times" if times > 1 else "")
    files = len({file.path for field in plate.fields for file in survey.export.files.get(field.key, ())})
    return (
        f"{many(len(plate.fields), 'field')} in {many(len(plate.wells), 'well')}, "
        f"{many(len(plate.channels), 'channel')} ({', '.join(channel.name for channel in plate.channels)}), "
        f"{planes}, {height} × {width} pixels"
        + (" (fields differ)" if len(shapes) > 1 else "")
        + f", {many(files, 'file')}"
    )


def _kinds_of_channels(survey: Survey) -> Iterator[str]:
    """Yields which channels a network may look at, and which it learns to predict."""
    channels = survey.plate.channels
    label_free = [channel.name for channel in channels if not channel.fluorescent]
    stains = [channel.name for channel in channels if channel.fluorescent]
    yield f"label-free: {', '.join(label_free) or 'none'}; stains: {', '.join(stains) or 'none'}"
    doubted = [name for name in stains if is_transmitted(name)]
    if doubted and survey.plate.details.get("reader") == "pattern":
        yield (
            f"warning: {', '.join(doubted)}: taken as stains, though the names say otherwise; "
            f"pattern.transmitted=[{', '.join([*label_free, *doubted])}] says that they are label-free"
        )
