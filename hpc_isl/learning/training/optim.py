"""The optimiser, and its learning rate as a function of the step alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hpc_isl.recipes.training import OptimRecipe

Group = dict[str, Any]
"""`params`, and beside them `scale`, a factor of the learning rate, and `rests`, steps in which it is 0."""


def optimizer_of(parameters: Iterable[Group], optim: OptimRecipe) -> torch.optim.Optimizer:
    """Returns torch's optimiser of that name; the learning rate is set again in each step."""
    decay, lr = optim.weight_decay, optim.lr
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=optim.betas[0], weight_decay=decay)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, betas=optim.betas, weight_decay=decay)


def groups_of(network: nn.Module, layer_lr: float = 1.0, frozen: int = 0) -> list[Group]:
    """Returns the trainable parameters by level of the network, as the optimiser takes them.

    Args:
        layer_lr: each level has the learning rate of the next one towards the head, times this.
        frozen: first steps, in which the levels of the encoder do not learn.
    """
    trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    # One group, as earlier versions had: their checkpoints still load.
    if layer_lr == 1 and not frozen:
        return [{"params": [p for _, p in trainable], "scale": 1.0, "rests": 0}]
    levels: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trainable:
        levels.setdefault(_level(name), []).append(parameter)
    last = len(levels) - 1
    return [
        {
            "params": parameters,
            "scale": layer_lr ** (last - place),
            "rests": frozen * name.startswith("encoder"),
        }
        for place, (name, parameters) in enumerate(levels.items())
    ]


def _level(name: str) -> str:
    """Returns the level of a parameter: its name up to the first number, else without its last part.

    `encoder.layer1.0.conv1.weight` belongs to `encoder.layer1`, `encoder.model.blocks.2.0.bn1.bias` to
    `encoder.model.blocks.2`.
    """
    match = re.match(r".*?\d+(?=\.)", name.removesuffix(".weight").removesuffix(".bias") + ".")
    part = match[0] if match else name.rpartition(".")[0]
    return "segmentation_head" if part.startswith("segmentation_head") else part


def rate(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Returns the share of the peak learning rate in `step` (0 … steps - 1).

    one_cycle: cosine up from 1/25, cosine down to 4e-6, as torch's OneCycleLR (Smith and Topin,
    2018). cosine: linear up, cosine down to 0. constant: 1.
    """

    def half_cosine(start: float, end: float, part: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * part)) / 2

    if schedule == "constant":
        return 1.0
    if schedule == "one_cycle":
        peak, last = warmup * steps - 1, steps - 1
        if step <= peak:
            return half_cosine(1 / 25, 1.0, step / max(peak, 1e-9))
        return half_cosine(1.0, 4e-6, (step - peak) / max(last - peak, 1e-9))
    rise, steps_done = warmup * steps, step + 1
    return (
        steps_done / rise
        if steps_done < rise
        else half_cosine(1.0, 0.0, (steps_done - rise) / max(steps - rise, 1))
    )
