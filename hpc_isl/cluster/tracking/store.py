"""Where MLflow keeps runs, and what it gets of them: files, the model, the scores of a sweep as a whole.

It is a server that answers, or a database that appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shlex
import shutil
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.cluster.run_folder.provenance import PACKAGE
from hpc_isl.errors import UserError
from hpc_isl.files import only_writer, read_json
from hpc_isl.run import Run
from hpc_isl.stages.stage_table import STAGES

ANSWER_S = 3.0
SQLITE = "sqlite:///"
NAMES = ("recipe.yaml", "site.yaml", "record.json", "elements.json", "code.diff", "split.csv")
TABLES = ("boxes.csv", "scores.csv")
PAGES = ("html", "png", "csv")
NEEDS = "torch segmentation_models_pytorch safetensors numpy scipy pydantic PyYAML tensorstore pyarrow"
# By it some versions of MLflow tell experiments of training from those about agents and their traces.
KIND, MACHINE_LEARNING = "mlflow.experimentKind", "custom_model_development"


class Unreachable(RuntimeError):
    """The tracking server does not answer; the run folder keeps everything until it does."""


class RunDeleted(RuntimeError):
    """A person deleted the run in MLflow."""


def check(uri: str) -> None:
    """Checks within seconds that a server answers, before MLflow is imported and retries.

    Raises:
        Unreachable: it does not.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # the proxy reaches it, if anything does
    try:
        socket.create_connection((host, port), ANSWER_S).close()
    except OSError as error:
        raise Unreachable(f"{uri} does not answer ({error})") from None


def one_at_a_time(root: Path) -> AbstractContextManager[bool]:
    """Locks `root`: processes that create one database or experiment together fail."""
    return only_writer(root / ".mlflow.lock", wait_s=120)


def client(mlflow: Any, uri: str, root: Path) -> Any:
    """Returns MLflow's own client, with a database that appears complete or not at all."""
    with one_at_a_time(root) as has_lock:
        if not has_lock:
            raise Unreachable(f"{uri} is being made by another process just now")
        path = Path(uri.removeprefix(SQLITE))
        if uri.startswith(SQLITE) and not path.exists():
            # One whose making was ended half-way would be refused for ever.
            folder = path.with_name(f".{path.name}.new")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            mlflow.MlflowClient(tracking_uri=f"{SQLITE}{folder}/{path.name}")
            os.rename(folder / path.name, path)
            shutil.rmtree(folder)
        return mlflow.MlflowClient(tracking_uri=uri)


def experiment(client: Any, uri: str, root: Path, name: str) -> str:
    """Returns the id of the experiment `name`, made by one process at a time where there is none.

    Raises:
        UserError: it was deleted in MLflow.
    """
    with one_at_a_time(root):
        existing = client.get_experiment_by_name(name)
        if existing is None:
            # A server knows where it keeps files; beside a database of ours they lie beside it.
            artifact_location = None if uri.startswith("http") else (root / "mlflow-artifacts").as_uri()
            return str(client.create_experiment(name, artifact_location, tags={KIND: MACHINE_LEARNING}))
    usable(client, uri, existing)
    return str(existing.experiment_id)


def usable(client: Any, uri: str, experiment: Any) -> None:
    """Sets the kind of an experiment that has none, as those of MLflow's older versions.

    Raises:
        UserError: it was deleted; MLflow then takes nothing for it, and shows nothing of it.
    """
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {experiment.name!r} was deleted, and its runs with it; "
            f"{restoring(uri)} experiments restore --experiment-id {experiment.experiment_id} brings them "
            "back, or site.experiment=NAME sends new runs to another"
        )
    if KIND not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, KIND, MACHINE_LEARNING)


def restoring(uri: str) -> str:
    """Returns the beginning of a command to MLflow about what is kept at `uri`."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow"


# ---------------------------------------------------------------- what it gets


def file_stamp(path: Path) -> list[int]:
    """Returns when the file was written, and its size."""
    return [path.stat().st_mtime_ns, path.stat().st_size]


def changed(run: Run, sent: Mapping[str, list[int]]) -> list[Path]:
    """Returns the files that are new, or are not as they were when they were sent.

    They are recipe, records, tables, pictures, and the report of an array.
    """
    pages = [path for kind in PAGES for path in run.folder.glob(f"report/**/*.{kind}")]
    files = (run.folder / name for name in NAMES + TABLES)
    paths = [path for path in (*files, *sorted(run.pictures.glob("*.png")), *sorted(pages)) if path.is_file()]
    return [path for path in paths if sent.get(str(path.relative_to(run.folder))) != file_stamp(path)]


def log_model(mlflow: Any, run: Run, run_id: str, packages: Mapping[str, str]) -> str:
    """Adds the model to the run's MLflow run, without pickling anything; returns its address."""
    contract = read_json(run.model / "contract.json") or {}
    view, task, types = contract["view"], contract.get("task"), mlflow.types
    # Arrays (image, source, y, x) to arrays (image, output, y, x), of the contract's channels.
    outputs = {"nuclei": 1, "cells": 2}[task["kind"]] if task else len(view["targets"])
    schemas = [
        types.Schema([types.TensorSpec(np.dtype("float32"), (-1, planes, -1, -1))])
        for planes in (len(view["sources"]), outputs)
    ]
    corrected = view["flat_field"] == "vendor"
    planes = {
        part: [f"{role['channel']} {role['plane']}" for role in view[part]] for part in ("sources", "targets")
    }
    images = "counts divided by the vendor's flat field (of mean 1)" if corrected else "stored counts"
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        warnings.simplefilter("ignore")  # advice to the author of a model, not to its trainer
        logged_model = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "learning" / "inference" / "served.py"),
            artifacts={"model": str(run.model)},
            signature=mlflow.models.ModelSignature(*schemas),
            metadata={**planes, "images": images, "um_per_pixel": view["pixel_um"]},
            code_paths=[str(PACKAGE)],
            pip_requirements=[f"{name}=={packages[name]}" for name in NEEDS.split() if name in packages],
        )
    return str(logged_model.model_uri)


# ---------------------------------------------------------------- a sweep as a whole


@dataclass(frozen=True)
class Summary:
    """The scores of a sweep.

    Attributes:
        curves: name of a metric -> number of annotation boxes -> mean score.
        note: these scores as a table in Markdown.
    """

    curves: Mapping[str, Mapping[int, float]]
    note: str


def results_of(run: Run) -> str | None:
    """Returns what tells the results of a sweep from earlier ones; None: nothing tells of it as a whole."""
    elements = [element for element in run.elements() if element.array == run]
    reported = [element for element in elements if element.stage in STAGES and STAGES[element.stage].report]
    summaries = {element.name: element.summary() for element in reported}
    times = [f"{name} {summary.get('time')}" for name, summary in sorted(summaries.items()) if summary]
    return hashlib.sha256("\n".join(times).encode()).hexdigest()[:16] if times else None


def summarise(run: Run, again: bool) -> Summary:
    """Returns the scores, and writes the report where the one in the folder lacks results.

    Args:
        again: earlier scores were forwarded. MLflow overwrites no metric, so these get other names.

    Raises:
        UserError: no element has a score.
    """
    report: Any = importlib.import_module(str(STAGES[run.elements()[0].stage].report))
    means = report.mean_scores(run)
    if not report.is_current(run):
        report.report(run)
    done_count = sum(element.summary() is not None for element in run.elements())
    section = means.score + (f" of {done_count} elements" if again else "")
    curves = {f"{section}/{arm.replace('/', '_')}": curve for arm, curve in means.curves.items()}
    # A row for each arm, a column for each number of annotation boxes.
    counts = sorted({boxes for curve in means.curves.values() for boxes in curve})
    rows = [[f"mean {means.title}", *(f"N = {boxes}" for boxes in counts)], ["---"] * (len(counts) + 1)]
    rows += [
        [arm, *(f"{curve[boxes]:.3f}" if boxes in curve else "" for boxes in counts)]
        for arm, curve in means.curves.items()
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    note = (
        f"{table}\n\nAgainst {means.truth}, over all test boxes and draws; N: annotation boxes. As charts "
        f"over N (there: step): Model metrics, {section}. With intervals and pictures: Artifacts, "
        "report/report.html.\n"
    )
    return Summary(curves, note)
