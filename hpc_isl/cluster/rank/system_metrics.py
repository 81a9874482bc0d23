"""How the machine is doing while a stage runs; the run folder's metrics get it, MLflow shows it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import psutil


def system_metrics() -> dict[str, float]:
    """CPU and memory of this machine; of its GPU too once this process uses one. GB are 10⁹ bytes."""
    return {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_gb": psutil.virtual_memory().used / 1e9,
    } | _gpu(sys.modules.get("torch"))


def _gpu(torch: Any) -> dict[str, float]:
    """Asked through torch where the stage has imported it: importing it here would cost every stage."""
    in_use = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    if in_use is None or not in_use():  # None also while the stage is just importing it
        return {}
    free, total = torch.cuda.mem_get_info()
    figures = {"system/gpu_memory_gb": (total - free) / 1e9}
    with contextlib.suppress(Exception):  # needs pynvml, which is not everywhere
        figures["system/gpu_percent"] = float(torch.cuda.utilization())
    return figures
