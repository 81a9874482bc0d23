"""Objects gathered into rows, one for each well, field or plate: counts, confluence, medians of features."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpc_isl.stages.table.read import DUPLICATE, WHERE, Segmented, Shot, ShotKey, counts

Row = dict[str, Any]
Floats = NDArray[np.float64]
BY = {"well": ("well",), "field": ("well", "field"), "plate": ()}
MEDIAN = "median_"
# Numbers of which a median says nothing: places, and the angles of axes.
UNSAID = ("centroid_", "orientation_")
OURS = {
    "plate", "well", "field", "acquisition", "time", "wells", "fields", "lost_fields", "empty_fields",
    "problem", "objects", "confluence", "objects_per_mm2", "truth_fields", "truth_objects",
    "objects_in_truth_fields", "dropped_objects", "training_fields",
}  # fmt: skip


def rows_of(plates: Sequence[Segmented], per: str) -> list[Row]:
    """One row for each well, field or plate, in plate order; each has the same columns.

    Where a run has several acquisitions or times, each has rows of its own. None: not known, as the objects
    of a lost field, a density without a pixel size, a median of nothing. Objects that an overlapping field
    has shown already are left out, except from the density and from what is held against the truth: the
    ground and the true objects are counted in each field as well.
    """
    shots = [shot for plate in plates for shot in plate.shots]
    many = [name for name in ("acquisition", "time") if len({getattr(shot, name) for shot in shots}) > 1]
    parts = [part for plate in plates for part in _parts(plate, (*BY[per], *many))]
    names = [
        name for each in zip(*parts, strict=True) for name in dict.fromkeys(n for row in each for n in row)
    ]
    return [{name: _at(part, name) for name in names} for part in parts]


def _at(part: Iterable[Row], name: str) -> Any:
    return next((row[name] for row in part if name in row), None)


def plate_map_name(name: str, taken: Collection[str] = ()) -> str:
    """A column of the plate map as it is called in tables, where some names are ours."""
    ours = name in OURS or name in taken or name.startswith(MEDIAN)
    return f"{name} (plate map)" if ours else name


def _parts(plate: Segmented, by: Sequence[str]) -> Iterator[tuple[Row, Row, Row]]:
    """Of each row what it is about, its counts, and its medians."""
    groups: dict[tuple[Any, ...], list[Shot]] = {}
    for shot in plate.shots:
        groups.setdefault(tuple(getattr(shot, name) for name in by), []).append(shot)
    objects = Objects(plate)
    for key, shots in groups.items():
        where = dict(zip(by, key, strict=True))
        yield _about(plate, where), _counts(plate, where, shots, objects), objects.medians(shots)


def _about(plate: Segmented, where: Row) -> Row:
    """Plate, well and what the plate map says of it, field, acquisition, time."""
    columns = dict.fromkeys(name for facts in plate.plate_map.values() for name in facts)
    facts = plate.plate_map.get(where.get("well", ""), {})
    mapped = {plate_map_name(name): facts.get(name) or None for name in columns} if "well" in where else {}
    first = {name: value for name, value in where.items() if name == "well"}
    return {"plate": plate.name, **first, **mapped, **where}


def _counts(plate: Segmented, where: Row, shots: Sequence[Shot], objects: Objects) -> Row:
    whole = [shot for shot in shots if not shot.problem]
    row: Row = {} if "well" in where else {"wells": len({shot.well for shot in shots})}
    if "field" in where:
        row["problem"] = "; ".join(shot.problem for shot in shots if shot.problem) or None
    else:
        row |= {"fields": _fields(whole), "lost_fields": _fields(shots) - _fields(whole)}
        row["empty_fields"] = _fields([shot for shot in whole if shot.empty])
    pixels = sum(shot.pixels for shot in whole)
    row["objects"] = objects.counted(whole) if whole else None
    if any(shot.dropped is not None for shot in shots):
        row["dropped_objects"] = _dropped(whole)
    if any(shot.taught is not None for shot in shots):
        row["training_fields"] = _fields([shot for shot in shots if shot.taught])
    if plate.kind in ("", "cells"):  # how much ground nuclei cover is no confluence
        row["confluence"] = objects.foreground(whole) / pixels if whole else None
    if plate.pixel_um is not None:
        mm2 = pixels * plate.pixel_um**2 / 1e6
        row["objects_per_mm2"] = objects.seen(whole) / mm2 if whole else None
    return row | _truth(whole, objects)


def _dropped(shots: Sequence[Shot]) -> int | None:
    """None where any is not known, as in fields that an earlier version has segmented."""
    known = [shot.dropped for shot in shots if shot.dropped is not None]
    return sum(known) if known and len(known) == len(shots) else None


def _fields(shots: Sequence[Shot]) -> int:
    return len({shot.key[:3] for shot in shots})


def _truth(shots: Sequence[Shot], objects: Objects) -> Row:
    known = [shot for shot in shots if shot.truth is not None]
    if not known:
        return {}
    return {
        "truth_fields": _fields(known), "truth_objects": sum(shot.truth or 0 for shot in known),
        "objects_in_truth_fields": objects.seen(known),
    }  # fmt: skip


class Objects:
    """All objects of a plate, found by the field and time that show them."""

    def __init__(self, plate: Segmented) -> None:
        names = plate.schema.names
        self.features = medians_of(plate.schema)
        self.rows: dict[ShotKey, NDArray[np.int64]] = {}
        self.values = np.zeros((0, len(self.features)))
        self.counts, self.area = np.zeros(0, bool), np.zeros(0)
        if not names:
            return
        area = "area_px" if plate.pixel_um is None else "area_um2"
        table = plate.objects(list(dict.fromkeys([*WHERE, DUPLICATE, area, *self.features])))
        assert table is not None
        self.rows = _by_shot(table)
        self.values = np.column_stack(
            [np.zeros((table.num_rows, 0)), *(table[n].to_numpy() for n in self.features)]
        )
        self.counts = counts(table).to_numpy()
        self.area = table[area].to_numpy() / (plate.pixel_um or 1) ** 2

    def _of(self, shots: Sequence[Shot]) -> NDArray[np.int64]:
        none = np.zeros(0, np.int64)
        return np.concatenate([none, *(self.rows.get(shot.key, none) for shot in shots)])

    def seen(self, shots: Sequence[Shot]) -> int:
        """All objects, those seen twice twice."""
        return len(self._of(shots))

    def counted(self, shots: Sequence[Shot]) -> int:
        return int(self.counts[self._of(shots)].sum())

    def foreground(self, shots: Sequence[Shot]) -> float:
        """Pixels."""
        return float(self.area[self._of(shots)].sum())

    def medians(self, shots: Sequence[Shot]) -> Row:
        """Of the objects that count; None where there is none."""
        rows = self._of(shots)
        values = self.values[rows[self.counts[rows]]]
        return {MEDIAN + name: _median(one) for name, one in zip(self.features, values.T, strict=True)}


def medians_of(schema: pa.Schema) -> list[str]:
    """The columns of objects of which a median is told."""
    floats = [one.name for one in schema if pa.types.is_floating(one.type)]
    return [name for name in floats if not name.startswith(UNSAID)]


def _median(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None


def _by_shot(table: pa.Table) -> dict[ShotKey, NDArray[np.int64]]:
    """The rows of each field and time."""
    encoded = [table[name].combine_chunks().dictionary_encode() for name in WHERE]
    names = [one.dictionary.to_pylist() for one in encoded]
    shape = [max(1, len(each)) for each in names]
    places = np.ravel_multi_index([one.indices.to_numpy() for one in encoded], shape)
    order = np.argsort(places, kind="stable")
    found, starts = np.unique(places[order], return_index=True)
    keys = zip(
        *(
            np.take(np.array(each, object), at)
            for each, at in zip(names, np.unravel_index(found, shape), strict=True)
        ),
        strict=True,
    )
    return dict(zip(keys, np.split(order, starts[1:]), strict=False))
