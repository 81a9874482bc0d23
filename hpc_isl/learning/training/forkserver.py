"""The server that forks loading processes; alone, because it must start before torch is imported."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOADED = ["hpc_isl.learning.training.forkserver_preload"]  # imported by the server
MOST_WORKERS = 12


def loading_processes(wanted: int | None, cpus: int) -> int:
    """Returns `wanted`; for None, one process for each CPU of the rank but one, which trains."""
    return max(min(cpus - 1, MOST_WORKERS), 0) if wanted is None else wanted


def fork_server() -> ForkServerContext:
    """Starts the server unless it runs already. Called early, it imports while this process imports too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    # The server inherits the environment; with these paths it imports what this process would import.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context
