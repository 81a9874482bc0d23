"""What fine-tuning minimises: masks and distance maps against what is drawn, inside annotation boxes alone.

A target is (batch, 2 or 3, y, x) float32: where anything is known (1 inside annotation boxes, else 0), the
mask (1 inside objects), and for cells the distance map. What lies outside of boxes moves no weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_isl.learning.network.losses import Loss


def object_loss(kind: str, alpha: float) -> Loss:
    """Of nuclei, outputs (batch, 1, y, x): Jaccard. Of cells, (batch, 2, y, x): distance, then the mask."""
    if kind == "nuclei":
        return lambda prediction, target: jaccard(prediction[:, 0], target[:, 1], target[:, 0])

    def cells(prediction: Tensor, target: Tensor) -> Tensor:
        known, mask, distance = target.unbind(1)
        return squared_error(prediction[:, 0], distance, known) + alpha * cross_entropy(
            prediction[:, 1], mask, known
        )

    return cells


def title_of(kind: str, alpha: float) -> str:
    """The loss as a picture names it."""
    return "1 − Jaccard index" if kind == "nuclei" else f"squared error + {alpha:g} × cross entropy"


def jaccard(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """1 - soft Jaccard index over all known pixels of the batch together; (batch, y, x) each.

    Intersection over union of probabilities, as in segmentation_models_pytorch. One number for the batch:
    a crop without objects then counts for the union, where by itself it would have no index.
    """
    probability = torch.sigmoid(logits) * known
    both = (probability * mask).sum()
    either = probability.sum() + (mask * known).sum() - both
    return 1 - both / either.clamp_min(1e-7)


def squared_error(prediction: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean over known pixels, (batch, y, x) each; 0 where nothing is known."""
    return (known * (prediction - target) ** 2).sum() / known.sum().clamp_min(1)


def cross_entropy(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy, mean over known pixels; (batch, y, x) each."""
    each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return (known * each).sum() / known.sum().clamp_min(1)
