"""A screen that nobody sees, for windows that draw by OpenGL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def screen() -> Iterator[dict[str, str]]:
    """Yields the environment in which a program finds the screen."""
    xvfb = shutil.which("Xvfb")
    if xvfb is None:
        if os.environ.get("HPC_ISL_NEEDS_NAPARI") == "1":
            pytest.fail("Xvfb is not installed")
        pytest.skip("needs Xvfb")
    read, write = os.pipe()
    size = ["-screen", "0", "1280x1024x24"]
    server = subprocess.Popen(
        [xvfb, "-displayfd", str(write), *size], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    try:
        with os.fdopen(read) as numbers:
            number = numbers.readline().strip()  # it writes the first number that is free, once it listens
        assert number, "Xvfb did not start"
        environment = {**os.environ, "DISPLAY": f":{number}", "LIBGL_ALWAYS_SOFTWARE": "1"}
        environment.pop("WAYLAND_DISPLAY", None)
        yield environment
    finally:
        server.terminate()
        server.wait(30)
