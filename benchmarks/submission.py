"""How long a pretraining takes to be submitted, and its job to come to the first step.

    python benchmarks/submission.py                          # two minutes; makes its own plate
    python benchmarks/submission.py --site testcluster       # and hands jobs to sbatch, which it cancels

Calls of the command line take turns with a bare Python and with one `import torch`, the machine's limits.
`--site` is one with Slurm, such as slurm/testcluster writes; its nodes must see the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe

EDGE, DEPTH = 256, 2
DOOR = ["-m", "hpc_isl.submit"]
LIMITS = {"python -c pass": ["-c", "pass"], "python -c 'import torch'": ["-c", "import torch"]}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--site", help="a site with Slurm, by name or file; without, only plans are timed")
    options.add_argument("--jobs", type=int, default=3, help="small runs whose first step is waited for")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plate = write_plate(folder / "plate.zarr")
        dropped = {"PYTHONDONTWRITEBYTECODE", "HPC_ISL_RUNS"}
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        # Compiled modules are kept from call to call, as an installation keeps them.
        environment |= {"PYTHONPYCACHEPREFIX": f"{folder}/compiled", "HPC_ISL_RUNS": f"{folder}/runs"}
        torch_s = submission(plate, environment, given.rounds, given.site)
        first_step(plate, environment, given.jobs, torch_s)


# ---------------------------------------------------------------- a plate of some dozens of fields


def write_plate(path: Path) -> Path:
    """48 wells with a field of 256² each: bright-field and Hoechst in two planes, spots and noise."""
    rng = np.random.default_rng(0)
    wells = [f"{row}{column:02d}" for row in "BCDEFG" for column in range(2, 10)]
    shape = (1, 2, DEPTH, EDGE, EDGE)
    fields = tuple(Field(FieldKey(well, "1"), shape, "uint16") for well in wells)
    channels = (Channel("Brightfield", fluorescent=False), Channel("Hoechst"))
    plate = Plate("bench", *layout(set(wells)), channels, fields, pixel_um=0.6)
    y, x = np.mgrid[:EDGE, :EDGE]
    for field in fields:
        centers = rng.uniform(0, EDGE, (12, 2))
        spots = np.max([np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60) for cy, cx in centers], axis=0)
        planes = np.stack([9000 - 3000 * spots, 600 + 9000 * spots])[None, :, None]
        pixels = (planes + rng.normal(0, 60, shape)).astype("uint16")
        write_field(path, plate, field, pixels, measure(pixels), CodecRecipe())
    finalise(path, plate, {})
    return path


def pretrain(plate: Path, *words: str) -> list[str]:
    """The call of Python that submits a pretraining of a small network on the plate."""
    return [
        *DOOR, "pretrain", f"plates=[{plate}]", "sources=[{channel: Brightfield}]",
        "targets=[{channel: Hoechst, plane: max}]", "net={encoder: resnet18, weights: null}",
        "train={steps: 3, batch: 4, micro_batch: 4, crop: 64}", "predict.stain=false", *words,
    ]  # fmt: skip


# ---------------------------------------------------------------- from the command to the job


def submission(plate: Path, environment: Mapping[str, str], rounds: int, site: str | None) -> float:
    """Prints how long the calls take; returns the seconds of `import torch`."""
    calls = {**LIMITS, "pretrain --dry-run": pretrain(plate, "--site", "slurm", "--dry-run")}
    if site:
        calls["pretrain, to sbatch"] = pretrain(plate, "--site", site, "--name")
    took: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):  # the first round compiles
        for name, words in calls.items():
            own = [f"bench{number + 1}"] if words[-1] == "--name" else []
            took[name].append(seconds([*words, *own], environment))
            if own:
                call([*DOOR, "cancel", *own], environment)
    bare = median(took["python -c pass"][1:])
    for name, values in took.items():
        least, middle = min(values[1:]), median(values[1:])
        print(f"{name:<26} {middle:.2f} s (least {least:.2f})   {middle / bare:.0f} × python -c pass")
    return median(took["python -c 'import torch'"][1:])


def seconds(words: list[str], environment: Mapping[str, str]) -> float:
    """Wall time of one Python process."""
    start = time.perf_counter()
    call(words, environment)
    return time.perf_counter() - start


def call(words: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=dict(environment))
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")


# ---------------------------------------------------------------- from the job to its first step


def first_step(plate: Path, environment: Mapping[str, str], jobs: int, torch_s: float) -> None:
    """Prints the time from the start of the job's process to the end of the first training step."""
    took = []
    for number in range(jobs + 1):  # the first compiles
        call(pretrain(plate, "--site", "laptop", "--name", f"job{number}"), environment)
        took.append(waited(Path(environment["HPC_ISL_RUNS"]) / "pretrain" / f"job{number}"))
    middle, least = median(took[1:]), min(took[1:])
    print(f"job to first step          {middle:.2f} s (least {least:.2f})")
    print(f"  without one import torch {middle - torch_s:.2f} s")


def waited(run: Path) -> float:
    started = json.loads((run / "attempts" / "0" / "rank-0.json").read_text())["start"]
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    first = next(line for line in lines if "train/loss" in line["values"])
    return (datetime.fromisoformat(first["time"]) - datetime.fromisoformat(started)).total_seconds()


if __name__ == "__main__":
    main()
