"""`export labels`: objects of a plate as outlines that QuPath (GeoJSON) or ImageJ (ROIs) opens."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import roifile
from numpy.typing import NDArray

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import check_new_folder
from hpc_isl.objects.tracing import Polygon, outlines
from hpc_isl.plates import store
from hpc_isl.plates.atomic_directory import atomic_directory
from hpc_isl.plates.plate import FieldKey
from hpc_isl.site import cpus_here
from hpc_isl.stages.shared.parallel import in_parallel

EDITED = ("human", "drafted")  # labels of which a person will change some
MOST_PIXELS = 2**15 - 1  # along an edge: ROIs keep coordinates in 16 bits
COLOR = (0, 158, 115)
BYTES_OF_FIELD = 300_000  # of a few hundred outlines, for the look at free space
WORTH_PROCESSES = 16  # fields
Objects = list[tuple[int, list[Polygon]]]


@dataclass(frozen=True)
class Exported:
    """The folder that was written, numbers of fields and of objects, and fields that have no such labels."""

    out: Path
    fields: int
    objects: int
    unlabelled: int


def export_labels(
    path: Path,
    name: str,
    out: Path,
    form: str = "geojson",
    fields: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Writes a file for each field; the folder appears whole or not at all.

    Args:
        name: of the labels.
        form: geojson or roi.
        fields: as B03/1, or B03 for all fields of a well; none: all that have these labels.
        progress: is called with the number of fields that are done, and of all.

    Raises:
        UserError: no such plate, labels, field or format; the folder holds something; a field is too large.
    """
    if form not in FORMATS:
        raise UserError(f"format={form}: no such format; {nearest(form, FORMATS)}")
    index = store.open_plate(path)
    chosen = index.plate.choose(fields) if fields else {field.key for field in index.plate.fields}
    keys = [field.key for field in index.plate.fields if field.key in chosen]
    labelled = [key for key in keys if name in store.label_names(index.image(key))]
    _check(index, name, keys, labelled, form, bool(fields))
    check_new_folder(out)
    if out.is_dir():
        out.rmdir()  # fails unless it is empty: nothing that came meanwhile is replaced
    count, processes = 0, cpus_here() if len(labelled) >= WORTH_PROCESSES else 1
    with atomic_directory(out, BYTES_OF_FIELD * len(labelled)) as folder:
        tasks = [(Labels(path, key, name), form, folder) for key in labelled]
        for number, objects in enumerate(in_parallel(_export_field, tasks, processes, Event()), 1):
            count += objects
            progress(number, len(labelled))
    return Exported(out, len(labelled), count, len(keys) - len(labelled))


def _export_field(task: tuple[Labels, str, Path]) -> int:
    """Writes the file of a field in the folder; returns how many objects it holds."""
    labels, form, folder = task
    pixels = store.read_labels(labels.image, labels.name)
    times = [list(outlines(image)) for image in (pixels if pixels.ndim == 3 else pixels[None])]
    suffix, write = FORMATS[form]
    write(folder / f"{labels.key.well}_{labels.key.image}{suffix}", labels, times)
    return sum(map(len, times))


def _check(
    index: store.Index, name: str, keys: list[FieldKey], labelled: list[FieldKey], form: str, named: bool
) -> None:
    unlabelled = [str(key) for key in keys if key not in labelled]
    if named and unlabelled:
        raise UserError(f"fields: {', '.join(unlabelled[:10])} have no labels {name!r}")
    if not labelled:
        names = sorted({label for key in keys for label in store.label_names(index.image(key))})
        raise UserError(f"labels={name}: no field has them; {nearest(name, names)}")
    large = [str(key) for key in labelled if max(index.field(key).shape[-2:]) > MOST_PIXELS]
    if form == "roi" and large:
        raise UserError(
            f"fields: {', '.join(large[:10])} have more than {MOST_PIXELS:,} pixels along an edge, which "
            "ImageJ's ROIs cannot number; take format=geojson"
        )


@dataclass(frozen=True)
class Labels:
    """The labels of one field of the plate at `plate`."""

    plate: Path
    key: FieldKey
    name: str

    @cached_property
    def index(self) -> store.Index:
        return _open(self.plate)

    @property
    def image(self) -> Path:
        return self.index.image(self.key)

    @property
    def origin(self) -> str:
        return store.annotation(self.image, self.name)[0]


_open = lru_cache(maxsize=1)(store.open_plate)
"""Opens the plate once in each process."""


# ---------------------------------------------------------------- GeoJSON


def write_geojson(path: Path, labels: Labels, times: Sequence[Objects]) -> None:
    """Writes a FeatureCollection as QuPath reads it, in pixels of full resolution.

    Labels of people and drafts become annotations, which QuPath lets one edit, others detections, of which it
    bears many.
    """
    kind = "annotation" if labels.origin in EDITED else "detection"
    features = []
    for time, objects in enumerate(times):
        for number, polygons in objects:
            rings = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
            geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": rings}
            if len(rings) == 1:
                geometry = {"type": "Polygon", "coordinates": rings[0]}
            if len(times) > 1:  # QuPath's own member: the time that the outline is of
                geometry["plane"] = {"c": -1, "z": 0, "t": time}
            unique = f"{labels.index.fingerprint}/{labels.key}/{labels.name}/{time}/{number}"
            features.append({
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, unique)),  # QuPath reads UUIDs alone
                "geometry": geometry,
                "properties": {
                    "objectType": kind,
                    "name": str(number),
                    "classification": {"name": labels.name, "color": COLOR},
                },
            })  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")))


# ---------------------------------------------------------------- ROIs of ImageJ


def write_rois(path: Path, labels: Labels, times: Sequence[Objects]) -> None:
    """Writes a zip that ImageJ's ROI Manager opens, a ROI for each object, called by its number."""
    rois = []
    for time, objects in enumerate(times):
        for number, polygons in objects:
            roi = _polygon(polygons[0][0]) if len(polygons) == len(polygons[0]) == 1 else _shape(polygons)
            roi.name = f"{number:05d}" if len(times) == 1 else f"{time + 1:04d}-{number:05d}"
            roi.t_position = time + 1 if len(times) > 1 else 0
            rois.append(roi)
    roifile.roiwrite(path, rois, mode="w")


def _polygon(ring: NDArray[np.int64]) -> roifile.ImagejRoi:
    roi = roifile.ImagejRoi.frompoints(ring)
    roi.roitype = roifile.ROI_TYPE.TRACED  # what the wand makes: along the edges of pixels
    roi.right, roi.bottom = ring.max(0).tolist()  # roifile takes the corners for pixels
    return roi


def _shape(polygons: list[Polygon]) -> roifile.ImagejRoi:
    """Returns a ROI of several rings: what an even number of them surrounds is a hole."""
    rings = [ring for polygon in polygons for ring in polygon]
    path: list[float] = []
    for ring in rings:
        path += [0, *ring[0]]  # move to, line to, and close, as Java numbers them
        path += [float(number) for point in ring[1:] for number in (1, *point)]
        path.append(4)
    roi = roifile.ImagejRoi()
    roi.roitype = roifile.ROI_TYPE.RECT
    corners = np.concatenate(rings)
    roi.left, roi.top = corners.min(0).tolist()
    roi.right, roi.bottom = corners.max(0).tolist()
    roi.multi_coordinates = np.array(path, np.float32)
    roi.shape_roi_size = len(path)
    return roi


FORMATS = {"geojson": (".geojson", write_geojson), "roi": ("_RoiSet.zip", write_rois)}
