"""A view settled on the training wells: channels checked on every plate, numbers found once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import isclose
from operator import add
from typing import Protocol

import numpy as np

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.fields import (
    FieldView,
    field_view,
    fields_of,
    foreground_threshold,
    image_key,
    imaged_times,
)
from hpc_isl.learning.data.flat_field import Profile, estimate
from hpc_isl.learning.data.pixels import numbers
from hpc_isl.learning.data.planes import Numbers, counts, measured_pixels, smallest
from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.view import Foreground, Role, View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.statistics import Histogram
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import DataRecipe, ForegroundRecipe, NormalizeRecipe, PlaneRecipe

# So many training fields, evenly spread, tell what the index cannot: the numbers of corrected pixels.
SAMPLED_FIELDS = 64


class ViewRequest(Protocol):
    """The part of a recipe that says what a network sees and predicts."""

    @property
    def sources(self) -> list[PlaneRecipe]: ...
    @property
    def targets(self) -> list[PlaneRecipe]: ...
    @property
    def data(self) -> DataRecipe: ...


def view_of(indices: Sequence[Index], split: Split, recipe: ViewRequest) -> View:
    """The view that a recipe means, with every number that the training wells decide.

    Targets by wells: from the merged histogram of the channel in the training fields, all its planes
    and times together, also for projections. With a flat field, from the corrected planes
    themselves in up to 64 training fields, at a level of at most 1024 pixels.

    Raises:
        UserError: a channel or acquisition that a plate lacks; plates of different pixel size or type;
            a target that is constant in the training wells.
    """
    view = View(
        sources=_roles(recipe.sources),
        targets=_roles(recipe.targets),
        level=recipe.data.level,
        pixel_um=_pixel_um(indices, recipe.data.level),
        flat_field=recipe.data.flat_field,
        normalize=recipe.data.normalize,
    )
    for index in indices:
        _check_names(view, index)
    if view.flat_field == "estimated":
        view = replace(view, profiles=_profiles(view, indices, split))
    view = replace(view, targets=tuple(_settled(view, indices, split, role) for role in view.targets))
    return replace(view, foreground=_foreground(view, indices, split, recipe.data.foreground))


def _roles(planes: Sequence[PlaneRecipe]) -> tuple[Role, ...]:
    return tuple(
        Role(entry.channel, plane, entry.acquisition)
        for entry in planes
        for plane in (entry.plane if isinstance(entry.plane, list) else [entry.plane])
    )


def _pixel_um(indices: Sequence[Index], level: int) -> float | None:
    known = [index.plate for index in indices if index.plate.pixel_um]
    sizes = {plate.name: float(plate.pixel_um or 0) for plate in known}
    if not sizes:
        return None
    first, *others = sizes.values()
    if not all(isclose(size, first, rel_tol=0.05) for size in others):
        listed = ", ".join(f"{name} {size:g} µm" for name, size in sizes.items())
        raise UserError(f"the plates differ in the size of a pixel: {listed}; train on plates of one size")
    return first * (1 << level)


def _check_names(view: View, index: Index) -> None:
    roles = view.sources + view.targets
    there = sorted({key.acquisition for key in index.statistics})
    named = [role.acquisition for role in roles if role.acquisition is not None]
    for role in roles:
        index.channel(role.channel)
        if role.acquisition is not None and role.acquisition not in there:
            raise UserError(
                f"{index.path}: has no acquisition {role.acquisition}; {nearest(role.acquisition, there)}"
            )
        if role.acquisition is None and named and len(there) > 1:
            raise UserError(
                f"{index.path}: has the acquisitions {', '.join(map(str, there))}; where one plane names its "
                f"acquisition, all must: {role.channel!r} does not"
            )


# ---------------------------------------------------------------- the training fields


def _training(view: View, indices: Sequence[Index], split: Split) -> list[tuple[Index, FieldKey]]:
    return [(index, key) for index in indices for key in fields_of(view, index, split, "train")]


def _sample(view: View, indices: Sequence[Index], split: Split) -> list[FieldView]:
    """Up to 64 training fields that have the sources, evenly spread over plates and wells."""
    seen = [(index, key) for index, key in _training(view, indices, split) if imaged_times(view, index, key)]
    if not seen:
        names = ", ".join(repr(role.channel) for role in view.sources)
        raise UserError(f"no training field has planes of {names}")
    chosen = np.linspace(0, len(seen) - 1, min(SAMPLED_FIELDS, len(seen))).round().astype(int)
    places = (seen[number] for number in chosen)
    return [field_view(view, index, key, imaged_times(view, index, key)[0]) for index, key in places]


def _histogram(view: View, indices: Sequence[Index], split: Split, role: Role) -> Histogram:
    """Of a role's channel in the training fields of all plates."""
    parts = []
    for index in indices:
        channel = index.channel(role.channel)
        keys = [image_key(key, role) for key in fields_of(view, index, split, "train")]
        keys = [key for key in keys if key in index.statistics and index.imaged(key)[:, channel].any()]
        if keys:
            parts.append(index.histogram(keys, channel))
    if not parts:
        raise UserError(f"{role.channel!r} was imaged in none of the training fields")
    types = sorted({part.dtype for part in parts})
    if len(types) > 1:
        raise UserError(
            f"the plates hold pixels of the types {', '.join(types)}; train on plates of one type"
        )
    return reduce(add, parts)


# ---------------------------------------------------------------- their numbers


def _settled(view: View, indices: Sequence[Index], split: Split, role: Role) -> Role:
    """A target with its offset and scale, unless they are each field's own."""
    rule = view.normalize
    if rule.target in ("none", "max16"):
        return replace(role, numbers=numbers(rule.target, np.zeros(1), rule.low, rule.high))
    if rule.target_by == "field":
        return role
    if view.flat_field == "none":
        found = _of_histogram(_histogram(view, indices, split, role), rule)
    else:
        fields = _sample(replace(view, targets=(role,), foreground=None), indices, split)
        pixels = [measured_pixels(field.targets[0]).ravel() for field in fields if field.targets]
        found = numbers(rule.target, np.concatenate(pixels), rule.low, rule.high)
    if not found[1] > 0:
        raise UserError(
            f"target {role.channel!r}: nearly all pixels of the training wells are {found[0]:g} counts; "
            "choose another channel, or other percentiles by data.normalize.low and high"
        )
    return replace(role, numbers=found)


def _of_histogram(histogram: Histogram, rule: NormalizeRecipe) -> Numbers:
    if rule.target == "standard":
        return histogram.mean(), histogram.sd()
    low, high = histogram.percentile(rule.low), histogram.percentile(rule.high)
    return low, high - low


def _profiles(view: View, indices: Sequence[Index], split: Split) -> dict[str, Profile]:
    """The estimated profile of each channel, from the smallest level of training fields."""
    raw = replace(view, flat_field="none")
    profiles = {}
    for role in view.sources + view.targets:
        if role.channel not in profiles:
            fields = _sample(replace(raw, sources=(role,), targets=()), indices, split)
            planes = [smallest(field.sources[0]) for field in fields]
            profiles[role.channel] = estimate(counts(plane, plane.whole) for plane in planes)
    return profiles


def _foreground(
    view: View, indices: Sequence[Index], split: Split, recipe: ForegroundRecipe
) -> Foreground | None:
    if not recipe.required or not view.targets:
        return None
    channel = recipe.channel or view.targets[0].channel
    for index in indices:
        index.channel(channel)
    role = replace(_shown(view, channel), numbers=None)
    threshold = None if recipe.threshold == "auto" else float(recipe.threshold)
    if threshold is None and view.normalize.target_by == "wells":
        threshold = foreground_threshold(_histogram(view, indices, split, role))
    return Foreground(role, threshold, recipe.fraction)


def _shown(view: View, channel: str) -> Role:
    """The target of that channel; of another channel all planes, by their maximum."""
    for role in view.targets:
        if role.channel == channel:
            return role
    passes = [role.acquisition for role in view.sources if role.channel == channel]
    return Role(channel, "max", (passes or [view.targets[0].acquisition])[0])
