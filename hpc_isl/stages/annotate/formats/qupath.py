"""GeoJSON as QuPath exports it: annotations, detections and cells, in pixels of full resolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.formats.jsonfile import load, ring
from hpc_isl.stages.annotate.formats.outlines import (
    Outline,
    Ring,
    Shape,
    check_places,
    of_ellipse,
    of_polygons,
)

# What QuPath calls objects of their own, and how it once did; a root, tmaCore or tile is none.
OBJECTS = {"annotation", "detection", "cell", "unknown"}
FORMER = {"PathAnnotationObject": "annotation", "PathDetectionObject": "detection", "PathCellObject": "cell"}


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Every object is an area in the field, of one of its times; what is passed over is said."""
    check_places(path, read(path, part, shape), shape)
    kinds = Counter(_kind(feature) for feature in _features(path))
    left = [f"{count} of type {kind}" for kind, count in sorted(kinds.items()) if kind not in OBJECTS]
    nuclei = sum("nucleusGeometry" in feature for feature in _features(path))
    remarks = [f"{path.name}: {', '.join(left)} are no objects and are left out"] if left else []
    if nuclei:
        remarks.append(f"{path.name}: {nuclei} cells have a nucleus inside; the cells' outlines are taken")
    mixed = [f"{count} of type {kind}" for kind, count in sorted(kinds.items()) if kind in OBJECTS]
    return [*remarks, *([f"{path.name}: objects are {', '.join(mixed)}"] if len(mixed) > 1 else [])]


def read(path: Path, part: str, shape: Shape) -> list[Outline]:
    """The objects, in the order of the file."""
    found = []
    for number, feature in enumerate(_features(path), 1):
        properties = feature.get("properties") or {}
        name = str(properties.get("name") or f"object {number}")
        if _kind(feature) not in OBJECTS:
            continue
        try:
            found.append(_outline(name, feature["geometry"]))
        except UserError as mistake:
            raise UserError(f"{path}: {mistake}") from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{path}: {name} is damaged ({error})") from None
    return found


def _features(path: Path) -> list[Mapping[str, Any]]:
    """A collection, a list (older versions), or a single object."""
    content = load(path)
    if isinstance(content, dict) and "images" in content:
        raise UserError(
            f"{path} is about several images, as COCO files are: name it as source=, not in a table"
        )
    if isinstance(content, dict):
        content = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise UserError(f"{path} is neither GeoJSON (features) nor COCO (images and annotations)")
    return content


def _kind(feature: Mapping[str, Any]) -> str:
    properties = feature.get("properties") or {}
    former = FORMER.get(str(feature.get("id")), "unknown")
    return str(properties.get("objectType") or properties.get("object_type") or former)


def _outline(name: str, geometry: Mapping[str, Any]) -> Outline:
    polygons = [[ring(points) for points in polygon] for polygon in _polygons(name, geometry)]
    time = int((geometry.get("plane") or {}).get("t", 0))
    found = of_polygons(name, time, polygons)
    return of_ellipse(name, time, found.box) if geometry.get("isEllipse") else found


def _polygons(name: str, geometry: Mapping[str, Any]) -> Iterator[Sequence[Sequence[Ring]]]:
    kind = geometry["type"]
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(name, part)
    else:
        raise UserError(f"{name} is no area but a {kind}: export from QuPath without it")
