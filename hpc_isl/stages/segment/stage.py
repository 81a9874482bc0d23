"""The stage `segment`: whole plates and a fine-tuned model become labels, tables of objects and counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hpc_isl.files import read_json
from hpc_isl.plates.atomic_directory import translate_write_errors
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import former_stamp
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.seeds import stream
from hpc_isl.stages.segment import finish
from hpc_isl.stages.segment.checks import (
    check_label_conflicts,
    checked,
    existing_labels,
    one_name,
    refuse_unwritable,
)
from hpc_isl.stages.segment.files import (
    FieldTask,
    Row,
    done,
    remove_partial_labels,
    remove_partial_run,
    schema_file,
    write_record,
    write_table,
)
from hpc_isl.stages.segment.inputs import (
    Models,
    PlateInput,
    check_channels,
    fingerprint,
    labels_fingerprint,
    model_run,
    models_of,
    plate_inputs,
    refuse_resized,
    scale_of,
    view_of,
)
from hpc_isl.stages.shared.plate_views import expanded
from hpc_isl.stages.shared.workloads import TRIAL_S, ended_after, net_like
from hpc_isl.tasks import MemoryRequirement, Pool, Pools, Task
from hpc_isl.timing import Workload

PlateTask = tuple[PlateInput, FieldTask]
FIELDS = "fields"  # the phase, in megapixels at full resolution
SAID = 20  # lost fields that are told one by one
ALIKE = 8  # fields that are lost for one reason before any goes well: what they lack, the rest lack too


def plan(recipe: SegmentRecipe) -> Plan:
    """What segmenting would do; writes nothing.

    Raises:
        UserError: whatever can be known before pixels are read: models, plates, channels, pixel sizes,
            labels in the way, tiles.
    """
    recipe = _located(recipe)
    models = models_of(recipe)
    check_channels(recipe, models)
    refuse_resized(recipe, models)
    targets = plate_inputs(recipe, view_of(recipe, models.contract))
    recipe, models, renamed = one_name(recipe, models, targets)
    messages = [*_messages(recipe, models, targets), *renamed, *checked(recipe, models, targets)]
    inputs = {target.name: target.index.fingerprint for target in targets} | {
        "model": models.contract.weights
    }
    if models.stain_contract:
        inputs["stain"] = models.stain_contract.weights
    return Plan(
        recipe, tuple(messages), inputs, claims=lambda: _claims(recipe, models, targets),
        workload=_workload(recipe, models, targets),
        precision=("precision", recipe.precision) if recipe.precision else None,
    )  # fmt: skip


def segment(recipe: SegmentRecipe, attempt: Attempt, pools: Pools) -> None:
    """Segments all fields that are not done yet, then gathers their tables, last of all.

    Killed or stopped at any moment and started again, it goes on and ends with the same labels and tables. A
    field that cannot be read is listed as lost; the others are complete.
    """
    start = time.monotonic()
    models = models_of(recipe)
    targets = plate_inputs(recipe, view_of(recipe, models.contract))
    places = list(_places(recipe, models, targets, attempt.run.folder))
    kept = models.labels if "labels" in recipe.outputs else None
    ready = {work.record: done(work, target.index.image(work.key), kept) for target, work in places}
    for target in targets:  # others may have written there since this run was planned, elsewhere
        todo = [work.key for at, work in places if at is target and ready[work.record] is None]
        found = existing_labels(recipe, models, target, todo)
        check_label_conflicts(recipe, models, target, found)
        refuse_unwritable(target, found)
    _write_schema(recipe, models, targets, attempt.run.folder)
    with pools(_need(recipe, models, targets)) as pool:
        rows = _segment_all(recipe, models, places, ready, attempt, pool)
        if rows is None:
            return attempt.log("stopped between fields; what is done is kept")
        twice = finish.mark_duplicates(recipe, models, places, rows, pool)
        if twice is None:
            return attempt.log("stopped while overlapping fields were compared; what is done is kept")
        _verify(recipe, models, attempt, places, rows, pool)
    if not attempt.stopping.is_set():
        remove_partial_run(attempt.run, attempt.number)
        for target, work in places if "labels" in recipe.outputs else ():
            remove_partial_labels(target.index.image(work.key), models.labels)
        with translate_write_errors(attempt.run.folder):
            finish.finish(recipe, models, targets, attempt, rows, twice, time.monotonic() - start)
    return None


def trial(recipe: SegmentRecipe, attempt: Attempt, pools: Pools) -> None:
    """The same for ten seconds; what it takes is timed, not kept, and plates stay as they are."""
    models = models_of(recipe)
    targets = plate_inputs(recipe, view_of(recipe, models.contract))
    _write_schema(recipe, models, targets, attempt.run.folder)
    places = list(_places(recipe, models, targets, attempt.run.folder))
    with pools(_need(recipe, models, targets)) as pool, ended_after(attempt, TRIAL_S):
        _segment_all(recipe, models, places, {work.record: None for _, work in places}, attempt, pool)


def trial_recipe(recipe: SegmentRecipe) -> SegmentRecipe:
    """The same with a map in the run folder instead of labels in the plate."""
    task = models_of(recipe).contract.task
    return recipe.model_copy(update={"outputs": ["mask" if task else "stain"]})


def _write_schema(recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput], run: Path) -> None:
    """The columns of all tables of objects, before any process writes one."""
    from hpc_isl.stages.segment.measurements import schema_of

    stain = view_of(recipe, models.stain_contract) if models.stain_contract else None
    write_table(schema_file(run), schema_of(recipe, stain, targets).empty_table())


# ---------------------------------------------------------------- plan


def _workload(recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput]) -> Workload:
    first, task = targets[0], models.contract.task
    view = view_of(recipe, models.contract)
    scale = scale_of(recipe, view, first.index, first.keys[0])
    stain = models.stain_contract
    like = {
        "stage": "segment", **net_like(models.contract.net, recipe.predict or models.contract.predict),
        "kind": task.kind if task else "stain", "enlarged": round(scale.to_level_0, 2),
        "measure": recipe.measure, "cells": recipe.cells is not None, "write": sorted(recipe.outputs),
        "stain": stain and net_like(stain.net, stain.predict), "threads": recipe.threads,
        "precision": recipe.precision, "compile": recipe.compile,
    }  # fmt: skip
    fields = sum(len(target.keys) for target in targets)
    pixels = sum(_pixels(target) for target in targets)
    return Workload(like, {FIELDS: pixels / 1e6 * (fields - 1) / fields})  # the first belongs to the start


def _located(recipe: SegmentRecipe) -> SegmentRecipe:
    """The same with globs expanded, absolute paths, and the run whose model is meant."""
    changes = {
        "plates": expanded(recipe.plates),
        "model": model_run(recipe.model.absolute()).folder,
        "stain": recipe.stain and recipe.stain.absolute(),
    }
    return recipe.model_copy(update=changes)


def _messages(recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput]) -> Iterator[str]:
    fields = sum(len(target.keys) for target in targets)
    pixels = sum(_pixels(target) for target in targets)
    plates = f"{len(targets)} plates" if len(targets) > 1 else f"plate {targets[0].name}"
    kept = f", segmented into {models.labels!r}" if "labels" in recipe.outputs else ""
    yield f"{plates}: {fields:,} fields, {pixels / 1e9:.3g} gigapixels{kept}"
    task = models.contract.task
    kind = f"{task.kind}, arm {task.arm}" if task else "a stain, from which objects are drafted"
    of = recipe.predict or models.contract.predict
    tiles = f"tiles of {of.tile} pixels" if of.tile else "whole fields"
    pixel_um = recipe.pixel_um or models.contract.view.pixel_um
    sees = f"pixels of {pixel_um:.3g} µm" if pixel_um else "pixels of unknown size"
    yield f"model {models.folder.parent}: {kind}; U-Net on {models.contract.net.encoder}, {tiles}, {sees}"
    if least := _least(recipe, models):
        yield f"objects of less than {least} are dropped, and counted"
    if kept:  # measured on cells: 0.4 bytes a pixel, with the pyramid
        yield f"about {max(pixels * 0.4 / 1e9, 0.001):.3g} GB of labels will be written to the plates"


def _least(recipe: SegmentRecipe, models: Models) -> str:
    """The area below which an object is dropped; empty: there is none, or the model does not say."""
    task = models.contract.task
    if recipe.min_area is None and task and task.min_area_um2 is not None:
        return f"{task.min_area_um2:.3g} µm²"
    pixels = recipe.min_area if recipe.min_area is not None else task.min_area if task else 0
    return f"{pixels} pixels, as the model sees them," if pixels > 1 else ""


def _claims(
    recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput]
) -> Iterator[tuple[Path, str]]:
    for target in targets if "labels" in recipe.outputs else ():
        for key in target.keys:
            yield target.index.path, f"labels {models.labels!r} of {key}"


def _pixels(target: PlateInput) -> int:
    return round(1e6 * sum(_megapixels(target, key) for key in target.keys))


def _megapixels(target: PlateInput, key: FieldKey) -> float:
    """Of a field at full resolution, over all its times."""
    times, _, _, y, x = target.index.field(key).shape
    return times * y * x / 1e6


# ---------------------------------------------------------------- all fields


def _places(
    recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput], run: Path
) -> Iterator[PlateTask]:
    for target in targets:
        at = (run, target.index.path, target.name, target.slug)
        for key in target.keys:
            whole, own = (of(recipe, models, target.index, key) for of in (fingerprint, labels_fingerprint))
            other = recipe.cells or (recipe.reference_labels and recipe.reference_labels.labels)
            former = fingerprint(recipe, models, target.index, key, former_stamp) if other else whole
            yield target, FieldTask(*at, key, whole, own, former)


def _segment_all(
    recipe: SegmentRecipe,
    models: Models,
    places: Sequence[PlateTask],
    ready: Mapping[Path, Row | None],
    attempt: Attempt,
    pool: Pool,
) -> list[Row] | None:
    """A row for each field, in order, a lost one with its `problem`; None if the run is stopping.

    `ready`: by path of its record, the row of a field that is done, or None.
    """
    from hpc_isl.stages.segment.field import segment_field

    found = dict(ready)
    todo = {str(work.record): work for _, work in places if found[work.record] is None}
    before = [row for row in found.values() if row is not None]
    ledger = _SegmentationLog(attempt, len(places), len(before), sum(row["objects"] for row in before))
    memory = {str(work.record): _field_memory(recipe, models, target, work) for target, work in places}
    sizes = {str(work.record): _megapixels(target, work.key) for target, work in places}
    tasks = (Task(name, work, memory[name]) for name, work in todo.items())
    for answer in pool.run(segment_field, tasks):
        work = todo[answer.name]
        row = answer.value
        if answer.problem:
            work.table.unlink(missing_ok=True)  # an earlier attempt may have read the field
            row = write_record(work, {"problem": answer.problem})
            ledger.problem(f"{work.name} {work.key}", answer.problem)
        found[work.record] = row
        attempt.clock.tick(FIELDS, sizes[answer.name] / max(1, pool.workers))
        ledger.field(row)
    if any(row is None for row in found.values()):
        return None
    return [row for row in found.values() if row is not None]


class _SegmentationLog:
    """Keeps the bar moving, and a line of metrics now and then."""

    def __init__(self, attempt: Attempt, total: int, before: int, objects: int) -> None:
        """`before`: fields that an earlier attempt has done, with so many objects."""
        self.attempt, self.total, self.done, self.before = attempt, total, before, before
        self.objects, self.lost = objects, 0
        self.alike: Counter[str] = Counter()
        self.start = time.monotonic()
        self._show()

    def field(self, row: Row) -> None:
        self.done += 1
        self.objects += row.get("objects", 0)
        self.lost += "problem" in row
        self._show()
        if self.done % max(1, self.total // 200) == 0 or self.done == self.total:
            self.attempt.metric(self.done, **{f"segment/{k}": float(v) for k, v in self._figures().items()})

    def problem(self, name: str, text: str) -> None:
        """Says why a field is lost, unless many were lost before.

        Raises:
            RuntimeError: the first fields have all been lost for one reason: so will be the rest.
        """
        self.alike[text] += 1
        if self.lost < SAID:
            self.attempt.log(f"lost: {name}: {text}")
        elif self.lost == SAID:
            self.attempt.log("further fields are lost; losses.csv will name all of them")
        if self.alike[text] == ALIKE and self.done - self.before == self.lost == ALIKE - 1:
            raise RuntimeError(f"the first {ALIKE} fields are lost for one reason: {text}")

    def _figures(self) -> dict[str, float]:
        minutes = max(time.monotonic() - self.start, 1e-3) / 60
        lost = {"lost": self.lost} if self.lost else {}
        return {"objects": self.objects, "fields per minute": (self.done - self.before) / minutes, **lost}

    def _show(self) -> None:
        self.attempt.progress(self.done, self.total, "fields", self.before, **self._figures())


# ---------------------------------------------------------------- memory


def _need(recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput]) -> MemoryRequirement:
    """What a process holds before its first field, and the field that takes most."""
    from hpc_isl.stages.segment.memory import PROCESS, needed

    fields = ((target.index, key) for target in targets for key in _one_of_each_size(target))
    return MemoryRequirement(PROCESS, max(needed(recipe, models, index, key) for index, key in fields))


def _one_of_each_size(target: PlateInput) -> Iterable[FieldKey]:
    return {target.index.field(key).shape: key for key in target.keys}.values()


def _field_memory(recipe: SegmentRecipe, models: Models, target: PlateInput, work: FieldTask) -> int:
    from hpc_isl.stages.segment.memory import needed

    return needed(recipe, models, target.index, work.key)


# ---------------------------------------------------------------- verify


def _verify(
    recipe: SegmentRecipe,
    models: Models,
    attempt: Attempt,
    places: Sequence[PlateTask],
    rows: Sequence[Row],
    pool: Pool,
) -> None:
    """Computes a share of the fields again, where it was asked for, and compares all that was found.

    Raises:
        RuntimeError: naming the fields that differ.
    """
    from hpc_isl.stages.segment.field import verify_field

    share = (read_json(attempt.run.folder / finish.VERIFY) or {}).get("share", 0.0)
    whole = [place for place, row in zip(places, rows, strict=True) if "problem" not in row]
    count = min(len(whole), max(1, round(share * len(whole)))) if share else 0
    chosen = stream(attempt.number, "verify").choice(len(whole), count, replace=False)
    works = {f"{work.name} {work.key}": (target, work) for target, work in (whole[i] for i in sorted(chosen))}
    tasks = (
        Task(n, work, _field_memory(recipe, models, target, work)) for n, (target, work) in works.items()
    )
    same, wrong, not_comparable, edited = 0, [], [], []
    for number, answer in enumerate(pool.run(verify_field, tasks), 1):
        attempt.progress(number, count, "fields verified", number)
        if answer.problem or answer.value.not_comparable:
            not_comparable.append(f"{answer.name}: {answer.problem or answer.value.not_comparable}")
        elif answer.value.wrong:
            wrong.append(f"{answer.name}: {answer.value.wrong}")
            works[answer.name][1].record.unlink()  # so that it is computed anew
        elif answer.value.edited:
            edited.append(f"{answer.name}: {answer.value.edited}")
        else:
            same += 1
    if not_comparable:
        attempt.log(
            "\n".join([f"{len(not_comparable)} of {count} fields could not be verified", *not_comparable[:5]])
        )
    if edited and not wrong:
        (attempt.run.folder / finish.VERIFY).unlink()  # nothing would change if they were verified once more
    if wrong or edited:
        raise RuntimeError("\n".join([f"{len(wrong + edited)} of {count} fields differ", *wrong, *edited]))
    if same:
        attempt.log(f"{same} fields computed again: labels and tables are the same")
