"""Waits for what other processes bring about."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(true: Callable[[], object], within_s: float = 90) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False
