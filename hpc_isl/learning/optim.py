"""How the weights move: the optimiser, and its learning rate as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from hpc_isl.recipes.training import OptimRecipe


def optimizer_of(parameters: Iterable[torch.nn.Parameter], optim: OptimRecipe) -> torch.optim.Optimizer:
    """torch's optimiser of that name; the learning rate is set anew in each step."""
    decay, lr = optim.weight_decay, optim.lr
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=optim.betas[0], weight_decay=decay)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, betas=optim.betas, weight_decay=decay)


def rate(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Share of the peak learning rate in `step` (0 … steps - 1).

    one_cycle: cosine up from 1/25, cosine down to 4e-6, as torch's OneCycleLR (Smith and Topin,
    2018). cosine: linear up, cosine down to 0. constant: 1.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "one_cycle":
        peak, last = warmup * steps - 1, steps - 1
        if step <= peak:
            return _between(1 / 25, 1.0, step / max(peak, 1e-9))
        return _between(1.0, 4e-6, (step - peak) / max(last - peak, 1e-9))
    rise = warmup * steps
    return (
        (step + 1) / rise if step + 1 < rise else _between(1.0, 0.0, (step + 1 - rise) / max(steps - rise, 1))
    )


def _between(start: float, end: float, part: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
