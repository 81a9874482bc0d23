"""What the worker processes of the pool's tests compute, with everything that may befall a call."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_isl.errors import AbortRun, UserError


def doubled(number: int) -> int:
    time.sleep(0.02 if number % 3 else 0)
    return 2 * number


def who(seconds: float) -> tuple[int, float, float]:
    """The process, and when it began and ended."""
    began = time.monotonic()
    time.sleep(seconds)
    return os.getpid(), began, time.monotonic()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def refused(what: tuple[Path, int]) -> int:
    """Odd numbers are refused; each trial leaves a file."""
    _leave(*what)
    if what[1] % 2:
        raise ArithmeticError(f"{what[1]} is odd")
    return what[1]


def at_the_third(what: tuple[Path, int]) -> int:
    """Goes well when it was tried twice before."""
    _leave(*what)
    if len(list(what[0].glob(f"{what[1]}-*"))) < 3:
        raise OSError("not yet")
    return what[1]


def mistaken(what: tuple[Path, int]) -> int:
    _leave(*what)
    raise UserError(f"well {what[1]} is wrong")


def blocked(what: tuple[Path, int]) -> int:
    """From the tenth on there is no room."""
    _leave(*what)
    if what[1] >= 10:
        raise AbortRun("the disk is full")
    return what[1]


def deadly(what: tuple[Path, int, bool]) -> int:
    """Kills its process if it is told to; each trial leaves a file."""
    folder, number, kills = what
    _leave(folder, number)
    time.sleep(0.02)
    if kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dies_after_answering(what: tuple[Path, int, bool]) -> int:
    """Its process ends when the answer is ready, and perhaps not yet fetched."""
    _, number, dies = what
    if dies:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return number


def spoilt_once(what: tuple[Path, int]) -> int:
    """The first one to come spoils its process: from then on each call in it fails, as PyTorch says it."""
    folder, number = what
    mark = folder / "spoilt"
    with suppress(FileExistsError), mark.open("x") as stream:
        stream.write(str(os.getpid()))
    time.sleep(0.02)
    if mark.read_text() == str(os.getpid()):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return number


def slow(what: tuple[Path, int]) -> int:
    """Leaves a file when it begins and another when it has ended."""
    folder, number = what
    (folder / f"begun-{number}").touch()
    time.sleep(0.5)
    (folder / f"ended-{number}").touch()
    return number


def unsendable(_: Any) -> Any:
    return threading.Lock()


def _leave(folder: Path, number: int) -> None:
    (folder / f"{number}-{time.monotonic_ns()}").touch()
