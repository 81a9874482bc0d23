"""Last layers of a network that segments: the mask's logit, with or without a distance map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpc_isl import seeds
from hpc_isl.errors import UserError
from hpc_isl.learning.network.contract import Task

# The distance that an output of 1 stands for: fresh weights give numbers near 1.
UNIT = {"object": 100.0, "pixels": 10.0}


class Scaled(nn.Module):
    """Outputs times constants that training does not change."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors).view(1, -1, 1, 1), persistent=False)
        self.factors: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class ShiftedSigmoid(nn.Module):
    """The logit of the paper's sigmoid over the stain: slope × (stain / span - 0.5).

    The paper prints 1 / (1 + exp(x - 0.5)), which falls as x rises: a slip of the sign. Meant is
    1 / (1 + exp(-slope (x - 0.5))), x the stain scaled to [0, 1].
    """

    def __init__(self, slope: float, span: float) -> None:
        super().__init__()
        self.slope, self.span = slope, span

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * (x / self.span - 0.5)


class StainHead(nn.Sequential):
    """The logit of a calibrated threshold of the predicted stain, plus a residual that begins at zero.

    So the network begins as what it already knows, the stain above a threshold, and learns what people draw
    otherwise. The layers of the stain keep their names, under which an ISL model's weights are loaded.
    """

    def __init__(self, head: nn.Sequential, slope: float, centre: float) -> None:
        super().__init__(*head)
        self.slope, self.centre = slope, centre
        self.residual = nn.Conv2d(head[0].in_channels, 1, 3, padding=1)  # type: ignore[arg-type]
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        stain = x
        for name, layer in self.named_children():
            if name != "residual":
                stain = layer(stain)
        logit: Tensor = self.slope * (stain - self.centre) + self.residual(x)
        return logit


def set_head(network: Any, task: Task, seed: int = 0) -> None:
    """Puts the task's head behind a network's own last layer, in place.

    A network whose head takes a stain has 1 output; any other has `task.outputs`.

    Args:
        seed: of the weights of new layers; torch's own generator is left alone.
    """
    head = network.segmentation_head
    with torch.random.fork_rng():
        torch.manual_seed(seeds.integer(seed, "head"))
        if not task.from_stain:
            # Drawn again, as segmentation_models_pytorch does: the draw before depended on the arm.
            nn.init.xavier_uniform_(head[0].weight)
            if head[0].bias is not None:
                nn.init.zeros_(head[0].bias)
            if task.head == "same" and task.kind == "cells":
                network.segmentation_head = nn.Sequential(*head, Scaled([UNIT[task.scale], 1.0]))
            return
        if head[0].out_channels != 1:
            raise UserError(
                f"objects.head={task.head} stands on one predicted stain; the pretrained model predicts "
                f"{head[0].out_channels}"
            )
        if task.head == "stain":
            network.segmentation_head = StainHead(head, task.slope, task.centre)
            return
        layers: list[nn.Module] = [ShiftedSigmoid(task.slope, task.span)]
        if task.kind == "cells":
            layers = [nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)]
    network.segmentation_head = nn.Sequential(*head, *layers)


def start_from(network: nn.Module, state: Mapping[str, Tensor], head: bool) -> None:
    """Loads the weights of another model; `head`: also those of its last layer.

    Raises:
        UserError: names or shapes that this network does not have.
    """
    network_state = network.state_dict()
    # Left out, the last layer keeps the weights of `set_head`.
    tensors = {
        name: tensor for name, tensor in state.items() if head or not name.startswith("segmentation_head.")
    }
    wrong = [
        name
        for name, tensor in tensors.items()
        if name not in network_state or network_state[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(tensors)} tensors of the pretrained model do not fit this network, such "
            f"as {', '.join(wrong[:3])}: net must be the one that it was trained with"
        )
    network.load_state_dict({**network_state, **tensors})
