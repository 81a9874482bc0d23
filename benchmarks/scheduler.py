"""What handing a task to a worker process costs, where the task itself costs nothing.

    python benchmarks/scheduler.py [--tasks 100000]

Two worker processes, and beside the pool of `segment` (scheduler, TLS, retries, replaced processes) two that
do less: a loop in this process, and a ProcessPoolExecutor with as many tasks ahead.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import psutil

from hpc_isl.cluster.pool import pools
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site
from hpc_isl.tasks import Task

WORKERS = 2
AHEAD = 8


def nothing(number: int) -> int:
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    tasks = parser.parse_args().tasks
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        attempt = Attempt(Run(Path(folder) / "segment" / "none"), cpus=WORKERS)
        with pools(attempt, Site(workers=WORKERS))(0) as pool:
            while pool.workers < WORKERS:
                time.sleep(0.1)
            print(f"{WORKERS} worker processes are there after {time.perf_counter() - start:.1f} s")
            each = (Task(f"plate/{number}", number) for number in range(tasks))
            report("the pool", tasks, lambda: sum(1 for _ in pool.run(nothing, each)))
    memory = psutil.Process().memory_info().rss / 1e6
    print(f"this process has {memory:.0f} MB at the end")
    with ProcessPoolExecutor(WORKERS) as executor:
        report("ProcessPoolExecutor", tasks, lambda: sum(1 for _ in executed(executor, tasks)))
    report("a loop", tasks, lambda: sum(1 for number in range(tasks) if nothing(number) >= 0))


def executed(executor: ProcessPoolExecutor, tasks: int) -> Iterator[int]:
    pending, numbers = set(), iter(range(tasks))
    while True:
        while len(pending) < AHEAD and (number := next(numbers, None)) is not None:
            pending.add(executor.submit(nothing, number))
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def report(name: str, tasks: int, call: Callable[[], int]) -> None:
    start = time.perf_counter()
    assert call() == tasks
    took = time.perf_counter() - start
    print(f"{name:<20} {took:8.1f} s   {took / tasks * 1e6:8.1f} µs per task", flush=True)


if __name__ == "__main__":
    main()
