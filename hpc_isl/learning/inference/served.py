"""The model as MLflow serves it: MLflow runs this file, nothing imports it, and nothing is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from hpc_isl.learning.inference.images import predict_images
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.model import load


class Stain(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """From label-free images to stains, by the model's contract."""

    def load_context(self, context: Any) -> None:
        network, self.contract = load(Path(context.artifacts["model"]))
        tiling = self.contract.predict
        self.predictor = Predictor(network, tile=tiling.tile, halo=tiling.halo if tiling.tile else 0)

    # np.ndarray alone is a hint that MLflow takes neither for a schema of its own nor for a reason to warn.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        """Returns predictions (image, target, y, x) of images (image, source, y, x): see `predict_images`."""
        return predict_images(self.predictor, self.contract, np.asarray(model_input, np.float32))


mlflow.models.set_model(Stain())
