"""The stage `annotate`: labels drafted from a stain or imported; export and propose are modules beside it."""

from __future__ import annotations

import shlex
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.recipes.program import CommandRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.annotate import export, export_manifest, propose
from hpc_isl.stages.annotate.annotation import (
    Annotation,
    Choices,
    check_files,
    files_fingerprint,
    read_annotation,
    whole_field,
)
from hpc_isl.stages.annotate.label_files import (
    LabelFile,
    beside,
    chosen,
    find,
    from_table,
    raise_together,
    remarks,
)
from hpc_isl.stages.shared.following import word
from hpc_isl.stages.shared.program import ProgramStopped, command_fingerprint, in_counts, located, predict

THREADS = 4
SCRATCH = "scratch"  # below the run folder: what is exchanged with a program
_CALLING = threading.Lock()  # several programs at once would share a GPU, and the memory
Makers = Mapping[FieldKey, Callable[[], Annotation]]
"""For each field, the function that reads or drafts its annotation."""


def plan(recipe: AnnotateRecipe) -> Plan:
    """Returns which fields would get labels, would be exported, or may be proposed.

    Raises:
        UserError: naming together all label images that do not fit, by their headers.
    """
    if recipe.action == "edit":
        raise UserError("action: edit opens a window, and is no run: type annotate edit by itself")
    index = store.open_plate(recipe.plate)
    paths = {name: getattr(recipe, name) for name in ("plate", "source", "out", "model")}
    absolute = {name: path and path.absolute() for name, path in paths.items()}
    if recipe.command is not None:
        absolute["command"] = located(recipe.command)
    absolute_recipe = recipe.model_copy(update=absolute)
    if recipe.action == "export":
        return export.plan(absolute_recipe, index)
    if recipe.action == "propose":
        return propose.plan(absolute_recipe, index)
    inputs = {index.plate.name: index.fingerprint}
    if recipe.action == "import":
        files, makers, notes = _imports(recipe, index)
        _check(recipe, index, makers)
        keys = list(makers)
        boxes = sum(len(file.boxes) or 1 for file in files)
        messages = [
            f"annotations of {many(len(files), 'field')} with {many(boxes, 'annotation box')}",
            *notes,
        ]
        inputs["label images"] = files_fingerprint(files)
    else:
        keys = _fields_to_draft(recipe, index)
        methods = {"local": "a threshold for each object", "threshold": f"threshold {recipe.threshold}"}
        if absolute_recipe.command is not None:
            methods["command"] = shlex.join(absolute_recipe.command.predict)
            inputs["command"] = command_fingerprint(absolute_recipe.command)
        messages = [f"drafted from {recipe.channel} of {many(len(keys), 'field')}, {methods[recipe.method]}"]
        if without := len(chosen(recipe.fields, index)) - len(keys):
            messages.append(
                f"{many(without, 'field', 'is', 'are')} left out: {recipe.channel} was not imaged there"
            )
    labelled = [key for key in keys if _has_labels(recipe, index, key)]
    # A draft never replaces what a person drew.
    if recipe.action == "draft" and (
        drawn := [key for key in labelled if store.annotation(index.image(key), recipe.labels)[0] == "human"]
    ):
        raise UserError(
            f"labels: {recipe.labels!r} of {many(len(drawn), 'field')}, {drawn[0]} among them, are a "
            "person's and stay; draft under another name, as in labels=drafted, or name other fields"
        )
    if labelled:
        messages.append(
            f"{many(len(labelled), 'field', 'has', 'have')} labels {recipe.labels!r} already, "
            f"{labelled[0]} among them"
        )
    messages.append(
        f"labels {recipe.labels!r} for {len(keys)} of {len(index.plate.fields)} fields of {recipe.plate}"
    )
    return Plan(absolute_recipe, tuple(messages), inputs, (recipe.plate,))


def annotate(recipe: AnnotateRecipe, attempt: Attempt) -> None:
    """Writes the labels, field by field, one thread per CPU; labels that exist and are equal are left alone.

    Nothing is written while a label image is damaged, or while other labels would be written over
    without `overwrite`: all such fields are named together.
    """
    if attempt.rank:
        return
    index = store.open_plate(recipe.plate)
    actions = {"export": export.export, "propose": propose.propose}
    if recipe.action in actions:
        actions[recipe.action](recipe, index, attempt)
        return
    makers: Makers
    if recipe.action == "import":
        _, makers, messages = _imports(recipe, index)
    else:
        keys, messages = _fields_to_draft(recipe, index), []
        makers = {key: partial(_draft, key, recipe, index, attempt) for key in keys}
    _check(recipe, index, makers)
    # From here on, only a full disk or a kill can stop it half-way; equal labels are then kept.
    tally: Counter[str] = Counter(written=0, kept=0, objects=0, boxes=0, dropped=0, hidden=0)
    with ThreadPoolExecutor(attempt.cpus) as pool:
        results = pool.map(partial(_annotate_field, recipe, index, attempt.stopping), makers.items())
        for number, counts in enumerate(results, 1):
            if counts is None:
                attempt.log("stopped between fields; what is written is kept")
                return
            tally.update(counts)
            attempt.progress(number, len(makers), "fields")
    shutil.rmtree(attempt.run.folder / SCRATCH, ignore_errors=True)
    for line in messages:
        attempt.log(line)
    if tally["dropped"]:
        attempt.log(f"dropped: {many(tally['dropped'], 'object')} outside every annotation box")
    if tally["hidden"]:
        attempt.log(f"left out: {many(tally['hidden'], 'outline')} without a pixel of their own")
    attempt.log(
        f"{many(tally['objects'], 'object')} in {many(tally['boxes'], 'annotation box')} "
        f"of {many(len(makers), 'field')}"
    )
    next_line = f"inspect {shlex.quote(str(recipe.plate))}"
    if recipe.action == "draft":  # drafts are for a person to correct
        keys_of_export = {
            "plate": str(recipe.plate), "labels": recipe.labels, "fields": recipe.fields, "out": "todo",
        }  # fmt: skip
        words = [word(key, value) for key, value in keys_of_export.items() if value]
        next_line = " ".join(["annotate export", *words])
    attempt.finish({
        "fields": len(makers),
        **tally,
        "made": {f"labels {recipe.labels!r}": str(recipe.plate)},
        "next": [next_line],
    })  # fmt: skip


# ---------------------------------------------------------------- writing


def _annotate_field(
    recipe: AnnotateRecipe,
    index: store.Index,
    stopping: threading.Event,
    item: tuple[FieldKey, Callable[[], Annotation]],
) -> dict[str, int] | None:
    """Makes and writes the labels of one field; returns its counts, or None where the stage is to stop."""
    if stopping.is_set():
        return None
    key, make = item
    try:
        annotation, image = make(), index.image(key)
    except ProgramStopped:
        return None
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    is_new = _is_new(recipe, index, key, annotation)
    if is_new:
        current = annotation.base and annotation.base == export_manifest.labels_version(image, recipe.labels)
        store.write_labels(
            image, recipe.labels, annotation.labels, origin=annotation.origin, boxes=annotation.boxes,
            overwrite=recipe.overwrite or bool(annotation.base),
            made_from=store.labels_checksum(image, recipe.labels) if current else None,
        )  # fmt: skip
    return {"written": int(is_new), "kept": int(not is_new), **annotation.counts}


def _check(recipe: AnnotateRecipe, index: store.Index, makers: Makers) -> None:
    """Raises what could stop the stage half-way: damaged label images, labels that may not be replaced."""

    def problem(item: tuple[FieldKey, Callable[[], Annotation]]) -> str:
        key, make = item
        if recipe.action == "draft" and not _has_labels(recipe, index, key):
            return ""  # nothing can be in its way, and drafting is slow
        try:
            _is_new(recipe, index, key, make())
        except UserError as error:
            return f"{key}: {error}"
        except ProgramStopped:
            pass  # and so will be the stage, before it writes anything
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        raise_together([text for text in pool.map(problem, makers.items()) if text])


def _is_new(recipe: AnnotateRecipe, index: store.Index, key: FieldKey, annotation: Annotation) -> bool:
    """Returns False where the very same annotation exists already.

    Raises:
        UserError: other labels exist that may not be replaced.
    """
    if not _has_labels(recipe, index, key):
        return True
    image, name = index.image(key), recipe.labels
    origin, boxes = store.annotation(image, name)
    same = np.array_equal(store.read_labels(image, name), annotation.labels)
    # Equal pixels with other boxes or another author are another annotation.
    if same and (origin, tuple(boxes)) == (annotation.origin, annotation.boxes):
        return False  # a run that was killed half-way is resumed here
    if origin == "human" and annotation.origin == "drafted":
        raise UserError(f"labels {name!r} are a person's and stay; draft under another name (labels=)")
    # Labels that nobody has changed since they were exported may be replaced by their corrections.
    if annotation.base and annotation.base == export_manifest.labels_version(image, name):
        return True
    if recipe.overwrite:
        if not same:
            store.refuse_edited(image, name)
        return True
    if annotation.base:
        raise UserError(
            f"labels {name!r} have changed since they were exported; import the folder under another name "
            "(labels=)"
        )
    if origin == "human":
        raise UserError(f"has other labels {name!r} already, a person's; import under another name (labels=)")
    raise UserError(f"has other labels {name!r} already ({origin}); overwrite=true replaces them")


def _has_labels(recipe: AnnotateRecipe, index: store.Index, key: FieldKey) -> bool:
    return recipe.labels in store.label_names(index.image(key))


# ---------------------------------------------------------------- import


def _imports(recipe: AnnotateRecipe, index: store.Index) -> tuple[list[LabelFile], Makers, list[str]]:
    """Returns the annotation files, what is to be written of them, and remarks for the user."""
    assert recipe.source is not None
    choices = Choices(recipe.objects, recipe.overlaps)
    folder = export_manifest.read_manifest(recipe.source, index.plate.name, recipe.labels)
    if folder is not None:
        if recipe.regex is not None:
            raise UserError(f"regex: {folder.path} says itself which label image is whose; leave it out")
        return _imports_of_export(recipe, index, folder, choices)
    if recipe.accept:
        raise UserError(
            f"accept: {recipe.source} was not written by annotate export; other labels are human anyway"
        )
    files, left_out = find(recipe.source, recipe.regex, index, recipe.fields)
    messages = [*check_files(files, index), *remarks(left_out)]
    makers = {file.key: partial(read_annotation, file, index.field(file.key), choices) for file in files}
    return files, makers, messages


def _imports_of_export(
    recipe: AnnotateRecipe, index: store.Index, folder: export_manifest.ExportedFolder, choices: Choices
) -> tuple[list[LabelFile], Makers, list[str]]:
    """Returns the same for a folder that `annotate export` wrote, where only changes are a person's."""
    files, left_out = from_table(folder.path / export_manifest.TABLE, index, recipe.fields)
    known_names = {file.path.name for file in files} | export.exported_files(folder.fields)
    other_files, others_left_out = beside(folder.path, known_names, index, recipe.fields)
    check_files(files, index)
    images, problems = [], []
    for file in files:
        try:
            other_file = other_files.get(file.key)
            images.append(export_manifest.returned(file, other_file, index, folder, recipe.accept, choices))
        except UserError as error:
            problems.append(f"{file.key}: {error}")
    raise_together(problems)
    makers = {
        image.file.key: partial(
            read_annotation, image.file, index.field(image.file.key), choices, image.origin, image.base
        )
        for image in images
        if image.origin is not None
    }
    taken_files = [image.file for image in images]
    messages = [
        *export_manifest.return_messages(images, recipe.accept),
        *check_files(taken_files, index),
        *remarks(left_out),
        *remarks(others_left_out),
    ]
    if folder.labels != recipe.labels:
        messages.append(f"the folder holds labels {folder.labels!r}, which stay as they are on the plate")
    return taken_files, makers, messages


# ---------------------------------------------------------------- draft


def _fields_to_draft(recipe: AnnotateRecipe, index: store.Index) -> list[FieldKey]:
    """Returns the fields to draft, in plate order: of those that are not named, those that were imaged.

    Raises:
        UserError: a channel that is not fluorescent is no stain; a field that is named lacks it.
    """
    assert recipe.channel is not None
    number = index.channel(recipe.channel)
    channel = index.plate.channels[number]
    if not channel.fluorescent and recipe.method != "command":
        stains = [c.name for c in index.plate.channels if c.fluorescent]
        raise UserError(
            f"channel: {channel.name} is label-free; a stain is needed; {nearest(channel.name, stains)}"
        )
    # A sparse channel is imaged in some fields: those are meant, unless the user names others.
    keys = chosen(recipe.fields, index)
    imaged = [key for key in keys if index.imaged(key)[:, number].any(-1).all()]
    if not imaged or (recipe.fields is not None and imaged != keys):
        missing = [str(key) for key in keys if key not in imaged]
        raise UserError(f"channel: {channel.name} was not imaged in {', '.join(missing[:10])}")
    return imaged


def _draft(key: FieldKey, recipe: AnnotateRecipe, index: store.Index, attempt: Attempt) -> Annotation:
    """Drafts from the brightest plane at each pixel; a field without any stain gets no objects."""
    from hpc_isl.objects.draft_labels import draft_labels  # scikit-image, which a plan does without
    from hpc_isl.objects.local_drafts import local_labels

    field, channel = index.field(key), index.channel(recipe.channel or "")
    if f"empty:{channel}" in index.statistics[key].flags:
        times = field.shape[:1] if field.shape[0] > 1 else ()
        labels = np.zeros(times + field.shape[-2:], np.uint32)
        return Annotation(labels, whole_field(field), origin="drafted")
    drafts: list[NDArray[np.uint32]] = []
    if recipe.command is not None:
        drafts = _by_command(recipe.command, key, recipe, index, attempt)
    for time in range(field.shape[0] if recipe.command is None else 0):
        planes = index.planes(key, channel, time)
        stain = store.read_box(index.image(key), 0, time, channel, planes, slice(None), slice(None)).max(0)
        if recipe.method == "local":
            drafts.append(local_labels(stain, min_area=recipe.min_area, split=recipe.split))
            continue
        drafts.append(
            draft_labels(
                stain, threshold=recipe.threshold, sigma=recipe.sigma, min_area=recipe.min_area,
                split=recipe.split,
            )
        )  # fmt: skip
    labels = np.stack(drafts) if len(drafts) > 1 else drafts[0]
    return Annotation(labels, whole_field(field), origin="drafted")


def _by_command(
    command: CommandRecipe, key: FieldKey, recipe: AnnotateRecipe, index: store.Index, attempt: Attempt
) -> list[NDArray[np.uint32]]:
    """Returns the labels that another program gives to the times of a field; one call is made at a time."""
    from hpc_isl.learning.data.samples import read
    from hpc_isl.learning.data.view import Role, View

    fluorescent = index.plate.channels[index.channel(str(recipe.channel))].fluorescent
    view = in_counts(View((Role(str(recipe.channel), "max" if fluorescent else "focus"),), ()))
    images = [read(view, index, key, time)[0] for time in range(index.field(key).shape[0])]
    with _CALLING:
        return predict(command, images, None, attempt.run.folder / SCRATCH, attempt.stopping)
