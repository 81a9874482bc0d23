"""Files of outlines: GeoJSON of one image, as QuPath exports it, COCO about many, and ROIs of ImageJ."""

from __future__ import annotations

import json
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.outlines import (
    Mask,
    Outline,
    Ring,
    Shape,
    check_places,
    ellipse_outline,
    mask_outline,
    polygon_outline,
)

# The objects of QuPath by their present types; a root, tmaCore or tile is none. And by their former ones.
OBJECTS = {"annotation", "detection", "cell", "unknown"}
FORMER = {"PathAnnotationObject": "annotation", "PathDetectionObject": "detection", "PathCellObject": "cell"}
LARGEST = 2**26  # bytes of one ROI: an archive may claim any size, and would fill the memory
AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
FOREIGN = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)


def _load(path: Path) -> Any:
    """Returns the content of a file, not to be changed: it is parsed once for all fields that it is about.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return _parse_json(path, path.stat().st_mtime_ns, path.stat().st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from None


# The time of the last change and the size are keys of the cache: a file that changes is read again.
@lru_cache(maxsize=2)
def _parse_json(path: Path, changed: int, size: int) -> Any:
    # JSON has no byte order mark, but programs on Windows write one.
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _ring(points: Any) -> Ring:
    """Returns the points (n, 2) of a closed line.

    Raises:
        ValueError: no numbers, or fewer than three points.
    """
    # GeoJSON allows a height as the third number of a point.
    ring = np.asarray([point[:2] for point in points], float)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("an outline has three points (x, y) or more")
    return ring


@contextmanager
def _errors_of(path: Path, name: str) -> Iterator[None]:
    """Names the file and the object in an error about the object."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {name} {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: {name} is damaged ({error})") from None


# ---------------------------------------------------------------- GeoJSON


def check_geojson(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Checks that every object is an area in the field, of one of its times; remarks what is left out."""
    check_places(path, read_geojson(path, part, shape), shape)
    kinds = sorted(Counter(_kind(feature) for feature in _features(path)).items())
    others = [f"{count} of type {kind}" for kind, count in kinds if kind not in OBJECTS]
    objects = [f"{count} of type {kind}" for kind, count in kinds if kind in OBJECTS]
    nuclei = sum("nucleusGeometry" in feature for feature in _features(path))
    remarks = [f"{path.name}: {', '.join(others)} are no objects and are left out"] if others else []
    if nuclei:
        remarks.append(f"{path.name}: {nuclei} cells have a nucleus inside; the cells' outlines are taken")
    return [*remarks, *([f"{path.name}: objects are {', '.join(objects)}"] if len(objects) > 1 else [])]


def read_geojson(path: Path, part: str, shape: Shape) -> list[Outline]:
    """Returns the objects, in the order of the file; coordinates are pixels of full resolution."""
    outlines = []
    for number, feature in enumerate(_features(path), 1):
        name = str((feature.get("properties") or {}).get("name") or f"object {number}")
        if _kind(feature) not in OBJECTS:
            continue
        with _errors_of(path, name):
            geometry = feature["geometry"]
            polygons = [[_ring(points) for points in polygon] for polygon in _polygons(geometry)]
            time = int((geometry.get("plane") or {}).get("t", 0))
            outline = polygon_outline(name, time, polygons)
            is_ellipse = geometry.get("isEllipse")
            outlines.append(ellipse_outline(name, time, outline.box) if is_ellipse else outline)
    return outlines


def _features(path: Path) -> list[Mapping[str, Any]]:
    """Returns the features of a collection, a list (older versions of QuPath), or a single object."""
    content = _load(path)
    if isinstance(content, dict) and "images" in content:
        raise UserError(
            f"{path} is about several images, as COCO files are: name it as source=, not in a table"
        )
    if isinstance(content, dict):
        content = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(content, list) or not all(isinstance(feature, dict) for feature in content):
        raise UserError(f"{path} is neither GeoJSON (features) nor COCO (images and annotations)")
    return content


def _kind(feature: Mapping[str, Any]) -> str:
    properties = feature.get("properties") or {}
    former = FORMER.get(str(feature.get("id")), "unknown")
    return str(properties.get("objectType") or properties.get("object_type") or former)


def _polygons(geometry: Mapping[str, Any]) -> Iterator[Sequence[Sequence[Any]]]:
    kind = geometry["type"]
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part)
    else:
        raise UserError(f"is no area but a {kind}: export from QuPath without it")


# ---------------------------------------------------------------- COCO


def coco_images(path: Path) -> list[str] | None:
    """Returns the file names of the images that a COCO file is about; None: it is no COCO file."""
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return None
    return list(_images(path)) if isinstance(content.get("annotations"), list) else None


def check_coco(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Checks that the image has the field's size, and every object is an area in it."""
    image = _images(path)[part]
    size = (image.get("height"), image.get("width"))
    if size != shape[1:] or shape[0] != 1:
        raise UserError(f"{path}: {part} has {size} pixels, but the field has {shape} (t, y, x)")
    check_places(path, read_coco(path, part, shape), shape)
    names = {kind.get("id"): str(kind.get("name")) for kind in _load(path).get("categories") or []}
    counts = Counter(names.get(object_.get("category_id"), "?") for object_ in _objects(path, part))
    if len(counts) < 2:
        return ()
    return [f"{part}: objects are {', '.join(f'{n} of category {kind}' for kind, n in counts.most_common())}"]


def read_coco(path: Path, part: str, shape: Shape) -> list[Outline]:
    """Returns the objects of one image, in the order of the file."""
    outlines = []
    for number, object_ in enumerate(_objects(path, part), 1):
        name = f"annotation {object_.get('id', number)}"
        with _errors_of(path, f"{name} of {part}"):
            outlines.append(_coco_outline(name, object_.get("segmentation"), shape[1:]))
    return outlines


def _images(path: Path) -> dict[str, Mapping[str, Any]]:
    """Returns the images by file name.

    Raises:
        UserError: two images of one name, or an image without one.
    """
    images: dict[str, Mapping[str, Any]] = {}
    for image in _load(path)["images"]:
        name = image.get("file_name") if isinstance(image, dict) else None
        if not name or str(name) in images:
            raise UserError(f"{path}: each image needs a file_name of its own; {name!r} is none")
        images[str(name)] = image
    return images


def _objects(path: Path, part: str) -> list[Mapping[str, Any]]:
    image = _images(path)[part].get("id")
    facts = path.stat()
    return _objects_by_image(path, facts.st_mtime_ns, facts.st_size).get(_hashable(image), [])


# For each image anew, a file would cost its images times its objects.
@lru_cache(maxsize=2)
def _objects_by_image(path: Path, changed: int, size: int) -> dict[object, list[Mapping[str, Any]]]:
    objects: dict[object, list[Mapping[str, Any]]] = {}
    for object_ in _parse_json(path, changed, size)["annotations"]:
        objects.setdefault(_hashable(object_.get("image_id")), []).append(object_)
    return objects


def _hashable(value: Any) -> object:
    return repr(value) if isinstance(value, (list, dict)) else value  # of a damaged file


def _coco_outline(name: str, segmentation: Any, size: tuple[int, int]) -> Outline:
    if not segmentation:
        raise UserError("has no outline: boxes alone are no objects")
    if isinstance(segmentation, list):
        polygons = [[_ring(zip(flat[::2], flat[1::2], strict=True))] for flat in segmentation]
        return polygon_outline(name, 0, polygons)
    if tuple(segmentation["size"]) != size:
        raise UserError(f"has a mask of {tuple(segmentation['size'])} pixels; the image has {size}")
    counts = segmentation["counts"]  # compressed into text by pycocotools, a list from other programs
    runs = _decompress(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if sum(runs) != size[0] * size[1] or min(runs) < 0:
        raise UserError("is damaged: its run lengths do not fill the image")

    def mask() -> Mask:
        # Background and object take turns, down the columns.
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape(size[1], size[0]).T

    return mask_outline(name, 0, size, mask)


def _decompress(text: str) -> list[int]:
    """Returns run lengths that COCO's tools shorten: 5 bits a character; from the fourth on, differences."""
    runs: list[int] = []
    value = place = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << place
        place += 5
        if code & 32:
            continue
        value -= (1 << place) if code & 16 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = place = 0
    return runs


# ---------------------------------------------------------------- ROIs of ImageJ and Fiji


def check_rois(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Checks that every ROI is an area in the field, of one of its times."""
    check_places(path, read_rois(path, part, shape), shape)
    return ()


def read_rois(path: Path, part: str, shape: Shape) -> list[Outline]:
    """Returns the ROIs, in the order of the file; where the field has times, each is of its own frame."""
    outlines, problems = [], []
    for name, content in _entries(path):
        try:
            outlines.append(_outline(name, ImagejRoi.frombytes(content), shape[0]))
        except UserError as error:
            problems.append(str(error))
        except (ValueError, TypeError, IndexError, struct.error, RuntimeError) as error:
            problems.append(f"{name} is damaged ({error})")
    if problems:
        more = f", … and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: {'; '.join(problems[:3])}{more}")
    return outlines


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each ROI."""
    try:
        if path.suffix.lower() == ".roi":
            yield path.stem, path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            # A Mac adds files to an archive whose names begin with ._
            entries = [
                entry
                for entry in archive.infolist()
                if entry.filename.lower().endswith(".roi")
                and not PurePosixPath(entry.filename).name.startswith("._")
            ]
            if not entries:
                raise UserError(f"{path} holds no ROI of ImageJ")
            for entry in entries:
                if entry.file_size > LARGEST:
                    raise UserError(f"{path}: {entry.filename} claims {entry.file_size:,} bytes; damaged?")
                yield PurePosixPath(entry.filename).stem, archive.read(entry)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _outline(name: str, roi: ImagejRoi, times: int) -> Outline:
    kind, subtype = roi.roitype, roi.subtype
    if subtype in FOREIGN or kind not in (*AREAS, ROI_TYPE.RECT, ROI_TYPE.OVAL):
        type_name = (subtype if subtype in FOREIGN else kind).name.lower()
        raise UserError(f"{name} is no area but a {type_name}: save the ROIs without it")
    if roi.options & ROI_OPTIONS.SPLINE_FIT or (kind == ROI_TYPE.RECT and roi.rounded_rect_arc_size):
        raise UserError(f"{name} has rounded corners: in ImageJ make a mask of it, and of that a selection")
    if times == 1:  # a ROI of a later frame is then refused
        time = max(roi.t_position - 1, 0)
    else:
        # Of a stack without channels and planes, ImageJ numbers the slices.
        frame = roi.t_position or roi.position
        if not frame:
            raise UserError(f"{name} belongs to no frame, and the field has {times} times")
        time = int(frame) - 1
    if kind == ROI_TYPE.OVAL or (kind == ROI_TYPE.RECT and not roi.composite):
        x0, y0, x1, y1 = box = (
            (roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd)
            if roi.subpixelrect
            else (roi.left, roi.top, roi.right, roi.bottom)
        )
        if kind == ROI_TYPE.OVAL:
            return ellipse_outline(name, time, box)
        return polygon_outline(name, time, [[np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)]])
    rings = [np.asarray(ring, float) for ring in roi.coordinates(multi=True) if len(ring) > 2]
    if not rings:
        raise UserError(f"{name} has no outline")
    return polygon_outline(name, time, [rings])
