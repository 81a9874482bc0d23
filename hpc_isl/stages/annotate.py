"""Labels and annotation boxes come to a plate: drafted from a stain, lent to people, brought back."""

from __future__ import annotations

import shlex
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.annotation import export, lent
from hpc_isl.stages.annotation.files import (
    Annotation,
    LabelFile,
    check_headers,
    chosen,
    find,
    fingerprint,
    raise_together,
    read,
    whole,
)
from hpc_isl.stages.shared.following import word

NEEDED = {"import": "source", "draft": "channel", "export": "out"}
Maker = Callable[[], Annotation]


def plan(recipe: AnnotateRecipe) -> Plan:
    """Which fields would get labels; names together all label images that do not fit, by their headers."""
    index = _open(recipe)
    if recipe.action == "export":
        return export.plan(_absolute(recipe), index)
    inputs = {index.plate.name: index.fingerprint}
    if recipe.action == "import":
        files, makers, says = _imports(recipe, index)
        keys = list(makers)
        boxes = sum(len(file.boxes) or 1 for file in files)
        says = [f"{len(files)} label images with {boxes} annotation boxes", *says]
        inputs["label images"] = fingerprint(files)
    else:
        keys = _chosen(recipe, index)
        how = f"{recipe.method} {recipe.threshold}"
        says = [f"drafted from {recipe.channel} of {len(keys)} fields, {how}"]
    there = [key for key in keys if _has(recipe, index, key)]
    if recipe.action == "draft":
        _refuse_drawn(recipe, index, there)
    if there:
        says.append(f"{len(there)} fields have labels {recipe.labels!r} already, {there[0]} among them")
    says.append(
        f"labels {recipe.labels!r} for {len(keys)} of {len(index.plate.fields)} fields of {recipe.plate}"
    )
    return Plan(_absolute(recipe), tuple(says), inputs, (recipe.plate,))


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
        _, makers, says = _imports(recipe, index)
    else:
        makers, says = _drafts(recipe, index), []
    _check(recipe, index, makers)
    tally: Counter[str] = Counter(written=0, kept=0, objects=0, boxes=0, dropped=0)
    with ThreadPoolExecutor(attempt.cpus) as pool:
        found = pool.map(partial(_annotate_field, recipe, index, attempt.stopping), makers.items())
        for number, counts in enumerate(found, 1):
            if counts is None:
                attempt.say("stopped between fields; what is written is kept")
                return
            tally.update(counts)
            attempt.progress(number, len(makers), "fields")
    for line in says:
        attempt.say(line)
    if tally["dropped"]:
        attempt.say(f"{tally['dropped']} objects outside every annotation box were dropped")
    attempt.say(f"{tally['objects']} objects in {tally['boxes']} annotation boxes of {len(makers)} fields")
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
    made = make()
    new = _is_new(recipe, index, key, made)
    if new:
        store.write_labels(
            index.image(key), recipe.labels, made.labels, origin=made.origin, boxes=made.boxes,
            overwrite=recipe.overwrite or bool(made.base),
        )  # fmt: skip
    return {"written": int(new), "kept": int(not new), **made.counts}


def _check(recipe: AnnotateRecipe, index: store.Index, makers: Mapping[FieldKey, Maker]) -> None:
    """Everything that could stop the stage half-way: damaged label images, labels in the way."""
    problems = []
    for key, make in makers.items():
        if recipe.action == "draft" and not _has(recipe, index, key):
            continue
        try:
            _is_new(recipe, index, key, make())
        except Mistake as mistake:
            problems.append(f"{key}: {mistake}")
    raise_together(problems)


def _is_new(recipe: AnnotateRecipe, index: store.Index, key: FieldKey, made: Annotation) -> bool:
    """False where the very same annotation is there already."""
    if not _has(recipe, index, key):
        return True
    image, name = index.image(key), recipe.labels
    origin, boxes = store.annotation(image, name)
    same = (origin, tuple(boxes)) == (made.origin, made.boxes)
    if same and np.array_equal(store.read_labels(image, name), made.labels):
        return False
    if origin == "human" and made.origin == "drafted":
        raise Mistake(f"labels {name!r} are a person's and stay; draft under another name (labels=)")
    if recipe.overwrite or (made.base and made.base == lent.version(image, name)):
        return True
    if made.base:
        raise Mistake(
            f"labels {name!r} have changed since they were exported; import the folder under another name "
            "(labels=)"
        )
    if origin == "human":
        raise Mistake(f"has other labels {name!r} already, a person's; import under another name (labels=)")
    raise Mistake(f"has other labels {name!r} already ({origin}); overwrite=true replaces them")


def _refuse_drawn(recipe: AnnotateRecipe, index: store.Index, there: list[FieldKey]) -> None:
    """A draft never replaces what a person drew."""
    drawn = [key for key in there if store.annotation(index.image(key), recipe.labels)[0] == "human"]
    if drawn:
        raise Mistake(
            f"labels: on {len(drawn)} fields, {drawn[0]} among them, {recipe.labels!r} are a person's and "
            "stay; draft under another name, as in labels=drafted, or name other fields"
        )


def _has(recipe: AnnotateRecipe, index: store.Index, key: FieldKey) -> bool:
    return recipe.labels in store.label_names(index.image(key))


def _open(recipe: AnnotateRecipe) -> store.Index:
    """The plate, after a look at the key that the action needs."""
    if getattr(recipe, NEEDED[recipe.action]) is None:
        raise Mistake(f"annotate {recipe.action}: {NEEDED[recipe.action]} must be given")
    return store.open_plate(recipe.plate)


def _absolute(recipe: AnnotateRecipe) -> AnnotateRecipe:
    paths = {
        name: path and path.absolute() for name, path in (("source", recipe.source), ("out", recipe.out))
    }
    return recipe.model_copy(update={"plate": recipe.plate.absolute(), **paths})


# ---------------------------------------------------------------- import


def _files(recipe: AnnotateRecipe, index: store.Index) -> tuple[list[LabelFile], str]:
    source, folder = recipe.source, _lent(recipe, index)
    assert source is not None
    files, remark = find(folder.table if folder else source, recipe.regex, index)
    check_headers(files, index)
    return files, remark


def _lent(recipe: AnnotateRecipe, index: store.Index) -> lent.Folder | None:
    """What the source is, if `annotate export` wrote it."""
    assert recipe.source is not None
    folder = lent.opened(recipe.source, recipe.labels)
    if folder is None and recipe.accept:
        raise Mistake(
            f"accept: {recipe.source} was not written by annotate export; other labels are human anyway"
        )
    if folder is not None:
        lent.check(folder, index)
        if recipe.regex is not None:
            raise Mistake(f"regex: {folder.path} says itself which label image is whose; leave it out")
    return folder


def _imports(
    recipe: AnnotateRecipe, index: store.Index
) -> tuple[list[LabelFile], dict[FieldKey, Maker], list[str]]:
    """The label images, what is to be written of them, and what a user should know of those lent before.

    What was lent is read to know whether it has changed, so what stands in its way is told at once.
    """
    files, remark = _files(recipe, index)
    says = [remark] if remark else []
    folder = _lent(recipe, index)
    if folder is None:
        return files, {file.key: partial(_imported, file, index) for file in files}, says
    found = [lent.back(file, index, folder, recipe.accept) for file in files]
    makers: dict[FieldKey, Maker] = {
        one.file.key: partial(lent.annotation, one, index) for one in found if one.origin is not None
    }
    _check(recipe, index, makers)
    if folder.labels != recipe.labels:
        says.append(f"the folder holds labels {folder.labels!r}, which stay as they are on the plate")
    return files, makers, says + lent.says(found, recipe.accept)


def _imported(file: LabelFile, index: store.Index) -> Annotation:
    field = index.field(file.key)
    labels, dropped = read(file, field)
    return Annotation(labels, file.boxes or whole(field), dropped)


# ---------------------------------------------------------------- draft


def _chosen(recipe: AnnotateRecipe, index: store.Index) -> list[FieldKey]:
    """The fields to draft, in plate order; a channel that is not fluorescent is no stain."""
    assert recipe.channel is not None
    channel = index.plate.channels[index.channel(recipe.channel)]
    if not channel.fluorescent:
        stains = [c.name for c in index.plate.channels if c.fluorescent]
        raise Mistake(
            f"channel: {channel.name} is label-free; a stain is needed; {nearest(channel.name, stains)}"
        )
    return chosen(recipe.fields, index)


def _drafts(recipe: AnnotateRecipe, index: store.Index) -> dict[FieldKey, Maker]:
    return {key: partial(_drafted, key, recipe, index) for key in _chosen(recipe, index)}


def _drafted(key: FieldKey, recipe: AnnotateRecipe, index: store.Index) -> Annotation:
    """From the brightest plane at each pixel; a field that is empty in this channel gets no objects."""
    from hpc_isl.objects.draft import draft  # scikit-image, which a plan does without

    field, channel = index.field(key), index.channel(recipe.channel or "")
    if f"empty:{channel}" in index.statistics[key].flags:
        times = field.shape[:1] if field.shape[0] > 1 else ()
        return Annotation(np.zeros(times + field.shape[-2:], np.uint32), whole(field), origin="drafted")
    labels = [
        draft(
            store.read_box(index.image(key), 0, time, channel, slice(None), slice(None), slice(None)).max(0),
            threshold=recipe.threshold, sigma=recipe.sigma, min_area=recipe.min_area, split=recipe.split,
        )
        for time in range(field.shape[0])
    ]  # fmt: skip
    return Annotation(np.stack(labels) if len(labels) > 1 else labels[0], whole(field), origin="drafted")
