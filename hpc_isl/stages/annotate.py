"""Labels and annotation boxes come to a plate: drawn by people and imported, or drafted from a stain."""

from __future__ import annotations

import shlex
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates import store
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages import annotate_files
from hpc_isl.stages.annotate_files import Box, LabelFile, raise_together

ORIGINS = {"import": "human", "draft": "drafted"}


@dataclass(frozen=True)
class Annotation:
    """Labels (y, x) or (t, y, x) of a field and its boxes; `dropped` objects lay outside every box."""

    labels: NDArray[Any]
    boxes: tuple[Box, ...]
    dropped: int = 0

    @property
    def counts(self) -> dict[str, int]:
        objects = len(np.setdiff1d(self.labels, [0]))
        return {"objects": objects, "boxes": len(self.boxes), "dropped": self.dropped}


Maker = Callable[[], Annotation]


def plan(recipe: AnnotateRecipe) -> Plan:
    """Which fields would get labels; names together all label images that do not fit, by their headers."""
    index = _open(recipe)
    inputs = {index.plate.name: index.fingerprint}
    if recipe.action == "import":
        files, remark = _files(recipe, index)
        keys = [file.key for file in files]
        boxes = sum(len(file.boxes) or 1 for file in files)
        says = [f"{len(files)} label images with {boxes} annotation boxes", *([remark] if remark else [])]
        inputs["label images"] = annotate_files.fingerprint(files)
    else:
        keys = _chosen(recipe, index)
        says = [f"drafted from {recipe.channel} of {len(keys)} fields, threshold {recipe.threshold}"]
    there = [key for key in keys if _has(recipe, index, key)]
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
    makers = _imports(recipe, index) if recipe.action == "import" else _drafts(recipe, index)
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
    if tally["dropped"]:
        attempt.say(f"{tally['dropped']} objects outside every annotation box were dropped")
    attempt.say(f"{tally['objects']} objects in {tally['boxes']} annotation boxes of {len(makers)} fields")
    plate = shlex.quote(str(recipe.plate))
    attempt.finish({
        "fields": len(makers),
        **tally,
        "made": {f"labels {recipe.labels!r}": str(recipe.plate)},
        "next": [f"python -m hpc_isl.submit inspect {plate}"],
    })  # fmt: skip


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
            index.image(key), recipe.labels, made.labels, origin=ORIGINS[recipe.action],
            boxes=made.boxes, overwrite=recipe.overwrite,
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
    same = (origin, tuple(boxes)) == (ORIGINS[recipe.action], made.boxes)
    if same and np.array_equal(store.read_labels(image, name), made.labels):
        return False
    if not recipe.overwrite:
        raise Mistake(f"has other labels {name!r} already ({origin}); overwrite=true replaces them")
    return True


def _has(recipe: AnnotateRecipe, index: store.Index, key: FieldKey) -> bool:
    return recipe.labels in store.label_names(index.image(key))


def _open(recipe: AnnotateRecipe) -> store.Index:
    """The plate, after a look at the keys that the action needs and those that mean nothing to it."""
    needed, foreign = (
        ("source", ("channel", "fields")) if recipe.action == "import" else ("channel", ("source", "regex"))
    )
    if getattr(recipe, needed) is None:
        raise Mistake(f"annotate {recipe.action}: {needed} must be given")
    for key in foreign:
        if getattr(recipe, key) is not None:
            raise Mistake(f"annotate {recipe.action}: {key} means nothing here; leave it out")
    return store.open_plate(recipe.plate)


def _absolute(recipe: AnnotateRecipe) -> AnnotateRecipe:
    source = recipe.source and recipe.source.absolute()
    return recipe.model_copy(update={"plate": recipe.plate.absolute(), "source": source})


# ---------------------------------------------------------------- import


def _files(recipe: AnnotateRecipe, index: store.Index) -> tuple[list[LabelFile], str]:
    assert recipe.source is not None
    files, remark = annotate_files.find(recipe.source, recipe.regex, index)
    annotate_files.check_headers(files, index)
    return files, remark


def _imports(recipe: AnnotateRecipe, index: store.Index) -> dict[FieldKey, Maker]:
    return {file.key: partial(_imported, file, index) for file in _files(recipe, index)[0]}


def _imported(file: LabelFile, index: store.Index) -> Annotation:
    field = index.field(file.key)
    labels, dropped = annotate_files.read(file, field)
    return Annotation(labels, file.boxes or _whole(field), dropped)


def _whole(field: Field) -> tuple[Box, ...]:
    return ((0, 0, *field.shape[-2:]),)


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
    keys = [field.key for field in index.plate.fields]
    wanted = keys if recipe.fields is None else index.plate.choose(recipe.fields)
    return [key for key in keys if key in wanted]


def _drafts(recipe: AnnotateRecipe, index: store.Index) -> dict[FieldKey, Maker]:
    return {key: partial(_drafted, key, recipe, index) for key in _chosen(recipe, index)}


def _drafted(key: FieldKey, recipe: AnnotateRecipe, index: store.Index) -> Annotation:
    """From the brightest plane at each pixel; a field that is empty in this channel gets no objects."""
    from hpc_isl.stages.annotate_draft import draft  # scikit-image, which a plan does without

    field, channel = index.field(key), index.channel(recipe.channel or "")
    if f"empty:{channel}" in index.statistics[key].flags:
        times = field.shape[:1] if field.shape[0] > 1 else ()
        return Annotation(np.zeros(times + field.shape[-2:], np.uint32), _whole(field))
    labels = [
        draft(
            store.read_box(index.image(key), 0, time, channel, slice(None), slice(None), slice(None)).max(0),
            threshold=recipe.threshold, sigma=recipe.sigma, min_area=recipe.min_area, split=recipe.split,
        )
        for time in range(field.shape[0])
    ]  # fmt: skip
    return Annotation(np.stack(labels) if len(labels) > 1 else labels[0], _whole(field))
