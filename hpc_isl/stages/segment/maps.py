"""What the networks say of a field, kept as an image of a plate of its own: stain, distance map, mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.network.contract import Contract
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe

Pixels = NDArray[np.float32]
MAPS = {
    "stain": "a run of pretrain predicts a stain, also beside this model, as in stain=NAME",
    "distance": "a model of cells predicts distances",
    "mask": "a model that segments predicts a mask",
}
"""What can be kept beside labels, and which model has it."""


@dataclass(frozen=True)
class Maps:
    """Which outputs are kept: (name of the channel, whether of the stain's model, number of the output)."""

    channels: tuple[tuple[str, bool, int], ...]

    def of(self, prediction: Pixels, stain: Pixels | None) -> Pixels:
        """(channel, y, x) of what is kept."""
        sources = {False: prediction, True: stain}
        planes = [sources[stains] for _, stains, _ in self.channels]
        return np.stack([p[n] for p, (_, _, n) in zip(planes, self.channels, strict=True) if p is not None])


def maps_of(write: Sequence[str], contract: Contract, stain: Contract | None) -> Maps:
    """The outputs that `write` names and that the models have."""
    return Maps(tuple(_outputs(write, contract, stain)))


def _outputs(
    write: Sequence[str], contract: Contract, stain: Contract | None
) -> Iterator[tuple[str, bool, int]]:
    task = contract.task
    if "stain" in write and (isl := contract if task is None else stain):
        for number, role in enumerate(isl.view.targets):
            yield f"{role.channel} (predicted)", task is not None, number
    if "distance" in write and task and task.kind == "cells":
        yield "distance", False, 0
    if "mask" in write and task:
        yield "mask (logit)", False, task.outputs - 1


def write_map(path: Path, plate: Plate, key: FieldKey, pixels: Pixels) -> None:
    """The image of one field: (t, c, y, x) float32, on the grid that the model sees."""
    stack = pixels[:, :, None]
    field = Field(key=key, shape=stack.shape, dtype="float32")
    write_field(path, plate, field, stack, measure(stack), CodecRecipe(), overwrite=True)


def plate_of(index: Index, maps: Maps, pixel_um: float | None) -> Plate:
    """The plate that holds the maps, as yet without fields."""
    channels = tuple(Channel(name) for name, _, _ in maps.channels)
    about = {"predicted from": index.plate.name, "fingerprint": index.fingerprint}
    return replace(index.plate, channels=channels, fields=(), pixel_um=pixel_um, plane_um=None, details=about)


def finish_maps(path: Path, plate: Plate, fields: Sequence[Field], index: Index) -> None:
    """Makes the images a plate, with the plate map of the one that they come from."""
    whole = replace(plate, fields=tuple(fields))
    finalise(path, whole, {w: index.plate_map[w] for w in whole.wells if w in index.plate_map})
