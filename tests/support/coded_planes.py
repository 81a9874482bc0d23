"""Planes whose pixels tell where they belong: what a reader stores can be held against what was written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpc_isl.plates.plate import well_name, well_position

Code = tuple[str, int, int, int, int]
"""Well, and the vendor's numbers of field, channel, plane and time."""


def coded(shape: tuple[int, int], code: Code, dtype: str = "uint16") -> NDArray[np.generic]:
    """A plane (y, x) that holds its code in its first pixels, its last ones too, and elsewhere their sum."""
    well, *numbers = code
    values = np.array([*well_position(well), *numbers], dtype)
    plane = np.full(shape, values.sum(), dtype)
    plane.flat[: len(values)] = plane.flat[-len(values) :] = values
    return plane


def decoded(plane: NDArray[np.generic]) -> Code:
    """The code of a plane; an assertion where it is torn."""
    row, column, field, channel, z, time = (int(value) for value in plane.flat[:6])
    assert np.array_equal(plane.flat[:6], plane.flat[-6:])
    return well_name(row, column), field, channel, z, time
