"""In which numbers a forward pass is computed: the word of the recipe and the device together."""

from __future__ import annotations

import torch

from hpc_isl.device import Device, cpu, gpu_of, resolved
from hpc_isl.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(device: torch.device) -> Device:
    """What torch's device is, and computes in natively."""
    if device.type != "cuda":
        return cpu()
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        return Device(name, "gpu", frozenset(DTYPES))
    return gpu_of(name, ".".join(map(str, torch.cuda.get_device_capability(device))))


def resolve(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on GPUs that compute in it natively, else fp32; fp16 needs a GPU."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError("precision=fp16 needs a GPU; on a CPU take fp32")
    return DTYPES[resolved(precision, device_of(device))]


def as_scored(precision: str, device: torch.device) -> torch.dtype:
    """That with which a model was scored, where a GPU computes in it natively; else fp32."""
    there = device_of(device)
    native = there.kind == "gpu" and (there.native is None or precision in there.native)
    return DTYPES[precision] if native else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def kind_of(device: torch.device, dtype: torch.dtype) -> str:
    """On what results repeat to the bit: model of GPU or instructions of CPU, and fp32, bf16 or fp16."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {name_of(dtype)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {name_of(dtype)}"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context of a forward pass; fp32 leaves it alone."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def repeat_on(device: torch.device) -> None:
    """Equal recipes give equal results on one kind of device: no algorithm is chosen by a race."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
