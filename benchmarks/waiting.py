"""What keeps a card waiting: the ways to hand it work, with a stand-in that sleeps while it holds the card.

    python benchmarks/waiting.py [--fields 24] [--passes 0.3 0.6] [--cpus 2] [--rounds 3]

Fields of 2160² with 700 round cells are read, segmented, measured and written as by `segment`; in the place
of the network stands a forward pass that returns the maps of a perfect one. It holds a lock of the whole
machine, as a card computes one pass at a time: first it keeps Python busy for a while (layers that are
started), then it sleeps. Three ways, in turns:

- threads: one process with a thread for each CPU and one more, as `segment` does beside a card
- processes: a process for each CPU, each with two threads, as `site.workers=CPUS` does
- shared memory: a process for each CPU, each with two threads; another one computes passes for all of them,
  and pixels and maps lie in memory that both see

Prints seconds a field over the greater of a bare pass and the CPU time of a field on so many CPUs: at 1
nothing waits. That CPU time is measured beforehand, by one process with one thread.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scale import EDGE, _bench, cells
from segment import held_to

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.cluster.dask_pool.processes import SWITCH_S
from hpc_isl.stages.segment import field, files
from hpc_isl.stages.segment.segmenter import load_segmenter

Maps = NDArray[np.float32]
Forward = Callable[[Maps], Maps]
SPAWN = multiprocessing.get_context("spawn")
WAYS = ("threads", "processes", "shared memory")
LAUNCH_S = 0.02  # of a pass, in which Python is busy: 400 layers at 50 µs


@dataclass(frozen=True)
class Card:
    """A forward pass that takes `seconds`; `maps`: file of what it returns; `lock`: who has it computes."""

    seconds: float
    maps: Path
    lock: Path

    def __call__(self, sources: Maps) -> Maps:
        maps: Maps = np.load(self.maps)
        with open(self.lock) as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            busy_until = time.perf_counter() + min(LAUNCH_S, self.seconds)
            while time.perf_counter() < busy_until:
                pass
            time.sleep(max(0.0, self.seconds - LAUNCH_S))
        return maps


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--fields", type=int, default=24)
    words.add_argument("--passes", type=float, nargs="+", default=[0.3, 0.6], help="seconds")
    words.add_argument("--cpus", type=int, default=2)
    words.add_argument("--rounds", type=int, default=3)
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = _tasks(folder, given.fields)
        np.save(folder / "maps.npy", cells(700))
        (folder / "lock").touch()
        card = Card(0.0, folder / "maps.npy", folder / "lock")
        with held_to(1):
            alone = _once("threads", tasks[:8], card, 0)[1]
        print(f"{given.fields} fields of {EDGE}², {1000 * alone:.0f} ms of CPU each beside the network")
        for seconds in given.passes:
            least = max(seconds, alone / given.cpus)
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(given.rounds):
                for way in WAYS:
                    with held_to(given.cpus):
                        found[way].append(_once(way, tasks, replace(card, seconds=seconds), given.cpus))
            print(
                f"a pass of {seconds:g} s, {given.cpus} CPUs; nothing waits at {1000 * least:.0f} ms a field:"
            )
            for way, times in found.items():
                walls = sorted(wall / least for wall, _ in times)
                cpu = median(cpu for _, cpu in times)
                print(
                    f"  {way:<14}{median(walls):5.2f} of that ({walls[0]:.2f} to {walls[-1]:.2f}), "
                    f"{1000 * cpu:4.0f} ms of CPU a field"
                )


def _tasks(folder: Path, fields: int) -> list[files.FieldTask]:
    """Returns the fields of a plate, and of a run that is prepared as `segment` prepares it."""
    save_model(folder / "runs" / "finetune" / "cells")
    wells = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
    write_screen(folder / "P.zarr", wells[: -(-fields // 4)], 4, (EDGE, EDGE), spacing=96)
    _, index, task = _bench(folder)
    return [replace(task, key=own.key) for own in index.plate.fields[:fields]]


def _once(way: str, tasks: Sequence[files.FieldTask], card: Card, cpus: int) -> tuple[float, float]:
    """Returns seconds a field, and seconds of CPU a field in all processes, once code is compiled."""
    processes = {"threads": 1, "processes": cpus, "shared memory": cpus + 1}[way]
    ready, results = SPAWN.Barrier(processes + 1), SPAWN.SimpleQueue()
    with _crew(way, tasks, card, cpus, ready, results) as crew:
        ready.wait()
        start = time.perf_counter()
        cpu = sum(results.get() for _ in crew)
        wall = time.perf_counter() - start
    return wall / len(tasks), cpu / len(tasks)


@contextmanager
def _crew(
    way: str, tasks: Sequence[files.FieldTask], card: Card, cpus: int, ready: Any, results: Any
) -> Iterator[list[Any]]:
    """Starts the processes of a way; the last of shared memory is the one with the card."""
    if way == "threads":
        crew = [SPAWN.Process(target=in_threads, args=(tasks, card, 1 + cpus, ready, results))]
    elif way == "processes":
        parts = [tasks[first::cpus] for first in range(cpus)]
        crew = [SPAWN.Process(target=in_threads, args=(part, card, 2, ready, results)) for part in parts]
    else:
        shape = np.load(card.maps, mmap_mode="r").shape
        pipes = [[SPAWN.Pipe() for _ in range(2)] for _ in range(cpus)]  # one for each thread
        shared = [[SPAWN.RawArray("f", int(np.prod(shape))) for _ in own] for own in pipes]
        crew = [
            SPAWN.Process(
                target=in_shared_memory,
                args=(tasks[part::cpus], [far for _, far in own], arrays, shape, ready, results),
            )
            for part, (own, arrays) in enumerate(zip(pipes, shared, strict=True))
        ]
        near = [end for own in pipes for end, _ in own]
        flat = [array for arrays in shared for array in arrays]
        crew.append(SPAWN.Process(target=_serve, args=(card, near, flat, shape, ready, results)))
    for process in crew:
        process.start()
    if way == "shared memory":  # or the other ends would never be seen to close
        for end in [*near, *(far for own in pipes for _, far in own)]:
            end.close()
    yield crew
    for process in crew:
        process.join()


# ---------------------------------------------------------------- in the processes


def in_threads(tasks: Sequence[files.FieldTask], card: Card, threads: int, ready: Any, results: Any) -> None:
    """Computes fields in threads that share the card."""
    _compute(tasks, [card] * threads, ready, results)


def in_shared_memory(
    tasks: Sequence[files.FieldTask], ends: list[Connection], arrays: list[Any], shape: tuple[int, ...],
    ready: Any, results: Any,
) -> None:  # fmt: skip
    """Computes fields in threads whose passes another process computes."""
    forwards = [partial(_ask, end, _view(array, shape)) for end, array in zip(ends, arrays, strict=True)]
    _compute(tasks, forwards, ready, results)
    for end in ends:
        end.close()


def _ask(end: Connection, shared: Maps, sources: Maps) -> Maps:
    shared[: len(sources)] = sources
    end.send(len(sources))
    end.recv()
    return shared.copy()  # its next field may be read before this one is written


def _serve(
    card: Card, ends: list[Connection], arrays: list[Any], shape: tuple[int, ...], ready: Any, results: Any
) -> None:
    """Computes passes for other processes, and copies maps into the memory that they share."""
    sys.setswitchinterval(SWITCH_S)

    def serve(end: Connection, shared: Maps) -> None:
        while True:
            try:
                count = end.recv()
            except EOFError:
                return
            shared[:] = card(shared[:count])
            end.send(None)

    ready.wait()
    start = time.process_time()
    threads = [
        Thread(target=serve, args=(end, _view(own, shape))) for end, own in zip(ends, arrays, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(time.process_time() - start)


def _view(array: Any, shape: tuple[int, ...]) -> Maps:
    return np.frombuffer(array, np.float32).reshape(shape)


def _compute(tasks: Sequence[files.FieldTask], forwards: Sequence[Forward], ready: Any, results: Any) -> None:
    """Computes the first field to compile code, and all of them once every process is ready."""
    os.environ["HPC_ISL_IO_THREADS"] = "1"
    sys.setswitchinterval(SWITCH_S)
    torch.set_num_threads(1)
    free: SimpleQueue[Forward] = SimpleQueue()
    for forward in forwards:
        free.put(forward)

    def predictor(sources: Maps) -> Maps:
        forward = free.get()
        try:
            return forward(sources)
        finally:
            free.put(forward)

    predictor.tiling_warning = lambda shape: ""  # type: ignore[attr-defined]
    segmenter = load_segmenter(tasks[0].run)
    object.__setattr__(segmenter, "predictor", lambda sources: np.load(tasks[0].run.parents[2] / "maps.npy"))
    segmenter.predictor.tiling_warning = predictor.tiling_warning  # type: ignore[union-attr, method-assign]
    overwrite = segmenter.recipe.model_copy(update={"overwrite": True})
    object.__setattr__(segmenter, "recipe", overwrite)
    field.segment_field(tasks[0])
    object.__setattr__(segmenter, "predictor", predictor)
    ready.wait()
    start = time.process_time()
    with ThreadPoolExecutor(len(forwards)) as pool:
        for _ in pool.map(field.segment_field, tasks):
            pass
    results.put(time.process_time() - start)


if __name__ == "__main__":
    main()
