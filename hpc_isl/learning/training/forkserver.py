"""The server that loading processes are forked from: it has imported much and started no thread."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

# Imported by the server.
PRELOADED = ["hpc_isl.learning.training.forkserver_preload"]
MOST_WORKERS = 12


def loading_processes(wanted: int | None, cpus: int) -> int:
    """As many as wanted; else one for each CPU of the rank but one, which trains."""
    return max(min(cpus - 1, MOST_WORKERS), 0) if wanted is None else wanted


def fork_server() -> ForkServerContext:
    """Starts the server unless it runs; called early, it imports while this process imports too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _environment(
        PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path)
    ):
        forkserver.ensure_running()
    return context


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables for a process that is started meanwhile: it imports what this one would import."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
