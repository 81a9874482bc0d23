"""What a GPU makes of training and of segmenting: figures as they come, for at most nine minutes of one card.

    python benchmarks/gpu.py [--minutes 9] [--small]

Each part is a process with a share of the minutes, and is ended with all that it started when they are over:
what it has printed until then stands. A training step (densenet121, 16 crops of 512²) from the loader is
held against the same step on a batch that is on the card already, in turns; the whole stage `segment` on
fields of 2160² against the bare network, with one worker process and with two on the same card. `--small`:
the same on small images, for a machine without a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.learning.network.unet import build
from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.load import load
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment.inputs import segment_inputs
from hpc_isl.stages.segment.segmenter import load_segmenter
from hpc_isl.stages.segment.stage import _write_schema, plan
from hpc_isl.stages.shared.field_records import read_records

# Part -> its share of the time.
PARTS = {
    "pretrain bf16": 0.2,
    "pretrain fp32": 0.2,
    "bare network": 0.1,
    "one worker": 0.25,
    "two workers": 0.25,
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM = 3  # steps, or fields of each worker, that are left out at the beginning


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=9)
    words.add_argument("--small", action="store_true")
    words.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    words.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.part:
        kind, _, what = given.part.partition(" ")
        if kind == "pretrain":
            pretrain(given, what)
        elif kind == "bare":
            bare(given)
        else:
            stage(given, {"one": 1, "two": 2}[kind])
        return
    end = time.monotonic() + 60 * given.minutes
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU"
    print(f"{name}, {os.cpu_count()} CPUs, PyTorch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_plates(Path(folder), given.small)
        left = end - time.monotonic()
        for part, share in PARTS.items():
            seconds = min(share * left, end - time.monotonic())
            run_part(part, seconds, [*sys.argv[1:], "--folder", folder])


def run_part(part: str, seconds: float, words: list[str]) -> None:
    """Runs a part; ends it, with all that it started, once its seconds are over."""
    command = [sys.executable, __file__, *words, "--part", part, "--seconds", f"{seconds:.1f}"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        if process.wait(max(seconds, 1)):
            print(f"{part}: failed", flush=True)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"{part}: ended after its {seconds:.0f} s", flush=True)


def make_plates(folder: Path, small: bool) -> None:
    import crops  # sets the threads of the libraries before they are loaded, so only here and in its part

    crops.EDGE = 1024 if small else 2160
    crops.write_plate(folder / "train.zarr")
    edge, wells = (128, 3) if small else (2160, 12)
    names = [f"B{column:02}" for column in range(1, wells + 1)]
    write_screen(folder / "P.zarr", names, 4, (edge, edge), spacing=20 if small else 60)
    net = {"encoder": "tu-test_resnet", "decoder": [16, 16, 8, 8, 8]} if small else {"encoder": "densenet121"}
    save_model(folder / "runs" / "finetune" / "cells", net=NetRecipe(weights=None, **net))


# ---------------------------------------------------------------- training


def pretrain(given: argparse.Namespace, precision: str) -> None:
    """Prints seconds of a step from the loader and of one on a batch that is on the card, in turns."""
    import crops

    from hpc_isl.learning.training.batches import batches

    crop, size, encoder = (64, 2, "resnet18") if given.small else (512, 16, "densenet121")
    network = (
        build(NetRecipe(encoder=encoder, weights=None), 2, 1, seed=0, pretrained=False).to(DEVICE).train()
    )
    optimiser = torch.optim.AdamW(network.parameters())
    keys = {"steps": 100_000, "batch": size, "micro_batch": size, "crop": crop}
    roles = {"sources": [{"channel": "-"}], "targets": [{"channel": "-"}]}
    recipe = PretrainRecipe.model_validate({"plates": ["-"], **roles, "train": keys})
    workers = max(1, (os.cpu_count() or 2) - 1)
    samples = crops.crops_from(given.folder / "train.zarr", crop, size)
    loader = batches(samples, recipe.train, last_step=10_000, workers=workers)

    def step(pair: list[torch.Tensor]) -> None:
        source, target = (tensor.to(DEVICE, non_blocking=True) for tensor in pair)
        optimiser.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.l1_loss(network(source), target)
        loss.backward()
        optimiser.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    cached, end = [tensor.to(DEVICE) for tensor in next(loader)[2:]], time.monotonic() + 0.7 * given.seconds
    whole, bare_s, waits = [], [], []
    while time.monotonic() < end and (not given.small or len(whole) < WARM + 4):
        start = time.perf_counter()
        pair = list(next(loader)[2:])
        waits.append(time.perf_counter() - start)
        step(pair)
        whole.append(time.perf_counter() - start)
        start = time.perf_counter()
        step(cached)
        bare_s.append(time.perf_counter() - start)
    loader.close()
    loaded, alone = (median(times[WARM:]) for times in (whole, bare_s))
    waited = sum(waits[WARM:]) / sum(whole[WARM:])
    print(
        f"pretrain {precision}, {encoder}, {size} × {crop}²: {loaded:.3f} s a step, {size / loaded:.1f} "
        f"crops/s; bare {alone:.3f} s, whole / bare {loaded / alone:.3f}; waiting for data {waited:.1%} "
        f"({workers} loading processes, {len(whole)} steps){memory()}",
        flush=True,
    )


def memory() -> str:
    """Returns how much of the card's memory was taken at most; nothing where there is no card."""
    if DEVICE.type != "cuda":
        return ""
    return f"; {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the card"


# ---------------------------------------------------------------- segmenting


def keys_of(folder: Path, name: str) -> list[str]:
    return [f"model={folder}/runs/finetune/cells", f"plates=[{folder}/P.zarr]", f"labels={name}"]


def bare(given: argparse.Namespace) -> None:
    """Prints the seconds a field of the network alone, on sources that are read already."""
    run = Run(given.folder / "runs" / "segment" / "bare")
    run.folder.mkdir(parents=True)
    recipe = plan(load("segment", None, keys_of(given.folder, "bare"))).recipe
    run.recipe.write_text(to_yaml(recipe))
    _write_schema(segment_inputs(recipe), run.folder)
    segmenter, index = load_segmenter(run.folder), open_plate(given.folder / "P.zarr")
    keys = [field.key for field in index.plate.fields][:8]
    sources = [segmenter.reader(index.path, key).sources(0) for key in keys]
    times, end = list[float](), time.monotonic() + 0.5 * given.seconds
    while time.monotonic() < end and len(times) < 10 * len(sources):
        start = time.perf_counter()
        segmenter.predictor(sources[len(times) % len(sources)])  # returns with the result in memory
        times.append(time.perf_counter() - start)
    each = median(times[WARM:])
    print(
        f"bare network: {1000 * each:.1f} ms a field, {60 / each:.0f} fields a minute{memory()}", flush=True
    )
    (given.folder / "bare.txt").write_text(str(each))


def stage(given: argparse.Namespace, workers: int) -> None:
    """Prints the seconds a field of the whole stage, once it is warm, by when its fields ended."""
    name = f"with{workers}"
    site = [
        f"site.workers={workers}",
        f"site.runs={given.folder}/runs",
        "site.tracking=none",
        *(["site.memory=12G"] if given.small else []),
    ]
    command = [sys.executable, "-m", "hpc_isl.submit", "segment", *keys_of(given.folder, name), *site]
    subprocess.run([*command, "--name", name], check=True, stdout=subprocess.DEVNULL)
    records = read_records(given.folder / "runs" / "segment" / name, "P").values()
    ends = sorted(datetime.fromisoformat(record["ended"]).timestamp() for record in records)
    warm = WARM * workers
    each = (ends[-1] - ends[warm - 1]) / (len(ends) - warm)
    known = given.folder / "bare.txt"
    ratio = f", {each / float(known.read_text()):.2f} × the bare network" if known.exists() else ""
    print(f"segment, {workers} worker processes: {60 / each:.0f} fields a minute{ratio}", flush=True)


if __name__ == "__main__":
    main()
