"""Samples are numbers: which crop of which epoch a number means, the same whoever asks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpc_isl.seeds import stream


def drawn(seed: int, number: int, length: int) -> tuple[int, int]:
    """Epoch and crop of a sample: an epoch holds `length` crops, in an order of its own."""
    epoch, place = divmod(number, length)
    return epoch, int(_order(seed, epoch, length)[place])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return stream(seed, "order", epoch).permutation(length)
