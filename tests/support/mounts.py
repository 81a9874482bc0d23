"""Disks that are small, or may not be written: real ones, for tests that run as root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from eventually import eventually


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """At `folder`, a disk of that size, as in `2m`."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        _unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What lies in `folder` may be read alone."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        _unmount(folder)


def _mount(*words: str) -> None:
    made = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr}")


@contextmanager
def bound(folder: Path, at: Path) -> Iterator[None]:
    """At `at`, the folder once more, as automounters show it."""
    at.mkdir(exist_ok=True)
    _mount("--bind", str(folder), str(at))
    try:
        yield
    finally:
        _unmount(at)


def _unmount(folder: Path) -> None:
    """What a process that has just ended held open, the kernel lets go a moment later."""
    said: list[str] = []

    def gone() -> bool:
        done = subprocess.run(["umount", folder], capture_output=True, text=True, check=False)
        said.append(done.stderr)
        return done.returncode == 0

    assert eventually(gone, within_s=10), said[-1]
