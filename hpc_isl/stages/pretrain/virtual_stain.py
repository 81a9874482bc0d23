"""The predicted stain of held-out wells as an OME-Zarr plate, in the counts of the instrument."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.data.view import View
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.stages.shared.held_out import FieldPrediction
from hpc_isl.stages.shared.plate_views import PlateField, PlateView, PlateViews, name_of


def stain_paths(study: PlateViews, fields: Sequence[PlateField], run: Path) -> dict[str, Path]:
    """Returns plate -> the path of its virtual stain: `stain.zarr`, or a folder of several plates."""
    names = list(dict.fromkeys(plate.name for plate, _ in fields))
    if len(names) == 1:
        return {names[0]: run / "stain.zarr"}
    paths = {index.plate.name: index.path for index in study.indices}
    # Two plates may lie in folders of one name.
    unique = len({paths[name].name for name in names}) == len(names)
    return {
        name: run / "stain" / (paths[name].name if unique else f"{number}-{paths[name].name}")
        for number, name in enumerate(names, 1)
    }


def stain_plate(plate: PlateView, fields: Sequence[PlateField]) -> Plate:
    """Returns the plate to write: its fields at the level that the model sees, a channel for each target."""
    keys = [key for other, key in fields if other.index is plate.index]
    index, pixel_um = plate.index, plate.index.plate.pixel_um
    return replace(
        index.plate,
        channels=tuple(_channel(plate, number) for number in range(len(plate.view.targets))),
        fields=tuple(_field(plate, key) for key in keys),
        pixel_um=None if pixel_um is None else pixel_um * 2 ** plate.level(keys[0]),
        plane_um=None,
        details={"virtual stain of": plate.name, "fingerprint": index.fingerprint},
    )


def _channel(plate: PlateView, number: int) -> Channel:
    role = plate.view.targets[number]
    names = [target.channel for target in plate.view.targets]
    name = role.channel if names.count(role.channel) == 1 else name_of(role)
    known = [channel for channel in plate.index.plate.channels if channel.name == role.channel]
    stored = known[0] if known else Channel(name)
    return replace(stored, name=f"{name} (predicted)", exposure_s=None, flat_field=None)


def _field(plate: PlateView, key: FieldKey) -> Field:
    stored, pixel_um = plate.index.field(key), plate.index.plate.pixel_um
    y, x = field_view(plate.view, plate.index, key, plate.times(key)[0]).shape
    integer = np.dtype(stored.dtype).kind in "iu" and all(role.numbers for role in plate.view.targets)
    position = stored.position_um
    if position is not None and pixel_um is not None:
        # Positions are of the first pixel's centre, which lies further inside where pixels are larger.
        inward = pixel_um * (stored.shape[3] // y - 1) / 2
        position = position[0] + inward, position[1] + inward
    return Field(
        key=key,
        shape=(stored.shape[0], len(plate.view.targets), 1, y, x),
        dtype=stored.dtype if integer else "float32",
        position_um=position,
    )


def remove_partial_stains(paths: Sequence[Path]) -> None:
    """Removes what an interrupted attempt left; it is written again, with the same pixels."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def write_stain(path: Path, plate: Plate, times: Sequence[FieldPrediction]) -> None:
    """Writes the predictions of one field at all times that were imaged, as counts (see `in_counts`)."""
    field = next(field for field in plate.fields if field.key == times[0].key)
    pixels = np.zeros(field.shape, field.dtype)
    for predicted in times:
        pixels[predicted.time, :, 0] = in_counts(predicted.plate.view, predicted.prediction, field.dtype)
    planes = [(predicted.time, channel, 0) for predicted in times for channel in range(field.shape[1])]
    field = field.with_planes(planes, [channel.name for channel in plate.channels])
    write_field(path, plate, field, pixels, measure(pixels, planes), CodecRecipe())


def in_counts(view: View, prediction: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Returns the prediction (target, y, x) before normalisation, rounded and clipped to an integer type.

    Counts are flat-field corrected where the view corrects them. Targets that were normalised field by
    field have no counts: they stay float32, in relative units.
    """
    numbers = [role.numbers or (0.0, 1.0) for role in view.targets]
    offset, scale = (np.array(column, np.float32)[:, None, None] for column in zip(*numbers, strict=True))
    counts = prediction * scale + offset
    if np.dtype(dtype).kind == "f":
        return np.asarray(counts, dtype)
    limits = np.iinfo(dtype)
    clipped: NDArray[Any] = np.clip(np.rint(counts), limits.min, limits.max)
    return clipped.astype(dtype)


def finish_stain(path: Path, plate: Plate, index: Index) -> None:
    """Completes the written fields to a plate, with the plate map of the plate that was predicted."""
    finalise(path, plate, {well: index.plate_map[well] for well in plate.wells if well in index.plate_map})
