"""Compiling the loops over pixels: numba, kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Returns the function as machine code, made at its first call; other threads run meanwhile.

    It is kept in NUMBA_CACHE_DIR, which each job has for itself, else beside the source, else in the
    user's cache folder. Where none of them can be written (a read-only installation without a home),
    numba raises at import; then each process compiles for itself, which takes seconds and is never wrong.
    """
    try:
        machine_code: Function = njit(function, cache=True, nogil=True)
    except RuntimeError:
        machine_code = njit(function, nogil=True)
    return machine_code
