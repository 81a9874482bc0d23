"""The only source of randomness: a stream for each use in the computation, named by a path; even samples.

A module of its own, because every library draws from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def stream(root: int, *path: int | str) -> np.random.Generator:
    """Returns a generator that depends on `root` and `path` alone, never on rank, worker or order of calls.

    >>> bool(stream(0, "crop", 3).random() == stream(0, "crop", 3).random())
    True
    """
    return np.random.Generator(np.random.Philox(key=_key(root, path)))


def integer(root: int, *path: int | str) -> int:
    """Returns a seed in [0, 2**63) for libraries that want a number (torch.manual_seed)."""
    return _key(root, path) >> 65  # of 128 bits


def evenly_spread(items: Sequence[T], most: int) -> list[T]:
    """Returns up to `most` of the items, spread evenly from the first to the last: a sample without chance.

    >>> evenly_spread("abcde", 3)
    ['a', 'c', 'e']
    """
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]


def _key(root: int, path: tuple[int | str, ...]) -> int:
    # The type is part of the text, so that 1 and "1" are different streams.
    text = "/".join([str(int(root)), *(f"{type(part).__name__[0]}{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
