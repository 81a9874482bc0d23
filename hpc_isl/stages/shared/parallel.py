"""Work on fields through parallel processes, which ends as soon as it is asked to and leaves none behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import takewhile
from typing import TypeVar

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def in_parallel(
    work: Callable[[Task], Outcome], tasks: list[Task], processes: int, stopping: threading.Event
) -> Iterator[Outcome]:
    """Does work for each task in parallel; yields outcomes as they come, and begins none after `stopping`.

    `work`: a function at the top of a module, because each process imports it.
    """
    processes = min(processes, len(tasks))
    if processes < 2:
        yield from map(work, takewhile(lambda task: not stopping.is_set(), tasks))
        return
    other_processes = set(multiprocessing.active_children())
    # Processes are spawned, because a forked one would inherit threads that hold locks.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_process)
    try:
        try:
            futures = [pool.submit(work, task) for task in tasks]
        except (ValueError, OSError) as error:  # the pool broke while it started another process
            raise BrokenProcessPool(str(error)) from None
        for future in as_completed(futures):
            if stopping.is_set():  # those that have not begun are taken back, so that the stop is soon
                for open_future in futures:
                    open_future.cancel()
            if not future.cancelled():
                yield future.result()
    except BrokenProcessPool:
        for process in set(multiprocessing.active_children()) - other_processes:
            process.kill()  # the pool asks them with SIGTERM, which they ignore, and would wait for ever
        raise RuntimeError(
            "a process was ended from outside, perhaps because memory ran out; "
            "what is written is kept: start again, with fewer cpus if it was memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Prepares a process of the pool: no signals of its own, one thread, and its end with its parent's."""
    # Ctrl-C and Slurm signal all processes; the parent alone decides, so that fields are finished.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["HPC_ISL_IO_THREADS"] = "1"  # one process per CPU: more threads would only compete
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
