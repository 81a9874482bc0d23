"""The stage `adopt`: a plate that another program wrote as OME-Zarr is measured once and used where it lies.

Nothing is written into that plate: index and labels go to a folder beside it. Where `labels=inside` is asked
for, labels alone go into its images, later, by the verbs that make them.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl import metadata_changes
from hpc_isl.errors import UserError, many
from hpc_isl.files import read_json, same_place
from hpc_isl.plate_home import beside
from hpc_isl.plates import adopted, metadata, ome_zarr
from hpc_isl.plates.adopted import AdoptedPlate
from hpc_isl.plates.atomic_directory import (
    remove_partial,
    reserved,
    translate_write_errors,
    unwritable,
)
from hpc_isl.plates.change_metadata import former, plate_of
from hpc_isl.plates.ome_zarr import OtherPlate
from hpc_isl.plates.plate import Plate, Problem, doubtful_size
from hpc_isl.plates.plate_map import PlateMap, read_plate_map
from hpc_isl.plates.store import Index, finalise
from hpc_isl.recipes.plates import AdoptRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.adopt.field import AdoptTask, adopt_field, describe_field
from hpc_isl.stages.shared.following import pretrain_line
from hpc_isl.stages.shared.parallel import in_parallel

LOCK = "index/adopt.lock"
SHOWN = 20  # problems on one screen


@dataclass(frozen=True)
class Adoption:
    """The plate to adopt, and where its index and labels go.

    Attributes:
        home: folder that gets index and labels.
        inside: labels go into the plate's images instead.
        plate: with metadata as `set` has left them, if it was adopted before.
    """

    recipe: AdoptRecipe
    other: OtherPlate
    home: Path
    inside: bool
    plate: Plate
    plate_map: PlateMap


def plan(recipe: AdoptRecipe) -> Plan:
    """Returns what adopting would do; writes nothing.

    Raises:
        UserError: no plate, one that cannot be read, or damaged images that may not be skipped.
    """
    recipe = _absolute(recipe)
    adoption = _prepare(recipe)
    _refuse(recipe, adoption.other.problems, len(adoption.other.plate.fields))
    if why := unwritable(adoption.home):
        raise UserError(f"index: {why}; choose another folder with index=")
    digest = adopted.metadata_digest(adoption.other.path)
    return Plan(
        recipe=recipe,
        messages=tuple(_description(adoption)),
        inputs={"plate": digest[:16]},
        makes=(adoption.home,),
    )


def adopt(recipe: AdoptRecipe, attempt: Attempt) -> None:
    """Measures all fields that were not measured, or changed since, and writes the index last of all.

    Killed or stopped at any moment and started again, it resumes. One process per CPU measures fields; other
    ranks do nothing.

    Raises:
        UserError: naming the fields that cannot be read (on_error: stop), or a folder that may not be
            written.
    """
    if attempt.rank:
        return
    adoption = _prepare(_absolute(recipe))  # again, because the plate may have changed since it was planned
    problems, fields = list(adoption.other.problems), adoption.other.plate.fields
    _refuse(recipe, problems, len(fields))
    begun, home = time.monotonic(), adoption.home
    with reserved(home, LOCK, "index", "adopting into"), translate_write_errors(home):
        remove_partial(home)
        digest = adopted.metadata_digest(adoption.other.path)
        kept = done = 0
        outcomes = in_parallel(adopt_field, _tasks(adoption), attempt.cpus, attempt.stopping)
        for done, outcome in enumerate(outcomes, start=1):
            kept += outcome.is_kept
            if outcome.problem:
                problems.append(Problem(outcome.key, outcome.problem))
                attempt.log(f"{outcome.key}: {outcome.problem}")
            attempt.progress(done, len(fields), "fields", kept, kept=kept, damaged=len(problems))
        if done < len(fields):
            attempt.log("stopped between fields; what is measured is kept")
            return
        _refuse(recipe, problems, len(fields))
        readable = {field.key for field in fields} - {problem.key for problem in problems}
        adopted_plate = AdoptedPlate(adoption.other.path, digest, adoption.inside)
        index = finalise(home, adoption.plate.keep(readable), adoption.plate_map, problems, adopted_plate)
    _finish(adoption, index, attempt, kept, time.monotonic() - begun)


def _finish(adoption: Adoption, index: Index, attempt: Attempt, kept: int, seconds: float) -> None:
    home, fields = adoption.home, len(index.plate.fields)
    # By the plate's own name where its folder lies beside it: that is how a user knows it.
    name = shlex.quote(str(adoption.other.path if home == beside(adoption.other.path) else home))
    attempt.log(
        f"{adoption.other.path}: fields: {fields}, {kept} of them measured before; "
        f"{'index' if adoption.inside else 'index and labels'}: {home}; fingerprint {index.fingerprint}"
    )
    attempt.finish({
        "fields": fields,
        "kept": kept,
        "skipped": len({problem.key for problem in index.problems}),
        "seconds": round(seconds, 1),
        "fingerprint": index.fingerprint,
        "made": {"index": str(home)},
        "next": [f"inspect {name}", *filter(None, [pretrain_line(index)])],
    })  # fmt: skip


def _tasks(adoption: Adoption) -> list[AdoptTask]:
    # Without its fields: the plate goes to another process with each of thousands of tasks.
    plate, other = replace(adoption.plate, fields=()), adoption.other
    digests = {field.key: describe_field(other.plate, field) for field in other.plate.fields}
    return [
        AdoptTask(adoption.home, other.path, plate, field, other.sources[field.key], digests[field.key])
        for field in adoption.plate.fields
    ]


# ---------------------------------------------------------------- before


def _absolute(recipe: AdoptRecipe) -> AdoptRecipe:
    paths = {name: getattr(recipe, name) for name in ("plate", "index", "wells", "plate_map")}
    return recipe.model_copy(
        update={name: path and path.expanduser().absolute() for name, path in paths.items()}
    )


def _prepare(recipe: AdoptRecipe) -> Adoption:
    """Reads the other plate's metadata, and those of its index if there is one."""
    facts = (
        metadata.read_group(recipe.plate).get("hpc_isl") if (recipe.plate / "zarr.json").is_file() else None
    )
    if facts and "plate" in facts:
        reason = (
            "is the index of a plate; adopt that" if adopted.PLATE_KEY in facts else "was written by convert"
        )
        raise UserError(f"{recipe.plate}: {reason}: there is nothing to adopt")
    other = ome_zarr.read(recipe.plate, recipe.transmitted, recipe.wells)
    home = recipe.index or beside(recipe.plate)
    plate = other.plate
    index_facts = _index_facts(home, other) if home.exists() else {}
    if index_facts.get(metadata_changes.KEY):
        plate = _with_corrections(plate, index_facts, home, recipe.transmitted is None)
    plate_map: PlateMap = index_facts.get("plate_map", {})
    if recipe.plate_map:
        plate_map = read_plate_map(recipe.plate_map, len(plate.rows), len(plate.columns), {})
    former_labels = index_facts.get(adopted.PLATE_KEY, {}).get("labels", "beside")
    inside = (recipe.labels or former_labels) == "inside"
    if inside:
        _refuse_inside(other)
    return Adoption(recipe, other, home, inside, plate, plate_map)


def _refuse_inside(other: OtherPlate) -> None:
    """Raises a `UserError` where labels cannot go into the plate itself."""
    reason = ""
    if other.version != "0.5":
        reason = f"it is OME-Zarr {other.version}, and labels are written as 0.5"
    elif other.uneven:
        reason = f"levels of {other.uneven[0]} do not halve the one before, as levels of labels do"
    else:
        images = [other.path / source.image for source in other.sources.values()]
        reason = next(filter(None, map(unwritable, [other.path, *images])), "")
    if reason:
        raise UserError(f"labels: inside: {other.path}: {reason}; labels=beside leaves the plate as it is")


def _with_corrections(plate: Plate, index_facts: dict[str, Any], home: Path, by_name: bool) -> Plate:
    """Returns the plate with the metadata that `set` has corrected since it was adopted.

    Args:
        by_name: which channels are label-free is only taken from their names, in each version in its own way.

    Raises:
        UserError: the plate says something else now than what was corrected.
    """
    corrected_plate = metadata.plate_from(index_facts["plate"], ())
    former_plate = former(corrected_plate, metadata_changes.of_facts(index_facts)[0])

    def size_and_kinds(plate: Plate) -> tuple[object, ...]:
        return plate.pixel_um, [(c.name, by_name or c.fluorescent) for c in plate.channels]

    if size_and_kinds(former_plate) != size_and_kinds(plate):
        raise UserError(
            f"index: {home}: `set` has corrected what the plate said when it was adopted (pixel size "
            f"{former_plate.pixel_um}, channels {_channels(former_plate)}), and it says something else now "
            f"({plate.pixel_um}, {_channels(plate)}); correct the plate by `set` alone, or adopt it into "
            "another index="
        )
    return plate_of(plate, plate, corrected_plate)


def _channels(plate: Plate) -> str:
    return ", ".join(
        channel.name if channel.fluorescent else f"{channel.name} (label-free)" for channel in plate.channels
    )


def _index_facts(home: Path, other: OtherPlate) -> dict[str, Any]:
    """Returns what an index that exists says of the plate; empty: it is not finished.

    Raises:
        UserError: the folder holds something else, or the index of another plate.
    """
    if not home.is_dir():
        raise UserError(f"index: {home} is a file; a folder is made there, so choose another index")
    if not (home / "zarr.json").is_file():
        if (home / LOCK).exists() or not any(home.iterdir()):
            return {}
        raise UserError(f"index: {home} exists already and was not made by adopt; choose another index")
    index_facts: dict[str, Any] = metadata.read_group(home).get("hpc_isl", {})
    if adopted.PLATE_KEY not in index_facts:
        raise UserError(f"index: {home} is another plate; choose another index")
    plate_path = adopted.adopted_plate(home, index_facts).path
    if plate_path.exists() and not same_place(plate_path, other.path):
        raise UserError(f"index: {home} belongs to {plate_path}; choose another index")
    return index_facts


def _refuse(recipe: AdoptRecipe, problems: Sequence[Problem], fields: int) -> None:
    """Raises a `UserError` that names the images that cannot be read, unless they may be skipped."""
    if recipe.on_error == "skip" or not problems:
        return
    lines = [f"  {problem.key}: {problem.text}" for problem in problems[:SHOWN]]
    more = [f"  … and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n".join([
        f"{many(len(problems), 'image')} cannot be read, beside {many(fields, 'field')}:", *lines, *more,
        "repair them and start again, or leave them out with on_error=skip",
    ]))  # fmt: skip


def _description(adoption: Adoption) -> Iterator[str]:
    """Yields lines for the user: what there is, where the index goes, what is odd."""
    other, plate = adoption.other, adoption.plate
    times, _, depth, height, width = plate.fields[0].shape
    names = ", ".join(channel.name for channel in plate.channels)
    yield (
        f"{plate.name}: OME-Zarr {other.version}, {many(len(plate.fields), 'field')} "
        f"in {many(len(plate.wells), 'well')}, "
        f"channels {names}, planes {depth}, times {times}, {height} × {width} pixels"
    )
    label_free = [channel.name for channel in plate.channels if not channel.fluorescent]
    stains = [channel.name for channel in plate.channels if channel.fluorescent]
    hint = "none; transmitted=[NAME, …] says which are"
    yield f"label-free: {', '.join(label_free) or hint}; stains: {', '.join(stains) or 'none'}"
    yield from other.remarks
    if plate.pixel_um is None:
        yield "pixel size unknown: positions are kept in pixels, no micrometres are invented"
    elif doubt := doubtful_size(plate):
        yield f"warning: {doubt}"
    size = sum(int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize for field in plate.fields)
    yield f"{size / 1e9:.3g} GB of pixels are read once, and none is copied"
    if adoption.inside:
        yield f"the index goes to {adoption.home}, labels into the images of {other.path}"
        if "consolidated_metadata" in (read_json(other.path / "zarr.json") or {}):
            yield "its zarr.json lists all groups (consolidated metadata); labels will not be listed there"
    else:
        yield f"index and labels go to {adoption.home}"
    for problem in other.problems[:SHOWN]:
        yield f"left out: {problem.key}: {problem.text}"
