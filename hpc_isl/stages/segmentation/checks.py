"""What is known before pixels are read: what can never work is refused, what the user should know is said."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpc_isl.learning.stride import check_grid
from hpc_isl.learning.view import View
from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import computed_by, label_names
from hpc_isl.recipes.segment import SegmentRecipe, TruthRecipe
from hpc_isl.stages.segmentation.files import COPY, labels_name
from hpc_isl.stages.segmentation.maps import MAPS, maps_of
from hpc_isl.stages.segmentation.setting import (
    Models,
    Target,
    is_large,
    labels_mark,
    refuse_large,
    scale_of,
    unseen,
    view_of,
)


def checked(recipe: SegmentRecipe, models: Models, targets: Sequence[Target]) -> Iterator[str]:
    """Refuses what can never work; says what the user should know."""
    of = recipe.predict or models.contract.predict
    check_grid(of.tile, of.halo)
    _check_maps(recipe, models)
    _check_rule(recipe, models)
    view = view_of(recipe, models.contract)
    for target in targets:
        for name in recipe.measure or []:
            target.index.channel(name)
        if any(is_large(recipe, target.index, key) for key in target.keys):
            refuse_large(recipe, models.contract)
        yield from _seen(recipe, models, view, target)
        scale = scale_of(recipe, view, target.index, target.keys[0])
        if scale.factor != 1:
            yield (
                f"{target.name}: pixels of {target.index.plate.pixel_um:g} µm are resampled to the "
                f"{scale.pixel_um:g} µm of the model; labels are of full resolution"
            )
        if "labels" in recipe.write:
            try:
                check_writable(recipe, models, target)
            except Mistake as mistake:
                yield f"warning: from this machine {mistake}"
            yield from in_the_way(recipe, models, target)
    yield from _other_labels(recipe, targets)
    if recipe.overlap is not None and "labels" not in recipe.write:
        yield "objects that two overlapping fields show are counted twice, for labels are not kept (write)"


def _check_maps(recipe: SegmentRecipe, models: Models) -> None:
    """Each map that is to be kept is an output of a model."""
    for name in recipe.write:
        if name in MAPS and not maps_of([name], models.contract, models.stain_contract).channels:
            raise Mistake(f"write: {name} cannot be kept, for {models.folder.parent} has none: {MAPS[name]}")


def _check_rule(recipe: SegmentRecipe, models: Models) -> None:
    kind = models.contract.task.kind if models.contract.task else "stain"
    if recipe.h is not None and kind != "cells":
        of = "nuclei by the mask alone" if kind == "nuclei" else "objects in the stain that it predicts"
        raise Mistake(f"h={recipe.h:g}: parts cells by their distance map, and this model finds {of}")


def check_writable(recipe: SegmentRecipe, models: Models, target: Target) -> None:
    """Of the fields that have no labels of this run yet, one at least can be written."""
    shut = None
    for key in target.keys if "labels" in recipe.write else ():
        if _is_written(recipe, models, target, key):
            continue
        image = target.index.image(key)
        labels = image / "labels"
        if os.access(labels if labels.exists() else image, os.W_OK):
            return
        shut = shut or image
    if shut is not None:
        raise Mistake(
            f"{shut} cannot be written, and labels go there: copy the plate to where it can, or keep no "
            "labels, as in write=[mask]"
        )


def _is_written(recipe: SegmentRecipe, models: Models, target: Target, key: FieldKey) -> bool:
    image = target.index.image(key)
    made = computed_by(image, labels_name(image, models.labels))
    return made is not None and made[1] == labels_mark(recipe, models, target.index, key)


def _seen(recipe: SegmentRecipe, models: Models, view: View, target: Target) -> Iterator[str]:
    """Fields that no model can look at; a `Mistake` where it is all of them."""
    blind = list(unseen(recipe, view, target.index, target.keys))
    if len(blind) == len(target.keys):
        raise Mistake(blind[0])
    if blind:
        yield f"{target.name}: {len(blind)} of {len(target.keys)} fields cannot be seen, as {blind[0]}"
    if models.stain_contract:
        stained = view_of(recipe, models.stain_contract)
        if blind := list(unseen(recipe, stained, target.index, target.keys[:1])):
            raise Mistake(f"stain: {blind[0]}")


def _other_labels(recipe: SegmentRecipe, targets: Sequence[Target]) -> Iterator[str]:
    """Labels of cells must be there in all fields, the truth in some."""
    fields = [(target, key) for target in targets for key in target.keys]
    if recipe.cells:
        lacking = [(target, key) for target, key in fields if not _has(target, key, recipe.cells)]
        if lacking:
            target, key = lacking[0]
            near = nearest(recipe.cells, label_names(target.index.image(key)))
            raise Mistake(
                f"cells: {len(lacking)} of {len(fields)} fields have no labels {recipe.cells!r}, "
                f"{target.name} {key} among them; {near}"
            )
    if (truth := recipe.truth) is None:
        return
    if truth.channel is not None:
        for target in targets:
            target.index.channel(truth.channel)
        known = sum(bool(_stained(truth, target, key)) for target, key in fields)
        what = f"an image of {truth.channel!r}"
    else:
        known = sum(_has(target, key, str(truth.labels)) for target, key in fields)
        what = f"labels {truth.labels!r}"
    if not known:
        raise Mistake(f"truth: none of the {len(fields)} fields has {what}")
    yield f"counts are held against the truth on up to {known:,} of {len(fields):,} fields, which have {what}"


def _has(target: Target, key: FieldKey, labels: str) -> bool:
    return computed_by(target.index.image(key), labels) is not None


def _stained(truth: TruthRecipe, target: Target, key: FieldKey) -> bool:
    at = key if truth.acquisition is None else replace(key, acquisition=truth.acquisition)
    return at in target.index.statistics and bool(target.index.field(at).imaged(str(truth.channel), 0))


def in_the_way(recipe: SegmentRecipe, models: Models, target: Target) -> Iterator[str]:
    """Labels of the name that are there: those of people and drafts stay, another run's are refused."""
    others, kept, corrected = [], [], []
    for key in target.keys if "labels" in recipe.write else ():
        made = computed_by(target.index.image(key), models.labels)
        if made and not made[1]:
            kept.append(key)
            made = computed_by(target.index.image(key), models.labels + COPY)
        if made and not made[1]:
            corrected.append(key)
        elif made and made[1] != labels_mark(recipe, models, target.index, key):
            others.append(key)
    if corrected:
        raise Mistake(
            f"{target.index.path}: on {_some(corrected)} people have labels {models.labels!r}, and have "
            f"corrected the computed ones, {models.labels + COPY!r}: neither is replaced; name others"
        )
    if others and not recipe.overwrite:
        name = models.labels + COPY * (others[0] in kept)
        raise Mistake(
            f"{target.index.path}: {_some(others)} have labels {name!r} of another run of segment, "
            "or of another recipe; choose another labels= (and --name), or overwrite=true replaces them"
        )
    if kept:
        yield (
            f"{target.name}: labels {models.labels!r} that people drew or drafted on {len(kept)} fields "
            f"stay; there the computed ones are called {models.labels + COPY!r}"
        )


def _some(keys: Sequence[FieldKey]) -> str:
    """`5 fields (B03/1, B03/2, B04/1, …)`."""
    return f"{len(keys)} fields ({', '.join(map(str, keys[:3]))}{', …' if len(keys) > 3 else ''})"
