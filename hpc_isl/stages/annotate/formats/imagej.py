"""ROIs of ImageJ and Fiji: `RoiSet.zip` of the ROI Manager, or a single `.roi`."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.formats.outlines import Outline, Shape, check_places, of_ellipse, of_polygons

LARGEST = 2**26  # bytes of one ROI
AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
FOREIGN = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Every ROI is an area in the field, of one of its times."""
    check_places(path, read(path, part, shape), shape)
    return ()


def read(path: Path, part: str, shape: Shape) -> list[Outline]:
    """The ROIs, in the order of the file; where the field has times, each is of the frame it was drawn in."""
    found, problems = [], []
    for name, content in _entries(path):
        try:
            found.append(_outline(name, ImagejRoi.frombytes(content), shape[0]))
        except UserError as mistake:
            problems.append(str(mistake))
        except (ValueError, TypeError, IndexError, struct.error, RuntimeError) as error:
            problems.append(f"{name} is damaged ({error})")
    if problems:
        more = f", … and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: {'; '.join(problems[:3])}{more}")
    return found


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each ROI; what a Mac adds to an archive is passed over."""
    try:
        if path.suffix.lower() == ".roi":
            yield path.stem, path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            entries = [one for one in archive.infolist() if one.filename.lower().endswith(".roi")]
            entries = [one for one in entries if not PurePosixPath(one.filename).name.startswith("._")]
            if not entries:
                raise UserError(f"{path} holds no ROI of ImageJ")
            for entry in entries:
                if entry.file_size > LARGEST:
                    raise UserError(f"{path}: {entry.filename} claims {entry.file_size:,} bytes; damaged?")
                yield PurePosixPath(entry.filename).stem, archive.read(entry)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _outline(name: str, roi: ImagejRoi, times: int) -> Outline:
    kind, of = roi.roitype, roi.subtype
    if of in FOREIGN or kind not in (*AREAS, ROI_TYPE.RECT, ROI_TYPE.OVAL):
        what = (of if of in FOREIGN else kind).name.lower()
        raise UserError(f"{name} is no area but a {what}: save the ROIs without it")
    if roi.options & ROI_OPTIONS.SPLINE_FIT or (kind == ROI_TYPE.RECT and roi.rounded_rect_arc_size):
        raise UserError(f"{name} has rounded corners: in ImageJ make a mask of it, and of that a selection")
    time = _time(name, roi, times)
    if kind == ROI_TYPE.OVAL or (kind == ROI_TYPE.RECT and not roi.composite):
        box = _box(roi)
        x0, y0, x1, y1 = box
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)
        return of_ellipse(name, time, box) if kind == ROI_TYPE.OVAL else of_polygons(name, time, [[corners]])
    rings = [np.asarray(ring, float) for ring in roi.coordinates(multi=True) if len(ring) > 2]
    if not rings:
        raise UserError(f"{name} has no outline")
    return of_polygons(name, time, [rings])


def _box(roi: ImagejRoi) -> tuple[float, float, float, float]:
    if roi.subpixelrect:
        return roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd
    return roi.left, roi.top, roi.right, roi.bottom


def _time(name: str, roi: ImagejRoi, times: int) -> int:
    """The frame, from 0; of a stack without channels and planes, ImageJ numbers the slices."""
    if times == 1:
        return max(roi.t_position - 1, 0)
    frame = roi.t_position or roi.position
    if not frame:
        raise UserError(f"{name} belongs to no frame, and the field has {times} times")
    return int(frame) - 1
