"""The model as MLflow serves it; alone, because MLflow runs this file: nothing imports it or is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.flat_field import gain
from hpc_isl.learning.data.pixels import Pixels, normalise, numbers, subtract_box_mean
from hpc_isl.learning.inference.predict import predict
from hpc_isl.learning.network.model import load


class Stain(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """From label-free images to stains, by the model's contract."""

    def load_context(self, context: Any) -> None:
        self.network, self.contract = load(Path(context.artifacts["model"]))

    # np.ndarray alone is a hint that MLflow takes neither for a schema of its own nor for a reason to warn.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        """Returns stains (image, target, y, x), float32, of images (image, source, y, x).

        A model that segments returns its outputs: the mask's logit, or distance map and logit.

        Sources are in the contract's order, at its µm per pixel, in stored counts; those of a model
        with `flat_field: vendor` must be divided by the vendor's profile, of mean 1, before. Stains are in
        counts where the model normalised its targets by the training wells, else in units of each
        field's own.
        """
        images = np.asarray(model_input, np.float32)
        view, how = self.contract.view, self.contract.predict
        wanted = [role.channel for role in view.sources]
        if images.ndim != 4 or images.shape[1] != len(wanted):
            raise UserError(f"the model takes an array (image, {len(wanted)} sources, y, x): {wanted}")
        predictions = []
        for image in images:
            sources = np.stack([self._source(number, plane) for number, plane in enumerate(image)])
            predictions.append(
                predict(self.network, sources, tile=how.tile, halo=how.halo if how.tile else 0)
            )
        stacked = np.stack(predictions)
        if self.contract.task:
            return stacked
        scales = [role.numbers or (0.0, 1.0) for role in view.targets]
        offset, scale = (np.array(column, np.float32)[:, None, None] for column in zip(*scales, strict=True))
        return stacked * scale + offset

    def _source(self, number: int, plane: Pixels) -> Pixels:
        """Returns a source as in training; where its own statistics count, they are those of the array."""
        view = self.contract.view
        role, rule = view.sources[number], view.normalize
        if role.channel in view.profiles:
            whole = (slice(0, plane.shape[0]), slice(0, plane.shape[1]))
            plane = plane / gain(view.profiles[role.channel], (plane.shape[0], plane.shape[1]), whole)
        if rule.local_px:
            plane = subtract_box_mean(plane, rule.local_px)
        return normalise(plane, *numbers(rule.source, plane, 1.0, 99.0))


mlflow.models.set_model(Stain())
