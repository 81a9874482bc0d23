"""JSON files of annotations: read once, or refused with their name."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.formats.outlines import Ring


def load(path: Path) -> Any:
    """What the file holds, not to be changed: it is parsed once, though it may be about many fields.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return _parsed(path, path.stat().st_mtime_ns, path.stat().st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from None


@lru_cache(maxsize=2)
def _parsed(path: Path, changed: int, size: int) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def ring(points: Any) -> Ring:
    """Points (n, 2) of a closed line.

    Raises:
        ValueError: no numbers, or fewer than three points.
    """
    found = np.asarray([point[:2] for point in points], float)
    if found.ndim != 2 or len(found) < 3 or not np.isfinite(found).all():
        raise ValueError("an outline has three points (x, y) or more")
    return found
