"""The one plane of a stack that people are shown: in exports, on pages and while they correct labels."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from hpc_isl.learning.data.pixels import choose_planes
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, read_box


def shown_plane(
    index: Index, key: FieldKey, channel: int, level: int = 0, time: int = 0
) -> NDArray[Any] | None:
    """Returns (y, x) counts of a channel on a level of the pyramid; None: it was not imaged at that time.

    Of a stain the brightest of all planes at each pixel, of transmitted light the sharpest plane.
    """
    focus = index.focus(key, channel, time)
    if not focus:
        return None
    planes = choose_planes("max" if index.plate.channels[channel].fluorescent else "focus", focus)
    pixels: NDArray[Any] = read_box(
        index.image(key), level, time, channel, list(planes), slice(None), slice(None)
    ).max(0)
    return pixels
