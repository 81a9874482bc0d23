"""The model as MLflow serves it: MLflow runs this file, nothing imports it, and nothing is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.flat_field import gain
from hpc_isl.learning.data.pixels import Pixels, normalise, numbers, subtract_box_mean
from hpc_isl.learning.inference.predict import predict
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.model import load


class Stain(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """From label-free images to stains, by the model's contract."""

    def load_context(self, context: Any) -> None:
        self.network, self.contract = load(Path(context.artifacts["model"]))

    # np.ndarray alone is a hint that MLflow takes neither for a schema of its own nor for a reason to warn.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        """Returns stains (image, target, y, x), float32, of images (image, source, y, x).

        A model that segments gives what it says of objects: the mask's logit, or distance map and logit.

        Sources stand in the contract's order, at its µm per pixel, in stored counts; those of a model
        with `flat_field: vendor` are divided by the vendor's profile, of mean 1, before. Stains are in
        counts where the model normalised its targets by the training wells, else in units of each
        field's own.
        """
        images = np.asarray(model_input, np.float32)
        wanted = [role.channel for role in self.contract.view.sources]
        if images.ndim != 4 or images.shape[1] != len(wanted):
            raise UserError(f"the model takes an array (image, {len(wanted)} sources, y, x): {wanted}")
        return np.stack([self._one(image) for image in images])

    def _one(self, image: Pixels) -> Pixels:
        how = self.contract.predict
        sources = np.stack([_seen(self.contract, number, plane) for number, plane in enumerate(image)])
        stains = predict(self.network, sources, tile=how.tile, halo=how.halo if how.tile else 0)
        if self.contract.task:
            return stains
        scales = [role.numbers or (0.0, 1.0) for role in self.contract.view.targets]
        offset, scale = (np.array(each, np.float32)[:, None, None] for each in zip(*scales, strict=True))
        return stains * scale + offset


def _seen(contract: Contract, number: int, plane: Pixels) -> Pixels:
    """One source as the network saw it in training; its own statistics are those of the array."""
    view = contract.view
    role, how = view.sources[number], view.normalize
    if role.channel in view.profiles:
        everything = (slice(0, plane.shape[0]), slice(0, plane.shape[1]))
        plane = plane / gain(view.profiles[role.channel], (plane.shape[0], plane.shape[1]), everything)
    if how.local_px:
        plane = subtract_box_mean(plane, how.local_px)
    return normalise(plane, *numbers(how.source, plane, 1.0, 99.0))


mlflow.models.set_model(Stain())
