"""Labels and annotation boxes come to a plate: drafted from a stain, lent to people, brought back."""

from __future__ import annotations

import shlex
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.annotate import export, export_manifest
from hpc_isl.stages.annotate.drawn import Annotation, Choices, check_files, fingerprint, read, whole
from hpc_isl.stages.annotate.field_names import LabelFile, raise_together
from hpc_isl.stages.annotate.label_files import beside, chosen, find, listed
from hpc_isl.stages.shared.following import word

NEEDED = {"import": "source", "draft": "channel", "export": "out"}
THREADS = 4
Maker = Callable[[], Annotation]


def plan(recipe: AnnotateRecipe) -> Plan:
    """Which fields would get labels; names together all label images that do not fit, by their headers."""
    index = _open(recipe)
    if recipe.action == "export":
        return export.plan(_absolute(recipe), index)
    inputs = {index.plate.name: index.fingerprint}
    if recipe.action == "import":
        files, makers, messages = _imports(recipe, index)
        _check(recipe, index, makers)
        keys = list(makers)
        boxes = sum(len(file.boxes) or 1 for file in files)
        messages = [f"annotations of {len(files)} fields with {boxes} annotation boxes", *messages]
        inputs["label images"] = fingerprint(files)
    else:
        keys = _chosen(recipe, index)
        messages = [
            f"drafted from {recipe.channel} of {len(keys)} fields, {recipe.method} {recipe.threshold}"
        ]
        if without := len(chosen(recipe.fields, index)) - len(keys):
            messages.append(f"{without} fields are left out: {recipe.channel} was not imaged there")
    there = [key for key in keys if _has(recipe, index, key)]
    if recipe.action == "draft":
        _refuse_drawn(recipe, index, there)
    if there:
        messages.append(f"{len(there)} fields have labels {recipe.labels!r} already, {there[0]} among them")
    messages.append(
        f"labels {recipe.labels!r} for {len(keys)} of {len(index.plate.fields)} fields of {recipe.plate}"
    )
    return Plan(_absolute(recipe), tuple(messages), inputs, (recipe.plate,))


def annotate(recipe: AnnotateRecipe, attempt: Attempt) -> None:
    """Writes the labels, field by field, one thread per CPU; what is there already and equal is left alone.

    Nothing is written while a label image is damaged, or while other labels would be written over
    without `overwrite`: all such fields are named together.
    """
    if attempt.rank:
        return
    index = _open(recipe)
    if recipe.action == "export":
        export.export(recipe, index, attempt)
        return
    if recipe.action == "import":
        _, makers, messages = _imports(recipe, index)
    else:
        makers, messages = _drafts(recipe, index), []
    _check(recipe, index, makers)
    tally: Counter[str] = Counter(written=0, kept=0, objects=0, boxes=0, dropped=0, hidden=0)
    with ThreadPoolExecutor(attempt.cpus) as pool:
        found = pool.map(partial(_annotate_field, recipe, index, attempt.stopping), makers.items())
        for number, counts in enumerate(found, 1):
            if counts is None:
                attempt.log("stopped between fields; what is written is kept")
                return
            tally.update(counts)
            attempt.progress(number, len(makers), "fields")
    for line in messages:
        attempt.log(line)
    if tally["dropped"]:
        attempt.log(f"{tally['dropped']} objects outside every annotation box were dropped")
    if tally["hidden"]:
        attempt.log(f"{tally['hidden']} outlines that have no pixel of their own were left out")
    attempt.log(f"{tally['objects']} objects in {tally['boxes']} annotation boxes of {len(makers)} fields")
    attempt.finish({
        "fields": len(makers),
        **tally,
        "made": {f"labels {recipe.labels!r}": str(recipe.plate)},
        "next": [_following(recipe)],
    })  # fmt: skip


def _following(recipe: AnnotateRecipe) -> str:
    """Drafts are for a person to correct."""
    if recipe.action == "import":
        return f"inspect {shlex.quote(str(recipe.plate))}"
    keys = {"plate": str(recipe.plate), "labels": recipe.labels, "fields": recipe.fields, "out": "todo"}
    return " ".join(["annotate export", *(word(key, value) for key, value in keys.items() if value)])


def _annotate_field(
    recipe: AnnotateRecipe, index: store.Index, stopping: threading.Event, item: tuple[FieldKey, Maker]
) -> dict[str, int] | None:
    """Makes and writes the labels of one field; its counts, or None where the stage is to stop."""
    if stopping.is_set():
        return None
    key, make = item
    made, image = make(), index.image(key)
    new = _is_new(recipe, index, key, made)
    if new:
        known = made.base and made.base == export_manifest.version(image, recipe.labels)
        store.write_labels(
            image, recipe.labels, made.labels, origin=made.origin, boxes=made.boxes,
            overwrite=recipe.overwrite or bool(made.base),
            made_from=store.labels_checksum(image, recipe.labels) if known else None,
        )  # fmt: skip
    return {"written": int(new), "kept": int(not new), **made.counts}


def _check(recipe: AnnotateRecipe, index: store.Index, makers: Mapping[FieldKey, Maker]) -> None:
    """Everything that could stop the stage half-way: damaged label images, labels in the way."""

    def problem(item: tuple[FieldKey, Maker]) -> str:
        key, make = item
        if recipe.action == "draft" and not _has(recipe, index, key):
            return ""
        try:
            _is_new(recipe, index, key, make())
        except UserError as mistake:
            return f"{key}: {mistake}"
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        raise_together([text for text in pool.map(problem, makers.items()) if text])


def _is_new(recipe: AnnotateRecipe, index: store.Index, key: FieldKey, made: Annotation) -> bool:
    """False where the very same annotation is there already."""
    if not _has(recipe, index, key):
        return True
    image, name = index.image(key), recipe.labels
    origin, boxes = store.annotation(image, name)
    same = np.array_equal(store.read_labels(image, name), made.labels)
    if same and (origin, tuple(boxes)) == (made.origin, made.boxes):
        return False
    if origin == "human" and made.origin == "drafted":
        raise UserError(f"labels {name!r} are a person's and stay; draft under another name (labels=)")
    if made.base and made.base == export_manifest.version(image, name):
        return True
    if recipe.overwrite:
        if not same:
            store.refuse_edited(image, name)
        return True
    if made.base:
        raise UserError(
            f"labels {name!r} have changed since they were exported; import the folder under another name "
            "(labels=)"
        )
    if origin == "human":
        raise UserError(f"has other labels {name!r} already, a person's; import under another name (labels=)")
    raise UserError(f"has other labels {name!r} already ({origin}); overwrite=true replaces them")


def _refuse_drawn(recipe: AnnotateRecipe, index: store.Index, there: list[FieldKey]) -> None:
    """A draft never replaces what a person drew."""
    drawn = [key for key in there if store.annotation(index.image(key), recipe.labels)[0] == "human"]
    if drawn:
        raise UserError(
            f"labels: on {len(drawn)} fields, {drawn[0]} among them, {recipe.labels!r} are a person's and "
            "stay; draft under another name, as in labels=drafted, or name other fields"
        )


def _has(recipe: AnnotateRecipe, index: store.Index, key: FieldKey) -> bool:
    return recipe.labels in store.label_names(index.image(key))


def _open(recipe: AnnotateRecipe) -> store.Index:
    """The plate, after a look at the key that the action needs."""
    if getattr(recipe, NEEDED[recipe.action]) is None:
        raise UserError(f"annotate {recipe.action}: {NEEDED[recipe.action]} must be given")
    return store.open_plate(recipe.plate)


def _absolute(recipe: AnnotateRecipe) -> AnnotateRecipe:
    paths = {
        name: path and path.absolute() for name, path in (("source", recipe.source), ("out", recipe.out))
    }
    return recipe.model_copy(update={"plate": recipe.plate.absolute(), **paths})


# ---------------------------------------------------------------- import


def _lent(recipe: AnnotateRecipe, index: store.Index) -> export_manifest.Folder | None:
    """What the source is, if `annotate export` wrote it."""
    assert recipe.source is not None
    folder = export_manifest.opened(recipe.source, recipe.labels)
    if folder is None and recipe.accept:
        raise UserError(
            f"accept: {recipe.source} was not written by annotate export; other labels are human anyway"
        )
    if folder is not None:
        export_manifest.check(folder, index)
        if recipe.regex is not None:
            raise UserError(f"regex: {folder.path} says itself which label image is whose; leave it out")
    return folder


def _imports(
    recipe: AnnotateRecipe, index: store.Index
) -> tuple[list[LabelFile], dict[FieldKey, Maker], list[str]]:
    """The annotation files, what is to be written of them, and what a user should know of them."""
    assert recipe.source is not None
    folder, choices = _lent(recipe, index), Choices(recipe.objects, recipe.overlaps)
    if folder is not None:
        return _imports_lent(recipe, index, folder, choices)
    files, left = find(recipe.source, recipe.regex, index, recipe.fields)
    messages = [*check_files(files, index), *left.remarks()]
    return files, {file.key: partial(read, file, index.field(file.key), choices) for file in files}, messages


def _imports_lent(
    recipe: AnnotateRecipe, index: store.Index, folder: export_manifest.Folder, choices: Choices
) -> tuple[list[LabelFile], dict[FieldKey, Maker], list[str]]:
    """The same of a folder that `annotate export` wrote, where only what has changed is a person's."""
    files, left = listed(folder.table, index, recipe.fields)
    known = {file.path.name for file in files} | export.written(folder.fields)
    others, passed = beside(folder.path, known, index, recipe.fields)
    check_files(files, index)
    found, problems = [], []
    for file in files:
        other = replace(others[file.key], boxes=file.boxes) if file.key in others else None
        try:
            found.append(export_manifest.back(file, other, index, folder, recipe.accept, choices))
        except UserError as mistake:
            problems.append(f"{file.key}: {mistake}")
    raise_together(problems)
    makers: dict[FieldKey, Maker] = {
        one.file.key: partial(export_manifest.annotation, one, index, choices)
        for one in found
        if one.origin is not None
    }
    taken = [one.file for one in found]
    said = [
        *export_manifest.return_messages(found, recipe.accept),
        *check_files(taken, index),
        *left.remarks(),
        *passed.remarks(),
    ]
    if folder.labels != recipe.labels:
        said.append(f"the folder holds labels {folder.labels!r}, which stay as they are on the plate")
    return taken, makers, said


# ---------------------------------------------------------------- draft


def _chosen(recipe: AnnotateRecipe, index: store.Index) -> list[FieldKey]:
    """The fields to draft, in plate order: of those that are not named, those that were imaged.

    Raises:
        UserError: a channel that is not fluorescent is no stain; a field that is named lacks it.
    """
    assert recipe.channel is not None
    channel = index.plate.channels[index.channel(recipe.channel)]
    if not channel.fluorescent:
        stains = [c.name for c in index.plate.channels if c.fluorescent]
        raise UserError(
            f"channel: {channel.name} is label-free; a stain is needed; {nearest(channel.name, stains)}"
        )
    keys = chosen(recipe.fields, index)
    seen = [key for key in keys if index.imaged(key)[:, index.channel(channel.name)].any(-1).all()]
    if not seen or (recipe.fields is not None and seen != keys):
        lacking = [str(key) for key in keys if key not in seen]
        raise UserError(f"channel: {channel.name} was not imaged in {', '.join(lacking[:10])}")
    return seen


def _drafts(recipe: AnnotateRecipe, index: store.Index) -> dict[FieldKey, Maker]:
    return {key: partial(_drafted, key, recipe, index) for key in _chosen(recipe, index)}


def _drafted(key: FieldKey, recipe: AnnotateRecipe, index: store.Index) -> Annotation:
    """From the brightest plane at each pixel; a field that is empty in this channel gets no objects."""
    from hpc_isl.objects.draft_labels import draft_labels  # scikit-image, which a plan does without

    field, channel = index.field(key), index.channel(recipe.channel or "")
    if f"empty:{channel}" in index.statistics[key].flags:
        times = field.shape[:1] if field.shape[0] > 1 else ()
        return Annotation(np.zeros(times + field.shape[-2:], np.uint32), whole(field), origin="drafted")
    labels = []
    for time in range(field.shape[0]):
        planes = index.planes(key, channel, time)
        stain = store.read_box(index.image(key), 0, time, channel, planes, slice(None), slice(None)).max(0)
        labels.append(
            draft_labels(
                stain, threshold=recipe.threshold, sigma=recipe.sigma, min_area=recipe.min_area,
                split=recipe.split,
            )
        )  # fmt: skip
    return Annotation(np.stack(labels) if len(labels) > 1 else labels[0], whole(field), origin="drafted")
