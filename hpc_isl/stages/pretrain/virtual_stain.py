"""The predicted stain of held-out wells as an OME-Zarr plate, in the counts of the instrument."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.fields import field_view, imaged_times, level_on
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.stages.shared.held_out import FieldPrediction
from hpc_isl.stages.shared.plate_views import PlateField, PlateViews, name_of


def stain_paths(study: PlateViews, places: Sequence[PlateField], run: Path) -> dict[str, Path]:
    """Plate -> where its virtual stain lies: `stain.zarr`, or a folder of plates where there are several."""
    names = list(dict.fromkeys(index.plate.name for index, _ in places))
    if len(names) == 1:
        return {names[0]: run / "stain.zarr"}
    paths = {index.plate.name: index.path for index in study.indices}
    unique = len({paths[name].name for name in names}) == len(names)
    return {
        name: run / "stain" / (paths[name].name if unique else f"{number}-{paths[name].name}")
        for number, name in enumerate(names, 1)
    }


def stain_plate(study: PlateViews, index: Index, places: Sequence[PlateField]) -> Plate:
    """The plate to write: the fields of `places` at the level that the model sees, one channel per target."""
    keys = [key for owner, key in places if owner is index]
    level = level_on(study.view, index, keys[0])
    pixel_um = index.plate.pixel_um
    return replace(
        index.plate,
        channels=tuple(_channel(study, index, place) for place in range(len(study.view.targets))),
        fields=tuple(_field(study, index, key) for key in keys),
        pixel_um=None if pixel_um is None else pixel_um * 2**level,
        plane_um=None,
        details={"virtual stain of": index.plate.name, "fingerprint": index.fingerprint},
    )


def write_stain(path: Path, plate: Plate, study: PlateViews, seen: Sequence[FieldPrediction]) -> None:
    """Writes one field: its predictions at all times that were imaged, as `in_counts` says."""
    field = next(field for field in plate.fields if field.key == seen[0].key)
    pixels = np.zeros(field.shape, field.dtype)
    for each in seen:
        pixels[each.time, :, 0] = in_counts(study, each.prediction, field.dtype)
    predicted = [(each.time, channel, 0) for each in seen for channel in range(field.shape[1])]
    field = field.with_planes(predicted, [channel.name for channel in plate.channels])
    write_field(path, plate, field, pixels, measure(pixels, predicted), CodecRecipe())


def in_counts(study: PlateViews, prediction: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The prediction (target, y, x) before normalisation: rounded and clipped to an integer type.

    Flat-field corrected counts where the model's view corrects them. Targets that were normalised
    field by field have no counts: they stay float32, in relative units.
    """
    numbers = [role.numbers or (0.0, 1.0) for role in study.view.targets]
    offset, scale = (np.array(each, np.float32)[:, None, None] for each in zip(*numbers, strict=True))
    counts = prediction * scale + offset
    if np.dtype(dtype).kind == "f":
        return np.asarray(counts, dtype)
    limits = np.iinfo(dtype)
    clipped: NDArray[Any] = np.clip(np.rint(counts), limits.min, limits.max)
    return clipped.astype(dtype)


def start_stain(paths: Sequence[Path]) -> None:
    """Removes what an attempt that was cut short left: it is written again, to the same pixels."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def finish_stain(path: Path, plate: Plate, index: Index) -> None:
    """Makes the written fields a plate, with the plate map of the one it comes from."""
    finalise(path, plate, {well: index.plate_map[well] for well in plate.wells if well in index.plate_map})


def _channel(study: PlateViews, index: Index, place: int) -> Channel:
    role = study.view.targets[place]
    names = [each.channel for each in study.view.targets]
    name = role.channel if names.count(role.channel) == 1 else name_of(role)
    known = [channel for channel in index.plate.channels if channel.name == role.channel]
    about = known[0] if known else Channel(name)
    return replace(about, name=f"{name} (predicted)", exposure_s=None, flat_field=None)


def _field(study: PlateViews, index: Index, key: FieldKey) -> Field:
    stored = index.field(key)
    shape = field_view(study.view, index, key, imaged_times(study.view, index, key)[0]).shape
    whole = np.dtype(stored.dtype).kind in "iu" and all(role.numbers for role in study.view.targets)
    return Field(
        key=key,
        shape=(stored.shape[0], len(study.view.targets), 1, *shape),
        dtype=stored.dtype if whole else "float32",
        position_um=_first_pixel(stored, index.plate.pixel_um, stored.shape[3] // shape[0]),
    )


def _first_pixel(stored: Field, pixel_um: float | None, factor: int) -> tuple[float, float] | None:
    """Centre of the first pixel of a level that is `factor` times as coarse: further in by half the rest."""
    if stored.position_um is None or pixel_um is None:
        return stored.position_um
    y, x = stored.position_um
    further = pixel_um * (factor - 1) / 2
    return y + further, x + further
