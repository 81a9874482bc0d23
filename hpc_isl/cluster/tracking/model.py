"""The model of a run as MLflow keeps it: code that reads safetensors, nothing is pickled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpc_isl.cluster.run_folder.provenance import PACKAGE
from hpc_isl.files import read_json
from hpc_isl.run import Run

NEEDS = "torch segmentation_models_pytorch safetensors numpy scipy pydantic PyYAML tensorstore pyarrow"


def log_model(mlflow: Any, run: Run, run_id: str, packages: Mapping[str, str]) -> str:
    """Adds the model to the run's MLflow run; its address."""
    contract = read_json(run.model / "contract.json") or {}
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        warnings.simplefilter("ignore")  # advice to whoever writes a model, not to who trained one
        made = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "learning" / "inference" / "served.py"),
            artifacts={"model": str(run.model)},
            signature=_signature(mlflow, contract),
            metadata=_about(contract["view"]),
            code_paths=[str(PACKAGE)],
            pip_requirements=[f"{name}=={packages[name]}" for name in NEEDS.split() if name in packages],
        )
    return str(made.model_uri)


def _about(view: Mapping[str, Any]) -> dict[str, Any]:
    """What the model must be given: planes, their scale, and whether their counts are corrected before."""
    names = {
        part: [f"{role['channel']} {role['plane']}" for role in view[part]] for part in ("sources", "targets")
    }
    corrected = view["flat_field"] == "vendor"
    images = "counts divided by the vendor's flat field (of mean 1)" if corrected else "stored counts"
    return {**names, "images": images, "um_per_pixel": view["pixel_um"]}


def _signature(mlflow: Any, contract: Mapping[str, Any]) -> Any:
    """Arrays (image, source, y, x) to arrays (image, output, y, x), of the contract's channels."""
    view, task, types = contract["view"], contract.get("task"), mlflow.types
    outputs = {"nuclei": 1, "cells": 2}[task["kind"]] if task else len(view["targets"])
    sides = [
        types.Schema([types.TensorSpec(np.dtype("float32"), (-1, planes, -1, -1))])
        for planes in (len(view["sources"]), outputs)
    ]
    return mlflow.models.ModelSignature(*sides)
