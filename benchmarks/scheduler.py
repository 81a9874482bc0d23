"""What handing a task to a worker process costs, where the task itself costs nothing.

    python benchmarks/scheduler.py [--tasks 100000] [--workers 8]

Beside the pool of `segment` (scheduler, TLS, retries, replaced processes) two that do less: a loop in this
process, and a ProcessPoolExecutor with as many tasks ahead. The seconds of CPU are those of this process
alone, in which the scheduler lives: they bound how many tasks a run can hand out, however many nodes it has.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import psutil

from hpc_isl.cluster.dask_pool.pool import pools
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site
from hpc_isl.tasks import MemoryRequirement, Task

TASKS_AHEAD = 4  # for each worker process, as the pool has them: two threads, twice as many tasks


def nothing(number: int) -> int:
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=8)
    given = parser.parse_args()
    tasks, workers = given.tasks, given.workers
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        attempt = Attempt(Run(Path(folder) / "segment" / "none"), cpus=workers)
        with pools(attempt, Site(workers=workers))(MemoryRequirement(0, 0)) as pool:
            while pool.workers < workers:
                time.sleep(0.1)
            print(f"{workers} worker processes are there after {time.perf_counter() - start:.1f} s")
            each = (Task(f"plate/{number}", number) for number in range(tasks))
            report("the pool", tasks, lambda: sum(1 for _ in pool.run(nothing, each)))
    memory = psutil.Process().memory_info().rss / 1e6
    print(f"this process has {memory:.0f} MB at the end")
    with ProcessPoolExecutor(workers) as executor:
        report(
            "ProcessPoolExecutor",
            tasks,
            lambda: sum(1 for _ in executed(executor, tasks, workers * TASKS_AHEAD)),
        )
    report("a loop", tasks, lambda: sum(1 for number in range(tasks) if nothing(number) >= 0))


def executed(executor: ProcessPoolExecutor, tasks: int, ahead: int) -> Iterator[int]:
    pending, numbers = set(), iter(range(tasks))
    while True:
        while len(pending) < ahead and (number := next(numbers, None)) is not None:
            pending.add(executor.submit(nothing, number))
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def report(name: str, tasks: int, call: Callable[[], int]) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    assert call() == tasks
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    each = 1e6 / tasks
    print(
        f"{name:<20} {took:8.1f} s   {took * each:8.1f} µs per task   {cpu * each:8.1f} µs of CPU", flush=True
    )


if __name__ == "__main__":
    main()
