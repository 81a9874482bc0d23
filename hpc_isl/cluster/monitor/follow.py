"""Waits for runs that others compute, and shows what they say."""

from __future__ import annotations

import time

from hpc_isl.cluster.monitor import messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.monitor.progress_view import View
from hpc_isl.cluster.run_folder import status
from hpc_isl.run import Run

LOOK_S = 0.5
ASK_S = 5.0  # between questions to the queue


def follow(run: Run, console: Console, rank: int = 0, everything: bool = False) -> int:
    """Shows what the run says until it has ended; Ctrl-C leaves it running."""
    try:
        if run.elements():
            _array_until_ended(run, console)
        else:
            _until_ended(run, rank, everything)
    except KeyboardInterrupt:
        console.log(f"{run.label!r} goes on; to end it: {console.command('cancel', run)}")
        return messages.INTERRUPTED
    return messages.waited(run, console)


def _until_ended(run: Run, rank: int, everything: bool) -> None:
    view = View(run, run.attempt_numbers()[-1], rank, everything)
    asked, alive = -1e9, True
    while alive:
        if run.attempt_numbers()[-1] != view.attempt:  # Slurm has started it again
            view.close()
            view = View(run, run.attempt_numbers()[-1], rank, everything)
        view.tick()
        if time.monotonic() - asked > ASK_S:
            asked, alive = time.monotonic(), status.status_of(run).alive
        time.sleep(LOOK_S)
    view.close()


def _array_until_ended(run: Run, console: Console) -> None:
    """One line whenever the counts have changed."""
    shown = ""
    while True:
        found = status.status_of(run)
        if found.detail != shown:
            console.log(f"{run.name}: {found.detail}")
            shown = found.detail
        if not found.alive:
            return
        time.sleep(ASK_S)


def until_ended(run: Run) -> None:
    """Returns when no one works on the run any more."""
    while status.status_of(run).alive:
        time.sleep(ASK_S)
