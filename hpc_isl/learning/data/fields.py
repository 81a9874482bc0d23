"""A view of one field: planes by name become planes on disk, and only pixels are left to read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import REDUCE, Box, choose_planes, numbers, vendor_profile
from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.view import (
    Numbers,
    Plane,
    Role,
    View,
    common,
    halved_shape,
    partnered,
    same_pixel_size,
)
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.statistics import Histogram, PlaneStatistics
from hpc_isl.plates.store import Index


class NotImagedError(UserError):
    """A field lacks a plane of the view; `kind` names it, in words to count such fields by."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class FieldView:
    """A view of one field at one time: everything except its pixels.

    Attributes:
        shape: (y, x) at the level read.
        targets: None where the plate has no such channel, or the field lacks it.
        foreground: the plane on which training crops are judged, or None.
        threshold: stored counts of that plane above which a pixel is foreground; infinite where the
            channel is flagged empty and has no threshold but its own.
        valid: box (y, x) that all planes show: planes of other acquisitions may be shifted, and what has no
            partner in all of them is neither trained on nor scored.
    """

    plate: str
    key: FieldKey
    time: int
    shape: tuple[int, int]
    sources: tuple[Plane, ...]
    targets: tuple[Plane, ...] | None
    valid: Box
    foreground: Plane | None = None
    threshold: float = 0.0


def field_view(view: View, index: Index, key: FieldKey, time: int = 0) -> FieldView:
    """Returns the planes of a field that the view means.

    Raises:
        NotImagedError: a source was not imaged, or shows another place than the field.
        UserError: the plate lacks a source's channel or acquisition; no level of the plate has the view's
            pixel size; fields of different shape in two acquisitions.
    """
    rule = view.normalize
    source_planes = []
    for role in view.sources:
        plane, facts = _plane(view, index, key, time, role)
        plane = replace(plane, local_px=rule.local_px, kind=rule.source)
        source_planes.append(replace(plane, numbers=_numbers_in_index(plane, facts)))
    sources, targets = tuple(source_planes), None
    if all(_has_plane(index, key, role) for role in view.targets):
        scaling: dict[str, Any] = {"kind": rule.target, "low": rule.low, "high": rule.high, "clip": rule.clip}
        # A field without its stain can still be predicted.
        with suppress(NotImagedError):
            planes = [(_plane(view, index, key, time, role)[0], role.numbers) for role in view.targets]
            targets = tuple(replace(plane, numbers=role_numbers, **scaling) for plane, role_numbers in planes)
    all_planes = sources + (targets or ())
    valid = common(*map(partnered, all_planes))
    if targets and any(side.start >= side.stop for side in valid):  # no place is in all acquisitions
        all_planes, targets, valid = sources, None, common(*map(partnered, sources))
    return FieldView(index.plate.name, key, time, _one_shape(all_planes), sources, targets, valid)


def training_view(view: View, index: Index, key: FieldKey, time: int = 0) -> FieldView:
    """Returns the planes of a field to train on: with its targets, and the plane on which crops are judged.

    Raises:
        NotImagedError: a source, a target or the foreground was not imaged, or does not show the same place.
        UserError: as `field_view`.
    """
    field = field_view(view, index, key, time)
    if field.targets is None:
        for role in view.targets:
            if _has_plane(index, key, role):  # raises what `field_view` has passed over
                _plane(view, index, key, time, role)
        names = ", ".join(repr(role.channel) for role in view.targets)
        text = f"{index.plate.name} {key}: has no plane of a target, {names}"
        raise NotImagedError(text, f"without target {names}")
    if (foreground_rule := view.foreground) is None:
        return field
    plane, _ = _plane(view, index, key, time, foreground_rule.role)
    _one_shape((*field.sources, plane))
    field = replace(field, valid=common(field.valid, partnered(plane)))
    if any(side.start >= side.stop for side in field.valid):
        raise NotImagedError(f"{index.plate.name} {key}: no place is in all acquisitions", "without overlap")
    threshold = foreground_rule.threshold
    if threshold is None:
        at, channel = image_key(key, foreground_rule.role), index.channel(foreground_rule.role.channel)
        empty = f"empty:{channel}" in index.statistics[at].flags
        threshold = inf if empty else foreground_threshold(index.histogram([at], channel))
    return replace(field, foreground=plane, threshold=threshold)


def foreground_threshold(histogram: Histogram) -> float:
    """Returns Otsu's threshold (IEEE Trans. SMC 9, 1979) over the logarithm of count + median."""
    # Without the logarithm few very bright pixels decide: in a Phenix field of three nuclei, one of them far
    # brighter than the others, plain Otsu takes that one alone.
    light = np.log(np.maximum(histogram.centers, 0) + max(histogram.percentile(50), 1))
    below, moment = np.cumsum(histogram.counts), np.cumsum(histogram.counts * light)
    above = histogram.total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / below - (moment[-1] - moment) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    best = np.flatnonzero(between[:-1] == between[:-1].max())  # many, where a gap parts the classes
    return float(histogram.centers[[best[0], best[-1] + 1]].mean())


def fields_of(view: View, index: Index, split: Split, part: str) -> tuple[FieldKey, ...]:
    """Returns the fields of a part that the view sees: those in the acquisition of its first source."""
    acquisition = view.sources[0].acquisition
    return tuple(
        key for key in split.keys(index.plate, part) if acquisition is None or key.acquisition == acquisition
    )


def imaged_times(view: View, index: Index, key: FieldKey) -> list[int]:
    """Returns the times of a field at which all sources of a view were imaged."""

    def is_imaged(role: Role, time: int) -> bool:
        at = image_key(key, role)
        if at not in index.statistics or time >= index.field(at).shape[0] or not index.shift(key, at):
            return False
        planes = index.planes(at, index.channel(role.channel), time)
        return role.plane in planes if isinstance(role.plane, int) else len(planes) > 0

    times = range(index.field(key).shape[0])
    return [time for time in times if all(is_imaged(role, time) for role in view.sources)]


def seen_as(view: View, index: Index, key: FieldKey) -> Hashable:
    """Returns all that decides which planes of a field a view means: equal for fields that are seen alike.

    Of the first time. A plan checks thousands of fields, and nearly all of them are alike.

    Raises:
        UserError: the plate lacks a channel or an acquisition.
    """
    facts = []
    for role in view.sources + view.targets:
        at, channel = image_key(key, role), index.channel(role.channel)
        field, sharpest = index.field(at), None
        if isinstance(role.plane, str) and role.plane not in REDUCE:
            focus = index.focus(at, channel, 0)
            sharpest = max(focus, key=lambda plane: (focus[plane], -plane), default=None)
        facts.append((
            field.shape, index.levels(at), index.shift(key, at), index.statistics.imaged(at).tobytes(),
            *heights(field, role.channel).items(), sharpest,
        ))  # fmt: skip
    return tuple(facts)


def image_key(key: FieldKey, role: Role) -> FieldKey:
    """Returns the key that a role of a field is read from: the same field in the role's acquisition."""
    return key if role.acquisition is None else replace(key, acquisition=role.acquisition)


def level_on(view: View, index: Index, key: FieldKey) -> int:
    """Returns the level of a field whose pixels have the size that the view was made for.

    Raises:
        UserError: there is none.
    """
    size, levels = index.plate.pixel_um, index.levels(key)
    if view.pixel_um is None or size is None:
        matching_levels = [view.level] if view.level < levels else []
    else:
        matching_levels = [n for n in range(levels) if same_pixel_size(size * 2**n, view.pixel_um)]
    if matching_levels:
        return matching_levels[0]
    sizes_known = view.pixel_um is not None and size is not None
    required_size = f"{view.pixel_um:g} µm" if sizes_known else f"level {view.level}"
    stored_sizes = f"{size:g} µm × 1, 2, 4, … on " if sizes_known else ""
    raise UserError(
        f"{index.path}: field {key} has no pixels of {required_size}; it has {stored_sizes}levels 0 "
        f"to {levels - 1}"
    )


def _has_plane(index: Index, key: FieldKey, role: Role) -> bool:
    names = [channel.name for channel in index.plate.channels]
    at = image_key(key, role)
    if role.channel not in names or at not in index.statistics:
        return False
    return any(place[1] == names.index(role.channel) for place in index.statistics[at].planes)


def _one_shape(planes: Sequence[Plane]) -> tuple[int, int]:
    for plane in planes:
        if plane.shape != planes[0].shape:
            raise UserError(
                f"{plane.name} has {plane.shape} pixels (y, x), but {planes[0].name} has {planes[0].shape}"
            )
    return planes[0].shape


def _plane(view: View, index: Index, key: FieldKey, time: int, role: Role) -> tuple[Plane, PlaneStatistics]:
    """Returns the plane, not yet normalised, and the statistics of the first of its z positions."""
    at, channel = image_key(key, role), index.channel(role.channel)
    name = f"{index.plate.name} {at} {role.channel!r}"
    field, shift = index.field(at), index.shift(key, at)
    if shift is None:
        text = f"{name}: shows another place than {key}; inspect {index.path} lists the shifts"
        raise NotImagedError(text, "of which two acquisitions show different places")
    facts = {z: fact for (t, c, z), fact in index.statistics[at].planes.items() if (t, c) == (time, channel)}
    if not facts:
        text = f"{name}: the field has no plane of this channel at time {time}"
        raise NotImagedError(text, f"without {role.channel!r}")
    focus = {z: fact.focus for z, fact in facts.items()}
    try:
        planes = choose_planes(role.plane, focus, heights(field, role.channel), index.plate.plane_um)
    except UserError as error:
        raise NotImagedError(f"{name}: {error}", f"without plane {role.plane} of {role.channel!r}") from None
    channel_metadata, profile = index.plate.channels[channel], None
    if view.flat_field == "estimated":
        profile = view.profiles[channel_metadata.name]
    elif view.flat_field == "vendor" and not channel_metadata.corrected:
        profile = vendor_profile(channel_metadata.flat_field, channel_metadata.name)
        profile = None if profile["Type"] == "Identity" else profile  # nothing to correct
    level = level_on(view, index, at)
    y, x = field.shape[-2:]
    plane = Plane(
        name=name, image=index.image(at), level=level, depth=index.levels(at),
        shape=reduce(lambda shape, _: halved_shape(shape), range(level), (y, x)),
        time=time, channel=channel, planes=planes,
        projection=str(role.plane) if role.plane in REDUCE else "",
        profile=profile, shift=(round(shift[0] / 2**level), round(shift[1] / 2**level)),
    )  # fmt: skip
    return plane, facts[planes[0]]


def heights(field: Field, channel: str) -> dict[int, float]:
    """Returns plane -> height in micrometres, of one channel; empty where it is not known for each."""
    # A channel may have been imaged at heights of its own.
    channel_heights = field.details.get("z_um", {}).get(channel)
    planes = range(len(field.z_um)) if channel_heights is None else field.planes(channel)
    heights = field.z_um if channel_heights is None else channel_heights
    return dict(zip(planes, heights, strict=True)) if len(heights) == len(planes) else {}


def _numbers_in_index(plane: Plane, facts: PlaneStatistics) -> Numbers | None:
    """Returns the numbers that need no pixel: constants, or the index's for a plane without corrections."""
    if plane.kind in ("none", "max16"):
        return numbers(plane.kind, np.zeros(1), 0, 0)
    if plane.projection or plane.profile is not None or plane.local_px:
        return None
    # The index knows single planes as they are stored, and nothing of corrected ones.
    return (facts.mean, facts.sd) if plane.kind == "standard" else (facts.p1, facts.p99 - facts.p1)
