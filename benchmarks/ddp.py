"""What distributing costs: 2 processes against 1, and the training loop against the bare network.

    python benchmarks/ddp.py                                          # on CPUs, gloo; a minute a round
    python benchmarks/ddp.py --encoder resnet18 --steps 6 --rounds 3  # two and a half minutes
    python benchmarks/ddp.py --processes 4 --batch 64 --micro 16 --crop 512     # on 4 GPUs, nccl
    python benchmarks/ddp.py --processes 1 --batch 64 --micro 16 --crop 512 --precision fp32

Batches lie in memory: nothing is read. Every kind of step is timed by its median; the loop and bare networks
run step by step in turns in the same processes, so that their ratio holds on a busy machine. On CPUs each
process is held to CPUs of its own.

A bare network computes what its process computes in the loop: forward and backward passes of the same
micro-batches, clipping, the optimiser. With several processes each has one, which begin a step together and
then neither wait for each other nor communicate: what they gain over one is all that the machine gives.
"Share" is what the loop gains by several processes over what bare networks gain. A step of the loop ends when
its slowest process has ended, which on a busy machine is late: "the slowest of the bare networks" shows what
that alone costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hpc_isl.learning.network.losses import loss_of
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batches import MicroBatch
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.loop import Hooks, train
from hpc_isl.learning.training.optim import optimizer_of
from hpc_isl.learning.training.precision import autocast, resolve
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.recipes.training import NetRecipe, OptimRecipe, TrainRecipe
from hpc_isl.run import Attempt, Run

WARM_UP = 2
KINDS = {"bare": "bare network", "loop": "training loop", "slowest": "the slowest of the bare networks"}


def main() -> None:
    given = arguments()
    if given.rank is not None:
        as_rank(given)
        return
    kind = (
        f"{torch.cuda.get_device_name()}"
        if torch.cuda.is_available()
        else f"CPU, {given.threads} thread(s) each"
    )
    print(
        f"{given.encoder} U-Net, {given.batch} crops of {given.crop}² in micro-batches of {given.micro}, "
        f"{given.precision}, {kind}"
    )
    many = given.processes
    rounds = [
        {processes: measured(given, processes) for processes in dict.fromkeys((1, many))}
        for _ in range(given.rounds)
    ]
    base = median(of[1]["bare"] for of in rounds)
    for processes in rounds[0]:
        for name, text in KINDS.items():
            seconds = median(of[processes][name] for of in rounds)
            show(f"{text}, {processes} process(es)", seconds, given.batch, base)
    ratio(rounds, "loop ÷ bare network", lambda of: of[1]["loop"] / of[1]["bare"])
    if many == 1:
        return

    def gain(of: Any, name: str) -> float:
        return float(of[1][name] / of[many][name])

    ratio(rounds, f"{many} processes are as fast as one, times", lambda of: gain(of, "loop"))
    ratio(rounds, f"{many} bare networks, times", lambda of: gain(of, "bare"))
    ratio(rounds, "the slowest of them, times", lambda of: gain(of, "slowest"))
    ratio(rounds, "share of it that the loop gains", lambda of: gain(of, "loop") / gain(of, "bare"))
    ratio(rounds, "share of the slowest", lambda of: gain(of, "loop") / gain(of, "slowest"))
    ratio(rounds, "CPU seconds of a crop, training loop, times", lambda of: many / gain(of, "loop CPU"))
    ratio(rounds, "CPU seconds of a crop, bare network, times", lambda of: many / gain(of, "bare CPU"))


def ratio(rounds: list[Any], what: str, of: Callable[[Any], float]) -> None:
    values = sorted(of(each) for each in rounds)
    print(f"{what}: {median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})")


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--encoder", default="densenet121")
    options.add_argument("--crop", type=int, default=128)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--micro", type=int, default=4)
    options.add_argument("--steps", type=int, default=20, help="timed steps of each kind")
    options.add_argument("--rounds", type=int, default=1, help="in which processes are started afresh")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--threads", type=int, default=1, help="of each process, on a CPU")
    options.add_argument("--precision", default="auto")
    options.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return options.parse_args()


def show(name: str, seconds: float, batch: int, bare: float) -> None:
    print(f"{name:<50}{seconds * 1e3:9.1f} ms a step{batch / seconds:10.1f} crops/s{bare / seconds:8.2f} ×")


def measured(given: argparse.Namespace, processes: int) -> dict[str, float]:
    """Median seconds of a step in that many processes, each started afresh."""
    with tempfile.TemporaryDirectory() as folder:
        of = vars(given) | {"processes": processes, "folder": folder}
        words = [f"--{name}={value}" for name, value in of.items() if name != "rank"]
        ranks = [
            subprocess.Popen([sys.executable, __file__, *words, f"--rank={r}"]) for r in range(processes)
        ]
        codes = [process.wait() for process in ranks]
        if any(codes):
            sys.exit(f"the processes ended with {codes}")
        return dict(json.loads(Path(folder, "result.json").read_text()))


def as_rank(given: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        cpus = sorted(os.sched_getaffinity(0))
        own = cpus[given.rank * given.threads : (given.rank + 1) * given.threads]
        os.sched_setaffinity(0, own or cpus)  # more processes than CPUs share them
    size = given.processes
    attempt = Attempt(Run(given.folder), 0, given.rank, size, given.rank, size, cpus=given.threads)
    with open_world(attempt) as world:
        times = in_turns(given, world)
        ranks = world.gather(times)
        if world.rank == 0:
            result = {kind: sum(median(rank[kind][WARM_UP:]) for rank in ranks) / size for kind in times}
            together = zip(*(rank["bare"][WARM_UP:] for rank in ranks), strict=True)
            result["slowest"] = median(max(steps) for steps in together)
            (given.folder / "result.json").write_text(json.dumps(result))


def pair(given: argparse.Namespace, micro: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(micro)
    shape = (given.micro, 3, given.crop, given.crop)
    sources = torch.randn(shape, generator=generator)
    targets = sources[:, :1].abs()
    on_gpu = torch.cuda.is_available()
    return (sources.pin_memory(), targets.pin_memory()) if on_gpu else (sources, targets)


def network(given: argparse.Namespace, world: World) -> nn.Module:
    fresh = build(NetRecipe(encoder=given.encoder, weights=None), 3, 1)
    return fresh.to(world.device).to(memory_format=torch.channels_last)


def in_turns(given: argparse.Namespace, world: World) -> dict[str, list[float]]:
    """Seconds, and CPU seconds, of each step of the product's loop and of the bare networks in between."""
    times: dict[str, list[float]] = {name: [] for name in ("loop", "loop CPU", "bare", "bare CPU")}
    steps = WARM_UP + given.steps
    recipe = TrainRecipe(
        steps=steps, batch=given.batch, micro_batch=given.micro, crop=given.crop,
        precision=given.precision, checkpoint_every=10**6,
    )  # fmt: skip
    own = range(world.rank, given.batch // given.micro, world.size)
    cached = {micro: pair(given, micro) for micro in own}
    bare_step = bare(given, world, own)
    cpu = 0.0

    def batches(first: int) -> Iterator[MicroBatch]:
        return ((step, j, *cached[j]) for step in range(first, steps) for j in own)

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal cpu
        times["loop CPU"].append(time.process_time() - cpu)
        times["loop"].append(values["step_s"])
        world.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        bare_step()
        times["bare"].append(time.perf_counter() - start)
        times["bare CPU"].append(time.process_time() - cpu)
        world.barrier()
        cpu = time.process_time()

    hooks = Hooks(batches, report=report)
    checkpoints = Checkpoints(given.folder / "checkpoints", "benchmark", log=lambda text: None)
    train(network(given, world), loss_of("l1"), hooks, recipe, OptimRecipe(), steps, world, checkpoints)
    return times


def bare(given: argparse.Namespace, world: World, micros: range) -> Callable[[], None]:
    """A step of the least that trains: forward, backward, clipping, optimiser; batches on the device."""
    of, dtype = network(given, world), resolve(given.precision, world.device)
    of.train()
    optimizer = optimizer_of(of.parameters(), OptimRecipe())
    cached = [
        [t.to(world.device, memory_format=torch.channels_last) for t in pair(given, micro)]
        for micro in micros
    ]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for sources, targets in cached:
            with autocast(world.device, dtype):
                prediction: Any = of(sources)
            (nn.functional.l1_loss(prediction.float(), targets) / len(micros)).backward()
        nn.utils.clip_grad_norm_(of.parameters(), 1.0)
        optimizer.step()
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
