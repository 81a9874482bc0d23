"""A view of one field: planes by name become planes on disk, so that only pixels are left to read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from math import inf, isclose

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.flat_field import Profile, vendor_profile
from hpc_isl.learning.data.pixels import REDUCE, choose_planes, numbers
from hpc_isl.learning.data.planes import Numbers, Plane, halved_shape
from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.view import Foreground, Role, View
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.statistics import Histogram, PlaneStatistics
from hpc_isl.plates.store import Index


class NotImagedError(UserError):
    """A field lacks a plane that a view means; `kind` says which, in words to count fields by."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class FieldView:
    """A view of one field at one time: nothing but its pixels is left to find out.

    Attributes:
        shape: (y, x) at the level read.
        targets: None where the plate has no such channel, or the field lacks it.
        foreground: the plane on which training crops are judged, or None.
        threshold: stored counts of that plane above which a pixel is foreground; infinite where the
            channel is flagged empty and has no threshold but its own.
    """

    plate: str
    key: FieldKey
    time: int
    shape: tuple[int, int]
    sources: tuple[Plane, ...]
    targets: tuple[Plane, ...] | None
    foreground: Plane | None = None
    threshold: float = 0.0


def field_view(view: View, index: Index, key: FieldKey, time: int = 0) -> FieldView:
    """The planes of a field that the view means.

    Raises:
        NotImagedError: a source was not imaged.
        UserError: a source's channel or acquisition is not there; the plate's pixel size is at no level
            that of the view; fields of different shape in two acquisitions.
    """
    sources = tuple(_source(view, index, key, time, role) for role in view.sources)
    targets = None
    if all(_has(index, key, role) for role in view.targets):
        with suppress(NotImagedError):
            targets = tuple(_target(view, index, key, time, role) for role in view.targets)
    return FieldView(index.plate.name, key, time, _one_shape(sources + (targets or ())), sources, targets)


def training_view(view: View, index: Index, key: FieldKey, time: int = 0) -> FieldView:
    """The same of a field to train on: with its targets, and the plane on which crops are judged.

    Raises:
        NotImagedError: a source, a target or the foreground was not imaged.
        UserError: as `field_view`.
    """
    field = field_view(view, index, key, time)
    if field.targets is None:
        names = ", ".join(repr(role.channel) for role in view.targets)
        text = f"{index.plate.name} {key}: has no plane of a target, {names}"
        raise NotImagedError(text, f"without target {names}")
    if view.foreground is None:
        return field
    shown, _ = _found(view, index, key, time, view.foreground.role)
    _one_shape((*field.sources, shown))
    return replace(field, foreground=shown, threshold=_threshold(index, key, view.foreground))


def _threshold(index: Index, key: FieldKey, wanted: Foreground) -> float:
    if wanted.threshold is not None:
        return wanted.threshold
    at, channel = image_key(key, wanted.role), index.channel(wanted.role.channel)
    if f"empty:{channel}" in index.statistics[at].flags:
        return inf
    return foreground_threshold(index.histogram([at], channel))


def foreground_threshold(histogram: Histogram) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9, 1979) over the logarithm of count + median.

    The logarithm keeps few and very bright pixels from deciding: of a Phenix field with three nuclei and
    one of them far brighter, plain Otsu takes the bright one alone.
    """
    light = np.log(np.maximum(histogram.centers, 0) + max(histogram.percentile(50), 1))
    below, moment = np.cumsum(histogram.counts), np.cumsum(histogram.counts * light)
    above = histogram.total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / below - (moment[-1] - moment) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    best = np.flatnonzero(between[:-1] == between[:-1].max())  # many, where a gap parts the classes
    return float(histogram.centers[[best[0], best[-1] + 1]].mean())


def fields_of(view: View, index: Index, split: Split, part: str) -> tuple[FieldKey, ...]:
    """The fields of a part that the view looks at: those in the acquisition of its first source."""
    own = view.sources[0].acquisition
    return tuple(k for k in split.keys(index.plate, part) if own is None or k.acquisition == own)


def imaged_times(view: View, index: Index, key: FieldKey) -> list[int]:
    """The times of a field at which all sources of a view were imaged."""
    times = range(index.field(key).shape[0])
    return [time for time in times if all(_planes(index, key, time, role) for role in view.sources)]


def _planes(index: Index, key: FieldKey, time: int, role: Role) -> list[int]:
    """The planes that a role may be read from."""
    at = image_key(key, role)
    if at not in index.statistics or time >= index.field(at).shape[0]:
        return []
    planes = index.planes(at, index.channel(role.channel), time)
    return [plane for plane in planes if not isinstance(role.plane, int) or plane == role.plane]


def image_key(key: FieldKey, role: Role) -> FieldKey:
    """Where a role of a field is read: the same well and field in the role's acquisition."""
    return key if role.acquisition is None else replace(key, acquisition=role.acquisition)


def level_on(view: View, index: Index, key: FieldKey) -> int:
    """The level of a field whose pixels have the size that the view was made for (within 5 %)."""
    size, levels = index.plate.pixel_um, index.levels(key)
    if view.pixel_um is None or size is None:
        fitting = [view.level] if view.level < levels else []
    else:
        fitting = [n for n in range(levels) if isclose(size * 2**n, view.pixel_um, rel_tol=0.05)]
    if fitting:
        return fitting[0]
    known = view.pixel_um is not None and size is not None
    wanted = f"{view.pixel_um:g} µm" if known else f"level {view.level}"
    there = f"{size:g} µm × 1, 2, 4, … on " if known else ""
    raise UserError(
        f"{index.path}: field {key} has no pixels of {wanted}; it has {there}levels 0 to {levels - 1}"
    )


def _has(index: Index, key: FieldKey, role: Role) -> bool:
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


def _source(view: View, index: Index, key: FieldKey, time: int, role: Role) -> Plane:
    rule = view.normalize
    plane, facts = _found(view, index, key, time, role)
    plane = replace(plane, local_px=rule.local_px, kind=rule.source)
    return replace(plane, numbers=_from_index(plane, facts))


def _target(view: View, index: Index, key: FieldKey, time: int, role: Role) -> Plane:
    rule = view.normalize
    plane, _ = _found(view, index, key, time, role)
    return replace(
        plane, kind=rule.target, low=rule.low, high=rule.high, clip=rule.clip, numbers=role.numbers
    )


def _found(view: View, index: Index, key: FieldKey, time: int, role: Role) -> tuple[Plane, PlaneStatistics]:
    """The plane, not yet normalised, and the statistics of the first z position that it is made of."""
    at, channel = image_key(key, role), index.channel(role.channel)
    name = f"{index.plate.name} {at} {role.channel!r}"
    stored = index.field(at)
    facts = {z: fact for (t, c, z), fact in index.statistics[at].planes.items() if (t, c) == (time, channel)}
    if not facts:
        text = f"{name}: the field has no plane of this channel at time {time}"
        raise NotImagedError(text, f"without {role.channel!r}")
    focus = {z: fact.focus for z, fact in facts.items()}
    try:
        planes = choose_planes(role.plane, focus, _heights(stored, role.channel), index.plate.plane_um)
    except UserError as error:
        raise NotImagedError(f"{name}: {error}", f"without plane {role.plane} of {role.channel!r}") from None
    level = level_on(view, index, at)
    y, x = stored.shape[-2:]
    plane = Plane(
        name=name, image=index.image(at), level=level, depth=index.levels(at),
        shape=reduce(lambda shape, _: halved_shape(shape), range(level), (y, x)),
        time=time, channel=channel, planes=planes,
        projection=str(role.plane) if role.plane in REDUCE else "",
        profile=_profile(view, index, channel),
    )  # fmt: skip
    return plane, facts[planes[0]]


def _heights(field: Field, channel: str) -> dict[int, float]:
    """Plane -> height in micrometres, of one channel; empty where it is not known for each."""
    own = field.details.get("z_um", {}).get(channel)
    planes = range(len(field.z_um)) if own is None else field.planes(channel)
    heights = field.z_um if own is None else own
    return dict(zip(planes, heights, strict=True)) if len(heights) == len(planes) else {}


def _profile(view: View, index: Index, channel: int) -> Profile | None:
    """None where there is nothing to correct."""
    if view.flat_field == "none":
        return None
    about = index.plate.channels[channel]
    if view.flat_field == "estimated":
        return view.profiles[about.name]
    profile = vendor_profile(about.flat_field, about.name)
    return None if profile["Type"] == "Identity" else profile


def _from_index(plane: Plane, facts: PlaneStatistics) -> Numbers | None:
    """The numbers that need no pixel: constants, or the index's for a plane that is not changed."""
    if plane.kind in ("none", "max16"):
        return numbers(plane.kind, np.zeros(1), 0, 0)
    if plane.projection or plane.profile is not None or plane.local_px:
        return None
    return (facts.mean, facts.sd) if plane.kind == "standard" else (facts.p1, facts.p99 - facts.p1)
