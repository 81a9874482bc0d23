"""The stage `segment`: whole plates and a fine-tuned model become labels, tables of objects and counts."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from hpc_isl.errors import many
from hpc_isl.files import read_json
from hpc_isl.plates.atomic_directory import translate_write_errors
from hpc_isl.plates.store import former_stamp
from hpc_isl.recipes.segment import MeasureRecipe, SegmentRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.seeds import stream
from hpc_isl.stages.segment import finish
from hpc_isl.stages.segment.checks import (
    check_inputs,
    check_label_conflicts,
    check_writable,
    choose_labels_name,
    existing_labels,
)
from hpc_isl.stages.segment.files import (
    FieldTask,
    Row,
    brief,
    done_record,
    remove_partial_labels,
    remove_partial_run,
    schema_file,
    write_record,
    write_table,
)
from hpc_isl.stages.segment.illumination import prepare_illumination
from hpc_isl.stages.segment.inputs import (
    PROCESS_MEMORY,
    PlateInput,
    SegmentInputs,
    segment_inputs,
)
from hpc_isl.stages.segment.models import check_resized, models_of
from hpc_isl.stages.segment.overlap import mark_duplicates
from hpc_isl.stages.shared.field_records import gathered_records
from hpc_isl.stages.shared.following import model_run
from hpc_isl.stages.shared.plate_views import expanded
from hpc_isl.stages.shared.workloads import TRIAL_S, ended_after, net_like
from hpc_isl.tasks import MemoryRequirement, Pool, Pools, Task, Workload

PlateTask = tuple[PlateInput, FieldTask]
FIELDS = "fields"  # the phase, in megapixels at full resolution
LOGGED = 20  # failed fields that are logged one by one
ALIKE = 8  # fields that fail for one reason before any is done: what they lack, the rest lack too


def plan(recipe: SegmentRecipe) -> Plan:
    """Returns what segmenting would do; writes nothing.

    Raises:
        UserError: all that can be known before pixels are read: models, plates, channels, pixel sizes,
            conflicting labels, tiles.
    """
    recipe = recipe.model_copy(update={
        "plates": expanded(recipe.plates), "model": model_run(recipe.model.absolute()).folder,
        "stain": recipe.stain and recipe.stain.absolute(), "measure": _with_paths(recipe.measure),
    })  # fmt: skip
    models = models_of(recipe)
    models.check_channels()
    check_resized(recipe, models)
    inputs, name_messages = choose_labels_name(segment_inputs(recipe, models))
    messages = [*_messages(inputs), *name_messages, *check_inputs(inputs)]
    fingerprints = {plate.name: plate.index.fingerprint for plate in inputs.plates}
    fingerprints["model"] = models.contract.weights
    if models.stain_contract:
        fingerprints["stain"] = models.stain_contract.weights
    labels = f"labels {inputs.models.labels!r}"
    labelled_fields = inputs.fields if inputs.keeps_labels else []
    return Plan(
        inputs.recipe, tuple(messages), fingerprints,
        claims=lambda: ((plate.index.path, f"{labels} of {key}") for plate, key in labelled_fields),
        workload=_workload(inputs),
        precision=("precision", recipe.precision) if recipe.precision else None,
    )  # fmt: skip


def _with_paths(measure: MeasureRecipe) -> MeasureRecipe:
    """Returns the recipe with absolute paths of its files, because a job may run in another folder."""
    files = {name: path.expanduser().absolute() for name, path in measure.flat_field_files.items()}
    dark = measure.dark_file and measure.dark_file.expanduser().absolute()
    return measure.model_copy(update={"flat_field_files": files, "dark_file": dark})


def segment(recipe: SegmentRecipe, attempt: Attempt, pools: Pools) -> None:
    """Segments all fields that are not done yet, then gathers their tables, last of all.

    Killed or stopped at any moment and started again, it resumes and ends with the same labels and tables. A
    field that cannot be read is listed as failed; the others are complete.
    """
    start = time.monotonic()
    inputs = segment_inputs(recipe)
    tasks = list(_tasks(inputs, attempt.run.folder))
    labels = inputs.models.labels if inputs.keeps_labels else None
    ready = list[Row | None]()
    for plate, plate_tasks in groupby(tasks, lambda pair: pair[0]):
        gathered = gathered_records(attempt.run.folder, plate.slug)
        todo = []
        for _, task in plate_tasks:
            record = done_record(task, plate.image(task.key), labels, gathered.get(task.file))
            ready.append(record and brief(task, record))
            todo += [] if record else [task.key]
        # Others may have written there since this run was planned, elsewhere.
        existing = existing_labels(plate, todo)
        check_label_conflicts(plate, existing)
        check_writable(plate, existing)
    _write_schema(inputs, attempt.run.folder)
    for line in prepare_illumination(inputs, attempt.run):
        attempt.log(line)
    with pools(_memory(inputs)) as pool:
        rows = _segment_all(tasks, ready, attempt, pool)
        if rows is None:
            return attempt.log("stopped between fields; what is done is kept")
        duplicates = mark_duplicates(inputs, [task for _, task in tasks], rows, pool)
        if duplicates is None:
            return attempt.log("stopped while overlapping fields were compared; what is done is kept")
        _verify(attempt, tasks, rows, pool)
    if not attempt.stopping.is_set():
        remove_partial_run(attempt.run, attempt.number)
        for plate, key in inputs.fields if inputs.keeps_labels else ():
            remove_partial_labels(plate.image(key), inputs.models.labels)
        with translate_write_errors(attempt.run.folder):
            finish.finish(inputs, attempt, rows, duplicates, time.monotonic() - start)
    return None


def trial(recipe: SegmentRecipe, attempt: Attempt, pools: Pools) -> None:
    """Segments for ten seconds; the time is measured, nothing is kept, and plates stay as they are."""
    inputs = segment_inputs(recipe)
    _write_schema(inputs, attempt.run.folder)
    list(prepare_illumination(inputs, attempt.run))
    tasks = list(_tasks(inputs, attempt.run.folder))
    with pools(_memory(inputs)) as pool, ended_after(attempt, TRIAL_S):
        _segment_all(tasks, [None] * len(tasks), attempt, pool)


def trial_recipe(recipe: SegmentRecipe) -> SegmentRecipe:
    """Returns the recipe with a map in the run folder instead of labels in the plate."""
    task = models_of(recipe).contract.task
    return recipe.model_copy(update={"outputs": ["mask" if task else "stain"]})


def _write_schema(inputs: SegmentInputs, run: Path) -> None:
    """Writes the columns of all tables of objects, before any process writes one."""
    from hpc_isl.stages.segment.field import schema_of  # brings torch

    write_table(schema_file(run), schema_of(inputs.plates).empty_table())


# ---------------------------------------------------------------- plan


def _workload(inputs: SegmentInputs) -> Workload:
    recipe, contract, stain = inputs.recipe, inputs.models.contract, inputs.models.stain_contract
    scale = inputs.plates[0].scale(inputs.plates[0].keys[0])
    like = {
        "stage": "segment", **net_like(contract.net, recipe.predict or contract.predict),
        "kind": inputs.models.kind, "enlarged": round(scale.to_level_0, 2),
        "measure": recipe.measure.channels, "cells": recipe.cells is not None,
        "write": sorted(recipe.outputs), **_slower_measurements(recipe),
        "stain": stain and net_like(stain.net, stain.predict), "threads": recipe.threads,
        "precision": recipe.precision, "compile": recipe.compile,
    }  # fmt: skip
    if contract.program is not None:
        like["program"] = contract.program.predict
    count = len(inputs.fields)
    # The first field belongs to the start.
    return Workload(like, {FIELDS: _pixels(inputs) / 1e6 * (count - 1) / count})


def _slower_measurements(recipe: SegmentRecipe) -> dict[str, object]:
    """Returns what takes longer than measuring did in earlier versions, whose times still count."""
    extras: dict[str, object] = {"corrected": recipe.measure.corrects, "nuclei": recipe.nuclei is not None}
    extras["groups"] = sorted({*recipe.measure.features} - {"shape", "intensity"})
    return {name: value for name, value in extras.items() if value}


def _messages(inputs: SegmentInputs) -> Iterator[str]:
    recipe, models, pixels = inputs.recipe, inputs.models, _pixels(inputs)
    several = len(inputs.plates) > 1
    plates = f"{len(inputs.plates)} plates" if several else f"plate {inputs.plates[0].name}"
    labels = f", segmented into {models.labels!r}" if inputs.keeps_labels else ""
    yield f"{plates}: {many(len(inputs.fields), 'field')}, {pixels / 1e9:.3g} gigapixels{labels}"
    task = models.contract.task
    kind = f"{task.kind}, arm {task.arm}" if task else "a stain, from which objects are drafted"
    tile = (recipe.predict or models.contract.predict).tile
    tiles = f"tiles of {tile} pixels" if tile else "whole fields"
    method = f"U-Net on {models.contract.net.encoder}, {tiles}"
    if models.contract.program is not None:
        method = f"another program, {shlex.join(models.contract.program.predict)}"
    pixel_um = recipe.pixel_um or models.contract.view.pixel_um
    pixel_size = f"pixels of {pixel_um:.3g} µm" if pixel_um else "pixels of unknown size"
    yield f"model {models.folder.parent}: {kind}; {method}, {pixel_size}"
    min_area = recipe.min_area if recipe.min_area is not None else task.min_area if task else 0
    if recipe.min_area is None and task and task.min_area_um2 is not None:
        yield f"objects of less than {task.min_area_um2:.3g} µm² are dropped, and counted"
    elif min_area > 1:
        yield f"objects of less than {min_area} pixels, as the model sees them, are dropped, and counted"
    if labels:  # measured on cells: 0.4 bytes a pixel, with the pyramid
        yield f"about {max(pixels * 0.4 / 1e9, 0.001):.3g} GB of labels will be written to the plates"


def _pixels(inputs: SegmentInputs) -> int:
    """Returns the pixels of all fields at full resolution, over all their times."""
    plates = inputs.plates
    return sum(round(1e6 * sum(plate.megapixels(key) for key in plate.keys)) for plate in plates)


# ---------------------------------------------------------------- all fields


def _tasks(inputs: SegmentInputs, run: Path) -> Iterator[PlateTask]:
    reference = inputs.recipe.reference_labels
    other_labels = inputs.recipe.cells or inputs.recipe.nuclei or (reference and reference.labels)
    for plate, key in inputs.fields:
        labels_fingerprint = plate.labels_fingerprint(key)
        fingerprint = plate.fingerprint(key, labels_fingerprint)
        # Earlier versions told other labels apart by another stamp: their records still count.
        former = plate.fingerprint(key, labels_fingerprint, former_stamp) if other_labels else fingerprint
        place = (run, plate.index.path, plate.name, plate.slug)
        yield plate, FieldTask(*place, key, fingerprint, labels_fingerprint, former, plate.confidence)


def _segment_all(
    tasks: Sequence[PlateTask], ready: Sequence[Row | None], attempt: Attempt, pool: Pool
) -> list[Row] | None:
    """Returns a row for each field, in order, a failed one with its `problem`; None if the run is stopping.

    `ready`: the row of each field that is done, or None.
    """
    from hpc_isl.stages.segment.field import segment_field  # brings torch

    rows = list(ready)
    todo = {str(tasks[place][1].record): place for place, row in enumerate(rows) if row is None}
    done_rows = [row for row in rows if row is not None]
    progress = _Progress(attempt, len(tasks), len(done_rows), sum(row["objects"] for row in done_rows))
    todo_tasks = ((name, *tasks[place]) for name, place in todo.items())
    pool_tasks = (Task(name, task, plate.memory(task.key)) for name, plate, task in todo_tasks)
    for answer in pool.run(segment_field, pool_tasks):
        plate, task = tasks[todo[answer.name]]
        row = answer.value
        if answer.problem:
            task.table.unlink(missing_ok=True)  # an earlier attempt may have read the field
            row = write_record(task, {"problem": answer.problem})
            progress.problem(f"{task.name} {task.key}", answer.problem)
        rows[todo[answer.name]] = brief(task, row)
        attempt.clock.tick(FIELDS, plate.megapixels(task.key) / max(1, pool.workers))
        progress.field(row)
    complete = [row for row in rows if row is not None]
    return complete if len(complete) == len(rows) else None


class _Progress:
    """Keeps the progress bar moving, and logs metrics now and then."""

    def __init__(self, attempt: Attempt, total: int, before: int, objects: int) -> None:
        """`before`: fields that an earlier attempt has done, with so many objects."""
        self.attempt, self.total, self.done, self.before = attempt, total, before, before
        self.objects, self.failed = objects, 0
        self.alike: Counter[str] = Counter()
        self.start = time.monotonic()
        self._show()

    def field(self, row: Row) -> None:
        self.done += 1
        self.objects += row.get("objects", 0)
        self.failed += "problem" in row
        self._show()
        if self.done % max(1, self.total // 200) == 0 or self.done == self.total:
            self.attempt.metric(self.done, **{f"segment/{k}": float(v) for k, v in self._figures().items()})

    def problem(self, name: str, reason: str) -> None:
        """Logs why a field failed, unless many failed before.

        Raises:
            RuntimeError: the first fields have all failed for one reason: so will the rest.
        """
        self.alike[reason] += 1
        if self.failed < LOGGED:
            self.attempt.log(f"failed: {name}: {reason}")
        elif self.failed == LOGGED:
            self.attempt.log("further fields failed; losses.csv will name all of them")
        if self.alike[reason] == ALIKE and self.done - self.before == self.failed == ALIKE - 1:
            raise RuntimeError(f"the first {ALIKE} fields failed for one reason: {reason}")

    def _figures(self) -> dict[str, float]:
        minutes = max(time.monotonic() - self.start, 1e-3) / 60
        failed = {"lost": self.failed} if self.failed else {}  # the name that metrics of all versions have
        return {"objects": self.objects, "fields per minute": (self.done - self.before) / minutes, **failed}

    def _show(self) -> None:
        self.attempt.progress(self.done, self.total, "fields", self.before, **self._figures())


def _memory(inputs: SegmentInputs) -> MemoryRequirement:
    """Returns what a process holds before its first field, and what the field that takes most takes."""
    sizes = {(plate.slug, plate.index.field(key).shape): (plate, key) for plate, key in inputs.fields}
    return MemoryRequirement(PROCESS_MEMORY, max(plate.memory(key) for plate, key in sizes.values()))


# ---------------------------------------------------------------- verify


def _verify(attempt: Attempt, tasks: Sequence[PlateTask], rows: Sequence[Row], pool: Pool) -> None:
    """Computes a share of the fields again, where it was asked for, and compares all results.

    Raises:
        RuntimeError: naming the fields that differ.
    """
    from hpc_isl.stages.segment.field import verify_field  # brings torch

    request = attempt.run.folder / finish.VERIFY
    share = (read_json(request) or {}).get("share", 0.0)
    done = [task for task, row in zip(tasks, rows, strict=True) if "problem" not in row]
    count = min(len(done), max(1, round(share * len(done)))) if share else 0
    # Another attempt verifies other fields.
    chosen = stream(attempt.number, "verify").choice(len(done), count, replace=False)
    fields = {f"{task.name} {task.key}": (plate, task) for plate, task in (done[i] for i in sorted(chosen))}
    pool_tasks = (Task(name, task, plate.memory(task.key)) for name, (plate, task) in fields.items())
    same_count, wrong, not_comparable, edited = 0, [], [], []
    for number, answer in enumerate(pool.run(verify_field, pool_tasks), 1):
        attempt.progress(number, count, "fields verified", number)
        if answer.problem or answer.value.not_comparable:
            not_comparable.append(f"{answer.name}: {answer.problem or answer.value.not_comparable}")
        elif answer.value.fault:
            wrong.append(f"{answer.name}: {answer.value.fault}")
            # So that it is computed anew.
            write_record(fields[answer.name][1], {"problem": f"to be computed again: {answer.value.fault}"})
        elif answer.value.edited:
            edited.append(f"{answer.name}: {answer.value.edited}")
        else:
            same_count += 1
    if not_comparable:
        attempt.log(
            "\n".join([f"{len(not_comparable)} of {count} fields could not be verified", *not_comparable[:5]])
        )
    if edited and not wrong:
        request.unlink()  # nothing would change if they were verified once more
    if wrong or edited:
        raise RuntimeError("\n".join([f"{len(wrong + edited)} of {count} fields differ", *wrong, *edited]))
    if same_count:
        attempt.log(f"{many(same_count, 'field')} computed again: labels and tables are the same")
