"""What bf16 costs against fp32 on this CPU, and on older ones that it can stand for.

    python benchmarks/precision.py                       # a minute
    python benchmarks/precision.py --encoder densenet121 --crop 256

A U-Net's training step and its forward pass, on one thread, in seconds of CPU (so that other jobs on the
machine do not count): the least of several in turns. Older CPUs are this one with its later instructions
switched off, in oneDNN by ONEDNN_MAX_CPU_ISA and in PyTorch by ATEN_CPU_CAPABILITY.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from hpc_isl.learning.network.unet import build
from hpc_isl.recipes.training import NetRecipe

OLDER = {
    "AVX2": ("AVX2", "avx2"),
    "AVX512": ("AVX512_CORE", "avx512"),
    "AVX512 with bf16": ("AVX512_CORE_BF16", "avx512"),
    "all of this CPU": ("DEFAULT", "avx512"),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    given = arguments()
    if given.inside:
        print(json.dumps(measured(given)))
        return
    print(f"U-Net on {given.encoder}, {given.batch} crops of {given.crop}², one thread; seconds of CPU")
    print(f"{'instructions':<18}{'':<10}" + "".join(f"{name:>22}" for name in PRECISIONS))
    for name, (onednn, aten) in OLDER.items():
        limits = {"ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, __file__, "--inside", *sys.argv[1:]], env=os.environ | limits, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        for what, seconds in json.loads(done.stdout).items():
            least = seconds["fp32"]
            shown = (f"{value:.3f} ({value / least:.2f} ×)" for value in seconds.values())
            print(f"{name:<18}{what:<10}" + "".join(f"{text:>22}" for text in shown), flush=True)


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--encoder", default="resnet18")
    options.add_argument("--crop", type=int, default=128)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return options.parse_args()


def measured(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What -> precision -> the least seconds of CPU."""
    torch.set_num_threads(1)
    network = build(NetRecipe(encoder=given.encoder, weights=None), 2, 1, 0).to(
        memory_format=torch.channels_last
    )
    pixels = torch.randn(given.batch, 2, given.crop, given.crop).contiguous(memory_format=torch.channels_last)
    found: dict[str, dict[str, float]] = {"step": {}, "forward": {}}
    for _ in range(given.rounds):
        for name, dtype in PRECISIONS.items():
            for what, call in (("step", _step), ("forward", _forward)):
                took = _seconds(lambda call=call, dtype=dtype: call(network, pixels, dtype))
                found[what][name] = min(took, found[what].get(name, took))
    return found


def _step(network: nn.Module, pixels: torch.Tensor, dtype: torch.dtype) -> None:
    network.train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        prediction = network(pixels)
    torch.autograd.backward(prediction.float().square().mean())


def _forward(network: nn.Module, pixels: torch.Tensor, dtype: torch.dtype) -> None:
    network.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        network(pixels)


def _seconds(call: Callable[[], None]) -> float:
    call()
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
