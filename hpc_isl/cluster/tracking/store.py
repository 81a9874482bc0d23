"""Where MLflow keeps runs: a server that answers, or a database that appears whole or not at all."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import only_writer

ANSWER_S = 3.0
SQLITE = "sqlite:///"
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
    with one_at_a_time(root) as mine:
        if not mine:
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
            place = None if uri.startswith("http") else (root / "mlflow-artifacts").as_uri()
            return str(client.create_experiment(name, place, tags={KIND: MACHINE_LEARNING}))
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
