"""The precision of a forward pass, from the recipe's key and the device together."""

from __future__ import annotations

import torch

from hpc_isl.device import Device, cpu, gpu_of, resolved

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(device: torch.device) -> Device:
    """Returns the name of torch's device and the precisions that it computes in natively."""
    if device.type != "cuda":
        return cpu()
    name = torch.cuda.get_device_name(device)
    # GPUs of AMD have no compute capability in NVIDIA's sense; all of them compute in all three.
    if torch.version.hip:
        return Device(name, "gpu", frozenset(DTYPES))
    return gpu_of(name, ".".join(map(str, torch.cuda.get_device_capability(device))))


def resolve(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of a precision: `auto` is bf16 on GPUs that compute in it natively, else fp32.

    Raises:
        UserError: fp16 on a CPU.
    """
    return DTYPES[resolved(precision, device_of(device))]


def as_scored(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that a model was scored with, if a GPU computes in it natively; else float32."""
    processor = device_of(device)
    native = processor.kind == "gpu" and (processor.native is None or precision in processor.native)
    return DTYPES[precision] if native else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """Returns fp32, bf16 or fp16."""
    return next(name for name, candidate in DTYPES.items() if candidate == dtype)


def kind_of(device: torch.device, dtype: torch.dtype) -> str:
    """Returns the GPU model or CPU instructions, and the precision, on which results are bit-identical."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {name_of(dtype)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {name_of(dtype)}"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Returns the context of a forward pass; for float32 it changes nothing."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def repeat_on(device: torch.device) -> None:
    """Makes equal recipes give equal results on one kind of device."""
    if device.type == "cuda":
        # The benchmark chooses the algorithm that is fastest at that moment: another sum each time.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
