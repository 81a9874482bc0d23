"""What one GPU makes of pretraining and of segmenting, in at most nine minutes; each part has its own budget.

    python benchmarks/gpu.py                       # on a machine with a GPU; figures are printed as they come
    python benchmarks/gpu.py --parts step waiting  # some parts alone

step: a training step of the network alone and in the training loop, from memory, in bf16 and fp32.
waiting: the share of a pretraining's steps that waits for data, which it reads from a plate made here.
segment: the whole stage against the bare forward pass, in fields a minute.
sharing: two processes on one card against one, in the forward pass and in the whole stage.
The greatest memory of the card is printed with each forward pass and step. Without a GPU all of it runs on
the CPU, which is how it is tested: its figures then say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from threading import Thread

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.model import load
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.precision import autocast, resolve
from hpc_isl.recipes.training import NetRecipe

HERE = Path(__file__).parent
BUDGETS_S = {"step": 170, "waiting": 110, "segment": 120, "sharing": 120}  # 520 in all
WARM = 2  # fields and steps that are left out at the beginning


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    if given.inside:
        {"forward": forward, "memory": step_memory}[given.inside](given)
        return
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a test of the script"
    print(f"{card}; {given.encoder}, crops of {given.crop}², fields of {given.edge}²", flush=True)
    with tempfile.TemporaryDirectory() as name:
        given.folder = Path(name)
        prepare(given)
        parts: dict[str, Callable[[argparse.Namespace, Budget], None]] = {
            "step": step, "waiting": waiting, "segment": segment, "sharing": sharing,
        }  # fmt: skip
        for part in given.parts:
            start = time.perf_counter()
            budget = BUDGETS_S[part] * given.budget
            print(f"\n{part}, at most {budget:.0f} s", flush=True)
            parts[part](given, Budget(budget))
            print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--parts", nargs="+", choices=list(BUDGETS_S), default=list(BUDGETS_S))
    options.add_argument("--encoder", default="densenet121")
    options.add_argument("--crop", type=int, default=512)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--micro", type=int, default=16)
    options.add_argument("--steps", type=int, default=12, help="timed steps of each kind")
    options.add_argument("--edge", type=int, default=2160, help="of a field")
    options.add_argument("--fields", type=int, default=24)
    options.add_argument("--budget", type=float, default=1.0, help="of each part, times so much")
    options.add_argument("--inside", choices=("forward", "memory"), help=argparse.SUPPRESS)
    options.add_argument("--precision", default="bf16", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return options.parse_args(argv)


class Budget:
    """Runs programs until a time is used up; what is under way then is ended, and that is said."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def run(self, *command: str, show: bool = False) -> str | None:
        """Returns what a Python program printed, which `show` also prints as it comes; None: it was ended."""
        lines: list[str] = []
        with subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None

            def read(stream=process.stdout) -> None:
                for line in stream:
                    lines.append(line)
                    if show:
                        print(f"  {line}", end="", flush=True)

            reader = Thread(target=read)
            reader.start()
            try:
                code = process.wait(max(self.end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.terminate()  # submit tells its workers to save and stop
                print(f"  ended, for its time is used up: {' '.join(command[:4])}", flush=True)
                code = None
            if code is None:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            reader.join()
        if code:
            print("".join(lines[-15:]), flush=True)
            raise SystemExit(f"{' '.join(command)}: failed with code {code}")
        return None if code is None else "".join(lines)

    def inside(self, what: str, given: argparse.Namespace, precision: str = "bf16") -> list[str]:
        """Returns the command that runs a part of this script in a process of its own."""
        sizes = ("encoder", "crop", "micro", "edge", "fields", "folder")
        words = [word for name in sizes for word in (f"--{name}", str(getattr(given, name)))]
        return [str(HERE / "gpu.py"), *words, "--inside", what, "--precision", precision]


def prepare(given: argparse.Namespace) -> None:
    """Writes a model, and a plate of as many fields as are asked for."""
    net = NetRecipe(encoder=given.encoder, weights=None)
    if set(given.parts) & {"segment", "sharing"}:
        save_model(given.folder / "runs" / "finetune" / "cells", net=net)
    if set(given.parts) - {"step"}:
        wells = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
        shape = (given.edge, given.edge)
        write_screen(
            given.folder / "P.zarr", wells[: given.fields], 1, shape, spacing=min(96, given.edge // 4)
        )


# ---------------------------------------------------------------- pretraining


def step(given: argparse.Namespace, budget: Budget) -> None:
    """Prints what `ddp.py` finds with one process, and the memory of a step, in both precisions."""
    sizes = ("encoder", "crop", "batch", "micro", "steps")
    words = [word for name in sizes for word in (f"--{name}", str(getattr(given, name)))]
    for precision in ("bf16", "fp32"):
        budget.run(
            str(HERE / "ddp.py"), "--processes", "1", *words, "--precision", precision, show=True
        )  # fmt: skip
        budget.run(*budget.inside("memory", given, precision), show=True)


def step_memory(given: argparse.Namespace) -> None:
    """Prints the greatest memory of one micro-batch's forward and backward pass."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(NetRecipe(encoder=given.encoder, weights=None), 1, 1, seed=0).to(device)
    network = network.to(memory_format=torch.channels_last)
    pixels = torch.randn(given.micro, 1, given.crop, given.crop, device=device)
    with autocast(device, resolve(given.precision, device)):
        loss = torch.nn.functional.l1_loss(network(pixels), pixels)
    loss.backward()
    print(f"{given.precision}, micro-batch of {given.micro}: {memory()}")


def waiting(given: argparse.Namespace, budget: Budget) -> None:
    """Prints the share of a pretraining's time in which the network waits for crops."""
    keys = {
        "plates": f"[{given.folder}/P.zarr]", "sources": "[{channel: Brightfield, plane: 0}]",
        "targets": "[{channel: Hoechst, plane: 0}]", "net.encoder": given.encoder, "net.weights": "null",
        "train.steps": given.steps + WARM, "train.batch": given.batch, "train.micro_batch": given.micro,
        "train.crop": given.crop,
    }  # fmt: skip
    if submitted(given, budget, "pretrain", "waiting", keys) is None:
        return
    lines = (given.folder / "runs/pretrain/waiting/metrics.jsonl").read_text().splitlines()
    values = [json.loads(line)["values"] for line in lines]
    steps = [(own["train/step_s"], own["train/wait_s"]) for own in values if "train/step_s" in own][WARM:]
    took, waited = (median(column) for column in zip(*steps, strict=True))
    print(f"  a step of {given.batch} crops {took * 1e3:.1f} ms, of which {waited / took:.1%} waits for data")


# ---------------------------------------------------------------- segmenting


def segment(given: argparse.Namespace, budget: Budget) -> None:
    """Prints fields a minute of the bare forward pass and of the whole stage with one worker."""
    bare = budget.run(*budget.inside("forward", given), show=True)
    whole = stage(given, budget, 1)
    if bare and whole:
        print(f"  whole stage / bare forward pass: {whole / seconds_in(bare):.2f}")


def sharing(given: argparse.Namespace, budget: Budget) -> None:
    """Prints the same with two processes on one card."""
    answers: list[str | None] = []
    pair = [
        Thread(target=lambda: answers.append(budget.run(*budget.inside("forward", given), show=True)))
        for _ in range(2)
    ]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    if times := [seconds_in(text) for text in answers if text]:
        print(
            f"  two bare forward passes at once: {60 * sum(1 / took for took in times):.1f} fields a minute"
        )
    stage(given, budget, 2)


def stage(given: argparse.Namespace, budget: Budget, workers: int) -> float | None:
    """Prints and returns the seconds a field of the whole stage, once it is warm; None: it was ended."""
    name = f"workers{workers}"
    keys = {
        "model": f"{given.folder}/runs/finetune/cells", "plates": f"[{given.folder}/P.zarr]", "labels": name,
        "precision": "bf16", "site.workers": workers,
    }  # fmt: skip
    submitted(given, budget, "segment", name, keys)
    records = (given.folder / "runs/segment" / name / "fields").rglob("*.json")
    ends = sorted(path.stat().st_mtime_ns for path in records)
    warm = WARM * workers
    if len(ends) <= warm:
        return None
    took = (ends[-1] - ends[warm - 1]) / 1e9 / (len(ends) - warm)
    cpus = len(os.sched_getaffinity(0))
    print(f"  whole stage, {workers} worker(s), {cpus} CPUs: {60 / took:.1f} fields a minute", flush=True)
    return took


def forward(given: argparse.Namespace) -> None:
    """Prints the seconds of a forward pass of a field, with what is copied to the card and back."""
    network, contract = load(given.folder / "runs" / "finetune" / "cells" / "model")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiling = contract.predict
    predictor = Predictor(
        network, device, resolve(given.precision, device), tile=tiling.tile, halo=tiling.halo,
        batch=tiling.batch, threads=1, channels_last=contract.net.channels_last, compiled=False,
    )  # fmt: skip
    pixels = torch.randn(1, given.edge, given.edge).numpy()
    times = []
    for _ in range(WARM + max(given.fields // 2, 1)):
        start = time.perf_counter()
        predictor(pixels)  # returns an array of the CPU, so the card has finished
        times.append(time.perf_counter() - start)
    took = median(times[WARM:])
    print(f"bare forward pass: {took:.4f} s a field, {60 / took:.1f} fields a minute, {memory()}")


# ---------------------------------------------------------------- shared


def submitted(
    given: argparse.Namespace, budget: Budget, verb: str, name: str, keys: dict[str, object]
) -> str | None:
    """Runs a stage by the command line as users do; returns what it printed, None if its time was used up."""
    site = {"site.runs": f"{given.folder}/runs", "site.tracking": "none"}
    words = [f"{key}={value}" for key, value in (keys | site).items()]
    return budget.run("-m", "hpc_isl.submit", verb, *words, "--name", name)


def seconds_in(text: str) -> float:
    return float(text.partition("pass: ")[2].split()[0])


def memory() -> str:
    """Returns the greatest memory that PyTorch has had of the card."""
    if not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB of the card"


if __name__ == "__main__":
    main()
