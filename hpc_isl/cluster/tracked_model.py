"""The model of a run as MLflow keeps it: code that reads safetensors, nothing is pickled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpc_isl.cluster.record import PACKAGE
from hpc_isl.files import read_json
from hpc_isl.run import Run

NEEDS = "torch segmentation_models_pytorch safetensors numpy scipy pydantic PyYAML tensorstore pyarrow"


def log_model(mlflow: Any, run: Run, run_id: str, packages: Mapping[str, str]) -> str:
    """Adds the model to the run's MLflow run; its address."""
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        warnings.simplefilter("ignore")  # advice to whoever writes a model, not to who trained one
        made = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "learning" / "served.py"),
            artifacts={"model": str(run.model)},
            signature=_signature(mlflow, run),
            code_paths=[str(PACKAGE)],
            pip_requirements=[f"{name}=={packages[name]}" for name in NEEDS.split() if name in packages],
        )
    return str(made.model_uri)


def _signature(mlflow: Any, run: Run) -> Any:
    """Arrays (image, source, y, x) to arrays (image, output, y, x), of the contract's channels."""
    contract = read_json(run.model / "contract.json") or {}
    view, task, types = contract["view"], contract.get("task"), mlflow.types
    outputs = {"nuclei": 1, "cells": 2}[task["kind"]] if task else len(view["targets"])
    sides = [
        types.Schema([types.TensorSpec(np.dtype("float32"), (-1, planes, -1, -1))])
        for planes in (len(view["sources"]), outputs)
    ]
    return mlflow.models.ModelSignature(*sides)
