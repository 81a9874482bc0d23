"""What reading crops costs: against zarr-python, against whole planes, and in a training step.

    python benchmarks/crops.py            # under two minutes; makes its own plate in a temporary folder

All readers read the same boxes of the same store, in turns. Reading is timed in CPU seconds of one
thread from a warm cache, training in wall time step by step in turns: ratios hold on a busy machine.
"""

from __future__ import annotations

import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HPC_ISL_IO_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))

import argparse  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import segmentation_models_pytorch as smp  # noqa: E402
import torch  # noqa: E402
import zarr  # noqa: E402
from scipy import ndimage  # noqa: E402

from hpc_isl.learning.data.calibrate import view_of  # noqa: E402
from hpc_isl.learning.data.pixels import Box, project  # noqa: E402
from hpc_isl.learning.data.samples import Crops, crops_of  # noqa: E402
from hpc_isl.learning.data.split import draw  # noqa: E402
from hpc_isl.learning.data.view import Plane, counts  # noqa: E402
from hpc_isl.learning.training.batches import batches  # noqa: E402
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout  # noqa: E402
from hpc_isl.plates.statistics import measure  # noqa: E402
from hpc_isl.plates.store import finalise, open_plate, write_field  # noqa: E402
from hpc_isl.recipes.plates import CodecRecipe  # noqa: E402
from hpc_isl.recipes.pretrain import PretrainRecipe  # noqa: E402
from hpc_isl.recipes.training import SplitRecipe  # noqa: E402

EDGE = 2160
DEPTH = 4
CHUNK = CodecRecipe().chunk
Read = Callable[[Plane, Box], Any]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crop", type=int, default=512)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=20, help="training steps of each kind; 0: reading only")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plate = write_plate(Path(folder) / "bench.zarr")
        reading(crops_from(plate, given.crop, 8), given.crop, given.rounds)
        if given.steps:
            training(crops_from(plate, 256, 2), given.steps)


# ---------------------------------------------------------------- a plate as a Phenix would fill it


def write_plate(path: Path, fields: int = 2, times: int = 1) -> Path:
    """Fields of 2160², bright-field and Hoechst in four planes each: cells and shot noise, uint16."""
    keys = [FieldKey(f"B{column + 2:02d}", "1") for column in range(fields)]
    rows, columns = layout({key.well for key in keys})
    shape = (times, 2, DEPTH, EDGE, EDGE)
    plate = Plate(
        "bench", rows, columns, (Channel("Brightfield", fluorescent=False), Channel("Hoechst")),
        tuple(Field(key, shape, "uint16") for key in keys), pixel_um=0.299,
    )  # fmt: skip
    for number, field in enumerate(plate.fields):
        pixels = np.concatenate([image(number * times + at) for at in range(times)])
        write_field(path, plate, field, pixels, measure(pixels), CodecRecipe())
    finalise(path, plate, {})
    return path


def image(seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    spots = np.zeros((EDGE, EDGE), np.float32)
    spots[rng.integers(0, EDGE, 400), rng.integers(0, EDGE, 400)] = 1
    nuclei = ndimage.gaussian_filter(spots, 12) * 12**2 * 6
    pixels = np.empty((1, 2, DEPTH, EDGE, EDGE), np.uint16)
    for plane in range(DEPTH):
        for channel, light in enumerate((8000 - 2000 * nuclei, 300 + 3000 * nuclei)):
            pixels[0, channel, plane] = light + rng.standard_normal(light.shape, np.float32) * np.sqrt(light)
    return pixels


def crops_from(path: Path, crop: int, micro_batch: int) -> Crops:
    asked = PretrainRecipe.model_validate(
        {
            "plates": [path],
            "sources": [{"channel": "Brightfield", "plane": [1, 2]}],
            "targets": [{"channel": "Hoechst", "plane": "max"}],
            "train": {"steps": 1, "batch": micro_batch, "micro_batch": micro_batch, "crop": crop},
        }
    )
    indices = [open_plate(path)]
    split = draw(indices, SplitRecipe(test=0, validation=0))
    return crops_of(view_of(indices, split, asked), indices, split, asked.train, asked.augment)


# ---------------------------------------------------------------- reading


@cache
def open_array(path: Path) -> Any:
    return zarr.open_array(path, mode="r")


def with_zarr(plane: Plane, box: Box) -> Any:
    planes = slice(plane.planes[0], plane.planes[-1] + 1)
    stored = open_array(plane.image / "0")[plane.channel, planes, box[0], box[1]]
    return project(stored, plane.projection)


def whole(read: Read) -> Read:
    return lambda plane, box: read(plane, plane.whole)[..., box[0], box[1]]


def reading(crops: Crops, edge: int, rounds: int) -> None:
    """Crops per second of each reader: the median over rounds, the readers taking turns in each."""
    boxes = list(random_boxes(edge, 12))
    readers: dict[str, tuple[Read, int]] = {
        "tensorstore, crops (hpc_isl)": (counts, len(boxes)),
        "zarr-python, crops": (with_zarr, 4),
        "tensorstore, whole planes": (whole(counts), 3),
        "zarr-python, whole planes": (whole(with_zarr), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    samples: list[float] = []
    for turn in range(rounds + 1):  # the first warms up
        for name, (read, count) in readers.items():
            start = time.process_time()
            for i in range(count):
                for plane in planes_of(crops, i):
                    read(plane, boxes[i])
            seconds[name] += [(time.process_time() - start) / count] * bool(turn)
        start = time.process_time()
        for number in range(len(boxes)):
            crops[number + turn * len(boxes)]
        samples += [(time.process_time() - start) / len(boxes)] * bool(turn)
    report(crops, edge, seconds)
    print(f"whole samples, read, checked, normalised and augmented: {1 / np.median(samples):.1f} a second")


def planes_of(crops: Crops, number: int) -> tuple[Plane, ...]:
    field = crops.fields[number % len(crops.fields)]
    return field.sources + (field.targets or ())


def report(crops: Crops, edge: int, seconds: dict[str, list[float]]) -> None:
    planes = sum(len(plane.planes) for plane in planes_of(crops, 0))
    used = planes * edge**2 * 2
    chunks = np.mean([touched(box) for box in random_boxes(edge, 1000)])
    ours, *_ = seconds.values()
    print(f"crops of {edge}² × {planes} planes from fields of {EDGE}², chunks of {CHUNK}², one thread, warm")
    print(f"{'reader':32}{'crops/s':>10}{'MB/s':>8}{'decoded / used':>16}{'time / ours':>13}")
    for name, found in seconds.items():
        decoded = (-(-EDGE // CHUNK)) ** 2 if "whole" in name else chunks
        amplification, second = decoded * CHUNK**2 / edge**2, np.median(found)
        ratio = np.median(np.divide(found, ours))
        print(f"{name:32}{1 / second:10.1f}{used / second / 1e6:8.0f}{amplification:16.2f}{ratio:13.1f}")


def random_boxes(edge: int, count: int) -> Iterator[Box]:
    rng = np.random.default_rng(0)
    for y, x in rng.integers(0, EDGE - edge + 1, (count, 2)).tolist():
        yield slice(y, y + edge), slice(x, x + edge)


def touched(box: Box) -> int:
    """Chunks that a box overlaps."""
    rows, columns = ((side.stop - 1) // CHUNK - side.start // CHUNK + 1 for side in box)
    return rows * columns


# ---------------------------------------------------------------- training


def training(crops: Crops, steps: int) -> None:
    """Seconds per step of a small U-Net, from the loader and on one cached batch, step by step in turns."""
    train = PretrainRecipe.model_validate(
        {"plates": ["-"], "sources": [{"channel": "-"}], "targets": [{"channel": "-"}],
         "train": {"steps": steps + 1, "batch": 2, "micro_batch": 2, "crop": 256}}
    ).train  # fmt: skip
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=2, classes=1)
    optimiser = torch.optim.AdamW(network.parameters())
    loader = batches(crops, train, first_step=0, last_step=steps + 2, workers=1)
    _, _, *cached = next(loader)

    def step(source: torch.Tensor, target: torch.Tensor) -> None:
        optimiser.zero_grad()
        torch.nn.functional.l1_loss(network(source), target).backward()
        optimiser.step()

    step(*cached)
    loaded, still, waits = [], [], []
    for _ in range(steps):
        start = time.perf_counter()
        _, _, *pair = next(loader)
        waits.append(time.perf_counter() - start)
        step(*pair)
        loaded.append(time.perf_counter() - start)
        start = time.perf_counter()
        step(*cached)
        still.append(time.perf_counter() - start)
    loader.close()
    ratio, waiting = np.median(np.divide(loaded, still)), np.sum(waits) / np.sum(loaded)
    print(f"training: U-Net resnet18, 2 × 256², one thread, one loading process, {steps} steps of each kind")
    print(f"cached batch {np.median(still):.3f} s/step, loader {np.median(loaded):.3f} s/step")
    print(f"loader / cached {ratio:.3f}; waiting for the loader {waiting:.1%} of the time")


if __name__ == "__main__":
    main()
