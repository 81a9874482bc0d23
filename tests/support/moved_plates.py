"""Synthetic exports of one plate, taken out and put back: the same cells, elsewhere under the lens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from hpc_isl.plates.plate import WELL_DISTANCE_UM
from hpc_isl.seeds import stream
from hpc_isl.stages.synthetic.cells import Truth, grow
from hpc_isl.stages.synthetic.layout import PIXEL_UM, Channel, Well, expose, illumination, lay_out
from hpc_isl.stages.synthetic.stage import file_name, index_text

MARGIN = 100  # pixels grown around a field, into which it may move
PITCH = WELL_DISTANCE_UM[96] / PIXEL_UM  # pixels from well to well
Move = Callable[[str, int], tuple[int, int]]
"""(well, field) -> (y, x) in pixels: what is at p when the plate is first imaged is then at p + move."""


@lru_cache(maxsize=64)
def _truth(well: Well, field: int, size: int, stranger: bool) -> Truth:
    word = "another" if stranger else "cells"
    return grow(stream(0, word, well.name, field), size + 2 * MARGIN, well.condition(0))


def write_pass(
    folder: Path,
    channels: Sequence[Channel],
    *,
    wells: int,
    fields: int = 1,
    size: int = 224,
    heights: Sequence[float] = (0.0,),
    move: Move = lambda well, field: (0, 0),
    degrees: float = 0.0,
    reverse: bool = False,
    stranger: tuple[str, int] | None = None,
    noise: str = "first",
) -> Path:
    """Writes a Harmony export of a plate that lies elsewhere than its index says.

    Args:
        degrees: by which every field is turned about its middle; where a well then lies is for `move` to say.
        reverse: fields are numbered backwards; positions are right.
        stranger: a field that shows other cells.
        noise: of the camera; another word makes other noise.
    """
    layout, plate_format = lay_out(wells)
    for well in layout:
        for field in range(1, fields + 1):
            truth = _truth(well, field, size, (well.name, field) == stranger)
            for number, channel in enumerate(channels, 1):
                for plane, z_um in enumerate(heights, 1):
                    light = _moved(channel.light(truth, z_um), move(well.name, field), degrees)
                    lit = light * illumination(channel.profile, size)
                    rng = stream(0, noise, well.name, field, channel.name, plane)
                    path = folder / "Images" / file_name(well, field, plane, number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    tifffile.imwrite(path, expose(lit, rng), metadata=None)
    text = index_text(layout, plate_format, fields, channels, heights, size)
    if reverse:
        text = re.sub(
            r"<FieldID>(\d+)<", lambda found: f"<FieldID>{fields + 1 - int(found[1])}<", text
        )  # fmt: skip
    (folder / "Images" / "Index.idx.xml").write_text(text, encoding="utf-8")
    return folder


def _moved(light: np.ndarray, move: tuple[int, int], degrees: float) -> np.ndarray:
    """Returns the field without its margin, after the move."""
    y, x = move
    size = light.shape[0] - 2 * MARGIN
    if degrees:
        angle, middle = np.deg2rad(degrees), (light.shape[0] - 1) / 2
        # (y, x) as plate_model has it; the inverse, for every pixel asks where its light came from.
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        light = ndimage.affine_transform(light, turn, middle - turn @ [middle, middle], order=1)
    return light[MARGIN - y : MARGIN - y + size, MARGIN - x : MARGIN - x + size]
