"""Losses of pretraining, on images of stains, and of fine-tuning, on masks and distance maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_isl.errors import UserError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) -> scalar; pretraining's are both (batch, target, y, x) float32."""


def _charbonnier(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns sqrt(d² + ε²) with ε = 1e-3 (Charbonnier et al., 1994), averaged."""
    return torch.sqrt((prediction - target) ** 2 + 1e-6).mean()


PIXEL: dict[str, Loss] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "charbonnier": _charbonnier,
}

TITLES = {
    "l1": "mean absolute error (L1)", "mse": "mean squared error", "smooth_l1": "smooth L1", "huber": "Huber",
    "charbonnier": "Charbonnier",
}  # fmt: skip


def loss_of(name: str, pearson: float = 0.0, ssim: float = 0.0, span: float = 1.0) -> Loss:
    """Returns the pixel loss `name`, plus `pearson` × (1 - PCC) and `ssim` × (1 - SSIM), as one scalar.

    Args:
        span: range of the target's values, for SSIM: 1 where 0 and 1 are percentiles of the stain.
    """
    if name not in PIXEL:
        raise UserError(f"loss.name={name!r}; {nearest(name, PIXEL)}")

    def total(prediction: Tensor, target: Tensor) -> Tensor:
        value = PIXEL[name](prediction, target)
        if pearson:
            value = value + pearson * (1 - pcc(prediction, target).mean())
        if ssim:
            value = value + ssim * (1 - structural_similarity(prediction, target, span).mean())
        return value

    return total


def title_of(name: str, pearson: float = 0.0, ssim: float = 0.0) -> str:
    """Returns the loss as a picture names it: `smooth L1 + 0.5 × (1 − PCC)`."""
    parts = [TITLES[name]]
    parts += [f"{weight:g} × (1 − {part})" for part, weight in (("PCC", pearson), ("SSIM", ssim)) if weight]
    return " + ".join(parts)


def pcc(prediction: Tensor, target: Tensor, floor: float = 1e-6) -> Tensor:
    """Returns Pearson's correlation over the pixels of each crop and target: (batch, target).

    `floor` is added to the variances, so that a constant crop gives 0 and a finite gradient.
    """
    a = prediction - prediction.mean(dim=(-2, -1), keepdim=True)
    b = target - target.mean(dim=(-2, -1), keepdim=True)
    variances = (a * a).mean(dim=(-2, -1)) + floor, (b * b).mean(dim=(-2, -1)) + floor
    return (a * b).mean(dim=(-2, -1)) / torch.sqrt(variances[0] * variances[1])


def structural_similarity(prediction: Tensor, target: Tensor, span: float) -> Tensor:
    """Returns the mean SSIM of each crop and target, (batch, target).

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4),
    2004: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, windows inside the crop only.
    """
    places = torch.arange(-5.0, 6.0, device=target.device)
    bell = torch.exp(-(places**2) / (2 * 1.5**2))
    bell = bell / bell.sum()

    def smooth(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *x.shape[-2:])
        # A Gaussian window is separable: one pass along each axis.
        flat = F.conv2d(F.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))
        return flat.reshape(*x.shape[:-2], *flat.shape[-2:])

    mean_a, mean_b = smooth(prediction), smooth(target)
    var_a = smooth(prediction**2) - mean_a**2
    var_b = smooth(target**2) - mean_b**2
    covariance = smooth(prediction * target) - mean_a * mean_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean(dim=(-2, -1))


# ---------------------------------------------------------------- masks and distance maps
# A target is (batch, 2 or 4, y, x) float32: `known` (1 inside annotation boxes, else 0), the mask (1 inside
# objects), and for cells where the distance map counts, and that map. What lies outside of boxes changes no
# weight.


def object_loss(kind: str, alpha: float) -> Loss:
    """Returns the loss of nuclei or cells.

    Nuclei, outputs (batch, 1, y, x): Jaccard. Cells, outputs (batch, 2, y, x), distance map before mask:
    squared error + `alpha` × cross entropy.
    """
    if kind == "nuclei":
        return lambda prediction, target: jaccard(prediction[:, 0], target[:, 1], target[:, 0])

    def cells(prediction: Tensor, target: Tensor) -> Tensor:
        known, mask, counts, distance = target.unbind(1)
        mask_loss = cross_entropy(prediction[:, 1], mask, known)
        return squared_error(prediction[:, 0], distance, counts) + alpha * mask_loss

    return cells


def title_of_object_loss(kind: str, alpha: float) -> str:
    """Returns the loss as a picture names it."""
    return "1 − Jaccard index" if kind == "nuclei" else f"squared error + {alpha:g} × cross entropy"


def jaccard(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Returns 1 - soft Jaccard index over all known pixels of the batch; (batch, y, x) each.

    Intersection over union of probabilities, as in segmentation_models_pytorch.
    """
    probability = torch.sigmoid(logits) * known
    # One index for the batch: a crop without objects has none of its own, but counts for the union.
    intersection = (probability * mask).sum()
    union = probability.sum() + (mask * known).sum() - intersection
    return 1 - intersection / union.clamp_min(1e-7)


def squared_error(prediction: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Returns the mean over known pixels, (batch, y, x) each; 0 where nothing is known."""
    return (known * (prediction - target) ** 2).sum() / known.sum().clamp_min(1)


def cross_entropy(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Returns the binary cross entropy, mean over known pixels; (batch, y, x) each."""
    by_pixel = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return (known * by_pixel).sum() / known.sum().clamp_min(1)
