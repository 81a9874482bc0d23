"""ROIs of ImageJ and Fiji: `RoiSet.zip` of the ROI Manager, or a single `.roi`."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.outlines import (
    Outline,
    Shape,
    check_places,
    ellipse_outline,
    polygon_outline,
)

LARGEST = 2**26  # bytes of one ROI: an archive may claim any size, and would fill the memory
AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
FOREIGN = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """Checks that every ROI is an area in the field, of one of its times."""
    check_places(path, read(path, part, shape), shape)
    return ()


def read(path: Path, part: str, shape: Shape) -> list[Outline]:
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
        what = (subtype if subtype in FOREIGN else kind).name.lower()
        raise UserError(f"{name} is no area but a {what}: save the ROIs without it")
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
