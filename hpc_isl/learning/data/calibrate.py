"""Completes a recipe's view with numbers from the training wells; checks its channels on every plate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
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
from hpc_isl.learning.data.pixels import Profile, estimate, numbers
from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.view import (
    Foreground,
    Role,
    View,
    counts,
    measured_pixels,
    same_pixel_size,
    smallest,
)
from hpc_isl.plates.statistics import Histogram
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import DataRecipe, ForegroundRecipe, PlaneRecipe
from hpc_isl.seeds import evenly_spread

# Numbers of corrected pixels, which the index does not hold, come from so many training fields.
SAMPLED_FIELDS = 64


class ViewRequest(Protocol):
    """The part of a recipe that states what a network sees and predicts."""

    @property
    def sources(self) -> list[PlaneRecipe]: ...
    @property
    def targets(self) -> list[PlaneRecipe]: ...
    @property
    def data(self) -> DataRecipe: ...


def view_of(indices: Sequence[Index], split: Split, recipe: ViewRequest) -> View:
    """Returns the view that a recipe asks for, with every number that the training wells decide.

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
    training = _Training(indices, split)
    if view.flat_field == "estimated":
        view = replace(view, profiles=training.profiles(view))
    view = replace(view, targets=tuple(training.calibrated(view, role) for role in view.targets))
    return replace(view, foreground=_foreground(view, training, recipe.data.foreground))


def _roles(planes: Sequence[PlaneRecipe]) -> tuple[Role, ...]:
    return tuple(
        Role(entry.channel, plane, entry.acquisition)
        for entry in planes
        for plane in (entry.plane if isinstance(entry.plane, list) else [entry.plane])
    )


def _pixel_um(indices: Sequence[Index], level: int) -> float | None:
    plates = [index.plate for index in indices]
    sizes = {plate.name: float(plate.pixel_um) for plate in plates if plate.pixel_um}
    if not sizes:
        return None
    first_size, *further_sizes = sizes.values()
    if not all(same_pixel_size(size, first_size) for size in further_sizes):
        listed = ", ".join(f"{name} {size:g} µm" for name, size in sizes.items())
        raise UserError(f"the plates differ in the size of a pixel: {listed}; train on plates of one size")
    return first_size * (1 << level)


def _check_names(view: View, index: Index) -> None:
    roles = view.sources + view.targets
    acquisitions = sorted({key.acquisition for key in index.statistics})
    named_acquisitions = [role.acquisition for role in roles if role.acquisition is not None]
    for role in roles:
        index.channel(role.channel)
        if role.acquisition is not None and role.acquisition not in acquisitions:
            raise UserError(
                f"{index.path}: has no acquisition {role.acquisition}; "
                f"{nearest(role.acquisition, acquisitions)}"
            )
        if role.acquisition is None and named_acquisitions and len(acquisitions) > 1:
            raise UserError(
                f"{index.path}: has the acquisitions {', '.join(map(str, acquisitions))}; where one plane "
                f"names its acquisition, all must: {role.channel!r} does not"
            )


@dataclass(frozen=True)
class _Training:
    """The training fields of the plates."""

    indices: Sequence[Index]
    split: Split

    def sample(self, view: View) -> list[FieldView]:
        """Returns up to 64 training fields that have the sources, evenly spread over plates and wells."""
        fields = [
            (index, key, times[0])
            for index in self.indices
            for key in fields_of(view, index, self.split, "train")
            if (times := imaged_times(view, index, key))
        ]
        if not fields:
            names = ", ".join(repr(role.channel) for role in view.sources)
            raise UserError(f"no training field has planes of {names}")
        return [field_view(view, *field) for field in evenly_spread(fields, SAMPLED_FIELDS)]

    def histogram(self, view: View, role: Role) -> Histogram:
        """Returns the histogram of a role's channel in the training fields of all plates."""
        parts = []
        for index in self.indices:
            channel = index.channel(role.channel)
            pairs = ((key, image_key(key, role)) for key in fields_of(view, index, self.split, "train"))
            keys = [at for key, at in pairs if index.shift(key, at)]  # rejected ones train nothing
            keys = [key for key in keys if key in index.statistics and index.imaged(key)[:, channel].any()]
            if keys:
                parts.append(index.histogram(keys, channel))
        if not parts:
            raise UserError(f"{role.channel!r} was imaged in none of the training fields")
        # Percentiles of 8-bit and 16-bit counts together would mean nothing.
        types = sorted({part.dtype for part in parts})
        if len(types) > 1:
            raise UserError(
                f"the plates hold pixels of the types {', '.join(types)}; train on plates of one type"
            )
        return reduce(add, parts)

    def calibrated(self, view: View, role: Role) -> Role:
        """Returns a target with its offset and scale, unless they are each field's own."""
        rule = view.normalize
        if rule.target in ("none", "max16"):
            # These kinds have constant numbers; no pixel is needed.
            return replace(role, numbers=numbers(rule.target, np.zeros(1), rule.low, rule.high))
        if rule.target_by == "field":
            return role
        if view.flat_field != "none":
            fields = self.sample(replace(view, targets=(role,), foreground=None))
            pixels = [measured_pixels(field.targets[0]).ravel() for field in fields if field.targets]
            offset, scale = numbers(rule.target, np.concatenate(pixels), rule.low, rule.high)
        else:
            histogram = self.histogram(view, role)
            if rule.target == "standard":
                offset, scale = histogram.mean(), histogram.sd()
            else:
                offset = histogram.percentile(rule.low)
                scale = histogram.percentile(rule.high) - offset
        if not scale > 0:
            raise UserError(
                f"target {role.channel!r}: nearly all pixels of the training wells are {offset:g} counts; "
                "choose another channel, or other percentiles by data.normalize.low and high"
            )
        return replace(role, numbers=(offset, scale))

    def profiles(self, view: View) -> dict[str, Profile]:
        """Returns the estimated flat-field profile of each channel, from the smallest level of its fields."""
        # A profile is estimated from planes as they are stored.
        raw = replace(view, flat_field="none")
        profiles: dict[str, Profile] = {}
        for role in view.sources + view.targets:
            if role.channel not in profiles:
                fields = self.sample(replace(raw, sources=(role,), targets=()))
                planes = [smallest(field.sources[0]) for field in fields]
                profiles[role.channel] = estimate(counts(plane, plane.whole) for plane in planes)
        return profiles


def _foreground(view: View, training: _Training, recipe: ForegroundRecipe) -> Foreground | None:
    if not recipe.required or not view.targets:
        return None
    channel = recipe.channel or view.targets[0].channel
    for index in training.indices:
        index.channel(channel)
    role = next((target for target in view.targets if target.channel == channel), None)
    if role is None:  # a channel that is no target: all its planes, by their maximum
        acquisitions = [source.acquisition for source in view.sources if source.channel == channel]
        role = Role(channel, "max", (acquisitions or [view.targets[0].acquisition])[0])
    # Foreground is judged in stored counts.
    role = replace(role, numbers=None)
    threshold = None if recipe.threshold == "auto" else float(recipe.threshold)
    if threshold is None and view.normalize.target_by == "wells":
        threshold = foreground_threshold(training.histogram(view, role))
    return Foreground(role, threshold, recipe.fraction)
