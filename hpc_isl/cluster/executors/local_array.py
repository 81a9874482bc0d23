"""The elements of an array on this machine: as many at once as fit on its CPUs and GPUs."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from hpc_isl.cluster.executors import local
from hpc_isl.cluster.executors.supervise import Requests
from hpc_isl.cluster.monitor.progress_view import progress_text
from hpc_isl.cluster.monitor.status_table import duration
from hpc_isl.cluster.run_folder.job import STOPPED, Ending, Job
from hpc_isl.cluster.run_folder.status import first_line, ranks
from hpc_isl.files import read_json
from hpc_isl.site import Site, gpus_here

LOOK_S = 0.2
LINE_S = 60.0  # between lines about elements that have not ended


def compute_all(jobs: Sequence[Job], site: Site, log: Callable[[str], None], last: Job | None = None) -> bool:
    """All elements to their end; one that fails leaves the others alone. A stop is asked of all.

    `last` starts when all others have ended.

    Returns:
        Whether Ctrl-C asked for the stop.
    """
    fits = local.slots(site)
    free = _gpu_sets(site, fits)
    how = f"{fits} at once" if fits > 1 else "one after another"
    if jobs:
        log(f"{len(jobs)} elements, {how}" + (f"; then {last.run.name!r}" if last else ""))
    with Requests().listening() as requests, ThreadPoolExecutor(fits) as pool:
        for turn in (jobs, [last] if last else []):
            _watch({pool.submit(_one, job, site, requests, free): job for job in turn}, log)
    return requests.interrupted


def _gpu_sets(site: Site, fits: int) -> queue.SimpleQueue[Sequence[str] | None]:
    """Which GPUs each of the runs at once sees: its own ones, where the site says how many it needs."""
    free: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()
    here, needs = gpus_here(), site.gpus
    for slot in range(fits):
        free.put(here[slot * needs : (slot + 1) * needs] if needs is not None else None)
    return free


def _one(
    job: Job, site: Site, requests: Requests, free: queue.SimpleQueue[Sequence[str] | None]
) -> Ending | None:
    if requests.times:
        return None
    gpus = free.get()
    try:
        return local.compute(job, site, requests, lambda text: None, lambda: None, gpus)
    finally:
        free.put(gpus)


def _watch(futures: dict[Future[Ending | None], Job], log: Callable[[str], None]) -> None:
    """One line for each element that has ended, and one each minute, above a bar of them all."""
    left = dict(futures)
    shares: dict[Job, float] = {}
    begun = told = time.monotonic()
    with tqdm(total=len(left), unit=" elements", leave=False, disable=not sys.stderr.isatty()) as bar:
        while left:
            time.sleep(LOOK_S)
            if time.monotonic() - told > LINE_S:
                told = time.monotonic()
                log(_so_far(left.values(), len(futures), told - begun, shares))
            for future in [future for future in left if future.done()]:
                job = left.pop(future)
                ending = future.result()
                if ending is not None:
                    log(f"{job.run.label}: {_how(job, ending)}")
                bar.update()
            if not bar.disable:
                bar.set_postfix_str("; ".join(_going(left.values()))[:60])


def _so_far(left: Collection[Job], total: int, seconds: float, shares: dict[Job, float]) -> str:
    """`2 of 6 elements ended; seed=3: 120/300 steps  loss 0.12; about 8 min 20 s left`.

    `shares`: how far each was at most, for after its steps an element counts its test fields from 0.
    """
    for job in left:
        if (now := _progress(job)) and now["total"]:
            shares[job] = max(shares.get(job, 0.0), now["done"] / now["total"])
    ended = total - len(left)
    share = (ended + sum(shares.get(job, 0.0) for job in left)) / total
    rest = [f"about {duration(seconds * (1 - share) / share)} left"] if share > 0 else []
    return "; ".join([f"{ended} of {total} elements ended", *_going(left), *rest])


def _going(left: Collection[Job]) -> list[str]:
    """How far those are that compute just now."""
    progress = {job.run.name: _progress(job) for job in left}
    return [f"{name}: {progress_text(each)}" for name, each in progress.items() if each]


def _progress(job: Job) -> dict[str, Any] | None:
    return (read_json(job.run.attempts / str(job.attempt) / "rank-0.json") or {}).get("progress")


def _how(job: Job, ending: Ending) -> str:
    if job.run.summary() is not None:
        return "done"
    if ending.crashed is None or ending.codes[ending.crashed] == STOPPED:
        return "stopped"
    records = {record["rank"]: record for record in ranks(job.run)}
    why = records.get(ending.crashed, {}).get("message") or f"code {ending.codes[ending.crashed]}"
    return f"failed in rank {ending.crashed}: {first_line(str(why))}"
