"""Segmentation is bound by its parts: the stage against them, two workers against one, memory against size.

    python benchmarks/segment.py [--fields 24] [--edge 512] [--encoder tu-mobilenetv1_100]

One process on one CPU (or GPU) at first: seconds a field of the whole stage, as the run folder tells
(the first fields apart, in which code is compiled), over the sum of what its parts take each alone on the
same fields, and over the bare network. Then two workers against one, beside two bare networks against one.
Then the greatest memory of a worker on plates of more and more fields.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.learning.foreign import read_sources, to_full
from hpc_isl.recipe import load
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Run
from hpc_isl.stages import segment_files as files
from hpc_isl.stages import segment_work
from hpc_isl.stages.objects_from import objects_in
from hpc_isl.stages.segment import plan
from hpc_isl.stages.segment_bench import Seen, bench_of, index_of
from hpc_isl.stages.segment_measured import measured
from hpc_isl.stages.segment_setting import scale_of
from hpc_isl.strict import to_yaml

WARM = 4  # fields that are left out at the beginning


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--fields", type=int, default=24)
    words.add_argument("--edge", type=int, default=512)
    words.add_argument("--encoder", default="tu-mobilenetv1_100")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = NetRecipe(encoder=given.encoder, weights=None, decoder=[64, 48, 32, 16])
        save_model(folder / "runs" / "finetune" / "cells", net=net)
        plate = _plate(folder, "P", given.fields, given.edge)
        one, _ = _stage(folder, plate, "one", 1)
        parts = _parts(folder, plate)
        print(f"{given.fields} fields of {given.edge} × {given.edge}, {given.encoder}, one process")
        for what, seconds in parts.items():
            print(f"  {what:<22}{1000 * seconds:8.1f} ms a field")
        print(f"  {'whole stage':<22}{1000 * one:8.1f} ms a field")
        print(f"whole stage / sum of its parts: {one / sum(parts.values()):.2f}")
        print(f"whole stage / bare network:     {one / parts['network']:.2f}")
        _workers(folder, plate, one)
        _memory(folder, given.fields, given.edge)


def _plate(folder: Path, name: str, fields: int, edge: int) -> Path:
    wells = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)][: -(-fields // 4)]
    path = folder / f"{name}.zarr"
    write_screen(path, wells, min(4, fields), (edge, edge))
    return path


# ---------------------------------------------------------------- the whole stage


def _stage(folder: Path, plate: Path, name: str, workers: int) -> tuple[float, int]:
    """Seconds a field once all is warm, and the greatest memory of a worker in bytes."""
    keys = [f"model={folder}/runs/finetune/cells", f"plates=[{plate}]", f"labels={name}"]
    site = [
        f"site.workers={workers}",
        f"site.cpus={workers}",
        f"site.runs={folder}/runs",
        "site.tracking=none",
    ]
    command = [sys.executable, "-m", "hpc_isl.submit", "segment", *keys, *site, "--name", name]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as door:
        most = _greatest(door)
    assert door.returncode == 0
    records = (folder / "runs" / "segment" / name / "fields").rglob("*.json")
    ends = sorted(path.stat().st_mtime_ns for path in records)
    warm = WARM * workers
    return (ends[-1] - ends[warm - 1]) / 1e9 / (len(ends) - warm), most


def _greatest(door: subprocess.Popen[Any]) -> int:
    """The resident memory of the process that has most of it, of those that the door started and theirs."""
    most, me = 0, psutil.Process(door.pid)
    while door.poll() is None:
        for process in me.children(recursive=True):
            try:
                if "spawn_main" in " ".join(process.cmdline()):
                    most = max(most, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    return most


# ---------------------------------------------------------------- its parts


def _parts(folder: Path, plate: Path) -> dict[str, float]:
    """Median seconds a field of each part alone."""
    torch.set_num_threads(1)
    keys = [f"model={folder}/runs/finetune/cells", f"plates=[{plate}]", "labels=parts"]
    run = Run(folder / "runs" / "segment" / "parts")
    recipe = plan(load("segment", None, keys)).recipe
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(recipe))
    bench, index = bench_of(run.folder), index_of(plate)
    times: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        times.setdefault(what, []).append(time.perf_counter() - start)
        return result

    for field in index.plate.fields:
        key, shape = field.key, (field.shape[-2], field.shape[-1])
        work = files.Work(run.folder, plate, "P", "P", key, "0")
        scale = scale_of(recipe, bench.view, index, key)
        sources = timed("reading", lambda: read_sources(bench.view, index, key, 0, scale))  # noqa: B023
        said = timed("network", lambda: bench.predictor(sources))  # noqa: B023
        full = to_full(said, scale, shape)
        labels = timed("flood", lambda: objects_in(full, bench.rule))  # noqa: B023
        seen = [Seen(said, None, labels)]
        table = timed("features", lambda: measured(bench, index, work, seen))  # noqa: B023
        timed("writing", lambda: segment_work._keep(bench, index, work, seen, table))  # noqa: B023
        facts = timed("hash and record", lambda: segment_work._facts(bench, index, work, seen, table))  # noqa: B023
        files.write_record(work, facts)
    return {what: median(values[WARM:]) for what, values in times.items()}


# ---------------------------------------------------------------- workers and memory


def _workers(folder: Path, plate: Path, one: float) -> None:
    two, _ = _stage(folder, plate, "two", 2)
    alone, beside = _bare(folder, plate, 1), _bare(folder, plate, 2)
    print(
        f"two workers are {one / two:.2f} times as fast as one; two bare networks {alone / beside:.2f} times"
    )
    print(f"share of what two bare networks reach: {(one / two) / (alone / beside):.2f}")


def _bare(folder: Path, plate: Path, processes: int) -> float:
    """Seconds a field of bare networks, one to a process, over the same pixels."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes), context.Queue()
    crew = [context.Process(target=_forward, args=(folder, plate, ready, results)) for _ in range(processes)]
    for process in crew:
        process.start()
    seconds = [results.get() for _ in crew]
    for process in crew:
        process.join()
    return median(seconds) / processes


def _forward(folder: Path, plate: Path, ready: Any, results: Any) -> None:
    torch.set_num_threads(1)
    bench, index = bench_of(folder / "runs" / "segment" / "parts"), index_of(plate)
    keys = [field.key for field in index.plate.fields]
    scale = scale_of(bench.recipe, bench.view, index, keys[0])
    sources = [read_sources(bench.view, index, key, 0, scale) for key in keys]
    bench.predictor(sources[0])
    ready.wait()
    start = time.perf_counter()
    for each in sources:
        bench.predictor(each)
    results.put((time.perf_counter() - start) / len(sources))


def _memory(folder: Path, fields: int, edge: int) -> None:
    for count in (fields // 3, fields, fields * 3):
        plate = _plate(folder, f"M{count}", count, edge)
        _, most = _stage(folder, plate, f"memory {count}", 1)
        print(f"greatest memory of the worker, plate of {count:>4} fields: {most / 2**20:6.0f} MiB")


if __name__ == "__main__":
    main()
