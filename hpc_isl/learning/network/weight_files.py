"""Which encoder weights are files of the user's; all others are names that the library knows."""

from __future__ import annotations

import os

SUFFIXES = (".safetensors", ".pth", ".pt")


def is_file(weights: str) -> bool:
    """Whether weights are given by path rather than by name."""
    return weights.endswith(SUFFIXES) or os.sep in weights
