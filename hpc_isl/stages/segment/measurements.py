"""The measurements of the objects of a field, or of a part of it: one column after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.pixels import Box, Pixels
from hpc_isl.objects import feature_groups as groups
from hpc_isl.objects.features import Columns, features, shares
from hpc_isl.objects.types import Labels
from hpc_isl.plates.statistics import CAMERA_BITS
from hpc_isl.stages.segment.inputs import PlateInput
from hpc_isl.stages.segment.segmenter import FieldReader, predicted_channels, stored_channels

SHAPE = ("perimeter_", "eccentricity", "solidity", "orientation_", "equivalent_diameter_")
CORRECTION = "intensity_correction"
"""The column that says what was done to counts before they were measured."""


def measured_columns(
    reader: FieldReader, time: int, stain: Pixels | None, labels: Labels, box: Box | None = None
) -> Columns:
    """Returns one row for each object, by ascending label; the columns of `columns_of`.

    Args:
        stain: as in `FieldReader.predicted`.
        labels: (y, x) of a field, or of the box of it.
    """
    region = box or reader.whole
    raw, measured = {}, {}
    for name in stored_channels(reader.plate):
        raw[name] = reader.projected(reader.key, time, name, region)
        measured[name] = reader.corrected(name, raw[name], region, labels)
    measured |= reader.predicted(stain, region)
    nuclei = reader.plate.recipe.nuclei
    nucleus_labels = reader.labels(nuclei, time) if nuclei else None
    return _columns(reader.plate, labels, nucleus_labels, raw, measured, region, reader.shape)


def columns_of(plate: PlateInput) -> Columns:
    """Returns the columns of a plate's objects, of no object."""
    raw: dict[str, NDArray[Any] | None] = dict.fromkeys(stored_channels(plate))
    measured = raw | dict.fromkeys(predicted_channels(plate.models))
    no_labels, pixel_box = np.zeros((1, 1), np.uint32), (slice(0, 1), slice(0, 1))
    nucleus_labels = no_labels if plate.recipe.nuclei else None
    return _columns(plate, no_labels, nucleus_labels, raw, measured, pixel_box, (1, 1))


def _columns(
    plate: PlateInput, labels: Labels, nuclei: Labels | None, raw: Mapping[str, NDArray[Any] | None],
    measured: Mapping[str, NDArray[Any] | None], box: Box, shape: tuple[int, int],
) -> Columns:  # fmt: skip
    measure, pixel_um = plate.recipe.measure, plate.index.plate.pixel_um
    chosen = {*measure.features}
    intensities = measured if "intensity" in chosen else {}
    columns = features(labels, intensities, pixel_um, (box[0].start, box[1].start), shape)
    if "shape" not in chosen:
        columns = {name: values for name, values in columns.items() if not name.startswith(SHAPE)}
    if "correlation" in chosen:
        columns |= groups.correlations(labels, measured)
    if "radial" in chosen:
        # Beyond a box lies background, beyond an image nothing that is known.
        edges = [(int(s.start > 0), int(s.stop < n)) for s, n in zip(box, shape, strict=True)]
        padded = {name: None if image is None else np.pad(image, edges) for name, image in measured.items()}
        columns |= groups.radial(np.pad(labels, edges), padded)
    if "texture" in chosen:
        columns |= groups.texture(labels, measured, measure.white, measure.texture_px, measure.grey_levels)
    if "granularity" in chosen:
        columns |= groups.granularity(labels, measured, measure.white)
    if nuclei is not None:
        columns |= groups.cytoplasm(labels, nuclei, intensities, pixel_um)
    if name := plate.illumination.name:
        # Corrected counts have no greatest value: saturation shows in raw pixels alone.
        for channel in plate.illumination.channels:
            columns[f"{channel}_saturated"] = _saturated_shares(labels, raw[channel], len(columns["label"]))
        columns[CORRECTION] = np.full(len(columns["label"]), name, object)
    return columns


def _saturated_shares(labels: Labels, raw: NDArray[Any] | None, count: int) -> NDArray[np.float64]:
    """Returns the share of each object's pixels that lie at a camera's greatest value."""
    if raw is None:
        return np.full(count, np.nan)
    top = raw.max(initial=0)
    is_limit = float(top) in [2.0**bits - 1 for bits in CAMERA_BITS]
    return shares(labels, (raw == top) & is_limit)
