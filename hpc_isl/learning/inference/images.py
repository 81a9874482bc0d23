"""Predictions of arrays that come from anywhere: each image is normalised by its own statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import Pixels, gain, normalise, numbers, subtract_box_mean
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.contract import Contract


def predict_images(predictor: Predictor, contract: Contract, images: NDArray[Any]) -> Pixels:
    """Returns predictions (image, target, y, x), float32, of images (image, source, y, x) in stored counts.

    Sources are in the contract's order, at its µm per pixel; those of a model with `flat_field: vendor` are
    divided by the vendor's profile, of mean 1, before. Stains are in counts where the model normalised its
    targets by the training wells, else in units of each field's own.

    Raises:
        UserError: another number of dimensions or of sources.
    """
    channels = [role.channel for role in contract.view.sources]
    if images.ndim != 4 or images.shape[1] != len(channels):
        raise UserError(f"the model takes an array (image, {len(channels)} sources, y, x): {channels}")
    return np.stack([_prediction(predictor, contract, image.astype(np.float32)) for image in images])


def _prediction(predictor: Predictor, contract: Contract, image: Pixels) -> Pixels:
    prediction = predictor(
        np.stack([_normalise(contract, number, plane) for number, plane in enumerate(image)])
    )
    if contract.task:  # distances and logits, which are no counts
        return prediction
    scales = [role.numbers or (0.0, 1.0) for role in contract.view.targets]
    offset, scale = (np.array(values, np.float32)[:, None, None] for values in zip(*scales, strict=True))
    return prediction * scale + offset


def _normalise(contract: Contract, number: int, plane: Pixels) -> Pixels:
    """Returns one source as the network saw it in training, by the statistics of the array."""
    view = contract.view
    role, rule = view.sources[number], view.normalize
    if role.channel in view.profiles:
        whole = (slice(0, plane.shape[0]), slice(0, plane.shape[1]))
        plane = plane / gain(view.profiles[role.channel], (plane.shape[0], plane.shape[1]), whole)
    if rule.local_px:
        plane = subtract_box_mean(plane, rule.local_px)
    # The recipe's percentiles are those of targets; sources have always these, as in `view.Plane`.
    return normalise(plane, *numbers(rule.source, plane, 1.0, 99.0))
