"""The precisions that a machine computes in natively; without torch, which a plan must not wait for."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hpc_isl.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
# Instructions that multiply in bf16, as Linux names them on x86 and on ARM.
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
# A U-Net's training step in bf16 over one in fp32 where a CPU has no instructions for bf16, by those that it
# has instead, measured by benchmarks/precision.py (docs/performance.md).
EMULATED = {"AVX512": 2.7, "AVX2": 9.9}


@dataclass(frozen=True)
class Device:
    """A processor that computes networks.

    Attributes:
        name: for people.
        kind: cpu, or gpu.
        native: the precisions that it computes in natively; None: not known.
        cost: a training step in bf16 over one in fp32, where bf16 is emulated and that was measured.
    """

    name: str
    kind: str = "cpu"
    native: frozenset[str] | None = None
    cost: float | None = None


def cpu() -> Device:
    """Returns this machine's CPU."""
    try:
        return cpu_of(CPUINFO.read_text())
    except OSError:  # not Linux
        return Device(f"this {platform.machine()} CPU")


def cpu_of(cpuinfo: str) -> Device:
    """Returns the CPU that the text of /proc/cpuinfo describes."""
    lines = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    native = frozenset({"fp32", "bf16"} if BF16 & flags else {"fp32"})
    instructions = (
        "AVX512" if {"avx512f", "avx512bw", "avx512vl"} <= flags else "AVX2" if "avx2" in flags else ""
    )
    name = " ".join(facts.get("model name", f"{platform.machine()} CPU").split())
    return Device(name, "cpu", native, EMULATED.get(instructions))


@lru_cache
def gpus(names: tuple[str, ...]) -> list[Device]:
    """Returns the GPUs of this machine with these names, as in CUDA_VISIBLE_DEVICES, by nvidia-smi."""
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,name,compute_cap", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return [Device("a GPU", "gpu") for _ in names]
    return gpus_of(result.stdout, names)


def gpus_of(listed: str, names: Sequence[str]) -> list[Device]:
    """Returns the GPUs of these names, from CSV rows of index, uuid, name and compute capability."""
    devices: dict[str, Device] = {}
    for row in csv.reader(listed.splitlines(), skipinitialspace=True):
        if len(row) == 4:
            devices |= dict.fromkeys(row[:2], gpu_of(*row[2:]))
    return [devices.get(name, Device("a GPU", "gpu")) for name in names]


def gpu_of(name: str, capability: str) -> Device:
    """Returns a GPU of NVIDIA's, by its compute capability.

    bf16 since 8.0; fp16 no slower than fp32 since 7.0, and in 5.3, 6.0 and 6.2 (CUDA C++ Programming Guide,
    throughput of native arithmetic instructions).
    """
    try:
        version = tuple(map(int, capability.split(".")))
    except ValueError:
        return Device(name, "gpu")
    fast = {"bf16": version >= (8, 0), "fp16": version >= (7, 0) or version in ((5, 3), (6, 0), (6, 2))}
    return Device(name, "gpu", frozenset({"fp32", *(key for key, is_fast in fast.items() if is_fast)}))


def remarks(key: str, precision: str, devices: Sequence[Device]) -> Iterator[str]:
    """Yields, for each device, the precision that a network will be computed in, and its cost.

    Args:
        key: of the recipe, that holds the precision: auto, fp32, bf16 or fp16.

    Raises:
        UserError: fp16 on a CPU.
    """
    for device in dict.fromkeys(devices):
        native = device.native
        chosen = resolved(precision, device, key)
        if native is None:
            yield f"computes in {chosen} on {device.name} ({key}={precision}), of which no more is known"
        elif chosen in native:
            precisions = ", ".join(name for name in ("fp32", "bf16", "fp16") if name in native)
            yield f"computes in {chosen} on {device.name} ({key}={precision}); natively it has {precisions}"
        else:
            cost = "; how slow that is was not measured for such a device"
            if device.cost is not None and chosen == "bf16":
                cost = (
                    f": a U-Net's training step took {device.cost:g} times as long as in fp32 (measured on a "
                    "CPU held to the same instructions, docs/performance.md)"
                )
            yield (
                f"warning: {key}={precision}: {device.name} has no instructions for {chosen}, which is "
                f"emulated{cost}; {key}=auto takes fp32 there"
            )


def resolved(precision: str, device: Device, key: str = "precision") -> str:
    """Returns the precision; `auto` is bf16 on GPUs that compute in it natively, else fp32.

    Raises:
        UserError: fp16 on a CPU; `key` of the recipe says so.
    """
    if precision == "fp16" and device.kind == "cpu":
        raise UserError(f"{key}=fp16 needs a GPU; {device.name} takes {key}=auto, which is fp32 there")
    if precision != "auto":
        return precision
    return "bf16" if device.kind == "gpu" and device.native and "bf16" in device.native else "fp32"
