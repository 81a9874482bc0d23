"""How far a plate's images lie from those that a model was trained on, told by the index, without pixels.

Facts are unitless and hold for what the network sees, whose brightness is normalised field by field: how
strong and how sharp contrast is, and how light and shadow share it. A well's z is the distance of its
fields' median from the median of the training fields, in robust standard deviations among these. Of wells
of a training plate some pass NOTICEABLE in one fact or another, where wells are single fields (3 to 5 were
seen); beyond FAR a model should not be trusted before one has looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isclose, log, log1p
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.fields import field_view, image_key
from hpc_isl.learning.data.view import Role, View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.statistics import PlaneStatistics
from hpc_isl.plates.store import Index

NOTICEABLE, FAR = 3.0, 6.0
FACTS = {
    "contrast": "how much brightness varies (standard deviation over mean)",
    "focus": "how sharp the image is",
    "light": "how far the brightest hundredth of the pixels lies above the middle",
    "shadow": "how far the darkest hundredth of the pixels lies below the middle",
    "glare": "how far the brightest thousandth of the pixels lies above the brightest hundredth",
}
"""What is compared of each source, in words."""
# Where training fields are few, or all alike, their spread says little: it counts as this share of the
# median at least, or of 1 where that is less.
LEAST_SPREAD = 0.05
Reference = Mapping[str, Mapping[str, list[float]]]
"""Source, in the order of the view -> fact -> median and robust standard deviation of training fields."""


def reference_of(view: View, indices: Sequence[Index], keys: Sequence[Sequence[FieldKey]]) -> Reference:
    """What the fields `keys` of each plate are like; empty where none can be seen."""
    found = [
        facts for index, own in zip(indices, keys, strict=True) for facts in _all_facts(view, index, own)
    ]
    if not found:
        return {}
    return {
        _name(role): {fact: _spread([facts[number][fact] for facts in found]) for fact in found[0][number]}
        for number, role in enumerate(view.sources)
    }


def drift(reference: Reference, view: View, index: Index, keys: Sequence[FieldKey]) -> list[dict[str, Any]]:
    """A row for each well: `well`, `fields`, `largest` |z|, `where` that is, then z by source and fact.

    Sources are taken in the order of the view, whatever their channels are called on this plate.
    Sharpness is left out where pixels are of another size than on the training plates. Fields that cannot
    be seen are left out.
    """
    wells: dict[str, list[FieldKey]] = {}
    for key in keys:
        wells.setdefault(key.well, []).append(key)
    skipped = () if _same_pixels(view, index) else ("focus",)
    rows = []
    for well, own in wells.items():
        found = list(_all_facts(view, index, own))
        if found:
            z = dict(_distances(reference, found, skipped))
            worst = max(z, key=lambda name: abs(z[name]))
            largest = {"largest": abs(z[worst]), "where": worst}
            rows.append({"well": well, "fields": len(own), **largest, **z})
    return rows


def _distances(
    reference: Reference, found: Sequence[Sequence[Mapping[str, float]]], skipped: Sequence[str]
) -> Iterator[tuple[str, float]]:
    for number, (source, facts) in enumerate(reference.items()):
        for fact, (median, spread) in facts.items():
            if fact not in skipped:
                own = float(np.median([field[number][fact] for field in found]))
                yield f"{source} {fact}", round((own - median) / spread, 3)


def _spread(values: Sequence[float]) -> list[float]:
    median = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(np.asarray(values) - median)))
    return [median, max(deviation, LEAST_SPREAD * max(abs(median), 1))]


def _same_pixels(view: View, index: Index) -> bool:
    size = index.plate.pixel_um
    if view.pixel_um is None or size is None:
        return True
    return isclose(size * (1 << view.level), view.pixel_um, rel_tol=0.05)


# ---------------------------------------------------------------- facts


def _all_facts(view: View, index: Index, keys: Sequence[FieldKey]) -> Iterator[list[dict[str, float]]]:
    """Of each field and time that can be seen, the facts of its sources."""
    stored = replace(view, targets=(), foreground=None, flat_field="none", level=0, pixel_um=None)
    for key in keys:
        for time in range(index.field(key).shape[0]):
            try:
                planes = field_view(stored, index, key, time).sources
            except UserError:
                continue
            yield [
                _mean([
                    _facts(index.statistics[image_key(key, role)].planes[time, plane.channel, z])
                    for z in plane.planes
                ])
                for role, plane in zip(view.sources, planes, strict=True)
            ]  # fmt: skip


def _facts(of: PlaneStatistics) -> dict[str, float]:
    """Of one plane; a constant one has no contrast, and the least that a logarithm can hold."""
    sd = of.sd or 1.0
    return {
        "contrast": log(max(of.sd / max(abs(of.mean), 1e-6), 1e-6)),
        "focus": log(max(of.focus * (of.mean / sd) ** 2, 1e-6)),
        "light": (of.p99 - of.p50) / sd,
        "shadow": (of.p50 - of.p1) / sd,
        "glare": log1p(max(of.p999 - of.p99, 0.0) / sd),
    }


def _mean(planes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the planes of a projection."""
    return {fact: float(np.mean([plane[fact] for plane in planes])) for fact in planes[0]}


def _name(role: Role) -> str:
    return f"{role.channel} {role.plane}" + ("" if role.acquisition is None else f" {role.acquisition}")
