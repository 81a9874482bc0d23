"""How far a plate's images differ from those that a model was trained on, by the index, without pixels.

Facts are unitless and hold for what the network sees, whose brightness is normalised field by field: how
strong and how sharp contrast is, and how it is shared between light and shadow. A well's z is the distance
of its fields' median from the median of the training fields, in robust standard deviations of these. Some
wells of a training plate exceed NOTICEABLE in one fact or another, where wells are single fields (3 to 5 were
seen); beyond FAR a model should not be trusted before a person has looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import log, log1p
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.fields import field_view, image_key
from hpc_isl.learning.data.view import View, same_pixel_size
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
"""The facts that are compared of each source, in words."""
# Where training fields are few, or all alike, their spread means little: it counts as this share of the
# median at least, or of 1 where that is less.
LEAST_SPREAD = 0.05
Reference = Mapping[str, Mapping[str, list[float]]]
"""Source, in the order of the view -> fact -> median and robust standard deviation of training fields."""


def reference_of(view: View, indices: Sequence[Index], keys: Sequence[Sequence[FieldKey]]) -> Reference:
    """Returns the statistics of the fields `keys` of each plate; empty where none was imaged."""
    facts = [
        field_facts
        for index, fields in zip(indices, keys, strict=True)
        for field_facts in _facts(view, index, fields)
    ]
    reference: dict[str, dict[str, list[float]]] = {}
    for number, role in enumerate(view.sources if facts else ()):
        acquisition = "" if role.acquisition is None else f" {role.acquisition}"
        spreads = reference.setdefault(f"{role.channel} {role.plane}{acquisition}", {})
        for fact in facts[0][number]:
            values = [field_facts[number][fact] for field_facts in facts]
            median = float(np.median(values))
            # 1.4826: the median absolute deviation of normal values becomes their standard deviation.
            deviation = 1.4826 * float(np.median(np.abs(np.asarray(values) - median)))
            spreads[fact] = [median, max(deviation, LEAST_SPREAD * max(abs(median), 1))]
    return reference


def drift(reference: Reference, view: View, index: Index, keys: Sequence[FieldKey]) -> list[dict[str, Any]]:
    """Returns a row for each well: `well`, `fields`, `largest` |z|, `where` it is, then z by source and fact.

    Sources are taken in the order of the view, whatever the names of channels on this plate. Sharpness is
    left out where pixels are of another size than on the training plates, as are fields that lack a source.
    """
    wells: dict[str, list[FieldKey]] = {}
    for key in keys:
        wells.setdefault(key.well, []).append(key)
    size = index.plate.pixel_um
    sizes_known = view.pixel_um is not None and size is not None
    same_size = not sizes_known or same_pixel_size((size or 0) * (1 << view.level), view.pixel_um or 0)
    rows = []
    for well, well_keys in wells.items():
        facts = list(_facts(view, index, well_keys))
        if not facts:
            continue
        z: dict[str, float] = {}
        for number, (source, spreads) in enumerate(reference.items()):
            for fact, (median, spread) in spreads.items():
                if same_size or fact != "focus":
                    value = float(np.median([field[number][fact] for field in facts]))
                    z[f"{source} {fact}"] = round((value - median) / spread, 3)
        worst = max(z, key=lambda name: abs(z[name]))
        rows.append({"well": well, "fields": len(well_keys), "largest": abs(z[worst]), "where": worst, **z})
    return rows


def _facts(view: View, index: Index, keys: Sequence[FieldKey]) -> Iterator[list[dict[str, float]]]:
    """Yields the facts of each source, for each field and time that was imaged."""
    # The statistics in the index are of level 0 and uncorrected pixels.
    stored_view = replace(view, targets=(), foreground=None, flat_field="none", level=0, pixel_um=None)
    for key in keys:
        for time in range(index.field(key).shape[0]):
            try:
                planes = field_view(stored_view, index, key, time).sources
            # A source that was not imaged: `segment` reports such fields.
            except UserError:
                continue
            sources = []
            for role, plane in zip(view.sources, planes, strict=True):
                statistics = index.statistics[image_key(key, role)].planes
                facts = [_facts_of_plane(statistics[time, plane.channel, z]) for z in plane.planes]
                # A projection has the mean facts of its planes.
                sources.append(
                    {name: float(np.mean([plane_facts[name] for plane_facts in facts])) for name in facts[0]}
                )
            yield sources


def _facts_of_plane(plane: PlaneStatistics) -> dict[str, float]:
    """Returns the facts of one plane; a constant plane has the least contrast that a logarithm can hold."""
    sd = plane.sd or 1.0
    return {
        # Logarithms, so that twice as much is as far away as half as much.
        "contrast": log(max(plane.sd / max(abs(plane.mean), 1e-6), 1e-6)),
        "focus": log(max(plane.focus * (plane.mean / sd) ** 2, 1e-6)),
        "light": (plane.p99 - plane.p50) / sd,
        "shadow": (plane.p50 - plane.p1) / sd,
        "glare": log1p(max(plane.p999 - plane.p99, 0.0) / sd),
    }
