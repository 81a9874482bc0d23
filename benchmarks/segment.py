"""Segmentation is bound by its parts: the stage against them, two workers against one, memory against size.

    python benchmarks/segment.py [--fields 24] [--edge 512] [--spacing 20] [--encoder tu-mobilenetv1_100]
                                 [--rounds 3]

One process held to one CPU (or with a GPU) at first: seconds a field of the whole stage, as the run folder
tells (the first fields apart, in which code is compiled), over the sum of what its parts take each alone on
the same fields, and over the bare network, which itself is held against a product of two matrices: the most
that one thread of this machine (or its GPU) computes. Then two workers on two CPUs against that one, beside
two bare networks against one. All of it in turns, medians of the rounds. Last the greatest memory of a worker
on plates of more and more fields.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.cluster.dask_pool.resources import LARGE_PAGES
from hpc_isl.learning.data.rescale import to_full
from hpc_isl.learning.network.unet import construct
from hpc_isl.plates.plate import Field
from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.field import _facts, _keep, measured
from hpc_isl.stages.segment.inputs import segment_inputs
from hpc_isl.stages.segment.segmenter import FieldPrediction, Segmenter, load_segmenter
from hpc_isl.stages.segment.stage import _write_schema, plan
from hpc_isl.stages.shared.decoding import decode
from hpc_isl.stages.shared.field_records import read_records

PARTS = (
    "reading",
    "network",
    "to full resolution",
    "watershed",
    "features",
    "focus",
    "writing",
    "hash and record",
)
STAGES = ("stage", "two workers", "one network", "two networks")
WARM = 4  # fields that are left out at the beginning
Timed = Callable[[str, Callable[[], Any]], Any]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--fields", type=int, default=24)
    words.add_argument("--edge", type=int, default=512)
    words.add_argument("--encoder", default="tu-mobilenetv1_100")
    words.add_argument("--spacing", type=int, default=20, help="pixels from one nucleus to the next")
    words.add_argument("--rounds", type=int, default=3)
    given = words.parse_args()
    os.environ |= LARGE_PAGES  # the bare network has them too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = NetRecipe(encoder=given.encoder, weights=None, decoder=[64, 48, 32, 16])
        save_model(folder / "runs" / "finetune" / "cells", net=net)
        plate = _plate(folder, "P", given.fields, given)
        print(f"{given.fields} fields of {given.edge} × {given.edge}, {given.encoder}, one CPU")
        rounds = [_round(folder, plate, number) for number in range(given.rounds)]
        found = {what: median(each[what] for each in rounds) for what in rounds[0]}
        for what in PARTS + STAGES:
            print(f"  {what:<22}{1000 * found[what]:8.1f} ms a field")
        _ratio(rounds, "whole stage / sum of its parts", lambda r: r["stage"] / sum(r[p] for p in PARTS))
        _ratio(rounds, "whole stage / bare network", lambda r: r["stage"] / r["network"])
        _ratio(rounds, "two workers are as fast as one, times", lambda r: r["stage"] / r["two workers"])
        _ratio(rounds, "two bare networks, times", lambda r: r["one network"] / r["two networks"])
        _ratio(
            rounds, "share of what two bare networks reach",
            lambda r: r["stage"] / r["two workers"] / (r["one network"] / r["two networks"]),
        )  # fmt: skip
        reached = flops(net) * given.edge**2 / 1e6 / found["network"]
        print(f"bare network: {reached / 1e9:.0f} GFLOP/s, {reached / _limit():.0%} of a product of matrices")
        _memory(folder, given)


def _round(folder: Path, plate: Path, number: int) -> dict[str, float]:
    """Seconds a field of everything that is compared."""
    stage, _ = _stage(folder, plate, f"one {number}", 1)
    parts = _parts(folder, plate, f"parts {number}")
    two, _ = _stage(folder, plate, f"two {number}", 2)
    run = folder / "runs" / "segment" / f"parts {number}"
    alone, beside = (_bare(run, plate, processes) for processes in (1, 2))
    return {**parts, "stage": stage, "two workers": two, "one network": alone, "two networks": beside}


def _ratio(rounds: list[dict[str, float]], what: str, of: Callable[[dict[str, float]], float]) -> None:
    values = sorted(of(each) for each in rounds)
    print(f"{what}: {median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})")


def _plate(folder: Path, name: str, fields: int, given: argparse.Namespace) -> Path:
    wells = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)][: -(-fields // 4)]
    path = folder / f"{name}.zarr"
    write_screen(path, wells, min(4, fields), (given.edge, given.edge), spacing=given.spacing)
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
    with held_to(workers), subprocess.Popen(command, stdout=subprocess.DEVNULL) as submitted:
        most = _greatest(submitted)
    assert submitted.returncode == 0
    records = read_records(folder / "runs" / "segment" / name, open_plate(plate).plate.name).values()
    ends = sorted(datetime.fromisoformat(record["ended"]).timestamp() for record in records)
    warm = WARM * workers
    return (ends[-1] - ends[warm - 1]) / (len(ends) - warm), most


@contextmanager
def held_to(cpus: int) -> Iterator[None]:
    """This process, and what it starts, has so many CPUs."""
    all_cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cpus)[:cpus])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cpus)


def _greatest(submitted: subprocess.Popen[Any]) -> int:
    """The resident memory of the process that has most of it, of those that the command started."""
    most, me = 0, psutil.Process(submitted.pid)
    while submitted.poll() is None:
        for process in me.children(recursive=True):
            try:
                if "spawn_main" in " ".join(process.cmdline()):
                    most = max(most, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(1)
    return most


# ---------------------------------------------------------------- its parts


def _parts(folder: Path, plate: Path, name: str) -> dict[str, float]:
    """Median seconds a field of each part alone."""
    torch.set_num_threads(1)
    keys = [f"model={folder}/runs/finetune/cells", f"plates=[{plate}]", f"labels={name}"]
    run = Run(folder / "runs" / "segment" / name)
    recipe = plan(load("segment", None, keys)).recipe
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(recipe))
    _write_schema(segment_inputs(recipe), run.folder)
    bench, index = load_segmenter(run.folder), open_plate(plate)
    times: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        times.setdefault(what, []).append(time.perf_counter() - start)
        return result

    with held_to(1):
        for field in index.plate.fields:
            _take_apart(bench, run, plate, field, timed)
    return {what: median(values[WARM:]) for what, values in times.items()}


def _take_apart(bench: Segmenter, run: Run, plate: Path, field: Field, timed: Timed) -> None:
    """Computes one field as the stage does, a part at a time."""
    key, shape = field.key, (field.shape[-2], field.shape[-1])
    work = files.FieldTask(run.folder, plate, "P", "P", key, "0", "0")
    reader = bench.reader(plate, key)
    sources = timed("reading", lambda: reader.sources(0))
    said = timed("network", lambda: bench.predictor(sources))
    full = timed("to full resolution", lambda: to_full(said, reader.scale, shape))
    labels = timed("watershed", lambda: decode(full, bench.rule)[0])
    seen = [FieldPrediction(said, None, labels)]
    table = timed("features", lambda: measured(bench, reader, work, seen))
    timed("focus", lambda: reader.focus(0))
    timed("writing", lambda: _keep(bench, reader, work, seen, table))
    timed(
        "hash and record",
        lambda: files.write_record(work, _facts(bench, reader, work, seen, table)),
    )


# ---------------------------------------------------------------- operations


def flops(net: NetRecipe, sources: int = 2, outputs: int = 2, edge: int = 1024) -> float:
    """Operations of a forward pass per million pixels; a multiplication and an addition are two."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        construct(net, sources, outputs).eval()(torch.empty(1, sources, edge, edge))
    return counter.get_total_flops() / edge**2 * 1e6


def _limit(edge: int = 2048, trials: int = 5) -> float:
    """Operations a second of a product of two matrices in the precision of the network, at best."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.rand(edge, edge, device=device)
    best = float("inf")
    for _ in range(trials):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * edge**3 / best


# ---------------------------------------------------------------- workers and memory


def _bare(run: Path, plate: Path, processes: int) -> float:
    """Seconds a field of bare networks, one to a process, over the same pixels."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes), context.Queue()
    crew = [context.Process(target=_forward, args=(run, plate, ready, results)) for _ in range(processes)]
    with held_to(processes):
        for process in crew:
            process.start()
        seconds = [results.get() for _ in crew]
        for process in crew:
            process.join()
    return median(seconds) / processes


def _forward(run: Path, plate: Path, ready: Any, results: Any) -> None:
    torch.set_num_threads(1)
    bench, index = load_segmenter(run), open_plate(plate)
    keys = [field.key for field in index.plate.fields]
    sources = [bench.reader(plate, key).sources(0) for key in keys]
    bench.predictor(sources[0])
    ready.wait()
    start = time.perf_counter()
    for each in sources:
        bench.predictor(each)
    results.put((time.perf_counter() - start) / len(sources))


def _memory(folder: Path, given: argparse.Namespace) -> None:
    for count in (given.fields // 3, given.fields, given.fields * 3):
        plate = _plate(folder, f"M{count}", count, given)
        _, most = _stage(folder, plate, f"memory {count}", 1)
        print(f"greatest memory of the worker, plate of {count:>4} fields: {most / 2**20:6.0f} MiB")


if __name__ == "__main__":
    main()
