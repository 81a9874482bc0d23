"""A table of objects from labels: position, size and shape of each, and its intensities in each channel.

Figures that scikit-image's `regionprops` knows have its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.objects import feature_kernels
from hpc_isl.objects.types import AnyLabels, Floats, Image, Integers, Labels

Columns = dict[str, NDArray[Any]]


def features(
    labels: Labels,
    channels: Mapping[str, Image | None],
    pixel_um: float | None,
    origin: tuple[int, int] = (0, 0),
    image: tuple[int, int] | None = None,
) -> Columns:
    """Returns one row for each object, by ascending label.

    `label`; `y0`, `x0`, `y1`, `x1`: bounding box in pixels, ends excluded; `centroid_y_um`, `centroid_x_um`:
    from the centre of the image's first pixel; `area_um2`, `perimeter_um`, `eccentricity`, `solidity`,
    `orientation_rad`, `equivalent_diameter_um`: as `regionprops` has them; `touches_border`: has pixels
    in an outermost row or column of the image; for each channel `<channel>_mean`, `_sd` (of all pixels: n,
    not n − 1), `_min`, `_max` and `_sum`, in counts.

    Args:
        labels: (y, x), 0 background; pieces of one label are one object.
        channels: name -> (y, x) pixels of the shape of `labels`; None: not imaged, and nothing is known.
        pixel_um: edge of a pixel in micrometres. None: the columns end in `_px` instead, the area too.
        origin, image: where a crop of whole objects lies (y, x) in an image of that shape, whose rows these
            then are, bit for bit.
    """
    labels, names, runs = objects_in(labels)
    box, sums = feature_kernels.measure(runs, len(names), labels.shape)
    length, square = ("px", "px") if pixel_um is None else ("um", "um2")
    edge = 1.0 if pixel_um is None else pixel_um
    area = sums[0].astype(np.float64)
    eccentricity, orientation = _ellipse(area, sums)
    y0, x0, y1, x1 = (side + origin[axis % 2] for axis, side in enumerate(box))
    high, wide = image or labels.shape
    columns: Columns = {
        "label": names, "y0": y0, "x0": x0, "y1": y1, "x1": x1,
        f"centroid_y_{length}": (y0 + sums[1] / area) * edge,
        f"centroid_x_{length}": (x0 + sums[2] / area) * edge,
        f"area_{square}": area * edge**2,
        f"perimeter_{length}": feature_kernels.perimeters(labels, runs, len(names)) * edge,
        "eccentricity": eccentricity,
        "solidity": area / feature_kernels.hulls(runs, box),
        "orientation_rad": orientation,
        f"equivalent_diameter_{length}": np.sqrt(4 * area / np.pi) * edge,
        "touches_border": (y0 == 0) | (x0 == 0) | (y1 == high) | (x1 == wide),
    }  # fmt: skip
    for name, pixels in channels.items():
        columns |= _counts(name, labels.shape, runs, area, pixels)
    return columns


def assigned(nuclei: Labels, cells: Labels) -> Labels:
    """Returns the cell of each nucleus, by ascending label of the nuclei.

    It is the cell that holds most of the nucleus's pixels; of equals the one of the smaller label. 0: no cell
    holds any of them. What lies outside of cells plays no part, as in CellProfiler's RelateObjects.

    Args:
        nuclei, cells: (y, x) labels of one image, 0 background.
    """
    if nuclei.shape != cells.shape:
        raise ValueError(f"nuclei {nuclei.shape} and cells {cells.shape} differ in shape")
    tidy, names, _ = objects_in(nuclei)
    overlap = (tidy > 0) & (cells > 0)
    nucleus_labels, cell_labels = tidy[overlap].astype(np.uint64), cells[overlap].astype(np.uint64)
    pairs, shared_pixels = np.unique(
        nucleus_labels << 32 | cell_labels, return_counts=True
    )  # two labels in one 64-bit number
    pairs = pairs[np.argsort(-shared_pixels, kind="stable")]
    nucleus, first = np.unique(pairs >> 32, return_index=True)
    cell = np.zeros(len(names), np.uint32)
    cell[np.searchsorted(names, nucleus)] = pairs[first] & 0xFFFFFFFF
    return cell


def shares(labels: Labels, chosen: NDArray[np.bool_]) -> Floats:
    """Returns the share of each object's pixels (y, x) that are chosen, by ascending label."""
    tidy, names, _ = objects_in(labels)
    inside = tidy > 0
    rows = np.searchsorted(names, tidy[inside])
    total = np.bincount(rows, minlength=len(names))
    return np.bincount(rows, weights=chosen[inside], minlength=len(names)) / total


def contiguous(labels: AnyLabels) -> tuple[Labels, Labels, NDArray[np.int32]]:
    """Returns labels 1, 2, … in the order of the names, the names, ascending, and by label its row."""
    tidy, names, _ = objects_in(labels)
    places = np.where(tidy > 0, np.searchsorted(names, tidy) + 1, 0).astype(np.uint32)
    return places, names, np.arange(-1, len(names), dtype=np.int32)


def objects_in(labels: AnyLabels) -> tuple[Labels, Labels, NDArray[np.int32]]:
    """Returns the labels as the loops take them, the names of the objects, ascending, and the runs of them.

    Runs are (run, 4): y, first x and end of neighbouring pixels of one object, and its place among the names.
    """
    if (
        labels.ndim != 2
        or labels.dtype.kind not in "iu"
        or (labels.dtype.kind == "i" and labels.min(initial=0) < 0)
    ):
        raise UserError(f"labels of shape {labels.shape}, {labels.dtype}: (y, x) of whole numbers from 0 on")
    tidy = np.ascontiguousarray(labels, np.uint32)
    runs = feature_kernels.runs_of(tidy)
    names, runs[:, 3] = np.unique(runs[:, 3], return_inverse=True)
    return tidy, names, runs.view(np.int32)


def _ellipse(area: Floats, sums: Integers) -> tuple[Floats, Floats]:
    """Returns eccentricity, and orientation between the rows' axis and the long one, of the ellipse."""
    # As in `regionprops`, in whose inertia tensor pixels are points: a line has eccentricity 1.
    _, y, x, yy, xx, xy = sums.astype(np.float64)
    # Central moments times the area are whole numbers: those that should be equal are.
    along, across, mixed = area * yy - y * y, area * xx - x * x, area * xy - y * x
    spread = np.hypot(along - across, 2 * mixed)
    longest = (along + across + spread) / 2
    eccentricity = np.sqrt(np.divide(spread, longest, out=np.zeros_like(area), where=longest > 0))
    angle = 0.5 * np.arctan2(2 * mixed, along - across)
    return eccentricity, np.where(along == across, np.where(mixed > 0, np.pi / 4, -np.pi / 4), angle)


def _counts(
    name: str, shape: tuple[int, ...], runs: NDArray[np.int32], area: Floats, pixels: Image | None
) -> Columns:
    figures = [f"{name}_{figure}" for figure in ("mean", "sd", "min", "max", "sum")]
    if pixels is None:
        return {figure: np.full(len(area), np.nan) for figure in figures}
    if pixels.shape != shape:
        raise ValueError(f"channel {name!r} {pixels.shape} and labels {shape} differ in shape")
    # float32 holds 16-bit counts exactly, and takes half the memory.
    dtype = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
    total, low, high, squares = feature_kernels.totals(runs, len(area), np.ascontiguousarray(pixels, dtype))
    values = (total / area, np.sqrt(squares / area), low, high, total)
    return dict(zip(figures, values, strict=True))
