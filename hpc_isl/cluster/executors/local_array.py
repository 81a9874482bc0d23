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
from hpc_isl.cluster.executors.local import StopRequests
from hpc_isl.cluster.monitor.status_table import duration, progress_text
from hpc_isl.cluster.run_folder.job import STOPPED, Ending, Job
from hpc_isl.cluster.run_folder.status import first_line, ranks
from hpc_isl.files import read_json
from hpc_isl.site import Site, gpus_here

LOOK_S = 0.2
LINE_S = 60.0  # between lines about elements that have not ended


def compute_all(
    jobs: Sequence[Job], site: Site, log: Callable[[str], None], final: Job | None = None
) -> bool:
    """Computes all elements; one that fails leaves the others alone. A stop is asked of all.

    `final` starts when all others have ended.

    Returns:
        Whether Ctrl-C asked for the stop.
    """
    slots, gpu_ids = local.slots(site), gpus_here()
    # Each slot has GPUs of its own, where the site says how many a run needs.
    free_gpus: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()
    for slot in range(slots):
        free_gpus.put(None if site.gpus is None else gpu_ids[slot * site.gpus : (slot + 1) * site.gpus])

    def compute(job: Job) -> Ending | None:
        if requests.times:
            return None
        gpus = free_gpus.get()
        try:
            return local.compute(job, site, requests, lambda text: None, lambda: None, gpus)
        finally:
            free_gpus.put(gpus)

    if jobs:
        pace = f"{slots} at once" if slots > 1 else "one after another"
        log(f"{len(jobs)} elements, {pace}" + (f"; then {final.run.name!r}" if final else ""))
    with StopRequests().listening() as requests, ThreadPoolExecutor(slots) as pool:
        for group in (jobs, [final] if final else []):
            _watch({pool.submit(compute, job): job for job in group}, log)
    return requests.interrupted


def _watch(futures: dict[Future[Ending | None], Job], log: Callable[[str], None]) -> None:
    """Logs one line for each element that has ended, and one each minute, above a bar of them all."""
    unfinished = dict(futures)
    shares: dict[Job, float] = {}
    start_time = logged_time = time.monotonic()
    with tqdm(total=len(unfinished), unit=" elements", leave=False, disable=not sys.stderr.isatty()) as bar:
        while unfinished:
            time.sleep(LOOK_S)
            if time.monotonic() - logged_time > LINE_S:
                logged_time = time.monotonic()
                log(_progress_line(unfinished.values(), len(futures), logged_time - start_time, shares))
            for future in [future for future in unfinished if future.done()]:
                job = unfinished.pop(future)
                try:
                    if (ending := future.result()) is not None:
                        log(f"{job.run.label}: {_outcome(job, ending)}")
                except OSError as error:  # such as no memory for one more process: the others continue
                    log(f"{job.run.label}: not started: {error}")
                bar.update()
            if not bar.disable:
                bar.set_postfix_str("; ".join(_progress_by_element(unfinished.values()))[:60])


def _progress_line(unfinished: Collection[Job], total: int, seconds: float, shares: dict[Job, float]) -> str:
    """Returns `2 of 6 elements ended; seed=3: 120/300 steps  loss 0.12; about 8 min 20 s left`.

    `shares`: how far each was at most, because after its steps an element counts its test fields from 0.
    """
    for job in unfinished:
        if (progress := _progress(job)) and progress["total"]:
            shares[job] = max(shares.get(job, 0.0), progress["done"] / progress["total"])
    ended_count = total - len(unfinished)
    share = (ended_count + sum(shares.get(job, 0.0) for job in unfinished)) / total
    remaining_time = [f"about {duration(seconds * (1 - share) / share)} left"] if share > 0 else []
    return "; ".join(
        [f"{ended_count} of {total} elements ended", *_progress_by_element(unfinished), *remaining_time]
    )


def _progress_by_element(jobs: Collection[Job]) -> list[str]:
    """Returns how far the elements are that compute just now."""
    progress = {job.run.name: _progress(job) for job in jobs}
    return [f"{name}: {progress_text(state)}" for name, state in progress.items() if state]


def _progress(job: Job) -> dict[str, Any] | None:
    return (read_json(job.attempt_folder / "rank-0.json") or {}).get("progress")


def _outcome(job: Job, ending: Ending) -> str:
    if job.run.summary() is not None:
        return "done"
    if ending.crashed is None or ending.codes[ending.crashed] == STOPPED:
        return "stopped"
    messages = {record["rank"]: record.get("message") for record in ranks(job.run)}
    reason = messages.get(ending.crashed) or f"code {ending.codes[ending.crashed]}"
    return f"failed in rank {ending.crashed}: {first_line(str(reason))}"
